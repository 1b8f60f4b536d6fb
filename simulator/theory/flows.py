"""What gradient flow does to two tight clusters: the linear modes of compression, and the critical gap.

Write x_k = μ_x + a_k and y_i = μ_y + b_i, with deviations of size ε that sum to 0 in each modality,
g = μ_y − μ_x, G = ‖g‖. Time runs in units of the flow ẋ_k = −n ∂L/∂x_k, ẏ_i = −n ∂L/∂y_i, with L the mean of the
two directions of InfoNCE.

**Space with squared distances.** The logit is −‖g + b_i − a_k‖²/τ = const − (2/τ) g·(b_i − a_k) + O(ε²), so to first
order
    Q^y(k,i) = (1/n)(1 − (2/τ) g·b_i),   Q^x(k,i) = (1/n)(1 + (2/τ) g·a_k),   S^y_i = Σ_k Q^y(k,i) = 1 − (2/τ) g·b_i.
The exact gradient is ∂L/∂y_i = (1/nτ)[(1 − S^y_i) y_i − 2x_i + Σ_k (Q^x + Q^y)(k,i) x_k]. The sum is μ_x + S^y_i μ_x
+ O(ε²), so
    ∂L/∂y_i = (1/nτ)[(2/τ)(g·b_i) g − 2a_i] + O(ε²),   ∂L/∂x_k = (1/nτ)[(2/τ)(g·a_k) g − 2b_k] + O(ε²)
(swapping x and y turns g into −g, which appears twice). The sign of the first term is that of descent: a deviation
along the gap raises the loss. Along ĝ, α̇ = (2/τ)[β − (G²/τ) α] and β̇ = (2/τ)[α − (G²/τ) β]; across it, ȧ = (2/τ) b
and ḃ = (2/τ) a.

**Unit sphere with cosines.** m_x, m_y are the mean directions, θ their angle, c = cos θ, s = sin θ; u_x, u_y the unit
tangents of their great circle, both in the sense from x to y; a_k = p_k u_x + across, b_i = q_i u_y + across. Then
m_y·u_x = s, m_x·u_y = −s, u_x·u_y = c, so Q^y = (1/n)(1 − (s/τ) q_i), Q^x = (1/n)(1 + (s/τ) p_k), and the flow
ẏ_i = (1/τ) P_y[x_i − ½ Σ_k (Q^x + Q^y)(k,i) x_k] is, to first order, (1/τ) P_y[a_i + (s/2τ) q_i m_x]. Its components
are
    q̇ = (1/τ)[c p − (s²/2τ) q],   ṗ = (1/τ)[c q − (s²/2τ) p],   across the great circle ḃ = a/τ, ȧ = b/τ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number, require_paired


class ModeRates(NamedTuple):
    """Growth rates (amplitude ∝ e^{rate · time}) of the four modes of two tight clusters; < 0 decays.

    common_along: α + β, both modalities the same way along the gap (a common turn along the great circle).
    opposite_along: β − α, in and out.
    common_across, opposite_across: (a + b)⊥ and (b − a)⊥, orthogonal to the gap (to the plane of the two means).
    """

    common_along: np.ndarray
    opposite_along: np.ndarray
    common_across: np.ndarray
    opposite_across: np.ndarray


def linearized_gradient(x, y, *, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of InfoNCE on squared distances, to first order in the size of two clusters.

    ∂L/∂x_k = (1/nτ)[(2/τ)(g·a_k) g − 2b_k],   ∂L/∂y_i = (1/nτ)[(2/τ)(g·b_i) g − 2a_i].

    Args:
      x: gallery rows [n, d].
      y: query rows [n, d]; row i pairs with row i of x.
      temperature: τ > 0.

    Returns:
      (∂L/∂x, ∂L/∂y), both [n, d], in nats per unit of the embedding.

    Raises:
      ValueError: rows that cannot be paired, or a temperature <= 0.

    Assumes: deviations a, b from the two means with Gε/τ ≪ 1 and ε²/τ ≪ 1.
    Error: O(ε) relative.
    Source: Chowers et al. 2026, Thm 3.1, with the sign of the first term derived here: theory.md C2.
    """
    require_paired(x, y)
    require_number("temperature", temperature, above=0.0)
    x, y = np.asarray(x, float), np.asarray(y, float)
    n = len(x)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a, b, gap = x - mean_x[None, :], y - mean_y[None, :], mean_y - mean_x

    def one_side(own, other):
        return (2 / temperature * (own @ gap)[:, None] * gap[None, :] - 2 * other) / (n * temperature)

    return one_side(a, b), one_side(b, a)


def mode_rates_euclidean(gap_norm, temperature) -> ModeRates:
    """Rates of the modes of two tight clusters under squared distances.

    common_along −(2/τ)(G²/τ − 1), opposite_along −(2/τ)(G²/τ + 1), common_across +2/τ, opposite_across −2/τ.

    Args:
      gap_norm: G >= 0, a number or an array.
      temperature: τ > 0, a number or an array that broadcasts with gap_norm.

    Returns:
      ModeRates, per unit of time.

    Raises:
      ValueError: a negative gap norm or a temperature <= 0.

    Assumes: clusters with Gε/τ ≪ 1 and ε²/τ ≪ 1. G ≫ ε alone is not enough for compression: that needs G² > τ.
    Error: O(Gε/τ) of the faster rate; of itself for a rate that is not much smaller, as the common one near G² = τ is.
    Source: Chowers et al. 2026, Thm 3.1; rates derived here: theory.md C2 (module docstring).
    """
    gap_norm, temperature = _broadcast(gap_norm=(gap_norm, 0.0), temperature=(temperature, None))
    own = 2 * gap_norm**2 / temperature**2
    return ModeRates(2 / temperature - own, -2 / temperature - own, 2 / temperature, -2 / temperature)


def mode_rates_sphere(angle, temperature) -> ModeRates:
    """Rates of the modes of two tight clusters on the unit sphere, with cosine logits.

    common_along −(1/2τ)(sin²θ/τ − 2cos θ), opposite_along −(1/2τ)(sin²θ/τ + 2cos θ), across +1/τ and −1/τ.

    Args:
      angle: θ between the two mean directions, in radians, 0 to π; a number or an array.
      temperature: τ > 0, a number or an array that broadcasts with angle.

    Returns:
      ModeRates, per unit of time.

    Raises:
      ValueError: an angle outside [0, π] or a temperature <= 0.

    Assumes: clusters with ε sin θ/τ ≪ 1 and ε²/τ ≪ 1; the great circle of the means exists (0 < θ < π).
    Error: O(ε sin θ/τ) of the faster rate, as in `mode_rates_euclidean`.
    Source: derived here: theory.md C2 (module docstring).
    """
    angle, temperature = _broadcast(angle=(angle, 0.0), temperature=(temperature, None))
    if np.any(angle > np.pi + 1e-12):
        raise ValueError(f"angle is {np.max(angle):g} at its largest; angles are in radians, from 0 to π")
    own, other = np.sin(angle) ** 2 / (2 * temperature**2), np.cos(angle) / temperature
    return ModeRates(other - own, -other - own, 1 / temperature, -1 / temperature)


def critical_gap_norm(temperature) -> np.ndarray:
    """The gap above which all variance along it decays, under squared distances.

    G_c = √τ: the common mode has rate −(2/τ)(G²/τ − 1), the opposite mode always decays. By scaling (x → λx, τ → λ²τ
    leaves the loss alone) only G²/τ can matter.

    Args:
      temperature: τ > 0, a number or an array.

    Returns:
      G_c, in units of the embeddings.

    Raises:
      ValueError: a temperature <= 0.

    Assumes: tight clusters, free embeddings.
    Error: O(ε/√τ) relative, with a factor that is the clusters' third moment over ε times the second: at most the largest
      deviation over ε, and 0 for symmetric clusters, where the error is O(ε²/τ).
    Source: derived here: theory.md N1.
    """
    (temperature,) = _broadcast(temperature=(temperature, None))
    return np.sqrt(temperature)


def critical_angle(temperature) -> np.ndarray:
    """The angle between two cones above which the variance along the gap decays, on the unit sphere.

    θ_c = arccos(√(1 + τ²) − τ). Both modes along the great circle decay iff sin²θ > 2τ|cos θ|: at equality
    1 − c² = 2τc has the root c = √(1 + τ²) − τ. So θ_c < θ < π − θ_c; below, the common mode grows, above, the
    opposite one.

    Args:
      temperature: τ > 0, a number or an array; ρτ for towers with coupling ρ (`simulator.theory.towers`).

    Returns:
      θ_c in radians, 0 < θ_c < π/2.

    Raises:
      ValueError: a temperature <= 0.

    Assumes: tight clusters, free embeddings.
    Error: as `critical_gap_norm`.
    Source: derived here: theory.md N1.
    """
    (temperature,) = _broadcast(temperature=(temperature, None))
    return np.arccos(np.sqrt(1 + temperature**2) - temperature)


def defect_ratio_rate(gap_norm, temperature, dimensions: int) -> np.ndarray:
    """Rate at which the defect ratio (variance along the gap over the mean direction's) changes at an isotropic start.

    d ln(ratio)/dt = −(4G²/τ²)(1 − 1/d), below the critical gap as above it: the ratio is no criterion.

    With equal variances v and correlation ρ of paired deviations in every direction,
    v_x' = 2⟨αα̇⟩ = (4/τ)(ρ − G²/τ) v along the gap and (4/τ) ρ v in each of the d − 1 directions across it; ρ cancels
    from the ratio.

    Args:
      gap_norm: G >= 0, a number or an array.
      temperature: τ > 0, a number or an array that broadcasts with gap_norm.
      dimensions: d >= 2.

    Returns:
      The rate, per unit of time.

    Raises:
      ValueError: a negative gap norm, a temperature <= 0, or d < 2.

    Assumes: squared distances, tight clusters, covariances ∝ I (each modality's, and between the two) at that moment.
    Error: O(ε) relative.
    Source: derived here: theory.md N1.
    """
    require_integer("dimensions", dimensions, least=2)
    gap_norm, temperature = _broadcast(gap_norm=(gap_norm, 0.0), temperature=(temperature, None))
    return -4 * gap_norm**2 / temperature**2 * (1 - 1 / dimensions)


def _broadcast(**named) -> tuple[np.ndarray, ...]:
    """Float64 arrays of one shape, each checked: name = (value, least) or (value, None) for > 0."""
    arrays = []
    for name, (value, least) in named.items():
        array = np.asarray(value, float)
        allowed = np.isfinite(array) & ((array > 0) if least is None else (array >= least))
        if not np.all(allowed):
            wanted = "> 0" if least is None else f">= {least:g}"
            raise ValueError(f"{name} is {value!r}; it must be finite and {wanted}")
        arrays.append(array)
    return tuple(array.copy() for array in np.broadcast_arrays(*arrays))
