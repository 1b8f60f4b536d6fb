"""The figure and the table of the real embeddings."""

from __future__ import annotations

import numpy as np

from experiments import _figures
from experiments._ledger import table as aligned
from experiments._real_embeddings import LARGEST, RULES, SCORINGS, SIDES, VARIANCE
from experiments.compensated_closing import COLORS, draw_trade_off
from experiments.linear_storage import SHOWN, STORAGES, draw_library

BARS = dict(zip(RULES, ("#4D4D4D", *_figures.COLORS[:2], _figures.CONTROL, _figures.COLORS[2], "#66C2A4", "#B2E2CD", _figures.COLORS[5]), strict=True))  # fmt: skip
CAPTION = (
    "CLIP ViT-B/32 (unit rows) on MSCOCO, 500 images as queries, and VideoCLIP; noise of σ² = 0.0005 per coordinate on the "
    "rows. (a) Each rule on four galleries (± 4 standard errors where measured, exact otherwise; optimal: at equal power of "
    "the stored rows, fitted on the same queries). (b) Decisions changed against robustness gained, K = 500. (c) Robustness "
    "against the shift along g', K = 100, by scoring and side; black: inner products, queries towards their mean. "
    "(d) Closing over random subsets of captions, ± 4 standard errors over subsets; open: α = 0, filled: α = 1. (e) Answers "
    "kept after rounding against bytes per row, K = 500: a scale per row in random bases (solid), a range per column "
    "(dashed), FAISS's quantisers (crosses). (f) VideoCLIP, 8 bins, "
    "random subsets of ten texts (± 4 standard errors over subsets): answers kept before and after closing; grey: with the "
    "step as it was. The [min, max] range loses because one coordinate sets everybody's step."
)


def draw(data):
    """Six panels."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(_figures.TWO_COLUMNS, 7.6), layout="constrained")
    (bars, trade), (sides, sizes), (storage, video) = axes
    _draw_rules(bars, data)
    here = data.sel(gallery=LARGEST)
    points = {name: data[f"trade_off_{name}"].values[:, :2] for name in ("soft", "top r")}
    for rule in ("complement", "compensated", "centred", "optimal"):
        points[rule] = np.array([[0.0, float(here.robustness.sel(rule=rule))]])
    draw_trade_off(trade, points, float(here.robustness.sel(rule="as it is")))
    trade.set_title("(b) trade-off, K = 500")
    trade.legend(loc="upper right", fontsize=6)
    colors = dict(zip(SCORINGS, _figures.COLORS, strict=False))
    for scoring, words in zip(SCORINGS, ("distance", "inner product", "cosine"), strict=True):
        for side, style in zip(SIDES, ("-", "--", ":"), strict=True):
            curve = data.sel(scoring=scoring, side=side)
            label = f"{words}, {side}"
            sides.errorbar(
                data.alpha, curve.by_side, 4 * curve.by_side_error, color=colors[scoring], linestyle=style, marker="o",
                markersize=2, linewidth=0.9, label=label,
            )  # fmt: skip
    sides.errorbar(
        data.alpha, data.at_mean, 4 * data.at_mean_error, color="black", marker="o", markersize=2, label="mean query"
    )
    top = float(max(data.at_mean.max(), data.by_side.max()))
    sides.set(
        title="(c) scoring and side, K = 100", xlabel="shift α along g'", ylabel="robustness", ylim=(0.2, 1.6 * top)
    )
    sides.legend(ncols=3, fontsize=5.5, loc="upper center", columnspacing=0.8, handlelength=1.6)
    for color, size in zip(_figures.COLORS, data["size"].values, strict=False):
        curve = data.sel(size=size)
        closed, error = curve.base + curve.gain, np.hypot(curve.base_error, curve.gain_error)
        sizes.errorbar(
            data.variance, curve.base, 4 * curve.base_error, color=color, marker="o", fillstyle="none", linestyle="--"
        )
        sizes.errorbar(data.variance, closed, 4 * error, color=color, marker="o", label=f"K = {size}")
    sizes.set(
        title="(d) random captions, open and closed",
        xscale="log",
        xlabel="σ² per coordinate",
        ylabel="robustness",
        ylim=(0, 0.85),
    )
    sizes.legend(loc="upper right")
    order = np.argsort(data.bytes_per_row.values, kind="stable")
    for name in STORAGES:
        kept = data.rounded.sel(storage=name)[order]
        storage.plot(data.bytes_per_row[order], kept, "o-", color=SHOWN[name], linewidth=0.8, label=name)
    draw_library(storage, data, 512)
    storage.set(
        title="(e) low precision, K = 500", xlabel="bytes per row", ylabel="answers kept", xlim=(170, 560), ylim=(0.55, 1.02)
    )  # fmt: skip
    if "library" in data:
        below = [(n, s, k) for n, (s, k) in zip(data.quantiser.values, data.library.values, strict=True) if s < 170]
        words = "\n".join(f"{n}, {s:g} bytes: {k:.2f}" for n, s, k in below)
        storage.text(0.98, 0.36, words, transform=storage.transAxes, fontsize=6, ha="right")
    storage.legend(loc="lower right", fontsize=6)
    places = np.arange(data.sizes["range"])
    for j, (words, color) in enumerate(
        (("α = 0", BARS["as it is"]), ("α = 1", BARS["complement"]), ("α = 1, old step", _figures.CONTROL))
    ):
        error = 4 * data.video_error[:, j]
        video.bar(places + (j - 1) * 0.27, data.video[:, j], 0.27, yerr=error, color=color, label=words)
    video.set_xticks(places, [str(name).replace("_", " ") for name in data.range.values])
    video.set(
        title="(f) VideoCLIP, 8 bins, K = 10", ylabel="answers kept", ylim=(0, 1.25), yticks=[0, 0.25, 0.5, 0.75, 1]
    )
    video.legend(ncols=3, loc="upper center", columnspacing=0.8, handlelength=1.0)
    return figure


def _draw_rules(axis, data):
    names = [str(name) for name in data.gallery.values]
    width, places = 0.84 / len(BARS), np.arange(len(names))
    for j, (rule, color) in enumerate(BARS.items()):
        here, at = data.sel(rule=rule), places + (j - (len(BARS) - 1) / 2) * width
        axis.bar(at, here.robustness, width, color=color, label=rule)
        shown = here.error.values > 0
        error = 4 * here.error.values[shown]
        axis.errorbar(at[shown], here.robustness.values[shown], error, color="black", fmt="none", linewidth=0.6)
    axis.set_xticks(places, [name.replace(", ", "\n") for name in names])
    axis.set(title=f"(a) rules, σ² = {VARIANCE}", ylabel="robustness", ylim=(0, 1.45), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.legend(loc="upper center", ncols=3, handlelength=1.0, columnspacing=0.8, fontsize=6)


def table(data) -> str:
    """What is drawn, in per cent."""
    percent = lambda value, error=0.0: f"{100 * float(value):.1f}" + (f" ± {100 * float(error):.1f}" if error else "")  # noqa: E731
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
        ), percent(data.share.sel(size=size)), int(data.changed.sel(size=size))]
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
