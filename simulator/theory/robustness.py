"""Exact robustness of nearest-neighbour decisions under Gaussian noise on the gallery.

Two ways to one integral. `_integral` takes the rows of one query as they are. `_many_queries` uses that without a bias
the product of the survivals depends on the rows through Σ_k log S(u, v_k) alone, S(u, v) = P[noisy distance > u]:
at each u a sum over rows of one smooth function of v. On a panel of v it is its Chebyshev interpolant through GRID
points v_i, so with the Lagrange polynomials ℓ_i
    Σ_k log S(u, v_k) ≈ Σ_i W_i log S(u, v_i),   W_i = Σ_k ℓ_i(v_k):
a thousand distances become weights on a fixed grid that all queries share. So does the row that is to win, through its
hazard g/S, and for any set c of rows (one answer, or all rows of a class)
    P(c) = Σ_{j∈c} P_j = ∫ e^{Σ_k log S(u, v_k)} Σ_{j∈c} (g/S)(u, v_j) du.

**Error of the grid.** S(u, ·) has no zero within 1.98 of the real axis: for a normal law the zeros of erfc nearest to it
are 2.81 away in units of its standard deviation, and that of u is at least 1/√2. On a panel of length 1 log S and g/S are
thus analytic in the Bernstein ellipse with ρ = (1.98 + √(1.98² + ¼))/½ = 8.0, and interpolation through 16 points errs by
4 M ρ^{−16}/(ρ − 1) = 2e-15 M, M the largest modulus in the ellipse, that is relative to log S of the panel itself. A
panel whose rows have Σ |log S| = A changes the integrand, a density times e^{−A}, by less than e^{−A} A · 2e-15 e^{8}
(e^8: how much |log S| may vary within a panel and its ellipse), whatever the number of rows: below 1e-11 together.
(For few dimensions this bound is heuristic: there tests compare the two ways.)

Float64 NumPy and SciPy throughout, whatever JAX's precision.
"""

from __future__ import annotations

import functools

import numpy as np

from simulator.numerics.units import Problem, in_own_units, require_bias
from simulator.theory.noisy_distance import FAR, NODES, REACH, distribution, legendre_rule, log_density
from simulator.validation import require_number, require_one_of, require_same_width

LARGEST_Z = 8.5  # Φ(−8.5) = 1e-17: what lies beyond cannot be seen in float64
GRID = 16  # points per unit of distance/σ
BLOCK = 1 << 22  # numbers held at once: 32 MB
SMALLEST_SIGMA = 1e-100  # in units of the largest coordinate: below it the answer is that of vanishing noise
ROUNDING = 5e-11  # largest error in distance/σ that a matrix product may leave; else differences are squared


def exact_robustness(gallery, queries, *, sigma: float, scoring: str = "sqeuclidean", bias=None) -> np.ndarray:
    """Probability that each query keeps its answer when every gallery row gets independent N(0, σ²) noise.

    Euclid: u_k = ‖x_k + e_k − y‖/σ are independent with u_k² noncentral χ²_d(λ_k), λ_k = v_k² = ‖x_k − y‖²/σ². With
    density g_j and survival S_k the answer j wins with
        P = ∫ g_j(u) Π_{k≠j} S_k(√(u² + (b_j − b_k)/σ²)) du.
    Dot: the scores ⟨y, x_k + e_k⟩ + b_k have equal variances σ²‖y‖², so with Δ_k = clean score of j minus that of k
        P = ∫ φ(z) Π_{k≠j} Φ(z + Δ_k/(σ‖y‖)) dz,
    the limit of the above for far rows, v_k − v_j = Δ_k/(σ‖y‖).

    Args:
      gallery: [K, d].
      queries: [n, d].
      sigma: standard deviation of the noise per coordinate, > 0.
      scoring: "sqeuclidean" or "dot". Cosine has no closed form here: renormalising a noisy row couples its
        length and direction.
      bias: [K], added to the squared distance ("sqeuclidean") or to the similarity ("dot"); carries no noise.

    Returns:
      P for each query, [n], float64. Equal rows are rivals: each has its own noise.

    Raises:
      ValueError: shapes that do not fit, rows or a bias that are not finite, sigma <= 0, or scoring="cosine".

    Assumes: noise independent across rows, none on the queries or the bias.
    Error: below 1e-9 for d <= 1e5 and up to thousands of rows, plus that of the distances: float64 rows leave some
      1e-15 v in v.
    Example:
      >>> gallery, queries = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.5, 0.0]])
      >>> sim.exact_robustness(gallery, queries, sigma=1.0).round(4).tolist()
      [0.6878]

    Source: derived here: theory.md N4 (Euclid), N6 (dot).
    """
    require_same_width(gallery, queries)
    require_number("sigma", sigma, above=0.0)
    require_one_of("scoring", scoring, ("sqeuclidean", "dot"))
    bias = require_bias(bias, np.shape(gallery)[0])
    if bias is not None and not np.ptp(bias):
        bias = None
    problem = in_own_units(gallery, queries, sigma=float(sigma), scoring=scoring, bias=bias)
    sigma = max(problem.sigma_gallery, SMALLEST_SIGMA)
    rows, dimensions, scalar = problem.gallery, problem.gallery.shape[1], problem.bias
    result, size = np.empty(len(problem.queries)), max(1, BLOCK // len(rows))
    for first in range(0, len(result), size):
        asked = problem.queries[first : first + size]
        if scoring == "dot":
            found = _many_queries(FAR, _margins(problem._replace(queries=asked), sigma), 1)
        elif scalar is None:
            found = _nearest_many(rows, asked, sigma, dimensions)
        else:
            found = [_integral(s / sigma / sigma, scalar / sigma / sigma, dimensions) for s in _squares(rows, asked)]
        result[first : first + size] = found
    return np.clip(result, 0.0, 1.0)


def _margins(problem: Problem, sigma: float) -> np.ndarray:
    """(best score − score)/(σ‖y‖), [n, K]: by how many standard deviations each row loses; no noise, no loss."""
    scores = problem.queries @ problem.gallery.T
    if problem.bias is not None:
        scores = scores + problem.bias[None, :]
    margins = scores.max(axis=1, keepdims=True) - scores
    noise = sigma * np.linalg.norm(problem.queries, axis=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = np.where(noise > 0, margins / noise, np.inf)
    margins[np.arange(len(scores)), scores.argmax(axis=1)] = 0.0
    return margins


def _squares(rows, queries):
    """‖x − y‖² of one query after the other, [K] each: differences are squared, so that close rows keep their digits."""
    return (np.sum((rows - query[None, :]) ** 2, axis=1) for query in queries)


def _nearest_many(rows, queries, sigma: float, dimensions: int) -> np.ndarray:
    """The integral for many queries without a bias, from distances by a matrix product where that is exact enough."""
    lengths = np.sum(rows**2, axis=1)[None, :], np.sum(queries**2, axis=1)[:, None]
    squares = np.maximum(lengths[0] + lengths[1] - 2 * queries @ rows.T, 0.0)
    nearest = squares.min(axis=1)
    error = np.finfo(float).eps * np.sqrt(dimensions + 16.0) * (lengths[0].max() + lengths[1][:, 0])
    # v errs by δ(r²)/(2rσ), and by no more than √δ(r²)/σ at r = 0.
    inexact = error > ROUNDING * sigma * np.maximum(2 * np.sqrt(nearest), ROUNDING * sigma)
    for i in np.flatnonzero(inexact):
        squares[i] = next(_squares(rows, queries[i : i + 1]))
    # v = r/σ relative to a whole number below the nearest.
    distances = np.sqrt(squares) / sigma
    nearest = distances.min(axis=1)
    result, origins = np.empty(len(queries)), np.minimum(np.floor(nearest), FAR)
    for origin in np.unique(origins):
        own = np.flatnonzero(origins == origin)
        start = origin if origin < FAR else nearest[own][:, None]
        result[own] = _many_queries(float(origin), distances[own] - start, dimensions)
    return result


def _many_queries(origin: float, offsets: np.ndarray, dimensions: int) -> np.ndarray:
    """P for queries whose rows lie at v = origin + offset, offsets [n, K], the smallest of each in [0, 1).

    The rows become weights on the grid (module docstring) where the grid is smaller than what it stands for.
    """
    n, best = np.arange(len(offsets)), offsets.argmin(axis=1)
    w, weights, count = _nodes(origin, dimensions)
    near = offsets < count
    if np.count_nonzero(near) < GRID * count:
        return np.array([
            _product(w, weights, origin, row[keep], int(np.count_nonzero(keep[:b])), dimensions)
            for row, keep, b in zip(offsets, near, best, strict=True)
        ])  # fmt: skip
    at = np.flatnonzero(near)
    inside = offsets.ravel()[at]
    panel = inside.astype(int)
    cell, x = at // offsets.shape[1] * count + panel, 2 * (inside - panel) - 1
    moments = np.empty((GRID, len(n) * count))
    before, here = np.ones_like(x), x
    for degree in range(GRID):
        moments[degree] = np.bincount(cell, before, len(n) * count)
        before, here = here, 2 * x * here - before
    _, to_weights = _chebyshev()
    of_rows = (moments.T @ to_weights).reshape(len(n), -1)
    of_best = np.polynomial.chebyshev.chebvander(2 * offsets[n, best] - 1, GRID - 1) @ to_weights
    log_survival, hazard = _table(origin, dimensions)
    product = np.exp(np.minimum(of_rows @ log_survival.T, 0.0))
    return (product * (of_best @ hazard[:, :GRID].T)) @ weights


def _nodes(origin: float, dimensions: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Nodes and weights in u − origin for a nearest row in [origin, origin + 1), and the number of panels of length 1
    above origin on which a row may lie and still come below the last node with a chance above 1e-17."""
    low, high = _mean_offset(origin, dimensions - 1) - REACH, _mean_offset(origin + 1, dimensions) + 1 + REACH
    top = origin + high + REACH
    reach = high + REACH - (dimensions - 1) / (top + np.sqrt(max(top**2 - dimensions + 1, 0.0)))
    edges = _edges(max(low, -origin), high, 1.0, from_zero=low < -origin)
    return *_panels(edges), max(int(np.ceil(reach)), 1)


@functools.lru_cache(maxsize=32)
def _table(origin: float, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """log S and the hazard g/S at the nodes of u, for rows on the grid of v: [M, panels · GRID] each."""
    w, weights, count = _nodes(origin, dimensions)
    grid = (np.arange(count)[:, None] + 0.5 * (1 + _chebyshev()[0])[None, :]).ravel()
    density, survival = _law(w, weights, origin, grid, dimensions)
    survival = np.maximum(survival, 1e-300)
    return np.log(survival), density / survival


@functools.lru_cache(maxsize=1)
def _chebyshev() -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev points [GRID], and the matrix [GRID, GRID] that makes Σ_k T_j(x_k) the weights Σ_k ℓ_i(x_k)."""
    from numpy.polynomial import chebyshev

    points = np.cos(np.pi * (np.arange(GRID) + 0.5) / GRID)
    return points, np.linalg.inv(chebyshev.chebvander(points, GRID - 1))


def _mean_offset(v, dimensions: float):
    """√(v² + dimensions) − v, to every digit."""
    return dimensions / np.maximum(np.hypot(v, np.sqrt(dimensions)) + v, 1e-300)


def _edges(low: float, high: float, length: float, *, from_zero: bool) -> np.ndarray:
    """Ends of panels of at most `length` on [low, high]. Where u starts at 0, so few dimensions that F is a power of u
    there and the nearest of K rows is of order K^{−1/d}, they are half as long and halve 16 times towards 0."""
    edges = np.linspace(low, high, int(np.ceil((high - low) / length * (2 if from_zero else 1))) + 1)
    if not from_zero:
        return edges
    return np.concatenate([[low], low + (edges[1] - low) * 0.5 ** np.arange(16, 0, -1), edges[1:]])


def _panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [M] of Gauss–Legendre on panels between edges."""
    rule, length = legendre_rule(NODES), np.diff(edges)[:, None]
    nodes = edges[:-1, None] + 0.5 * length * (1 + rule.nodes)[None, :]
    return nodes.ravel(), (0.5 * length * rule.weights[None, :]).ravel()


def _law(w, weights, origin: float, offsets, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Density and survival [M, columns] of noisy distances at nodes origin + w, for rows at v = origin + offsets.

    Below the first node no row has any weight. The survival is 1 − F, and where it is small the integral to the right.
    """
    density = np.exp(log_density(w[:, None] - offsets[None, :], origin + offsets[None, :], dimensions))
    scaled = (density * (weights / np.tile(legendre_rule(NODES).weights, len(w) // NODES))[:, None]).reshape(
        -1, NODES, len(offsets)
    )
    below = distribution(scaled).reshape(density.shape)
    # The rule is symmetric, so the integral from the right is that of everything turned round.
    above = distribution(scaled[::-1, ::-1]).reshape(density.shape)[::-1]
    total = weights @ density
    above = above + np.where(total < 1 - 1e-13, 1 - total, 0.0)[None, :]
    return density, np.where(below < 0.5, 1 - below, above)


def _product(w, weights, origin: float, offsets, best: int, dimensions: int) -> float:
    """The integral over rows at v = origin + offsets [K], as they are."""
    total, size = np.zeros(len(w)), max(1, BLOCK // len(w))
    own = np.zeros(0)
    for first in range(0, len(offsets), size):
        density, survival = _law(w, weights, origin, offsets[first : first + size], dimensions)
        if first <= best < first + size:
            own = density[:, best - first]
            survival[:, best - first] = 1.0
        total += np.log(np.maximum(survival, 1e-300)).sum(axis=1)
    return float(weights @ (own * np.exp(total)))


def _integral(noncentralities, bias, dimensions: int) -> float:
    """The integral for one query with a bias: λ_k [K] and b_k/σ² [K].

    Over w = u − v_j, u the noisy distance of the answer j. Row k is beaten while its own noisy distance exceeds
    τ_k = √(u² + c_k), c_k = (b_j − b_k)/σ², and with its margin D_k = λ_k + b_k/σ² − (λ_j + b_j/σ²) >= 0
        τ_k − v_k = E_k/(τ_k + v_k),   E_k = τ_k² − λ_k = w(u + v_j) − D_k,
    which loses no digits. dτ_k/du = u/τ_k makes rows steeper than the answer where τ_k < u, so panels are shorter
    there; and S_k has a kink where τ_k reaches 0, at which panels end and behind which they start short.
    """
    score = noncentralities + bias
    best = int(np.argmin(score))
    v, margins, own = np.sqrt(noncentralities), score - score[best], float(np.sqrt(noncentralities[best]))
    low = max(_mean_offset(own, dimensions - 1) - REACH, -own)
    high = _mean_offset(own, dimensions) + REACH
    lowest = np.maximum(_mean_offset(v, dimensions - 1) - REACH, -v)  # less than v + lowest no row's distance is
    near = _beaten(high, own, v, margins)[1] > lowest
    near[best] = False
    v, margins, lowest = v[near], margins[near], lowest[near]
    w, dw = _steep_panels(low, high, own, v, margins, lowest, dimensions)
    total, size = np.zeros(w.shape), max(1, BLOCK // w.size)
    for first in range(0, len(v), size):
        part = slice(first, first + size)
        total += _log_survival(w, dw, low, own, v[part], margins[part], lowest[part], dimensions)
    density = np.exp(log_density(w, own, dimensions) + total) * dw
    return float(np.sum(density * legendre_rule(NODES).weights[None, :]))


def _beaten(w, own: float, v, margins) -> tuple[np.ndarray, np.ndarray]:
    """τ_k and τ_k − v_k for the answer at own + w; broadcasts. τ_k is 0 where row k cannot be less."""
    energy = w * (w + 2 * own) - margins
    threshold = np.sqrt(np.maximum(v**2 + energy, 0.0))
    total = threshold + v
    return threshold, np.where(threshold > 0, energy / np.where(total > 0, total, 1.0), -v)


def _steep_panels(low, high, own, v, margins, lowest, dimensions) -> tuple[np.ndarray, np.ndarray]:
    """Nodes w [panels, NODES] on [low, high] and dw/dξ, ξ in [−1, 1]."""
    rule = legendre_rule(NODES)
    threshold = np.maximum(_beaten(low, own, v, margins)[0], np.maximum(v + lowest + 1.5, 0.5))
    steepest = min(float(np.max((own + high) / threshold, initial=1.0)), 400.0)
    edges = _edges(low, high, 1.5 / steepest, from_zero=low == -own)
    # u = √−c_k, c_k = λ_k − λ_j − D_k; rows at v + lowest > 0 have no weight at their kink.
    turn = own**2 + margins - v**2
    kinks = np.sqrt(turn[(turn > 0) & (lowest <= -v)]) - own
    kinks = kinks[(kinks > low) & (kinks < high)]
    # Behind it S_k goes like (u − kink)^{d/2}: panels that double in length, from one whose content is below 1e-12 and on
    # which √(u − kink) is the variable.
    halvings = int(40 / (dimensions / 2 + 1)) if dimensions % 2 else 0
    steps = (edges[-1] - edges[-2]) * 0.5 ** np.arange(halvings + 1)
    edges = np.unique(np.concatenate([edges, kinks, np.minimum(kinks[:, None] + steps[None, :], high).ravel()]))
    length, x, behind = np.diff(edges)[:, None], 0.5 * (1 + rule.nodes)[None, :], np.isin(edges[:-1, None], kinks)
    return edges[:-1, None] + length * np.where(behind, x**2, x), 0.5 * length * np.where(behind, 2 * x, 1.0)


def _log_survival(w, dw, low, own, v, margins, lowest, dimensions: int) -> np.ndarray:
    """Σ_k log S_k(τ_k) at the nodes [panels, NODES] for rows [k]."""
    threshold, offset = _beaten(w[:, :, None], own, v, margins)
    slope = (own + w)[:, :, None] * dw[:, :, None] / np.where(threshold > 0, threshold, 1.0)
    below = distribution(np.exp(log_density(offset, v, dimensions)) * slope)
    # What lies before the first node.
    start = np.minimum(_beaten(low, own, v, margins)[1], _mean_offset(v, dimensions) + REACH)
    rows = np.flatnonzero(start > lowest)
    if len(rows):
        x, weights = _panels(np.arange(19.0))
        length = (start - lowest)[rows] / 18.0
        before = log_density(lowest[rows] + length * x[:, None], v[rows], dimensions)
        below[:, :, rows] += length * (weights @ np.exp(before))
    return np.log(np.maximum(1 - below, 1e-300)).sum(axis=2)


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
    """Gauss–Legendre nodes and weights on [−1, 1]; NumPy's would take the cube of their number."""
    from scipy.special import roots_legendre

    return roots_legendre(num_nodes)


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
