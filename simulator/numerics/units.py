"""Units in which float64 holds every score of a search, whatever the size and the place of the rows.

Euclidean decisions do not change when all rows move together, and no decision changes when rows, noise and biases are
scaled together. So rows are moved to a common centre and divided by powers of two, which is exact, before a square or a
product is taken of them: far from the origin the squares would lose the distances, and rows of 1e200 or 1e-200 would
overflow or vanish.

Float64 NumPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """A search in units of its own: the same answers, clean and under noise, with numbers of order 1 at most.

    Attributes:
      gallery, queries: [K, d], [n, d], float64.
      sigma_gallery, sigma_queries: standard deviation of the noise per coordinate in the units of either side.
      bias: [K], or None.
    """

    gallery: np.ndarray
    queries: np.ndarray
    sigma_gallery: float
    sigma_queries: float
    bias: np.ndarray | None


def in_own_units(gallery, queries, *, sigma: float, scoring: str, bias=None, centre=None) -> Problem:
    """Rows, noise and bias moved and scaled so that no score overflows, vanishes or drowns in a common offset.

    "sqeuclidean": (x − c)/s, (y − c)/s, σ/s, b/s² with c the mean row; "dot": x/s, y/t, b/(st), without a move;
    "cosine": x/s, y/t, b. s and t are powers of two.

    Args:
      gallery, queries: [K, d], [n, d], finite, of any real dtype.
      sigma: standard deviation of the noise per coordinate, >= 0.
      scoring: "sqeuclidean", "dot" or "cosine".
      bias: [K], see `require_bias`; None for none.
      centre: c [d], for galleries that are to be moved alike; None for the mean of the gallery.

    Returns:
      Problem.
    """
    gallery, queries = np.asarray(gallery, float), np.asarray(queries, float)
    weight = 0.0 if bias is None else float(np.abs(bias).max())
    if scoring == "sqeuclidean":
        # Rows near the largest float64 are halved in size first, so that no difference overflows.
        down = max(_exponent(gallery), _exponent(queries)) - 1000 if _largest(gallery, queries) > 1e300 else 0
        gallery, queries = np.ldexp(gallery, -down), np.ldexp(queries, -down)
        centre = gallery.mean(axis=0) if centre is None else np.ldexp(np.asarray(centre, float), -down)
        gallery, queries = gallery - centre[None, :], queries - centre[None, :]
        size = max(_largest(gallery, queries), float(np.ldexp(sigma, -down)), float(np.ldexp(weight**0.5, -down)))
        s = t = _exponent(size)
        own = s + down
        shared = 2 * own
    else:
        down, t = 0, _exponent(queries)
        s = _exponent(max(_largest(gallery), sigma, float(np.ldexp(weight, -t)) if scoring == "dot" else 0.0))
        own, shared = s, s + t if scoring == "dot" else 0
    return Problem(
        np.ldexp(gallery, -s), np.ldexp(queries, -t), float(np.ldexp(sigma, -own)),
        float(np.ldexp(sigma, -(t + down))), None if bias is None else np.ldexp(np.asarray(bias, float), -shared),
    )  # fmt: skip


def require_bias(bias, num_rows: int) -> np.ndarray | None:
    """The bias [K] in float64 less its middle, which changes no answer; ValueError unless there is one finite number
    per gallery row."""
    if bias is None:
        return None
    values = np.asarray(bias)
    numbers = values.dtype.kind in "fiub" or values.dtype.name == "bfloat16"
    if values.shape != (num_rows,) or not numbers or not np.isfinite(values.astype(float)).all():
        raise ValueError(
            f"bias has shape {values.shape} and dtype {values.dtype}; expected one finite number for each of "
            f"{num_rows} gallery rows: leave a row out to exclude it"
        )
    values = values.astype(float)
    return values - (0.5 * values.min() + 0.5 * values.max())


def _largest(*arrays) -> float:
    return max(float(np.abs(a).max()) for a in arrays)


def _exponent(value) -> int:
    """e with 2^{e−1} <= largest absolute value < 2^e; 0 for zeros."""
    return int(np.frexp(_largest(np.asarray(value)))[1])


def resolved(sigma: float, *values: np.ndarray) -> float:
    """σ, brought to between 1e-75 and 1e75 times the largest of these numbers: beyond, the noise alone decides or does
    nothing, to the last digit of a probability, and σ² or its inverse would leave float64."""
    largest = max(float(np.abs(each).max(initial=0.0)) for each in values) or 1.0
    return float(np.clip(sigma, max(1e-75 * largest, 1e-150), min(1e75 * largest, 1e150)))
