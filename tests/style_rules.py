"""The look of every figure, as rules: each looks at a drawn matplotlib figure and returns its complaints, none for good.

A rule judges what is drawn, not how: bounding boxes come from the renderer, colours and sizes from the artists.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from experiments import plotting

POINT = 1 / 72  # inches
HEIGHTS = (1.8, 8.5)  # inches: neither a ribbon nor taller than a page with its caption
STYLE = matplotlib.rc_params_from_file(plotting.STYLE, fail_on_error=True, use_default_template=False)
SIZES = {
    plotting.SMALL,
    *(size for name, size in STYLE.items() if re.search(r"(font|label|title_?font|title)\.?size$", name)),
}
PALETTE = {color.lower() for color in (*plotting.COLORS, plotting.CONTROL, "#000000", "#ffffff")}
# Two lines that cross must not be of one linestyle and marker with lightness (CIE L*) closer than this.
LIGHTNESS = 20.0
RAW = re.compile(r"[\^_■]|\d[eE][-+]?\d|[<>]=|\+/-")
NUMBERS = dict(two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12)


def complaints(figure, caption: str, data) -> list[str]:
    """What breaks the style.

    Args:
      figure: drawn within the style.
      caption: of the figure.
      data: the numbers behind it; what the caption counts (seeds, draws) must be there in its sizes or its settings.
    """
    figure.draw_without_rendering()
    rules = (has_size, has_fonts, has_palette, is_lettered, is_labelled, has_plain_signs, has_no_junk, fits,
             has_clear_legends, works_in_grey)  # fmt: skip
    found = [words for rule in rules for words in rule(figure)]
    found += [*explains_looks(figure, caption), *explains_bars(figure, caption), *names_panels(figure, caption)]
    return [*found, *counts(caption, data)]


def has_size(figure) -> Iterator[str]:
    """One column or two, and a height that fits a page."""
    width, height = figure.get_size_inches()
    if width not in (plotting.ONE_COLUMN, plotting.TWO_COLUMNS):
        yield f"size: {width:g} inches wide, neither {plotting.ONE_COLUMN} nor {plotting.TWO_COLUMNS}"
    if not HEIGHTS[0] <= height <= HEIGHTS[1]:
        yield f"size: {height:g} inches high, not within {HEIGHTS}"


def has_fonts(figure) -> Iterator[str]:
    """One family, and only the sizes of the style; the smallest is 6 points."""
    for text in texts(figure):
        if text.get_fontfamily() != STYLE["font.family"]:
            yield f"font: {text.get_text()!r} in {text.get_fontfamily()}"
        if text.get_fontsize() not in SIZES or text.get_fontsize() < 6:
            yield f"font: {text.get_text()!r} has {text.get_fontsize():g} points, not one of {sorted(SIZES)}"


def has_palette(figure) -> Iterator[str]:
    """Okabe and Ito's colours, the control's grey, black and white; maps in cividis."""
    for axis in figure.axes:
        for artist in [*drawn(axis), *axis.texts]:
            if getattr(artist, "get_array", lambda: None)() is not None:
                if artist.get_cmap().name != "cividis":
                    yield f"colour: a map in {artist.get_cmap().name}"
            elif colors_of(artist) - PALETTE:
                yield f"colour: {sorted(colors_of(artist) - PALETTE)} of {artist}"


def is_lettered(figure) -> Iterator[str]:
    """(a), (b), … at the left of every panel's title if there are several; no title elsewhere."""
    shown = plotting.panels(figure)
    for axis, letter in zip(shown, "abcdefghijklmnopqrstuvwxyz", strict=False):
        if len(shown) > 1 and not re.match(rf"\({letter}\)( |$)", axis.get_title("left")):
            yield f"letter: the title {axis.get_title('left')!r} does not begin with ({letter})"
        if axis.get_title("center") or axis.get_title("right"):
            yield f"letter: {axis.get_title('center')!r} is not at the left"


def is_labelled(figure) -> Iterator[str]:
    """Every axis says what it is, unless it shares a labelled one and shows no numbers."""
    for panel in plotting.panels(figure):
        for name in "xy":
            axis = getattr(panel, f"{name}axis")
            if axis.get_label_text():
                continue
            group = getattr(panel, f"get_shared_{name}_axes")().get_siblings(panel)
            if any(tick_texts(axis)) or not any(getattr(each, f"{name}axis").get_label_text() for each in group):
                yield f"label: the {name} axis of {panel.get_title('left')!r} has none"
    for axis in figure.axes:
        if axis.get_label() == "<colorbar>" and not (axis.get_xlabel() or axis.get_ylabel()):
            yield "label: a colour bar has none"


def has_plain_signs(figure) -> Iterator[str]:
    """No source of a formula where the formula is meant: ^, _, 1e-5, >=, and no drawn marker in words."""
    for text in texts(figure):
        if RAW.search(re.sub(r"\$[^$]*\$", "", text.get_text())):
            yield f"sign: {text.get_text()!r}"


def has_no_junk(figure) -> Iterator[str]:
    """Neither upper and right spines, grids, backgrounds, framed legends nor a title over all."""
    for axis in axes_of(figure):
        if axis.spines["top"].get_visible() or axis.spines["right"].get_visible():
            yield f"junk: {axis.get_title('left')!r} has an upper or right spine"
        if any(line.get_visible() for line in (*axis.get_xgridlines(), *axis.get_ygridlines())):
            yield f"junk: {axis.get_title('left')!r} has a grid"
        if to_hex(axis.get_facecolor()) != "#ffffff":
            yield f"junk: {axis.get_title('left')!r} has a background"
    for legend in legends(figure):
        if legend.get_frame_on():
            yield "junk: a legend has a frame"
    if figure.get_suptitle():
        yield "junk: a title over all panels; the caption says it"


def fits(figure) -> Iterator[str]:
    """No text beyond the edge of the figure, and none on another."""
    boxes = list(text_boxes(figure))
    least = 0.5 * POINT * figure.dpi
    page = figure.bbox
    for words, box in boxes:
        if min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) < -least:
            yield f"text: {words!r} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        if width > least and height > least:
            yield f"text: {one!r} lies on {other!r}"


def has_clear_legends(figure) -> Iterator[str]:
    """A legend is inside its panel or outside, not across the edge; neither it nor a name in the panel covers data."""
    for axis in axes_of(figure):
        named = [("legend", axis.get_legend())] if axis.get_legend() else []
        named += [(text.get_text(), text) for text in axis.texts if text.get_visible() and text.get_text()]
        for name, artist in named:
            box = artist.get_window_extent().padded(-1.5 * POINT * figure.dpi)
            inside = Bbox.intersection(box, axis.bbox)
            share = inside.width * inside.height / (box.width * box.height) if inside else 0.0
            if name == "legend" and 0.01 < share < 0.99:
                yield f"legend: that of {axis.get_title('left')!r} lies across the edge of the panel"
            for other in drawn(axis):
                if reaches(other, box):
                    yield f"legend: {name!r} of {axis.get_title('left')!r} covers {other}"
                    break


def works_in_grey(figure) -> Iterator[str]:
    """Lines that cross differ in linestyle, in marker (their own, or of points in their colour) or in lightness."""
    for axis in axes_of(figure):
        lines = [line for line in data_lines(axis) if line.get_linestyle() != "None" and len(line.get_path()) > 1]
        for one, other in itertools.combinations(lines, 2):
            colors = [to_hex(line.get_color()) for line in (one, other)]
            alike = colors[0] != colors[1] and abs(lightness(colors[0]) - lightness(colors[1])) < LIGHTNESS
            if alike and _look(axis, one) == _look(axis, other) and cross(one, other, axis.bbox, POINT * figure.dpi):
                yield f"grey: two lines of {axis.get_title('left')!r}, {colors[0]} and {colors[1]}, cross and look alike"


def explains_looks(figure, caption: str) -> Iterator[str]:
    """What no legend shows, the caption names: colours that share a panel, grey, dashed and dotted lines (a legend may
    show a linestyle in black or grey for every colour)."""
    shown = {look for legend in legends(figure) for artist in legend.findobj() for look in looks(artist)}
    neutral = {style for color, style in shown if color in ("#000000", plotting.CONTROL.lower())}
    words = {"--": "dashed", ":": "dotted", "-.": "dash-dotted"}
    names = dict(zip(plotting.COLORS, ("blue", "red", "green", "pink", "orange", "sky"), strict=True))
    for axis in axes_of(figure):
        found = {look for artist in drawn(axis) for look in looks(artist)}
        colors = {color for color, _ in found} & {color.lower() for color in plotting.COLORS}
        named = {color for color, _ in shown} | {to_hex(text.get_color()) for text in axis.texts}
        title = axis.get_title("left")
        for color in colors - named if len(colors) > 1 else ():
            if names[color.upper()] not in caption.lower():
                yield f"caption: nothing says what {color} is in {title!r}"
        for color, style in found - shown:
            if color == plotting.CONTROL.lower() and "grey" not in caption.lower():
                yield f"caption: it does not say what is grey in {title!r}"
            if style in words and style not in neutral and words[style] not in caption.lower():
                yield f"caption: it does not say what is {words[style]} in {title!r}"


def explains_bars(figure, caption: str) -> Iterator[str]:
    """Bars and bands come with what they are: n standard errors over what, or the lowest and highest of what."""
    said = re.search(r"± \d (jackknife )?standard\s+errors?\s+over \w|lowest (to|and) (the )?highest|interval", caption)
    if has_bars(figure) and not said:
        yield "caption: it does not say what the bars or bands are (± n standard errors over …; lowest and highest of …)"


def names_panels(figure, caption: str) -> Iterator[str]:
    """The caption speaks of every panel by its letter and of no other, and in plain signs."""
    shown = plotting.panels(figure)
    letters = {chr(ord("a") + i) for i in range(len(shown))} if len(shown) > 1 else set()
    named = set()
    for group in re.findall(r"\(([a-z](?:(?:, |–)[a-z])*)\)", caption):
        for part in group.split(", "):
            named |= {chr(c) for c in range(ord(part[0]), ord(part[-1]) + 1)}
    if named != letters:
        yield f"caption: it names the panels {sorted(named)}, there are {sorted(letters)}"
    if RAW.search(caption):
        yield f"caption: {RAW.findall(caption)} in place of the formula"


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


def texts(figure) -> Iterator:
    """Every text that shows."""
    for axis in figure.axes:
        yield from (axis.title, axis._left_title, axis._right_title, axis.xaxis.label, axis.yaxis.label)
        yield from (text for text in axis.texts if text.get_visible())
        for each in (axis.xaxis, axis.yaxis):
            yield from tick_texts(each)
            yield each.offsetText
    yield from figure.texts
    for legend in legends(figure):
        yield from (legend.get_title(), *legend.get_texts())


def tick_texts(axis) -> Iterator:
    """The numbers at an axis that show."""
    for tick in axis._update_ticks() if axis.get_visible() and axis.axes.axison else ():
        yield from (label for label in (tick.label1, tick.label2) if label.get_visible() and label.get_text())


def text_boxes(figure) -> Iterator[tuple[str, Bbox]]:
    """What every text covers, in pixels; a legend counts as one."""
    members = {id(text) for legend in legends(figure) for text in (legend.get_title(), *legend.get_texts())}
    for text in texts(figure):
        if text.get_text().strip() and text.get_visible() and id(text) not in members:
            yield text.get_text(), text.get_window_extent()
    for legend in legends(figure):
        yield "legend", legend.get_window_extent()


def axes_of(figure) -> list:
    """All axes but colour bars, those placed by hand included."""
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>" and axis.axison]


def legends(figure) -> list:
    """Those of the panels and of the figure."""
    return [*(axis.get_legend() for axis in figure.axes if axis.get_legend()), *figure.legends]


def drawn(axis) -> list:
    """The artists that show data."""
    return [a for a in (*axis.lines, *axis.collections, *axis.patches, *axis.images) if a.get_visible()]


def data_lines(axis) -> list[Line2D]:
    """The lines of a panel without the caps of error bars."""
    caps = {id(cap) for c in axis.containers if isinstance(c, ErrorbarContainer) for cap in c.lines[1]}
    return [line for line in axis.lines if line.get_visible() and id(line) not in caps]


def has_bars(figure) -> bool:
    """Whether there are error bars or bands between two curves."""
    for axis in axes_of(figure):
        bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer) and (c.has_yerr or c.has_xerr)]
        if bars or any(type(each).__name__ == "FillBetweenPolyCollection" for each in axis.collections):
            return True
    return False


def looks(artist) -> set[tuple[str, str]]:
    """(colour, linestyle) of what an artist draws; "" for what is no line."""
    style = artist.get_linestyle() if isinstance(artist, Line2D) else ""
    return {(color, style if style != "None" else "") for color in colors_of(artist)}


def colors_of(artist) -> set[str]:
    """The colours that show, without their transparency."""
    if isinstance(artist, Line2D):
        found = [artist.get_color()] if artist.get_linestyle() != "None" and artist.get_linewidth() else []
        if artist.get_marker() not in ("None", None, "", " "):
            found += [artist.get_markerfacecolor(), artist.get_markeredgecolor()]
    elif isinstance(artist, Collection):
        found = [*artist.get_facecolor(), *(artist.get_edgecolor() if np.any(artist.get_linewidth()) else ())]
    elif isinstance(artist, Patch):
        found = [artist.get_facecolor()] if artist.get_fill() else []
        found += [artist.get_edgecolor()] if artist.get_linewidth() else []
    else:
        found = [artist.get_color()] if hasattr(artist, "get_color") else []
    return {to_hex(color) for color in found if not isinstance(color, str) or color != "none" if to_rgba(color)[3] > 0}


def reaches(artist, box: Bbox) -> bool:
    """Whether an artist draws anything within a box in pixels."""
    if isinstance(artist, PathCollection):
        return bool(np.any(_within(artist.get_offset_transform().transform(artist.get_offsets()), box)))
    if isinstance(artist, Line2D):
        path = artist.get_transform().transform_path(artist.get_path())
        markers = artist.get_marker() not in ("None", None, "", " ") and np.any(_within(path.vertices, box))
        return bool(markers or (artist.get_linestyle() != "None" and _passes(path, box, filled=False)))
    if isinstance(artist, (PolyCollection, LineCollection)):
        filled = isinstance(artist, PolyCollection)
        paths = (artist.get_transform().transform_path(path) for path in artist.get_paths())
        return any(_passes(path, box, filled=filled) for path in paths)
    if isinstance(artist, Patch):
        return _passes(artist.get_transform().transform_path(artist.get_path()), box, filled=True)
    return True  # a map or an image fills its panel


def _within(points, box: Bbox):
    return (points[:, 0] > box.x0) & (points[:, 0] < box.x1) & (points[:, 1] > box.y0) & (points[:, 1] < box.y1)


def _passes(path: Path, box: Bbox, *, filled: bool) -> bool:
    return path.cleaned(remove_nans=True).intersects_bbox(box, filled=filled)


def _look(axis, line: Line2D) -> tuple[str, frozenset[str]]:
    """Linestyle and markers: the line's own, and those of points in its colour."""
    same = [each for each in data_lines(axis) if to_hex(each.get_color()) == to_hex(line.get_color())]
    markers = {str(each.get_marker()) for each in same if each is line or each.get_linestyle() == "None"}
    return str(line.get_linestyle()), frozenset(markers - {"None"})


def cross(one: Line2D, other: Line2D, box: Bbox, points: float) -> bool:
    """Whether one line is more than two points above the other here and below it there, within a panel's box in pixels,
    `points` of which are a point."""
    paths = [line.get_transform().transform(line.get_xydata()) for line in (one, other)]
    paths = [path[np.all(np.isfinite(path), axis=1)] for path in paths]
    if any(len(path) < 2 or np.any(np.diff(path[:, 0]) < 0) for path in paths):
        return False
    low, high = max(path[0, 0] for path in paths), min(path[-1, 0] for path in paths)
    at = np.unique(np.concatenate([np.linspace(low, high, 200), *(path[:, 0] for path in paths)]))
    at = at[(at >= low) & (at <= high)]
    heights = [np.clip(np.interp(at, *path.T), box.y0, box.y1) for path in paths]
    difference = (heights[0] - heights[1]) / points
    return bool(len(at)) and difference.max() > 2 and difference.min() < -2


def lightness(color: str) -> float:
    """CIE L* of a colour, 0 (black) to 100 (white)."""
    channels = np.array(to_rgba(color)[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return float(116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance)
