"""What a gap and a learned temperature keep constant together while everything else moves.

Float64 NumPy; s = 1/τ is the scale of the logits, learned as s = h(ν) with ν̇ = −κ ∂L/∂ν. The modalities are parallel:
x_k = (√(1−γ²) e_k, −γ), y_i = (√(1−γ²) e'_i, γ) with unit rows e, e' that move in any way.

**One scalar γ for all rows.** The cosines are (1−γ²)⟨e_k, e'_i⟩ − γ²; the constant drops out of both softmaxes, so
L = F(u, e, e') with u = s(1−γ²). Then γ̇ = −∂L/∂γ = 2γs F_u and ṡ = h'ν̇ = −κ h'² (1−γ²) F_u, whose ratio knows nothing of
F: (1/γ − γ) dγ = −(2/κ)(s/h'²) ds. With A(s) = ∫ s/h'² ds, conserved is
    ln γ − γ²/2 + (2/κ) A(s).
**Rows that move on the sphere**, ẋ_k = −n P ∂L/∂x_k. Along the gap, with x constant there and s_ki the cosines,
2τ ẏ_i·ĝ = (1 − S^y_i) h^x − [2s_ii − Σ_k (Q^x + Q^y)(k,i) s_ki] γ, h^x = −γ. The mean over i of 1 − S^y_i is 0, that of the
bracket is −2 ∂L/∂s; so if the rows are alike and keep one γ, γ̇ = s ∂_sL γ, and with ṡ = −κ h'² ∂_sL conserved is
    ln γ + (1/κ) A(s):
half the exponent, since the rows of one modality feel only half of what moves a γ that both share, and no γ²/2.
**Parametrisations.** s = e^ν: h' = s, A = ln s, so γ s^{2/κ} e^{−γ²/2} or γ s^{1/κ} is conserved. s = ν: A = s²/2.
s = 1/ν, a temperature learned as it is: h' = −s², A = −1/(2s²), which stays finite as s → ∞, so the gap does too.
s = softplus ν = log(1 + e^ν): h' = 1 − e^{−s}, 1/h' = 1 + b with b = 1/(e^s − 1) and b' = −b(1 + b), so
1/h'² = 1 + b − b'. By parts, with ∫ b = ln(1 − e^{−s}) and ∫ s b = s ln(1 − e^{−s}) − Li₂(e^{−s}),
    A(s) = s²/2 − s/(e^s − 1) + (s + 1) ln(1 − e^{−s}) − Li₂(e^{−s}),
which is ln s + const for s → 0 and s²/2 for s → ∞.
**Rates.** Once pairs match, F ~ e^{−uΔ} and u ~ (log t)/Δ: the gap falls as 1/log² t or 1/log t for s = e^ν, as e^{−s²/κ} or
e^{−s²/2κ} for softplus, faster than any power of log t, and not to 0 for s = 1/ν.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from simulator.validation import require_number, require_one_of

Parametrisation = Literal["exponential", "softplus", "linear", "temperature"]
PARAMETRISATIONS = get_args(Parametrisation)


def scale_potential(scale, parametrisation: Parametrisation) -> np.ndarray:
    """A(s) = ∫ s/h'(ν)² ds of a learned scale s = h(ν).

    exponential ln s; linear s²/2; temperature −1/(2s²); softplus s²/2 − s/(e^s−1) + (s+1) ln(1−e^{−s}) − Li₂(e^{−s}).

    Args:
      scale: s = 1/τ > 0, a number or an array; infinity is allowed.
      parametrisation: "exponential" (s = e^ν, as in CLIP), "softplus" (s = log(1 + e^ν)), "linear" (s = ν) or
        "temperature" (s = 1/ν).

    Returns:
      A, of the shape of `scale`.

    Raises:
      ValueError: another parametrisation, or a scale <= 0.

    Error: exact.
    Source: derived here (module docstring).
    """
    from scipy.special import spence

    require_one_of("parametrisation", parametrisation, PARAMETRISATIONS)
    scale = np.asarray(scale, float)
    if not np.all(scale > 0):
        raise ValueError(f"scale is {scale!r}; it must be > 0")
    if parametrisation == "exponential":
        return np.log(scale)
    if parametrisation == "linear":
        return 0.5 * scale**2
    if parametrisation == "temperature":
        return -0.5 / scale**2
    near = np.minimum(scale, 700.0)  # beyond, all but s²/2 has vanished
    rest = -np.expm1(-near)  # 1 − e^{−s}; spence(z) = Li₂(1 − z)
    return 0.5 * scale**2 - near * np.exp(-near) / rest + (near + 1) * np.log(rest) - spence(rest)


def log_invariant(
    half_gap, scale, *, parametrisation: Parametrisation, rate: float = 1.0, shared: bool = True
) -> np.ndarray:
    """The logarithm of what the gradient flow of a parallel gap and a learned temperature conserves.

    shared: ln γ − γ²/2 + (2/κ) A(s);   row by row: ln γ + (1/κ) A(s).

    Args:
      half_gap: γ in (0, 1): rows have the coordinates ∓γ along the gap, ‖g‖ = 2γ; a number or an array.
      scale: s = 1/τ > 0, a number or an array.
      parametrisation: as in `scale_potential`.
      rate: κ > 0, of ν̇ = −κ ∂L/∂ν.
      shared: True for one scalar γ with γ̇ = −∂L/∂γ; False for unit rows with ẋ_k = −n P ∂L/∂x_k.

    Returns:
      The logarithm, of the broadcast shape.

    Raises:
      ValueError: γ outside (0, 1), a scale or rate <= 0, another parametrisation.

    Assumes: shared: the two modalities stay parallel; anything may happen across the gap. Row by row: γ stays the same
      for all rows, as where the rows are equivalent by a symmetry.
    Error: exact under the assumption.
    Source: Yaras et al. 2024 (arXiv 2412.07909) for the shared exponential case with κ = 1; the rest derived here (module docstring).
    """
    require_number("rate", rate, above=0.0)
    half_gap = np.asarray(half_gap, float)
    if not np.all((half_gap > 0) & (half_gap < 1)):
        raise ValueError(f"half_gap is {half_gap!r}; it must lie between 0 and 1, for unit rows on both sides of a gap")
    potential = scale_potential(scale, parametrisation)
    if shared:
        return np.log(half_gap) - 0.5 * half_gap**2 + 2 / rate * potential
    return np.log(half_gap) + potential / rate


def half_gap_at_scale(
    scale, start: tuple[float, float], *, parametrisation: Parametrisation, rate: float = 1.0, shared: bool = True
) -> np.ndarray:
    """The gap that is left when the learned scale has reached a value, whatever happened on the way.

    shared: γ = √(−W₀(−C²)) with ln C = ln γ₀ − γ₀²/2 − (2/κ)(A(s) − A(s₀)), W₀ Lambert's function; row by row:
    γ = γ₀ exp(−(A(s) − A(s₀))/κ).

    Args:
      scale: s = 1/τ > 0, a number or an array; infinity is allowed.
      start: (γ₀, s₀).
      parametrisation, rate, shared: as in `log_invariant`.

    Returns:
      γ, of the shape of `scale`; NaN where the scale is so small that the flow cannot have reached it.

    Raises:
      ValueError: as `log_invariant`.

    Assumes: as `log_invariant`.
    Error: exact under the assumption.
    Source: derived here (module docstring).
    """
    from scipy.special import lambertw

    law: dict[str, Any] = dict(parametrisation=parametrisation, rate=rate, shared=shared)
    left = log_invariant(*start, **law) - (2 if shared else 1) / rate * scale_potential(scale, parametrisation)
    constant = np.exp(left)
    if not shared:
        return np.where(constant < 1, constant, np.nan)
    # γe^{−γ²/2} is largest at γ = 1. For a tiny C, γ = C, without W₀'s loss of digits.
    exact = np.sqrt(-lambertw(-(np.minimum(constant, np.exp(-0.5)) ** 2)).real)
    return np.where(constant > np.exp(-0.5), np.nan, np.where(constant < 1e-6, constant, exact))
