"""Why closing a gap can only help: per query, robustness falls with every common offset of the distances.

Let s_k = ‖x_k + e_k − y‖²/σ² with e_k i.i.d. N(0, σ²) on every coordinate of every gallery row. The s_k are
independent noncentral χ²_d(λ_k), λ_k = ‖x_k − y‖²/σ², with density f_k, distribution function F_k and survival S_k =
1 − F_k; f_k⁺ is the density with d + 2 degrees of freedom and the same λ_k. P_j = ∫ f_j Π_{k≠j} S_k ds is the
probability that row j wins.

**Theorem.** Add h >= 0 to every λ_k. If j is a nearest row (λ_j = min λ_k), P_j(h) does not rise; it falls strictly
as soon as one row is farther than j.

*Proof.*
1. ∂F_d/∂λ = −f_{d+2}. The law is a Poisson mixture of central ones: F_d(s; λ) = Σ_m p_m(λ/2) C_{d+2m}(s) with p_m(μ)
   = e^{−μ} μ^m/m!. Since dp_m/dμ = p_{m−1} − p_m, ∂F_d/∂λ = ½ Σ_m p_m (C_{d+2m+2} − C_{d+2m}). The central density
   c_{n+2}(s) ∝ s^{n/2} e^{−s/2} obeys c_{n+2}' = ½ (c_n − c_{n+2}), so C_n − C_{n+2} = 2 c_{n+2}, and the sum is
   −f_{d+2}. The factors ½ and 2 cancel: the constant is 1. Differentiating in s, ∂f_d/∂λ = −(f_{d+2})'.
2. Hence dP_j/dh = −∫ (f_j⁺)' Π_{k≠j} S_k ds + Σ_{k≠j} ∫ f_j f_k⁺ Π_{l≠j,k} S_l ds (the integrands and their
   derivatives are bounded by an integrable function for λ in a compact set, so the order may be exchanged). Integrate
   the first by parts. The boundary vanishes (f_j⁺ ~ s^{d/2} at 0, and decays exponentially at ∞), and (Π S_k)' =
   −Σ_k f_k Π_{l≠j,k} S_l, so
       dP_j/dh = Σ_{k≠j} ∫ (f_j f_k⁺ − f_j⁺ f_k) Π_{l≠j,k} S_l ds.
   (The terms are antisymmetric in j, k: what one row loses another gains, and Σ_j dP_j/dh = 0.)
3. With ν = d/2 − 1 and z = √(λs), f_d(s; λ) = ½ e^{−(s+λ)/2} (s/λ)^{ν/2} I_ν(z), so f⁺/f = (s/λ)^{½}
   I_{ν+1}(z)/I_ν(z) = s B_ν(z), with B_ν(z) = I_{ν+1}(z)/(z I_ν(z)).
4. z^{−ν} I_ν(z) is entire, even, and for ν > −1 has only the zeros ±i j_{ν,m} (j_{ν,m} real, positive, the zeros of
   J_ν): z^{−ν} I_ν(z) = [2^{−ν}/Γ(ν+1)] Π_m (1 + z²/j²_{ν,m}). Its logarithmic derivative is I_{ν+1}/I_ν, because
   I_ν' = I_{ν+1} + (ν/z) I_ν. So B_ν(z) = Σ_m 2/(z² + j²_{ν,m}): each term, hence B_ν, falls strictly as z² = λs
   grows. d = 1 (ν = −½) is included: there B = tanh(z)/z. λ = 0 is included: B_ν(0) = 1/d, the ratio of the central
   densities over s.
5. f_j f_k⁺ − f_j⁺ f_k = s f_j f_k [B_ν(√(λ_k s)) − B_ν(√(λ_j s))] <= 0 for every s > 0 when λ_j <= λ_k, with equality
   for λ_j = λ_k alone. So every term of step 2 is <= 0.  ∎

For the farthest row every term is >= 0; for the rows between, the sign varies.

**Corollary.** Move the gallery by α v, v orthogonal to its centred span. Then ‖x_k + αv − y‖² = const_k + ‖v‖² (α −
α*_y)² with α*_y = ⟨y − μ_x, v⟩/‖v‖² (⟨x_k, v⟩ is the same for all k, so it equals ⟨μ_x, v⟩). So h = ‖v‖² (α −
α*_y)²/σ²: the robustness of query y is a falling function of |α − α*_y|, rises on (−∞, α*_y], is symmetric about
α*_y, and falls after. An average over queries is therefore sure to rise only up to min_y α*_y. More is not true: at
α* = 0 (a query of the gallery's own modality) the move itself is the harm, and a share p of such queries, each losing
L from α = 0 to 1, brings the average down as soon as p L exceeds what the others can gain, at most (1 − p)(1 − their
robustness at α = 0).
"""

from __future__ import annotations

import numpy as np

from simulator.theory.noisy_distance import legendre_rule
from simulator.validation import require_integer

REACH = 7.5  # √χ² is a 1-Lipschitz function of Gaussians: it lies farther above its mean with chance below 1e-13 only


def bessel_ratio(order, z) -> np.ndarray:
    """The ratio B_ν(z) that carries the dependence of f⁺/f on the noncentrality.

    B_ν(z) = I_{ν+1}(z)/(z I_ν(z)); B_ν(0) = 1/(2ν + 2).

    Args:
      order: ν >= −½, broadcasts against z.
      z: >= 0.

    Returns:
      B, of the broadcast shape.

    Error: exact (double precision), any z and order: the exponentially scaled functions, and below their range the
      power series of I.
    Source: derived here: theory.md N5, step 3.
    """
    order = np.asarray(order, float)
    return np.exp(_log_reduced_bessel(order + 1, z) - _log_reduced_bessel(order, z))


def _log_reduced_bessel(order, z):
    """log( z^{−ν} e^{−z} I_ν(z) ), finite at z = 0 and where I_ν underflows."""
    from scipy.special import gammaln, hyp0f1, ive

    order, z = np.broadcast_arrays(order, z)
    value = ive(order, z)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.array(np.log(value) - order * np.log(z))
    small = (z < 1e-3) | (value < 1e-280)
    v, q = order[small], z[small]
    result[small] = np.log(hyp0f1(v + 1, 0.25 * q**2)) - gammaln(v + 1) - v * np.log(2.0) - q
    return result


def bessel_zeros(order: float, count: int) -> np.ndarray:
    """The first positive zeros j_{ν,1} < j_{ν,2} < … of J_ν, for 2ν a whole number.

    Starts from ν = −½, zeros (m − ½)π, or ν = 0, between (m − ½)π and mπ, and climbs by interlacing:
    j_{ν,m} < j_{ν+1,m} < j_{ν,m+1}.

    Args:
      order: ν in {−½, 0, ½, 1, …}.
      count: number of zeros, >= 1.

    Returns:
      [count], increasing.

    Raises:
      ValueError: 2ν is not a whole number >= −1.

    Error: exact (root finding to double precision).
    Source: textbook (Watson 1944, ch. 15).
    """
    from scipy.optimize.elementwise import find_root
    from scipy.special import jv

    require_integer("count", count)
    if order < -0.5 or 2 * order != round(2 * order):
        raise ValueError(f"order is {order!r}; expected −1/2, 0, 1/2, 1, … (d/2 − 1 for d dimensions)")
    climbs = int(order + 0.5)
    if order == int(order):
        m = np.arange(1, count + climbs + 1)
        zeros = find_root(lambda z: jv(0.0, z), ((m - 0.5) * np.pi, m * np.pi)).x
        current = 0.0
    else:
        zeros, current = (np.arange(1, count + climbs + 1) - 0.5) * np.pi, -0.5
    for _ in range(climbs):
        current += 1.0
        zeros = find_root(lambda z, current=current: jv(current, z), (zeros[:-1], zeros[1:])).x
    return zeros[:count]


def bessel_ratio_from_zeros(order: float, z, zeros: np.ndarray) -> np.ndarray:
    """B_ν(z) from the zeros of J_ν: the sum that shows at sight that B falls as z grows.

    B_ν(z) = Σ_m 2/(z² + j²_{ν,m}). Beyond the given zeros the terms are expanded in z²/j², and Σ_m j^{−2} = 1/(4(ν+1)),
    Σ_m j^{−4} = 1/(16(ν+1)²(ν+2)) (Rayleigh) give what the given zeros leave of the first two orders.

    Args:
      order: ν > −1.
      z: >= 0, any shape.
      zeros: the first M zeros of J_ν, [M].

    Returns:
      B, shaped like z.

    Error: 2 z⁴/(5π⁶ M⁵) in B, once M exceeds ν and z.
    Source: derived here: theory.md N5, step 4; Rayleigh sums: Watson 1944, § 15.51.
    """
    z, squares = np.asarray(z, float), np.asarray(zeros, float) ** 2
    first = 1 / (4 * (order + 1)) - np.sum(1 / squares)
    second = 1 / (16 * (order + 1) ** 2 * (order + 2)) - np.sum(1 / squares**2)
    return np.sum(2 / (z[..., None] ** 2 + squares), axis=-1) + 2 * first - 2 * z**2 * second


def density_ratio(s, dimensions, noncentrality) -> np.ndarray:
    """Ratio of the noncentral χ² densities with d + 2 and d degrees of freedom.

    f_{d+2}(s; λ)/f_d(s; λ) = s B_ν(√(λs)), ν = d/2 − 1; it falls as λ grows.

    Args:
      s: > 0, squared distance in units of σ². dimensions: d >= 1. noncentrality: λ >= 0. All broadcast.

    Returns:
      The ratio, of the broadcast shape.

    Error: exact.
    Source: derived here: theory.md N5, step 3.
    """
    s = np.asarray(s, float)
    return s * bessel_ratio(np.asarray(dimensions) / 2 - 1, np.sqrt(s * np.asarray(noncentrality, float)))


def distribution_slope(s, dimensions, noncentrality) -> np.ndarray:
    """How the noncentral χ² distribution function falls with its noncentrality.

    ∂F_d(s; λ)/∂λ = −f_{d+2}(s; λ).

    Args:
      s: > 0. dimensions: d >= 1. noncentrality: λ >= 0. All broadcast.

    Returns:
      The slope per unit of λ, of the broadcast shape.

    Error: exact.
    Source: derived here: theory.md N5, step 1.
    """
    u, v = np.sqrt(np.asarray(s, float)), np.sqrt(np.asarray(noncentrality, float))
    return -_radial_density(u, v, np.asarray(dimensions) / 2) / (2 * u)


def _radial_density(u, v, order):
    """Density of √χ²_d(v²) at u, ν = d/2 − 1: 2u f_d(u²; v²) = u^{2ν+1} e^{−(u−v)²/2} (uv)^{−ν} e^{−uv} I_ν(uv)."""
    return np.exp((2 * order + 1) * np.log(u) - 0.5 * (u - v) ** 2 + _log_reduced_bessel(order, u * v))


def win_probabilities(noncentralities, dimensions, *, num_nodes: int = 88) -> np.ndarray:
    """Probability that each row wins, for many small galleries at once.

    P_j = ∫ f_j(s) Π_{k≠j} S_k(s) ds, on nodes in u = √s that cover the law of the nearest row: beyond them its
    survival, a factor of every integrand, is below 1e-13, and before them no row has any weight.

    Args:
      noncentralities: λ_k = ‖x_k − y‖²/σ² >= 0, [n, K].
      dimensions: d >= 1, [n] or one number.
      num_nodes: Gauss–Legendre nodes of the integral.

    Returns:
      P, [n, K]; rows sum to 1 within the error.

    Raises:
      ValueError: noncentralities that are not finite, not negative [n, K], or dimensions below 1.

    Assumes: independent N(0, σ²) noise on every coordinate of every row.
    Error: below 1e-11 with 88 nodes for K <= 10, and with 44 + 6K for K <= 10 (checked by doubling the nodes and
      against exact_robustness).
    Source: derived here: theory.md N4.
    """
    _, _, density, survival, weights = _on_nodes(noncentralities, dimensions, num_nodes)
    others = _products_without_one(survival)
    return np.einsum("nkm,nkm,nm->nk", density, others, weights)


def win_slopes(noncentralities, dimensions, *, num_nodes: int = 88) -> np.ndarray:
    """Slope of every win probability when one h is added to all noncentralities.

    dP_j/dh = Σ_{k≠j} ∫ (f_j f_k⁺ − f_j⁺ f_k) Π_{l≠j,k} S_l ds. In u = √s, with g = 2u f, the bracket times ds is
    ½ u g_j g_k [B_ν(u√λ_k) − B_ν(u√λ_j)] du, negative when j is the nearer of the two.

    Args:
      noncentralities: λ_k >= 0, [n, K], K >= 2.
      dimensions: d >= 1, [n] or one number.
      num_nodes: Gauss–Legendre nodes of the integral.

    Returns:
      dP_j/dh, [n, K], per unit of h = squared distance/σ²; rows sum to 0; <= 0 for the nearest row.

    Raises:
      ValueError: as for `win_probabilities`.

    Assumes: independent N(0, σ²) noise on every coordinate of every row.
    Error: below 1e-11 with 88 nodes for K <= 10.
    Source: derived here: theory.md N5, step 2.
    """
    u, order, density, survival, weights = _on_nodes(noncentralities, dimensions, num_nodes)
    ratio = bessel_ratio(order, u[:, None, :] * np.sqrt(np.asarray(noncentralities, float))[:, :, None])
    scale = 0.5 * u * weights
    slopes = np.zeros(density.shape[:2])
    rows = np.arange(density.shape[1])
    for j in rows:
        others = rows != j
        rest = _products_without_one(survival[:, others])
        bracket = ratio[:, others] - ratio[:, [j]]
        slopes[:, j] = np.einsum("nm,nkm,nkm,nkm,nm->n", density[:, j], density[:, others], bracket, rest, scale)
    return slopes


def _on_nodes(noncentralities, dimensions, num_nodes):
    """Nodes u [n, M], orders ν [n, 1, 1], radial densities and survivals [n, K, M], weights [n, M]."""
    noncentralities = np.asarray(noncentralities, float)
    shape = noncentralities.shape
    if noncentralities.ndim != 2 or 0 in shape or not np.isfinite(noncentralities).all() or noncentralities.min() < 0:
        raise ValueError(f"noncentralities have shape {shape}; expected finite numbers >= 0, one per row: [n, K]")
    dimensions = np.broadcast_to(np.asarray(dimensions, float), shape[:1])
    if dimensions.min() < 1:
        raise ValueError(f"dimensions are {dimensions.min():g} at least; expected 1 or more")
    rule = legendre_rule(num_nodes)
    centre = np.sqrt(noncentralities.min(axis=1) + dimensions)
    low, high = np.maximum(centre - REACH, 0.0), centre + REACH
    half = 0.5 * (high - low)
    u = np.maximum(low[:, None] + half[:, None] * (1 + rule.nodes)[None, :], 1e-12)
    order = dimensions[:, None, None] / 2 - 1
    density = _radial_density(u[:, None, :], np.sqrt(noncentralities)[:, :, None], order)
    survival = 1.0 - half[:, None, None] * (density @ rule.cumulative.T)
    return u, order, density, survival, half[:, None] * rule.weights[None, :]


def _products_without_one(factors: np.ndarray) -> np.ndarray:
    """Π_{l≠k} of factors [n, K, M] along K, without dividing."""
    ones = np.ones_like(factors[:, :1])
    before = np.cumprod(np.concatenate([ones, factors[:, :-1]], axis=1), axis=1)
    after = np.cumprod(np.concatenate([ones, factors[:, :0:-1]], axis=1), axis=1)[:, ::-1]
    return before * after
