"""Figures as inline SVG: small, with ids of their own, and with text that can be searched, selected and read aloud."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from experiments.plotting import ONE_COLUMN, STYLE

_SPACE, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_GROUP, _DEFS, _STYLE, _META, _TEXT, _SPAN = (
    f"{{{_SPACE}}}{name}" for name in ("g", "defs", "style", "metadata", "text", "tspan")
)
_FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"  # the first is the one drawn with; the others are on every phone
_MOST_POINTS = 3000  # of one artist; with more it becomes an image
_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_ROUNDED = ("d", "x", "y", "width", "height", "points")  # not "transform": its factors may be small


def draw_svg(draw: Callable[[Any], Any], data: Any, prefix: str, title: str) -> Markup:
    """What `draw` makes of `data`, as an <svg> element for a page.

    Args:
        draw: from data to a matplotlib figure.
        data: what it draws.
        prefix: begins every id and class inside, so that many figures share one page.
        title: what the figure shows, for those who cannot see it.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.image_inline": True, "figure.dpi": 150}
    with plt.style.context(STYLE), plt.rc_context(settings):
        figure = draw(data)
        for artist in (artist for axis in figure.axes for artist in (*axis.collections, *axis.lines)):
            if _points(artist) > _MOST_POINTS:
                artist.set_rasterized(True)
        text = io.StringIO()
        # Not savefig, which draws twice: once for the layout that this one draws with as well.
        FigureCanvasSVG(figure).print_svg(text, metadata=dict(Date=None, Creator=None, Format=None, Type=None))
        plt.close(figure)
    return compact_svg(text.getvalue(), prefix, title)


def _points(artist) -> int:
    """How many points a line or a collection is made of."""
    return len(artist.get_offsets() if hasattr(artist, "get_offsets") else artist.get_xdata())


def compact_svg(text: str, prefix: str, title: str) -> Markup:
    """An SVG file of matplotlib as an element for a page: without metadata, groups of nothing and digits below 0.01 point;
    styles named once; ids that something refers to begin with `prefix`, the others go."""
    root = ElementTree.fromstring(text)
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (_META, _STYLE):
                element.remove(child)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    names = {old: f"{prefix}-{i}" for i, old in enumerate(dict.fromkeys(a or b for a, b in sorted(used)))}
    styles: dict[str, str] = {}
    for element in root.iter():
        _tidy(element, names, styles, prefix)
    _unwrap(root)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    root.attrib.pop("version", None)
    root.attrib |= {
        "role": "img",
        "aria-label": title,
        "font-family": _FONTS,
        "stroke-linejoin": "round",
        "style": f"--width:{width:.0f}",
        "class": "wide" if width > 72 * ONE_COLUMN + 1 else "narrow",
    }
    sheet = ElementTree.Element(_STYLE)
    sheet.text = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    root.insert(0, sheet)
    ElementTree.register_namespace("", _SPACE)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(element, names: dict[str, str], styles: dict[str, str], prefix: str) -> None:
    """Names, numbers, styles and white space of one element."""
    attributes = element.attrib
    if (name := attributes.pop("id", None)) in names:
        attributes["id"] = names[name]
    if link := attributes.pop(_LINK, None):
        attributes["href"] = "#" + names[link[1:]] if link.startswith("#") else link.replace("\n", "")
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "clip-path" in attributes:
        attributes["clip-path"] = f"url(#{names[attributes['clip-path'][5:-1]]})"
    for key in _ROUNDED:
        if key in attributes and not attributes[key].endswith("pt"):
            rounded = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), attributes[key])
            attributes[key] = re.sub(r"\s*([A-Za-z])\s*", r"\1", rounded) if key == "d" else rounded
    if style := attributes.pop("style", None):
        style = re.sub(r"\s*([;:,])\s*", r"\1", re.sub(r"font-family:[^;]+;?", "", style)).strip("; ")
        attributes["class"] = styles.setdefault(style, f"{prefix}-s{len(styles)}")
    if element.tag == _TEXT and len(element):
        _join_spans(element)
    if element.tag not in (_TEXT, _SPAN) or len(element):
        element.text = (element.text or "").strip() or None
    element.tail = (element.tail or "").strip() or None


def _join_spans(text) -> None:
    """One <tspan> for neighbours on one line in one style, where matplotlib has one for every letter: what reads a text
    reads whole words. Each letter keeps its place, since letters of another style may stand between them."""
    spans = list(text)
    text[:] = spans[:1]
    for before, span in zip(spans, spans[1:], strict=False):
        last = text[-1]
        if all(span.get(name) == before.get(name) for name in ("y", "style")):
            last.text = (last.text or "") + (span.text or "")
            last.set("x", f"{last.get('x')} {span.get('x')}")
        else:
            text.append(span)


def _unwrap(element) -> None:
    """Put the children of groups without attributes in their place, and drop empty groups and definitions."""
    children = []
    for child in list(element):
        _unwrap(child)
        if child.tag in (_GROUP, _DEFS) and not len(child):
            continue
        children += list(child) if child.tag == _GROUP and not child.attrib else [child]
    element[:] = children
