"""The first phase of Euclidean training: what the gap loses while the variance along it dies, and when that ends.

Float64 NumPy. All laws are for free embeddings under the sqeuclidean InfoNCE flow from two tight clusters at distance
G₀ = ‖g(0)‖, r = G₀²/τ > 1. Rows enter as deviations from their modality's mean; along the gap they are α_i (gallery)
and β_i (queries), across it a_i and b_i. Variances are at the start. To first order α + β decays at λ_s = (2/τ)(r − 1)
and β − α at λ_d = (2/τ)(r + 1), while across the gap a + b grows at 2/τ and b − a decays at 2/τ. Phase 1 ends at the
first minimum of v = v_x + v_y, the variance along the gap. Orders of errors are in ε, the scale of the clusters in units
of √τ; "odd moments" are sample means of odd degree in a start's deviations: 0 for clusters that are symmetric about
their means, 0 in expectation for Gaussian ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_number, require_paired


class TightStart(NamedTuple):
    """What the laws of phase 1 need of a start.

    squared_gap: G₀². variance_sum: Var(α + β). variance_difference: Var(β − α). growing_spread: Var(‖u‖²) with
    u_i = (a_i + b_i)/2 the growing mode across the gap. temperature: τ.
    """

    squared_gap: float
    variance_sum: float
    variance_difference: float
    growing_spread: float
    temperature: float

    @property
    def ratio(self) -> float:
        """r = G₀²/τ."""
        return self.squared_gap / self.temperature


def tight_start(x, y, *, temperature: float) -> TightStart:
    """The numbers of a start that the laws of phase 1 use.

    Args:
      x, y: [n, d]; row i of x pairs with row i of y.
      temperature: τ > 0.

    Returns:
      TightStart.

    Raises:
      ValueError: rows that cannot be paired, a temperature <= 0, no gap, or G₀² <= τ (then the mode α + β does not
        decay and there is no phase 1).
    """
    require_paired(x, y)
    require_number("temperature", temperature, above=0.0)
    x, y = np.asarray(x, float), np.asarray(y, float)
    gap = y.mean(axis=0) - x.mean(axis=0)
    squared_gap = float(gap @ gap)
    if squared_gap <= temperature:
        raise ValueError(
            f"G₀² is {squared_gap:.4g} and τ is {temperature:.4g}; phase 1 needs G₀² > τ: move the clusters apart "
            "or lower the temperature"
        )
    a, b = x - x.mean(axis=0)[None, :], y - y.mean(axis=0)[None, :]
    axis = gap / squared_gap**0.5
    alpha, beta = a @ axis, b @ axis
    growing = 0.5 * (a + b - (alpha + beta)[:, None] * axis[None, :])
    return TightStart(
        squared_gap,
        float(np.var(alpha + beta)),
        float(np.var(beta - alpha)),
        float(np.var(np.sum(growing**2, axis=1))),
        float(temperature),
    )


def predicted_log_gap_change(start: TightStart) -> float:
    """What phase 1 takes from the gap, in the limit of tight clusters.

    ln(G₁/G₀) = −½ [ Var(α + β)/(G₀² − τ) + Var(β − α)/(G₀² + τ) ].

    Derivation: in Ġ = (2/nτ) Σ_ki (Q^x + Q^y)_ki h_ki, h_ki = β_i − α_k, the softmaxes are to first order
    Q^y = (1 − 2Gβ_i/τ)/n and Q^x = (1 + 2Gα_k/τ)/n, so d ln G/dt = −(4/τ²)(v_x + v_y), and
    v_x + v_y = ½ [Var(α + β) e^{−2λ_s t} + Var(β − α) e^{−2λ_d t}]; integrate over all times.

    Args:
      start: from `tight_start`.

    Returns:
      ln(G₁/G₀), negative.

    Assumes: tight clusters: dε² ≪ 1, d the dimension across the gap.
    Error: relative; `predicted_shortfall`, of order (dε²/r)^{(r−1)/(r+1)}, and O(ε) times odd moments (the third order
      of d ln G/dt), the larger of the two from r = 3 on.
    Source: derived here: theory.md N2.
    """
    squared, temperature = start.squared_gap, start.temperature
    return -0.5 * (start.variance_sum / (squared - temperature) + start.variance_difference / (squared + temperature))


class PhaseOneEnd(NamedTuple):
    """time: of the first minimum of v, in units of the flow. residual: share of Var(α + β) that is left then."""

    time: float
    residual: float


def predicted_end(start: TightStart) -> PhaseOneEnd:
    """When phase 1 ends: the variance along the gap that the growing mode drives overtakes what is left of the first.

    t₁ = (τ/4(r + 1)) ln X, residual = X^{−(r−1)/(r+1)}, X = (r − 1) Var(α + β)/(2K), K = r Var(‖u‖²)/(τ (r + 3)²).

    Derivation: once α and β have decayed, S^y_i − 1 = (mean‖b‖² − ‖b_i‖²)/τ to second order, likewise for x, and
    β̇_i contains (G/τ)(S^y_i − 1), α̇_k contains −(G/τ)(S^x_k − 1). Along the gap this drives β − α by
    −(2G/τ²)(‖u_i‖² − mean) e^{4t/τ} (and α + β only by a constant, since ‖a_i‖² − ‖b_i‖² = (a + b)·(a − b) does not
    grow), so β_i − α_i → −(G/τ)(‖u_i‖² − mean) e^{4t/τ}/(r + 3), of variance K e^{8t/τ}. The minimum of
    2v = Var(α + β) e^{−2λ_s t} + K e^{8t/τ} is at e^{4(r+1)t/τ} = X.

    Args:
      start: from `tight_start`.

    Returns:
      PhaseOneEnd.

    Assumes: tight clusters, and a start that grows across the gap (Var‖u‖² > 0).
    Error: relative, in X and in the residual: O(ε^{2/(r+1)}) times odd moments (what is left of the start against what
      is driven), O(ε^{4/(r+1)}) and O((dε²)^{r/(r+1)}).
    Source: derived here: theory.md N2 (the constant is new).
    """
    r, temperature = start.ratio, start.temperature
    driven = r * start.growing_spread / (temperature * (r + 3) ** 2)
    overtaking = (r - 1) * start.variance_sum / (2 * driven)
    return PhaseOneEnd(temperature * np.log(overtaking) / (4 * (r + 1)), float(overtaking ** (-(r - 1) / (r + 1))))


def predicted_shortfall(start: TightStart) -> float:
    """By which share the gap loses less in phase 1 than `predicted_log_gap_change` says.

    1 − ln(G₁/G₀)/law = w · residual · [ 1 + 3(r − 1)²/(4r) ], w the share of α + β in the law.

    With a, b independent of variance ε² in d directions across the gap, and v_x = v_y = ε²: residual =
    (r² dε²/(2(r − 1)(r + 3)² G₀²))^{(r−1)/(r+1)}, a power 2(r − 1)/(r + 1) of ε.
    Derivation: stopping at t₁ leaves out residual · Var(α + β)/(2λ_s) of ½∫(...)dt. The driven part K e^{8t/τ} enters
    d ln G/dt twice: −(4/τ²)·½K e^{8t/τ} through v, and +(2/τ²)((r + 3)/r) K e^{8t/τ} through the second-order softmax:
    it adds (2/nτ²) [Σ‖a_k‖²α_k − Σ‖b_i‖²β_i] to Ġ. The sum, (2/τ²)(3/r) K e^{8t/τ}, is positive: it is the rise of
    phase 2 setting in. Its integral to t₁ is (3(r − 1)/(8rτ)) Var(α + β) · residual.

    Args:
      start: from `tight_start`.

    Returns:
      The relative shortfall, >= 0.

    Assumes: as `predicted_end`, and r < 3 for tight clusters: beyond, the O(ε) of the law's own error hides it.
    Error: relative; O(ε^{(3−r)/(r+1)}) times odd moments (that O(ε)), and the errors of `predicted_end`.
    Source: derived here: theory.md N2 (the constant is new).
    """
    r = start.ratio
    share = -0.5 * start.variance_sum / (start.squared_gap - start.temperature) / predicted_log_gap_change(start)
    return share * predicted_end(start).residual * (1 + 3 * (r - 1) ** 2 / (4 * r))


def predicted_balance_leak(start: TightStart) -> float:
    """Share of the change of G² in phase 1 that the balance G² − 2(v_x + v_y) does not carry.

    Δ(G² − 2v)/ΔG² = (1/r) [V_s/(r − 1) − V_d/(r + 1)] / [V_s/(r − 1) + V_d/(r + 1)],
    V_s = Var(α + β), V_d = Var(β − α).

    So the balance is conserved to 1/r² if α and β are uncorrelated and of one variance, but only to 1/r if x and y
    are correlated. Derivation: to second order the exact rate (4/nτ)[2Σ h_ii² − Σ(Q^x + Q^y)h²] is
    (4/τ)(Var(β − α) − Var(α + β)) at time t; integrate as above, over ΔG² = 2G₀² ln(G₁/G₀).

    Args:
      start: from `tight_start`.

    Returns:
      The share, between −1/r and 1/r.

    Assumes: tight clusters.
    Error: absolute, of the size of the relative error of `predicted_log_gap_change`.
    Source: derived here: theory.md N2.
    """
    r = start.ratio
    common, opposite = start.variance_sum / (r - 1), start.variance_difference / (r + 1)
    return (common - opposite) / (common + opposite) / r


class Exponents(NamedTuple):
    """Exponents of a law c ε^scale r^ratio with r = G₀²/τ."""

    scale: float
    ratio: float


def predicted_rise_exponents() -> Exponents:
    """How the relative rise of the gap in phase 2 scales: as ε⁰ (G₀²/τ)^{−2}.

    ln(G₂/G₁) → c (τ/G₀²)² as ε → 0 and then r → ∞, with G₂ the gap at a fixed time (in units of τ) after the growing
    mode has reached the scale √τ, at (τ/2) ln(1/ε); c is set by the pattern of that mode and the time alone.

    Derivation: phase 2 leaves the clusters along the growing mode u e^{2t/τ}. Another scale ε only shifts its time by
    (τ/2) ln ε, so its rise does not depend on ε. Along the gap rows relax at 2r/τ, for r ≫ 1 much faster than anything
    moves across it: the variance there sits at its fixed point, where h_ki is τ/2G times a potential of the orthogonal
    kernel (theory.md N3); at that order S = 1 and G stands still.
    The exact balance dG² = 2dv + (4/nτ)[2Σ h_ii² − Σ(Q^x + Q^y)h²]dt leaves ΔG² = O(τ²/G²) in a time O(τ).

    Returns:
      Exponents(scale=0, ratio=−2).

    Assumes: tight clusters, dε² ≪ 1.
    Error: relative O(1/r) and O(dε²).
    Source: derived here: theory.md N2 (the exponent of r is new).
    """
    return Exponents(0.0, -2.0)
