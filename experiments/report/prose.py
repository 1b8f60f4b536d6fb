"""Claims, captions and numbers as HTML: links, code, powers and indices are set; all else stays as it was written."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from markupsafe import Markup, escape

_CORE_PAPER = "2603.29080"  # Chowers et al. 2026, whose number stands nowhere in the text
_TOKEN = re.compile(
    r"""`(?P<code>[^`]+)`
  | arXiv[: ](?P<arxiv>\d{4}\.\d{4,5}) | (?P<paper>Chowers\ et\ al\.\ 2026)
  | (?<![\w./-])(?P<claim>[A-Z]\d{1,2}T?)(?![\w^])
  | (?<![\w.])(?P<factor>\d+(?:\.\d+)?)e(?P<power>[+-]?\d+)\b                              # 1e-05
  | (?<![A-Za-z]{2})(?<=\S)(?P<script>[_^])(?:\{([^{}]*)\}|\(([^()]*)\)|([−+-]?\d+(?:/\d+)?|[^\W\d_]+\d*|½))  # x_k, not gap_law
    """,
    re.VERBOSE,
)


def set_text(text: str, claims: Collection[str] = ()) -> Markup:
    """Text with code in its own font, x_k, e^{−C}, s^(1/κ) and 1e-9 with sub- and superscripts; papers with an arXiv number
    and the ids among `claims` become links."""

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return f"<code>{match['code']}</code>"
        if match["arxiv"] or match["paper"]:
            return f'<a href="https://arxiv.org/abs/{match["arxiv"] or _CORE_PAPER}">{match[0]}</a>'
        if match["claim"]:
            return f'<a href="#{match[0]}">{match[0]}</a>' if match[0] in claims else match[0]
        if match["power"]:
            return _power(match["factor"], match["power"])
        tag, inside = "sub" if match["script"] == "_" else "sup", next(filter(None, match.groups()[-3:]), "")
        return f"<{tag}>{_TOKEN.sub(replace, inside).replace('-', '−')}</{tag}>"

    return Markup(_TOKEN.sub(replace, str(escape(text))))


def _power(factor: str, power: str) -> str:
    times = "" if factor == "1" else f"{factor} × ".replace("-", "−")
    return f"{times}10<sup>{str(int(power)).replace('-', '−')}</sup>"


def set_number(value: float | None, digits: int = 3) -> Markup:
    """A number with so many significant digits, large and small ones with a power of ten; None is infinite, as in JSON."""
    if value is None or not math.isfinite(value):
        return Markup("none" if value is not None and math.isnan(value) else "−∞" if value == -math.inf else "∞")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        shown = f"{value:.{digits}g}" if abs(value) < min(10**digits, 1000) else f"{value:,.0f}"
        return Markup(shown.replace("-", "−"))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return Markup(_power(f"{float(mantissa):g}", power))
