"""Exact robustness of nearest-neighbour decisions under Gaussian noise on the gallery.

Float64 NumPy and SciPy throughout, whatever JAX's precision.
"""

from __future__ import annotations

import functools

import numpy as np

from simulator.validation import require_number, require_one_of, require_same_width

LARGEST_Z = 8.5  # Φ(−8.5) = 1e-17: what lies beyond cannot be seen in float64


def exact_robustness(gallery, queries, *, sigma: float, scoring: str = "sqeuclidean", bias=None) -> np.ndarray:
    """Probability that each query keeps its answer when every gallery row gets independent N(0, σ²) noise.

    Euclid: ‖x_k + e_k − y‖²/σ² are independent noncentral χ²_d(λ_k), λ_k = ‖x_k − y‖²/σ², so for the answer j
        P = ∫ f_j(s) Π_{k≠j} [1 − F_k(s + (b_j − b_k)/σ²)] ds.
    With s = F_j⁻¹(Φ(z)) this is ∫ φ(z) Π(…) dz, a smooth integrand under a Gaussian weight.
    Dot: the scores ⟨y, x_k + e_k⟩ + b_k have equal variances σ²‖y‖², so with Δ_k = clean score of j minus that of k
        P = ∫ φ(z) Π_{k≠j} Φ(z + Δ_k/(σ‖y‖)) dz.

    Args:
      gallery: [K, d].
      queries: [n, d].
      sigma: standard deviation of the noise per coordinate, > 0.
      scoring: "sqeuclidean" or "dot". Cosine has no closed form here: renormalising a noisy row couples its
        length and direction.
      bias: [K], added to the squared distance ("sqeuclidean") or to the similarity ("dot"); carries no noise.

    Returns:
      P for each query, [n], float64.

    Raises:
      ValueError: shapes that do not fit, NaN rows, sigma <= 0, or scoring="cosine".

    Assumes: noise independent across rows, none on the queries or the bias.
    Error: quadrature below 1e-9 (checked against mpmath and by doubling the nodes).
    Source: derived here: theory.md N4 (Euclid), N6 (dot).
    """
    require_same_width(gallery, queries)
    require_number("sigma", sigma, above=0.0)
    require_one_of("scoring", scoring, ("sqeuclidean", "dot"))
    gallery, queries = np.asarray(gallery, float), np.asarray(queries, float)
    bias = np.zeros(len(gallery)) if bias is None else np.asarray(bias, float)
    if bias.shape != (len(gallery),):
        raise ValueError(f"bias has shape {bias.shape}; expected one number for each of {len(gallery)} gallery rows")
    if scoring == "dot":
        products = queries @ gallery.T + bias[None, :]
        return np.array([
            _stays_best_dot(row / (sigma * norm)) if norm > 0 else 1.0
            for row, norm in zip(products, np.linalg.norm(queries, axis=1), strict=True)
        ])  # fmt: skip
    dimensions, num_nodes = gallery.shape[1], num_nodes_for(len(gallery))
    # (x − y)² summed directly: expanding the square would lose digits for tight clusters.
    return np.array([
        _stays_nearest(np.sum((gallery - query[None, :]) ** 2, axis=1) / sigma**2, bias / sigma**2, dimensions, num_nodes)
        for query in queries
    ])  # fmt: skip


def gaussian_nodes(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes z on [−8.5, 8.5] and weights for ∫ φ(z) · dz."""
    nodes, weights = _legendre(num_nodes)
    z = LARGEST_Z * nodes
    return z, LARGEST_Z * weights * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def num_nodes_for(num_classes: int) -> int:
    """Quadrature nodes that leave an error below 1e-10: the more classes, the narrower the integrand (its product cuts
    the density off sooner), so a number that is ample for 2 classes leaves 1e-5 for 1,000."""
    return 60 + 10 * int(np.ceil(np.log2(max(num_classes, 2))))


@functools.lru_cache(maxsize=16)
def _legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(num_nodes)


def _stays_best_dot(standard_scores: np.ndarray) -> float:
    """∫ φ(z) Π Φ(z + Δ_k) dz for scores in units of their own noise."""
    from scipy.special import log_ndtr

    z, weights = gaussian_nodes(num_nodes_for(len(standard_scores)))
    best = int(np.argmax(standard_scores))
    margins = np.delete(standard_scores[best] - standard_scores, best)
    return float(weights @ np.exp(log_ndtr(z[:, None] + margins[None, :]).sum(axis=1)))


def _stays_nearest(noncentralities: np.ndarray, bias: np.ndarray, dimensions: int, num_nodes: int) -> float:
    """The Euclidean integral for one query: λ_k [K] and b_k/σ² [K].

    Integrates over the noisy distance u = √s of the answer, whose density 2u f_j(u²) is bell-shaped with variance
    close to (λ + d/2)/(λ + d), by Gauss–Legendre within 8.5 standard deviations of its centre. (The substitution
    s = F_j⁻¹(Φ(z)) gives the same integral; SciPy's quantiles are good to 1e-8 only, its densities to 1e-14.)
    """
    from scipy.stats import ncx2

    best = int(np.argmin(noncentralities + bias))
    nodes, weights = _legendre(num_nodes)
    centre = np.sqrt(noncentralities[best] + dimensions)
    reach = LARGEST_Z * np.sqrt(noncentralities[best] + dimensions / 2) / centre
    low, high = max(centre - reach, 0.0), centre + reach
    u = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    s = u**2
    weights = 0.5 * (high - low) * weights * 2 * u * ncx2.pdf(s, dimensions, noncentralities[best])
    others = np.delete(noncentralities, best)
    shift = bias[best] - np.delete(bias, best)
    if np.any(shift):
        log_survival = _log_survival(np.maximum(s[:, None] + shift[None, :], 0.0), dimensions, others[None, :])
    else:
        log_survival = _log_survival_many(s, dimensions, others)
    return float(np.clip(weights @ np.exp(log_survival.sum(axis=1)), 0.0, 1.0))


def _log_survival(s, dimensions, noncentrality):
    """log(1 − F(s)) of the noncentral χ²_d, −inf where it underflows (there the product is 0 anyway).

    √χ² is a 1-Lipschitz function of Gaussians with mean at least √(λ + d − 1), so P[√χ² < √(λ + d − 1) − 7.6] < 3e-13:
    there the logarithm is taken as 0, which saves most calls (and SciPy overflows far below the mean for large d).
    """
    from scipy.stats import ncx2

    s, noncentrality = np.broadcast_arrays(s, noncentrality)
    needed = np.sqrt(s) > np.sqrt(noncentrality + dimensions - 1) - 7.6
    result = np.zeros(s.shape)
    with np.errstate(divide="ignore"):
        result[needed] = np.log(ncx2.sf(s[needed], dimensions, noncentrality[needed]))
    return result


def _log_survival_many(s: np.ndarray, dimensions: int, noncentralities: np.ndarray) -> np.ndarray:
    """log(1 − F(s_m; λ_k)) for all nodes and classes [M, K], when no class is nearer than the one that set s.

    Classes too far away to win at any node are left out. Many classes share their evaluations: at fixed s the
    function is analytic in √λ, so a Chebyshev interpolant through fewer points than classes has the accuracy of
    the evaluations.
    """
    v = np.sqrt(noncentralities)
    v = v[v < np.sqrt(s.max()) + LARGEST_Z]  # P[√χ²_d(v²) < v − 8.5] < Φ(−8.5): the noise along the row is N(0, 1)
    if not len(v):
        return np.zeros((len(s), 1))
    first, last = v.min(), v.max()
    degree = int(32 + 10 * (last - first))
    if degree >= len(v):
        return _log_survival(s[:, None], dimensions, (v**2)[None, :])
    from numpy.polynomial import chebyshev

    points = np.cos(np.pi * (np.arange(degree) + 0.5) / degree)
    values = _log_survival(s[:, None], dimensions, ((first + (last - first) * (points[None, :] + 1) / 2) ** 2))
    coefficients = np.linalg.solve(chebyshev.chebvander(points, degree - 1), values.T)
    where = 2 * (v - first) / (last - first) - 1
    return np.minimum(chebyshev.chebvander(where, degree - 1) @ coefficients, 0.0).T
