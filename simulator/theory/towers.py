"""Tight clusters seen through a network: what a tower's tangent kernel does to the free flow on the sphere.

A free embedding moves along its own negative gradient. The output of a tower moves along the gradients of all samples,
weighted by the tangent kernel Θ = J Jᵀ of its parameters. While the clusters are tight the free velocity is linear in
the deviations (`tight_velocity`), so a tower's is the free one multiplied by its kernel (`linearized_training`).

**One threshold for towers.** Let p, q (vectors over the n samples) be the deviations along the great circle, both in
the sense from m_x to m_y; c = cos θ, A = sin²θ/2τ. A kernel that acts on samples alone gives
    ṗ = (1/τ) K_x (−A p + c q),   q̇ = (1/τ) K_y (c p − A q).
Free embeddings have K = I and grow below A = |c|. For towers the same condition holds at another temperature,
A = |c| ρ, or sin²θ = 2ρτ|cos θ|: `critical_angle(ρ τ)`, with a coupling ρ <= 1 that depends on when one looks.

*At last.* With K = K_x ⊕ K_y and M = [[−A, c], [c, −A]] ⊗ I, K M is similar to K^½ M K^½, which has as many positive
eigenvalues as M restricted to the range of K (Sylvester's law of inertia): the kernel sets rates, not signs. The range
is what the towers can reach, ran K_x ⊕ ran K_y. In orthonormal bases Q_x, Q_y the restriction is
[[−A I, c Q_xᵀQ_y], [·, −A I]], with eigenvalues −A ± c ρ_j, ρ_j the canonical correlations of the two ranges. So some
mode grows iff A < |c| ρ₁ (`first_canonical_pair`); ρ₁ = 1 iff both towers can reach one common pattern.

*At first.* Random towers start at independent p ~ N(0, C_x), q ~ N(0, C_y), so
    ½ d E‖p + q‖²/dt = (1/τ)(−A S + c X),  S = tr K_x C_x + tr K_y C_y,  X = tr K_x C_y + tr K_y C_x,
which vanishes at A = c ρ̄ with ρ̄ = X/S (`kernel_alignment`). As C ∝ K in each modality, ρ̄ is how alike the two
kernels are, 2 tr K_x K_y/(tr K_x² + tr K_y²) for equal scales: at most ρ₁² <= ρ₁, and 1 for equal kernels. The opposite
mode has −A S − c X, and across the great circle, where ȧ = K_x b/τ and ḃ = K_y a/τ, common and opposite modes have ±X:
random towers start as free embeddings whose partner pulls ρ̄ times as hard.

*Between.* Later the decaying modes die and the growing ones remain, so the angle at which E‖p + q‖² is stationary moves
from the coupling ρ̄ to ρ₁ (`apparent_critical_angle`).

Kernels of networks also mix outputs (`output_mixing`): along and across leak into one another, the across modes grow at
any angle, and none of the above is exact. Width undoes it (`mixing_exponent`, `DRIFT_EXPONENTS`). Float64 NumPy throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.theory.flows import mode_rates_sphere
from simulator.validation import require_integer, require_number


def tight_velocity(deviations: np.ndarray, *, angle: float, temperature: float) -> np.ndarray:
    """Velocity of free tight clusters on the sphere, linear in their deviations.

    (ȧ, ḃ) = ½ ((λ₊ + λ₋) a + (λ₊ − λ₋) b, (λ₊ − λ₋) a + (λ₊ + λ₋) b), λ± the rates of the common and the opposite mode
    of `mode_rates_sphere`: those along the great circle for the first direction, those across it for the others.

    Args:
      deviations: (a, b) in the frames of `great_circle_frames`, [2, n, m].
      angle: θ between the cluster means, in radians, 0 to π.
      temperature: τ > 0, of cosine logits.

    Returns:
      (ȧ, ḃ) [2, n, m], per unit of the flow's time.

    Raises:
      ValueError: an angle outside 0 to π, a temperature that is not positive.

    Assumes: as `mode_rates_sphere`.
    Error: O(ε/τ) relative.
    Source: derived here: theory.md C2.
    """
    rates = mode_rates_sphere(angle, temperature)
    common, opposite = (np.full(deviations.shape[2], rate) for rate in (rates.common_across, rates.opposite_across))
    common[0], opposite[0] = rates.common_along, rates.opposite_along
    same, other = 0.5 * (common + opposite)[None, None, :], 0.5 * (common - opposite)[None, None, :]
    return same * deviations + other * deviations[::-1]


def great_circle_frames(mean_x: np.ndarray, mean_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal tangent frames at the two means: first along the great circle, then d − 2 across it.

    t_x = (m_y − c m_x)/s, t_y = (c m_y − m_x)/s, m the means scaled to unit length; both turn from m_x towards m_y.

    Args:
      mean_x, mean_y: [d], neither parallel nor opposite.

    Returns:
      (frame_x [d, d − 1], frame_y [d, d − 1]), columns orthonormal; all but the first columns are the same.

    Raises:
      ValueError: means of different shape, or on one line.

    Error: exact.
    Source: derived here.
    """
    mean_x, mean_y = np.asarray(mean_x, float), np.asarray(mean_y, float)
    if mean_x.ndim != 1 or mean_x.shape != mean_y.shape:
        raise ValueError(f"the means have shapes {mean_x.shape} and {mean_y.shape}; expected two vectors of one space")
    unit_x, unit_y = mean_x / np.linalg.norm(mean_x), mean_y / np.linalg.norm(mean_y)
    cosine = unit_x @ unit_y
    along_x, along_y = unit_y - cosine * unit_x, cosine * unit_y - unit_x
    if np.linalg.norm(along_x) < 1e-9:
        raise ValueError("the two means lie on one line, and no single great circle joins them; separate them")
    across = np.linalg.svd(np.stack([unit_x, unit_y]))[2][2:]
    frame_x, frame_y = (np.stack([t / np.linalg.norm(t), *across], axis=1) for t in (along_x, along_y))
    return frame_x, frame_y


def linearized_training(
    jacobians: Sequence[np.ndarray],
    deviations: np.ndarray,
    *,
    norms: Sequence[float],
    frames: Sequence[np.ndarray],
    angle: float,
    temperature: float,
    learning_rate: float,
    steps: int,
    adam_epsilon: float | None = None,
) -> np.ndarray:
    """Deviations of two towers after full-batch training, were their Jacobians to stay as they start.

    δ_i = frame · velocity_i/(n ‖μ‖),   u = Σ_i J_iᵀ δ_i,   Δo_i = η J_i f(u),   Δz_i = frameᵀ(Δo_i − mean Δo)/‖μ‖.

    −n ∂L/∂(unit row) is the velocity of `tight_velocity`. Unit rows are o/‖o‖, which puts a tangential projection over
    ‖o‖ ≈ ‖μ‖ on either side: −∂L/∂o_i = δ_i, and u is the negative gradient of the parameters. Gradient descent has
    f(u) = u, so Θ = J Jᵀ; for a linear tower o = uW + b that is (U Uᵀ + 1) ⊗ I. Adam has its averages of u and u² in f
    (β = .9 and .999): at first f(u) = u/(|u| + ε), the sign of every entry that is not below ε.

    Args:
      jacobians: derivatives of the raw outputs by the parameters, x then y, [n, d, parameters] each.
      deviations: z of the unit rows in the frames at the start, [2, n, m].
      norms: ‖μ_x‖, ‖μ_y‖, lengths of the mean raw outputs.
      frames: of `great_circle_frames`, [d, m] each.
      angle: θ between the means, in radians.
      temperature: τ > 0, of cosine logits.
      learning_rate: η > 0.
      steps: number of steps >= 1.
      adam_epsilon: Adam's ε >= 0; None for gradient descent.

    Returns:
      z [2, n, m] after the steps.

    Raises:
      ValueError: jacobians that are not [n, d, parameters]; norms or a learning rate that are not positive, steps < 1, a
        negative ε.

    Assumes: clusters of scale ε ≪ τ, 1; full batches; means that turn by O(ε) at most, as they do: Σ_i δ_i = 0, so a free
      gap turns by O(ε²), but a kernel that is not constant on the samples passes Σ_ij Θ_ij δ_j = O(ε) on to the means.
    Error: O(ε/τ) relative, with Adam while no entry of u is that close to 0; and the drift of the Jacobians, none for
      linear towers (`DRIFT_EXPONENTS`).
    Source: derived here (theory.md C2; tangent kernel: Jacot et al. 2018; Adam: Kingma & Ba 2015).
    """
    require_number("learning_rate", learning_rate, above=0.0)
    require_integer("steps", steps)
    if adam_epsilon is not None and not adam_epsilon >= 0:
        raise ValueError(f"adam_epsilon is {adam_epsilon!r}; it must be >= 0, or None for gradient descent")
    z = np.array(deviations, float)
    flat = []
    for name, jacobian, norm, frame in zip("xy", jacobians, norms, frames, strict=True):
        require_number(f"norm_{name}", float(norm), above=0.0)
        if np.ndim(jacobian) != 3 or np.shape(jacobian)[:2] != (z.shape[1], len(frame)):
            expected = f"[{z.shape[1]}, {len(frame)}, parameters]"
            raise ValueError(f"jacobian_{name} has shape {np.shape(jacobian)}; expected {expected}")
        flat.append(np.asarray(jacobian, float).reshape(z.shape[1] * len(frame), -1))
    kernels = [] if adam_epsilon is not None else [rows @ rows.T for rows in flat]
    averages = [[0.0, 0.0], [0.0, 0.0]]
    for step in range(1, steps + 1):
        velocity = tight_velocity(z, angle=angle, temperature=temperature)
        for i, (norm, frame) in enumerate(zip(norms, frames, strict=True)):
            pull = (velocity[i] @ frame.T).ravel() / (z.shape[1] * norm)
            if adam_epsilon is not None:
                gradient = flat[i].T @ pull
                first, second = averages[i]
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                averages[i] = [first, second]
                moved = flat[i] @ (first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + adam_epsilon))
            else:
                moved = kernels[i] @ pull
            moved = moved.reshape(-1, len(frame)) @ frame
            z[i] += learning_rate * (moved - moved.mean(axis=0)[None, :]) / norm
    return z


def kernel_alignment(kernel_x, kernel_y, covariance_x, covariance_y) -> float:
    """How hard the partner pulls, of a random start of two towers, against free embeddings: the coupling ρ̄ at first.

    ρ̄ = (tr K_x C_y + tr K_y C_x)/(tr K_x C_x + tr K_y C_y), all centred over the samples (module docstring).

    For one Gaussian latent of r dimensions seen through two random matrices with N_x and N_y columns, the means of
    numerator and denominator over worlds give ρ̄ = N/(N + 2(r + 1)), N = N_x + N_y: covariances are Wishart matrices W with
    mean I and E‖W − I‖² = r(r + 1)/N_x and r(r + 1)/N_y, kernels N_x W_x and N_y W_y.

    Args:
      kernel_x, kernel_y: K on the samples [n, n], over ‖μ‖² of each tower.
      covariance_x, covariance_y: C of the deviations of the unit rows over random starts, [n, n].

    Returns:
      ρ̄ in [0, 1] for covariances ∝ kernels.

    Raises:
      ValueError: matrices of different shape.

    Error: exact for kernels that do not mix outputs.
    Source: derived here.
    """
    k_x, k_y, c_x, c_y = _centred(
        kernel_x=kernel_x, kernel_y=kernel_y, covariance_x=covariance_x, covariance_y=covariance_y
    )
    return float((np.sum(k_x * c_y) + np.sum(k_y * c_x)) / (np.sum(k_x * c_x) + np.sum(k_y * c_y)))


def apparent_critical_angle(
    kernel_x, kernel_y, covariance_x, covariance_y, *, temperature: float, learning_rate: float, steps: tuple[int, int]
) -> float:
    """Angle at which E‖p + q‖² of random towers on the great circle is the same after two numbers of steps.

    z_k = (I + η K M/(nτ))^k z_0; root in θ of tr P z_k z_kᵀ Pᵀ between k = steps[0] and steps[1], P = (I, I): from
    `critical_angle(ρ̄ τ)` at the first step to `critical_angle(ρ₁ τ)` in the end (module docstring).

    Args:
      kernel_x, kernel_y: K on the samples [n, n], over ‖μ‖² of each tower.
      covariance_x, covariance_y: C of the deviations of the unit rows over random starts, [n, n].
      temperature: τ > 0, of cosine logits.
      learning_rate: η > 0, of plain gradient descent.
      steps: two numbers of steps, increasing.

    Returns:
      θ in radians, 0 < θ < π/2.

    Raises:
      ValueError: matrices of different shape, steps that do not increase, a rate or temperature <= 0.

    Assumes: tight clusters; full batches; kernels that do not mix outputs; p and q independent at the start; steps at whose
      end the slowest mode is still far above rounding.
    Error: O(ε/τ).
    Source: derived here.
    """
    from scipy.optimize import brentq

    require_number("temperature", temperature, above=0.0)
    require_number("learning_rate", learning_rate, above=0.0)
    if not 0 <= steps[0] < steps[1]:
        raise ValueError(f"steps are {steps}; they must increase from 0")
    k_x, k_y, c_x, c_y = _centred(
        kernel_x=kernel_x, kernel_y=kernel_y, covariance_x=covariance_x, covariance_y=covariance_y
    )
    pairs, zero = len(k_x), np.zeros_like(k_x)
    kernel, start = (np.block([[a, zero], [zero, b]]) for a, b in ((k_x, k_y), (c_x, c_y)))

    def growth(angle):
        own, other = np.sin(angle) ** 2 / (2 * temperature), np.cos(angle)
        coupling = np.kron(np.array([[-own, other], [other, -own]]), np.eye(pairs)) / temperature
        one_step = np.eye(2 * pairs) + learning_rate / pairs * kernel @ coupling
        variances = []
        for count in steps:
            power = np.linalg.matrix_power(one_step, count)
            common = power[:pairs] + power[pairs:]
            variances.append(np.sum((common @ start) * common))
        return np.log(variances[1] / variances[0])

    return float(brentq(growth, 1e-3, np.pi / 2, xtol=1e-10))


def first_canonical_pair(features_x: np.ndarray, features_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What two towers can reach that is most alike: the deviations that lose stability first.

    (u, w) = argmax u·w over unit u ∈ ran H F_x, w ∈ ran H F_y, H = I − 11ᵀ/n, and ρ₁ = u·w. With u, w in the two towers
    the pair stands still at the threshold A = c ρ₁ under any kernels of those ranges, as Q_x Q_xᵀ(−A u + c w) = 0:
    there the threshold shows without knowing the kernels (module docstring).

    Args:
      features_x, features_y: what the two output layers see, F [n, fan_in] each; for linear towers the inputs.

    Returns:
      (u [n], w [n], ρ₁), u and w of unit length.

    Raises:
      ValueError: features of different n, or of no variation.

    Error: exact; singular values below 1e-9 of the largest count as 0.
    Source: derived here; canonical correlation as singular values: Björck & Golub 1973.
    """
    if len(features_x) != len(features_y):
        raise ValueError(f"there are {len(features_x)} and {len(features_y)} samples; pair them")
    bases = []
    for name, features in (("features_x", features_x), ("features_y", features_y)):
        left, singular, _ = np.linalg.svd(features - np.mean(features, axis=0)[None, :], full_matrices=False)
        if not singular[0] > 0:
            raise ValueError(f"{name} do not vary from sample to sample; nothing along the great circle can be reached")
        bases.append(left[:, singular > 1e-9 * singular[0]])
    left, correlations, right = np.linalg.svd(bases[0].T @ bases[1])
    return bases[0] @ left[:, 0], bases[1] @ right[0], float(min(correlations[0], 1.0))


def output_mixing(jacobian: np.ndarray) -> float:
    """How much a tangent kernel mixes outputs: ‖Θ' − K ⊗ I‖/‖K ⊗ I‖, Θ' = (H ⊗ I) J Jᵀ (H ⊗ I), K its mean over outputs.

    Args:
      jacobian: J of the raw outputs by the parameters, [n, d, parameters].

    Returns:
      A number >= 0; 0 for a kernel that acts on samples alone, as a linear tower's.

    Raises:
      ValueError: a Jacobian of another shape.

    Error: exact.
    Source: derived here.
    """
    jacobian = np.asarray(jacobian, float)
    if jacobian.ndim != 3:
        raise ValueError(f"the Jacobian has shape {jacobian.shape}; expected [n, d, parameters]")
    pairs, dimensions = jacobian.shape[:2]
    centred = (jacobian - jacobian.mean(axis=0)[None]).reshape(pairs * dimensions, -1)
    kernel = (centred @ centred.T).reshape(pairs, dimensions, pairs, dimensions)
    diagonal = np.einsum("ab,ij->aibj", np.einsum("aibi->ab", kernel) / dimensions, np.eye(dimensions))
    return float(np.linalg.norm(kernel - diagonal) / np.linalg.norm(diagonal))


def mixing_exponent(depth: int) -> float:
    """Exponent of the width with which an MLP's tangent kernel stops mixing its outputs.

    `output_mixing` ∝ width^−3/2 with one hidden layer, width^−1/2 with more.

    The output layer adds (h·h' + 1) ⊗ I, which mixes nothing and grows with the width w (h: hidden activations of order
    1 each). A layer below it adds (h₋·h₋' + 1) Bᵀ B', B the back-propagated Jacobian of the outputs, whose entries have
    variance 1/w: Bᵀ B' is I times a number of order 1, plus random entries of order w^−½. Its factor h₋·h₋' is of order
    1 for the first layer, where h₋ is the input, and of order w for any other. So the random part, over the order w of
    the diagonal part, is w^−½/w with one hidden layer and w·w^−½/w with more.

    Args:
      depth: number of hidden layers, >= 1.

    Returns:
      The exponent.

    Raises:
      ValueError: a depth below 1.

    Assumes: weights of variance 1/fan-in, equal learning rate for all layers, random start.
    Error: the logarithm of the mixing is off by c/w + O(1/w²). Signs of weights are symmetric, so a mean of random parts
      has only integer powers of 1/w: their squares, their pairs with what they perturb, and the first layer's
      (x·x' + 1) Bᵀ B', of order 1 where the diagonal part is of order w. That last one makes c about −(inputs) with one
      hidden layer, so that narrow towers seem to fall more slowly.
    Source: derived here.
    """
    require_integer("depth", depth)
    return -1.5 if depth == 1 else -0.5


# Exponents of the width w in the error of `linearized_training` after one step over the square of the learning rate η, for
# one smooth hidden layer: (gradient descent, Adam). In raw outputs the error is of second order, Σ_j ΔV_j Δh_j, V_j the
# output weights of unit j and h_j its activation. For gradient descent ΔV_j = η Σ δ h_j and Δh_j = η Σ (V_j·δ)(x·x') h', and
# Σ_j h_j V_j has w terms of order w^−½ and random sign: it is of order 1. Adam moves every weight by η, so ΔV_j and Δh_j are
# of order η; the sign of Δh_j is that of V_j, random, and the sum is of order w^½. Curvature, ½ Σ_j V_j h'' (Δ)², adds w^−1
# and 1. The change itself is w times η, by the output layer alone: for a change of given share r, η ∝ r/w, and the error
# over the change is ∝ r w^−2 and r w^−3/2.
# The kinks of ReLUs: of n w activations a share Δh crosses, each adding V_j Δh: n r w^−½ crossings of order η/w for gradient
# descent, n r of order η w^−½ for Adam. Where there are any they exceed the rest by a factor of order 1/r; they scatter more
# than they shift the exponents. In later steps Adam's gradients near 0 amplify the drift: no law is claimed.
DRIFT_EXPONENTS = (0.0, 0.5)


def _centred(**named) -> list[np.ndarray]:
    """H A H of each matrix, all of one shape [n, n]."""
    matrices = {name: np.asarray(value, float) for name, value in named.items()}
    first = next(iter(matrices.values()))
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or matrix.shape != (len(first), len(first)):
            raise ValueError(f"{name} has shape {matrix.shape}; all four must be [n, n] with n = {len(first)}")
    centring = np.eye(len(first)) - 1.0 / len(first)
    return [centring @ matrix @ centring for matrix in matrices.values()]
