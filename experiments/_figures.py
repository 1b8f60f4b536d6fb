"""One look for every figure, and files that are byte-identical when the numbers are."""

from __future__ import annotations

from pathlib import Path

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
# Okabe & Ito (2008): distinguishable with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROL = "#8A8A8A"
STYLE = Path(__file__).with_name("gapsim.mplstyle")


def band(axis, at, values, color, label):
    """Mean over the first axis of `values` [seed, at] with ± 2 standard errors."""
    mean, error = values.mean(axis=0), 2 * values.std(axis=0, ddof=1) / len(values) ** 0.5
    axis.plot(at, mean, color=color, label=label)
    axis.fill_between(at, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)


def save_figure(draw, dataset, path: Path) -> list[Path]:
    """Draw a dataset and write PDF and PNG beside each other; returns the two paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from simulator.store import whole_file

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
