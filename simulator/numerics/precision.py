"""What the precision of stored rows can tell apart: a gap from rounding, and one row from its copies.

Rows come from files of few significant bits, often after a mean was taken off. What is left of a gap then has the size
of rounding, and the same text embedded twice has two rows that differ in the last bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDOFF = dict(bfloat16=2.0**-8, float16=2.0**-11, float32=2.0**-24, float64=2.0**-53)
# Times the root mean square bound: a Gaussian error exceeds it once in 10,000, and rounding is 0.7 of the bound.
SAFETY = 4.0
SKETCH_WIDTH = 8  # numbers kept of each row: of 10⁶ bfloat16 rows, no two that lie apart are taken for copies


def significant_bits(rows: np.ndarray) -> int:
    """The smallest number of significant bits that holds every one of the float64 numbers exactly, at least 1."""
    fractions = np.ascontiguousarray(rows, np.float64).view(np.uint64).ravel() & np.uint64(2**52 - 1)
    used = int(np.bitwise_or.reduce(fractions))
    return 53 - ((used & -used).bit_length() - 1) if used else 1


def roundoff_of(bits: int) -> float:
    """Unit roundoff u of the narrowest type (bfloat16, float16, float32, float64) with that many significant bits."""
    return next(u for u in ROUNDOFF.values() if bits <= round(-np.log2(u)))


def mean_floor(count: int, power, roundoff: float):
    """Length that the mean of rows can have by rounding alone, after their own mean was taken off.

        floor = 4 R √((u²(1 + 1/n) + w² n/3)/3),   R² = mean squared length of a row, w = min(u, 2⁻²⁴).

    A number v that is rounded to nearest is off by at most u|v|, evenly distributed: u|v|/√3 in root mean square. Three
    roundings are left in the mean of n rows that were centred and stored at precision u:
        the stored rows, whose errors average out: u R/√(3n);
        the mean that was taken off, rounded once for all rows: u‖μ‖/√3, μ the mean as it was, R in place of ‖μ‖;
        the sum behind it, of precision w (libraries add halves in float32), added row by row as NumPy does: partial
        sums are at most k R long, so (1/n)√(Σ_k w² k² R²/3) = w R √(n/9).
    The factor 4 covers a μ up to some four times as long as what is left of the rows. Of two means, the floor of their
    difference is √(floor_x² + floor_y²).

    Args:
      count: n.
      power: R², in squared units of the rows.
      roundoff: u.

    Returns:
      The floor, in units of the rows.

    Assumes: rounding to nearest, numbers in the normal range of their type.
    Source: derived here.
    """
    sum_roundoff = min(roundoff, ROUNDOFF["float32"])
    return SAFETY * (power * (roundoff**2 * (1 + 1 / count) + sum_roundoff**2 * count / 3) / 3) ** 0.5


class Stored(NamedTuple):
    """Number of rows, their mean squared length, and their unit roundoff."""

    count: int
    power: float
    roundoff: float


def stored(rows: np.ndarray, roundoff: float = 0.0) -> Stored:
    """What `gap_floor` needs of rows [n, d], stored at the precision of their numbers or at a coarser roundoff."""
    bits = significant_bits(rows)
    return Stored(len(rows), float(np.mean(np.sum(rows**2, axis=1))), max(roundoff, roundoff_of(bits)))


def gap_floor(x, y) -> float:
    """Length up to which the gap between two modalities is rounding: √(floor_x² + floor_y²) of `mean_floor`.

    Args:
      x, y: `Stored` or `streaming.Moments` of each modality.
    """
    return float(np.hypot(*(mean_floor(m.count, m.power, m.roundoff) for m in (x, y))))


def sketch(rows: np.ndarray) -> np.ndarray:
    """Eight numbers of each row [n, d] whose distances are in the mean square those of the rows: a fixed random projection,
    or the rows themselves if d is not larger."""
    dimensions = rows.shape[1]
    if dimensions <= SKETCH_WIDTH:
        return np.array(rows, float)
    # Its entries are independent of the rows, and the same in every run.
    return rows @ np.random.default_rng(8).normal(size=(dimensions, SKETCH_WIDTH)) / SKETCH_WIDTH**0.5


def copies(sketches: np.ndarray, dimensions: int, roundoff: float) -> np.ndarray:
    """A number for each row [n]; rows with one number are copies: equal up to rounding.

    Two rows are copies if they are linked by steps of at most
        2 u R + 4 √d 2⁻²⁴ S,   R the median length of a row, S the median distance from the median row:
    storing each of the two moves it by at most u R, and a model that computes in float32 returns the last layer's sums
    of d products with errors of some √d 2⁻²⁴ of what varies, which change with the batch that a row is in.

    Args:
      sketches: `sketch` of the rows [n, ≤ 8].
      dimensions: d.
      roundoff: u of the stored rows.

    Error: distances are those of the sketches, which for d > 8 are right within a factor of two for most pairs; of rows
    that lie 10 steps apart one pair in 10⁷ is taken for copies.
    Source: derived here.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    largest = np.abs(sketches).max()
    sketches = sketches / (largest if largest > 0 else 1.0)
    centre = np.median(sketches, axis=0)
    length, spread = (np.median(np.linalg.norm(a, axis=1)) for a in (sketches, sketches - centre[None, :]))
    step = 2 * roundoff * length + 4 * dimensions**0.5 * ROUNDOFF["float32"] * spread
    # Rows in one cell (at most 2.8 steps apart) are one point of the tree, so that many copies are not many pairs.
    cells = np.floor((sketches - centre[None, :]) / step) if step > 1e-100 else sketches
    kept, of_row = np.unique(_hashed(cells), return_index=True, return_inverse=True)[1:]
    pairs = KDTree(sketches[kept]).query_pairs(step, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs), bool), pairs.T), shape=(len(kept), len(kept)))
    return connected_components(links, directed=False)[1][of_row.reshape(-1)]


def equal_rows(rows: np.ndarray, roundoff: float = 0.0) -> np.ndarray:
    """`copies` of rows [n, d] held in memory, stored at the precision of their numbers or at a coarser roundoff."""
    return copies(sketch(rows), rows.shape[1], max(roundoff, roundoff_of(significant_bits(rows))))


def _hashed(cells: np.ndarray) -> np.ndarray:
    """A 64-bit number for each row of whole numbers [n, k]: equal for equal rows, and for others hardly ever."""
    factors = np.random.default_rng(64).integers(1, 2**63, size=cells.shape[1], dtype=np.uint64) | np.uint64(1)
    words = np.ascontiguousarray(cells + 0.0).view(np.uint64)  # −0 equals 0
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(32))) * factors[None, :]
    return words.sum(axis=1, dtype=np.uint64)
