"""When the sigmoid loss can be driven to zero by its temperature and bias, and what that says about the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_number, require_paired


class Margin(NamedTuple):
    """margin: m; relative_bias: b_r, the level halfway between the lowest positive and the highest negative cosine."""

    margin: float
    relative_bias: float


def constellation_margin(x, y) -> Margin:
    """The largest m for which the rows are an (m, b_r)-constellation.

    (a) ⟨x_i, y_i⟩ ≥ b_r + m and ⟨x_i, y_j⟩ ≤ b_r − m for all j ≠ i:  m = ½( min_i s_ii − max_{i≠j} s_ij ).

    The infimum of the sigmoid loss over t = 1/τ > 0 and b is 0 if and only if m > 0. If m > 0, then b = −t b_r gives
    L ≤ n ln(1 + e^{−tm}) → 0. If m ≤ 0, then for any t and b some positive logit lies below some negative one, so that one
    of the two has the wrong sign, and its term alone is at least ln 2:  (b) L ≥ ln 2 / n.

    Args:
      x, y: unit rows [n, d]; row i of x pairs with row i of y.

    Returns:
      Margin; negative where no level separates positives from negatives.

    Raises:
      ValueError: rows that cannot be paired, fewer than 2 of them.

    Error: exact.
    Source: Bangachev et al. 2025, arXiv 2509.18552; the value (b) between zero and not zero: derived here.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    require_paired(x, y)
    if len(x) < 2:
        raise ValueError("a constellation needs 2 pairs or more: one pair has no negatives")
    scores = x @ y.T
    lowest, highest = np.diag(scores).min(), scores[~np.eye(len(x), dtype=bool)].max()
    return Margin(float((lowest - highest) / 2), float((lowest + highest) / 2))


def predicted_margin_bounds(loss, scale, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Between which values the margin at the trained level lies, from the loss and the scale alone.

    (c) −ln(e^{nL} − 1)/t  ≤  m(b)  ≤  −ln(e^{L/n} − 1)/t,  m(b) = min over all n² pairs of z_ij (s_ij + b/t).

    n L is a sum of n² terms ln(1 + e^{−t z (s + b/t)}); the largest is at most the sum and at least its n²-th part.

    Args:
      loss: L > 0 in nats.
      scale: t = 1/τ > 0.
      num_pairs: n.

    Returns:
      (lower, upper), in units of the cosine.

    Raises:
      ValueError: a loss or scale that is not positive.

    Error: exact. Source: derived here.
    """
    for name, values in (("loss", loss), ("scale", scale)):
        require_number(name, float(np.min(values)), above=0.0)
    loss, scale = np.asarray(loss, float), np.asarray(scale, float)
    return tuple(-np.log(np.expm1(loss * factor)) / scale for factor in (num_pairs, 1 / num_pairs))
