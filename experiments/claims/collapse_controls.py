"""C7: dimensional collapse is neither necessary nor sufficient for the gap; the separation of the start decides."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, equals_one, standard_error, worst
from experiments.setups.clusters import flow_variances
from experiments.setups.held_out import train
from experiments.setups.trained_towers import centred, random_pair, random_tower, stack, with_output
from experiments.setups.trends import spread, trend
from simulator.losses import normalize_rows
from simulator.theory.flows import mode_rates_sphere
from simulator.theory.towers import great_circle_frames
from simulator.training.runs import evaluation_steps

CLAIM = sim.Claim(
    id="C7",
    title="Collapse is neither necessary nor sufficient",
    summary="Whether the modalities start apart decides about the gap, not whether each varies in few directions.",
    statement=(
        "Isotropic clusters that start apart end in a gap orthogonal to their variation; collapsed clusters that start "
        "together end without one: the separation of the start decides, and its shape does not even enter the rate at "
        "which the variance along the gap falls."
    ),
    source="Chowers et al. 2026, Sec. 3; the rate for every shape: derived here, theory.md C2",
    assumes="small temperature, tight clusters, pairs that can be matched",
    expected={
        "orthogonal gap": "holds",
        "angle decides the gap": "holds",
        "angle decides the order": "holds",
        "together": "refuted",
        "rates": "holds",
    },
)
CAPTION = (
    "Starts of two shapes, apart (90°) and together (0°), at τ = 0.01; towers measured on pairs that were not "
    "trained. (a, d) Gap norm; grey: the gap that pairs with labels exchanged at random would show, for both shapes "
    "together. (b, e) Variance along the gap over that along the gap to a random mean of equal length (exact null; "
    "above: not orthogonal). (c, f) Accuracy of the midpoint rule along the gap on held-out rows (it falls below "
    "chance where the means of the two halves of the rows err oppositely). (g) Final gap against the angle between "
    "the starts. Bands and bars: ± 2 standard errors over 12 seeds. Towers that start together end in a trace of a "
    "gap beyond chance all the same, with little variance along it; free embeddings do not. (h) Amplitude of both "
    "modes along the gap of free tight clusters; the predicted law is the same for both shapes; grey: rates times "
    "the start's share of variance along the gap."
)
APART, TOGETHER = np.pi / 2, 0.0
ENCODERS = ("MLP towers", "free embeddings")
SHAPES = ("isotropic", "collapsed")
MODES = ("common", "opposite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shapes × angles between the starts × seeds, on towers and free embeddings; the early law on free tight clusters."""

    encoders: tuple[Literal["MLP towers", "free embeddings"], ...] = ENCODERS
    angles: tuple[float, ...] = (TOGETHER, np.pi / 8, np.pi / 4, APART)
    rank: int = 2
    temperature: float = 0.01
    tightness: float = 40.0
    seeds: int = 12
    num_pairs: int = 128
    width: int = 64
    embed_dim: int = 32
    learning_rate: float = 1e-3
    steps: int = 800
    eval_points: int = 18
    law_angle: float = np.pi / 3
    law_temperature: float = 0.1
    law_size: float = 1e-4
    law_pairs: int = 48
    law_dimensions: int = 16
    seed: int = 20261


QUICK = Config(encoders=("MLP towers",), angles=(TOGETHER, np.pi / 4, APART), steps=120, eval_points=4)


def measure(config: Config, *, progress: bool = False):
    """Measures over (encoder, shape, angle, seed, step), on pairs that were not trained; free embeddings have none, and
    are measured on their own. Amplitudes of the early law over (shape, mode, time)."""
    import xarray as xr

    from simulator.progress import tqdm

    kept = [
        "defect_ratio_x",
        "defect_ratio_y",
        "null_defect_ratio_x",
        "null_defect_ratio_y",
        "gap_norm",
        "separability",
    ]
    steps = evaluation_steps(config.steps, config.eval_points)
    shape = (len(SHAPES), len(config.angles), config.seeds)
    places = list(np.ndindex(shape))
    found = {name: [] for name in (*kept, "chance")}
    with jax.enable_x64(True):
        measured = jax.jit(lambda x, y: jax.lax.map(lambda pair: _measures(*pair), (x, y)))
        for encoder in tqdm(config.encoders, disable=not progress, desc="training"):
            graphs, params, inputs, shown = zip(*(_start(config, encoder, *place) for place in places), strict=True)
            numbers = config.temperature, config.learning_rate, jnp.asarray(steps)
            raw = train(graphs[0], *map(stack, (params, inputs, shown)), *numbers)
            rows = [np.asarray(r).reshape(-1, *r.shape[2:]) for r in raw]
            result = measured(*rows)
            for name in found:
                found[name].append(np.asarray(result[name]).reshape(*shape, len(steps)))
    dims = ("encoder", "shape", "angle", "seed", "step")
    return xr.Dataset(
        {name: (dims, np.array(values)) for name, values in found.items()},
        coords=dict(encoder=list(config.encoders), shape=list(SHAPES), angle=list(config.angles), step=steps),
    ).assign(_early_law(config))


def _measures(x, y) -> dict:
    """The scalars of measure_gap for unit rows, and the gap that pairs with labels exchanged at random show: its square
    is alignment/n in the mean."""
    found = dataclasses.asdict(sim.measure_gap(normalize_rows(x), normalize_rows(y)))
    return found | dict(chance=jnp.sqrt(found["alignment"] / len(x)))


def _start(config: Config, encoder: str, shape: int, angle: int, seed: int):
    """Graphs, parameters, training inputs and inputs to measure on, of two random towers whose outputs are white, or
    white within one random plane, around two means at the angle. A seed has the same data, towers and first mean
    everywhere."""
    rng, n, d = np.random.default_rng([config.seed, seed]), config.num_pairs, config.embed_dim
    axis, other = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    between = config.angles[angle]
    means = axis, np.cos(between) * axis + np.sin(between) * other
    plane = np.linalg.qr(rng.normal(size=(d, config.rank)))[0]
    projection = plane @ plane.T if SHAPES[shape] == "collapsed" else np.eye(d)
    if encoder == "free embeddings":
        tower = sim.Linear(d, bias=False)  # on one input per pair: a row of its own for each
        graphs, params = zip(*(random_tower(tower, n, rng) for _ in "xy"), strict=True)
        inputs = shown = (jnp.eye(n), jnp.eye(n))
        seen = (np.eye(n), np.eye(n))
    else:
        graphs, params, both, seen = random_pair(sim.MLP(config.width, embed_dim=d), sim.LatentPairs(n), 2 * n, rng)
        inputs, shown = tuple(u[:n] for u in both), tuple(u[n:] for u in both)
        seen = tuple(s[:n] for s in seen)
    placed = []
    for tower, sees, mean in zip(params, seen, means, strict=True):
        kernel = np.asarray(tower["out"]["kernel"])
        kernel = kernel @ whitener(sees @ kernel) @ projection
        mean = config.tightness * np.sum(centred(sees @ kernel) ** 2 / n) ** 0.5 * mean
        if "bias" in tower["out"]:
            placed.append(with_output(tower, sees, kernel, mean))
        else:
            placed.append(dict(out=dict(kernel=kernel + (mean - kernel.mean(axis=0))[None, :])))
    return graphs, tuple(placed), inputs, shown


def whitener(rows: np.ndarray) -> np.ndarray:
    """C^(−1/2) on the directions with variance of rows [n, d] with covariance C, and 0 elsewhere."""
    _, singular, axes = np.linalg.svd(centred(rows), full_matrices=False)
    reached = singular > 1e-2 * singular[0]  # beyond, observation noise alone
    return (axes[reached].T / singular[reached][None, :] * len(rows) ** 0.5) @ axes[reached]


def _early_law(config: Config) -> dict:
    """Amplitudes of α + β and β − α under the free flow from an isotropic and a collapsed start, over their start; the
    rates fitted to them, the predicted ones, and these times the start's share of variance along the gap."""
    rates = mode_rates_sphere(config.law_angle, config.law_temperature)
    rates = np.array([rates.common_along, rates.opposite_along])
    times = np.linspace(0.0, 2.0, 9) / np.max(np.abs(rates))
    amplitudes, fitted, by_share = [], [], []
    with jax.enable_x64(True):
        for shape in SHAPES:
            x, y, share = tight_clusters(config, shape)
            variances = flow_variances(x, y, times, config.law_temperature, True, times[-1] / 200)[:, :2].T
            amplitudes.append(np.sqrt(variances / variances[:, :1]))
            fitted.append([np.polyfit(times, np.log(mode), 1)[0] for mode in amplitudes[-1]])
            by_share.append(share * rates)
    on_rates = ("shape", "mode")
    return dict(
        law_amplitude=((*on_rates, "time"), np.array(amplitudes)), law_fitted=(on_rates, np.array(fitted)),
        law_predicted=(("mode",), rates), law_by_share=(on_rates, np.array(by_share)), time=times, mode=list(MODES),
    )  # fmt: skip


def tight_clusters(config: Config, shape: str):
    """Unit rows x, y [n, d] around two means at the angle, and the start's share of variance along the great circle (1:
    as much as the mean direction)."""
    rng = np.random.default_rng(config.seed)
    n, d = config.law_pairs, config.law_dimensions
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    means = axes[0], np.cos(config.law_angle) * axes[0] + np.sin(config.law_angle) * axes[1]
    plane = np.linalg.qr(rng.normal(size=(d, config.rank)))[0]
    spread = plane @ plane.T * (d / config.rank) ** 0.5 if shape == "collapsed" else np.eye(d)
    rows = [mean[None, :] + config.law_size * rng.normal(size=(n, d)) @ spread for mean in means]
    with jax.enable_x64(True):
        x, y = (np.asarray(normalize_rows(r)) for r in rows)
    variances = [np.var(r @ f, axis=0) for r, f in zip((x, y), great_circle_frames(*means), strict=True)]
    share = sum(v[0] for v in variances) / sum(v.mean() for v in variances)
    return x, y, share


def judge(data) -> list[sim.Row]:
    """Isotropic, apart: an orthogonal gap. Together: a trace of one. The angle decides; the law knows no shape.

    "Larger" and "smaller" are exact tests over seeds, which share data and towers; the worst encoder (and shape, and
    modality) speaks for all.
    """
    final, encoders = data.isel(step=-1), list(data.encoder.values)
    near = float(data.angle.values[1])
    starts = [dict(encoder=e, shape=s) for e in encoders for s in SHAPES]

    def ascends(curves):
        return worst(trend(np.stack(curve, axis=1), range(len(curve)), +1) for curve in curves)

    def orthogonal(step):
        here = data.sel(shape="isotropic", angle=APART).isel(step=step)
        return ascends(
            [here[f"{name}_{m}"].sel(encoder=e).values for name in ("defect_ratio", "null_defect_ratio")]
            for e in encoders for m in "xy"
        )  # fmt: skip

    def over(name, along, values, fixed):
        """Whether a final measure rises along `values` of one coordinate, at each of the places `fixed`."""
        return ascends([final[name].sel(place | {along: v}).values for v in values] for place in fixed)

    def no_gap(angle):
        """G² over what exchanged labels would show, at most 1: the violation in standard errors over seeds."""
        excess = (final.gap_norm / final.chance).sel(angle=angle).values.reshape(len(starts), -1) ** 2
        return agreement(np.ones(len(starts)), np.maximum(excess.mean(axis=1), 1.0), standard_error(excess, axis=1))

    def law(prediction):
        return equals_one(data.law_fitted / prediction, 0.01)

    def trace(place):
        together, apart = (final.sel(place | dict(angle=a)) for a in (TOGETHER, APART))
        return (
            f"{place['shape']} {place['encoder']} G = {spread(together.gap_norm)} (exchanged labels "
            f"{spread(together.chance)}, apart {spread(apart.gap_norm)})"
        )

    return [
        sim.Row(
            "orthogonal gap",
            orthogonal(-1), orthogonal(0), "the same at the start",
            label="isotropic, apart: variance along the final gap below its null, both modalities",
        ),
        sim.Row(
            "angle decides the gap",
            over("gap_norm", "angle", data.angle.values, starts),
            over("gap_norm", "shape", SHAPES, [dict(encoder=e, angle=a) for e in encoders for a in data.angle.values]),
            "the collapse of the start in place of its angle",
            label="final gap rises with the angle of the start, both shapes",
        ),
        sim.Row(
            "angle decides the order",
            over("separability", "angle", (TOGETHER, APART), starts),
            over("separability", "shape", SHAPES, [dict(encoder=e, angle=APART) for e in encoders]),
            "collapsed against isotropic, both apart",
            label="the midpoint rule places more rows from starts apart than together, both shapes",
        ),
        sim.Row(
            "together",
            no_gap(TOGETHER), no_gap(near), f"the same starts {np.degrees(near):.0f}° apart",
            label="together, both shapes: final gap no larger than with labels exchanged within pairs",
            condition="towers keep a trace of a gap, larger than chance and far smaller than from a start apart",
            effect="; ".join(map(trace, starts)),
        ),
        sim.Row(
            "rates",
            law(data.law_predicted), law(data.law_by_share), "rates times the start's share of variance along the gap",
            label="rates of both modes along the gap, isotropic and collapsed, over those of one law",
        ),
    ]  # fmt: skip


def draw(data):
    """Gap norm, compression and separability per encoder; below, the final gap by angle, and the early law."""
    import matplotlib.pyplot as plt

    encoders, grey = list(data.encoder.values), plotting.CONTROL
    panels: list[Any] = [[f"{kind}{i}" for kind in ("gap", "ratio", "rule")] for i in range(len(encoders))]
    figure, axes = plt.subplot_mosaic(
        [*panels, ["angle", "law", "law"]],
        figsize=(plotting.TWO_COLUMNS, 1.8 * len(encoders) + 2.2),
        layout="constrained",
    )
    later = data.isel(step=slice(1, None))
    for i, encoder in enumerate(encoders):
        gap, ratio, rule = (axes[f"{kind}{i}"] for kind in ("gap", "ratio", "rule"))
        for k, shape in enumerate(SHAPES):
            for angle, style in ((APART, "-"), (TOGETHER, "--")):
                here = later.sel(encoder=encoder, shape=shape, angle=angle)
                compression = np.mean(
                    [here[f"defect_ratio_{m}"] / here[f"null_defect_ratio_{m}"] for m in "xy"], axis=0
                )
                label = f"{shape}, {'apart' if angle == APART else 'together'}"
                shown = ((gap, np.log10(here.gap_norm.values)), (ratio, np.log10(compression)))
                for axis, values in (*shown, (rule, here.separability.values)):
                    look = plotting.series(k, linestyle=style, markevery=(2 * k, 4))
                    plotting.band(axis, here.step.values, values, label=label, **look)
            # Together, where the two could be mistaken for each other.
            gap.plot(here.step, np.log10(here.chance).mean("seed"), ":", color=grey, linewidth=0.8)
        ratio.axhline(0.0, color=grey, linewidth=0.8)
        rule.axhline(0.5, color=grey, linewidth=0.8)
        gap.set(ylabel="log₁₀ gap norm G")
        ratio.set(ylabel="log₁₀ (variance\nalong gap / null)")
        rule.set(ylabel="accuracy of the\nmidpoint rule", ylim=(0.3, 1.03))
        for axis in (gap, ratio, rule):
            axis.set(xscale="log", xlabel="step", title=str(encoder))
    _draw_angles(axes["angle"], data)
    _draw_law(axes["law"], data)
    axes["gap0"].plot([], [], color=grey, linestyle=":", linewidth=0.8, label="labels exchanged (a, d)")
    axes["gap0"].plot([], [], color=grey, linewidth=0.8, label="random mean (b, e), chance (c, f)")
    plotting.legend_above(figure, axes["gap0"], ncols=3)
    return plotting.lettered(figure)


def _draw_angles(axis, data):
    degrees = np.degrees(data.angle.values)
    for encoder, style, fill in zip(data.encoder.values, ("-", "--"), ("full", "none"), strict=False):
        for k, shape in enumerate(SHAPES):
            values = data.gap_norm.isel(step=-1).sel(encoder=encoder, shape=shape).transpose("seed", "angle").values
            plotting.points(axis, degrees, values, **plotting.series(k, linestyle=style, fillstyle=fill))
        axis.plot([], [], style, color="black", label=encoder)
    axis.set(xlabel="angle of the start (°)", ylabel="final gap norm G", ylim=(-0.05, 2.1))
    axis.set_xticks(degrees, [f"{angle:g}" for angle in degrees])
    axis.legend(loc="upper left")


def _draw_law(axis, data):
    time, grey = data.time.values, plotting.CONTROL
    for j, mode in enumerate(data.mode.values):
        rate = float(data.law_predicted.sel(mode=mode))
        axis.plot(time, np.exp(rate * time), color="black", linewidth=0.8, label=None if j else "predicted")
        for color, shape, marker, style in zip(plotting.COLORS, SHAPES, "ox", ("--", ":"), strict=False):
            here = data.sel(shape=shape, mode=mode)
            label = None if j else f"{shape}, measured"
            axis.plot(time, here.law_amplitude, marker, color=color, fillstyle="none", label=label)
            label = None if j else f"rates × share, {shape}"
            axis.plot(time, np.exp(float(here.law_by_share) * time), style, color=grey, linewidth=0.8, label=label)
        place = dict(xytext=(4, 0), textcoords="offset points", va=("bottom", "top")[j])
        axis.annotate(mode, (time[-1], np.exp(rate * time[-1])), **place)
    axis.set(xlabel="time (units of the flow)", ylabel="amplitude / start", yscale="log", ylim=(0.02, 8))
    axis.set_xlim(None, 1.18 * time[-1])
    axis.legend(ncols=3, loc="upper center", columnspacing=1.0, fontsize=plotting.SMALL)
