"""The whole story in one figure, from stored results: emergence, temperature, robustness, real embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import plotting
from experiments.report.animations import SIDE_COLORS, draw_sphere, view_of

STEMS = ("emergence", "gap_emergence", "robustness_monotone", "real_embeddings")
CAPTION = (
    "Above: one run of towers with three outputs, trained from two cones at a right angle. Within some sixty steps "
    "both modalities lie on circles around the gap vector (arrow); later the gap is still there at τ = 0.01 and "
    "closed at τ = 0.1 (in so few dimensions it closes in the end at 0.01 too). (a, b) The same in 32 dimensions: "
    "gap norm, and variance along the gap over the mean direction's (also for a random mean of equal length); "
    "bands: ± 2 standard errors over seeds. (c) Closing the gap of trained towers (α = 1) buys robustness to noise "
    "on the gallery and changes no clean decision; nothing fitted, ± 4 standard errors over draws; beyond closure "
    "it is lost again, and noise on the queries is not affected (grey, σ = 0.09). (d) The same on CLIP (10 and 500 "
    "captions, COCO's 80 and ImageNet's 1,000 class prompts; the queries are 500 COCO images throughout, each "
    "judged by what the other half fitted; σ² = 0.0005): where the classes leave nothing orthogonal to move, one "
    "exact scalar per class still buys it, with no decision changed. Bars: exact, or ± 2 standard errors over "
    "draws."
)
TEMPERATURES = ("black", plotting.COLORS[3], plotting.COLORS[2])  # small to large; blue and red are the modalities
RULES = {"as it is": "open", "complement": "closed along g'", "centred": "one scalar per class"}
HEIGHT = 4.1


def draw(results: dict[str, Any]):
    """Two columns wide: spheres above, curves below."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(plotting.TWO_COLUMNS, HEIGHT))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 0.53))  # of the curves; the spheres have fixed places above
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1.05, 1.15))
    _emergence(*axes[:2], results["gap_emergence"])
    _robustness(axes[2], results["robustness_monotone"])
    _real(axes[3], results["real_embeddings"])
    _spheres(figure, results["emergence"])
    return plotting.lettered(figure)


def snapshots(data) -> list[tuple[int, int, str]]:
    """(temperature, step, title) of the four spheres: the start, the small temperature after some sixty steps, and both
    temperatures once the gap of the large one has closed."""
    steps, gap = data.step.values, data.gap_norm.values
    flat = int(np.searchsorted(steps, 60))
    late = int(np.argmax((gap[1] < 0.02) & (steps >= 800)))
    names = [f"τ = {t:g}" for t in data.temperature.values]
    return [
        (0, 0, "start: two cones"),
        (0, flat, f"step {steps[flat]}: orthogonal gap"),
        (0, late, f"step {steps[late]:,}, {names[0]}"),
        (1, late, f"step {steps[late]:,}, {names[1]}"),
    ]


def _spheres(figure, data):
    size = 0.43  # of the figure's height
    width = size * HEIGHT / plotting.TWO_COLUMNS
    for number, (i, k, title) in enumerate(snapshots(data)):
        middle = 0.125 + 0.25 * number
        axis = figure.add_axes((middle - width / 2, 0.525, width, size))
        x, y = (data[m].isel(temperature=i).values for m in "xy")
        draw_sphere(axis, x[k], y[k], view_of(x[0], y[0]), size=6.0)
        figure.text(middle, 0.965, title, ha="center")
        if number == 0:
            for text, color, at in (("gallery", SIDE_COLORS[0], -1.05), ("queries", SIDE_COLORS[1], 0.62)):
                axis.text(at, -1.05, text, color=color, fontsize=7)


def _emergence(left, right, data):
    """Gap norm and compression along training, synthetic pairs, cones at a right angle."""
    here = data.sel(data="synthetic").sel(angle=np.pi / 2, method="nearest").isel(step=slice(1, None))
    for color, tau in zip(TEMPERATURES, data.temperature.values, strict=False):
        run = here.sel(temperature=tau)
        run = run.transpose("seed", "step", ...)
        plotting.band(left, run.step.values, run.gap_norm.values, color, f"τ = {tau:g}")
        ratio = 0.5 * (run.defect_ratio_x + run.defect_ratio_y)
        plotting.band(right, run.step.values, np.log10(ratio.values), color, f"τ = {tau:g}")
        null = np.log10(0.5 * (run.null_defect_ratio_x + run.null_defect_ratio_y)).mean("seed")
        right.plot(run.step.values, null, "--", color=color, linewidth=0.7)
    left.set(xscale="log", xlabel="step", ylabel="gap norm G", ylim=(-0.05, 1.65))
    right.plot([], [], "k--", linewidth=0.7, label="random mean")
    right.set(xscale="log", xlabel="step", ylabel="log₁₀ compression", ylim=(None, 2.3))
    right.legend(loc="upper left", borderaxespad=0)
    left.legend(loc="lower left")


def _robustness(axis, data):
    """Robustness of ten classes against closing, every σ, and noise on the queries."""
    here = data.isel(gallery=0)
    color = SIDE_COLORS[0]  # of the gallery, which the noise is on
    for sigma in data.sigma.values:
        curve = here.sel(sigma=sigma)
        axis.plot(data.alpha, curve.predicted, color=color)
        axis.errorbar(data.alpha, curve.measured, 4 * curve.standard_error, color=color, fmt="o", markersize=2.5)
        at = float(curve.predicted.sel(alpha=1.0))
        axis.annotate(
            f"σ = {sigma:g}", (1, at), xytext=(0, -12), textcoords="offset points", color=color, ha="center", fontsize=7
        )
    axis.plot(data.alpha, here.query_noise, ":", color=plotting.CONTROL)
    at = float(here.query_noise[0])
    axis.annotate(
        "noise on queries",
        (1, at),
        xytext=(0, 12),
        textcoords="offset points",
        color=plotting.CONTROL,
        ha="center",
        fontsize=7,
    )
    axis.plot([], [], color=color, label="exact")
    axis.plot([], [], "o", color=color, markersize=2.5, label="measured")
    axis.set(xlabel="closing α", ylabel="robustness", ylim=(0.4, 1.0), xticks=[0, 1, 2])
    axis.legend(loc="lower center", borderaxespad=0, handlelength=1)


def _real(axis, data):
    """Robustness of CLIP's galleries by rule."""
    names = [f"{int(str(name).split()[-1]):,}" for name in data.gallery.values]
    for i, ((rule, label), color) in enumerate(
        zip(RULES.items(), (plotting.CONTROL, *plotting.COLORS[4:]), strict=True)
    ):
        here = data.sel(rule=rule)
        at = np.arange(len(names)) + 0.27 * (i - 1)
        axis.bar(at, here.robustness, 0.27, color=color, label=label)
        axis.errorbar(at, here.robustness, 2 * here.error, color="black", linestyle="none", linewidth=0.8)
    axis.set(xlabel="classes K", ylabel="robustness, CLIP", ylim=(0, 1.18), yticks=[0, 0.5, 1])
    axis.set_xticks(range(len(names)), names)
    axis.legend(loc="upper right", borderaxespad=0, handlelength=1)


def draw_all(out: Path | str, folder: Path | str | None = None) -> list[Path]:
    """Write story.pdf and story.png under `out` if `folder` (None: `out`) holds the results."""
    from simulator.storage.results import load_dataset

    out, folder = Path(out), Path(out if folder is None else folder)
    if not all((folder / f"{stem}.nc").exists() for stem in STEMS):
        return []
    results = {stem: load_dataset(folder / f"{stem}.nc") for stem in STEMS}
    return plotting.save_figure(draw, results, out / "story")
