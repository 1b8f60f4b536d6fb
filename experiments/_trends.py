"""Trends over seeds: one test for "rises" and "falls", an estimate of the gap without its sampling error, and numbers with
their uncertainty as text."""

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
    values, at = np.asarray(values, float), np.asarray(at, float)
    if values.ndim != 2 or values.shape[1] != len(at) or len(at) < 2 or not np.isfinite(values).all():
        raise ValueError(f"a trend needs finite values [seed, {len(at)}] at two points or more, not {values.shape}")
    values = sign * values[:, np.argsort(at, kind="stable")]
    # From the last point to the first, so that of two equal values the later one has the lower rank.
    ranks = np.argsort(np.argsort(values[:, ::-1], axis=1, kind="stable"), axis=1)[:, ::-1] + 1
    statistic = int(np.sum(ranks * np.arange(1, len(at) + 1)[None, :]))
    below = np.cumsum(_page_distribution(len(values), len(at))[::-1])[::-1]
    return sim.Check("absolute", 0.0, min(float(below[statistic]), 1.0), LEVEL)


def shuffled(values, seed: int = 0):
    """The same values with the labels along the last axis permuted within every seed: what a trend must not survive."""
    return np.random.default_rng(seed).permuted(np.asarray(values, float), axis=1)


def worst(checks) -> sim.Check:
    """The check with the largest error: what holds for it holds for all."""
    return max(checks, key=lambda check: check.error())


def spread(values) -> str:
    """Mean ± standard error over seeds, as text."""
    values = np.ravel(np.asarray(values, float))
    return stated(values.mean(), values.std(ddof=1) / values.size**0.5 if values.size > 1 else np.nan)


def stated(value: float, error: float) -> str:
    """A number ± its standard error (or the bound on its numerical error) as text, to two digits of the error; without ±
    where there is no error, as of a single seed."""
    value, error = float(value), float(error)
    if not (np.isfinite(value) and np.isfinite(error)):
        return f"{value:.4g} (error unknown)"
    size = max(abs(value), error)
    if size >= 1e5 or 0 < size < 1e-3:
        power = int(np.floor(np.log10(size)))
        return f"({stated(value / 10.0**power, error / 10.0**power)})·10^{power}"
    if error == 0:
        return f"{value:.4g} ± 0"
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 6))
    return f"{value:.{digits}f} ± {error:.{digits}f}" if error >= 1e-6 else f"{value:.6g} ± {error:.0e}"


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
