"""C2: tight clusters under InfoNCE move by four linear modes; along the gap both decay, if the gap is wide enough."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import closest, equals_one, worst
from experiments.setups.clusters import clouds, clusters, flow_variances, time_scale
from experiments.setups.trends import spread
from simulator.theory import flows
from simulator.training.flow import velocity

CLAIM = sim.Claim(
    id="C2",
    title="Compression along the gap",
    summary="While each modality is one tight cluster, deviations from its mean grow or decay at four known rates.",
    statement=(
        "For two tight clusters the gradient is linear in the deviations from the means, with relative error O(ε): "
        "along the gap the common mode has rate −(2/τ)(G²/τ − 1) and the opposite one −(2/τ)(G²/τ + 1), across it "
        "±2/τ; on the sphere −(1/2τ)(sin²θ/τ ∓ 2cos θ) along the great circle and ±1/τ across."
    ),
    source="Chowers et al. 2026, Thm 3.1 (sign corrected); rates derived here: theory.md C2",
    assumes="clusters much smaller than τ/G and √τ; free embeddings",
    expected=dict.fromkeys(
        ("gradient", "along the gap", "across the gap", "along the circle", "across the circle", "near the threshold"),
        "holds",
    ),
)
CAPTION = (
    "Linear modes of two tight clusters. (a) Relative error of the linearised gradient against the exact one, at "
    "several G and τ; grey: the near misses. (b) Fitted rates under squared distances (points), all G and τ on one "
    "axis; grey: the first term with the opposite sign. (c) Fitted rates on the unit sphere against the angle of "
    "the clusters. (d) Error of the slower rate near the critical gap and angle, in units of the faster one (root "
    "mean square over seeds). Bars in (b) and (c), mostly smaller than the marker: ± 4 standard errors over 8 "
    "seeds."
)
MODES = flows.ModeRates._fields
MODE_LABELS = ("common, along", "opposite, along", "common, across", "opposite, across")
WORKING_STEP = 0.05  # of the fitting window
SLOWEST = 0.1  # of the faster rate along the gap: a slower one has the error of the faster, and is judged apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Gaussian clusters of standard deviation `size` per coordinate, at every (gap, τ) and every (angle, τ) whose slower
    rate is at least `SLOWEST` of the faster; `near_gap` and `near_angle` are cases next to the threshold."""

    gap_norms: tuple[float, ...] = (0.3, 0.6, 1.2)
    temperatures: tuple[float, ...] = (0.05, 0.2, 0.8)
    angles: tuple[float, ...] = (0.2, 0.4, 0.6, 0.85, 1.1, 1.35, np.pi / 2, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0)
    sphere_temperatures: tuple[float, ...] = (0.05, 0.3, 1.0)
    size: float = 1e-4
    sizes: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    near_gap: tuple[float, float] = (0.45, 0.2)
    near_angle: tuple[float, float] = (2.0, 1.0)
    num_pairs: int = 64
    dimensions: int = 8
    seeds: int = 8
    seed: int = 21


QUICK = Config(gap_norms=(0.3, 1.2), temperatures=(0.05, 0.8), angles=(0.6, 2.4), sphere_temperatures=(0.05, 1.0))


def measure(config: Config, *, progress: bool = False):
    """Errors of the gradient, fitted rates of the four modes with their near misses, and errors next to the threshold."""
    import xarray as xr

    from simulator.progress import tqdm

    parts = (
        ("", "case", config.gap_norms, config.temperatures, config.near_gap, flows.mode_rates_euclidean,
         near_misses_euclidean),
        ("sphere_", "sphere_case", config.angles, config.sphere_temperatures, config.near_angle, flows.mode_rates_sphere,
         near_misses_sphere),
    )  # fmt: skip
    values, near, near_miss = {}, [], []
    with jax.enable_x64(True):
        for prefix, case, separations, temperatures, next_to, predict, near_misses in parts:
            on_sphere = prefix == "sphere_"
            where = np.array([
                pair for pair in itertools.product(separations, temperatures) if _is_far(np.array(predict(*pair)))
            ])  # fmt: skip
            measured = np.empty((len(where), config.seeds, len(MODES)))
            for i, j in tqdm([*np.ndindex(measured.shape[:2])], disable=not progress, desc=f"modes, {case}"):
                measured[i, j] = _fitted_rates(*clouds(config, j), *where[i], on_sphere)
            values |= {
                f"{prefix}measured": ((case, "seed", "mode"), measured),
                f"{prefix}predicted": ((case, "mode"), np.stack(predict(*where.T), axis=1)),
                f"{prefix}near_miss": ((f"{prefix}miss", case, "mode"), near_misses(*where.T)),
                ("angle" if on_sphere else "gap_norm"): ((case,), where[:, 0]),
                f"{prefix}temperature": ((case,), where[:, 1]),
            }
            errors = _errors_near(next_to, on_sphere, predict, near_misses, config)
            near.append(errors[0])
            near_miss.append(errors[1:].min(axis=0))
        cases = list(itertools.product(config.gap_norms, config.temperatures))
        values |= dict(
            gradient_error=(("gradient_case", "formula", "seed", "size"), _gradient_errors(cases, config)),
            near_error=(("geometry", "size"), near),
            near_error_near_miss=(("geometry", "size"), near_miss),
        )
    return xr.Dataset(
        values,
        coords=dict(
            mode=list(MODES),
            formula=["descent", "opposite sign", "τ for τ²"],
            miss=["twice the rate", "τ for τ²", "opposite sign"],
            sphere_miss=["2cos θ → cos θ", "τ for τ²", "cos θ dropped", "|cos θ|", "Euclid's 2/τ"],
            geometry=["space", "sphere"],
            size=list(config.sizes),
        ),
        attrs=dict(cluster_size=config.size, near_gap=list(config.near_gap), near_angle=list(config.near_angle)),
    )


def _is_far(rates) -> bool:
    """Whether the slower rate along the gap is at least SLOWEST of the faster."""
    slower, faster = np.sort(np.abs(rates[:2]))
    return slower >= SLOWEST * faster


def _errors_near(where, on_sphere: bool, predict, near_misses, config: Config) -> np.ndarray:
    """Root mean square over seeds of the slower fitted rate minus the predicted one (first) and minus each near miss that
    changes it, in units of the faster rate, [1 + miss, size]."""
    predicted = np.array(predict(*where))
    slower = int(np.argmin(np.abs(predicted[:2])))
    misses = near_misses(*np.array(where)[:, None])[:, 0, slower]
    guesses = np.append(predicted[slower], misses[misses != predicted[slower]])
    errors = np.empty((len(guesses), config.seeds, len(config.sizes)))
    for seed, k in np.ndindex(errors.shape[1:]):
        a, b = (rows / config.size * config.sizes[k] for rows in clouds(config, seed))
        errors[:, seed, k] = _fitted_rates(a, b, *where, on_sphere)[slower] - guesses
    return np.sqrt(np.mean(errors**2, axis=1)) / np.max(np.abs(predicted[:2]))


def near_misses_euclidean(gap_norm, temperature) -> np.ndarray:
    """Twice the rate (the loss as the sum of both directions), τ for τ² in the first term, its sign as printed.
    [3, case, 4]."""
    own, pair = 2 * gap_norm**2 / temperature**2, 2 / temperature
    return np.stack([
        _rates(2 * own, 2 * pair, 2 * pair),
        _rates(own * temperature, pair, pair),
        _rates(-own, pair, pair),
    ])  # fmt: skip


def near_misses_sphere(angle, temperature) -> np.ndarray:
    """Half the cosine, τ for τ², cosine dropped, its absolute value, and Euclid's rates across, [5, case, 4]."""
    own, across = np.sin(angle) ** 2 / (2 * temperature**2), 1 / temperature
    pair = np.cos(angle) / temperature
    return np.stack([
        _rates(own, pair / 2, across),
        _rates(own * temperature, pair, across),
        _rates(own, across, across),
        _rates(own, np.abs(pair), across),
        _rates(own, pair, 2 * across),
    ])  # fmt: skip


def _rates(own, pair, across):
    """The four rates [case, 4] when a row's own deviation decays at `own` and its partner's feeds it at `pair`."""
    return np.stack([pair - own, -pair - own, across, -across], axis=1)


def _fitted_rates(a, b, separation, temperature, sphere, step=WORKING_STEP) -> np.ndarray:
    """Slope of the logarithm of each mode's amplitude over six times of one time scale, [4]."""
    window = time_scale(separation, temperature, sphere)
    times = np.linspace(0.0, window, 6)
    variances = flow_variances(*clusters(a, b, separation, sphere), times, temperature, sphere, step * window)
    return np.polyfit(times, 0.5 * np.log(variances), 1)[0]


def _gradient_errors(cases, config: Config) -> np.ndarray:
    """Relative error of three linear gradients against the exact one, [case, formula, seed, size]."""
    errors = np.empty((len(cases), 3, config.seeds, len(config.sizes)))
    for i, seed, k in np.ndindex(len(cases), *errors.shape[2:]):
        gap_norm, temperature = cases[i]
        a, b = (rows / config.size * config.sizes[k] for rows in clouds(config, seed))
        x, y = clusters(a, b, gap_norm, False)
        speeds = _velocity(x, y, temperature)
        exact = np.stack([-np.asarray(speed) / config.num_pairs for speed in speeds])
        linear = np.stack(flows.linearized_gradient(x, y, temperature=temperature))
        pull = -2 * np.stack([b, a]) / (config.num_pairs * temperature)  # the second term alone
        for j, guess in enumerate((linear, 2 * pull - linear, pull + (linear - pull) * temperature)):
            errors[i, j, seed, k] = np.linalg.norm(guess - exact) / np.linalg.norm(exact)
    return errors


@jax.jit
def _velocity(x, y, temperature):
    return velocity(x, y, temperature=temperature)


def judge(data) -> list[sim.Row]:
    """Slope of the gradient's error, the four kinds of rates, and the order of the error next to the threshold."""
    # The next order changes the largest error by a factor 1 + O(Gε/τ), Gε/τ <= .024, and the slope by less than that.
    size, slope_tolerance, rate_tolerance = data["size"].values, 0.02, 0.01

    def slope(formula, pick):
        """The (G, τ) that `pick` chooses speaks for all: the worst for the test, the best for a near miss."""
        errors = data.gradient_error.sel(formula=formula).values
        checks = [sim.Check("slope", 1.0, e.reshape(-1), slope_tolerance, at=np.tile(size, len(e))) for e in errors]
        return pick(checks)

    def rates(prefix, modes, predicted):
        """Every seed's fitted rate over its own predicted one."""
        chosen = [MODES.index(mode) for mode in modes]
        return equals_one(data[f"{prefix}measured"].values[:, :, chosen] / predicted[:, None, chosen], rate_tolerance)

    def row(name, label, prefix, modes, misses):
        near = [rates(prefix, modes, data[f"{prefix}near_miss"].sel({f"{prefix}miss": miss}).values) for miss in misses]
        control = closest(near)
        test = rates(prefix, modes, data[f"{prefix}predicted"].values)
        return sim.Row(name, test, control, "the closest of: " + "; ".join(misses), label=label)

    def next_to(values, pick):
        checks = [sim.Check("slope", 1.0, errors, slope_tolerance, at=size) for errors in values.values]
        return pick(checks)

    def off(formula):
        """Over seeds, at the (G, τ) where the formula is closest in the tightest clusters."""
        errors = data.gradient_error.sel(formula=formula).isel(size=int(np.argmin(size)))
        return spread(errors.isel(gradient_case=int(np.argmin(errors.mean("seed").values))))

    along, across = MODES[:2], MODES[2:]
    near_gradient = [slope(formula, closest) for formula in ("opposite sign", "τ for τ²")]
    return [
        sim.Row(
            "gradient",
            slope("descent", worst),
            closest(near_gradient),
            "the closest of: opposite sign of the first term; τ for τ²",
            label="relative error of the linearised gradient over cluster size, worst (G, τ)",
            condition="the first term has this sign, not the printed one",
            effect=f"relative error of the gradient in the tightest clusters {off('descent')}, with the printed sign "
            f"{off('opposite sign')}",
        ),
        row("along the gap", "rates along the gap, each over its own prediction, all G, τ", "", along, data.miss.values.tolist()),
        row("across the gap", "rates across the gap, each over its own, all G, τ", "", across, ["twice the rate"]),
        row(
            "along the circle", "rates along the great circle, each over its own, all θ, τ",
            "sphere_", along, data.sphere_miss.values.tolist()[:4],
        ),
        row("across the circle", "rates across the great circle, each over its own, all θ, τ", "sphere_", across, ["Euclid's 2/τ"]),
        sim.Row(
            "near the threshold",
            next_to(data.near_error, worst),
            next_to(data.near_error_near_miss, closest),
            "the near miss with the smallest error, of those that change this rate",
            label="error of the slower rate next to the threshold over cluster size, space and sphere",
        ),
    ]  # fmt: skip


def draw(data):
    """Gradient error, rates in space, rates on the sphere, and the error near the threshold."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(plotting.TWO_COLUMNS, 5.0), layout="constrained")
    _draw_gradient(axes[0][0], data)
    _draw_euclid(axes[0][1], data)
    _draw_sphere(axes[1][0], data)
    _draw_near(axes[1][1], data)
    plotting.legend_above(figure, axes[1][0], ncols=6, columnspacing=1.2)
    return plotting.lettered(figure)


def _draw_gradient(axis, data):
    size = data["size"].values
    for formula, style in (("opposite sign", "--"), ("τ for τ²", ":")):
        near = data.gradient_error.sel(formula=formula).mean("seed")
        axis.plot(size, near.values.T, color=plotting.CONTROL, linestyle=style, linewidth=0.8)
        axis.plot([], [], color=plotting.CONTROL, linestyle=style, linewidth=0.8, label=formula)
    errors = data.gradient_error.sel(formula="descent")
    for i, line in enumerate(errors.values):
        label = "measured, each (G, τ)" if i == 0 else None
        axis.plot(size, line.mean(axis=0), "ko", label=label)
        axis.plot(size, size * np.mean(line / size[None, :]), color="black", linewidth=0.6)
    axis.plot([], [], color="black", linewidth=0.6, label="slope 1")
    axis.set(xscale="log", yscale="log", xlabel="cluster size ε", ylabel="relative error", title="linearised gradient")
    axis.set_ylim(1e-7, None)
    axis.legend(ncols=2, loc="lower right")


def _spread(values):
    """Mean over seeds and 4 standard errors."""
    return values.mean(axis=0), 4 * values.std(axis=0, ddof=1) / len(values) ** 0.5


def _draw_euclid(axis, data):
    ratio = (data.gap_norm**2 / data.temperature).values
    line = np.geomspace(ratio.min() / 1.5, ratio.max() * 1.5, 200)
    rates = np.stack(flows.mode_rates_euclidean(np.sqrt(line), np.ones_like(line)), axis=1) / 2
    miss = axis.plot(line, 1 + line, color=plotting.CONTROL, linestyle="--", linewidth=0.8)
    axis.plot(line, line - 1, color=plotting.CONTROL, linestyle="--", linewidth=0.8)
    measured = data.measured.transpose("seed", "case", "mode").values * data.temperature.values[None, :, None] / 2
    for k in range(len(MODE_LABELS)):
        axis.plot(line, rates[:, k], color=plotting.COLORS[k])
        axis.errorbar(ratio, *_spread(measured[:, :, k]), linestyle="none", **plotting.series(k))
    axis.axhline(0, color="black", linestyle=":", linewidth=0.6)
    axis.set_yscale("asinh", linear_width=1)
    axis.set(xscale="log", xlabel="G²/τ", ylabel="rate · τ/2", title="squared distances")
    axis.set(
        yticks=(-30, -10, -3, -1, 0, 1, 3, 10, 30), yticklabels=("−30", "−10", "−3", "−1", "0", "1", "3", "10", "30")
    )
    axis.legend(miss, ["opposite sign"], loc="upper left")


def _draw_sphere(axis, data):
    middle = np.unique(data.sphere_temperature.values)
    middle = middle[len(middle) // 2]
    at = data.sphere_temperature.values == middle
    angle, line = data.angle.values[at], np.linspace(0, np.pi, 200)
    rates = np.stack(flows.mode_rates_sphere(line, middle), axis=1) * middle
    dropped = near_misses_sphere(line, np.full_like(line, middle))[2] * middle
    for k in (0, 1):
        miss = axis.plot(np.degrees(line), dropped[:, k], color=plotting.CONTROL, linestyle=":", linewidth=0.8)
    measured = data.sphere_measured.transpose("seed", "sphere_case", "mode").values[:, at] * middle
    for k, label in enumerate(MODE_LABELS):
        axis.plot(np.degrees(line), rates[:, k], color=plotting.COLORS[k])
        look = dict(linestyle="none", label=label) | plotting.series(k)
        axis.errorbar(np.degrees(angle), *_spread(measured[:, :, k]), **look)
    axis.plot([], [], "k-", label="predicted")
    axis.axhline(0, color="black", linestyle=":", linewidth=0.6, label="rate 0")
    axis.set(xlabel="angle of the clusters θ (degrees)", ylabel="rate · τ", xticks=range(0, 181, 45))
    axis.set_title(f"unit sphere, τ = {middle:g}")
    axis.legend(miss, ["cos θ dropped"], loc="lower left")


def _draw_near(axis, data):
    size, (gap, gap_temperature), (angle, temperature) = (
        data["size"].values,
        *map(data.attrs.get, ("near_gap", "near_angle")),
    )
    names = f"G²/τ = {gap**2 / gap_temperature:.2f}", f"θ = {np.degrees(angle):.0f}°, τ = {temperature:g}"
    for k, name in enumerate(names):
        here = data.isel(geometry=k)
        axis.plot(size, here.near_error_near_miss, "--", color=plotting.CONTROL, linewidth=0.8)
        axis.plot(size, here.near_error, "os"[k], color="black", label=name)
        axis.plot(size, size * float(np.mean(here.near_error / here["size"])), color="black", linewidth=0.6)
    axis.plot([], [], "k-", linewidth=0.6, label="slope 1")
    axis.plot([], [], "--", color=plotting.CONTROL, linewidth=0.8, label="nearest near miss")
    axis.set(xscale="log", yscale="log", xlabel="cluster size ε", ylabel="error / faster rate", ylim=(1e-8, None))
    axis.set_title("near the threshold")
    axis.legend(loc="lower right")
