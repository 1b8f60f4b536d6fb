"""Trends over seeds: one test for "rises" and "falls", and an estimate of the gap without its sampling error."""

from __future__ import annotations

import functools

import numpy as np

import simulator as sim

# One-sided. The published claims have about twenty trend rows: at this level, chosen before any was measured, all of them
# together would pass by chance once in fifty.
LEVEL = 1e-3


def trend(values, at, sign: int) -> sim.Check:
    """Whether `values` [seed, at] rise (sign = +1) or fall (−1) with `at`, seed by seed.

    Page's L = Σ_seeds Σ_j j · rank_j, the sum over seeds of the predicted order times the order found, against its exact
    distribution when every order is equally likely within a seed. No shape of the trend and no distribution of the values
    is assumed; seeds share data and start along `at`, so each is a block of its own. Equal values are ranked against the
    claim. The check compares the p-value with 0.
    """
    return sim.Check("absolute", 0.0, _page_p_value(values, at, sign), LEVEL)


def umbrella(values, at) -> sim.Check:
    """Whether `values` [seed, at] rise to a peak inside the range of `at` and fall after it.

    For each inner point the larger p-value of a rise up to it and a fall from it (both must be seen); the smallest over
    the points, times their number, because the peak is looked for in the same data.
    """
    values, at = np.asarray(values, float), np.asarray(at, float)
    if len(at) < 3:
        raise ValueError(f"a peak inside needs at least 3 points, not {len(at)}")
    order = np.argsort(at, kind="stable")
    values, at = values[:, order], at[order]
    both = [
        max(_page_p_value(values[:, : i + 1], at[: i + 1], +1), _page_p_value(values[:, i:], at[i:], -1))
        for i in range(1, len(at) - 1)
    ]
    return sim.Check("absolute", 0.0, min(1.0, min(both) * len(both)), LEVEL)


def _page_p_value(values, at, sign: int) -> float:
    values, at = np.asarray(values, float), np.asarray(at, float)
    if values.ndim != 2 or values.shape[1] != len(at) or len(at) < 2 or not np.isfinite(values).all():
        raise ValueError(f"a trend needs finite values [seed, {len(at)}] at two points or more, not {values.shape}")
    values = sign * values[:, np.argsort(at, kind="stable")]
    # From the last point to the first, so that of two equal values the later one has the lower rank.
    ranks = np.argsort(np.argsort(values[:, ::-1], axis=1, kind="stable"), axis=1)[:, ::-1] + 1
    statistic = int(np.sum(ranks * np.arange(1, len(at) + 1)[None, :]))
    below = np.cumsum(_page_distribution(len(values), len(at))[::-1])[::-1]
    return min(float(below[statistic]), 1.0)


def shuffled(values, seed: int = 0):
    """The same values with the labels along the last axis permuted within every seed: what a trend must not survive."""
    return np.random.default_rng(seed).permuted(np.asarray(values, float), axis=1)


def worst(checks) -> sim.Check:
    """The check with the largest error: what holds for it holds for all."""
    return max(checks, key=lambda check: check.error())


def spread(values) -> str:
    """Mean ± standard error over seeds, as text."""
    values = np.ravel(np.asarray(values, float))
    return f"{values.mean():.3f} ± {values.std(ddof=1) / values.size**0.5:.3f}"


def unbiased_gap(data):
    """The gap norm of the population: G² of n pairs exceeds it by tr Cov(y − x)/n, and alignment − G² is n − 1 such terms.

    Negative squares, which occur when there is no gap, become 0 only here.
    """
    n = data.sizes["pair"]
    squared = data.gap_norm**2 - (data.alignment - data.gap_norm**2) / (n - 1)
    return np.sqrt(np.maximum(squared, 0.0))


@functools.lru_cache(maxsize=16)
def _page_distribution(num_seeds: int, num_points: int) -> np.ndarray:
    """P(L = l) for l = 0, 1, …: one seed by counting orders over subsets of ranks, several by convolution."""
    if num_points > 12:
        raise ValueError(f"a trend over {num_points} points is too long for the exact test; use at most 12")
    size = sum(j * j for j in range(1, num_points + 1)) + 1
    counts = {0: np.eye(1, size)[0]}  # set of ranks used by the first points -> number of orders by their Σ j · rank
    for j in range(1, num_points + 1):
        longer: dict[int, np.ndarray] = {}
        for used, number in counts.items():
            for rank in range(1, num_points + 1):
                if not used >> rank & 1:
                    moved = np.concatenate([np.zeros(j * rank), number[: size - j * rank]])
                    longer[used | 1 << rank] = longer.get(used | 1 << rank, 0.0) + moved
        counts = longer
    one = next(iter(counts.values()))
    one = one / one.sum()
    total = np.ones(1)
    for _ in range(num_seeds):
        total = np.convolve(total, one)
    return total
