"""What a gallery that is stored with noise costs, and the best linear way to store it.

All rules here keep every clean decision: ‖y − x_k‖² orders the classes like −2⟨y, x_k⟩ + ‖x_k‖², and for any centres c,
m and any invertible A

    ⟨y, x_k⟩ = ⟨A(y − m), A⁻ᵀ(x_k − c)⟩ + ⟨m, x_k⟩ + (a term without k),

so rows A⁻ᵀ(x_k − c) and one exact scalar b_k = ⟨m, x_k⟩ − ½‖x_k‖² per class answer every query as the clean gallery
does. Noise e_k on the stored rows enters the score as ⟨A(y − m), e_k⟩: of independent noise of variance σ² per
coordinate a score gets the variance σ²‖A(y − m)‖², the same for all classes and free of the gap.

**Theorem (best A).** Let the noise have a variance proportional to the stored power, σ² = κ E‖A⁻ᵀ(x − c)‖²/d, and
let C_x, C_y be the second moments of the rows about c and of the queries about m. With B = AᵀA the mean variance of a
score is (κ/d) tr(B C_y) tr(B⁻¹ C_x), and over all positive definite B

    inf tr(B C_y) tr(B⁻¹ C_x) = (tr (C_y^½ C_x C_y^½)^½)²,

reached at B = C_y^{−½} (C_y^½ C_x C_y^½)^½ C_y^{−½} when both moments have full rank (else approached).

*Proof.* tr(B C_y) = ‖B^½ C_y^½‖², tr(B⁻¹ C_x) = ‖B^{−½} C_x^½‖² (Frobenius). For any orthogonal U, Cauchy and Schwarz
give ‖B^½ C_y^½‖ ‖B^{−½} C_x^½ U‖ >= tr(C_y^½ B^½ B^{−½} C_x^½ U) = tr(C_y^½ C_x^½ U), whose maximum over U is the sum of
the singular values of C_y^½ C_x^½, that is tr (C_y^½ C_x C_y^½)^½. The B above satisfies B C_y B = C_x, so tr(B⁻¹ C_x) =
tr(C_y B), and tr(B C_y) = tr(C_y^½ B C_y^½) = tr (C_y^½ C_x C_y^½)^½: equality.  ∎

It is the optimal-transport map between two centred Gaussians with these covariances, and the value the squared
fidelity of the two modalities; whitening the queries (B = C_y⁻¹) is the optimum only for C_x ∝ C_y⁻¹.

Float64 NumPy and SciPy throughout.
"""

from __future__ import annotations

import numpy as np

from simulator.numerics.units import in_own_units, resolved
from simulator.theory.robustness import LARGEST_Z, gaussian_nodes, legendre_nodes, num_nodes_for
from simulator.validation import require_number, require_rows, require_same_width

STEEPEST = 16.0  # largest noise of the answer over that of a rival for one rule; beyond, panels
BLOCK = 1 << 17  # entries of one block of (queries, nodes, classes): 1 MB, which stays in the cache


def margin_robustness(scores, noise) -> np.ndarray:
    """Probability that the best score of each query stays the best under independent Gaussian noise on the scores.

    P = ∫ φ(z) Π_{k≠j} Φ((Δ_k + s_j z)/s_k) dz,   Δ_k = clean score of the best row j minus that of row k.

    Args:
      scores: clean scores, the largest wins, [n, K].
      noise: standard deviation s of the noise on the scores: [n] when it is equal for all classes, or [n, K]; > 0.

    Returns:
      P for each query, [n].

    Raises:
      ValueError: scores that are not finite rows, or noise of another shape or not above 0.

    Assumes: noise independent between classes.
    Error: exact (quadrature below 1e-11).
    Source: derived here: theory.md N6.
    """
    scores, noise = _scores_and_noise(scores, noise)
    found, best = np.empty(len(scores)), scores.argmax(axis=1)
    own = np.broadcast_to(noise, scores.shape)[np.arange(len(scores)), best]
    steep = own > STEEPEST * noise.min(axis=1)
    found[steep] = [_margin_by_panels(s, n) for s, n in zip(scores[steep], noise[steep], strict=True)]
    if not steep.all():
        rest = _blocks(scores[~steep], noise[~steep])
        found[~steep] = np.concatenate([_margin_integral(s, n)[0] for s, n in rest])
    return found


def _margin_by_panels(scores, noise) -> float:
    """P of one query [K] where a rival has so little noise that its factor is nearly a step: 16 nodes on every panel between the
    turns of such factors, and between points ¼ apart."""
    from scipy.special import log_ndtr

    best = scores.argmax()
    margins, others = (scores[best] - np.delete(scores, best)) / noise[best], np.delete(noise, best) / noise[best]
    sharp = others < 1.0
    turns = -margins[sharp, None] + others[sharp, None] * np.array([-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8])[None, :]
    edges = np.unique(np.clip([*turns.ravel(), *np.arange(-LARGEST_Z, LARGEST_Z + 0.125, 0.25)], -LARGEST_Z, LARGEST_Z))
    nodes, weights = legendre_nodes(16)
    half = 0.5 * np.diff(edges)[:, None]
    z = edges[:-1, None] + half * (1 + nodes)[None, :]
    # Rivals one by one: panels times nodes times classes would not fit in memory for many of them.
    exponent = -0.5 * z**2
    for margin, other in zip(margins, others, strict=True):
        exponent += log_ndtr((margin + z) / other)
    return float(np.sum(half * weights[None, :] * np.exp(exponent)) / np.sqrt(2 * np.pi))


def margin_slope(scores, noise) -> np.ndarray:
    """Derivative of `margin_robustness` in the logarithm of a common noise, never positive.

    dP/d ln s = −∫ φ(z) Π_{k≠j} Φ(z + t_k) Σ_{k≠j} t_k (φ/Φ)(z + t_k) dz,   t_k = Δ_k/s.

    Args:
      scores: [n, K].
      noise: [n], > 0.

    Returns:
      The slope for each query, [n].

    Raises:
      ValueError: as `margin_robustness`.

    Assumes: as `margin_robustness`, with equal noise for all classes.
    Error: exact (quadrature below 1e-9).
    Source: derived here.
    """
    scores, noise = _scores_and_noise(scores, noise)
    if noise.shape[1] != 1:
        raise ValueError("the slope needs one noise per query, [n]")
    return np.concatenate([_margin_integral(s, n, slope=True)[1] for s, n in _blocks(scores, noise)])


def _scores_and_noise(scores, noise):
    require_rows("scores", scores)
    scores, noise = np.asarray(scores, float), np.asarray(noise, float)
    if noise.shape not in ((len(scores),), scores.shape) or not np.all(noise > 0):
        raise ValueError(
            f"the noise has shape {noise.shape}; expected one number above 0 for each query, ({len(scores)},), or for "
            f"each score, {scores.shape}"
        )
    return scores, noise[:, None] if noise.ndim == 1 else noise


def _blocks(scores, noise):
    """(scores, noise) in pieces whose integrands fit in memory."""
    size = max(1, BLOCK // (scores.shape[1] * num_nodes_for(scores.shape[1])))
    return [(scores[i : i + size], noise[i : i + size]) for i in range(0, len(scores), size)]


def _margin_integral(scores, noise, *, slope: bool = False):
    """P [n] and, if asked for, dP/d ln s [n]."""
    from scipy.special import log_ndtr, ndtr

    n, best = np.arange(len(scores)), np.argmax(scores, axis=1)
    margins = (scores[n, best][:, None] - scores) / noise
    own = np.broadcast_to(noise, scores.shape)[n, best][:, None] / noise
    # A rival with less noise than the answer makes the integrand steeper by their ratio; half as much again does no harm.
    z, weights = gaussian_nodes(num_nodes_for(scores.shape[1]) * int(np.ceil(max(own.max(), 1.0) - 0.5)))
    argument = margins[:, None, :] + own[:, None, :] * z[None, :, None]
    factors = ndtr(argument)
    factors[n, :, best] = 1.0
    product = factors.prod(axis=2)  # what underflows here is 0 to any accuracy that matters
    if not slope:
        return product @ weights, None
    hazard = np.exp(-0.5 * argument**2 - log_ndtr(argument)) / np.sqrt(2 * np.pi)
    return product @ weights, -(product * np.einsum("izk,ik->iz", hazard, margins)) @ weights


def centred_robustness(
    gallery, queries, *, sigma: float, centre, axes=None, scalar_noise: float = 0.0
) -> np.ndarray:  # fmt: skip
    """Exact robustness of the query-centred rule when every stored row gets independent N(0, σ²) noise.

    Score of class k: ⟨y − m, x_k⟩ + b_k, b_k = ⟨m, x_k⟩ − ½‖x_k‖². Of it the r exact scalars hold ⟨U(y − m), U x_k⟩ and
    b_k; the noisy row gives the rest, so the noise of a score has the variance
        σ² ‖(I − UᵀU)(y − m)‖² + s²,   s² the variance of noise on the scalar b_k itself.

    Args:
      gallery: x, [K, d].
      queries: y, [n, d].
      sigma: standard deviation of the noise per coordinate of the stored rows, > 0.
      centre: m, [d].
      axes: U, orthonormal rows [r, d] along which the scores are kept exactly; None for none.
      scalar_noise: s, standard deviation of the noise on the K scalars b_k.

    Returns:
      P for each query, [n].

    Raises:
      ValueError: shapes that do not fit, sigma <= 0, a negative scalar_noise.

    Assumes: noise independent between rows and between scalars.
    Error: exact (quadrature below 1e-9).
    Source: derived here: theory.md N6.
    """
    require_same_width(gallery, queries)
    require_number("sigma", sigma, above=0.0)
    require_number("scalar_noise", scalar_noise, least=0.0)
    # The noise on the scalars is in the units of a bias, the centre in those of a query.
    asked, weight = np.vstack([queries, np.reshape(centre, (1, -1))]), np.full(len(gallery), scalar_noise)
    problem = in_own_units(gallery, asked, sigma=sigma, scoring="sqeuclidean", bias=weight)
    queries, rest = problem.queries[:-1], problem.queries[:-1] - problem.queries[-1][None, :]
    if axes is not None:
        rest = rest - (rest @ axes.T) @ axes
    # A query at the centre has no noise at all.
    noise = np.hypot(problem.sigma_gallery * np.linalg.norm(rest, axis=1), np.asarray(problem.bias)[0])
    return margin_robustness(clean_scores(problem.gallery, queries), np.maximum(noise, 1e-150))


def clean_scores(gallery, queries) -> np.ndarray:
    """⟨y, x_k⟩ − ½‖x_k‖², [n, K]: half the negative squared distance, up to a constant per query."""
    return queries @ gallery.T - 0.5 * np.sum(gallery**2, axis=1)[None, :]


def optimal_centre(gallery, queries, *, sigma: float, axes=None, tolerance: float = 1e-5) -> np.ndarray:
    """The centre m that maximises the mean robustness of the query-centred rule over the given queries.

    P depends on m through ρ_y = ‖(I − UᵀU)(y − m)‖ alone, so the gradient of the mean vanishes where
        Σ_y w_y (y − m) = 0,   w_y = −P_y'(ρ_y)/ρ_y >= 0:
    m is a mean of the queries with weights that depend on m. Climbed from the mean query along that gradient. (To
    iterate m = Σ w y/Σ w need not converge: it climbs for sure only where P is convex in ρ², that is for P small.)

    Args:
      gallery, queries, sigma, axes: as in `centred_robustness`.
      tolerance: how far the weighted mean may be from m, relative to the root mean square length of the queries.

    Returns:
      m, [d].

    Raises:
      ValueError: as `centred_robustness`. FloatingPointError: no convergence.

    Assumes: as `centred_robustness`. A local maximum: the mean over queries need not be concave in m.
    Error: the tolerance in m, its square in the robustness.
    Source: derived here: theory.md N6.
    """
    from scipy.optimize import minimize

    require_same_width(gallery, queries)
    require_number("sigma", sigma, above=0.0)
    gallery, queries = np.asarray(gallery, float), np.asarray(queries, float)
    exponent = int(np.frexp(max(np.abs(gallery).max(), np.abs(queries).max()))[1])  # squares of 1e-160 would vanish
    gallery, queries = np.ldexp(gallery, -exponent), np.ldexp(queries, -exponent)
    sigma = resolved(float(np.ldexp(sigma, -exponent)), gallery, queries)
    scores = clean_scores(gallery, queries)
    scale = np.sqrt(np.mean(np.sum(queries**2, axis=1)))

    def climb(centre):
        """Minus the mean robustness, minus its gradient, and Σ w / n."""
        rest = queries - centre[None, :]
        if axes is not None:
            rest = rest - (rest @ axes.T) @ axes
        distance = np.maximum(np.linalg.norm(rest, axis=1), 1e-12 * scale)
        pieces = [_margin_integral(s, n, slope=True) for s, n in _blocks(scores, sigma * distance[:, None])]
        value, slope = (np.concatenate(part) for part in zip(*pieces, strict=True))
        weights = -slope / distance**2
        return -value.mean(), -(weights @ rest) / len(rest), weights.mean()

    centre = queries.mean(axis=0)
    start = climb(centre)[2]
    if start == 0:  # no decision is ever lost: every centre is as good
        return np.ldexp(centre, exponent)
    # In units in which the curvature at the start is about 1.
    unit = 1 / np.sqrt(start)
    best = minimize(
        lambda c: (lambda value, slope, _: (value, slope * unit))(*climb(c * unit)), centre / unit, jac=True,
        method="L-BFGS-B", options=dict(ftol=0.0, gtol=1e-12, maxiter=200),
    ).x * unit  # fmt: skip
    _, slope, weight = climb(best)
    # A gain below 1e-12 is none.
    if not np.linalg.norm(slope) <= max(tolerance * scale * weight, 1e-12 / scale):
        raise FloatingPointError("the search for the best centre has not converged; use the mean query")
    return np.ldexp(best, exponent)


def second_moment(rows, centre) -> np.ndarray:
    """Mean of (row − centre)(row − centre)ᵀ, [d, d]."""
    deviations = np.asarray(rows, float) - np.asarray(centre, float)[None, :]
    return deviations.T @ deviations / len(deviations)


def shrunk_moment(moment: np.ndarray, shrinkage: float) -> np.ndarray:
    """(1 − s) C + s tr(C)/d I, which has full rank for s > 0; the multiple of I is s for C = 0."""
    mean = np.trace(moment) / len(moment)
    return (1 - shrinkage) * moment + shrinkage * (mean if mean > 0 else 1.0) * np.eye(len(moment))


def symmetric_root(matrix, power: float = 0.5) -> np.ndarray:
    """A power of a positive (for negative powers: definite) symmetric matrix [d, d]."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0.0)[None, :] ** power) @ vectors.T


def optimal_metric(gallery_moment, query_moment) -> np.ndarray:
    """The metric B = AᵀA of the best linear storage.

    B = C_y^{−½} (C_y^½ C_x C_y^½)^½ C_y^{−½}, which solves B C_y B = C_x.

    Args:
      gallery_moment: C_x, [d, d], positive semi-definite.
      query_moment: C_y, [d, d], positive definite.

    Returns:
      B, [d, d], symmetric; as singular as C_x.

    Raises:
      ValueError: a singular C_y: shrink it towards a multiple of the identity first.

    Assumes: noise of a variance proportional to the stored power, equal for all coordinates.
    Error: exact.
    Source: derived here: theory.md N7; the same matrix is the optimal-transport map between Gaussians (Olkin & Pukelsheim 1982).
    """
    values, vectors = np.linalg.eigh(query_moment)
    if values[0] <= 1e-13 * values[-1]:
        raise ValueError(
            "the queries' second moment is singular, so the best storage would not keep all decisions; add a multiple of "
            "the identity (shrinkage) or fit on more queries"
        )
    root, inverse = ((vectors * values[None, :] ** power) @ vectors.T for power in (0.5, -0.5))
    metric = inverse @ symmetric_root(root @ gallery_moment @ root) @ inverse
    return 0.5 * (metric + metric.T)


def storage_factor(metric, gallery_moment, query_moment) -> float:
    """tr(B C_y) tr(B⁻¹ C_x): the mean noise variance of a score in units of κ/d, for a metric B [d, d]."""
    return float(np.trace(metric @ query_moment) * np.trace(np.linalg.solve(metric, gallery_moment)))


def smallest_storage_factor(gallery_moment, query_moment) -> float:
    """The infimum of `storage_factor` over all metrics: (tr (C_y^½ C_x C_y^½)^½)², also for singular moments.

    Args:
      gallery_moment, query_moment: C_x, C_y, [d, d], positive semi-definite.

    Returns:
      The infimum.

    Assumes: as `optimal_metric`.
    Error: exact.
    Source: derived here: theory.md N7.
    """
    roots = symmetric_root(query_moment) @ symmetric_root(gallery_moment)
    return float(np.linalg.svd(roots, compute_uv=False).sum() ** 2)
