"""C2T: how far the predictions for tight clusters carry over from free embeddings to trained towers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import simulator as sim
from experiments import plotting
from experiments.setups import trained_towers
from experiments.setups.checks import agreement, closest, never_above, standard_error, worst
from experiments.setups.clusters import mode_variances
from experiments.setups.tower_discrepancies import OPTIMIZERS, PAIRS, Setting, discrepancies
from experiments.setups.trends import spread
from simulator.theory import towers as theory

CLAIM = sim.Claim(
    id="C2T",
    title="Tight-cluster predictions on towers",
    summary="Networks follow the rates of C2 too.",
    statement=(
        "Towers in tight cones do not follow the free flow, at any width, depth, tightness and learning rate, under SGD or "
        "Adam, but the free flow multiplied by the tangent kernel of their start. Linear towers do so up to O(ε/τ) under "
        "SGD; MLPs of one smooth hidden layer and width w, in a step that changes deviations by a share r, up to O(r w⁻²) under "
        "SGD and O(r w^−3/2) under Adam. The gap turns by O(ε), where free embeddings keep it to O(ε²). Later, when the clusters "
        "are no longer tight, the variance along the gap grows. Thresholds of towers: N1."
    ),
    source="derived here: theory.md C2, C3 and N1, towers; free flow: Chowers et al. 2026, Thm 3.1",
    assumes="tight cones, full batches, few steps; Adam without its ε",
    expected=dict.fromkeys(("linear towers", "width, SGD", "width, Adam", "learning rate"), "holds")
    | dict.fromkeys(("free flow", "mixing", "turn", "variance"), "holds if"),
)
CAPTION = (
    "Tight clusters on towers at 60°, τ = 0.1, ten steps, one factor changed at a time from one hidden layer of 64 "
    "tanh units, tightness 10⁷, learning rate 1. Distance: of the deviations from the nearest path of the free "
    "flow, over the way gone, also predicted from the Jacobians of the start; error: of that prediction, over the "
    "predicted change. (a) Width. (b) Hidden layers of 64; 0 are linear towers. (c) Length of the mean output over "
    "the deviations from it: for linear towers and free embeddings it decides. (d) Learning rate, in units of that "
    "at which ten steps like the first change the deviations by their size. (e) The part of the kernel that mixes "
    "outputs. (f) Variance along a gap of 90° over its start in longer training at tightness 1000. Geometric means, "
    "bars and bands ± 2 standard errors over 24 seeds; in (e) over 192, in (f) over 8 seeds. Grey: controls."
)
DATA, EMBED = sim.LatentPairs(latent_dim=4, dim_x=8, dim_y=10, noise=0.3), 6
ANGLE, TEMPERATURE = np.pi / 3, 0.1
TIGHT, WIDTH = 1e7, 64  # of the base: ε/τ is far below the drift of the Jacobians
FASTEST, LEAST_TIGHTNESS = 1.0, 1e3  # largest rate at which its order is judged, and least tightness for orders in ε
NARROW, SAMPLES = 4, 8  # outputs and samples of networks whose mixing is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Small towers in float64: four factors changed one at a time from the base, mixing of outputs, and longer training."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    relu_widths: tuple[int, ...] = (64, 256, 1024)
    depths: tuple[int, ...] = (0, 1, 2, 3)
    tightnesses: tuple[float, ...] = (1e2, 1e3, 1e4, 1e5, 1e6)
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    factor_seeds: int = 24
    mixing_widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    mixing_seeds: int = 192
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.15, 0.5)
    steps: int = 1000
    seeds: int = 8
    seed: int = 54
    design_seeds: tuple[int, ...] = (53,)


QUICK = Config(
    widths=(64, 128, 256, 512), relu_widths=(), depths=(0, 1), tightnesses=(1e3, 1e4, 1e5, 1e6), rates=(0.03, 0.1, 0.3, 1.0), factor_seeds=16,
    mixing_widths=(32, 64, 128, 256, 512), mixing_seeds=24, temperatures=(0.05, 0.5), steps=300, seeds=6,
)  # fmt: skip


def settings(config: Config) -> dict[tuple[str, float], Setting]:
    """(factor, level) -> setting."""
    network = lambda width, depth=1, activation="tanh": sim.MLP(
        width, depth=depth, embed_dim=EMBED, activation=activation
    )
    linear = sim.Linear(EMBED)
    base = Setting(encoder=network(WIDTH), data=DATA, tightness=TIGHT)
    change = lambda **changes: dataclasses.replace(base, **changes)
    free = change(encoder=linear, data=None)
    return (
        {("width", w): change(encoder=network(w)) for w in config.widths}
        | {("ReLU", w): change(encoder=network(w, activation="relu")) for w in config.relu_widths}
        | {("depth", d): change(encoder=network(WIDTH, d) if d else linear) for d in config.depths}
        | {("tightness", t): change(tightness=t) for t in config.tightnesses}
        | {("linear", t): change(encoder=linear, tightness=t) for t in config.tightnesses}
        | {("free", t): dataclasses.replace(free, tightness=t) for t in config.tightnesses}
        | {("rate", r): change(rate=r) for r in config.rates}
    )


def measure(config: Config, *, progress: bool = False):
    """Discrepancies by factor; mixing of outputs; longer training."""
    import xarray as xr

    from simulator.progress import tqdm

    found, parts = {}, (_factors, _mixing, _histories)
    with jax.enable_x64(True):
        for part in tqdm(parts, disable=not progress, desc="tower compression", unit="part"):
            found |= part(config)
    return xr.Dataset(found, coords=dict(optimizer=list(OPTIMIZERS)))


def _factors(config: Config) -> dict:
    """`discrepancies` of all settings, with their factor and level."""
    chosen = settings(config)
    place: dict[str, Any] = dict(angle=ANGLE, temperature=TEMPERATURE, seeds=config.factor_seeds, seed=config.seed)
    different = list(dict.fromkeys(chosen.values()))  # the base is a level of several factors
    found, place_of = discrepancies(different, **place), [different.index(setting) for setting in chosen.values()]
    factor, level = zip(*chosen, strict=True)
    dims = ("optimizer", "setting", "factor_seed")
    return {name: (dims, values[:, place_of]) for name, values in found.items()} | dict(
        factor=("setting", list(factor)), level=("setting", np.array(level, float))
    )


def _mixing(config: Config) -> dict:
    """How much the kernels of random networks mix their outputs, over (depth, level, mixing_seed)."""
    widths, dim_in = np.tile(config.mixing_widths, (2, 1)), DATA.dim_y
    mixing = np.empty((*widths.shape, config.mixing_seeds))
    for i, j, seed in np.ndindex(mixing.shape):
        rng = np.random.default_rng([config.seed, 9, seed])
        inputs = jnp.asarray(rng.normal(size=(SAMPLES, dim_in)))
        encoder = sim.MLP(int(widths[i, j]), depth=i + 1, embed_dim=NARROW)
        kernel = trained_towers.tangent_kernel(*trained_towers.random_tower(encoder, dim_in, rng), inputs)
        values, modes = np.linalg.eigh(np.asarray(kernel))  # rows with these inner products stand for the Jacobian's
        rows = modes * np.sqrt(np.maximum(values, 0.0))[None, :]
        mixing[i, j, seed] = theory.output_mixing(rows.reshape(SAMPLES, NARROW, -1))
    return dict(
        mixing=(("depth", "mixing_seed", "step_in_width"), mixing.swapaxes(1, 2)),
        mixing_width=(("depth", "step_in_width"), widths),
        depth=("depth", 1 + np.arange(len(widths))),
    )


def _histories(config: Config) -> dict:
    """Variance along a gap that starts at 90°, and of the common mode across it, over their starts; MLP towers at tightness
    1000, Adam at 1e-3 with its usual ε; over (optimizer, temperature, seed, train_step)."""
    steps = np.unique(np.round(np.geomspace(1, config.steps, 40)).astype(int))
    rngs = [np.random.default_rng([config.seed, 70, seed]) for seed in range(config.seeds)]
    encoder = sim.MLP(WIDTH, embed_dim=EMBED)
    starts = [trained_towers.start(encoder, DATA, 2 * PAIRS, rng, angle=np.pi / 2, tightness=1e3) for rng in rngs]
    points = [(tau, begin) for tau in config.temperatures for begin in starts]
    rates = [[0.5 * begin.fast_rate(tau) for tau, begin in points], [1e-3] * len(points)]
    temperatures, begins = zip(*points, strict=True)
    ended = trained_towers.train(list(begins), temperatures, rates, [0, *steps], optimizers=(optax.sgd, optax.adam))
    modes = mode_variances(*(raw / np.linalg.norm(raw, axis=-1, keepdims=True) for raw in ended), True)
    growth = np.stack([modes[..., 0] + modes[..., 1], modes[..., 2]])
    growth = growth[..., 1:] / growth[..., :1]
    along, across = growth.reshape(2, 2, len(config.temperatures), config.seeds, len(steps))
    dims = ("optimizer", "temperature", "seed", "train_step")
    return dict(along=(dims, along), across=(dims, across), temperature=list(config.temperatures), train_step=steps)


def by_factor(data, factor: str, optimizer: str = "SGD", *, least: float = 0.0, most: float = np.inf):
    """The settings of one factor with levels from `least` to `most`, the level as their index."""
    level = data.level.values
    here = data.isel(setting=(data.factor.values == factor) & (least <= level) & (level <= most)).sel(
        optimizer=optimizer
    )
    return here.assign_coords(setting=here.level.values)


def slope(values, at, exponent: float) -> sim.Check:
    """Exponent of the geometric mean over seeds [seed, level], within 4 standard errors from the scatter of each seed's own
    slope: worlds are shared by all levels."""
    logs, at = np.log(values), np.asarray(at, float)
    error = np.polyfit(np.log(at), logs.T, 1)[0].std(ddof=1) / len(logs) ** 0.5
    return sim.Check("slope", np.array(exponent), np.exp(logs.mean(axis=0)), 4 * error, at=at)


def mixing_exponents(data, next_order: bool = True) -> np.ndarray:
    """Exponent of the mixing in the width, [depth, seed]: of least squares for ln(mixing) in 1, ln w and, with the next
    order, 1/w."""
    found = []
    for mixing, width in zip(data.mixing.values, data.mixing_width.values.astype(float), strict=True):
        terms = np.stack([np.log(width), np.ones_like(width), 1 / width][: 2 + next_order], axis=1)
        found.append(np.linalg.lstsq(terms, np.log(mixing).T, rcond=None)[0][0])
    return np.array(found)


def judge(data) -> list[sim.Row]:
    """Orders of both discrepancies in size, width and rate; mixing; the coupling; the turn of the gap; longer training."""
    optimizers = [str(name) for name in data.optimizer.values]

    def geometric(values):
        return np.exp(np.log(np.abs(values)).mean("factor_seed")).values

    def in_size(factor, optimizer, name, exponent):
        """Against cluster size; the next order changes the largest error by O(ε/τ) = .01, and the slope by less."""
        here = by_factor(data, factor, optimizer, least=LEAST_TIGHTNESS)
        return sim.Check("slope", exponent, geometric(here[name]), 0.02, at=1 / here.level.values)

    def in_width(optimizer, exponent):
        here = by_factor(data, "width", optimizer)
        return slope(here.second_order.transpose("factor_seed", "setting").values, here.level.values, exponent)

    def in_rate(optimizer, exponent):
        """The next order adds a share r to the error, r the share by which the first step changes deviations, .1 at most: over
        these rates it tilts the exponent by less than .03."""
        here = by_factor(data, "rate", optimizer, most=FASTEST)
        return sim.Check("slope", exponent, geometric(here.first_error), 0.04, at=here.level.values)

    def in_mixing(exponents, next_order=True):
        """Exponents of every depth, without the next order in 1/width of the logarithm, network by network."""
        found = mixing_exponents(data, next_order)
        return agreement(exponents, found.mean(axis=1), standard_error(found, axis=1))

    def risen(values):
        """By how much ln(variance over its start) exceeds 0, less 4 standard errors, at the worst."""
        logs = np.log(values.transpose("seed", ...).values)
        return never_above((logs.mean(axis=0) - 4 * standard_error(logs)).max(), 1e-9)

    def tightest(factor, name):
        here = by_factor(data, factor)
        return spread(np.abs(here[name].isel(setting=int(np.argmax(here.level.values)))))

    def drift(optimizer):
        """The exponent of each world's own error in the width."""
        here = by_factor(data, "width", optimizer)
        logs = np.log(np.abs(here.second_order)).transpose("setting", "factor_seed").values
        return spread(np.polyfit(np.log(here.level.values), logs, 1)[0])

    def exponent(factor):
        """Of each world's own turn of the gap in the cluster size."""
        here = by_factor(data, factor, least=LEAST_TIGHTNESS)
        logs = np.log(np.abs(here["turn"])).transpose("setting", "factor_seed").values
        return spread(-np.polyfit(np.log(here.level.values), logs, 1)[0])

    def largest(values):
        """The largest mean of ln(variance over its start), with its place."""
        logs = np.log(values)
        at = logs.isel(logs.mean("seed").argmax(...))
        return f"{spread(at)} ({at.optimizer.values!s}, τ = {float(at.temperature):g})"

    def by_depth(depth):
        taken_out, left_in = (spread(mixing_exponents(data, out)[depth - 1]) for out in (True, False))
        return f"{taken_out} with {depth} hidden, {left_in} with the next order left in"

    exponents = [theory.mixing_exponent(int(depth)) for depth in data.depth.values]
    coarse = f"{data.sizes['factor_seed']} worlds tell the exponent ½ to ± 0.02, and 5 % of it are 0.025"
    return [
        sim.Row(
            "linear towers",
            in_size("linear", "SGD", "error", 1.0),
            in_size("linear", "SGD", "exchanged_error", 1.0),
            "the kernels of the two towers exchanged",
            label="error of the kernel's prediction over cluster size, linear towers, SGD",
        ),
        sim.Row(
            "free flow",
            in_size("free", "SGD", "orbit", 1.0),
            in_size("free", "SGD", "orbit_near_miss", 1.0),
            "cos θ dropped",
            label="distance from the free flow's path over cluster size, free embeddings, SGD",
            outside=closest([in_size("linear", optimizer, "orbit", 1.0) for optimizer in optimizers]),
            condition="embeddings are free; linear towers stay away from the path at any size (slope 0)",
            effect=f"distance over the way gone, tightest clusters: free {tightest('free', 'orbit')}, linear towers "
            f"{tightest('linear', 'orbit')}",
        ),
        *(
            sim.Row(
                f"width, {optimizer}",
                in_width(optimizer, theory.DRIFT_EXPONENTS[i]),
                in_width(optimizer, theory.DRIFT_EXPONENTS[1 - i]),
                "the exponent of the other optimiser",
                label=f"error of the kernel's prediction after one step, over (learning rate)², against width, one hidden layer, {optimizer}",
                blunt=coarse if i else "",
                effect=f"exponent: {drift(optimizer)}",
            )
            for i, optimizer in enumerate(optimizers)
        ),
        sim.Row(
            "learning rate",
            worst([in_rate(optimizer, 1.0) for optimizer in optimizers]),
            closest([in_rate(optimizer, exponent) for optimizer in optimizers for exponent in (0.5, 2.0)]),
            "the closest of: exponents ½ and 2",
            label="error of the kernel's prediction after one step over learning rate, one hidden layer, SGD and Adam",
        ),
        sim.Row(
            "mixing",
            in_mixing(exponents),
            in_mixing(-np.ones(data.sizes["depth"])),
            "mixing ∝ 1/width",
            label="mixing of outputs over width, one and two hidden layers",
            outside=in_mixing(exponents, next_order=False),
            condition=f"the next order, 1/width, is taken out: from width {int(data.mixing_width.min())} on it tilts the lines",
            effect="exponents: " + "; ".join(map(by_depth, data.depth.values)),
        ),
        sim.Row(
            "turn",
            in_size("free", "SGD", "turn", 2.0),
            in_size("free", "SGD", "turn", 1.0),
            "first order",
            label="turn of the gap over cluster size, free embeddings, SGD",
            outside=in_size("linear", "SGD", "turn", 2.0),
            condition="embeddings are free; of linear towers the gap turns to first order",
            effect=f"exponent: free {exponent('free')}, linear towers {exponent('linear')}",
        ),
        sim.Row(
            "variance",
            risen(data.along.isel(train_step=0)),
            risen(data.across.isel(train_step=0)),
            "the common mode across the gap",
            label="variance along a 90° gap falls below its start, every τ, SGD and Adam: ln of their ratio less 4 standard errors",
            outside=risen(data.along.isel(train_step=-1)),
            condition="clusters are still tight: in the first step, and not at the end of training",
            effect=f"largest mean of ln(variance over its start): {largest(data.along.isel(train_step=0))} after one step, "
            f"{largest(data.along.isel(train_step=-1))} after {int(data.train_step[-1])}",
        ),
    ]


def draw(data):
    """Both discrepancies against the four factors; mixing of outputs; longer training."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(plotting.TWO_COLUMNS, 5.2), layout="constrained")
    factors = dict(width="width", depth="hidden layers", tightness="1/ε", rate="learning rate").items()
    for axis, (factor, label) in zip(axes.flat, factors, strict=False):
        for k, optimizer in enumerate(data.optimizer.values):
            here, color = by_factor(data, factor, str(optimizer)), plotting.COLORS[k]
            shift = {"depth": 0.09 * (2 * k - 1)}.get(factor, 0.0)
            at = here.level.values + shift if factor == "depth" else here.level.values * (0.95, 1.05)[k]
            _points(axis, at, here.orbit, f"{optimizer}: distance from the free flow", fmt="os"[k], color=color)
            look = dict(fmt="os"[k], color=color, markerfacecolor="white")
            _points(axis, at, here.error, f"{optimizer}: error of the kernel's prediction", **look)
            predicted = np.exp(np.log(here.orbit_predicted).mean("factor_seed"))
            axis.plot(
                at, predicted, "_", color="black", markersize=7, zorder=3, label="predicted distance" if k else None
            )
            if factor in ("width", "rate"):
                look = dict(fmt="x+"[k], color=color, markersize=4)
                _points(axis, at, here.first_error, f"{optimizer}: error after one step", **look)
                _guide(axis, at, here.first_error, theory.DRIFT_EXPONENTS[k] - 2 if factor == "width" else 1.0)
        axis.set(
            yscale="log",
            xlabel=label,
            ylabel="relative discrepancy",
            title="learning rate" if factor == "rate" else factor,
        )
        axis.set_xscale("linear" if factor == "depth" else "log")
    for k, optimizer in enumerate(data.optimizer.values):
        here = by_factor(data, "ReLU", str(optimizer))
        _points(axes[0][0], here.level, here.error, fmt="D", color=plotting.COLORS[k], markersize=2.5)
    axes[0][0].set(ylim=(1e-7, None), xticks=(100, 1000), xticklabels=("100", "1000"))
    axes[0][0].xaxis.minorticks_off()
    axes[0][1].set(xticks=range(1 + int(by_factor(data, "depth", "SGD").level.max())))
    _draw_linear(axes[0][2], data)
    _draw_mixing(axes[1][1], data)
    _draw_histories(axes[1][2], data)
    above = plotting.legend_entries(axes[0][0])
    plotting.legend_above(figure, axes[0][0], ncols=3)
    axes[0][0].plot([], [], "kD", markersize=2.5, label="ReLU: error")
    axes[0][0].plot([], [], "k-", linewidth=0.6, label="predicted slopes −2, −3/2")
    axes[1][0].plot([], [], "k-", linewidth=0.6, label="predicted slope 1")
    axes[1][0].set_ylim(1e-6, None)
    for axis in (axes[0][0], axes[0][2]):
        plotting.legend_inside(axis, above=above, loc="lower left", fontsize=plotting.SMALL)
    plotting.legend_inside(axes[1][0], above=above, loc="lower right", fontsize=plotting.SMALL)
    return plotting.lettered(figure)


def _points(axis, at, values, label=None, **look):
    """Geometric means over seeds with ± 2 standard errors."""
    logs = np.log(values.transpose("factor_seed", ...).values)
    mean, error = np.exp(logs.mean(axis=0)), 2 * logs.std(axis=0, ddof=1) / len(logs) ** 0.5
    axis.errorbar(at, mean, [mean - mean * np.exp(-error), mean * np.exp(error) - mean], label=label, **look)


def _guide(axis, at, values, exponent: float, color="black"):
    """A line of given slope through the middle of the points."""
    mean = np.log(values).mean("factor_seed").values
    line = exponent * np.log(at)
    axis.plot(at, np.exp(line + np.mean(mean - line)), color=color, linewidth=0.6, zorder=1)


def _draw_linear(axis, data):
    linear, free = by_factor(data, "linear", "SGD"), by_factor(data, "free", "SGD")
    look, blue, grey = dict(markersize=2.5, markerfacecolor="white"), plotting.COLORS[0], plotting.CONTROL
    _points(axis, free.level, free.orbit, "free embeddings", fmt="P:", color=blue, markersize=3)
    _points(axis, linear.level, linear.error, "linear towers", fmt="v:", color=blue, **look)
    _points(axis, linear.level, linear.exchanged_error, "kernels exchanged", fmt="v:", color=grey, **look)
    _guide(axis, linear.level.values, linear.error, -1.0)
    axis.plot([], [], "k-", linewidth=0.6, label="predicted slope −1")
    axis.set(xlabel="mean output / deviations, 1/ε", ylim=(1e-9, None))


def _draw_mixing(axis, data):
    for k, depth in enumerate(data.depth.values):
        here = data.sel(depth=depth).rename(mixing_seed="factor_seed")
        at, look = (
            here.mixing_width.values.astype(float),
            dict(fmt="o^"[k], color="black", fillstyle=("full", "none")[k]),
        )
        _points(axis, at, here.mixing, f"{depth} hidden layer{'s' * (int(depth) > 1)}", **look)
        _guide(axis, at, here.mixing, -1.0, plotting.CONTROL)
        _guide(axis, at, here.mixing, theory.mixing_exponent(int(depth)))
    axis.plot([], [], "k-", linewidth=0.6, label="predicted slopes")
    axis.plot([], [], color=plotting.CONTROL, linewidth=0.6, label="slope −1")
    axis.set(xscale="log", yscale="log", xlabel="width", ylabel="mixing of outputs", ylim=(3e-5, None))
    axis.set_title("kernel")
    axis.set(xticks=(100, 1000), xticklabels=("100", "1000"))
    axis.legend(loc="lower left", fontsize=plotting.SMALL)


def _draw_histories(axis, data):
    for i, temperature in enumerate(data.temperature.values):
        for optimizer, style in (("Adam", "-"), ("SGD", "--")):
            here = data.along.sel(optimizer=optimizer, temperature=temperature).transpose("seed", "train_step")
            look = plotting.series(2 + i, linestyle=style, markevery=(2 * i, 8))
            plotting.band(axis, data.train_step.values, np.log10(here.values), **look)
        axis.plot([], [], label=f"τ = {temperature:g}", **plotting.series(2 + i, linestyle="none"))
    for optimizer, style in (("Adam", "k-"), ("SGD", "k--")):
        axis.plot([], [], style, label=optimizer)
    axis.axhline(0.0, color=plotting.CONTROL, linewidth=0.8, label="start")
    axis.set(xscale="log", xlabel="step", ylabel="log₁₀ (variance along gap / start)", title="longer training")
    axis.set(ylim=(-3, 13), yticks=range(-2, 7, 2))
    axis.legend(loc="upper left", ncols=2, handlelength=1.5)
