"""Directions of a gallery: those in which it varies, and what a gap has outside them."""

from __future__ import annotations

import numpy as np


def principal_directions(gallery: np.ndarray) -> np.ndarray:
    """Orthonormal rows [r, d] that span the centred gallery, by decreasing variance; r is its numerical rank."""
    centred = gallery - gallery.mean(axis=0)[None, :]
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    # The scale of the rows, not of their deviations, sets the rounding of the centred rows.
    tolerance = max(gallery.shape) * np.finfo(float).eps * max(np.linalg.norm(gallery, axis=1).max(), 1e-300)
    return axes[singular > tolerance]


def complement(
    gallery: np.ndarray, gap: np.ndarray, *, num_components: int | None = None, floor: float = 0.0
) -> tuple[np.ndarray, int]:
    """What a gap has outside the span of the centred gallery, g' = g − V Vᵀ g [d], and the rank of that gallery.

    Args:
      gallery: [K, d].
      gap: g, [d].
      num_components: leading directions V that are taken out; None for all.
      floor: length up to which g' is rounding (`precision.gap_floor`), and then 0.

    Source: Chowers et al. 2026, Sec. 4, Eq. 11.
    """
    axes = principal_directions(gallery)
    rank = len(axes)
    axes = axes if num_components is None else axes[:num_components]
    direction = gap - axes.T @ (axes @ gap)
    direction -= axes.T @ (axes @ direction)  # once more, so that rounding leaves nothing along the axes
    # What a full-rank gallery leaves of g is rounding of the computation.
    is_rounding = np.linalg.norm(direction) <= max(1e-10 * np.linalg.norm(gap), floor)
    return (np.zeros_like(gap) if is_rounding else direction), rank


def along_axes(rows: np.ndarray, axes: np.ndarray | None) -> np.ndarray:
    """The part of rows [n, d] along orthonormal axes [r, d]; 0 without axes."""
    return np.zeros_like(rows) if axes is None else (rows @ axes.T) @ axes


def leading_axes(covariance: np.ndarray, num_components: int) -> np.ndarray:
    """Orthonormal rows [r, d]: the leading principal directions, those without variance left out."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors.T[::-1][: min(num_components, int(np.sum(values > 1e-12 * values[-1])))]
