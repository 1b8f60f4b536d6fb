"""P1: random layers push inputs into a cone, along the recursion of infinite width, if the activation has a mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, closest, moves, worst
from experiments.setups.random_layers import (
    distinct_cosine,
    layer_by_layer,
    layer_cosines,
    mean_cosine,
    orthogonal_inputs,
    single_layers,
    two_inputs,
)
from experiments.setups.trends import stated
from simulator.theory import cones

CLAIM = sim.Claim(
    id="P1",
    title="Cone effect",
    summary="Before any training, random layers make all inputs alike.",
    statement=(
        "Random layers make inputs more alike: the mean cosine of networks tends, as they get wider, to the recursion of "
        "infinite width at all depths, with and without bias. Theorem 1's threshold on the cosine is sufficient, not necessary: "
        "cosines rise up to the stationary cosine of the recursion. An odd activation without bias makes no cone."
    ),
    source=(
        "Liang et al. 2022 (arXiv 2203.02053), Thm 1 and Fig. 2b; recursion: Poole et al. 2016 (arXiv 1606.05340); stationary "
        "cosine and finite width derived here: simulator/theory/cones.py"
    ),
    assumes="Gaussian weights of variance σ_w²/fan-in, independent Gaussian biases, wide layers",
    expected=dict.fromkeys(
        ("recursion", "published experiment", "published numbers", "stationary cosine", "share of layers"), "holds"
    )
    | {"rise by layers": "holds if"},
)
CAPTION = (
    "(a) Mean cosine of orthogonal inputs, layer by layer: networks, extrapolated to infinite width (points, ± 4 "
    "standard errors over 64 networks), its recursion (lines), the six numbers of Liang et al. (diamonds); grey: "
    "half the bias variance. tanh without bias makes no cone, wide-weight tanh a blunt one. (b) The cosine that a "
    "ReLU layer with bias leaves as it is: measured (points), predicted at infinite width (lines); grey: the "
    "threshold of Theorem 1, and where the pre-activations stop rising. (c) Share of random layers that do not "
    "raise the cosine, ‖u‖ = 2, ‖v‖ = 1, measured ± 4 standard errors over 6,000 layers; grey: twice the variance, "
    "and Theorem 1's threshold."
)
PRECISION = "float64; networks of the published size in float32"
PUBLISHED = (0.001, 0.3195, 0.4943, 0.6069, 0.7008, 0.7541)  # Liang et al., Fig. 2b, layers 0–5, one network
PUBLISHED_INPUTS, PUBLISHED_WIDTH = 1024, 512
# Activation, σ_w², σ_b². The last two make no cone and a blunt one. (GELU with σ_w² = 2 shrinks its inputs for tens of
# layers without settling, and networks of width 256 then fall short of the recursion by .03: too slow a limit to test.)
NETWORKS = (
    ("relu", 1.0, 0.1),
    ("relu", 1.0, 0.0),
    ("gelu", 1.0, 0.1),
    ("tanh", 1.5, 0.1),
    ("tanh", 1.5, 0.0),
    ("tanh", 4.0, 0.05),
)
CONES, NO_CONE = slice(0, 4), 4
NUM_INPUTS = 16  # orthogonal ones; all their pairs share a network and are averaged
NORMS, SHARE_NORMS = (0.3, 1.0, 4.0), (2.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """`networks` of `width` and `depth`, and four times as many of half the width to extrapolate; `layers` single layers
    of each of `layer_widths`, the last for the boundary; `replicas` networks of the published size."""

    width: int = 256
    depth: int = 25
    networks: int = 64
    replicas: int = 64
    norm_ratios: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    layer_widths: tuple[int, ...] = (128, 512)
    layers: int = 6000
    share_cosines: tuple[float, ...] = tuple(np.linspace(0.6, 0.98, 20).round(3).tolist())
    seed: int = 23
    design_seeds: tuple[int, ...] = (0, 21, 22)


QUICK = Config(
    width=64,
    depth=8,
    networks=48,
    replicas=48,
    norm_ratios=(1.5, 4.0),
    layers=2400,
    share_cosines=(0.7, 0.8, 0.86, 0.9, 0.94),
)


def measure(config: Config, *, progress: bool = False):
    """Cosines by layer, the published experiment repeated, stationary cosines and shares, each with its prediction."""
    import xarray as xr

    from simulator.progress import tqdm

    values = {}
    parts = (_by_layer, _as_published, _stationary, _shares)
    with jax.enable_x64(True):
        for part in tqdm(parts, disable=not progress, desc="cone effect", unit="part"):
            values |= part(config)
    return xr.Dataset(
        values,
        coords=dict(
            network=[f"{name}, σ_w²={w:g}, σ_b²={b:g}" for name, w, b in NETWORKS],
            layer=np.arange(config.depth + 1),
            published_layer=np.arange(len(PUBLISHED)),
            norm=list(NORMS),
            norm_ratio=list(config.norm_ratios),
            width=list(config.layer_widths),
            share_cosine=list(config.share_cosines),
        ),
        attrs=dict(networks=config.networks, network_width=config.width, replicas=config.replicas),
    )


def _by_layer(config: Config) -> dict:
    """Mean cosine of pairs of orthogonal inputs at the width and extrapolated to infinite width, with standard errors, and the
    recursion with its near misses, [network, layer]; the same with unequal norms and a cosine beyond the stationary one,
    [layer]."""
    keys = jax.random.split(jax.random.key(config.seed), 2 * len(NETWORKS) + 1)
    settings: dict[str, Any] = dict(depth=config.depth, summary=distinct_cosine)
    values = np.empty((7, len(NETWORKS), config.depth + 1))
    for i, (activation, weight_variance, bias_variance) in enumerate(NETWORKS):
        law: dict[str, Any] = dict(activation=activation, weight_variance=weight_variance)
        wide, narrow = (
            layer_by_layer(
                orthogonal_inputs(NUM_INPUTS, width), key, bias_variance=bias_variance, networks=networks, **law, **settings
            )
            for key, width, networks in (
                (keys[2 * i], config.width, config.networks),
                (keys[2 * i + 1], config.width // 2, 4 * config.networks),
            )
        )  # fmt: skip
        (mean, error), (half_mean, half_error) = _mean(wide), _mean(narrow)
        # The mean is off by O(1/width), which twice the one less the other removes.
        values[:4, i] = mean, error, 2 * mean - half_mean, np.hypot(2 * error, half_error)
        for j, variance in enumerate((bias_variance, 0.5 * bias_variance, 0.0)):
            path = cones.cosine_by_layer(1.0, 1.0, 0.0, depth=config.depth, bias_variance=variance, **law)
            values[4 + j, i] = path.cosine
    beyond = layer_by_layer(
        two_inputs(4.0, 1.0, 0.95, config.width), keys[-1], activation="relu", bias_variance=1.0,
        networks=config.networks, **settings,
    )  # fmt: skip
    names = ("cosine", "cosine_error", "extrapolated", "extrapolated_error", "recursion", "half_bias", "no_bias")
    found = {name: (("network", "layer"), value) for name, value in zip(names, values, strict=True)}
    mean, error = _mean(beyond)
    return found | dict(beyond=(("layer",), mean), beyond_error=(("layer",), error))


def _mean(values):
    """Mean and standard error over networks; rounding (the input's cosine is exact) counts as an error of 1e-12."""
    return values.mean(axis=0), np.maximum(values.std(axis=0, ddof=1) / len(values) ** 0.5, 1e-12)


def _as_published(config: Config) -> dict:
    """Networks of the published size: mean cosine over all n² pairs of Gaussian inputs, [replica, published_layer]."""
    n, width, depth = PUBLISHED_INPUTS, PUBLISHED_WIDTH, len(PUBLISHED) - 1
    found = np.empty((config.replicas, depth + 1))
    for i in range(config.replicas):
        input_key, key = jax.random.split(jax.random.key(config.seed + 1 + i))
        inputs = jax.random.normal(input_key, (n, width), jnp.float32)
        found[i] = layer_by_layer(
            inputs, key, depth=depth, activation="relu", networks=1, weight_variance=1.0, bias_variance=1.0 / width,
            summary=mean_cosine,
        )[0]  # fmt: skip

    # A Gaussian input has ‖u‖²/width = 1, up to a few percent that a ReLU network almost forgets.
    nodes, weights = cones.random_cosine_quadrature(width)
    law: dict[str, Any] = dict(depth=depth, activation="relu")
    path, unit = (
        cones.cosine_by_layer(1.0, 1.0, nodes, bias_variance=variance, **law) for variance in (1.0 / width, 1.0)
    )
    shift = cones.finite_width_shift(path, width=width, bias_variance=1.0 / width) @ weights
    wide, unit = path.cosine @ weights, unit.cosine @ weights
    with_itself = lambda mean: mean + (1 - mean) / n
    dims = ("published_layer",)
    return dict(
        replica=(("replica", *dims), found),
        published=(dims, np.array(PUBLISHED)),
        published_recursion=(dims, with_itself(wide + shift)),
        infinite_width=(dims, with_itself(wide)),
        distinct_pairs=(dims, wide + shift),
        unit_bias=(dims, with_itself(unit)),
    )


def _stationary(config: Config) -> dict:
    """The cosine that random layers leave as it is on average, with standard error, prediction and near misses,
    [norm, norm_ratio]."""
    from scipy.optimize import brentq

    width, step = config.layer_widths[-1], 1e-3
    layers = single_layers(width, config.layers, config.seed)[:, : config.layers // 4]
    values = np.empty((5, len(NORMS), len(config.norm_ratios)))
    for i, j in np.ndindex(values.shape[1:]):
        ratio, norm_v = config.norm_ratios[j], NORMS[i]
        norm_u = ratio * norm_v
        rise = lambda c: float(np.mean(layer_cosines(layers, norm_u, norm_v, c))) - c  # noqa: B023
        found = brentq(rise, 0.0, 1.0 - 1e-9, xtol=1e-6)
        # The root of a mean: its error is that of the mean over the slope.
        error = layer_cosines(layers, norm_u, norm_v, found).std(ddof=1) / layers.shape[1] ** 0.5
        slope = (rise(found) - rise(found - step)) / step
        product, total = norm_u * norm_v, norm_u**2 + norm_v**2 + 1
        before = (product + np.sqrt(product**2 + total)) / total  # 2c‖u‖‖v‖ + 1 = c² (‖u‖² + ‖v‖² + 1)
        predicted = cones.stationary_cosine(norm_u, norm_v, width=width)
        values[:, i, j] = found, error / abs(slope), predicted, cones.liang_threshold(ratio), before
    names = (
        "stationary",
        "stationary_error",
        "stationary_predicted",
        "threshold",
        "before_activation",
    )
    return {name: (("norm", "norm_ratio"), value) for name, value in zip(names, values, strict=True)}


def _shares(config: Config) -> dict:
    """Share of layers that do not raise the cosine, measured and predicted, [width, share_cosine]."""
    from scipy.special import ndtr, ndtri

    shape = (len(config.layer_widths), len(config.share_cosines))
    measured, predicted = np.empty((2, *shape))
    for i, width in enumerate(config.layer_widths):
        layers = single_layers(width, config.layers, config.seed)
        for j, cosine in enumerate(config.share_cosines):
            measured[i, j] = np.mean(layer_cosines(layers, *SHARE_NORMS, cosine) <= cosine)
        predicted[i] = cones.share_of_lowered(*SHARE_NORMS, np.array(config.share_cosines), width)
    dims = ("width", "share_cosine")
    return dict(
        share=(dims, measured),
        share_predicted=(dims, predicted),
        share_error=(dims, np.sqrt(predicted * (1 - predicted) / config.layers)),
        twice_the_variance=(dims, ndtr(ndtri(predicted) / 2**0.5)),
    )


def judge(data) -> list[sim.Row]:
    """Recursion, published experiment, rise by layers, stationary cosine, shares."""

    def by_layer(predicted):
        here = data.isel(layer=slice(1, None))
        return agreement(predicted.isel(layer=slice(1, None)), here.extrapolated, here.extrapolated_error)

    def rises(cosine, error):
        return moves(cosine, error, data.layer)

    replicas = data.replica.values
    scatter = replicas.std(axis=0, ddof=1)
    repeated, repeated_error = replicas.mean(axis=0), scatter / len(replicas) ** 0.5
    # The published numbers come from one network and are rounded to four digits (the first to three).
    one_network = np.hypot(scatter, np.where(np.arange(len(scatter)) == 0, 1e-3, 1e-4) / 12**0.5)
    rising = [
        rises(data.cosine.isel(network=i), data.cosine_error.isel(network=i))
        for i in range(data.sizes["network"])[CONES]
    ]

    def boundary(predicted):
        return agreement(predicted, data.stationary, data.stationary_error)

    # The expansion is one about the middle: two standard deviations of a layer to either side.
    middle = (data.share_predicted > 0.023) & (data.share_predicted < 0.977)

    def share(predicted):
        return agreement(*(values.values[middle] for values in (predicted, data.share, data.share_error)))

    excess = (data.stationary - data.threshold).values
    beyond = lambda i: stated(excess.flat[i], data.stationary_error.values.flat[i])
    last = lambda i: stated(data.cosine[i, -1], data.cosine_error[i, -1])
    weakest = int(np.argmin(data.cosine[CONES, -1].values))

    return [
        sim.Row(
            "recursion",
            by_layer(data.recursion),
            closest([by_layer(data.half_bias), by_layer(data.no_bias)]),
            "the closest of: half the bias variance; no bias",
            label=f"mean cosine of orthogonal inputs after 1–{data.layer.values[-1]} layers, six kinds of networks, width → ∞",
        ),
        sim.Row(
            "published experiment",
            agreement(data.published_recursion, repeated, repeated_error),
            closest([agreement(data[miss], repeated, repeated_error) for miss in ("distinct_pairs", "infinite_width")]),
            "the closest of: distinct pairs only; the limit of infinite width",
            label="mean cosine over all n² pairs of 1024 Gaussian inputs, width 512, layers 0–5",
        ),
        sim.Row(
            "published numbers",
            agreement(data.published_recursion, data.published.values, one_network),
            agreement(data.unit_bias, data.published.values, one_network),
            "biases of variance 1 in place of 1/512",
            label="the six published numbers, in standard deviations of one such network",
            condition=f"one network scatters by {one_network[1]:.4f} after the first layer, where 5 % are seen, and by up to "
            f"{one_network.max():.3f} deeper, where they are not; nor does it tell 512 units from infinitely many, as the row "
            f"before does on {len(replicas)} networks",
        ),
        sim.Row(
            "rise by layers",
            worst(rising),
            rises(data.beyond, data.beyond_error),
            "ReLU with bias, ‖u‖ = 4‖v‖, cosine 0.95, beyond the stationary one",
            label="the cosine of orthogonal inputs rises with every layer",
            outside=rises(data.cosine.isel(network=NO_CONE), data.cosine_error.isel(network=NO_CONE)),
            condition="the activation has a mean (E φ ≠ 0) or the layers have biases: tanh without bias makes no cone",
            effect=f"cosine after {data.layer.values[-1]} layers: {last(NO_CONE)} for tanh without bias, elsewhere at least "
            f"{last(weakest)}",
        ),
        sim.Row(
            "stationary cosine",
            boundary(data.stationary_predicted),
            closest([boundary(data.threshold), boundary(data.before_activation)]),
            "the closest of: Theorem 1's threshold; where the pre-activations stop rising",
            label="cosine that a ReLU layer with bias leaves as it is, all norms and ratios",
            condition="cosines are below it; Theorem 1's threshold is sufficient and not necessary",
            effect=f"it exceeds the threshold by {beyond(excess.argmin())} to {beyond(excess.argmax())}",
        ),
        sim.Row(
            "share of layers",
            share(data.share_predicted),
            share(data.twice_the_variance),
            "twice the variance",
            label=f"share of layers of width {data.width.values.tolist()} that do not raise the cosine",
        ),
    ]


def draw(data):
    """Cosines by layer, stationary cosines, shares."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(plotting.TWO_COLUMNS, 3.2), layout="constrained", gridspec_kw=dict(width_ratios=(1.35, 1, 1))
    )
    grey, colors = plotting.CONTROL, plotting.COLORS
    styles = ((0, "-"), (0, "--"), (1, "-"), (2, "-"), (2, "--"), (2, ":"))
    labels = ("ReLU", "ReLU, no bias", "GELU", "tanh", "tanh, no bias", "tanh, wide weights")
    for i, ((color, line), label) in enumerate(zip(styles, labels, strict=True)):
        here = data.isel(network=i)
        left.plot(data.layer, here.recursion, line, color=colors[color], linewidth=0.9)
        left.plot([], [], linestyle=line, linewidth=0.9, label=label, **plotting.series(color, markersize=2))
        error = 4 * here.extrapolated_error
        look = plotting.series(color, linestyle="none", markersize=2)
        left.errorbar(data.layer, here.extrapolated, error, **look)
        if line == "-":
            left.plot(data.layer, here.half_bias, color=grey, linewidth=0.6, zorder=0)
    left.plot([], [], color=grey, linewidth=0.6, label="half the bias")
    left.plot(data.published_layer, data.published, "D", color="black", fillstyle="none", label="Liang et al.")
    left.set(xlabel="layer", ylabel="mean cosine", ylim=(-0.05, 1.03))
    for i, norm in enumerate(data.norm.values):
        here, ratio = data.sel(norm=norm), data.norm_ratio.values
        fine = np.geomspace(1.02, ratio.max(), 60)
        exact = [cones.stationary_cosine(r * norm, norm) for r in fine]
        middle.plot(fine, exact, color=colors[3 + i], linewidth=0.9)
        middle.plot([], [], linewidth=0.9, label=f"‖v‖ = {norm:g}", **plotting.series(3 + i))
        middle.plot(ratio, here.stationary, linestyle="none", **plotting.series(3 + i))
        middle.plot(ratio, here.before_activation, ":", color=grey, linewidth=0.8)
    middle.plot([], [], ":", color=grey, linewidth=0.8, label="pre-activations")
    middle.plot(fine, cones.liang_threshold(fine), "--", color=grey, label="Theorem 1")
    middle.set(xscale="log", xlabel="ratio of norms r", ylabel="stationary cosine", ylim=(-0.35, 1.03))
    middle.set_yticks(np.linspace(0, 1, 6))
    middle.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    middle.minorticks_off()
    for i, width in enumerate(data.width.values):
        here, at = data.sel(width=width), data.share_cosine
        right.plot(at, here.share_predicted, "k-", linewidth=0.9, label=None if i else "predicted")
        look = plotting.series(i, color="black", linestyle="none", label=f"width {width}")
        right.errorbar(at, here.share, 4 * here.share_error, **look)
        right.plot(
            at, here.twice_the_variance, ":", color=grey, linewidth=1, zorder=0, label=None if i else "variance × 2"
        )
    theorem = float(cones.liang_threshold(SHARE_NORMS[0] / SHARE_NORMS[1]))
    right.axvline(theorem, 0, 0.6, color=grey, linestyle="--", label="Theorem 1")
    right.axvline(
        cones.stationary_cosine(*SHARE_NORMS), 0, 0.6, color="black", linestyle="-.", linewidth=0.6, label="stationary"
    )
    right.set(xlabel="cosine of the inputs", ylabel="share not raised", ylim=(-0.02, 1.75), yticks=np.linspace(0, 1, 6))
    plotting.legend_above(figure, left, ncols=8, columnspacing=0.8, handlelength=1.5)
    middle.legend(loc="lower left")
    right.legend(loc="upper left", ncols=2, columnspacing=0.8, handlelength=1.5, fontsize=plotting.SMALL)
    return plotting.lettered(figure)
