"""Two tight clusters: how they are drawn, how they flow, and the absolute variance of their four modes."""

from __future__ import annotations

import numpy as np

import simulator as sim
from simulator.losses import normalize_rows


def clouds(config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deviations a, b [n, d] of standard deviation `config.size`, centred, half of each pair's variance shared."""
    rng = np.random.default_rng([config.seed, seed])
    shape = (config.num_pairs, config.dimensions)
    shared, own_a, own_b = (rng.normal(size=shape) * config.size / 2**0.5 for _ in range(3))
    a, b = shared + own_a, shared + own_b
    return a - a.mean(axis=0)[None, :], b - b.mean(axis=0)[None, :]


def clusters(a: np.ndarray, b: np.ndarray, separation: float, sphere: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows x, y around two means: `separation` apart in space, or at that angle on the unit sphere."""
    mean_x, mean_y = np.eye(2, a.shape[1])
    if not sphere:
        return a, b + separation * mean_x[None, :]
    mean_y = np.cos(separation) * mean_x + np.sin(separation) * mean_y
    x, y = (np.asarray(normalize_rows(rows)) for rows in (a + mean_x[None, :], b + mean_y[None, :]))
    return x, y


def mode_variances(x: np.ndarray, y: np.ndarray, sphere: bool) -> np.ndarray:
    """Absolute variance of the four modes of `flows.ModeRates` for rows [..., n, d]: mean squares of α ± β and of
    (a ± b)⊥, [..., 4].

    On the sphere α, β are the components along the great circle of the two means, both in the sense from x to y.
    """
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
    mean_x, mean_y = x.mean(axis=-2, keepdims=True), y.mean(axis=-2, keepdims=True)
    a, b = x - mean_x, y - mean_y
    if sphere:
        mean_x, mean_y = unit(mean_x), unit(mean_y)
        cosine = np.sum(mean_x * mean_y, axis=-1, keepdims=True)
        tangent_x, tangent_y = unit(mean_y - cosine * mean_x), unit(cosine * mean_y - mean_x)
        plane = (mean_x, tangent_x)
    else:
        tangent_x = tangent_y = unit(mean_y - mean_x)
        plane = (tangent_x,)
    alpha, beta = np.sum(a * tangent_x, axis=-1), np.sum(b * tangent_y, axis=-1)
    for axis in plane:
        a, b = (rows - np.sum(rows * axis, axis=-1, keepdims=True) * axis for rows in (a, b))
    modes = ((alpha + beta) ** 2, (beta - alpha) ** 2, np.sum((a + b) ** 2, axis=-1), np.sum((b - a) ** 2, axis=-1))
    across = a.shape[-1]
    return np.stack(
        [np.mean(mode, axis=-1) / size for mode, size in zip(modes, (1, 1, across, across), strict=True)], -1
    )


def flow_variances(x, y, times, temperature: float, sphere: bool, max_step: float) -> np.ndarray:
    """Variances of the four modes along the measured gradient flow, [T, 4]."""
    path = sim.gradient_flow(
        x, y, times=times, temperature=temperature, max_step=max_step,
        similarity="cosine" if sphere else "sqeuclidean", sphere=sphere,
    )  # fmt: skip
    return mode_variances(*map(np.asarray, path), sphere)


def time_scale(separation, temperature, sphere: bool):
    """A time in which the stiffest mode changes by a factor of order e: τ/(2 + 2G²/τ), twice that on the sphere."""
    slope = np.sin(separation) ** 2 if sphere else separation**2
    return temperature / (1 + slope / temperature) / (1 if sphere else 2)
