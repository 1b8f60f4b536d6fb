"""C2: tight clusters under InfoNCE move by four linear modes; along the gap both decay, if the gap is wide enough."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from simulator.flow import velocity
from simulator.losses import normalize_rows
from simulator.theory import flows

CLAIM = sim.Claim(
    id="C2",
    title="Compression along the gap",
    statement=(
        "For two tight clusters the gradient is linear in the deviations from the means, with relative error O(ε): "
        "along the gap the common mode has rate −(2/τ)(G²/τ − 1) and the opposite one −(2/τ)(G²/τ + 1), across it "
        "±2/τ; on the sphere −(1/2τ)(sin²θ/τ ∓ 2cos θ) along the great circle and ±1/τ across."
    ),
    source="Chowers et al. 2026, Thm 3.1 (sign corrected); rates derived here: theory.md C2",
    assumes="clusters much smaller than τ/G and √τ; free embeddings",
    expected=("holds", "holds", "holds", "holds", "holds", "holds"),
)
CAPTION = (
    "Linear modes of two tight clusters. (a) Relative error of the linearised gradient against the exact one, at "
    "several G and τ: slope 1 in the cluster size; grey: the near misses. (b) Fitted rates under squared distances, "
    "all G and τ on one axis; lines: predicted; dashed grey: the first term with the opposite sign. (c) Fitted rates "
    "on the unit sphere against the angle of the clusters; dotted grey: cos θ dropped. (d) Amplitudes in time from an "
    "obtuse start, where the opposite mode grows: lines predicted, points measured; grey: cos θ dropped. Bars, "
    "mostly smaller than the markers: ± 4 standard errors over seeds."
)
MODES = flows.ModeRates._fields
MODE_LABELS = ("common, along", "opposite, along", "common, across", "opposite, across")
WORKING_STEP = 0.05  # of the fitting window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Gaussian clusters of standard deviation `size` per coordinate, at every (gap, τ) and every (angle, τ)."""

    gap_norms: tuple[float, ...] = (0.3, 0.6, 1.2)
    temperatures: tuple[float, ...] = (0.05, 0.2, 0.8)
    angles: tuple[float, ...] = (0.2, 0.6, 1.1, np.pi / 2, 2.0, 2.4, 2.8)
    sphere_temperatures: tuple[float, ...] = (0.05, 0.3, 1.0)
    size: float = 1e-4
    gradient_sizes: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    path_angle: float = 2.7
    path_temperature: float = 0.3
    num_pairs: int = 64
    dimensions: int = 8
    seeds: int = 8
    seed: int = 0


QUICK = Config(gap_norms=(0.3, 1.2), temperatures=(0.05, 0.8), angles=(0.6, 2.4), sphere_temperatures=(0.05, 1.0))


def measure(config: Config, *, progress: bool = False):
    """Errors of the gradient, fitted rates of the four modes with their near misses, and one path in time."""
    import xarray as xr
    from tqdm import tqdm

    euclid = [(g, t) for g in config.gap_norms for t in config.temperatures]
    sphere = [(a, t) for a in config.angles for t in config.sphere_temperatures]
    bar = tqdm(total=(len(euclid) + len(sphere)) * config.seeds, disable=not progress, desc="modes", unit="flow")
    with jax.enable_x64(True):
        values = dict(gradient_error=(("case", "formula", "seed", "size"), _gradient_errors(euclid, config)))
        parts = (
            ("case", euclid, False, flows.mode_rates_euclidean, near_misses_euclidean, "miss"),
            ("sphere_case", sphere, True, flows.mode_rates_sphere, near_misses_sphere, "sphere_miss"),
        )
        for case, pairs, on_sphere, predict, near_misses, miss in parts:
            where = np.array(pairs)
            measured = np.empty((len(pairs), config.seeds, len(MODES)))
            for i, j in np.ndindex(measured.shape[:2]):
                x, y = clusters(*clouds(config, j), where[i, 0], on_sphere)
                measured[i, j] = _fitted_rates(x, y, *where[i], on_sphere, WORKING_STEP)
                bar.update()
            prefix = "sphere_" if on_sphere else ""
            values |= {
                f"{prefix}measured": ((case, "seed", "mode"), measured),
                f"{prefix}predicted": ((case, "mode"), np.stack(predict(*where.T), axis=1)),
                f"{prefix}near_miss": ((miss, case, "mode"), near_misses(*where.T)),
                ("angle" if on_sphere else "gap_norm"): ((case,), where[:, 0]),
                f"{prefix}temperature": ((case,), where[:, 1]),
            }
        values |= _step_errors(euclid[-1], sphere[-1], config)
        values |= _path(config)
    bar.close()
    return xr.Dataset(
        values,
        coords=dict(
            mode=list(MODES),
            formula=["descent", "printed sign", "τ for τ²"],
            miss=["twice the rate", "τ for τ²", "printed sign"],
            sphere_miss=["2cos θ → cos θ", "τ for τ²", "cos θ dropped", "|cos θ|", "Euclid's 2/τ"],
            size=list(config.gradient_sizes),
        ),
        attrs=dict(cluster_size=config.size, path_angle=config.path_angle, path_temperature=config.path_temperature),
    )


def clouds(config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deviations a, b [n, d] of standard deviation `config.size`, centred, half of each pair's variance shared."""
    rng = np.random.default_rng([config.seed, seed])
    shape = (config.num_pairs, config.dimensions)
    shared, own_a, own_b = (rng.normal(size=shape) * config.size / 2**0.5 for _ in range(3))
    a, b = shared + own_a, shared + own_b
    return a - a.mean(axis=0)[None, :], b - b.mean(axis=0)[None, :]


def clusters(a: np.ndarray, b: np.ndarray, separation: float, sphere: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows x, y around two means: `separation` apart in space, or at that angle on the unit sphere."""
    mean_x, mean_y = np.eye(2, a.shape[1])
    if not sphere:
        return a, b + separation * mean_x[None, :]
    mean_y = np.cos(separation) * mean_x + np.sin(separation) * mean_y
    return tuple(np.asarray(normalize_rows(rows)) for rows in (a + mean_x[None, :], b + mean_y[None, :]))


def mode_variances(x: np.ndarray, y: np.ndarray, sphere: bool) -> np.ndarray:
    """Absolute variance of the four modes of `flows.ModeRates`, [4]: mean squares of α ± β and of (a ± b)⊥.

    On the sphere α, β are the components along the great circle of the two means, both in the sense from x to y.
    """
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a, b = x - mean_x[None, :], y - mean_y[None, :]
    if sphere:
        mean_x, mean_y = mean_x / np.linalg.norm(mean_x), mean_y / np.linalg.norm(mean_y)
        tangent_x = mean_y - (mean_x @ mean_y) * mean_x
        tangent_y = (mean_x @ mean_y) * mean_y - mean_x
        plane = np.stack([mean_x, tangent_x / np.linalg.norm(tangent_x)])
        alpha, beta = a @ plane[1], b @ (tangent_y / np.linalg.norm(tangent_y))
    else:
        plane = ((mean_y - mean_x) / np.linalg.norm(mean_y - mean_x))[None, :]
        alpha, beta = a @ plane[0], b @ plane[0]
    across_a, across_b = (rows - (rows @ plane.T) @ plane for rows in (a, b))
    modes = (alpha + beta, beta - alpha, across_a + across_b, across_b - across_a)
    return np.array([np.mean(mode**2) for mode in modes])


def flow_variances(x, y, times, temperature: float, sphere: bool, max_step: float) -> np.ndarray:
    """Variances of the four modes along the measured gradient flow, [T, 4]."""
    path = sim.gradient_flow(
        x, y, times=times, temperature=temperature, max_step=max_step,
        similarity="cosine" if sphere else "sqeuclidean", sphere=sphere,
    )  # fmt: skip
    return np.stack([mode_variances(*rows, sphere) for rows in zip(*map(np.asarray, path), strict=True)])


def time_scale(separation, temperature, sphere: bool):
    """A time in which the stiffest mode changes by a factor of order e: τ/(2 + 2G²/τ), twice that on the sphere."""
    slope = np.sin(separation) ** 2 if sphere else separation**2
    return temperature / (1 + slope / temperature) / (1 if sphere else 2)


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


def _fitted_rates(x, y, separation, temperature, sphere, step) -> np.ndarray:
    """Slope of the logarithm of each mode's amplitude over six times of one time scale, [4]."""
    window = time_scale(separation, temperature, sphere)
    times = np.linspace(0.0, window, 6)
    variances = flow_variances(x, y, times, temperature, sphere, step * window)
    return np.polyfit(times, 0.5 * np.log(variances), 1)[0]


def _gradient_errors(cases, config: Config) -> np.ndarray:
    """Relative error of three linear gradients against the exact one, [case, formula, seed, size]."""
    errors = np.empty((len(cases), 3, config.seeds, len(config.gradient_sizes)))
    for i, seed, k in np.ndindex(len(cases), *errors.shape[2:]):
        gap_norm, temperature = cases[i]
        a, b = (rows / config.size * config.gradient_sizes[k] for rows in clouds(config, seed))
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


def _step_errors(euclid, sphere, config: Config) -> dict:
    """Largest relative change of a rate when the step is halved, from 1/5 of the window down. [geometry, step]."""
    steps = WORKING_STEP * np.array([4.0, 2.0, 1.0, 0.5, 0.25])
    changes = np.empty((2, len(steps) - 1))
    for i, (where, on_sphere) in enumerate(((euclid, False), (sphere, True))):
        x, y = clusters(*clouds(config, 0), where[0], on_sphere)
        rates = np.array([_fitted_rates(x, y, *where, on_sphere, step) for step in steps])
        changes[i] = np.max(np.abs(np.diff(rates, axis=0) / rates[1:]), axis=1)
    return dict(step_change=(("geometry", "step"), changes), step=(("step",), steps[:-1]))


def _path(config: Config) -> dict:
    """Amplitudes of the four modes on the sphere over three time scales, measured and predicted, [time, mode]."""
    angle, temperature = config.path_angle, config.path_temperature
    scale = time_scale(angle, temperature, True)
    times = np.linspace(0.0, 3 * scale, 13)
    x, y = clusters(*clouds(config, 0), angle, True)
    variances = flow_variances(x, y, times, temperature, True, WORKING_STEP * scale)
    rates = np.array(flows.mode_rates_sphere(angle, temperature))
    dims = ("time", "mode")
    dropped = near_misses_sphere(*np.array([[angle], [temperature]]))[2, 0]
    return dict(
        time=(("time",), times),
        path_measured=(dims, np.sqrt(variances / variances[:1])),
        path_predicted=(dims, np.exp(times[:, None] * rates[None, :])),
        path_near_miss=(dims, np.exp(times[:, None] * dropped[None, :])),
    )


def judge(data) -> list[sim.Row]:
    """Slope of the gradient's error, the four kinds of rates, and the order of the integrator."""
    size, tolerance = data["size"].values, 2e-3

    def slope(formula, pick):
        """The (G, τ) that `pick` chooses speaks for all: the worst for the test, the best for a near miss."""
        errors = data.gradient_error.sel(formula=formula).values
        checks = [sim.Check("slope", 1.0, e.reshape(-1), 0.02, at=np.tile(size, len(e))) for e in errors]
        return pick(checks, key=lambda check: check.error())

    def rates(prefix, modes, predicted):
        """Every seed's fitted rates, in units of the faster of the two predicted: near the critical gap the slower one
        vanishes, and with it what a relative error could mean."""
        chosen = [MODES.index(mode) for mode in modes]
        measured, predicted = data[f"{prefix}measured"].values[:, :, chosen], predicted[:, None, chosen]
        unit = np.abs(predicted).max(axis=2, keepdims=True)
        predicted = np.broadcast_to(predicted / unit, measured.shape)
        return sim.Check("identity", predicted, measured / unit, tolerance)

    def row(name, prefix, modes, misses):
        predicted, axis = data[f"{prefix}predicted"].values, f"{prefix}miss"
        near = [rates(prefix, modes, data[f"{prefix}near_miss"].sel({axis: miss}).values) for miss in misses]
        control = min(near, key=lambda check: check.error())
        return sim.Row(name, rates(prefix, modes, predicted), control, "the closest of: " + "; ".join(misses))

    along, across = MODES[:2], MODES[2:]
    steps, changes = np.tile(data.step.values, 2), data.step_change.values
    at_work = float(data.step_change.sel(step=WORKING_STEP, method="nearest").max())
    near_gradient = [slope(formula, min) for formula in ("printed sign", "τ for τ²")]
    return [
        sim.Row(
            "relative error of the linearised gradient over cluster size, worst (G, τ)",
            slope("descent", max),
            min(near_gradient, key=lambda check: check.error()),
            "the closest of: opposite sign of the first term; τ for τ²",
        ),
        row("rates along the gap over the faster one, all G, τ", "", along, data.miss.values.tolist()),
        row("rates across the gap over the faster one, all G, τ", "", across, ["twice the rate"]),
        row(
            "rates along the great circle over the faster one, all θ, τ",
            "sphere_", along, data.sphere_miss.values.tolist()[:4],
        ),
        row("rates across the great circle over the faster one, all θ, τ", "sphere_", across, ["Euclid's 2/τ"]),
        sim.Row(
            f"change of the rates on halving the step, over the step ({at_work:.0e} at the step used)",
            sim.Check("slope", 4.0, changes.reshape(-1), 0.3, at=steps),
            sim.Check("slope", 3.0, changes.reshape(-1), 0.3, at=steps),
            "order 3",
        ),
    ]  # fmt: skip


def draw(data):
    """Gradient error, rates in space, rates on the sphere, and one path."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(_figures.TWO_COLUMNS, 5.0), layout="constrained")
    _draw_gradient(axes[0][0], data)
    _draw_euclid(axes[0][1], data)
    _draw_sphere(axes[1][0], data)
    _draw_path(axes[1][1], data)
    for axis, letter in zip(axes.flat, "abcd", strict=True):
        axis.set_title(f"({letter}) {axis.get_title()}", loc="left")
        axis.set_title("")
    modes = axes[0][1].get_legend_handles_labels()
    figure.legend(modes[0][1:], modes[1][1:], loc="outside upper center", ncols=4)
    return figure


def _draw_gradient(axis, data):
    size = data["size"].values
    for formula, style in (("printed sign", "--"), ("τ for τ²", ":")):
        near = data.gradient_error.sel(formula=formula).mean("seed")
        axis.plot(size, near.values.T, color=_figures.CONTROL, linestyle=style, linewidth=0.8)
        axis.plot([], [], color=_figures.CONTROL, linestyle=style, linewidth=0.8, label=formula)
    errors = data.gradient_error.sel(formula="descent")
    for i, line in enumerate(errors.values):
        label = "measured, each (G, τ)" if i == 0 else None
        axis.plot(size, line.mean(axis=0), "o", color=_figures.COLORS[0], label=label)
        axis.plot(size, size * np.mean(line / size[None, :]), color="black", linewidth=0.6)
    axis.plot([], [], color="black", linewidth=0.6, label="slope 1")
    axis.set(xscale="log", yscale="log", xlabel="cluster size ε", ylabel="relative error", title="Linearised gradient")
    axis.set_ylim(1e-7, None)
    axis.legend(ncols=2, loc="lower right")


def _spread(values):
    """Mean over seeds and 4 standard errors."""
    return values.mean(axis=0), 4 * values.std(axis=0, ddof=1) / len(values) ** 0.5


def _draw_euclid(axis, data):
    ratio = (data.gap_norm**2 / data.temperature).values
    line = np.geomspace(ratio.min() / 1.5, ratio.max() * 1.5, 200)
    rates = np.stack(flows.mode_rates_euclidean(np.sqrt(line), np.ones_like(line)), axis=1) / 2
    axis.plot(line, 1 + line, color=_figures.CONTROL, linestyle="--", linewidth=0.8, label="printed sign")
    axis.plot(line, line - 1, color=_figures.CONTROL, linestyle="--", linewidth=0.8)
    measured = data.measured.transpose("seed", "case", "mode").values * data.temperature.values[None, :, None] / 2
    for k, marker in enumerate("osv^"):
        color = _figures.COLORS[k]
        axis.plot(line, rates[:, k], color=color)
        mean, error = _spread(measured[:, :, k])
        axis.errorbar(ratio, mean, error, fmt=marker, color=color, label=MODE_LABELS[k])
    axis.axhline(0, color="black", linewidth=0.4)
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xscale="log", xlabel="G²/τ", ylabel="rate · τ/2", title="Squared distances")
    axis.legend(*([item[0]] for item in axis.get_legend_handles_labels()), loc="upper left")


def _draw_sphere(axis, data):
    middle = np.unique(data.sphere_temperature.values)
    middle = middle[len(middle) // 2]
    at = data.sphere_temperature.values == middle
    angle, line = data.angle.values[at], np.linspace(0, np.pi, 200)
    rates = np.stack(flows.mode_rates_sphere(line, middle), axis=1) * middle
    dropped = near_misses_sphere(line, np.full_like(line, middle))[2] * middle
    for k in (0, 1):
        label = "cos θ dropped" if k == 0 else None
        axis.plot(np.degrees(line), dropped[:, k], color=_figures.CONTROL, linestyle=":", linewidth=0.8, label=label)
    measured = data.sphere_measured.transpose("seed", "sphere_case", "mode").values[:, at] * middle
    for k, marker in enumerate("osv^"):
        axis.plot(np.degrees(line), rates[:, k], color=_figures.COLORS[k])
        mean, error = _spread(measured[:, :, k])
        axis.errorbar(np.degrees(angle), mean, error, fmt=marker, color=_figures.COLORS[k])
    axis.axhline(0, color="black", linewidth=0.4)
    axis.set(
        xlabel="angle of the clusters θ (degrees)", ylabel="rate · τ", title=f"Unit sphere, τ = {middle:g}",
        xticks=range(0, 181, 45),
    )  # fmt: skip
    axis.legend()


def _draw_path(axis, data):
    near_miss = data.path_near_miss.isel(mode=slice(0, 2))
    axis.plot(data.time, near_miss, color=_figures.CONTROL, linestyle="--", linewidth=0.8)
    axis.plot([], [], color=_figures.CONTROL, linestyle="--", linewidth=0.8, label="cos θ dropped")
    for k, marker in enumerate("osv^"):
        axis.plot(data.time, data.path_predicted.isel(mode=k), color=_figures.COLORS[k])
        axis.plot(data.time, data.path_measured.isel(mode=k), marker, color=_figures.COLORS[k])
    title = f"θ = {np.degrees(data.attrs['path_angle']):.0f}°, τ = {data.attrs['path_temperature']:g}"
    axis.set(yscale="log", xlabel="time (units of the flow)", ylabel="amplitude / amplitude at 0", title=title)
    axis.yaxis.set_minor_formatter("")
    axis.legend()
