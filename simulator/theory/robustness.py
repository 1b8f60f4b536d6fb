"""Exact robustness of nearest-neighbour decisions under Gaussian noise on the gallery.

Float64 NumPy and SciPy throughout, whatever JAX's precision.
"""

from __future__ import annotations

import functools

import numpy as np

from simulator.validation import require_number, require_one_of, require_same_width

LARGEST_NONCENTRALITY = 1e7
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
    Error: quadrature below 1e-9 (checked against mpmath and by doubling the nodes); below 1e-7 for ‖x_k − y‖²/σ² > 1e7,
      where a Gaussian limit takes over.
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
    squares = (np.sum((gallery - query[None, :]) ** 2, axis=1) for query in queries)
    return np.array([_stays_nearest(s / sigma**2, bias / sigma**2, dimensions, num_nodes) for s in squares])


def gaussian_nodes(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes z on [−8.5, 8.5] and weights for ∫ φ(z) · dz."""
    nodes, weights = legendre_nodes(num_nodes)
    z = LARGEST_Z * nodes
    return z, LARGEST_Z * weights * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def num_nodes_for(num_classes: int) -> int:
    """Quadrature nodes that leave an error below 1e-10: the more classes, the narrower the integrand (its product cuts
    the density off sooner), so a number that is ample for 2 classes leaves 1e-5 for 1,000."""
    return 60 + 10 * int(np.ceil(np.log2(max(num_classes, 2))))


@functools.lru_cache(maxsize=16)
def legendre_nodes(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights on [−1, 1]."""
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
    if noncentralities[best] > LARGEST_NONCENTRALITY:
        return _stays_nearest_in_the_limit(noncentralities, bias, dimensions, num_nodes)
    nodes, weights = legendre_nodes(num_nodes)
    centre = np.sqrt(noncentralities[best] + dimensions)
    reach = LARGEST_Z * np.sqrt(noncentralities[best] + dimensions / 2) / centre
    low, high = max(centre - reach, 0.0), centre + reach
    others = np.delete(noncentralities, best)
    shift = bias[best] - np.delete(bias, best)
    u, weights = _between_kinks(low, high, _kinks(shift, others, dimensions), nodes, weights)
    s = u**2
    weights = weights * 2 * u * ncx2.pdf(s, dimensions, noncentralities[best])
    if np.any(shift):
        log_survival = _log_survival(np.maximum(s[:, None] + shift[None, :], 0.0), dimensions, others[None, :])
    else:
        log_survival = _log_survival_many(s, dimensions, others)
    return float(np.clip(weights @ np.exp(log_survival.sum(axis=1)), 0.0, 1.0))


def _kinks(shift, noncentralities, dimensions) -> np.ndarray:
    """Where a factor 1 − F_k(u² + shift_k) of the integrand is not smooth: at u = √−shift_k, before which it is 1.

    Behind it F_k ~ e^{−λ_k/2} (u² + shift_k)^{d/2}/(2^{d/2} Γ(d/2 + 1)): too small to matter for large λ_k, and smooth
    enough for large d.
    """
    matter = (shift < 0) & (noncentralities < 60) & (dimensions < 64)
    return np.unique(np.sqrt(-shift[matter]))


def _between_kinks(low, high, kinks, nodes, weights):
    """Gauss–Legendre nodes and weights on [low, high], and on every piece between kinks. On a piece [a, b] behind a
    kink u = a + (b − a) w², in which half-integer powers of u − a are whole powers of w."""
    w, weights = 0.5 * (1 + nodes), 0.5 * weights
    edges = np.concatenate([[low], kinks[(kinks > low) & (kinks < high)], [high]])
    start, length = edges[:-1, None], np.diff(edges)[:, None]
    if len(start) == 1:
        return low + (high - low) * w, (high - low) * weights
    return (start + length * w**2).ravel(), (length * 2 * w * weights).ravel()


def _stays_nearest_in_the_limit(noncentralities, bias, dimensions, num_nodes) -> float:
    """The same for λ > 1e7, where SciPy's series no longer converge: √χ²_d(λ) is Gaussian with mean
    √λ + (d − 1)/(2√λ) and variance 1 − (d − 1)/(2λ), up to terms of order d/λ^{3/2} (below 1e-7 for d ≤ 1,024)."""
    from scipy.special import log_ndtr

    mean = np.sqrt(noncentralities) + (dimensions - 1) / (2 * np.sqrt(noncentralities))
    spread = np.sqrt(1 - (dimensions - 1) / (2 * noncentralities))
    best = int(np.argmin(noncentralities + bias))
    z, weights = gaussian_nodes(num_nodes)
    u = mean[best] + spread[best] * z
    others = np.arange(len(mean)) != best
    threshold = np.sqrt(np.maximum(u[:, None] ** 2 + (bias[best] - bias[others])[None, :], 0.0))
    margins = (mean[others][None, :] - threshold) / spread[others][None, :]
    return float(np.clip(weights @ np.exp(log_ndtr(margins).sum(axis=1)), 0.0, 1.0))


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
    where = 2 * (v - first) / ((last - first) or 1.0) - 1  # all at one distance: any point of the constant will do
    return np.minimum(chebyshev.chebvander(where, degree - 1) @ coefficients, 0.0).T


def two_class_robustness(nearest, other, *, sigma: float, dimensions) -> np.ndarray:
    """Probability that the nearer of two gallery rows stays the nearer one, in the limit of many dimensions.

    P ≈ Φ( Δ/(2σ√(r₁² + r₂² + dσ²)) ),   Δ = r₂² − r₁².
    The difference of the two noisy squared distances, Δ + 2σ(r₂z₂ − r₁z₁) + ‖e₂‖² − ‖e₁‖², has mean Δ and
    variance 4σ²(r₁² + r₂²) + 4dσ⁴; it is a sum over d coordinates, so nearly normal.

    Args:
      nearest: r₁, distance of the query to the nearer row; any shape.
      other: r₂ >= r₁, distance to the other row; broadcasts with `nearest`.
      sigma: standard deviation of the noise per coordinate, > 0.
      dimensions: d, a number or an array that broadcasts with the distances.

    Returns:
      P, in the broadcast shape, float64.

    Raises:
      ValueError: distances that are negative or in the wrong order, fewer than one dimension, sigma <= 0.

    Assumes: independent N(0, σ²) noise on every coordinate of both rows.
    Error: O(1/(d + λ₁ + λ₂)), λ_k = r_k²/σ²; its leading term is `two_class_error`.
    Source: derived here: theory.md N4.
    """
    from scipy.special import ndtr

    return ndtr(_two_class_terms(nearest, other, sigma, dimensions)[0])


def two_class_error(nearest, other, *, sigma: float, dimensions, skewness: bool = True) -> np.ndarray:
    """Leading error of `two_class_robustness`: exact value minus normal approximation.

    w φ(w) [ (w² − 1)/N + (3 − w²)(d + 2λ̄)/(4N²) ],   λ̄ = λ₁ + λ₂, N = d + λ̄, w the argument of Φ.
    Cumulants of χ²_d(λ₂) − χ²_d(λ₁): κ₂ = 4N, κ₃ = 24(λ₂ − λ₁), κ₄ = 96(d + 2λ̄), and λ₂ − λ₁ = 2w√N, so the skewness
    is κ₃/κ₂^{3/2} = 6w/N, of the same order as the excess kurtosis 6(d + 2λ̄)/N². Edgeworth's expansion of P[· > 0],
    Φ(w) + φ(w)[skewness (w² − 1)/6 − kurtosis (w³ − 3w)/24], gives the above. At fixed λ̄/d and w it falls as 1/d.

    Args:
      nearest, other, sigma, dimensions: as in `two_class_robustness`.
      skewness: False drops the first term; a near miss, for controls.

    Returns:
      The error, in the broadcast shape, float64.

    Raises:
      ValueError: as `two_class_robustness`.

    Assumes: as `two_class_robustness`.
    Error: O(1/N²).
    Source: derived here.
    """
    w, size, kurtosis = _two_class_terms(nearest, other, sigma, dimensions)
    density = np.exp(-0.5 * w**2) / np.sqrt(2 * np.pi)
    first = (w**2 - 1) / size if skewness else 0.0
    return w * density * (first + (3 - w**2) * kurtosis / 24)


def _two_class_terms(nearest, other, sigma, dimensions):
    """w, N = d + λ₁ + λ₂ and the excess kurtosis 6(d + 2λ₁ + 2λ₂)/N²."""
    require_number("sigma", sigma, above=0.0)
    nearest, other, dimensions = (np.asarray(a, float) for a in (nearest, other, dimensions))
    if not (np.all(nearest >= 0) and np.all(other >= nearest) and np.all(dimensions >= 1)):
        raise ValueError("the distances must satisfy 0 <= nearest <= other, in at least one dimension; swap the rows")
    total = (nearest**2 + other**2) / sigma**2
    size = dimensions + total
    w = (other - nearest) * (other + nearest) / sigma**2 / (2 * np.sqrt(size))
    return w, size, 6 * (dimensions + 2 * total) / size**2
