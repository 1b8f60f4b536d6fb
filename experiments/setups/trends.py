"""Trends over seeds: one test for "rises" and "falls", an estimate of the gap without its sampling error, and numbers with
their uncertainty as text."""

from __future__ import annotations

import numpy as np

import simulator as sim
from experiments.setups.checks import never_above, upper

# One-sided. The published claims have about twenty trend rows: at this level, chosen before any was measured, all of them
# together would pass by chance once in fifty.
LEVEL = 1e-3


def trend(values, at, sign: int) -> sim.Check:
    """Whether `values` [seed, at] rise (sign = +1) or fall (−1) with `at`.

    Seeds share data and start along `at`, so steps are judged by their standard errors over seeds: none, to the neighbour
    or further, may go the other way at `LEVEL` of Student's t, and the whole way must be shown at that level.
    """
    from scipy.special import stdtrit

    values, at = np.asarray(values, float), np.asarray(at, float)
    right_shape = values.ndim == 2 and values.shape[1] == len(at) and min(values.shape) >= 2
    if not right_shape or not np.isfinite(values).all():
        raise ValueError(f"a trend needs finite values [seed, {len(at)}] at two points or more, not {values.shape}")
    signs, tolerance = np.full(len(at) - 1, float(sign)), float(-stdtrit(len(values) - 1, LEVEL))
    return sim.Check("monotone", signs, values, tolerance, at=at)


def less_than_half(left, whole) -> sim.Check:
    """By how much what is left exceeds half of the whole, seed by seed, with 4 standard errors against it."""
    return never_above(upper(left - 0.5 * whole), 1e-3)


def spread(values) -> str:
    """Mean ± standard error over seeds, as text."""
    values = np.ravel(np.asarray(values, float))
    return stated(values.mean(), values.std(ddof=1) / values.size**0.5 if values.size > 1 else np.nan)


def ends(values, at) -> str:
    """The first and the last column of values [seed, at], as text."""
    return f"{spread(values[:, 0])} at {at[0]:g}, {spread(values[:, -1])} at {at[-1]:g}"


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
