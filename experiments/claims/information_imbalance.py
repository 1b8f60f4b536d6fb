"""P6: more information that only one modality has: a larger gap where the temperature is learned, not where it is fixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import never_above, standard_error
from experiments.setups.trained_points import KEPT, retrieval, train_points
from experiments.setups.trends import ends, less_than_half, spread, trend, unbiased_gap
from simulator.settings import replace_field

CLAIM = sim.Claim(
    id="P6",
    title="Information imbalance",
    summary="What only one modality sees widens the gap.",
    statement=(
        "The more information one modality has that the other lacks, the larger the gap that training leaves, in norm and "
        "relative to the distances of the rows; few coordinates of the embedding carry it."
    ),
    source="Schrodi et al. 2025, arXiv 2404.07983",
    assumes="a temperature that is learned, as in CLIP, and a start in two cones; equally many steps",
    expected={
        "gap": "holds if",
        "relative gap": "holds",
        "gap without cones": "holds",
        "few coordinates": "refuted",
        "balanced": "refuted",
    },
)
PRECISION = "float32 training"
CAPTION = (
    "Against the standard deviation of what only the queries see (1 is that of a shared latent), after training: "
    "(a) gap, (b) relative gap, (c) learned or fixed temperature, (d) recall@1; also with as much that only the "
    "gallery sees. Grey: before training (near miss). (e) What the two largest coordinates hold of the squared gap. "
    "Bars: ± 2 standard errors over 12 seeds. The gap is that of the population: the sampling error of the held-out "
    "pairs is taken off."
)
LARGEST = 2  # "few" coordinates
SETTINGS = ("learned τ, two cones", "fixed τ, two cones", "fixed τ, no cone", "learned τ, two cones, both sides")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Scales of the private latents × {learned τ, fixed τ, fixed τ without cones, learned τ and both private} × seeds."""

    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    seeds: int = 12
    private_dim: int = 16
    noise: float = 0.1
    num_pairs: int = 2048
    width: int = 48
    embed_dim: int = 32
    initial_temperature: float = 0.07
    fixed_temperature: float = 0.02
    batch_size: int = 32
    learning_rate: float = 2e-3
    steps: int = 1500
    eval_pairs: int = 256
    seed: int = 8
    design_seeds: tuple[int, ...] = (9,)


QUICK = Config(scales=(0.0, 1.0, 4.0), seeds=8, steps=1000)


def measure(config: Config, *, progress: bool = False):
    """Final gap, relative gap, temperature, recall and the largest coordinates' share over (setting, seed, scale)."""
    import xarray as xr

    tower = sim.MLP(config.width, embed_dim=config.embed_dim)
    experiment = sim.Experiment(
        data=sim.LatentPairs(config.num_pairs, private_dim_y=config.private_dim, noise=config.noise),
        encoder_x=tower,
        encoder_y=tower,
        start=sim.Cones(),
        loss=sim.InfoNCE(sim.Learned(config.initial_temperature)),
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        steps=config.steps,
        eval_pairs=config.eval_pairs,
        eval_points=2,
    )
    fixed = dataclasses.replace(experiment, loss=sim.InfoNCE(config.fixed_temperature))
    balanced = replace_field(experiment, "data.private_dim_x", config.private_dim)
    many = len(config.scales)
    # No cone: means of a hundredth of the spread, along one direction for both.
    starts = {"start.angle": (np.pi / 2,) * many + (0.0,) * many, "start.tightness": (20.0,) * many + (0.01,) * many}
    parts = []
    for here, count in ((experiment, 1), (fixed, 2), (balanced, 1)):
        points = {"data.private_scale_y": config.scales * count}
        if here is balanced:
            points["data.private_scale_x"] = config.scales
        points |= {path: values[: many * count] for path, values in starts.items()}
        found, _ = train_points(
            here, points, seeds=config.seeds, seed=config.seed, keep=(*KEPT, "gap", "temperature"), progress=progress
        )
        squares = np.sort(found.gap.values**2, axis=-1)
        values = dict(
            gap=unbiased_gap(found), rmg=found.rmg, temperature=found.temperature, recall=retrieval(found),
            largest=(found.gap_norm.dims, squares[..., -LARGEST:].sum(axis=-1) / squares.sum(axis=-1)),
        )  # fmt: skip
        found = xr.Dataset(values)
        start = found[["gap", "rmg"]].isel(step=0, drop=True).rename(gap="start_gap", rmg="start_rmg")
        found = found.isel(step=-1, drop=True).merge(start)
        parts += [found.isel(point=slice(i * many, (i + 1) * many)) for i in range(count)]
    data = xr.concat(parts, xr.DataArray(list(SETTINGS), dims="setting", name="setting"))
    data = data.rename(point="scale").assign_coords(scale=list(config.scales))
    data.attrs = dict(embed_dim=config.embed_dim)
    return data


def judge(data) -> list[sim.Row]:
    """Trends of the gap and the relative gap, and whether few coordinates carry it."""
    data, scale = data.transpose("setting", "seed", "scale"), data.scale.values

    def row(name, label, setting, what, control, near_miss, **outside):
        values = data[what].sel(setting=setting).values
        return sim.Row(
            name,
            trend(values, scale, +1),
            trend(control, scale, +1),
            near_miss,
            label=f"{setting}: {label} rises with what only the queries see ({ends(values, scale)})",
            **outside,
        )

    learned, fixed, plain, balanced = SETTINGS
    start = data.sel(setting=learned)
    temperature = data.temperature.sel(setting=learned)
    other = data.gap.sel(setting=fixed)
    effect = (
        f"the learned temperature ends at {spread(temperature[:, 0])} and {spread(temperature[:, -1])}; fixed at "
        f"{float(data.temperature.sel(setting=fixed).mean()):g}, the gap goes from {spread(other[:, 0])} to {spread(other[:, -1])}"
    )
    rise = lambda setting: np.subtract(*data.gap.sel(setting=setting).values.T[[-1, 0]])
    share, d = data.largest.sel(setting=learned)[:, -1].values, data.attrs["embed_dim"]
    random = random_shares(len(share), d, seed=0)
    return [
        row(
            "gap",
            "gap",
            learned,
            "gap",
            start.start_gap.values,
            "before training",
            outside=trend(other.values, scale, +1),
            condition="the temperature is learned",
            effect=effect,
        ),
        row("relative gap", "relative gap (RMG)", learned, "rmg", start.start_rmg.values, "before training"),
        row("gap without cones", "gap", plain, "gap", other.values, "a start in two cones"),
        sim.Row(
            "few coordinates",
            most(share),
            most(random),
            "random directions",
            label=f"{learned}: {LARGEST} of {d} coordinates carry most of the gap",
            condition="they carry about what the largest coordinates of a random direction do",
            effect=f"share of G² at {scale[-1]:g}: {spread(share)}; of a random direction "
            f"{spread(random_shares(10_000, d, seed=1))}",
        ),
        sim.Row(
            "balanced",
            less_than_half(rise(balanced), rise(learned)),
            less_than_half(rise(learned), rise(learned)),
            "nothing that only the gallery sees",
            label=f"{learned}: less than half of that rise is left with as much that only the gallery sees",
            condition="it is what either side lacks that counts, not the imbalance",
            effect=f"rise of the gap from {scale[0]:g} to {scale[-1]:g}: {spread(rise(learned))} where only the queries see more, "
            f"{spread(rise(balanced))} where both do",
        ),
    ]


def random_shares(count: int, dimensions: int, *, seed: int):
    """What the largest coordinates hold of directions that are uniform on the sphere, [count]."""
    squares = np.sort(np.random.default_rng(seed).normal(size=(count, dimensions)) ** 2, axis=1)
    return squares[:, -LARGEST:].sum(axis=1) / squares.sum(axis=1)


def most(shares) -> sim.Check:
    """By how much the mean less 4 standard errors falls short of a half: that they carry most must be shown."""
    return never_above(0.5 - float(np.mean(shares) - 4 * standard_error(shares)), 1e-3)


def draw(data):
    """Gap, relative gap, temperature, recall and the largest coordinates against the scale of the private latents."""
    import matplotlib.pyplot as plt

    layout: list[Any] = [["gap", "rmg", "temperature"], ["recall", "largest", "."]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(plotting.TWO_COLUMNS, 4.0), layout="constrained")
    data, scale = data.transpose("setting", "seed", "scale"), data.scale.values
    labels = dict(gap="gap norm G", rmg="relative gap", temperature="temperature τ", recall="recall@1")
    labels["largest"] = f"share of G²\nin {LARGEST} coordinates"
    for name, label in labels.items():
        for i, setting in enumerate(SETTINGS):
            plotting.points(axes[name], scale, data[name].sel(setting=setting).values, setting, **plotting.series(i))
        axes[name].set(ylabel=label, ylim=(0, None), xlabel="private scale")
    for name in ("gap", "rmg"):
        start = data[f"start_{name}"].sel(setting=SETTINGS[0]).mean("seed")
        axes[name].plot(scale, start, "--", color=plotting.CONTROL, linewidth=0.8, label="before training")
        axes[name].set_ylim(0, 1.05 * max(float(start.max()), axes[name].get_ylim()[1]))
    null = random_shares(10_000, data.attrs["embed_dim"], seed=1).mean()
    axes["largest"].axhline(null, color="black", linestyle="--", linewidth=0.8, label="random direction")
    axes["largest"].set_ylim(0, 1)
    axes["recall"].set_ylim(0, 1.05)
    plotting.legend_above(figure, axes["gap"], axes["largest"], ncols=3)
    return plotting.lettered(figure)
