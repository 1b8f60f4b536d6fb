"""What `gapsim diagnose` says about its numbers: a summary in words, a table for the terminal, and one page."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from experiments.plotting import COLORS, CONTROL, SMALL

EXPLANATIONS = dict(
    gap_norm="distance between the two means, G",
    gap_floor="length up to which it is rounding of the stored rows",
    variance_along_gap="variance along the gap",
    defect_ratio="the same over the mean direction's (1 isotropic, 0 orthogonal gap)",
    null_defect_ratio="... expected for a random other mean of the same length",
    span_fraction="share of G² inside the top components (90 % of variance)",
    effective_rank="exp entropy of the singular values",
    separability="held-out accuracy of the midpoint rule along the gap",
    marginal_error="mean |S/S̄ − 1| of the softmax marginals",
    uniformity="log mean exp(−2 squared distance)",
    alignment="mean squared distance of pairs",
    rmg="relative modality gap",
    recall_at_1_xy="R@1 by cosine, gallery → query",
    recall_at_1_yx="R@1 by cosine, query → gallery",
    accuracy="queries whose nearest gallery row is their label",
    gallery_rank="dimensions that the centred gallery spans",
    complement_share="share of ‖g‖² that can be closed without changing a decision",
    alpha_star_min="smallest α*: mean robustness is sure to rise up to here",
    alpha_star_q05="5 % of the queries are most robust at a smaller α",
    alpha_star_q25="25 %",
    alpha_star_median="50 %",
    alpha_star_q75="75 %",
    alpha_star_q95="95 %",
    alpha_star_max="largest α*",
    robustness_open="exact robustness at σ, gap as it is (α = 0)",
    robustness_closed="exact robustness at σ, gap closed (α = 1)",
    robustness_gain="difference of the two, query by query",
)


def has_gap(result: dict[str, Any]) -> bool:
    """Whether the gap is longer than rounding alone makes it; an exact 0 is not."""
    return result["gap_norm"] > result["gap_floor"]


def summary(result: dict[str, Any]) -> list[str]:
    """The result in sentences."""
    gap, dimensions = result["gap_norm"], result["dimensions"]
    if not has_gap(result):
        return [
            f"The two means lie {gap:.3g} apart, and rounding of the stored rows alone makes up to {result['gap_floor']:.3g}: "
            "there is no gap. What lies along it is not defined, and there is nothing to close."
        ]
    said = [
        f"The means of the two modalities lie G = {gap:.3g} apart; the midpoint rule along the gap tells "
        f"{_percent(result['separability'])} of held-out rows apart."
    ]
    ratios = [(result[f"defect_ratio_{m}"], result[f"null_defect_ratio_{m}"]) for m in "xy"]
    if all(value is not None for pair in ratios for value in pair):
        (x, null_x), (y, null_y) = ratios
        verdict = "that is neither orthogonal nor what chance gives in both"
        if x < 0.1 * null_x and y < 0.1 * null_y:
            verdict = "the gap is close to orthogonal to what varies"
        elif x > 0.5 * null_x and y > 0.5 * null_y:
            verdict = "that is no sign of an orthogonal gap"
        said.append(
            f"Compression: the variance along the gap is {x:.3g} times the mean direction's in the gallery (for a random "
            f"mean of the other modality: {null_x:.3g}) and {y:.3g} times in the queries ({null_y:.3g}); {verdict}."
        )
    said.append(_closing(result["complement_share"], result["gallery_rank"], dimensions, result["gallery_rows"]))
    if result.get("alpha_star_min") is not None:
        least = result["alpha_star_min"]
        sure = f"the mean robustness is sure to rise up to α = {least:.2g}"
        said.append(
            f"Half of the queries are most robust between α = {result['alpha_star_q25']:.2f} and "
            f"{result['alpha_star_q75']:.2f}; {sure if least > 0 else 'for some the best α is negative: closing hurts them'}."
        )
    if result.get("robustness_open") is not None:
        said.append(
            f"Noise of σ = {result['sigma']:g} per coordinate on the gallery leaves {_share(result, 'robustness_open')} of "
            f"the answers as they are with the gap open and {_share(result, 'robustness_closed')} with the gap closed "
            f"(gain {_share(result, 'robustness_gain').removesuffix(' %')} points)."
        )
    return said


def _closing(share, rank: int, dimensions: int, num_rows: int) -> str:
    others = "`gapsim close --rule compensated` or `--rule centred` keep every decision by one exact number per row"
    where = f"the {num_rows:,} centred gallery rows span {rank} of {dimensions} dimensions"
    if not share:
        reason = "all of the gap" if rank < dimensions else "every direction"
        return f"Nothing to move: {where}, {reason} included, and any shift would change decisions; {others}."
    said = f"Closing: {where}, so {_percent(share)} of ‖g‖² can be closed without changing a decision"
    return said + ("." if share > 0.5 else f"; for the rest, {others}.")


def _percent(value) -> str:
    return "n/a" if value is None else f"{100 * value:.3g} %"


def _share(result, name: str) -> str:
    """A share in per cent, with its standard error where it is an estimate."""
    error = result["sampled"].get(name)
    return f"{100 * result[name]:.1f}" + (f" ± {100 * error['standard_error']:.1f}" if error else "") + " %"


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(measure, gallery, queries, from which rows, what it is) for every measure that was asked for."""
    size = (f"{result['gallery_rows']:,}", f"{result['query_rows']:,}")
    lines = [("rows", *size, "", f"in {result['dimensions']} dimensions")]
    for name, words in EXPLANATIONS.items():
        names = [name] if name in result else [f"{name}_x", f"{name}_y"]
        if all(each in result for each in names):
            x, y = [*(_cell(result, each) for each in names), ""][:2]
            lines.append((name, x, y, _basis(result, names), words))
    return lines


def _cell(result, name: str) -> str:
    value, error = result[name], result["sampled"].get(name)
    if value is None:
        return "n/a"
    if error is None or error["standard_error"] is None:
        return f"{value:.4g}"
    # As many digits as the error has two significant ones.
    digits = int(np.clip(1 - np.floor(np.log10(error["standard_error"] or 1.0)), 0, 9))
    return f"{value:.{digits}f} ± {error['standard_error']:.{digits}f}"


def _basis(result, names: list[str]) -> str:
    """Which rows the numbers come from: all, or a random subset."""
    if all(result[name] is None for name in names):
        return ""
    parts = {}
    for name in names:
        part = result["sampled"].get(name)
        if part is not None:
            batches = f"{part['batches']} batches of " if "batches" in part else ""
            parts[name] = f"{batches}{part['rows']:,} of {part['of']:,}"
    if not parts:
        return "exact"
    if len(names) == 1 or (len(set(parts.values())) == 1 and len(parts) == 2):
        return next(iter(parts.values()))
    return "; ".join(f"{'gallery' if name.endswith('_x') else 'queries'} {text}" for name, text in parts.items())


def render(result: dict[str, Any]) -> str:
    """The table and the summary, for a terminal."""
    from experiments.catalogue import table

    header = ["measure", "gallery", "queries", "from", ""]
    lines = [table(header, [list(line) for line in table_rows(result)])]
    if result["sampled"]:
        lines.append("exact: from all rows; n of N: from n random rows, ± one standard error")
    return "\n".join([*lines, "", *(textwrap.fill(said, 110, subsequent_indent="  ") for said in result["summary"])])


A4 = (8.27, 11.69)  # inches


def draw(result: dict[str, Any]):
    """One page: the summary, six panels and the table."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import Bbox

    options = ["rows scaled to unit length"] * result["normalized"] + ["row i pairs with row i"] * result["paired"]
    files = ["; ".join(["Modality gap", *options])]
    for side, count in (("gallery", result["gallery_rows"]), ("queries", result["query_rows"])):
        files.append(f"{side}: {count:,} × {result['dimensions']} from {_shortened(result[side])}")
    said = [*result["summary"], *(f"Warning: {words}." for words in result["warnings"])]
    if result["sampled"]:
        said.append("In the table, exact: from all rows; n of N: from n random rows, ± one standard error.")
    lines = [("measure", "gallery", "queries", "from", ""), *table_rows(result)]
    panels = (_positions, _compression, _energy, _alphas, _robustness, _answers)

    words = "\n\n".join(["\n".join(files), *(textwrap.fill(sentence, 112) for sentence in said)])
    margins = ConstrainedLayoutEngine(rect=(0.03, 0.03, 0.93, 0.94), w_pad=0.1, h_pad=0.1)
    mosaic: Any = [["words"] * 3, panels[:3], panels[3:], ["table"] * 3]
    heights = (words.count("\n") + 1, 16, 16, len(lines))  # in lines of text
    figure, axes = plt.subplot_mosaic(mosaic, figsize=A4, layout=margins, height_ratios=heights)
    # Names of files are text: a "$" in them starts no formula.
    axes["words"].text(0, 1, words, va="top", size=8, parse_math=False)
    for name in ("words", "table"):
        axes[name].set_axis_off()
    for panel in panels:
        if missing := panel(axes[panel], result, result["curves"]):
            axes[panel].set_axis_off()
            axes[panel].text(
                0.5, 0.5, missing, ha="center", va="center", color=CONTROL, transform=axes[panel].transAxes
            )
    table = axes["table"].table(
        lines, colWidths=(0.17, 0.12, 0.12, 0.16, 0.43), cellLoc="left", edges="open", bbox=Bbox.unit()
    )
    table.auto_set_font_size(False)
    table.set_fontsize(SMALL)
    for column in range(len(lines[0])):
        table[0, column].set_text_props(weight="bold")
    return figure


def _shortened(path: str) -> str:
    return path if len(path) <= 100 else "…" + path[-99:]


_NAMES = dict(x="gallery", y="queries")


def _positions(axis, result, curves) -> str | None:
    if "position_edges" not in curves:
        return "no gap"
    for modality, color in zip("xy", COLORS, strict=False):
        shares = curves[f"positions_{modality}"]
        axis.stairs(shares, curves["position_edges"], color=color, fill=True, alpha=0.5, label=_NAMES[modality])
    axis.set(xlabel="position along the gap\n(0: midpoint of the means)", ylabel="share of rows", title="separation")
    axis.set_ylim(0, 1.45 * max(max(curves["positions_x"]), max(curves["positions_y"])))
    axis.legend(loc="upper center", ncols=2, columnspacing=1, handlelength=1)
    return None


def _compression(axis, result, curves) -> str | None:
    for at, (modality, color) in enumerate(zip("xy", COLORS, strict=False)):
        ratio, null = result[f"defect_ratio_{modality}"], result[f"null_defect_ratio_{modality}"]
        if not ratio:
            return "no variance along the gap"
        variances = np.array(curves[f"variances_{modality}"])
        low, high = np.quantile(variances / variances.mean(), (0.5, 1.0))
        first = at == 0
        # Half of the directions; a modality with fewer rows than dimensions has no variance in most of them.
        axis.plot([at, at], [max(low, 1e-2), high], color=color, linewidth=5, alpha=0.25, solid_capstyle="butt",
                  label="larger half of directions" if first else None)  # fmt: skip
        axis.plot(
            at - 0.15,
            null,
            "o",
            color=color,
            markerfacecolor="white",
            markersize=5,
            label="random mean" if first else None,
        )
        axis.plot(at + 0.15, ratio, "D", color=color, markersize=4, label="along the gap" if first else None)
    axis.axhline(1.0, color=CONTROL, linestyle="--", linewidth=0.8, label="mean direction")
    axis.set_yscale("log")
    low, high = np.log10(axis.get_ylim())
    axis.set_ylim(top=10 ** (high + 0.9 * (high - low)))  # room for the legend
    axis.set(xlim=(-0.6, 1.6), ylabel="variance / mean direction's", title="compression")
    axis.set_xticks([0, 1], list(_NAMES.values()))
    for label, color in zip(axis.get_xticklabels(), COLORS, strict=False):
        label.set_color(color)
    legend = axis.legend(loc="upper center", handlelength=1, borderaxespad=0.0)
    for handle in legend.legend_handles:
        handle.set_color(CONTROL)
        handle.set_markerfacecolor("white" if handle.get_marker() == "o" else CONTROL)
    return None


def _energy(axis, result, curves) -> str | None:
    if not has_gap(result):
        return "no gap"
    components = np.arange(1, result["dimensions"] + 1)
    for modality, color in zip("xy", COLORS, strict=False):
        axis.plot(components, curves[f"gap_energy_{modality}"], color=color, label=_NAMES[modality])
    axis.plot(components, components / len(components), color=CONTROL, linestyle="--", label="random direction")
    axis.set(xlabel="leading components", ylabel="share of G² in them", ylim=(0, 1.6), xlim=(0, None))
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_title("overlap with what varies")
    axis.legend(loc="upper left", borderaxespad=0.1)
    return None


def _alphas(axis, result, curves) -> str | None:
    if "alpha_star" not in curves:
        return "nothing to move:\nthe gallery spans the gap"
    axis.stairs(
        curves["alpha_star"], curves["alpha_star_edges"], color=COLORS[1], fill=True, alpha=0.5, label="queries"
    )
    top = 1.05 * max(curves["alpha_star"])
    for at, label in ((0.0, "leave (0), close (1)"), (1.0, None)):
        axis.plot([at, at], [0, top], color=CONTROL, linestyle="--", linewidth=0.8, label=label)
    axis.set(xlabel="best α of a query, α*", ylabel="share of queries", title="how far to move", ylim=(0, 1.4 * top))
    axis.legend(loc="upper center", borderaxespad=0.1)
    return None


def _robustness(axis, result, curves) -> str | None:
    if "robustness_open" not in curves:
        return "pass --sigma for robustness"
    axis.plot([0, 1], [0, 1], color=CONTROL, linestyle="--", linewidth=0.8, label="no change")
    axis.plot(
        curves["robustness_open"], curves["robustness_closed"], ".", color=COLORS[1], markersize=2.5, alpha=0.6, label="a query"
    )  # fmt: skip
    means = result["robustness_open"], result["robustness_closed"]
    errors = [2 * result["sampled"].get(f"robustness_{n}", {}).get("standard_error", 0.0) for n in ("open", "closed")]
    axis.errorbar(
        *means, xerr=errors[0], yerr=errors[1], marker="+", color="black", markersize=7, linestyle="none", label="their mean"
    )  # fmt: skip
    axis.set(xlabel="gap open (α = 0)", ylabel="gap closed (α = 1)", xlim=(0, 1.02), ylim=(0, 1.6))
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.legend(loc="upper left", borderaxespad=0.1)
    axis.set_title(f"robustness of {len(curves['robustness_open'])} queries, σ = {result['sigma']:g}")
    return None


def _answers(axis, result, curves) -> str | None:
    asked = {"recall_at_1_yx": "R@1\nqueries", "recall_at_1_xy": "R@1\ngallery", "accuracy": "labels"}
    shown = {name: words for name, words in asked.items() if result.get(name) is not None}
    if not shown:
        return "pass --paired or --labels\nfor retrieval"
    values = [result[name] for name in shown]
    errors = [2 * result["sampled"].get(name, {}).get("standard_error", 0.0) for name in shown]
    axis.bar(list(shown.values()), values, yerr=errors if any(errors) else None, width=0.55, color=COLORS[2], alpha=0.7)
    for at, value in enumerate(values):
        axis.text(at, value + errors[at] + 0.02, f"{value:.3f}", ha="center", fontsize=7, color=COLORS[2])
    axis.axhline(1 / result["gallery_rows"], color=CONTROL, linestyle="--", linewidth=0.8, label="chance")
    axis.legend(loc="upper right", borderaxespad=0.1)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set(ylabel="share right", ylim=(0, 1.35), title="right answers", xlim=(-0.6, len(shown) - 0.4))
    return None
