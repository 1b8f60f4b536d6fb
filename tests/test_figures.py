"""Every stored figure keeps the style and comes out the same to the byte; and the rules can fail."""

import itertools
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from experiments import plotting
from experiments.commands import diagnosis
from experiments.report import diagnosis_page, figures
from simulator.storage.results import load_dataset
from tests import style_rules

ROOT = Path(__file__).parents[1]
STORED = ROOT / "figures"
CLAIMS = sorted(path.stem for path in (ROOT / "experiments" / "claims").glob("[a-z]*.py"))
FAST = ("clean_invariance", "robustness_monotone", "sinkhorn_potential")
each_figure = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in (*CLAIMS, *figures.OTHERS)],
)


def stored(name: str):
    """The module that draws a figure, and its numbers, which the repository holds for every figure."""
    module, stem = figures.source(name)
    return module, load_dataset(STORED / f"{stem}.nc")


@each_figure
def test_a_stored_figure_keeps_the_style(name):
    module, data = stored(name)
    with plt.style.context(plotting.STYLE):
        figure = module.draw(data)
        found = style_rules.complaints(figure, module.CAPTION, data)
    plt.close(figure)
    assert not found, "\n".join(found)


@each_figure
def test_a_stored_figure_is_redrawn_to_the_byte(name, pinned_drawing, tmp_path):
    stored(name)
    for path in figures.redraw(name, STORED, tmp_path):
        assert path.read_bytes() == (STORED / path.name).read_bytes(), f"figures/{path.name}: gapsim figures {name}"


@pytest.mark.parametrize("options", [dict(paired=True), dict(sigma=0.1, subset=30)], ids=["paired", "noise"])
def test_the_page_on_ones_own_embeddings_keeps_what_applies(options, tmp_path, rng):
    """Its size is a sheet of paper, its caption its own summary; its table names fields as the JSON file does."""
    files = [tmp_path / f"{name}.npy" for name in "xy"]
    for shift, rows, file in zip((0.0, 1.0), (64 if "paired" in options else 5, 64), files, strict=True):
        np.save(file, rng.normal(size=(rows, 6)) + shift)
    with plt.style.context(plotting.STYLE):
        figure = diagnosis_page.draw(diagnosis.diagnose(*files, **options))
        figure.draw_without_rendering()
        rules = ("names_marks", "fits", "has_clear_legends")
        found = [words for rule in rules for words in getattr(style_rules, rule)(figure)]
    plt.close(figure)
    assert not found, "\n".join(found)


CAPTION = "(a, b) Means over 8 seeds and 1,000 draws; bars and bands: ± 2 standard errors over 8 seeds."


def numbers():
    """What the figure below might show."""
    return xr.Dataset(coords=dict(seed=np.arange(8)), attrs=dict(config=json.dumps(dict(seeds=8, num_draws=1000))))


def good_figure():
    """Two panels that keep every rule, with lines that cross, bars, a band, a control and legends."""
    at, noise = np.arange(6.0), np.random.default_rng(0).normal(size=(8, 6))
    figure, axes = plt.subplots(1, 2, figsize=(plotting.TWO_COLUMNS, 2.5), sharey=True, layout="constrained")
    for axis in axes:
        plotting.points(axis, at, at + 0.1 * noise, "rising", **plotting.series(0))
        plotting.band(axis, at, 5 - at + 0.1 * noise, label="falling", **plotting.series(1))
        axis.plot(at, 0 * at + 2.2, "--", color=plotting.CONTROL, label="control")
        axis.set(xlabel="closing α", ylim=(-0.5, 12), title="a panel")
        axis.legend(loc="upper right")
    axes[0].set_ylabel("gap norm G")
    return plotting.lettered(figure)


def judged(break_it=None, caption=CAPTION) -> list[str]:
    """The complaints about the good figure after it was broken."""
    with plt.style.context(plotting.STYLE):
        figure = good_figure()
        if break_it is not None:
            break_it(figure)
        found = style_rules.complaints(figure, caption, numbers())
    plt.close(figure)
    return found


def test_a_good_figure_passes():
    assert judged() == []


def on_first(method, *arguments, **settings):
    """A call on the first panel."""
    return lambda figure: getattr(figure.axes[0], method)(*arguments, **settings)


BROKEN = dict(
    no_letter=("letter", lambda figure: figure.axes[1].set_title("a panel", loc="left")),
    same_letter=("letter", lambda figure: figure.axes[1].set_title("(a) a panel", loc="left")),
    no_label=("label", on_first("set_xlabel", "")),
    no_shared_label=("label", on_first("set_ylabel", "")),
    beyond=("text", lambda figure: figure.text(0.99, 0.02, "beyond the edge", size=7)),
    on_text=("text", lambda figure: figure.text(0.25, 0.02, "on the label of the axis", size=7)),
    wide_ticks=("text", lambda figure: figure.axes[0].set_xticks([0, 0.5], ["0.00000", "0.500000"])),
    on_data=("legend", lambda figure: figure.axes[0].get_legend().set_loc("lower left")),
    across=("legend", lambda figure: figure.axes[1].legend(loc="upper center", bbox_to_anchor=(0.98, 1.0))),
    name_on_data=("legend", on_first("text", 2.0, 2.1, "a name", size=6, color="white")),
    no_legend=("legend", lambda figure: figure.axes[0].get_legend().remove()),
    color=("legend", on_first("plot", [0, 1], [4, 4], color=plotting.COLORS[2])),
    dotted=("legend", on_first("plot", [0, 1], [4, 4], ":", color=plotting.COLORS[0])),
    marker=("legend", on_first("plot", [0, 1], [4, 4], "s", color=plotting.COLORS[0])),
    control=("legend", on_first("plot", [0, 1], [4, 4], "-", color=plotting.CONTROL)),
    area=("legend", on_first("axhspan", 3.9, 4.1, color=plotting.COLORS[3])),
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name):
    prefix, break_it = BROKEN[name]
    found = judged(break_it)
    assert found and all(words.startswith(f"{prefix}:") for words in found), found


@pytest.mark.parametrize(
    "said, instead",
    [
        ("± 2 standard errors over 8 seeds", "over 8 seeds"),
        ("± 2 standard errors over 8 seeds", "± 2 standard errors"),
        ("over 8 seeds and", "over 16 seeds and"),
        ("over 8 seeds and", "over seven seeds and"),
        ("1,000 draws", "10,000 draws"),
        ("(a, b)", "(a)"),
        ("(a, b)", "(a–c)"),
        ("(a, b)", "Left and right:"),
    ],
)
def test_a_caption_that_says_too_little_or_the_wrong_thing_is_found(said, instead):
    assert said in CAPTION
    found = judged(caption=CAPTION.replace(said, instead))
    assert found and all(words.startswith("caption:") for words in found), found


@pytest.mark.parametrize("method", ["errorbar", "fill_between"])
def test_bars_and_bands_each_need_words(method):
    with plt.style.context(plotting.STYLE):
        figure, axis = plt.subplots(figsize=(plotting.ONE_COLUMN, 2.5), layout="constrained")
        settings: dict[str, Any] = dict(color=plotting.COLORS[0])
        axis.plot([0, 1], [0, 1], **settings)
        assert not style_rules.has_bars(figure)
        getattr(axis, method)([0, 1], [0, 1], [0.1, 0.2], **settings)
        assert [*style_rules.explains_bars(figure, "Means.")]
        assert not [*style_rules.explains_bars(figure, "Bars: from the lowest to the highest of five draws.")]
    plt.close(figure)


def test_panels_are_lettered_in_reading_order_and_one_panel_is_not():
    with plt.style.context(plotting.STYLE):
        figure = plt.figure(layout="constrained")
        grid = figure.add_gridspec(2, 2)
        places = [grid[0, 0], grid[:, 1], grid[1, 0]]
        for place in reversed(places):
            figure.add_subplot(place).set_title("x")
        figure.colorbar(figure.axes[0].pcolormesh(np.eye(3)), ax=figure.axes[0])
        titles = {axis.get_subplotspec(): axis.get_title("left") for axis in plotting.panels(plotting.lettered(figure))}
        assert [titles[place] for place in places] == ["(a) x", "(b) x", "(c) x"]
        single, axis = plt.subplots()
        axis.set_title("x")
        assert plotting.lettered(single).axes[0].get_title("left") == "x"
    plt.close("all")


# Machado, Oliveira and Fernandes (2009), complete dichromacy, on linear RGB.
DICHROMATS = dict(
    protanopia=((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    deuteranopia=((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    tritanopia=((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)


def smallest_difference(colors, vision) -> float:
    """Smallest CIE 1976 difference of two colours as a dichromat sees them."""
    channels = np.array([to_rgb(color) for color in colors])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(vision).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = seen @ to_xyz.T / (to_xyz @ np.ones(3))
    root = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    lab = np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(lab, 2))


@pytest.mark.parametrize("vision", DICHROMATS)
def test_the_palette_is_told_apart_with_any_colour_vision(vision):
    """A difference of 10 is seen at a glance; 2.3 is just noticeable."""
    assert smallest_difference(plotting.COLORS, DICHROMATS[vision]) > 10


def test_red_and_green_of_one_lightness_are_not():
    assert smallest_difference(("#994C1A", "#40801A"), np.eye(3)) > 60
    assert smallest_difference(("#994C1A", "#40801A"), DICHROMATS["deuteranopia"]) < 10


def test_every_series_has_its_own_colour_and_marker():
    looks = [plotting.series(i) for i in range(len(plotting.COLORS))]
    assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == len(looks)
    assert plotting.series(1, marker="x", linestyle="none") == dict(
        color=plotting.COLORS[1], marker="x", linestyle="none"
    )
