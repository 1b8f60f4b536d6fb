"""Robustness under cosine scoring, exactly, and what moving either side does under each scoring.

With noise N(0, σ²) on every coordinate of every gallery row:
- *sqeuclidean*: decisions depend on y − x_k alone, so moving the gallery by v is moving the queries by −v.
- *dot*: ⟨y, x_k + v + e_k⟩ = ⟨y, x_k + e_k⟩ + ⟨y, v⟩, and the last term is the same for all classes: moving the gallery,
  by any v, changes no noisy decision. Moving the queries by −v leaves the noise ⟨y − v, e_k⟩: its size is ‖y − v‖, which
  is smallest for v near the *mean query*; the gap is the wrong vector.
- *cosine*, rows normalised after the noise: both sides count. For v orthogonal to the centred span of a gallery whose
  rows have one norm, the clean decisions stay. For α → ∞ the rows x_k + αv point along v, and to first order in 1/α
  the cosines are ordered by ⟨y − v̂v̂ᵀy, x_k + e_k⟩: the dot rule with the query's part along v taken out. So robustness
  does not return to chance when the gallery is moved too far, as it does under Euclidean distance.
"""

from __future__ import annotations

import numpy as np

from simulator.theory.robustness import legendre_nodes, num_nodes_for
from simulator.validation import require_number, require_same_width

REACH = 9.0  # standard deviations: what lies beyond cannot be seen in float64
RADIAL_NODES = 48
LARGEST_NONCENTRALITY = 1e7


def cosine_robustness(gallery, queries, *, sigma: float) -> np.ndarray:
    """Probability that each query keeps its answer under cosine scoring when every row gets independent N(0, σ²) noise.

    With q = y/‖y‖ and X = (x_k + e_k)/σ, T = ⟨q, X⟩ is N(a_k, 1), a_k = ⟨q, x_k⟩/σ, and W = ‖X‖² − T² is an independent
    noncentral χ²_{d−1}(λ_k), λ_k = ‖x_k‖²/σ² − a_k². The cosine is a rising function of t = T/√W, so with
        F_k(t) = E_W Φ(t√W − a_k),   f_k(t) = E_W √W φ(t√W − a_k)
    the answer j survives with P = ∫ f_j(t) Π_{k≠j} F_k(t) dt, integrated over the angle arctan t.

    Args:
      gallery: [K, d], d >= 3; no row may be zero.
      queries: [n, d]; no row may be zero.
      sigma: standard deviation of the noise per coordinate, > 0.

    Returns:
      P for each query, [n], float64.

    Raises:
      ValueError: shapes that do not fit, fewer than 3 dimensions, a zero row, sigma <= 0.

    Assumes: noise independent across rows, none on the queries; the rows are normalised after the noise.
    Error: quadrature below 1e-9 for d >= 8 (1e-6 for d = 4, 1e-5 for d = 3).
    Source: derived here (with theory.md N6).
    """
    require_same_width(gallery, queries)
    require_number("sigma", sigma, above=0.0)
    gallery, queries = np.asarray(gallery, float), np.asarray(queries, float)
    if gallery.shape[1] < 3:
        raise ValueError(f"cosine scoring needs at least 3 dimensions here; the rows have {gallery.shape[1]}")
    for name, rows in (("gallery", gallery), ("queries", queries)):
        if not np.all(np.linalg.norm(rows, axis=1) > 0):
            raise ValueError(f"{name} holds a zero row, which has no direction; remove it")
    rows = gallery / sigma
    lengths = np.sum(rows**2, axis=1)
    along = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ rows.T
    return np.array([_stays_best_cosine(a, np.maximum(lengths - a**2, 0.0), rows.shape[1] - 1) for a in along])


def _stays_best_cosine(along, noncentralities, freedom: int) -> float:
    """The integral for one query: a_k [K], λ_k [K] and d − 1."""
    from scipy.special import ndtr

    u, weights = _radial_nodes(noncentralities, freedom)
    centre = np.sqrt(noncentralities + freedom)
    best = int(np.argmax(along / np.hypot(along, np.sqrt(noncentralities))))
    slope = along[best] / centre[best]
    # The angle arctan t has about this spread around arctan(a/√(λ + d − 1)).
    spread = np.sqrt(1 + slope**2) / centre[best] / (1 + slope**2)
    low, high = np.clip(np.arctan(slope) + REACH * spread * np.array([-1.0, 1.0]), -np.pi / 2, np.pi / 2)
    nodes, node_weights = legendre_nodes(num_nodes_for(len(along)))
    angle = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    t = np.tan(angle)
    density = np.exp(-0.5 * (t[:, None] * u[best][None, :] - along[best]) ** 2) / np.sqrt(2 * np.pi)
    density = density @ (weights[best] * u[best]) * (1 + t**2) * 0.5 * (high - low) * node_weights
    below = np.einsum("tkw,kw->tk", ndtr(t[:, None, None] * u[None, :, :] - along[None, :, None]), weights)
    below[:, best] = 1.0
    return float(np.clip(density @ below.prod(axis=1), 0.0, 1.0))


def _radial_nodes(noncentralities, freedom: int):
    """Nodes u and weights [K, nodes] of an expectation over u = √W, W ~ χ²_freedom(λ_k); the weights sum to 1."""
    from scipy.stats import ncx2

    nodes, node_weights = legendre_nodes(RADIAL_NODES)
    noncentralities = noncentralities[:, None]
    centre = np.sqrt(noncentralities + freedom)
    reach = REACH * np.sqrt(noncentralities + freedom / 2) / centre
    low, high = np.maximum(centre - reach, 0.0), centre + reach
    u = 0.5 * (low + high) + 0.5 * (high - low) * nodes[None, :]
    # Beyond SciPy's range √W is Gaussian up to terms of order (d/λ)^{3/2}.
    far = np.maximum(noncentralities, LARGEST_NONCENTRALITY)
    spread = np.sqrt(1 - (freedom - 1) / (2 * far))
    limit = np.exp(-0.5 * ((u - np.sqrt(far) - (freedom - 1) / (2 * np.sqrt(far))) / spread) ** 2)
    near = np.minimum(noncentralities, LARGEST_NONCENTRALITY)
    density = np.where(noncentralities > LARGEST_NONCENTRALITY, limit, u * ncx2.pdf(u**2, freedom, near))
    weights = (high - low) * node_weights[None, :] * density
    return u, weights / weights.sum(axis=1, keepdims=True)
