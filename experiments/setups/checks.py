"""The checks that judges share. Each takes arrays, labelled or not, and builds a `sim.Check`."""

from __future__ import annotations

import numpy as np

import simulator as sim


def none(counts) -> sim.Check:
    """No exception at all: every count is 0."""
    counts = np.asarray(counts)
    return sim.Check("absolute", np.zeros(counts.shape), counts, 0.5)


def never_above(excess, tolerance: float) -> sim.Check:
    """One-sided: what exceeds 0 is within the tolerance."""
    excess = np.maximum(np.asarray(excess, float), 0.0)
    return sim.Check("absolute", np.zeros(excess.shape), excess, tolerance)


def agreement(predicted, measured, error) -> sim.Check:
    """Monte Carlo against its exact value, within 4 standard errors."""
    return sim.Check("monte_carlo", np.asarray(predicted), np.asarray(measured), 4.0, np.asarray(error))


def equal(predicted, measured, tolerance: float) -> sim.Check:
    """Equal relative to the largest prediction; a single prediction stands for all."""
    measured = np.asarray(measured)
    return sim.Check("identity", np.broadcast_to(np.asarray(predicted), measured.shape), measured, tolerance)


def equals_one(measured, tolerance: float) -> sim.Check:
    """A ratio is 1, as of what was measured over its own prediction: each counts alike, whatever its size."""
    measured = np.asarray(measured)
    return sim.Check("identity", np.ones(measured.shape), measured, tolerance)


def moves(values, errors, at, signs=1.0) -> sim.Check:
    """Rises along `at`, or moves by the sign of each step, within 4 standard errors."""
    signs = np.broadcast_to(signs, len(at) - 1)
    errors = None if errors is None else np.asarray(errors)
    return sim.Check("monotone", signs, np.asarray(values), 4.0, errors, np.asarray(at))


def up_to(at, top: float) -> np.ndarray:
    """Signs of the steps of a curve that rises up to `top` and falls from there."""
    return np.where(np.asarray(at)[1:] <= top, 1.0, -1.0)


def worst(checks) -> sim.Check:
    """The check with the largest error: what holds for it holds for all."""
    return max(checks, key=lambda check: check.error())


def closest(checks) -> sim.Check:
    """The near miss with the smallest error: where it is rejected, so are the others."""
    return min(checks, key=lambda check: check.error())


def standard_error(values, axis: int = 0) -> np.ndarray:
    """Of the mean along an axis of independent values."""
    values = np.asarray(values)
    return values.std(axis=axis, ddof=1) / values.shape[axis] ** 0.5


def upper(values) -> float:
    """Mean over seeds plus 4 standard errors: what must lie within a limit that is to be shown, not only not refuted."""
    values = np.asarray(values)
    return values.mean() + 4 * standard_error(values)
