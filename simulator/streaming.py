"""The measures of `geometry` for rows that arrive in blocks: memory for one block, sums in float64.

`geometry` has the definitions; what is here gives the same numbers to rounding, or an estimate from a random subset with
its standard error. A *source* is a function without arguments that starts reading again: source() yields [rows, d].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from simulator.losses import Similarity
from simulator.numerics import precision
from simulator.validation import require_memory

Source = Callable[[], Iterator[np.ndarray]]


def random_rows(source: Source, count: int, most: int, seed: int = 0) -> np.ndarray:
    """At most `most` random ones of the `count` rows of a source, in order, [m, d]; all of them if there are no more."""
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    kept, first = [], 0
    for block in source():
        at = np.searchsorted(chosen, (first, first + len(block)))
        kept.append(block[chosen[at[0] : at[1]] - first])
        first += len(block)
    return np.concatenate(kept)


class Moments(NamedTuple):
    """What one pass over the rows of a modality keeps.

    count: number of rows; mean [d]; covariance [d, d], divided by count, or the variances alone [d].
    half_means: [2, d], means of the even and of the odd rows, for `geometry.separability`.
    mean_direction: mean of the rows scaled to unit length [d].
    shortest, longest: smallest and largest norm of a row; first_zero: number of the first zero row, None without one.
    repeated: how many rows equal an earlier row bit by bit (by a 64-bit digest of each).
    roundoff: unit roundoff of the narrowest type that holds all the numbers, or of the type they were stored in.
    sketch: [n, ≤ 8], from which `copies` are told.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray
    half_means: np.ndarray
    mean_direction: np.ndarray
    shortest: float
    longest: float
    first_zero: int | None
    repeated: int
    roundoff: float
    sketch: np.ndarray

    @property
    def power(self) -> float:
        """Mean squared length of a row."""
        variances = self.covariance if self.covariance.ndim == 1 else np.diagonal(self.covariance)
        return float(self.mean @ self.mean + np.sum(variances))

    def copies(self) -> np.ndarray:
        """A number for each row [n], one for rows that are equal up to rounding (`precision.copies`)."""
        return precision.copies(self.sketch, len(self.mean), self.roundoff)


def moments(blocks: Iterable[np.ndarray], roundoff: float = 0.0, *, covariance: bool = True) -> Moments:
    """Mean, covariance and what else `Moments` holds, in one pass.

    Blocks are merged by n_ab C_ab = n_a C_a + n_b C_b + n_a n_b/(n_a + n_b) δδᵀ, δ the difference of their means, so
    nothing is lost to cancellation when the rows lie far from 0.

    Args:
      blocks: the rows in order, [rows, d] each, float64.
      roundoff: of the type that the rows were stored in, where more bits than it has were computed since.
      covariance: False keeps the variances alone, its diagonal: d numbers instead of d².

    Source: Chan, Golub & LeVeque 1983.
    """
    count, digests, sketches, bits = 0, [], [], 1
    shortest, longest, first_zero = np.inf, 0.0, None
    mean = scatter = halves = directions = np.zeros(())
    half_counts = np.zeros(2, int)
    for block in blocks:
        if not count:
            mean, directions = np.zeros((2, block.shape[1]))
            if covariance:
                require_memory("the covariance", block.shape[1], squares=5)
            scatter = np.zeros((block.shape[1],) * (2 if covariance else 1))
            halves = np.zeros((2, block.shape[1]))
        norms = _norms(block)
        if first_zero is None and not norms.all():
            first_zero = count + int(np.argmin(norms))
        shortest, longest = min(shortest, norms.min()), max(longest, norms.max())
        directions = directions + _unit_rows(block, norms).sum(axis=0)
        for half in range(2):  # even and odd rows of the whole
            rows = block[(half - count) % 2 :: 2]
            half_counts[half] += len(rows)
            halves[half] += rows.sum(axis=0)
        same_zeros = np.ascontiguousarray(block + 0.0)  # −0 equals 0
        texts = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in same_zeros)
        digests.append(np.frombuffer(texts, np.uint64))
        sketches.append(precision.sketch(block))
        bits = max(bits, precision.significant_bits(block))

        block_mean = block.mean(axis=0)
        block_mean += (block - block_mean[None, :]).mean(axis=0)  # exact for equal rows
        centred = block - block_mean[None, :]
        step = block_mean - mean
        total = count + len(block)
        scatter += centred.T @ centred if covariance else np.sum(centred**2, axis=0)
        scatter += count * len(block) / total * (np.outer(step, step) if covariance else step**2)
        mean = mean + len(block) / total * step
        count = total
    sorted_digests = np.concatenate(digests)
    sorted_digests.sort()
    return Moments(
        count, mean, scatter / count, halves / np.maximum(half_counts, 1)[:, None], directions / count,
        float(shortest), float(longest), first_zero, int(np.sum(sorted_digests[1:] == sorted_digests[:-1])),
        max(roundoff, precision.roundoff_of(bits)), np.concatenate(sketches),
    )  # fmt: skip


def projections(blocks: Iterable[np.ndarray], about: Moments, directions: np.ndarray) -> np.ndarray:
    """⟨row − mean, direction⟩ for every row and each of the m directions [m, d]: [n, m], 8m bytes per row."""
    projected, first = np.empty((about.count, len(directions))), 0
    for block in blocks:
        projected[first : first + len(block)] = (block - about.mean[None, :]) @ directions.T
        first += len(block)
    return projected


def half_rules(x: Moments, y: Moments) -> np.ndarray:
    """The directions of the two midpoint rules, fitted on the even and on the odd rows [2, d]."""
    return y.half_means - x.half_means


def separability(x: Moments, y: Moments, projected_x: np.ndarray, projected_y: np.ndarray) -> float:
    """`geometry.separability` from the `projections` of both modalities on `half_rules`, [n_x, 2] and [n_y, 2]."""
    if min(x.count, y.count) < 2:
        return np.nan
    accuracies = []
    for fit, judge in ((0, 1), (1, 0)):
        direction, midpoint = half_rules(x, y)[fit], 0.5 * (x.half_means[fit] + y.half_means[fit])
        right_x = projected_x[judge::2, fit] + (x.mean - midpoint) @ direction < 0
        right_y = projected_y[judge::2, fit] + (y.mean - midpoint) @ direction > 0
        accuracies.append(0.5 * (right_x.mean() + right_y.mean()) if direction.any() else np.nan)
    return float(np.mean(accuracies))


class PairMeans(NamedTuple):
    """Means over pairs: ‖x_i − y_i‖² (alignment) and cos(x_i, y_i)."""

    squared_distance: float
    cosine: float


def pair_means(x: Iterable[np.ndarray], y: Iterable[np.ndarray]) -> PairMeans:
    """Means over pairs, for two sequences of blocks of equal lengths."""
    squares = cosines = count = 0
    for rows, partners in zip(x, y, strict=True):
        squares += np.sum((rows - partners) ** 2)
        cosines += np.sum(_unit_rows(rows) * _unit_rows(partners))
        count += len(rows)
    return PairMeans(float(squares / count), float(cosines / count))


def relative_gap(x: Moments, y: Moments, cosine_of_pairs: float) -> float:
    """`GapMeasures.rmg` from sums: Σ_{i≠j} cos(x_i, x_j) = ‖Σ x̂_i‖² − n for rows that are not zero. NaN for one row."""
    if min(x.count, y.count) < 2:
        return np.nan
    inside = [
        (1.0 - (m.count * m.mean_direction @ m.mean_direction - 1.0) / (m.count - 1)) / 2.0 for m in (x, y)
    ]  # fmt: skip
    between = (1.0 - cosine_of_pairs) / 2.0
    return float(between / (between + 0.5 * (inside[0] + inside[1])))


def best_matches(
    x: Source, y: Iterable[np.ndarray], similarity: Similarity = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar gallery row of every query [n_y], and the most similar query of every gallery row [n_x].

    The first one in a tie. Exact: all pairs are compared, one pair of blocks at a time; x is read again for every block
    of y.
    """
    found, over_y = [], []
    offset_y = 0
    for queries in y:
        best, value = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf)
        answers = []
        offset_x = 0
        for rows in x():
            scores = _similarities(rows, queries, similarity)
            at = scores.argmax(axis=0)
            here = scores[at, np.arange(len(queries))]
            better = here > value
            best[better], value[better] = offset_x + at[better], here[better]
            at = scores.argmax(axis=1)
            answers.append((offset_y + at, scores[np.arange(len(rows)), at]))
            offset_x += len(rows)
        found.append(best)
        at, here = (np.concatenate(part) for part in zip(*answers, strict=True))
        if not over_y:
            over_y = [at, here]
        else:
            better = here > over_y[1]
            over_y[0][better], over_y[1][better] = at[better], here[better]
        offset_y += len(queries)
    return np.concatenate(found), over_y[0]


def are_partners(found: np.ndarray, asked: np.ndarray, same: np.ndarray, same_asked: np.ndarray) -> np.ndarray:
    """Whether row `found` of one modality is a partner of row `asked` of the other, [m], where copies are one row: some row
    k that is a copy of `asked` has a partner k that is a copy of `found`.

    Args:
      found, asked: row numbers [m].
      same, same_asked: `precision.copies` of the modality that answers, and of the one that asks [n].
    """
    count = same.max() + 1
    return np.isin(same_asked[asked] * count + same[found], same_asked * count + same)


def marginal_errors(x: Source, y: Source, *, temperature: float) -> tuple[float, float]:
    """`GapMeasures.marginal_error_x` and `_y`, exact, for logits cosine/τ: every pair of blocks is computed twice."""
    over_x, over_y, num_y = [], np.empty(0), 0  # log Σ_k exp(logit) per query, log Σ_i exp(logit) per gallery row
    for queries in y():
        total, parts = np.full(len(queries), -np.inf), []
        for rows in x():
            logits = _similarities(rows, queries, "cosine") / temperature
            total = np.logaddexp(total, _log_sum_exp(logits, axis=0))
            parts.append(_log_sum_exp(logits, axis=1))
        over_x.append(total)
        parts = np.concatenate(parts)
        over_y = np.logaddexp(over_y, parts) if num_y else parts
        num_y += len(queries)
    num_x = len(over_y)
    free_x, error_y = np.zeros(num_x), 0.0
    for queries, total in zip(y(), over_x, strict=True):
        free_y, first = np.zeros(len(queries)), 0
        for rows in x():
            logits = _similarities(rows, queries, "cosine") / temperature
            at = slice(first, first + len(rows))
            free_y += np.exp(logits - over_y[at, None]).sum(axis=0)
            free_x[at] += np.exp(logits - total[None, :]).sum(axis=1)
            first += len(rows)
        error_y += np.abs(free_y * (num_y / num_x) - 1.0).sum()
    return float(np.abs(free_x * (num_x / num_y) - 1.0).mean()), float(error_y / num_y)


def uniformity(rows: np.ndarray, population: int) -> tuple[float, float]:
    """Log of the mean of exp(−2‖r_i − r_j‖²) over i ≠ j, and its standard error as an estimate for all `population` rows.

    The mean over pairs is a U-statistic: with h_i the mean over the partners of row i, its variance is 4 var(h)/m times
    (1 − m/population), so 0 when the rows are all there are; the error of the logarithm is the relative one.

    Args:
      rows: a random subset, drawn without replacement [m, d].
      population: number of rows it was drawn from, at least m.

    Error: of the standard error: O(1/√m) relative; the next term of the variance, 2 var/m², is left out.
    Source: Hoeffding 1948.
    """
    m, by_row = len(rows), []
    if m < 2:
        return np.nan, np.nan
    for first in range(0, m, 512):
        exponents = 2.0 * np.minimum(_similarities(rows[first : first + 512], rows, "sqeuclidean"), 0.0)
        exponents[np.arange(len(exponents)), first + np.arange(len(exponents))] = -np.inf
        by_row.append(_log_sum_exp(exponents, axis=1))
    by_row = np.concatenate(by_row) - np.log(m - 1.0)
    value = _log_sum_exp(by_row[None, :], axis=1)[0] - np.log(m)
    relative = np.exp(by_row - value)
    return float(value), float(2.0 * relative.std(ddof=1) * np.sqrt((1.0 - m / population) / m))


def triangular_factor(blocks: Iterable[np.ndarray], mean: np.ndarray) -> np.ndarray:
    """R [≤ d, d] of the QR factorisation of the centred rows: the same singular values and axes, by a backward stable
    reduction (the covariance would square the condition number and hide directions without variance)."""
    factor = np.zeros((0, len(mean)))
    for block in blocks:
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, block - mean[None, :]]), mode="r"))
    return factor


def mean_and_error(values: np.ndarray, population: int) -> tuple[float, float]:
    """Mean of a random subset drawn without replacement from `population`, and its standard error.

    The error is 0 when the subset is all there is; otherwise at least one row's worth, 1/m times the range [0, 1] of a
    share, since a subset without a single exception does not prove that there is none.
    """
    m, share_left = len(values), 1.0 - len(values) / population
    if share_left <= 0:
        return float(values.mean()), 0.0
    return float(values.mean()), float(max(values.std(ddof=1) * np.sqrt(share_left / m), share_left / m))


def _similarities(x: np.ndarray, y: np.ndarray, similarity: Similarity) -> np.ndarray:
    """`losses.similarity_matrix` in NumPy float64: JAX would need its 64-bit mode and one compilation per last block."""
    if similarity == "cosine":
        x, y = _unit_rows(x), _unit_rows(y)
    if similarity == "sqeuclidean":  # about a common centre, or rows far from 0 lose their digits
        centre = y.mean(axis=0)
        x, y = x - centre[None, :], y - centre[None, :]
    products = x @ y.T
    if similarity == "sqeuclidean":
        products *= 2.0
        products -= np.sum(x * x, axis=1)[:, None]
        products -= np.sum(y * y, axis=1)[None, :]
    return products


def _norms(rows: np.ndarray) -> np.ndarray:
    """Lengths of rows [n], also where their squares are out of range."""
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    extreme = np.flatnonzero((norms < 1e-150) | (norms > 1e150))
    sizes = np.abs(rows[extreme]).max(axis=1)
    norms[extreme] = sizes * np.linalg.norm(rows[extreme] / np.where(sizes > 0, sizes, 1.0)[:, None], axis=1)
    return norms


def _unit_rows(rows: np.ndarray, norms: np.ndarray | None = None) -> np.ndarray:
    """Rows scaled to unit length, given their norms or not; a zero row stays."""
    norms = _norms(rows) if norms is None else norms
    return rows / np.where(norms > 0, norms, 1.0)[:, None]


def _log_sum_exp(values: np.ndarray, axis: int) -> np.ndarray:
    highest = values.max(axis=axis, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - highest).sum(axis=axis)) + highest.squeeze(axis)
