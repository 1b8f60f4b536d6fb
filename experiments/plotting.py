"""One look for every figure, and files that are byte-identical when the numbers are.

What a figure owes its reader is written down as rules: tests/style_rules.py. A `draw` makes a figure of one or two columns
from a dataset, gives each series its colour together with its marker (`series`), names every mark in a legend, and returns
`lettered(figure)`; its module's CAPTION says what the bars and bands are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
SMALL = 6  # points; for crowded legends and for names beside points
# Okabe & Ito (2008): distinguishable with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^vDP"  # one per colour: a grey print tells the series apart too
CONTROL = "#8A8A8A"
STYLE = Path(__file__).with_name("gapsim.mplstyle")


def series(index: int, **changes) -> dict[str, Any]:
    """Colour and marker of the index-th series of a panel, with what is to be different."""
    return dict(color=COLORS[index], marker=MARKERS[index]) | changes


def band(axis, at, values, color, label=None, **look):
    """Mean over the first axis of `values` [seed, at] with ± 2 standard errors as a band."""
    mean, error = mean_and_bars(values)
    axis.plot(at, mean, color=color, label=label, **look)
    axis.fill_between(at, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)


def points(axis, at, values, label=None, **look):
    """The same as points with bars, joined by a line."""
    mean, error = mean_and_bars(values)
    axis.errorbar(at, mean, error, label=label, **look)


def mean_and_bars(values):
    """Mean over the first axis of `values` [seed, ...] and twice its standard error."""
    return values.mean(axis=0), 2 * values.std(axis=0, ddof=1) / len(values) ** 0.5


def legend_entries(*axes) -> dict[str, Any]:
    """What is labelled in `axes`: label -> its first handle."""
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return entries


def legend_inside(axis, *, above=(), **options):
    """A panel's legend of what is labelled there and not `above` it."""
    entries = {label: handle for label, handle in legend_entries(axis).items() if label not in above}
    return axis.legend(entries.values(), entries, **options)


def legend_above(figure, *axes, **options):
    """One legend over all panels, of what is labelled in `axes`."""
    entries = legend_entries(*axes)
    return figure.legend(entries.values(), entries, loc="outside upper center", **options)


def panels(figure) -> list:
    """The axes that show data, in reading order; neither colour bars nor second axes of a panel."""
    shown = [axis for axis in figure.axes if axis.get_label() != "<colorbar>" and axis.get_subplotspec() is not None]
    return sorted(shown, key=lambda axis: (axis.get_subplotspec().rowspan.start, axis.get_subplotspec().colspan.start))


def lettered(figure):
    """(a), (b), … before the titles of a figure with several panels, at the left of each; returns the figure."""
    shown = panels(figure)
    for axis, letter in zip(shown, "abcdefghijklmnopqrstuvwxyz", strict=False):
        if len(shown) > 1:
            axis.set_title(f"({letter}) {axis.get_title('left')}".strip(), loc="left")
    return figure


def files(out: Path | None, results: Iterable[str], figures: Iterable[str]) -> list[Path]:
    """The files of a folder that receive results and figures; none without a folder."""
    names = [f"{stem}.nc" for stem in results] + [f"{name}.{kind}" for name in figures for kind in ("pdf", "png")]
    return [] if out is None else [out / name for name in names]


def save_figure(draw, dataset, path: Path) -> list[Path]:
    """Draw a dataset and write PDF and PNG beside each other; returns the two paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from simulator.storage.files import whole_file

    with plt.style.context(STYLE):
        figure = draw(dataset)
        for axis in figure.axes:
            if not axis.has_data() and axis.axison:
                raise ValueError(f"{path.name}: a panel is empty; the dataset lacks what it shows")
        written = []
        for suffix, metadata in ((".pdf", dict(CreationDate=None, ModDate=None)), (".png", dict(Software=None))):
            target = path.with_name(path.name + suffix)
            with whole_file(target) as draft:
                figure.savefig(draft, metadata=metadata)
            written.append(target)
        plt.close(figure)
    return written
