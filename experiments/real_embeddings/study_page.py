"""The figure and the table of the real embeddings."""

from __future__ import annotations

import numpy as np

from experiments import plotting
from experiments.catalogue import table as aligned
from experiments.claims.compensated_closing import COLORS, draw_trade_off
from experiments.claims.linear_storage import SERIES, STORAGES, draw_library
from experiments.real_embeddings.study import LARGEST, RULES, SCORINGS, SIDES, VARIANCE

BLUE, RED, GREEN, _, _, SKY = plotting.COLORS
COLOR_OF = dict(zip(RULES, ("black", BLUE, RED, plotting.CONTROL, GREEN, GREEN, GREEN, SKY), strict=True))
FAINT = {"centred, r = 8": 0.6, "centred, r = 32": 0.3}
CAPTION = (
    "CLIP ViT-B/32 (unit rows) on MSCOCO, 500 images as queries, and VideoCLIP; noise of σ² = 0.0005 per coordinate "
    "on the rows. (a) Each rule on four galleries, fitted on one half of the images and judged on the other, both "
    "ways (bars: ± 4 standard errors over draws, at least 40, where measured; exact otherwise; optimal: at equal "
    "power of the stored rows; grey: the scoring of the centred rules alone); in the other panels the images asked "
    "are those fitted. (b) Decisions changed against robustness gained. (c) Robustness against the shift along g' "
    "by scoring and side, and of the queries towards their mean, ± 4 standard errors over 40 draws. (d) Closing, ± "
    "4 standard errors over 20 random subsets of the captions. (e) Answers kept after rounding against bytes per "
    "row; a scale per row in random bases. (f) VideoCLIP, ± 4 standard errors over 60 random subsets of ten texts: "
    "answers kept before and after closing; grey: with the step as it was. The [min, max] range loses because one "
    "coordinate sets everybody's step."
)


def draw(data):
    """Six panels."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(plotting.TWO_COLUMNS, 7.6), layout="constrained")
    (bars, trade), (sides, sizes), (storage, video) = axes
    _draw_rules(bars, data)
    here = data.sel(gallery=LARGEST)
    points = {name: data[f"trade_off_{name}"].values[:, :2] for name in ("soft", "top r")}
    for rule in ("complement", "compensated", "centred", "optimal"):
        points[rule] = np.array([[0.0, float(here.robustness.sel(rule=rule))]])
    draw_trade_off(trade, points, float(here.robustness.sel(rule="as it is")))
    trade.set_title("trade-off, K = 500")
    trade.legend(loc="upper right")
    _draw_sides(sides, data)
    for i, size in enumerate(data["size"].values):
        curve, marker = data.sel(size=size), plotting.MARKERS[i]
        closed, error = curve.base + curve.gain, np.hypot(curve.base_error, curve.gain_error)
        sizes.errorbar(data.variance, curve.base, 4 * curve.base_error, color="black", fmt=f"{marker}--")
        sizes.errorbar(data.variance, closed, 4 * error, color=BLUE, fmt=f"{marker}-")
        sizes.plot([], [], f"k{marker}", label=f"K = {size}")
    for style, color, label in (("--", "black", "as it is, α = 0"), ("-", BLUE, "complement, α = 1")):
        sizes.plot([], [], style, color=color, label=label)
    sizes.set(title="random captions", xscale="log", xlabel="σ² per coordinate", ylabel="robustness", ylim=(0, 0.95))
    sizes.legend(loc="upper right")
    order = np.argsort(data.bytes_per_row.values, kind="stable")
    for name in STORAGES:
        kept = data.rounded.sel(storage=name)[order]
        look = plotting.series(SERIES[name], linewidth=0.8)
        storage.plot(data.bytes_per_row[order], kept, **look)
        storage.plot([], [], label=name, **look | dict(linestyle="none"))
    draw_library(storage, data, 512)
    storage.set(title="low precision, K = 500", xlabel="bytes per row", ylabel="share of answers kept")
    storage.set(ylim=(-0.15, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    storage.set_xscale("log", base=2)
    places = [each for each in (16, 32, 64, 128, 256, 512, 1024) if each <= float(data.bytes_per_row.max())]
    storage.set_xticks(places, [str(each) for each in places])
    storage.legend(loc="lower right", fontsize=plotting.SMALL)
    places = np.arange(data.sizes["range"])
    for j, (words, color) in enumerate(
        (("open", "black"), ("closed", BLUE), ("closed, the open step", plotting.CONTROL))
    ):
        error = 4 * data.video_error[:, j]
        at = places + (j - 1) * 0.27
        video.bar(at, data.video[:, j], 0.27, color=color, alpha=0.7, label=words)
        video.errorbar(at, data.video[:, j], error, color="black", linestyle="none", linewidth=0.6)
    video.set_xticks(places, [str(name).replace("_", " ") for name in data.range.values])
    video.set(title="VideoCLIP, 8 bins, K = 10", xlabel="range of the bins", ylabel="share of answers kept")
    video.set(ylim=(0, 1.25), yticks=[0, 0.25, 0.5, 0.75, 1])
    video.legend(ncols=3, loc="upper center", columnspacing=0.8, handlelength=1.0)
    return plotting.lettered(figure)


def _draw_sides(axis, data):
    """Colour and marker: the scoring; linestyle: the side."""
    styles = dict(zip(SIDES, ("-", "--", ":"), strict=True))
    words, colors = ("distance, any side", "inner product", "cosine"), (BLUE, plotting.COLORS[4], plotting.COLORS[3])
    for i, (scoring, label) in enumerate(zip(SCORINGS, words, strict=True)):
        look = plotting.series(i, color=colors[i], markersize=2, linewidth=0.9)
        for side, style in styles.items():
            curve = data.sel(scoring=scoring, side=side)
            axis.errorbar(data.alpha, curve.by_side, 4 * curve.by_side_error, linestyle=style, **look)
        axis.plot([], [], label=label, **look | dict(linestyle="none", markersize=3))
    axis.errorbar(data.alpha, data.at_mean, 4 * data.at_mean_error, color=GREEN, marker="x")
    axis.plot([], [], color=GREEN, marker="x", label="inner product, along\nthe mean query")
    for side, style in styles.items():
        axis.plot([], [], style, color="black", linewidth=0.9, label=f"{side} moved")
    top = float(max(data.at_mean.max(), data.by_side.max()))
    axis.set(title="scoring and side, K = 100", xlabel="shift α along g'", ylabel="robustness", ylim=(0.2, 1.6 * top))
    axis.legend(ncols=2, loc="upper center", columnspacing=0.8)


def _draw_rules(axis, data):
    names = [str(name) for name in data.gallery.values]
    width, places = 0.84 / len(RULES), np.arange(len(names))
    for j, (rule, color) in enumerate(COLOR_OF.items()):
        here, at = data.sel(rule=rule), places + (j - (len(RULES) - 1) / 2) * width
        axis.bar(at, here.robustness, width, color=color, alpha=FAINT.get(rule, 0.9), label=rule)
        shown = here.error.values > 0
        error = 4 * here.error.values[shown]
        axis.errorbar(at[shown], here.robustness.values[shown], error, color="black", fmt="none", linewidth=0.6)
    axis.set_xticks(places, [name.replace(", ", "\n") for name in names])
    axis.set(title=f"rules, σ² = {VARIANCE}", ylabel="robustness", ylim=(0, 1.45), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.set_xlabel("gallery")
    axis.legend(loc="upper center", ncols=3, handlelength=1.0, columnspacing=0.8, fontsize=plotting.SMALL)


def table(data) -> str:
    """What is drawn, in per cent."""
    percent = lambda value, error=0.0: f"{100 * float(value):.1f}" + (f" ± {100 * float(error):.1f}" if error else "")
    lines = [
        [
            name,
            *(
                percent(data.robustness.sel(gallery=name, rule=r), float(data.error.sel(gallery=name, rule=r)))
                for r in RULES
            ),
        ]
        for name in data.gallery.values
    ]
    blocks = [aligned(["kept (σ² = .0005)", *RULES], lines)]
    lines = [
        [f"K = {size}", *(
            f"{percent(data.base.sel(size=size, variance=v), float(data.base_error.sel(size=size, variance=v)))}; "
            f"{100 * float(data.gain.sel(size=size, variance=v)):+.1f} ± {100 * float(data.gain_error.sel(size=size, variance=v)):.1f}"
            for v in data.variance.values
        ), percent(data.share.sel(size=size)), str(int(data.changed.sel(size=size)))]
        for size in data["size"].values
    ]  # fmt: skip
    header = ["subsets", *(f"σ² = {v:g}" for v in data.variance.values), "share of ‖g‖²", "decisions changed"]
    blocks.append(aligned(header, lines))
    lines = [
        [
            f"K = {size}",
            *(
                percent(data.scalars.sel(size=size, kept=r), float(data.scalars_error.sel(size=size, kept=r)))
                for r in data.kept.values
            ),
        ]
        for size in data["size"].values
    ]
    blocks.append(aligned(["exact scalars more", *(f"r = {r}" for r in data.kept.values)], lines))
    lines = []
    for g, name in enumerate(("K = 10", "K = 500")):
        lines.append([f"{name}, noise factor", *(f"{float(v):.3f}" for v in data.factor[g])])
        lines += [
            [f"{name}, {fit}", *(percent(v) for v in data.equal_power[g].sel(fit=fit))] for fit in data.fit.values
        ]
    lines += [[f"K = 500, {form}", *(percent(v) for v in data.rounded.sel(format=form))] for form in data.format.values]
    lines += [
        [f"K = 500, int{bits} by column", *(percent(v) for v in data.columns.sel(bits=bits))]
        for bits in data.bits.values
    ]
    blocks.append(aligned(["storage", *STORAGES], lines))
    if "library" in data:
        pairs = zip(data.quantiser.values, data.library.values, strict=True)
        blocks.append("FAISS, K = 500: " + "; ".join(f"{n}: {s:g} bytes, {percent(k)}" for n, (s, k) in pairs))
    for name in ("soft", "top r"):
        points = data[f"trade_off_{name}"].values
        blocks.append(
            f"{name}, K = 500: " + "; ".join(f"{percent(f)} % changed, {percent(r, e)}" for f, r, e in points)
        )
    lines = [
        [f"{scoring}, {side}", *(percent(v) for v in data.by_side.sel(scoring=scoring, side=side))]
        for scoring in SCORINGS for side in SIDES
    ]  # fmt: skip
    lines.append(["dot, mean query", *(percent(v) for v in data.at_mean)])
    blocks.append(aligned(["K = 100", *(f"α = {a:g}" for a in data.alpha.values)], lines))
    lines = [
        [
            str(n),
            *(
                percent(v, float(e))
                for v, e in zip(data.video.sel(range=n), data.video_error.sel(range=n), strict=True)
            ),
        ]
        for n in data.range.values
    ]
    blocks.append(aligned(["VideoCLIP, 8 bins", "α = 0", "α = 1", "α = 1, old step"], lines))
    return "\n\n".join(blocks)
