"""What is left along a gap that does not close: the potentials of an entropic transport problem.

Float64 NumPy throughout. Coordinates along the gap are zero-mean (α over the gallery, β over the queries), so the gap
is exactly G ĝ; D_ki = ‖x⊥_k − y⊥_i‖² is the squared distance across it, M the pairing with Σ M = 1, r = M1, c = Mᵀ1.

**Why.** With φ̂ = 2Gα/τ, ψ̂ = −2Gβ/τ and η = τ/(4G²), the logits are, up to one constant and exactly,
    s_ki = −D_ki/τ + u_ki − η u_ki²,   u_ki = φ̂_k + ψ̂_i,
and G + β_i − α_k = G (1 − 2η u_ki). With N = ½ (diag(r) Q^y + Q^x diag(c)) − M = ∂L/∂s, stationarity in β and in α
under zero mean reads
    Σ_k N_ki (1 − 2η u_ki) = ν  for every i,   Σ_i N_ki (1 − 2η u_ki) = ν'  for every k.
A regulariser of x⊥ and y⊥ does not enter. As η → 0, ΣN = 0 forces ν, ν' → 0, so N has zero row and column sums. The
rows of diag(r) Q^y sum to r_k by definition; the zero column sums of N make its columns sum to c_i. Likewise the
columns of Q^x diag(c) sum to c_i by definition and its rows to r_k. Both are e^{−D/τ} scaled by a factor per row and
one per column, and a positive matrix has only one scaling with given marginals (Sinkhorn): both are P. The factor per
column of the first is e^{ψ̂}, the factor per row of the second e^{φ̂}, up to constants: φ̂ = φ, ψ̂ = ψ.
**Next order.** Put φ̂ = φ + η φ₁, ψ̂ = ψ + η ψ₁ and keep what is linear in η: with T_ki = φ₁_k + ψ₁_i − u_ki²,
    ½ Σ_k P_ki [2 T_ki − (row mean of T)_k − (column mean of T)_i] = 2 Σ_k (P − M)_ki u_ki + ν₁   (all i), and the same
with the sum over i (all k), means weighted by P. These are n_x + n_y + 2 linear equations with the two zero means.
"""

from __future__ import annotations

import numpy as np

from simulator.validation import require_integer, require_number


def sinkhorn_potentials(
    cost, row_marginal, column_marginal, *, temperature: float, tolerance: float = 1e-12, max_iterations: int = 100_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The potentials of the scaling of a kernel to two marginals, by Sinkhorn's iteration in the log domain.

    P_ki = exp(φ_k + ψ_i + const − cost_ki/τ) with P1 = r and Pᵀ1 = c; φ and ψ are returned with zero mean.

    Args:
      cost: squared distances across the gap D_ki, [n_x, n_y].
      row_marginal: r, [n_x], positive.
      column_marginal: c, [n_y], positive, with the same sum as r.
      temperature: τ > 0, in units of the cost.
      tolerance: largest error of a log marginal at which to stop.
      max_iterations: how often to sweep at most.

    Returns:
      (φ [n_x], ψ [n_y], P [n_x, n_y]).

    Raises:
      ValueError: shapes that do not fit, marginals that are not positive or of unequal sum, a temperature <= 0, or no
        convergence within max_iterations.

    Assumes: a kernel whose entries are all positive, so that the scaling exists and is unique.
    Error: `tolerance`, in the logarithm of each marginal.
    Source: Sinkhorn 1967; its place here: theory.md N3.
    """
    from scipy.special import logsumexp

    require_number("temperature", temperature, above=0.0)
    require_integer("max_iterations", max_iterations)
    cost, rows, columns = (np.asarray(a, float) for a in (cost, row_marginal, column_marginal))
    if cost.ndim != 2 or rows.shape != cost.shape[:1] or columns.shape != cost.shape[1:]:
        raise ValueError(
            f"cost has shape {cost.shape} and the marginals {rows.shape} and {columns.shape}; expected [n_x, n_y], "
            "[n_x] and [n_y]"
        )
    if not (np.all(rows > 0) and np.all(columns > 0) and abs(rows.sum() - columns.sum()) <= 1e-9 * rows.sum()):
        raise ValueError("the marginals must be positive and have equal sums; divide the pairing by its total first")
    log_rows, log_columns, kernel = np.log(rows), np.log(columns), -cost / temperature
    phi = np.zeros(len(rows))
    for _ in range(max_iterations):
        psi = log_columns - logsumexp(kernel + phi[:, None], axis=0)
        excess = logsumexp(kernel + psi[None, :], axis=1) + phi - log_rows
        phi = phi - excess
        if np.max(np.abs(excess)) <= tolerance:
            break
    else:
        raise ValueError(
            f"Sinkhorn's iteration misses a log marginal by {np.max(np.abs(excess)):.1e} after {max_iterations} "
            "sweeps; raise max_iterations, the tolerance or the temperature"
        )
    return phi - phi.mean(), psi - psi.mean(), np.exp(kernel + phi[:, None] + psi[None, :])


def residuals_along_gap(
    row_potential, column_potential, *, gap_norm: float, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the gap of a stationary point, from the Sinkhorn potentials of its orthogonal kernel.

    α_k = +τ φ_k/(2G),   β_i = −τ ψ_i/(2G).

    Args:
      row_potential: φ, [n_x]; its mean is taken out.
      column_potential: ψ, [n_y]; its mean is taken out.
      gap_norm: G > 0.
      temperature: τ > 0, in units of squared length.

    Returns:
      (α [n_x], β [n_y]), lengths with zero mean; their standard deviations are τ std(φ)/(2G) and τ std(ψ)/(2G).

    Raises:
      ValueError: a gap or temperature <= 0.

    Assumes: squared-Euclidean logits, a pairing with positive marginals, G held, a stationary point whose orthogonal
      part is finite (a ridge on x⊥, y⊥ makes it so).
    Error: O(τ/G²), relative; its coefficient follows from `second_order_residuals`.
    Source: derived here: theory.md N3.
    """
    require_number("gap_norm", gap_norm, above=0.0)
    require_number("temperature", temperature, above=0.0)
    phi, psi = np.asarray(row_potential, float), np.asarray(column_potential, float)
    scale = temperature / (2 * gap_norm)
    return scale * (phi - phi.mean()), -scale * (psi - psi.mean())


def second_order_residuals(
    row_potential, column_potential, coupling, pairing, *, gap_norm: float, temperature: float, lever: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """`residuals_along_gap` with the next term in τ/G².

    α = (τ/2G)(φ + η φ₁), β = −(τ/2G)(ψ + η ψ₁), η = τ/(4G²), where φ₁, ψ₁ solve the linear system above (module).

    Args:
      row_potential, column_potential, coupling: φ [n_x], ψ [n_y], P [n_x, n_y] of `sinkhorn_potentials`.
      pairing: M with Σ M = 1, [n_x, n_y].
      gap_norm: G > 0.
      temperature: τ > 0.
      lever: False leaves out 2 Σ (P − M) u, the change of G + β_i − α_k from pair to pair; a near miss, for controls.

    Returns:
      (α [n_x], β [n_y]), lengths with zero mean.

    Raises:
      ValueError: a pairing of another shape, a gap or temperature <= 0.

    Assumes: as `residuals_along_gap`.
    Error: O((τ/G²)²), relative.
    Source: derived here, from theory.md N3.
    """
    alpha, beta = residuals_along_gap(row_potential, column_potential, gap_norm=gap_norm, temperature=temperature)
    coupling, pairing = np.asarray(coupling, float), np.asarray(pairing, float)
    if pairing.shape != coupling.shape:
        raise ValueError(f"pairing has shape {pairing.shape} and the coupling {coupling.shape}; they must agree")
    scale, eta = temperature / (2 * gap_norm), temperature / (4 * gap_norm**2)
    sums = (alpha[:, None] - beta[None, :]) / scale
    force = 2 * (coupling - pairing) * sums if lever else np.zeros_like(coupling)
    phi, psi = _next_order(coupling, sums**2, force), _next_order(coupling.T, sums.T**2, force.T)
    return alpha + scale * eta * phi, beta - scale * eta * psi


def _next_order(coupling, squares, force):
    """φ₁ with zero mean from the condition on the rows; ψ₁ drops out of it. With D = diag, ¯ the P-weighted means,
    ½ [D(r) − P D(1/c) Pᵀ] φ₁ = ½ [r · row mean(u²) − P column mean(u²)] + row sums of the force + ν'."""
    rows, columns = coupling.sum(axis=1), coupling.sum(axis=0)
    column_mean = (coupling * squares).sum(axis=0) / columns
    right = 0.5 * ((coupling * squares).sum(axis=1) - coupling @ column_mean) + force.sum(axis=1)
    system = 0.5 * (np.diag(rows) - (coupling / columns[None, :]) @ coupling.T)
    ones = np.ones((len(rows), 1))
    bordered = np.block([[system, ones], [ones.T, np.zeros((1, 1))]])  # the multiplier ν' and the zero mean
    return np.linalg.solve(bordered, np.append(right, 0.0))[:-1]
