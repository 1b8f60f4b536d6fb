"""What a figure owes its reader, as rules: each looks at a drawn matplotlib figure and returns its complaints, none for good.

Sizes, fonts, spines and colors are the style sheet's and the palette's. These rules are the project's own, since no library
knows them: marks and legend, caption and panels, caption and numbers, and text that covers text or data. They use only the
public interface of matplotlib and judge what is drawn, not how.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import numpy as np
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from experiments import plotting

POINT = 1 / 72  # inches
NEUTRAL = {"#000000", plotting.CONTROL.lower()}  # in a legend: a linestyle or marker of every color
MARKERS = set(map(str, Line2D.markers)) - {"None", "none", "", " "}
NUMBERS = dict(two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12)


def complaints(figure, caption: str, data) -> list[str]:
    """What breaks the rules.

    Args:
      figure: drawn within the style.
      caption: of the figure.
      data: the numbers behind it; what the caption counts (seeds, draws) must be there in its sizes or its settings.
    """
    figure.draw_without_rendering()
    found = [*is_labelled(figure), *names_marks(figure), *fits(figure), *has_clear_legends(figure)]
    return [*found, *explains_bars(figure, caption), *names_panels(figure, caption), *counts(caption, data)]


def is_labelled(figure) -> Iterator[str]:
    """Every axis says what it is, unless it shares a labelled one and shows no numbers."""
    for panel in plotting.panels(figure):
        for name in "xy":
            axis = getattr(panel, f"{name}axis")
            group = getattr(panel, f"get_shared_{name}_axes")().get_siblings(panel)
            shared = any(getattr(each, f"{name}axis").get_label_text() for each in group)
            if not axis.get_label_text() and (not shared or any(_shows(label) for label in _tick_labels(axis))):
                yield f"label: the {name} axis of {panel.get_title('left')!r} has none"


def names_marks(figure) -> Iterator[str]:
    """A panel's legend, that of the figure, or a text of their color in the panel or at a tick names all its lines, markers and areas.

    A legend may show a linestyle or a marker once, in black or grey, for all the colors that it names, and need not repeat
    the only marker of a color. A panel of a single color with one linestyle and one marker needs no legend: its axes do.
    """
    for axis in axes_of(figure):
        found = {mark for artist in drawn(axis) for mark in marks(artist)}
        legends = [*figure.legends, *filter(None, [axis.get_legend()])]
        shown = [part for legend in legends for kind in (Line2D, Patch) for part in legend.findobj(kind)]
        named = {mark for part in shown for mark in marks(part)}
        colors, beside = (
            {color for color, _ in named},
            {to_hex(text.get_color()) for text in [*axis.texts, *axis.get_xticklabels()]},
        )
        if len({color for color, _ in found}) > 1 or len(found) > 2:
            for color, form in sorted(found - named):
                neutral = form == "area" or any((other, form) in named for other in NEUTRAL - {color})
                neutral |= [c for c, f in found if c == color and f in MARKERS] == [color] and form in MARKERS
                if color not in beside and not (color in colors and neutral):
                    yield f"legend: nothing in {axis.get_title('left')!r} says what {color} {form} is"


def fits(figure) -> Iterator[str]:
    """No text beyond the edge of the figure, and none on another; a legend counts as one."""
    legends = figure.findobj(Legend)
    members = {text for legend in legends for text in legend.findobj(Text)}
    boxes = [("legend", each.get_window_extent()) for each in legends]
    boxes += [(t.get_text(), t.get_window_extent()) for t in texts(figure) if t not in members]
    least, page = 0.5 * POINT * figure.dpi, figure.bbox
    for words, box in boxes:
        if min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) < -least:
            yield f"text: {words!r} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        common = Bbox.intersection(first, second)
        if common and min(common.width, common.height) > least:
            yield f"text: {one!r} lies on {other!r}"


def has_clear_legends(figure) -> Iterator[str]:
    """A legend is inside its panel or outside, not across the edge; neither it nor a name in the panel covers data."""
    for axis in axes_of(figure):
        named = [(text.get_text(), text) for text in axis.texts if _shows(text)]
        named += [("legend", axis.get_legend())] if axis.get_legend() else []
        for name, artist in named:
            box = artist.get_window_extent().padded(-1.5 * POINT * figure.dpi)
            inside = Bbox.intersection(box, axis.bbox)
            share = inside.width * inside.height / (box.width * box.height) if inside else 0.0
            if name == "legend" and 0.01 < share < 0.99:
                yield f"legend: that of {axis.get_title('left')!r} lies across the edge of the panel"
            if covered := [other for other in drawn(axis) if reaches(other, box)]:
                yield f"legend: {name!r} of {axis.get_title('left')!r} covers {covered[0]}"


def explains_bars(figure, caption: str) -> Iterator[str]:
    """Bars and bands come with what they are: n standard errors over what, or the lowest and highest of what."""
    said = re.search(r"± \d (jackknife )?standard\s+errors?\s+over \w|lowest (to|and) (the )?highest|interval", caption)
    if has_bars(figure) and not said:
        yield "caption: it does not say what the bars or bands are (± n standard errors over …; lowest and highest of …)"


def names_panels(figure, caption: str) -> Iterator[str]:
    """Several panels are lettered (a), (b), … in their titles; the caption speaks of every one and of no other."""
    shown = plotting.panels(figure)
    letters = [chr(ord("a") + i) for i in range(len(shown))] if len(shown) > 1 else []
    for axis, letter in zip(shown, letters, strict=False):
        if not re.match(rf"\({letter}\)( |$)", axis.get_title("left")):
            yield f"letter: the title {axis.get_title('left')!r} does not begin with ({letter})"
    named = set()
    for group in re.findall(r"\(([a-z](?:(?:, |–)[a-z])*)\)", caption):
        for part in group.split(", "):
            named |= {chr(c) for c in range(ord(part[0]), ord(part[-1]) + 1)}
    if named != set(letters):
        yield f"caption: it names the panels {sorted(named)}, there are {letters}"


def counts(caption: str, data) -> Iterator[str]:
    """Where the caption counts seeds, draws, networks or layers, there are as many."""
    if "config" not in data.attrs:
        return
    known = [*data.sizes.items(), *json.loads(data.attrs["config"]).items()]
    for word, noun in re.findall(r"([\w,]+) (seed|draw|network|layer|subset)s\b", caption):
        number = NUMBERS.get(word, int(word.replace(",", "")) if word[0].isdigit() else None)
        there = [size for name, size in known if noun in name and name != noun and isinstance(size, int)]
        if number is not None and number not in there:
            yield f"caption: it counts {number} {noun}s, there are {there}"


def texts(figure) -> list[Text]:
    """Every text that shows: of the axes, their ticks within view, the legends and the figure."""
    hidden = {
        text
        for axis in figure.axes
        if not axis.axison
        for each in (axis.xaxis, axis.yaxis)
        for text in each.findobj(Text)
    }
    for axis in figure.axes:
        for each in (axis.xaxis, axis.yaxis):
            ticks = [*each.get_major_ticks(), *each.get_minor_ticks()]
            hidden |= {text for tick in ticks for text in tick.findobj(Text)} - set(_tick_labels(each))
    return [text for text in figure.findobj(Text) if _shows(text) and text not in hidden]


def _tick_labels(axis) -> list[Text]:
    """The numbers at an axis within its view."""
    at = axis.get_transform().transform
    low, high = sorted(at(axis.get_view_interval()))
    margin = 1e-9 * (high - low)
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if low - margin <= at(tick.get_loc()) <= high + margin]


def _shows(text: Text) -> bool:
    return bool(text.get_visible() and text.get_text().strip())


def axes_of(figure) -> list:
    """All axes but color bars and pictures, those placed by hand included."""
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>" and axis.axison]


def drawn(axis) -> list:
    """The artists that show data, without error bars and their caps: those have the caption."""
    bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    skipped = {id(part) for c in bars for parts in c.lines[1:] for part in parts}
    artists = (*axis.lines, *axis.collections, *axis.patches, *axis.images)
    return [each for each in artists if each.get_visible() and id(each) not in skipped]


def has_bars(figure) -> bool:
    """Whether there are error bars or bands between two curves."""
    for axis in axes_of(figure):
        bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer) and (c.has_yerr or c.has_xerr)]
        if bars or any(type(each).__name__ == "FillBetweenPolyCollection" for each in axis.collections):
            return True
    return False


def marks(artist) -> set[tuple[str, str]]:
    """(color, form) of what an artist draws; the form is a linestyle, a marker or "area"."""
    if isinstance(artist, Line2D):
        lined = artist.get_linestyle() != "None" and artist.get_linewidth()
        forms = [artist.get_linestyle()] if lined else []
        forms += [str(artist.get_marker())] if artist.get_marker() not in ("None", None, "", " ") else []
        return {(to_hex(artist.get_color()), form) for form in forms}
    if isinstance(artist, LineCollection):
        return {(to_hex(color), "-") for color in artist.get_colors()}
    if isinstance(artist, Collection) and artist.get_array() is None:
        return {(to_hex(color), "area") for color in artist.get_facecolor() if to_rgba(color)[3]}
    if isinstance(artist, Patch) and artist.get_fill() and to_rgba(artist.get_facecolor())[3]:
        return {(to_hex(artist.get_facecolor()), "area")}
    return set()


def reaches(artist, box: Bbox) -> bool:
    """Whether an artist draws anything within a box in pixels."""
    if isinstance(artist, PathCollection):
        return _contains(box, artist.get_offset_transform().transform(artist.get_offsets()))
    if isinstance(artist, Line2D):
        path = artist.get_transform().transform_path(artist.get_path()).cleaned(remove_nans=True)
        lined = artist.get_linestyle() != "None" and path.intersects_bbox(box, filled=False)
        return lined or (artist.get_marker() != "None" and _contains(box, path.vertices))
    if isinstance(artist, (PolyCollection, LineCollection)):
        filled, paths = (
            isinstance(artist, PolyCollection),
            map(artist.get_transform().transform_path, artist.get_paths()),
        )
        return any(path.cleaned(remove_nans=True).intersects_bbox(box, filled=filled) for path in paths)
    if isinstance(artist, Patch):
        return artist.get_transform().transform_path(artist.get_path()).intersects_bbox(box, filled=True)
    return True  # a map or an image fills its panel


def _contains(box: Bbox, points) -> bool:
    return bool(np.any(np.all((points > box.min) & (points < box.max), axis=1)))
