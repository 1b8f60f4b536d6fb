"""C2T: how far the predictions for tight clusters carry over from free embeddings to trained towers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import _figures, _towers
from experiments._clusters import mode_variances
from experiments._couplings import OPTIMIZERS, PAIRS, couplings
from simulator.theory import towers as theory

CLAIM = sim.Claim(
    id="C2T",
    title="Tight-cluster predictions on towers",
    statement=(
        "Towers in tight cones move as the free flow multiplied by the kernel of their start, under SGD and Adam alike; "
        "wide ones do not mix outputs. Against free embeddings, growth across over fall along the gap has a coupling of "
        "its own: under SGD the alignment of the two towers' kernels, below 1, less what outputs mix; under Adam what the "
        "signs of gradients make of it. Later, when the clusters are no longer tight, the variance along the gap grows."
    ),
    source="derived here: theory.md C2 and N1, towers; free flow: Chowers et al. 2026, Thm 3.1",
    assumes="tight cones, full batches, few steps; a network wide enough that its kernel stays",
    expected=("holds", "holds", "holds", "holds", "holds if", "holds if", "holds", "holds", "refuted"),
)
CAPTION = (
    "Tight clusters on towers. (a) Deviations along the gap after SGD, linear towers, against the kernel's prediction; "
    "grey: with the kernels of the two towers exchanged. (b) MLP towers against width: error of the prediction from the "
    "kernel of the start, and the part of the kernel that mixes outputs (geometric means over seeds); black: predicted "
    "slopes. (c) Variance along the gap over its start, MLP towers from 90°; solid Adam, dashed SGD; bands: ± 2 standard "
    "errors over seeds. (d) Coupling: growth across over fall along a 90° gap in the first steps, in units of the free "
    "flow's 2τ, one factor of the base (one hidden layer of 64, τ = 0.05, tightness 1000) changed at a time; bars: ± 2 "
    "jackknife standard errors over seeds; black: predicted from the Jacobians of the start; ×: alignment of the output "
    "layers' kernels; line: free embeddings."
)
DATA, EMBED = sim.LatentPairs(latent_dim=4, dim_x=8, dim_y=10, noise=0.3), 6
LAW_PAIRS = 16  # fewer: Jacobians have a row for each, and output
BASE = dict(encoder=sim.MLP(64, embed_dim=EMBED), data=DATA, temperature=0.05, tightness=1000.0, rate=1)
FAST = ("rate × 1000", "rate × 10000")  # Adam moves weights by a share of themselves that is not small: 8 %, 80 %
LAW_CASES = ((np.pi / 2, 0.05), (0.35, 0.3))  # angle, τ


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Small towers in float64: against predictions, with one factor changed at a time, and trained on."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    law_tightness: float = 1e6
    law_steps: int = 25
    law_seeds: int = 20
    mixing_widths: tuple[tuple[int, ...], ...] = ((512, 1024, 2048, 4096), (96, 192, 384, 768))  # 1 and 2 hidden layers
    mixing_seeds: int = 24
    factors: tuple[str, ...] = ()  # all
    factor_steps: int = 10
    factor_seeds: int = 40
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.15, 0.5)
    steps: int = 1500
    seeds: int = 8
    seed: int = 40


QUICK = Config(
    widths=(64, 128, 256), law_seeds=16, mixing_widths=((512, 1024, 2048), (96, 192, 384)), mixing_seeds=12,
    factors=("base", "linear", "free embeddings", "rate × 10000"), factor_seeds=24, temperatures=(0.05, 0.5), steps=400,
)  # fmt: skip


def factors() -> dict[str, dict]:
    """The base and what differs from it in one factor, by name."""
    mlp = lambda width, depth=1: dict(encoder=sim.MLP(width, depth=depth, embed_dim=EMBED))  # noqa: E731
    linear = dict(encoder=sim.Linear(EMBED))
    changes = (
        {"base": {}, "width 16": mlp(16), "width 256": mlp(256)}
        | {"2 hidden layers": mlp(64, 2), "3 hidden layers": mlp(64, 3), "linear": linear}
        | {f"tightness {t:g}": dict(tightness=t) for t in (100.0, 3e4)}
        | {f"rate × {r}": dict(rate=r) for r in (10, 1000, 10000)}
        | {f"τ = {t:g}": dict(temperature=t) for t in (0.02, 0.5)}
        | {"free embeddings": linear | dict(data=None)}
    )
    return {name: BASE | change for name, change in changes.items()}


def measure(config: Config, *, progress: bool = False):
    """Predictions from the start against training: deviations, mixing of outputs, couplings, and later histories."""
    import xarray as xr
    from tqdm import tqdm

    found, parts = {}, (_laws, _mixing, _first_steps, _histories)
    with jax.enable_x64(True):
        for part in tqdm(parts, disable=not progress, desc="tower compression", unit="part"):
            found |= part(config)
    least = config.law_tightness * min(tau for _, tau in LAW_CASES)
    return xr.Dataset(found, coords=dict(optimizer=list(OPTIMIZERS)), attrs=dict(size_over_temperature=1 / least))


def _laws(config: Config) -> dict:
    """Deviations of linear towers after SGD, measured, predicted and with the two kernels exchanged [case, ...];
    error of the prediction for MLP towers over the predicted change, [case, width, law_seed]."""
    linear, errors = [], np.empty((len(LAW_CASES), len(config.widths), config.law_seeds))
    for i, (angle, tau) in enumerate(LAW_CASES):
        for j, width in enumerate((*config.widths, None)):
            encoder = sim.MLP(width, embed_dim=EMBED) if width else sim.Linear(EMBED)
            seeds = range(config.law_seeds if width else 1)
            rngs = [np.random.default_rng([config.seed, i, j, seed]) for seed in seeds]
            place = dict(angle=angle, tightness=config.law_tightness)
            starts = [_towers.start(encoder, DATA, LAW_PAIRS, rng, **place) for rng in rngs]
            rates = [begin.fast_rate(tau) / config.law_steps for begin in starts]
            ended = _towers.train(starts, [tau] * len(starts), rates, [0, config.law_steps])
            for seed, begin, rate, *raw in zip(seeds, starts, rates, *ended, strict=True):
                measured, jacobians = begin.in_frames([rows[-1] for rows in raw]), begin.jacobians()
                predicted = begin.predict(jacobians, tau, rate, config.law_steps)
                if width:
                    change = np.linalg.norm(predicted - begin.deviations)
                    errors[i, j, seed] = np.linalg.norm(measured - predicted) / change
                else:
                    exchanged = begin.predict(jacobians[::-1], tau, rate, config.law_steps)
                    unit = np.abs(predicted).max(axis=(0, 1))
                    unit[1:] = unit[1:].max()
                    linear.append([z / unit[None, None, :] for z in (measured, predicted, exchanged)])
    kinds = ("measured", "predicted", "exchanged")
    dims = ("case", "modality", "pair", "direction")
    found = {f"linear_{k}": (dims, np.stack(z)) for k, z in zip(kinds, zip(*linear, strict=True), strict=True)}
    return found | dict(law_error=(("case", "width", "law_seed"), errors), width=("width", list(config.widths)))


def _mixing(config: Config) -> dict:
    """How much the kernels of random networks mix their outputs, over (depth, level, mixing_seed)."""
    widths, dim_in, few = np.array(config.mixing_widths), 10, 8  # samples: the Jacobian has a row for each, and output
    mixing = np.empty((*widths.shape, config.mixing_seeds))
    for i, j, seed in np.ndindex(mixing.shape):
        rng = np.random.default_rng([config.seed, 9, seed])
        inputs, encoder = (
            jnp.asarray(rng.normal(size=(few, dim_in))),
            sim.MLP(int(widths[i, j]), depth=i + 1, embed_dim=4),
        )
        jacobian = _towers.jacobian(*_towers.random_tower(encoder, dim_in, rng), inputs)
        mixing[i, j, seed] = theory.output_mixing(jacobian)
    depth = 1 + np.arange(len(widths))
    return dict(
        mixing=(("depth", "level", "mixing_seed"), mixing),
        mixing_exponent=("depth", [theory.mixing_exponent(int(d)) for d in depth]),
        mixing_width=(("depth", "level"), widths),
        depth=("depth", depth),
    )


def _first_steps(config: Config) -> dict:
    """Couplings for the factors that the config names."""
    chosen = {name: setting for name, setting in factors().items() if not config.factors or name in config.factors}
    return couplings(config, chosen)


def _histories(config: Config) -> dict:
    """Variance along the gap and across it (`_variances`) over its start, MLP towers from 90°, over (optimizer,
    temperature, seed, train_step)."""
    steps = np.unique(np.round(np.geomspace(1, config.steps, 40)).astype(int))
    rngs = [np.random.default_rng([config.seed, 70, seed]) for seed in range(config.seeds)]
    place = dict(angle=np.pi / 2, tightness=BASE["tightness"])
    starts = [_towers.start(BASE["encoder"], DATA, PAIRS, rng, **place) for rng in rngs]
    points = [(tau, begin) for tau in config.temperatures for begin in starts]
    growth = np.empty((2, len(OPTIMIZERS), len(points), len(steps)))
    for o, optimizer in enumerate(OPTIMIZERS.values()):
        rates = [(0.5 * begin.fast_rate(tau), 1e-3)[o] for tau, begin in points]
        ended = _towers.train([b for _, b in points], [tau for tau, _ in points], rates, [0, *steps], optimizer)
        modes = mode_variances(*(raw / np.linalg.norm(raw, axis=-1, keepdims=True) for raw in ended), True)
        for which, values in enumerate((modes[..., 0] + modes[..., 1], modes[..., 2])):
            growth[which, o] = values[:, 1:] / values[:, :1]
    dims = ("optimizer", "temperature", "seed", "train_step")
    along, across = growth.reshape(2, len(OPTIMIZERS), len(config.temperatures), config.seeds, len(steps))
    return dict(along=(dims, along), across=(dims, across), temperature=list(config.temperatures), train_step=steps)


def judge(data) -> list[sim.Row]:
    """Motion and mixing of outputs by the kernel; couplings by the kernel, of free embeddings and by alignment; the end."""

    def linear(prediction):
        predicted, measured = data[f"linear_{prediction}"].values, data.linear_measured.values
        return sim.Check("identity", predicted, measured, data.attrs["size_over_temperature"])

    def slope(values, widths, exponent):
        """Of the geometric mean over seeds [seed, width], within 4 standard errors (delete-one jackknife)."""
        logs, at = np.log(values), np.log(widths)
        fit = lambda rows: np.polyfit(at, rows.mean(axis=0), 1)[0]  # noqa: E731
        without = [fit(np.delete(logs, seed, axis=0)) for seed in range(len(logs))]
        error = np.std(without) * (len(logs) - 1) ** 0.5
        means = np.exp(logs.mean(axis=0))
        return sim.Check("slope", np.array(exponent), means, 4 * error, at=widths.astype(float))

    def drift(exponent):
        errors = np.exp(np.log(data.law_error).mean("case")).transpose("law_seed", "width").values
        return slope(errors, data.width.values, exponent)

    def mixing(depth, exponent):
        here = data.sel(depth=depth)
        return slope(here.mixing.transpose("mixing_seed", "level").values, here.mixing_width.values, exponent)

    def by_kernel(here, predicted):
        measured, error = here.coupling_measured.values, here.coupling_difference_error.values
        return sim.Check("monte_carlo", np.broadcast_to(predicted, measured.shape), measured, 4.0, error)

    sgd = data.sel(optimizer="SGD")

    def at_first(names, predicted):
        here = sgd.sel(factor=names)
        predicted = predicted if np.isscalar(predicted) else predicted.sel(factor=names).values
        measured = here.coupling_measured.values
        return sim.Check(
            "monte_carlo", np.broadcast_to(predicted, measured.shape), measured, 4.0, here.coupling_error.values
        )

    def risen(values):
        """By how much ln(variance over its start) exceeds 0, less 4 standard errors, at the worst."""
        logs = np.log(values.transpose("seed", ...).values)
        excess = logs.mean(axis=0) - 4 * logs.std(axis=0, ddof=1) / len(logs) ** 0.5
        return sim.Check("absolute", 0.0, np.maximum(excess, 0.0).max(), 1e-9)

    names = [str(name) for name in data.factor.values]
    towers, free = [name for name in names if name != "free embeddings"], ["free embeddings"]
    unmixed = [name for name in ("linear", "width 256") if name in names]
    listed = "; ".join(
        f"{name} {float(here.coupling_measured[0]) - 1:+.2f} ± {float(here.coupling_error[0]):.2f} and "
        f"{float(here.coupling_measured[1]) - 1:+.2f} ± {float(here.coupling_error[1]):.2f}"
        for name, here in ((name, data.sel(factor=name)) for name in names)
    )
    slow = data.sel(factor=[name for name in names if name not in FAST])
    fast = data.sel(factor=[name for name in names if name not in slow.factor.values])
    misses = [by_kernel(slow, miss) for miss in (1.0, slow.coupling_predicted.values[::-1])]
    return [
        sim.Row(
            "deviations of linear towers after SGD against their kernel's prediction",
            linear("predicted"),
            linear("exchanged"),
            "the kernels of the two towers exchanged",
        ),
        sim.Row(
            "error of the kernel of the start against width, MLP towers of one hidden layer",
            drift(theory.DRIFT_EXPONENT),
            drift(-1.5),
            "error ∝ width^−3/2",
        ),
        *(
            sim.Row(
                f"mixing of outputs against width, {depth} hidden layer{'s' if depth > 1 else ''}",
                mixing(depth, exponent),
                mixing(depth, -1.0),
                "mixing ∝ 1/width",
            )
            for depth, exponent in zip(data.depth.values, data.mixing_exponent.values, strict=True)
        ),
        sim.Row(
            "coupling in the first steps, every factor, SGD and Adam, predicted from the Jacobians of the start",
            by_kernel(slow, slow.coupling_predicted.values),
            min(misses, key=lambda check: check.error()),
            "the closest of: coupling 1, of free embeddings; the other optimiser's prediction",
            outside=by_kernel(fast, fast.coupling_predicted.values),
            condition="weights move by much less than their size: not with Adam's rate × 1000 and × 10000, 1e-3 and 1e-2",
        ),
        sim.Row(
            "coupling in the first steps of SGD is 1",
            at_first(free, 1.0),
            at_first(free, 2.0),
            "growth across twice as fast",
            outside=at_first(towers, 1.0),
            condition=f"embeddings are free; coupling − 1 under SGD and under Adam: {listed}",
        ),
        sim.Row(
            "coupling in the first steps of SGD, towers that hardly mix outputs, is their kernels' alignment",
            at_first(unmixed, data.alignment),
            at_first(unmixed, 1.0),
            "coupling 1, of free embeddings",
        ),
        *(
            sim.Row(
                f"variance along a 90° gap {name}, every τ, SGD and Adam: ln of it over the start plus 4 standard errors",
                risen(data.along.isel(train_step=step)),
                risen(data.across.isel(train_step=step)),
                "the common mode across the gap",
            )
            for name, step in (("falls in the first step", 0), ("is below the start at the end", -1))
        ),
    ]


def draw(data):
    """Law, exponents and histories on the left; the coupling by factor on the right."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["law", "width", "factor"], ["history", "history", "factor"]], figsize=(_figures.TWO_COLUMNS, 4.8),
        layout="constrained", gridspec_kw=dict(width_ratios=(1, 1, 1.5)),
    )  # fmt: skip
    along = data.isel(direction=0)
    for prediction, color, size in (("exchanged", _figures.CONTROL, 2), ("predicted", _figures.COLORS[0], 3)):
        predicted = along[f"linear_{prediction}"].values.ravel()
        axes["law"].plot(predicted, along.linear_measured.values.ravel(), ".", color=color, markersize=size)
    axes["law"].axline((0, 0), slope=1, color="black", linewidth=0.6)
    axes["law"].set(xlabel="predicted deviation", ylabel="measured deviation", title="(a) Linear towers, SGD")
    _draw_widths(axes["width"], data)
    _draw_histories(axes["history"], data)
    _draw_factors(axes["factor"], data)
    return figure


def _draw_widths(axis, data):
    curves = [
        (
            "kernel of the start",
            data.width,
            data.law_error.mean("case").transpose("law_seed", ...),
            theory.DRIFT_EXPONENT,
        )
    ]
    for depth, exponent in zip(data.depth.values, data.mixing_exponent.values, strict=True):
        here = data.sel(depth=depth)
        name = f"mixing, {depth} layer" + "s" * int(depth > 1)
        curves.append((name, here.mixing_width, here.mixing.transpose("mixing_seed", ...), float(exponent)))
    for k, (name, widths, values, exponent) in enumerate(curves):
        logs, widths = np.log(values.values), widths.values
        mean, error = np.exp(logs.mean(axis=0)), 2 * logs.std(axis=0, ddof=1) / len(logs) ** 0.5
        axis.errorbar(widths, mean, mean * error, fmt="os^"[k], color=_figures.COLORS[k], label=name)
        line = widths.astype(float) ** exponent
        axis.plot(widths, line * np.exp(np.mean(np.log(mean / line))), color="black", linewidth=0.6)
    axis.set(xscale="log", yscale="log", xlabel="width", ylabel="error; mixing", title="(b) MLP towers")
    axis.set(ylim=(None, 30 * float(data.mixing.max())), xticks=(100, 1000), xticklabels=("100", "1000"))
    axis.legend(loc="upper center")


def _draw_histories(axis, data):
    for color, temperature in zip(_figures.COLORS, data.temperature.values, strict=False):
        for optimizer, style in (("Adam", "-"), ("SGD", "--")):
            here = data.along.sel(optimizer=optimizer, temperature=temperature).transpose("seed", "train_step")
            label = f"τ = {temperature:g}" if style == "-" else None
            _figures.band(axis, data.train_step.values, np.log10(here.values), color, label)
            axis.lines[-1].set_linestyle(style)
    axis.axhline(0.0, color=_figures.CONTROL, linewidth=0.8)
    axis.set(xscale="log", xlabel="step", ylabel="log₁₀ (variance along gap / start)", title="(c) MLP towers from 90°")
    axis.legend(loc="upper left")


def _draw_factors(axis, data):
    names = [str(name) for name in data.factor.values]
    for k, optimizer in enumerate(data.optimizer.values):
        here, at = data.sel(optimizer=optimizer), np.arange(len(names)) + (-0.14, 0.14)[k]
        look = dict(fmt="os"[k], color=_figures.COLORS[k], label=str(optimizer))
        axis.errorbar(here.coupling_measured, at, xerr=2 * here.coupling_error, **look)
        axis.plot(here.coupling_predicted, at, "|", color="black", markersize=8, label="predicted" if k else None)
        if k == 0:
            axis.plot(data.alignment, at, "x", color=_figures.CONTROL, label="alignment")
    axis.axvline(1.0, color="black", linewidth=0.6)
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) + 1.2, -0.6), xlabel="coupling")
    axis.set(xlim=(min(0.0, float((data.coupling_measured - 2 * data.coupling_error).min())), None))
    axis.set_title("(d) First steps against free flow")
    axis.legend(loc="lower center", ncols=2)
