"""Where random networks start: the cosine of two inputs, layer by layer, in infinitely wide towers.

Float64 NumPy. A layer of width d maps h to φ(Wh + b), W ~ N(0, σ_w²/fan-in), b ~ N(0, σ_b²), all independent. Given the
layer below, the pre-activations (p_k, q_k) of two inputs are d independent pairs of Gaussians, with variances
σ_w² q_u + σ_b², σ_w² q_v + σ_b² and covariance σ_w² c √(q_u q_v) + σ_b², where q = ‖h‖²/width. As d → ∞ the mean of
φ(p_k)φ(q_k) over the units becomes its expectation, so (q_u, q_v, c) follows a recursion.

**ReLU.** E φ(p)φ(q) = ½ √(var p · var q) κ₁(ρ) with κ₁(ρ) = [√(1 − ρ²) + ρ (π − arccos ρ)]/π (in polar coordinates: the
radial integral of r³ e^{−r²/2} is 2, the angular one ∫ cos t cos(t − arccos ρ) dt over both factors positive). It is
homogeneous, so only the ratios of q_u, q_v and σ_b² matter; in the units of Liang et al., with W and b of variance
1/fan-out and equal widths, they are ‖u‖², ‖v‖² and 1.
**When does one layer raise the cosine?** κ₁(ρ) > ρ for ρ < 1, so it is enough that the pre-activations' cosine
    ρ(c) = (c‖u‖‖v‖ + 1)/√((‖u‖² + 1)(‖v‖² + 1))
exceeds c. For 0 <= c < 1 that is 2c‖u‖‖v‖ + 1 > c²(‖u‖² + ‖v‖² + 1), which c < 2/(r + 1/r), r = ‖u‖/‖v‖, implies. So
Theorem 1 of Liang et al. is sufficient. It is not necessary: κ₁(ρ(c)) − c is convex in c (κ₁ is convex, ρ affine),
positive at c = 0 and, unless r = 1, negative at c = 1, so it has one zero c*, beyond their threshold. Without the bias
ρ = c and every c < 1 rises.
**Activations in general.** Without bias, E φ(p)φ(q) is a power series in ρ with non-negative coefficients whose constant
term is (E φ)². If φ is odd it vanishes, and orthogonal inputs stay orthogonal: there is no cone.
**Finite width.** With A = mean φ(p)φ(q), B = mean φ(p)², C = mean φ(q)² over d units of unit variance (E A = ½ρ', E B =
E C = ½, ρ' = κ₁(ρ)), the cosine is T = A/√(BC). With ξ the deviations of the three at one unit, T = ρ' + mean ∇·ξ + ½ (mean
ξ)ᵀH(mean ξ) + …, ∇ = (2, −ρ', −ρ'), and H has T_AB = T_AC = −2, T_BB = T_CC = 3ρ', T_BC = ρ'. So with
f = ∇·ξ = 2φ(p)φ(q) − ρ'[φ(p)² + φ(q)²] and M_jk = E φ(p)^j φ(q)^k
    mean:      E T = ρ' + b/d,  b = ½ tr(H Cov ξ) = ρ'(9/2 + M₂₂) − 4M₃₁       (0.239 at ρ = 0),
    variance:  s²/d,  s² = E f²,
    third:     k/d²,  k = E f³ + 3 wᵀHw with w = E ξf; wᵀHw = −4s² w_B as w_A − ρ'w_B = s²/2.
Edgeworth's expansion follows: with u = √d (c − ρ')/s,
    P(T <= c) = Φ(u) − φ(u) [b/s + k(u² − 1)/(6s³)]/√d + O(1/d).
Over several layers the mean m/d and the variance v/d of what a network adds to the cosine c of the recursion follow
    m' = b(ρ) + κ₁'(ρ) ρ_c m + ½ κ₁''(ρ) ρ_c² v,   v' = s²(ρ) + (κ₁'(ρ) ρ_c)² v,   ρ_c = dρ/dc,
with κ₁' = (π − arccos ρ)/π and κ₁'' = 1/(π√(1 − ρ²)), from m = v = 0 at the input. (The norms fluctuate too, but ρ feels
them through the bias alone, by a share σ_b²/q of the above.)
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import numpy as np

from simulator.validation import require_integer, require_number, require_one_of

Activation = Literal["relu", "gelu", "tanh"]


class ConePath(NamedTuple):
    """cosine: of the two inputs after 0, 1, …, depth layers, [depth + 1, ...]. second_moment_u, _v: ‖h‖²/width of each,
    [depth + 1, ...]."""

    cosine: np.ndarray
    second_moment_u: np.ndarray
    second_moment_v: np.ndarray


LARGEST_VARIANCE = 2500.0  # of a pre-activation under GELU or tanh: 4,600² points of the grid


def arc_cosine_kernel(correlation) -> np.ndarray:
    """Cosine after one ReLU of two infinitely wide Gaussian vectors.

    κ₁(ρ) = [√(1 − ρ²) + ρ (π − arccos ρ)]/π.

    Args:
      correlation: ρ, a number or an array in [−1, 1]; rounding beyond ±1 is clipped.

    Returns:
      κ₁, in [0, 1].

    Error: exact.
    Source: Cho & Saul 2009, degree 1 (module docstring).
    """
    correlation = np.clip(np.asarray(correlation, float), -1.0, 1.0)
    return (np.sqrt(1 - correlation**2) + correlation * (np.pi - np.arccos(correlation))) / np.pi


def product_moment(variance_p, variance_q, covariance, activation: Activation) -> np.ndarray:
    """E[φ(p)φ(q)] for jointly Gaussian p, q of mean 0.

    ReLU: ½ √(var p · var q) κ₁(ρ). GELU (the tanh form, as in the towers) and tanh: the trapezoid rule in two
    independent variables z, w with p = √var p · z, q = √var q (ρ z + √(1 − ρ²) w). For a function that is analytic within
    a of the real line its error is e^{−2πa/step}; tanh has a = π/(2√var), where Gauss–Hermite converges like e^{−c√nodes}, and
    so the step is at most π²/(30 √var).

    Args:
      variance_p, variance_q: >= 0, numbers or arrays of one shape.
      covariance: cov(p, q), of that shape.
      activation: "relu", "gelu" or "tanh".

    Returns:
      The expectation, of that shape.

    Raises:
      ValueError: another activation, or with GELU and tanh a variance above 2,500, where the grid would be too large.

    Error: exact for ReLU; below 1e-12 of the largest of 1 and the variances otherwise.
    Source: Cho & Saul 2009 for ReLU; quadrature derived here.
    """
    require_one_of("activation", activation, get_args(Activation))
    variance_p, variance_q, covariance = np.broadcast_arrays(
        *(np.asarray(a, float) for a in (variance_p, variance_q, covariance))
    )
    scale = np.sqrt(variance_p * variance_q)
    correlation = np.clip(covariance / np.where(scale > 0, scale, 1.0), -1.0, 1.0)
    if activation == "relu":
        return 0.5 * scale * arc_cosine_kernel(correlation)
    largest = max(variance_p.max(initial=0.0), variance_q.max(initial=0.0))
    if not largest <= LARGEST_VARIANCE:
        raise ValueError(
            f"a pre-activation has variance {largest:.3g}; the quadrature for {activation} reaches {LARGEST_VARIANCE:g}: "
            "smaller weights, or relu, which is exact"
        )
    # Powers of two, so that few grids are made.
    nodes, weights = _normal_grid(min(0.125, 2.0 ** np.floor(np.log2(np.pi**2 / 30 / max(largest, 1e-3) ** 0.5))))
    function = _gelu if activation == "gelu" else np.tanh
    z, w, shape = nodes[:, None], nodes[None, :], correlation.shape
    moments = [
        weights @ (function(sp * z) * function(sq * (rho * z + np.sqrt(1 - rho**2) * w))) @ weights
        for sp, sq, rho in zip(
            np.sqrt(variance_p).flat, np.sqrt(variance_q).flat, correlation.flat, strict=True
        )
    ]  # fmt: skip
    return np.array(moments).reshape(shape)


def cosine_by_layer(
    second_moment_u,
    second_moment_v,
    cosine,
    *,
    depth: int,
    activation: Activation = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> ConePath:
    """The cosine of two inputs after each layer of an infinitely wide random network.

    q' = E φ(p)² and c' = E φ(p)φ(q)/√(q'_u q'_v), p and q Gaussian with variances σ_w² q + σ_b² and covariance
    σ_w² c √(q_u q_v) + σ_b². For ReLU with σ_w² = 1: c' = κ₁(ρ), q' = (q + σ_b²)/2.

    Args:
      second_moment_u, second_moment_v: ‖u‖²/width of the inputs, > 0, numbers or arrays of one shape.
      cosine: c of the inputs, in [−1, 1], of that shape.
      depth: number of layers, >= 1.
      activation: "relu", "gelu" or "tanh".
      weight_variance: σ_w² > 0; a weight has variance σ_w²/fan-in.
      bias_variance: σ_b² >= 0.

    Returns:
      ConePath.

    Raises:
      ValueError: another activation, a depth below 1, moments <= 0, a cosine outside [−1, 1], or variances out of range.

    Assumes: Gaussian weights and biases, all layers equally wide, width → ∞.
    Error: O(depth/width) in the mean over networks, O(√(depth/width)) for one network.
    Source: Poole et al. 2016 (arXiv 1606.05340); with ReLU and σ_b²·width = 1: Liang et al. 2022 (arXiv 2203.02053).
    """
    require_integer("depth", depth)
    require_number("weight_variance", weight_variance, above=0.0)
    require_number("bias_variance", bias_variance, least=0.0)
    moment_u, moment_v, cosine = np.broadcast_arrays(
        *(np.asarray(a, float) for a in (second_moment_u, second_moment_v, cosine))
    )
    if not (np.all(moment_u > 0) and np.all(moment_v > 0) and np.all(np.abs(cosine) <= 1)):
        raise ValueError("second moments must be > 0 and cosines in [-1, 1]; scale the inputs, or drop zero rows")
    path = [(cosine, moment_u, moment_v)]
    for _ in range(depth):
        cosine, moment_u, moment_v = path[-1]
        var_u, var_v = weight_variance * moment_u + bias_variance, weight_variance * moment_v + bias_variance
        covariance = weight_variance * cosine * np.sqrt(moment_u * moment_v) + bias_variance
        product = product_moment(var_u, var_v, covariance, activation)
        moment_u, moment_v = (product_moment(v, v, v, activation) for v in (var_u, var_v))
        path.append((product / np.sqrt(moment_u * moment_v), moment_u, moment_v))
    return ConePath(*(np.stack(values) for values in zip(*path, strict=True)))


def finite_width_shift(path: ConePath, *, width: int, weight_variance: float = 1.0, bias_variance: float = 0.0):
    """By how much the mean cosine over ReLU networks of a finite width exceeds that of the recursion, layer by layer.

    m/d, m' = b(ρ) + κ₁'(ρ) ρ_c m + ½ κ₁''(ρ) ρ_c² v, v' = s²(ρ) + (κ₁'(ρ) ρ_c)² v (module docstring).

    Args:
      path: of `cosine_by_layer`, [depth + 1, ...], with these variances.
      width: d, the number of units of every layer.
      weight_variance: σ_w² > 0.
      bias_variance: σ_b² >= 0.

    Returns:
      The shift, [depth + 1, ...]; 0 at the inputs.

    Raises:
      ValueError: a width < 1.

    Assumes: ReLU, σ_b² small against the second moments.
    Error: O(1/d²), and O(σ_b²/(q d)).
    Source: derived here (module docstring, Finite width).
    """
    require_integer("width", width)
    mean, variance = np.zeros((2, *path.cosine.shape[1:]))
    shifts = [mean / width]
    for cosine, moment_u, moment_v in list(zip(*path, strict=True))[:-1]:
        scale = weight_variance * np.sqrt(moment_u * moment_v)
        total = np.sqrt((weight_variance * moment_u + bias_variance) * (weight_variance * moment_v + bias_variance))
        rho = (scale * cosine + bias_variance) / total
        cumulants = [relu_cosine_cumulants(r) for r in np.ravel(rho)]
        own, spread = np.array(cumulants)[:, :2].T.reshape(2, *np.shape(rho))
        slope = (np.pi - np.arccos(rho)) / np.pi * scale / total
        bend = (scale / total) ** 2 / (np.pi * np.sqrt(1 - rho**2))
        mean, variance = own + slope * mean + 0.5 * bend * variance, spread + slope**2 * variance
        shifts.append(mean / width)
    return np.stack(shifts)


def liang_threshold(norm_ratio) -> np.ndarray:
    """The cosine below which Theorem 1 of Liang et al. has one ReLU layer raise the cosine.

    (½ (r + 1/r))⁻¹.

    Args:
      norm_ratio: r = ‖u‖/‖v‖ > 0, a number or an array.

    Returns:
      The threshold, in (0, 1].

    Raises:
      ValueError: a ratio <= 0.

    Assumes: weights and biases of variance 1/fan-out.
    Error: sufficient as width → ∞, not necessary: see `stationary_cosine`.
    Source: Liang et al. 2022 (arXiv 2203.02053), Thm 1.
    """
    norm_ratio = np.asarray(norm_ratio, float)
    if not np.all(norm_ratio > 0):
        raise ValueError(f"norm_ratio is {norm_ratio!r}; it must be > 0")
    return 2 / (norm_ratio + 1 / norm_ratio)


def stationary_cosine(norm_u: float, norm_v: float, *, width: int | None = None) -> float:
    """The cosine that one wide ReLU layer with bias leaves as it is on average: lower ones rise, higher ones fall.

    κ₁(ρ(c*)) + b(ρ(c*))/d = c*, ρ(c) = (c‖u‖‖v‖ + 1)/√((‖u‖² + 1)(‖v‖² + 1)).

    Args:
      norm_u, norm_v: ‖u‖, ‖v‖ > 0, in the units in which weights and biases both have variance 1/fan-out.
      width: d, the number of units; None for d → ∞.

    Returns:
      c*; for d → ∞ between `liang_threshold` and 1, and exactly 1 for equal norms.

    Raises:
      ValueError: a norm <= 0 or a width < 1.

    Assumes: ReLU, Gaussian weights and biases of equal variance.
    Error: exact for d → ∞; O(1/d²) at a finite width.
    Source: derived here (module docstring).
    """
    from scipy.optimize import brentq

    require_number("norm_u", norm_u, above=0.0)
    require_number("norm_v", norm_v, above=0.0)
    if width is not None:
        require_integer("width", width)
    if norm_u == norm_v:
        return 1.0

    def rise(cosine):
        rho = _with_bias(norm_u, norm_v, cosine)
        shift = relu_cosine_cumulants(rho)[0] / width if width is not None else 0.0
        return float(arc_cosine_kernel(rho)) + shift - cosine

    return brentq(rise, 0.0, 1.0, xtol=1e-14)


def share_of_lowered(norm_u: float, norm_v: float, cosine, width: int) -> np.ndarray:
    """The share of random ReLU layers with bias, of finite width, that do not raise the cosine of two inputs.

    Φ(u) − φ(u) [b/s + k(u² − 1)/(6s³)]/√d, u = √d (c − κ₁(ρ(c)))/s. It dies exponentially in the width at any c < c*:
    faster than the O(1/d) that Theorem 1 states.

    Args:
      norm_u, norm_v: ‖u‖, ‖v‖ > 0, as in `stationary_cosine`.
      cosine: c of the inputs, in (−1, 1), a number or an array.
      width: d, the number of units.

    Returns:
      The share, of the shape of `cosine`.

    Raises:
      ValueError: a norm <= 0 or a width < 1.

    Assumes: as `stationary_cosine`.
    Error: O(1/width), absolute; in the tails, |u| > 2, it may be as large as the share itself.
    Source: derived here (module docstring, Finite width).
    """
    from scipy.special import ndtr

    require_number("norm_u", norm_u, above=0.0)
    require_number("norm_v", norm_v, above=0.0)
    require_integer("width", width)
    cosine = np.asarray(cosine, float)
    rho = _with_bias(norm_u, norm_v, cosine)
    shift, variance, third = np.moveaxis(np.array([relu_cosine_cumulants(r) for r in rho.flat]), 1, 0).reshape(
        3, *rho.shape
    )
    spread, root = np.sqrt(variance), np.sqrt(width)
    u = root * (cosine - arc_cosine_kernel(rho)) / spread
    density = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    edgeworth = ndtr(u) - density * (shift / spread + third * (u**2 - 1) / (6 * spread**3)) / root
    return np.clip(edgeworth, 0.0, 1.0)


def _with_bias(norm_u, norm_v, cosine):
    """ρ(c), the correlation of the pre-activations."""
    return (np.asarray(cosine) * norm_u * norm_v + 1) / np.sqrt((norm_u**2 + 1) * (norm_v**2 + 1))


def relu_cosine_cumulants(correlation: float) -> tuple[float, float, float]:
    """Of the cosine after one ReLU layer of finite width d: excess of the mean · d, variance · d, third cumulant · d².

    (b, s², k), module docstring. In polar coordinates a function of degree m in (p, q) has the expectation
    2^{m/2} Γ(m/2 + 1)/(2π) ∫ … dt over p = cos t, q = cos(t − arccos ρ).

    Args:
      correlation: ρ of the pre-activations, in [−1, 1].

    Returns:
      (b, s², k).

    Raises:
      ValueError: a correlation outside [−1, 1].

    Error: O(1/width), relative, in each.
    Source: derived here (module docstring, Finite width).
    """
    require_number("correlation", correlation, least=-1.0, most=1.0)
    angle, after = float(np.arccos(correlation)), float(arc_cosine_kernel(correlation))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    # Smooth pieces: both units on, only p on, only q on.
    edges = ((angle - np.pi / 2, np.pi / 2), (-np.pi / 2, angle - np.pi / 2), (np.pi / 2, angle + np.pi / 2))
    t = np.concatenate([0.5 * (high - low) * nodes + 0.5 * (high + low) for low, high in edges])
    weights = np.concatenate([0.5 * (high - low) * weights for low, high in edges])
    p, q = np.maximum(np.cos(t), 0.0), np.maximum(np.cos(t - angle), 0.0)
    fourth, sixth = 8 / (2 * np.pi) * weights, 48 / (2 * np.pi) * weights
    f = 2 * p * q - after * (p**2 + q**2)
    shift = after * (4.5 + fourth @ (p * q) ** 2) - 4 * fourth @ (p**3 * q)
    variance = fourth @ f**2
    third = sixth @ f**3 - 12 * variance * (fourth @ (f * p**2))
    return float(shift), float(variance), float(third)


def random_cosine_quadrature(dimensions: int, num_nodes: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights for the cosine of two independent Gaussian (or uniform) directions.

    Its density is ∝ (1 − c²)^((d−3)/2): Gegenbauer's weight.

    Args:
      dimensions: d >= 3.
      num_nodes: number of nodes; exact for polynomials of degree 2 num_nodes − 1.

    Returns:
      (cosines, weights), [num_nodes] each; the weights sum to 1.

    Raises:
      ValueError: d < 3.
    """
    from scipy.special import roots_gegenbauer

    require_integer("dimensions", dimensions, least=3)
    nodes, weights = roots_gegenbauer(num_nodes, (dimensions - 2) / 2)
    return nodes, weights / weights.sum()


def _gelu(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


@functools.lru_cache(maxsize=8)
def _normal_grid(step: float, reach: float = 9.0):
    """Nodes and weights of the trapezoid rule for the standard normal distribution."""
    nodes = np.arange(-reach, reach + step / 2, step)
    weights = np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()
