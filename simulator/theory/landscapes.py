"""Where the contrastive loss is smallest: on circles of the sphere, and over all embeddings.

Float64 NumPy; s = 1/τ.

**Circles.** Gallery rows at longitudes φ_k on the circle of latitude θ_x, queries at φ'_i on that of θ_y, have the
cosines cos θ_x cos θ_y cos(φ_k − φ'_i) + sin θ_x sin θ_y. The constant drops out of both softmaxes, so
    L(θ_x, θ_y, τ) = f(cos θ_x cos θ_y/τ),   f(s) = −½ Σ_ki W_ki [log softmax_i(s C)_ki + log softmax_k(s C)_ki],
with C_ki = cos(φ_k − φ'_i). With r = W1, c = Wᵀ1, and Q^y, Q^x the two softmaxes of sC,
    f'(s) = ½ Σ_k r_k ⟨C⟩_{Q^y(k,·)} + ½ Σ_i c_i ⟨C⟩_{Q^x(·,i)} − Σ W C,
and f'' is half a mean of variances of C: f is convex, with one minimum s*. f'(s) rises from
½ Σ r mean_i C + ½ Σ c mean_k C − Σ W C at 0 to ½ Σ r max_i C + ½ Σ c max_k C − Σ W C at ∞, which is 0 iff every pair
is a best match both ways: then s* = ∞. Otherwise s* is finite, and lifting one circle off the other is how a model
whose temperature is lower than 1/s* reaches it: cos θ* = s*τ.

**All embeddings.** Let n unit rows x_k pair with unit rows y_i by nW = (1 − p) I + (p/n) 11ᵀ, a share p of wrong pairs. L
is convex in the similarities, and permuting both modalities alike leaves W as it is; so L is at least its value at
similarities averaged over all such permutations, which are one number on the diagonal and another off it. With D the
difference of the two, v = D/τ and w = 1 − p + p/n that value is
    h(v) = log(e^v + n − 1) − w v,
convex, with its minimum at v* = log((n−1) w/(1−w)) (∞ for p = 0). Geometry bounds D:
    D = Σ_k s_kk/n − Σ_{k≠i} s_ki/(n(n−1)) = Σ_k ⟨x_k − x̄, y_k − ȳ⟩/(n−1)
      <= (n/(n−1)) (1 − ½(‖x̄‖² + ‖ȳ‖²)) <= (n/(n−1)) (1 − G²/4),
with means x̄, ȳ and G = ‖ȳ − x̄‖, by ⟨a, b⟩ <= ½(‖a‖² + ‖b‖²) and ‖x̄‖² + ‖ȳ‖² >= ½‖ȳ − x̄‖². All are equalities iff
x_k − x̄ = y_k − ȳ, x̄ = −ȳ and these deviations form a regular simplex, orthogonal to the gap since rows have unit length.
The simplex spans n − 1 dimensions, the gap one more: d >= n − 1 without a gap, d >= n with one. So the smallest loss is
h(min(D_max/τ, v*)): for p = 0 every gap costs; for p > 0 and a temperature low enough that D_max/τ > v*, a gap is free
until it brings D_max/τ down to v*. A smaller D than D_max is reached by moving both means along the gap by t, so that
D = (n/(n−1)) √((1 − (t − G/2)²)(1 − (t + G/2)²)): that takes d >= n also without a gap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number


class ScaleMinimum(NamedTuple):
    """scale: s* in [0, ∞]. loss: f(s*) in nats, the limit where s* is infinite."""

    scale: float
    loss: float


def circle_similarities(longitudes_x, longitudes_y) -> np.ndarray:
    """C_ki = cos(φ_k − φ'_i), the cosines of two sets of points on one circle.

    Args:
      longitudes_x: φ of the gallery rows [n_x], in radians.
      longitudes_y: φ' of the queries [n_y], in radians.

    Returns:
      C, [n_x, n_y].

    Raises:
      ValueError: longitudes that are not a list of finite numbers.
    """
    x, y = np.asarray(longitudes_x, float), np.asarray(longitudes_y, float)
    for name, value in (("longitudes_x", x), ("longitudes_y", y)):
        if value.ndim != 1 or value.size == 0 or not np.all(np.isfinite(value)):
            raise ValueError(f"{name} has shape {value.shape}; it must be a list of finite numbers, in radians")
    return np.cos(x[:, None] - y[None, :])


def loss_at_scale(similarities, scale: float, *, pairing=None) -> float:
    """The contrastive loss of given similarities, times a scale.

    f(s), module docstring: on two circles of latitudes θ_x, θ_y, L = f(cos θ_x cos θ_y/τ).

    Args:
      similarities: C, [n_x, n_y], gallery along rows.
      scale: s >= 0.
      pairing: W >= 0, [n_x, n_y], of any positive total; None pairs row i with column i.

    Returns:
      f(s), in nats.

    Raises:
      ValueError: similarities that are not a matrix, a pairing of another shape or without weight, a scale < 0.

    Error: exact.
    Source: Liang et al. 2022 (arXiv 2203.02053), Fig. 3; this form derived here.
    """
    require_number("scale", scale, least=0.0)
    return _value_and_slope(*_checked(similarities, pairing), scale)[0]


def best_scale(similarities, *, pairing=None) -> ScaleMinimum:
    """The scale at which the contrastive loss of given similarities is smallest.

    The root of f'(s), which is increasing (module docstring): 0 if f'(0) >= 0, ∞ if every pair is a best match in its
    row and its column.

    Args:
      similarities: C, [n_x, n_y], gallery along rows.
      pairing: W >= 0, [n_x, n_y]; None pairs row i with column i.

    Returns:
      ScaleMinimum.

    Raises:
      ValueError: as `loss_at_scale`.

    Error: 1e-12 relative in s*.
    Source: derived here; the example of Liang et al. 2022 (arXiv 2203.02053), Fig. 3, has s* = 21.2158, f(s*) = 0.80952.
    """
    from scipy.optimize import brentq

    similarities, pairing = _checked(similarities, pairing)

    def slope(scale):
        return _value_and_slope(similarities, pairing, scale)[1]

    if slope(0.0) >= 0:
        return ScaleMinimum(0.0, _value_and_slope(similarities, pairing, 0.0)[0])
    rows, columns = pairing.sum(axis=1), pairing.sum(axis=0)
    best_of_row, best_of_column = similarities.max(axis=1, keepdims=True), similarities.max(axis=0, keepdims=True)
    ties = 1e-12 * np.ptp(similarities)
    in_row, in_column = similarities >= best_of_row - ties, similarities >= best_of_column - ties
    if np.all(in_row & in_column | (pairing == 0)):
        limit = 0.5 * rows @ np.log(in_row.sum(axis=1)) + 0.5 * columns @ np.log(in_column.sum(axis=0))
        return ScaleMinimum(np.inf, float(limit))
    high = 1.0 / np.ptp(similarities)
    while slope(high) < 0:
        high *= 2
    scale = brentq(slope, 0.0, high, xtol=1e-13, rtol=1e-13)
    return ScaleMinimum(scale, _value_and_slope(similarities, pairing, scale)[0])


def best_latitude(scale: float, temperature) -> np.ndarray:
    """The latitude of one circle, the other on the equator, at which the loss is smallest.

    θ* = arccos(s*τ) if s*τ < 1, else 0: a gap opens iff τ < 1/s*.

    Args:
      scale: s* of `best_scale`, in [0, ∞].
      temperature: τ > 0, a number or an array.

    Returns:
      θ* in radians, in [0, π/2].

    Raises:
      ValueError: a negative or NaN scale, or a temperature <= 0.

    Assumes: the longitudes stay as they are; only the circle moves.
    Error: exact.
    Source: derived here (module docstring); Liang et al. 2022 (arXiv 2203.02053), Fig. 3.
    """
    temperature = np.asarray(temperature, float)
    if not scale >= 0:
        raise ValueError(f"scale is {scale!r}; it must be >= 0 (infinity is allowed)")
    if not np.all(np.isfinite(temperature) & (temperature > 0)):
        raise ValueError(f"temperature is {temperature!r}; it must be finite and > 0")
    return np.arccos(np.minimum(scale * temperature, 1.0))


def smallest_loss(num_pairs: int, temperature: float, *, gap_norm: float = 0.0, wrong_share: float = 0.0) -> float:
    """The smallest contrastive loss of unit rows, at a fixed temperature and gap.

    log(e^v + n − 1) − w v with v = min((1 − G²/4) n/((n−1) τ), v*), w = 1 − p + p/n, v* = log((n−1) w/(1−w)).
    Without wrong pairs (p = 0, w = 1, v* = ∞) that is log(1 + (n−1) exp(−(1 − G²/4) n/((n−1) τ))).

    Args:
      num_pairs: n >= 2.
      temperature: τ > 0.
      gap_norm: G = ‖ȳ − x̄‖, in [0, 2]; parallel modalities with coordinates ∓γ along the gap have G = 2γ.
      wrong_share: p in [0, 1): a row's partner is its own with probability 1 − p and otherwise any, evenly.

    Returns:
      The value, in nats: a lower bound in any dimension; the minimum for d >= n, and for d = n − 1 without gap and wrong
      pairs.

    Raises:
      ValueError: n < 2, a temperature <= 0, a gap outside [0, 2], or a share outside [0, 1).

    Assumes: cosine logits and a temperature that is held.
    Error: exact.
    Source: Lu & Steinerberger 2022 (arXiv 2012.08465) for G = p = 0; the rest derived here (module docstring).
    """
    weight, optimum = _pair_weight(num_pairs, wrong_share)
    require_number("temperature", temperature, above=0.0)
    require_number("gap_norm", gap_norm, least=0.0, most=2.0)
    contrast = min((1 - gap_norm**2 / 4) * num_pairs / ((num_pairs - 1) * temperature), optimum)
    # log(e^v + n − 1) − w v, without e^v
    return float(np.log1p((num_pairs - 1) * np.exp(-contrast)) + (1 - weight) * contrast)


def free_gap_norm(num_pairs: int, temperature: float, *, wrong_share: float = 0.0) -> float:
    """The widest gap that costs nothing: up to it the smallest loss is the same as without a gap.

    2√(1 − τ v* (n−1)/n), or 0 where τ v* (n−1)/n >= 1; v* as in `smallest_loss`.

    Args:
      num_pairs: n >= 2.
      temperature: τ > 0.
      wrong_share: p in [0, 1), as in `smallest_loss`.

    Returns:
      G, in [0, 2]; 0 at every temperature without wrong pairs.

    Raises:
      ValueError: as `smallest_loss`.

    Assumes: as `smallest_loss`, d >= n.
    Error: exact.
    Source: derived here (module docstring).
    """
    require_number("temperature", temperature, above=0.0)
    optimum = _pair_weight(num_pairs, wrong_share)[1]
    return float(2 * np.sqrt(max(0.0, 1 - temperature * optimum * (num_pairs - 1) / num_pairs)))


def _pair_weight(num_pairs: int, wrong_share: float) -> tuple[float, float]:
    """w = 1 − p + p/n, and v* = log((n−1) w/(1−w))."""
    require_integer("num_pairs", num_pairs, least=2)
    require_number("wrong_share", wrong_share, least=0.0)
    if wrong_share >= 1:
        raise ValueError(f"wrong_share is {wrong_share!r}; it must be below 1, where pairs still mean something")
    weight = 1 - wrong_share + wrong_share / num_pairs
    return weight, np.log((num_pairs - 1) * weight / (1 - weight)) if wrong_share else np.inf


def _checked(similarities, pairing):
    similarities = np.asarray(similarities, float)
    if similarities.ndim != 2 or similarities.size == 0 or not np.all(np.isfinite(similarities)):
        raise ValueError(f"similarities have shape {similarities.shape}; expected a finite matrix [n_x, n_y]")
    if pairing is None:
        if similarities.shape[0] != similarities.shape[1]:
            raise ValueError(f"similarities have shape {similarities.shape}; without a pairing they must be square")
        pairing = np.eye(len(similarities))
    pairing = np.asarray(pairing, float)
    if pairing.shape != similarities.shape or not (np.all(pairing >= 0) and pairing.sum() > 0):
        raise ValueError(
            f"pairing has shape {pairing.shape}; expected weights >= 0, not all zero, of shape {similarities.shape}"
        )
    return similarities, pairing / pairing.sum()


def _value_and_slope(similarities, pairing, scale):
    """f(s) and f'(s)."""
    from scipy.special import log_softmax

    over_queries, over_gallery = (log_softmax(scale * similarities, axis=axis) for axis in (1, 0))
    value = -0.5 * np.sum(pairing * (over_queries + over_gallery))
    rows, columns = pairing.sum(axis=1, keepdims=True), pairing.sum(axis=0, keepdims=True)
    model = 0.5 * (rows * np.exp(over_queries) + columns * np.exp(over_gallery))
    return float(value), float(np.sum((model - pairing) * similarities))
