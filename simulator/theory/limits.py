"""The contrastive loss of many pairs: its limit, its first correction in 1/n, and where the limit means anything.

Float64 NumPy; s = 1/τ, rows on the unit sphere of R^d. Pairs (x_i, y_i), i <= n, are drawn independently. Given x_i, the
denominator of a softmax is e^{s⟨x_i,y_i⟩} + Σ_{k≠i} e^{s⟨x_i,y_k⟩}, the rivals being independent with mean
M(x_i) = E e^{s⟨x_i,y⟩} and second moment M₂(x_i) = E e^{2s⟨x_i,y⟩}. So
    E L − log n = −s E⟨x_i, y_i⟩ + E log(M + (mean of n − 1 rivals − M) + (e^{s⟨x_i,y_i⟩} − that mean)/n) + O(1/n²)
                = C + A/n + O(1/n²),
    C = −s E⟨x_i,y_i⟩ + E log M(x),   A = E[e^{s⟨x_i,y_i⟩}/M(x)] − 1 − ½ (E[M₂(x)/M(x)²] − 1),
the last term from the second order of the logarithm, Var(rival)/(n M²). C is the sum of alignment and uniformity of Wang
& Isola. It is smallest for aligned pairs (⟨x_i,y_i⟩ = 1), uniform on the sphere, where M does not depend on x.

**Uniform.** E e^{st} over one coordinate t of a uniform point is ₀F₁(; d/2; s²/4) = Γ(d/2) (2/s)^{d/2−1} I_{d/2−1}(s): expand
the exponential, E t^{2k} = (1/2)_k/(d/2)_k. Call its logarithm ℓ_d(s).
**Von Mises–Fisher**, density ∝ e^{κ m·x}: E e^{s⟨x,y⟩} over y is e^{ℓ(‖s x + κ m‖) − ℓ(κ)}, ‖s x + κ m‖² = s² + κ² + 2sκt with
t = m·x, whose density is ∝ e^{κt} (1 − t²)^{(d−3)/2}: one Gauss–Gegenbauer quadrature.
**A gap.** Parallel modalities with coordinates ∓γ along the gap have the cosines (1−γ²)⟨e, e'⟩ − γ²; the constant cancels,
so C and A are those of d − 1 dimensions at the temperature τ/(1−γ²).
**Validity.** L >= 0, so the limit log n + C is impossible below n = e^{−C}, and A/n shows that the correction has died away
only when n ≫ A, of the order of e^{−C} for aligned pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number


class LossLimit(NamedTuple):
    """limit: C, of L − log n as n → ∞, in nats. correction: A, of the next term A/n."""

    limit: float
    correction: float


def log_mean_exponential(scale, dimensions: int) -> np.ndarray:
    """log E e^{st} over one coordinate t of a uniform point on the unit sphere.

    ℓ_d(s) = log ₀F₁(; d/2; s²/4) = log[Γ(d/2) (2/s)^{d/2−1} I_{d/2−1}(s)].

    Args:
      scale: s, a number or an array of any sign.
      dimensions: d >= 1; the sphere is that of R^d.

    Returns:
      ℓ, of the shape of `scale`; even in s, 0 at s = 0.

    Raises:
      ValueError: d < 1, or a scale that is not finite.

    Error: rounding; the series of positive terms is summed to its end, so no d or s underflows.
    Source: standard (module docstring).
    """
    from scipy.special import gammaln, logsumexp

    require_integer("dimensions", dimensions)
    scale = np.abs(np.asarray(scale, float))
    if not np.all(np.isfinite(scale)):
        raise ValueError("scale must be finite; an infinite one is the limit of temperature 0")
    terms = np.arange(int(scale.max(initial=0.0)) + 60, dtype=float)  # the largest term is below s/2
    coefficient = -gammaln(terms + 1) - gammaln(dimensions / 2 + terms) + gammaln(dimensions / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.where(terms == 0, 0.0, terms * 2 * np.log(scale[..., None] / 2))
    return logsumexp(powers + coefficient, axis=-1)


def loss_limit(
    dimensions: int, temperature: float, *, pair_cosine: float = 1.0, concentration: float = 0.0
) -> LossLimit:
    """The limit of L − log n and its first correction for independent pairs, uniform or concentrated on the sphere.

    Uniform: C = −s c + ℓ_d(s), A = e^{sc − ℓ(s)} − 1 − ½ (e^{ℓ(2s) − 2ℓ(s)} − 1); aligned (c = 1), C is the optimum
    C_d(s) = −s + log[Γ(d/2) (2/s)^{d/2−1} I_{d/2−1}(s)]. Concentrated: module docstring.

    Args:
      dimensions: d >= 2.
      temperature: τ > 0.
      pair_cosine: c = ⟨x_i, y_i⟩ in [−1, 1], y_i in a uniformly random direction from x_i.
      concentration: κ >= 0 of a von Mises–Fisher distribution; needs pair_cosine = 1.

    Returns:
      LossLimit, in nats.

    Raises:
      ValueError: d < 2, a temperature <= 0, a cosine outside [−1, 1], κ < 0, or κ > 0 with pairs that are not aligned
        (then the modalities are not both von Mises–Fisher).

    Assumes: independent pairs, cosine logits, both modalities with the same distribution.
    Error: E L = log n + C + A/n + O((A/n)²); the limit means nothing for n < e^{−C}.
    Source: Wang & Isola 2020, Thm 1, for the limit; A, and the values for a concentrated one, derived here.
    """
    require_integer("dimensions", dimensions, least=2)
    require_number("temperature", temperature, above=0.0)
    require_number("pair_cosine", pair_cosine, least=-1.0, most=1.0)
    require_number("concentration", concentration, least=0.0)
    if concentration > 0 and pair_cosine != 1:
        raise ValueError(f"pair_cosine is {pair_cosine:g} with concentration {concentration:g}; set it to 1, or κ to 0")
    scale = 1 / temperature
    cosines, weights = _coordinate(dimensions, concentration)

    def log_mean(s):
        """log E e^{s⟨x,y⟩} over y, at each t = m·x."""
        length = np.sqrt(np.maximum(s**2 + concentration**2 + 2 * s * concentration * cosines, 0.0))
        return log_mean_exponential(length, dimensions) - log_mean_exponential(concentration, dimensions)

    first, second = log_mean(scale), log_mean(2 * scale)
    limit = weights @ first - scale * pair_cosine
    own = weights @ np.exp(scale * pair_cosine - first)
    correction = own - 1 - 0.5 * (weights @ np.exp(second - 2 * first) - 1)
    return LossLimit(float(limit), float(correction))


def _coordinate(dimensions: int, concentration: float, num_nodes: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for t = m·x under a von Mises–Fisher distribution; uniform: t is never looked at."""
    from scipy.special import roots_chebyt, roots_gegenbauer

    if concentration == 0:
        return np.zeros(1), np.ones(1)
    half = (dimensions - 2) / 2
    nodes, weights = roots_gegenbauer(num_nodes, half) if half > 0 else roots_chebyt(num_nodes)
    weights = weights * np.exp(concentration * (nodes - 1))
    return nodes, weights / weights.sum()
