"""P7: two towers that see the same data, with no cones and no wrong pairs, grow a gap of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import worst
from experiments.setups.trained_points import start_params, train_points
from experiments.setups.trends import less_than_half, spread, trend, unbiased_gap

CLAIM = sim.Claim(
    id="P7",
    title="Contrastive gap without modalities",
    summary="Two encoders of the same data end with a gap too.",
    statement=(
        "Two encoders of the same data, without wrong pairs and without a cone at the start, end with a gap; it is larger "
        "for small batches, after equally many steps, and in many dimensions."
    ),
    source="Fahim et al. 2024, arXiv 2405.18570",
    assumes="ReLU towers, small temperature, equally many steps; the gap is still moving when training stops",
    expected={
        "appears": "holds if",
        "batch size": "holds",
        "equal pairs": "holds",
        "dimension": "holds",
        "two cones": "holds",
    },
)
PRECISION = "float32 training"
CAPTION = (
    "Two towers on the same observations. (a) The gap along training at the smallest batch and the largest "
    "dimension, without cones at a small and a large temperature, from two cones, and from one for both (grey). (b, "
    "c) The gap at the end without cones at the small temperature, against the batch size at equal numbers of steps "
    "and of pairs seen, and against the dimension; grey: near misses, the gap after fewer steps. Bars and bands: ± "
    "2 standard errors over 16 seeds. The gap is that of the population: the sampling error of the held-out pairs "
    "is taken off."
)
# A mean of the raw outputs of a hundredth of their spread is no cone, and both means point the same way.
SETTINGS = ("no cone, small τ", "no cone, large τ", "two cones, small τ", "one cone, small τ")
BEGUN, EARLY = 2, -3  # recorded steps of two near misses: the 4th, and a sixteenth of the training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Batch sizes × dimensions without cones; in the largest dimension also a large temperature, and two cones or one."""

    batch_sizes: tuple[int, ...] = (8, 32, 128)
    embed_dims: tuple[int, ...] = (4, 16, 64)
    small_temperature: float = 0.02
    large_temperature: float = 0.1
    seeds: int = 16
    num_pairs: int = 2048
    dim: int = 32
    width: int = 48
    learning_rate: float = 2e-3
    steps: int = 1024
    eval_points: int = 7  # powers of 4: batches that differ by 4 are measured at equal numbers of pairs
    eval_pairs: int = 256
    seed: int = 3
    design_seeds: tuple[int, ...] = (2,)


QUICK = Config(embed_dims=(4, 64))


def measure(config: Config, *, progress: bool = False):
    """Gap of the population over (batch_size, seed, step): without cones by embed_dim, and for the other settings."""
    import xarray as xr

    dims, small, large = config.embed_dims, config.small_temperature, config.large_temperature
    widest = max(dims)
    points = {
        "start.angle": (0.0,) * (len(dims) + 1) + (np.pi / 2, 0.0),
        "start.tightness": (0.01,) * (len(dims) + 1) + (20.0, 20.0),
        "loss.temperature": (small,) * len(dims) + (large, small, small),
    }
    tower = sim.MLP(config.width, embed_dim=widest)
    experiment = sim.Experiment(
        data=sim.LatentPairs(config.num_pairs, dim_x=config.dim, dim_y=config.dim, same_observation=True),
        encoder_x=tower,
        encoder_y=tower,
        start=sim.Cones(),
        learning_rate=config.learning_rate,
        steps=config.steps,
        eval_pairs=config.eval_pairs,
        eval_points=config.eval_points,
    )
    parts = []
    for batch_size in config.batch_sizes:
        here = dataclasses.replace(experiment, batch_size=batch_size)
        settings: dict[str, Any] = dict(seeds=config.seeds, seed=config.seed)
        params = start_params(here, points, **settings)
        params = narrowed(params, np.repeat((*dims, widest, widest, widest), config.seeds))
        part, _ = train_points(here, points, params=params, progress=progress, **settings)
        gap = unbiased_gap(part)
        by_dim = gap.isel(point=slice(0, len(dims))).rename(point="embed_dim").assign_coords(embed_dim=list(dims))
        others = (
            gap.isel(point=slice(len(dims) - 1, None)).rename(point="setting").assign_coords(setting=list(SETTINGS))
        )
        parts.append(xr.Dataset(dict(gap=by_dim, widest_gap=others)))
    data = xr.concat(parts, xr.DataArray(list(config.batch_sizes), dims="batch_size", name="batch_size"))
    data.attrs = dict(small_temperature=small, large_temperature=large)
    return data


def narrowed(params, embed_dims):
    """Towers [R] that use only their first coordinates, embed_dims [R] of them.

    Where a coordinate of both modalities is 0 the gradient of the loss along it is 0, and Adam leaves it there: the
    same program trains towers of every smaller dimension.
    """

    def narrow(path, leaf):
        if "out" not in jax.tree_util.keystr(path):
            return leaf
        kept = np.arange(leaf.shape[-1])[None, :] < embed_dims[:, None]
        return leaf * (kept if leaf.ndim == 2 else kept[:, None, :])

    return jax.tree_util.tree_map_with_path(narrow, params)


def judge(data) -> list[sim.Row]:
    """The gap appears; its two trends at equal steps; and what two cones leave."""
    gap = data.gap.transpose("batch_size", "embed_dim", "seed", "step")
    batches, dims, steps = (data[name].values for name in ("batch_size", "embed_dim", "step"))
    end, equal_pairs = gap.isel(step=-1), at_equal_pairs(gap)

    def row(name, label, curves, at, sign, near_misses, near_miss, **outside):
        """The worst of the curves [seed, at] speaks for all."""
        check = lambda curves: worst([trend(curve, at, sign) for curve in curves])
        return sim.Row(name, check(curves), check(near_misses), near_miss, label=label, **outside)

    def fall(values):
        """From the smallest to the largest batch in the largest dimension, seed by seed."""
        here = values.sel(widest).transpose("seed", "batch_size").values
        return here[:, 0] - here[:, -1]

    def ends(values, name):
        low, high = values[name].values[[0, -1]]
        return f"{spread(values.sel({name: low}))} at {low:g}, {spread(values.sel({name: high}))} at {high:g}"

    corner = data.widest_gap.sel(batch_size=batches.min()).transpose("setting", "seed", "step")
    grown, hot, cones, cone = (corner.sel(setting=name) for name in SETTINGS)
    widest, smallest = dict(embed_dim=dims.max()), dict(batch_size=batches.min())
    return [
        row(
            "appears",
            f"no cone: gap grows along training at batch {batches.min()}, d = {dims.max()} "
            f"({spread(grown[:, 0])} at the start, {spread(grown[:, -1])} at step {steps[-1]})",
            [grown.values],
            steps,
            +1,
            [data.widest_gap.sel(batch_size=batches.max(), setting=SETTINGS[0]).transpose("seed", "step").values],
            f"batches of {batches.max()}, which close it again",
            outside=trend(hot.values, steps, +1),
            condition=f"the temperature is small: {data.attrs['small_temperature']:g}, not {data.attrs['large_temperature']:g}",
            effect=f"at {data.attrs['large_temperature']:g} the gap goes from {spread(hot[:, 0])} to {spread(hot[:, -1])}",
        ),
        row(
            "batch size",
            f"no cone: gap falls with the batch size at equal steps, every dimension (d = {dims.max()}: "
            f"{ends(end.sel(widest), 'batch_size')})",
            list(end.transpose("embed_dim", "seed", "batch_size").values),
            batches,
            -1,
            list(gap.isel(step=EARLY).transpose("embed_dim", "seed", "batch_size").values),
            f"after {steps[EARLY]} steps in place of {steps[-1]:,}",
        ),
        sim.Row(
            "equal pairs",
            less_than_half(fall(equal_pairs), fall(end)),
            less_than_half(fall(end), fall(end)),
            "equal steps in place of equal pairs",
            label=f"no cone, d = {dims.max()}: less than half of that fall is left where all batches have seen as many pairs",
            condition="most of it is the number of pairs seen, not the size of the batch",
            effect=f"fall from batch {batches.min()} to {batches.max()}: {spread(fall(end))} at equal steps, "
            f"{spread(fall(equal_pairs))} at equal numbers of pairs ({ends(equal_pairs.sel(widest), 'batch_size')})",
        ),
        row(
            "dimension",
            f"no cone: gap rises with the dimension, every batch size (batch {batches.min()}: "
            f"{ends(end.sel(smallest), 'embed_dim')})",
            list(end.transpose("batch_size", "seed", "embed_dim").values),
            dims,
            +1,
            list(gap.isel(step=BEGUN).transpose("batch_size", "seed", "embed_dim").values),
            f"after {steps[BEGUN]} steps in place of {steps[-1]:,}",
        ),
        row(
            "two cones",
            f"two cones leave more at batch {batches.min()}, d = {dims.max()} ({spread(grown[:, -1])} without, "
            f"{spread(cones[:, -1])} with)",
            [np.stack([grown[:, -1], cones[:, -1]], axis=1)],
            np.array([0, 1]),
            +1,
            [np.stack([grown[:, -1], cone[:, -1]], axis=1)],
            "one cone for both",
        ),
    ]


def at_equal_pairs(gap):
    """The gap at the step by which every batch size has seen as many pairs as the smallest has at the end."""
    import xarray as xr

    batches = gap.batch_size.values
    seen = gap.step.values[-1] * batches.min()
    parts = [gap.sel(batch_size=batch, step=seen // batch).drop_vars("step") for batch in batches]
    return xr.concat(parts, "batch_size")


def draw(data):
    """The gap along training, against the batch size, and against the dimension."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.5), layout="constrained")
    batches, dims = data.batch_size.values, data.embed_dim.values
    corner = data.widest_gap.sel(batch_size=batches.min()).transpose("setting", "seed", "step")
    for i, name in enumerate(SETTINGS):
        look = plotting.series(i) | (dict(color=plotting.CONTROL) if name == SETTINGS[-1] else {})
        plotting.band(axes[0], data.step.values, corner.sel(setting=name).values, label=name, **look)
    axes[0].set(xlabel="step", ylabel="gap norm G", ylim=(0, 1.9), title=f"batch {batches.min()}, d = {dims.max()}")
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_xlim(0, data.step.values[-1])
    axes[0].legend(loc="center", bbox_to_anchor=(0.5, 0.5))
    end, equal = data.gap.isel(step=-1), at_equal_pairs(data.gap)
    for i, dim in enumerate(dims):
        curve, look = end.sel(embed_dim=dim).transpose("seed", "batch_size").values, plotting.series(5 - i)
        plotting.points(axes[1], batches, curve, **look)
        axes[1].plot(batches, equal.sel(embed_dim=dim).mean("seed"), ":", color=look["color"], linewidth=1)
        axes[1].plot([], [], label=f"d = {dim}", **look | dict(linestyle="none"))
        if i == len(dims) - 1:
            early = data.gap.isel(step=EARLY).sel(embed_dim=dim).mean("seed")
            label = f"after {int(data.step[EARLY])} steps"
            axes[1].plot(batches, early, "--", color=plotting.CONTROL, linewidth=0.8, label=label)
    for style, label in (("-", "equal steps"), (":", "equal pairs")):
        axes[1].plot([], [], style, color="black", label=label)
    for i, batch in enumerate(batches):
        curve = end.sel(batch_size=batch).transpose("seed", "embed_dim").values
        plotting.points(axes[2], dims, curve, f"batch {batch}", **plotting.series(i, color="black"))
        if i == 0:
            begun = data.gap.isel(step=BEGUN).sel(batch_size=batch).mean("seed")
            label = f"after {int(data.step[BEGUN])} steps"
            axes[2].plot(dims, begun, "--", color=plotting.CONTROL, linewidth=0.8, label=label)
    highest = 1.8 * float(end.mean("seed").max())
    ends = dict(ylabel="gap norm G at the end", ylim=(0, highest), title="no cone, small τ")
    axes[1].set(xlabel="batch size", **ends)
    axes[2].set(xlabel="dimension d", **ends)
    for axis, ticks in ((axes[1], batches), (axes[2], dims)):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.legend(
            loc="upper right" if axis is axes[1] else "upper left",
            ncols=2 if axis is axes[1] else 1,
            columnspacing=0.8,
            handlelength=1.5,
        )
    return plotting.lettered(figure)
