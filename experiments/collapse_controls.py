"""C7: dimensional collapse is neither necessary nor sufficient for the gap; the separation of the start decides."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from experiments._galleries import default_towers
from simulator.losses import normalize_rows
from simulator.theory.flows import mode_rates_sphere
from simulator.theory.towers import great_circle_frames

CLAIM = sim.Claim(
    id="C7",
    title="Collapse is neither necessary nor sufficient",
    statement=(
        "Isotropic clusters that start apart end in a gap orthogonal to their variation; collapsed clusters that start "
        "together end without one: the separation of the start decides, and its shape does not even enter the rate at "
        "which the variance along the gap falls."
    ),
    source="Chowers et al. 2026, Sec. 3; the rate for every shape: derived here, theory.md C2",
    assumes="small temperature, tight clusters, pairs that can be matched",
    expected=("holds",) * 7,
)
CAPTION = (
    "Starts of three shapes, apart (90°, solid) and together (0°, dashed), at τ = 0.01. Left: gap norm. Middle: "
    "variance along the gap over that along the gap to a random mean of equal length (exact null; grey line: not "
    "orthogonal). Right: accuracy of the midpoint rule along the gap on held-out rows (grey line: chance). Bands: ± 2 "
    "standard errors over seeds. Starts that stay together also find directions of little variance, but hardly any "
    "gap lies there. Bottom: amplitude of both modes along the gap of free tight clusters; black: the predicted law, "
    "the same for every shape; grey: rates multiplied by the start's share of variance along the gap."
)
APART, TOGETHER = np.pi / 2, 0.0
LAW_SHAPES = ("isotropic", "collapsed")
MODES = ("common", "opposite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shapes × {apart, together} × seeds on trained encoders, and the early law on free tight clusters."""

    encoders: tuple[Literal["MLP towers", "free table"], ...] = ("MLP towers", "free table")
    shapes: tuple[Literal["isotropic", "collapsed", "network"], ...] = ("isotropic", "collapsed", "network")
    rank: int = 2
    temperature: float = 0.01
    tightness: float = 40.0
    seeds: int = 8
    num_pairs: int = 2048
    table_pairs: int = 128
    steps: int = 1500
    eval_pairs: int = 512
    eval_points: int = 24
    law_angle: float = np.pi / 3
    law_temperature: float = 0.1
    law_size: float = 1e-5
    law_pairs: int = 48
    law_dimensions: int = 16
    seed: int = 0


QUICK = Config(
    encoders=("MLP towers",),
    shapes=("isotropic", "collapsed"),
    num_pairs=1024,
    steps=300,
    eval_pairs=256,
    eval_points=10,
)


def measure(config: Config, *, progress: bool = False):
    """Histories over (encoder, shape, angle, seed, step); amplitudes of the early law over (shape, mode, time)."""
    import xarray as xr

    keep = [f"{name}_{m}" for name in ("defect_ratio", "null_defect_ratio") for m in "xy"]
    keep += ["gap_norm", "separability", "recall_at_1_yx", "loss"]
    parts = []
    for encoder in config.encoders:
        # One sweep per shape: a start's shape is no number, so each is a program of its own.
        sweeps = [
            sim.sweep(
                _experiment(config, encoder, shape),
                over={"start.angle": [TOGETHER, APART]},
                seeds=config.seeds,
                key=jax.random.key(config.seed),
                progress=progress,
            )[keep].rename({"start.angle": "angle"})
            for shape in config.shapes
        ]
        parts.append(xr.concat(sweeps, xr.DataArray(list(config.shapes), dims="shape", name="shape")))
    data = xr.concat(parts, xr.DataArray(list(config.encoders), dims="encoder", name="encoder"))
    data = data.assign(_early_law(config))
    data.attrs = dict(rank=config.rank, temperature=config.temperature)
    return data


def _experiment(config: Config, encoder: str, shape: str) -> sim.Experiment:
    settings = default_towers(
        start=sim.Cones(APART, tightness=config.tightness, shape=shape, rank=config.rank),
        loss=sim.InfoNCE(config.temperature),
        steps=config.steps,
        eval_pairs=config.eval_pairs,
        eval_points=config.eval_points,
    )
    pairs = config.num_pairs
    if encoder == "free table":
        pairs = config.table_pairs
        table = sim.Table(settings["encoder_x"].embed_dim)
        settings |= dict(encoder_x=table, encoder_y=table, batch_size=pairs, eval_pairs=pairs)
    return sim.Experiment(data=sim.LatentPairs(pairs), **settings)


def _early_law(config: Config) -> dict:
    """Amplitudes of α + β and β − α under the free flow from an isotropic and a collapsed start, over their start."""
    rates = mode_rates_sphere(config.law_angle, config.law_temperature)
    rates = np.array([rates.common_along, rates.opposite_along])
    times = np.linspace(0.0, 2.0, 9) / np.max(np.abs(rates))
    measured, predicted, by_share = (np.empty((len(LAW_SHAPES), len(MODES), len(times))) for _ in range(3))
    for i, shape in enumerate(LAW_SHAPES):
        x, y, share = _tight_clusters(config, shape)
        with jax.enable_x64(True):
            path = sim.gradient_flow(
                x, y, times=times, temperature=config.law_temperature, max_step=times[-1] / 200,
                similarity="cosine", sphere=True,
            )  # fmt: skip
            path = [np.asarray(rows) for rows in path]
        amplitudes = np.array([_mode_amplitudes(*rows) for rows in zip(*path, strict=True)]).T
        measured[i] = amplitudes / amplitudes[:, :1]
        predicted[i] = np.exp(rates[:, None] * times[None, :])
        by_share[i] = np.exp(share * rates[:, None] * times[None, :])
    dims = ("law_shape", "mode", "time")
    arrays = dict(law_measured=measured, law_predicted=predicted, law_by_share=by_share)
    return {name: (dims, value) for name, value in arrays.items()} | dict(
        time=times, law_shape=list(LAW_SHAPES), mode=list(MODES)
    )


def _tight_clusters(config: Config, shape: str):
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


def _mode_amplitudes(x, y) -> tuple[float, float]:
    """Root mean square of α + β and β − α, deviations along the great circle through the two means."""
    frames = great_circle_frames(x.mean(axis=0), y.mean(axis=0))
    along_x, along_y = ((rows - rows.mean(axis=0)[None, :]) @ f[:, 0] for rows, f in zip((x, y), frames, strict=True))
    return np.sqrt(np.mean((along_x + along_y) ** 2)), np.sqrt(np.mean((along_y - along_x) ** 2))


def judge(data) -> list[sim.Row]:
    """Isotropic starts, apart: a gap that was not orthogonal becomes so. Collapsed starts, together: none. The law."""
    first, final = data.isel(step=0), data.isel(step=-1)

    def upper(values):
        """Largest over encoders of mean plus 4 standard errors over seeds: what a bound must hold for."""
        values = values.transpose("encoder", "seed").values
        return np.max(values.mean(axis=1) + 4 * values.std(axis=1, ddof=1) / values.shape[1] ** 0.5)

    def at(dataset, shape, angle):
        return dataset.sel(shape=shape, angle=angle)

    def misplaced(shape, angle):
        return sim.Check("absolute", 0.0, upper(1 - at(final, shape, angle).separability), 0.05)

    def compressed(ratio):
        here = at(final, "isotropic", APART)
        worst = max(upper(here[f"{ratio}_{m}"] / here[f"null_defect_ratio_{m}"]) for m in "xy")
        return sim.Check("absolute", 0.0, worst, 0.2)

    def starts_at(expected):
        ratio = _over_modalities(at(first, "isotropic", APART), "defect_ratio").transpose("encoder", "seed")
        error = ratio.std("seed", ddof=1) / ratio.sizes["seed"] ** 0.5
        return sim.Check("monte_carlo", expected.values, ratio.mean("seed").values, 4.0, error.values)

    def remains(shape, angle):
        ratio = at(final, shape, angle).gap_norm / at(final, shape, APART).gap_norm.mean("seed")
        return sim.Check("absolute", 0.0, upper(ratio), 0.15)

    def separable(angle):
        return sim.Check("absolute", 0.5, upper(at(final, "collapsed", angle).separability), 0.35)

    def law(prediction):
        return sim.Check("identity", prediction.values, data.law_measured.values, 1e-4)

    null = _over_modalities(at(first, "isotropic", APART), "null_defect_ratio").mean("seed")
    return [
        sim.Row(
            "isotropic, apart: variance along the gap at the start is its null's",
            starts_at(null),
            starts_at(np.maximum(null, 1.0)),
            "the mean direction's variance in place of the null",
        ),
        sim.Row(
            "isotropic, apart: variance along the final gap over its null",
            compressed("defect_ratio"),
            compressed("null_defect_ratio"),
            "a random direction in place of the gap",
        ),
        sim.Row(
            "isotropic, apart: share misplaced by the midpoint rule",
            misplaced("isotropic", APART),
            misplaced("isotropic", TOGETHER),
            "the same start together",
        ),
        sim.Row(
            "isotropic, together: final gap over that of the start apart",
            remains("isotropic", TOGETHER),
            remains("isotropic", APART),
            "the same start apart",
        ),
        sim.Row(
            "collapsed, together: final gap over that of the start apart",
            remains("collapsed", TOGETHER),
            remains("collapsed", APART),
            "the same start apart",
        ),
        sim.Row(
            "collapsed, together: share placed by the midpoint rule",
            separable(TOGETHER),
            separable(APART),
            "the same start apart",
        ),
        sim.Row(
            "fall of both modes along the gap, isotropic and collapsed, one law",
            law(data.law_predicted),
            law(data.law_by_share),
            "rates times the start's share of variance along the gap",
        ),
    ]


def _over_modalities(dataset, name: str):
    return 0.5 * (dataset[f"{name}_x"] + dataset[f"{name}_y"])


def draw(data):
    """Gap norm, compression and separability per encoder; below, the early law."""
    import matplotlib.pyplot as plt

    encoders = list(data.encoder.values)
    panels = [[f"{kind}{i}" for kind in ("gap", "ratio", "rule")] for i in range(len(encoders))]
    figure, axes = plt.subplot_mosaic(
        [*panels, ["law"] * 3], figsize=(_figures.TWO_COLUMNS, 1.9 * len(encoders) + 2.0), layout="constrained"
    )
    later = data.isel(step=slice(1, None))
    steps = later.step.values
    for i, encoder in enumerate(encoders):
        gap, ratio, rule = (axes[f"{kind}{i}"] for kind in ("gap", "ratio", "rule"))
        for color, shape in zip(_figures.COLORS, data["shape"].values, strict=False):
            for angle, style in ((APART, "-"), (TOGETHER, "--")):
                here = later.sel(encoder=encoder, shape=shape, angle=angle).transpose("seed", "step", ...)
                compression = _over_modalities(here, "defect_ratio") / _over_modalities(here, "null_defect_ratio")
                label = f"{shape}, {'apart' if angle == APART else 'together'}"
                for axis, values in ((gap, here.gap_norm), (ratio, np.log10(compression)), (rule, here.separability)):
                    _figures.band(axis, steps, values.values, color, label)
                    axis.lines[-1].set_linestyle(style)
        ratio.axhline(0.0, color=_figures.CONTROL, linewidth=0.8)
        rule.axhline(0.5, color=_figures.CONTROL, linewidth=0.8)
        gap.set(xscale="log", ylabel=f"{encoder}\ngap norm G")
        ratio.set(xscale="log", ylabel="log₁₀ (variance\nalong gap / null)")
        rule.set(xscale="log", ylabel="accuracy of the\nmidpoint rule", ylim=(0.3, 1.03))
        for axis in (gap, ratio, rule):
            axis.set(xlabel="step" if i == len(encoders) - 1 else "")
    axis, time = axes["law"], data.time.values
    for j, mode in enumerate(data.mode.values):
        axis.plot(time, data.law_predicted.isel(law_shape=0, mode=j), color="black", linewidth=0.8)
        for i, (shape, marker) in enumerate(zip(data.law_shape.values, ("o", "x"), strict=True)):
            color = _figures.COLORS[i]
            here = data.isel(law_shape=i, mode=j)
            axis.plot(time, here.law_measured, marker, color=color, label=f"{shape}, measured" if j == 0 else None)
            label = "rate × share of variance along the gap" if i + j == 0 else None
            axis.plot(
                time, here.law_by_share, color=_figures.CONTROL, linestyle=("--", ":")[i], linewidth=0.8, label=label
            )
        end = float(data.law_predicted.isel(law_shape=0, mode=j)[-1])
        axis.annotate(mode, (time[-1], end), xytext=(4, 0), textcoords="offset points", va="center")
    axis.plot([], [], color="black", linewidth=0.8, label="predicted")
    axis.set(
        xlabel="time (units of the flow)",
        ylabel="amplitude / start",
        yscale="log",
        xlim=(None, 1.1 * time[-1]),
        ylim=(0.05, 1.3),
    )
    axis.legend(ncols=2)
    figure.legend(*axes["gap0"].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
