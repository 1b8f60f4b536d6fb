"""From the plain text of claims, captions and numbers to well-set HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from markupsafe import Markup, escape

_GREEK = "αβγδεζηθικλμνξπρςστυφχψω"
# Where a line should not be broken: between the letters of a formula, after the name of a function, at = and ±.
_TIED = re.compile(
    r"(?<=</i>) (?=<i>)|(?<=</su[bp]>) (?=<i>)|(?<=cos|sin|log|min|max) (?=<i>)|(?<=ln|tr) (?=<i>)"
    r"|(?<=>) (?:[=≥≤≠≪≫]|&[lg]t;) (?=[\d−<])|(?<=\d) ± (?=\d)|(?<=\d) (?=%)"
)
_SIGNS = {">=": "≥", "<=": "≤", "->": "→", "-": "−"}
# The first alternative that matches is taken, so what is longer or rarer comes first.
_TOKEN = re.compile(
    rf"""
    (?<![\w'])'(?=\w)(?P<quoted>[^']+)'(?!\w)                      # 'a near miss'
  | `(?P<code>[^`]+)` | (?<![\w./])(?P<path>(?:simulator|experiments)[./][\w./]*\w | \w+\.(?:md|py|nc)\b)
  | arXiv[:\ ](?P<arxiv>\d{{4}}\.\d{{4,5}})
  | (?P<paper>Chowers\ et\ al\.\ 2026)                             # the core paper; its number stands nowhere in the text
  | (?<![A-Za-z0-9])(?P<claim>[CNP]\d{{1,2}}T?)(?![A-Za-z0-9_^])
  | (?<![\w.])(?P<factor>\d+(?:\.\d+)?)e(?P<minus>[+-]?)0*(?P<power>\d+)\b     # 1e-05
  | (?<=\S)(?P<script>[_^])(?:\{{(?P<braces>[^{{}}]*)\}} | (?P<token>[−+-]?\d+(?:/\d+)?|[A-Za-z{_GREEK}]+\d*|½))
  | (?<=\S)\^\((?P<brackets>[^()]*)\)                              # s^(−1/κ)
  | (?P<sign>>=|<=|->|(?<![\w.)-])-(?=\d))
  | (?<!\w)(?P<panel>\([a-j](?:,\ [a-j])*\))                       # (a), (a, b): parts of a figure, no variables
  | (?P<label>Fig\.\ \d[a-z])
  | (?<![A-Za-z'’.])(?<![A-Za-z]-)(?P<variable>[B-Zb-z] | [Aa](?=[_^/=+−²⁻ᵀ*(.,;)]|\ [=+−/]|$))(?![A-Za-z0-9@]|\.[A-Za-z])(?P<prime>'(?![A-Za-z]))?
  | (?P<greek>[{_GREEK}])(?P<stroke>'(?![A-Za-z]))?
  | (?P<apostrophe>')
    """,
    re.VERBOSE,
)


def set_text(text: str, claims: Collection[str] = ()) -> Markup:
    """Text with its formulas set: x_k, e^{−C}, s^(1/κ), 1e-9 with sub- and superscripts, single letters in italics, g' with
    a prime, code in its own font; arXiv numbers and the ids among `claims` become links. All else is escaped."""
    pieces, at = [], 0
    for match in _TOKEN.finditer(text):
        pieces += [escape(text[at : match.start()]), _set(match, claims)]
        at = match.end()
    whole = str(Markup("").join([*pieces, escape(text[at:])]))
    return Markup(_TIED.sub(lambda match: match[0].replace(" ", "&nbsp;"), whole))


def _set(match: re.Match[str], claims: Collection[str]) -> Markup:
    part = {name: value for name, value in match.groupdict().items() if value is not None}
    if "quoted" in part:
        return Markup("‘{}’").format(set_text(part["quoted"], claims))
    if "code" in part or "path" in part:
        return Markup("<code>{}</code>").format(part.get("code", part.get("path")))
    if "arxiv" in part:
        return link_arxiv(match[0], part["arxiv"])
    if "paper" in part:
        return link_arxiv(match[0], "2603.29080")
    if "claim" in part:
        return Markup('<a href="#{0}">{0}</a>').format(match[0]) if match[0] in claims else escape(match[0])
    if "power" in part:
        factor = "" if part["factor"] == "1" else part["factor"] + " × "
        return Markup("{}10<sup>{}{}</sup>").format(factor, "−" if part["minus"] == "-" else "", part["power"])
    if "script" in part:
        tag = Markup("sub" if part["script"] == "_" else "sup")
        script = part.get("braces", part.get("token", ""))
        return Markup("<{0}>{1}</{0}>").format(tag, set_text(script.replace("-", "−")))
    if "brackets" in part:
        return Markup("<sup>{}</sup>").format(set_text(part["brackets"]))
    if "sign" in part:
        return Markup(_SIGNS[part["sign"]])
    if "variable" in part or "greek" in part:
        prime = "′" if "prime" in part or "stroke" in part else ""
        return Markup("<i>{}</i>{}").format(part.get("variable", part.get("greek")), prime)
    return Markup("’") if "apostrophe" in part else escape(match[0])


def link_arxiv(text: str, number: str) -> Markup:
    """A link to a paper by its arXiv number."""
    return Markup('<a href="https://arxiv.org/abs/{}">{}</a>').format(number, text)


def set_number(value: float | None, digits: int = 3) -> Markup:
    """A number with so many significant digits, large and small ones with a power of ten; None is infinite, as in JSON."""
    if value is None or not math.isfinite(value):
        return Markup("none" if value is not None and math.isnan(value) else "−∞" if value == -math.inf else "∞")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        shown = f"{value:.{digits}g}" if abs(value) < min(10**digits, 1000) else f"{value:,.0f}"
        return Markup(shown.replace("-", "−"))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return Markup("{} × 10<sup>{}</sup>").format(*(part.replace("-", "−") for part in (mantissa, str(int(power)))))
