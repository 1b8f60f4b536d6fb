"""The contrastive loss of many pairs: its limit, its first correction in 1/n, and where the limit means anything.

Float64 NumPy; s = 1/τ, rows on the unit sphere of R^d. Pairs (x_i, y_i), i <= n, are drawn independently. Given x_i, the
denominator of a softmax is e^{s⟨x_i,y_i⟩} + Σ_{k≠i} e^{s⟨x_i,y_k⟩}. In units of M(x_i) = E e^{s⟨x_i,y⟩} the own pair is u, the
rivals r_k are independent with mean 1 and central moments m₂, m₃, and 1/n of it all is 1 + δ with
    E δ = (u−1)/n,  E δ² = [(u−1)² + (n−1)m₂]/n²,  E δ³ = [3(u−1)m₂ + m₃]/n² + O(n⁻³),  E δ⁴ = 3m₂²/n² + O(n⁻³).
From log(1 + δ) = δ − δ²/2 + δ³/3 − δ⁴/4 …, with E_x over the rows,
    E L − log n = C + A/n + B/n² + O(n⁻³),   C = −s E⟨x_i,y_i⟩ + E_x log M(x),   A = E_x[u − 1 − m₂/2],
    B = E_x[−(u−1)²/2 + (u−1)m₂ + m₂/2 + m₃/3 − 3m₂²/4].
C is the sum of alignment and uniformity of Wang & Isola. It is smallest for aligned pairs (⟨x_i,y_i⟩ = 1), uniform on the
sphere, where M does not depend on x and u = e^{−C}.

**Uniform.** E e^{st} over one coordinate t of a uniform point is ₀F₁(; d/2; s²/4) = Γ(d/2) (2/s)^{d/2−1} I_{d/2−1}(s): expand
the exponential, E t^{2k} = (1/2)_k/(d/2)_k. Call its logarithm ℓ_d(s).
**Von Mises–Fisher**, density ∝ e^{κ m·x}: E e^{s⟨x,y⟩} over y is e^{ℓ(‖s x + κ m‖) − ℓ(κ)}, ‖s x + κ m‖² = s² + κ² + 2sκt with
t = m·x, whose density is ∝ e^{κt} (1 − t²)^{(d−3)/2}: one quadrature in arccos t.
**A gap.** Parallel modalities with coordinates ∓γ along the gap have the cosines (1−γ²)⟨e, e'⟩ − γ²; the constant cancels,
so C and A are those of d − 1 dimensions at the temperature τ/(1−γ²).
**Validity.** For aligned uniform pairs and every n,
    max(C, −log n) <= E L − log n <= log(e^C + (1 − e^C)/n) <= max(C, −log n) + log 2.
Above: Jensen, E log <= log E. Below: −log n because L >= 0. C because under the law of n independent r with density
S/n, S = Σ r (one r, chosen evenly, is drawn in proportion to its size: r̂), 0 <= KL = E log((r̂ + Σ_{k<n} r_k)/n), and u,
the largest value that r can take, is no less than r̂. So E L = max(0, log n + C) within log 2, and log n + C itself is
reached within ε from n = e^{−C}/ε pairs on and by no fewer than e^{−C−ε}. From r <= u also m₂ <= u − 1, so
(e^{−C} − 1)/2 <= A <= e^{−C} − 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number


class LossLimit(NamedTuple):
    """limit: C, of E L − log n as n → ∞, in nats. first, second: A and B of its corrections A/n + B/n²."""

    limit: float
    first: float
    second: float

    def at(self, num_pairs):
        """C + A/n + B/n², the mean of L − log n over batches of n pairs; a number or an array, as `num_pairs`."""
        return self.limit + self.first / num_pairs + self.second / np.square(num_pairs, dtype=float)


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
    """The limit of L − log n and its corrections for independent pairs, uniform or concentrated on the sphere.

    Uniform: C = −s c + ℓ_d(s), A = e^{sc − ℓ(s)} − 1 − ½ (e^{ℓ(2s) − 2ℓ(s)} − 1); aligned (c = 1), C is the optimum
    C_d(s) = −s + log[Γ(d/2) (2/s)^{d/2−1} I_{d/2−1}(s)]. B, and concentrated rows: module docstring.

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
    Error: E L = log n + C + A/n + B/n² + O(n⁻³), an expansion in A/n; for n near e^{−C} and below see `loss_bounds`.
    Source: Wang & Isola 2020 (arXiv 2005.10242), Thm 1, for the limit; the rest derived here (module docstring).
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

    one, two, three = (log_mean(order * scale) for order in (1, 2, 3))
    limit = weights @ one - scale * pair_cosine
    own = np.exp(scale * pair_cosine - one) - 1
    raw, cube = np.exp(two - 2 * one), np.exp(three - 3 * one)
    variance, skew = raw - 1, cube - 3 * raw + 2
    first = weights @ (own - 0.5 * variance)
    second = weights @ (-0.5 * own**2 + own * variance + 0.5 * variance + skew / 3 - 0.75 * variance**2)
    return LossLimit(float(limit), float(first), float(second))


def loss_bounds(dimensions: int, temperature: float, num_pairs) -> tuple[np.ndarray, np.ndarray]:
    """Between what the mean of L − log n of aligned uniform pairs must lie, for every n: where the limit may be used.

    max(C, −log n) <= E L − log n <= log(e^C + (1 − e^C)/n).

    Args:
      dimensions: d >= 2.
      temperature: τ > 0.
      num_pairs: n >= 1, a number or an array.

    Returns:
      (lower, upper), in nats, of the shape of `num_pairs`; no further apart than log 2.

    Raises:
      ValueError: d < 2, a temperature <= 0 or n < 1.

    Assumes: independent aligned pairs, uniform on the sphere; cosine logits.
    Error: exact inequalities.
    Source: derived here (module docstring).
    """
    limit = loss_limit(dimensions, temperature).limit
    num_pairs = np.asarray(num_pairs, float)
    if not np.all(num_pairs >= 1):
        raise ValueError(f"num_pairs is {num_pairs!r}; it must be >= 1")
    rest = -np.expm1(limit) / num_pairs
    return np.maximum(limit, -np.log(num_pairs)), np.logaddexp(limit, np.log(rest))


def _coordinate(dimensions: int, concentration: float, num_nodes: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for t = m·x under a von Mises–Fisher distribution; uniform: t is never looked at.

    In θ = arccos t the density is ∝ e^h, h = κ cos θ + (d − 2) log sin θ: smooth for every d, and concave about its one
    maximum, so that Gauss–Legendre over 14 of its widths 1/√−h'' to either side, within [0, π], misses below 1e-12.
    """
    if concentration == 0:
        return np.zeros(1), np.ones(1)
    excess = dimensions - 2
    top = np.arccos(2 * concentration / (excess + np.hypot(excess, 2 * concentration)))
    curvature = concentration * np.cos(top) + (excess / np.sin(top) ** 2 if excess else 0.0)
    reach = 14 / np.sqrt(curvature)
    low, high = max(0.0, top - reach), min(np.pi, top + reach)
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    angle = 0.5 * (high - low) * nodes + 0.5 * (high + low)
    # κ (cos θ − cos θ₀) without the digits that the two share.
    height = -2 * concentration * np.sin(0.5 * (angle + top)) * np.sin(0.5 * (angle - top))
    if excess:
        height = height + excess * np.log(np.sin(angle) / np.sin(top))
    weights = weights * np.exp(height)
    return np.cos(angle), weights / weights.sum()
