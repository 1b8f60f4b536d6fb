"""Tight clusters seen through a network: what a tower's tangent kernel does to the free flow on the sphere.

A free embedding moves along its own negative gradient. The output of a tower moves along the gradients of all
samples, weighted by the tangent kernel Θ = J Jᵀ of its parameters. While the clusters are tight the flow is linear
in the deviations, so the tower's generator is the free one multiplied by the kernel. Float64 NumPy throughout.
"""

from __future__ import annotations

import numpy as np

from simulator.theory.flows import critical_angle, mode_rates_sphere
from simulator.validation import require_integer, require_number


def sphere_coupling(angle: float, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Free flow of one pair's deviations on the sphere, as matrices: along the great circle of the means, and across.

    d(α, β)/dt = M (α, β), M = −(1/2τ)[[s²/τ, −2c], [−2c, s²/τ]];  d(a⊥, b⊥)/dt = (1/τ)[[0, 1], [1, 0]] (a⊥, b⊥),
    c = cos θ, s = sin θ; α and β count positive in the same sense of turning, from m_x towards m_y. These are the
    symmetric matrices with the rates of `mode_rates_sphere` on the modes (1, 1) and (1, −1).

    Args:
      angle: θ between the cluster means, in radians, 0 to π.
      temperature: τ > 0, of cosine logits.

    Returns:
      (along [2, 2], across [2, 2]) in inverse units of the flow's time; rows and columns are (x, y).

    Raises:
      ValueError: an angle outside 0 to π, a temperature that is not positive.

    Assumes: as `mode_rates_sphere`.
    Error: O(ε) relative.
    Source: derived here: theory.md C2.
    """
    require_number("angle", angle, least=0.0, most=np.pi)
    require_number("temperature", temperature, above=0.0)
    rates = mode_rates_sphere(angle, temperature)
    join = lambda same, opposite: 0.5 * np.array([  # noqa: E731
        [same + opposite, same - opposite], [same - opposite, same + opposite],
    ])  # fmt: skip
    return join(rates.common_along, rates.opposite_along), join(rates.common_across, rates.opposite_across)


def reachable_critical_angle(temperature: float, correlation: float) -> float:
    """Smallest angle between the means of two linear towers at which every mode along the great circle decays.

    The root of sin²θ = 2ρτ cos θ: `critical_angle` at the temperature ρτ; the other end is π − θ_c.

    A kernel that acts on samples alone gives the generator K M along the great circle, with K = blockdiag(K_x, K_y)
    positive semi-definite and M = −(1/2τ)[[s²/τ, −2c], [−2c, s²/τ]] ⊗ I. K M is similar to K^½ M K^½, which has as many
    positive eigenvalues as M restricted to the range of K (Sylvester's law of inertia): rates change, signs do not.
    That range is what the towers can reach, ran K_x ⊕ ran K_y. In orthonormal bases Q_x, Q_y of its two parts the
    restriction is −(1/2τ)[[s²/τ I, −2c Q_xᵀQ_y], [·, s²/τ I]], negative definite iff s²/τ > 2|c| ρ, where
    ρ = σ_max(Q_xᵀQ_y) is the first canonical correlation of the two reaches. ρ = 1, the free threshold, iff some
    deviation α = β is in reach of both, as with kernels of full rank. At the boundary the first canonical pair,
    u = Q_x p and w = Q_y q, stands still under any K_x, K_y of that range, since
    Q_x Q_xᵀ(−s²u/τ + 2cw) = (−s²/τ + 2cρ) u = 0: there the boundary shows without knowing the kernels.

    Args:
      temperature: τ > 0, of cosine logits.
      correlation: ρ, above 0 and at most 1; for linear towers the first canonical correlation of the centred inputs.

    Returns:
      θ_c in radians, 0 < θ_c < π/2.

    Raises:
      ValueError: a temperature that is not positive, a correlation outside (0, 1].

    Assumes: tight clusters; gradient flow; a kernel that does not mix outputs (linear towers).
    Error: O(ε) relative.
    Source: derived here: theory.md N1 is the case ρ = 1.
    """
    require_number("temperature", temperature, above=0.0)
    require_number("correlation", correlation, above=0.0, most=1.0 + 1e-9)
    return float(critical_angle(correlation * temperature))


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
    return tuple(np.stack([t / np.linalg.norm(t), *across], axis=1) for t in (along_x, along_y))


def tower_generator(
    kernel_x: np.ndarray,
    kernel_y: np.ndarray,
    *,
    norms: tuple[float, float],
    frames: tuple[np.ndarray, np.ndarray],
    angle: float,
    temperature: float,
) -> np.ndarray:
    """Generator A of the deviations of two towers per unit of learning rate × steps: ż = A z.

    A = blockdiag(Θ'_x/‖μ_x‖², Θ'_y/‖μ_y‖²)/n · (M along, (1/τ) swap across),  Θ' = (H ⊗ Eᵀ) Θ (H ⊗ E), H = I − 11ᵀ/n.

    Gradient descent on the parameters moves the raw outputs by −Θ ∂L/∂(outputs). Rows enter the loss as x = o/‖o‖,
    which puts a tangential projection over ‖o‖ ≈ ‖μ‖ on either side of Θ. −n ∂L/∂x is the free velocity, linear in the
    centred deviations (`sphere_coupling`); H keeps deviations from the moving mean. For a linear tower o = uW + b,
    Θ = (U Uᵀ + 1) ⊗ I: each mode of the centred kernel keeps the free signs and multiplies the rates by its eigenvalue.

    Args:
      kernel_x, kernel_y: tangent kernels J Jᵀ of the raw outputs, [n, d, n, d]; or [n, n] for kernels that act on
        samples alone (linear tower: U Uᵀ + 1; free table: the identity).
      norms: ‖μ_x‖, ‖μ_y‖, lengths of the mean raw outputs.
      frames: of `great_circle_frames`, [d, m] each.
      angle: θ between the means, in radians.
      temperature: τ > 0, of cosine logits.

    Returns:
      A [2 n m, 2 n m], for z = (x then y) of deviations [n, m] in the frames, raveled.

    Raises:
      ValueError: kernels that are neither [n, n] nor [n, d, n, d], or of different n; norms that are not positive.

    Assumes: clusters of scale ε ≪ τ, 1; gradient flow on all n pairs; a kernel that does not move: exact for linear
      towers, for others as long as training is lazy (wide).
    Error: O(ε/τ) for linear towers; for others also the drift of the kernel.
    Source: derived here (theory.md C2 and the tangent kernel of Jacot et al. 2018).
    """
    for norm in norms:
        require_number("norms", float(norm), above=0.0)
    reduced = [
        _reduced_kernel(name, kernel, frame) / (len(kernel) * norm**2)
        for name, kernel, frame, norm in zip("xy", (kernel_x, kernel_y), frames, norms, strict=True)
    ]
    if reduced[0].shape != reduced[1].shape:
        raise ValueError(
            f"the kernels act on {reduced[0].shape[0]} and {reduced[1].shape[0]} coordinates; pair the samples"
        )
    pairs, directions = len(kernel_x), frames[0].shape[1]
    along, across = sphere_coupling(angle, temperature)
    blocks = [[np.tile([along[a, b], *[across[a, b]] * (directions - 1)], pairs) for b in (0, 1)] for a in (0, 1)]
    return np.block([[reduced[a] * blocks[a][b][None, :] for b in (0, 1)] for a in (0, 1)])


def _reduced_kernel(name: str, kernel: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(H ⊗ Eᵀ) Θ (H ⊗ E), [n m, n m]; H acts on both samples of Θ because the free velocity centres its own."""
    kernel = np.asarray(kernel, float)
    pairs, directions = len(kernel), frame.shape[1]
    centring = np.eye(pairs) - 1.0 / pairs
    if kernel.shape == (pairs, pairs):
        return np.kron(centring @ kernel @ centring, np.eye(directions))
    if kernel.shape != (pairs, len(frame), pairs, len(frame)):
        expected = f"[n, n] or [n, {len(frame)}, n, {len(frame)}]"
        raise ValueError(f"kernel_{name} has shape {kernel.shape}; expected {expected}")
    turned = np.einsum("aibj,ip,jq->apbq", kernel, frame, frame, optimize=True)
    centred = np.einsum("ab,bpcq,cd->apdq", centring, turned, centring, optimize=True)
    return centred.reshape(pairs * directions, pairs * directions)


def after_steps(generator: np.ndarray, start: np.ndarray, *, learning_rate: float, steps: int) -> np.ndarray:
    """Deviations after plain gradient descent: z_k = (I + η A)^k z_0.

    Args:
      generator: A [N, N], per unit of learning rate.
      start: z_0 [N].
      learning_rate: η > 0.
      steps: k >= 1.

    Returns:
      z_k [N].

    Raises:
      ValueError: a learning rate that is not positive, a number of steps below 1.

    Assumes: full batches.
    Error: that of the generator; the discrete steps themselves are exact, not a flow's approximation.
    Source: derived here.
    """
    require_number("learning_rate", learning_rate, above=0.0)
    require_integer("steps", steps)
    return np.linalg.matrix_power(np.eye(len(generator)) + learning_rate * generator, steps) @ start


def least_stable_pair(features_x: np.ndarray, features_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The first canonical pair of what two linear layers can reach: the deviations that lose stability first.

    (u, w) = argmax u·w over unit u ∈ ran H F_x, w ∈ ran H F_y, and ρ = u·w (see `reachable_critical_angle`).

    Args:
      features_x, features_y: what the two layers see, F [n, fan_in] each; for linear towers the inputs.

    Returns:
      (u [n], w [n], ρ), u and w of unit length.

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


def output_mixing(kernel: np.ndarray) -> float:
    """How much a tangent kernel mixes outputs: ‖Θ' − K ⊗ I‖/‖K ⊗ I‖, Θ' = (H ⊗ I) Θ (H ⊗ I), K its mean over outputs.

    Args:
      kernel: Θ [n, d, n, d].

    Returns:
      A number >= 0; 0 for a kernel that acts on samples alone, as a linear tower's.

    Raises:
      ValueError: a kernel of another shape.

    Error: exact.
    Source: derived here.
    """
    kernel = np.asarray(kernel, float)
    if kernel.ndim != 4 or kernel.shape[:2] != kernel.shape[2:]:
        raise ValueError(f"the kernel has shape {kernel.shape}; expected [n, d, n, d]")
    centring, identity = np.eye(len(kernel)) - 1.0 / len(kernel), np.eye(kernel.shape[1])
    centred = np.einsum("ab,bicj,cd->aidj", centring, kernel, centring, optimize=True)
    diagonal = np.einsum("ab,ij->aibj", np.einsum("aibi->ab", centred) / len(identity), identity)
    return float(np.linalg.norm(centred - diagonal) / np.linalg.norm(diagonal))


def mixing_exponent(depth: int) -> float:
    """Exponent of the width with which an MLP's tangent kernel stops mixing its outputs.

    `output_mixing` ∝ width^p with p = −3/2 for one hidden layer, −1/2 for two or more.

    The output layer adds (h·h' + 1) ⊗ I, which mixes nothing and grows with the width w (h: hidden activations of order
    1 each). Layer l below it adds (h_{l−1}·h'_{l−1} + 1) Bᵀ B', B the back-propagated Jacobian of the outputs, whose
    entries have variance 1/w: Bᵀ B' is I times a number of order 1, plus random entries of order w^{−½}. Its factor
    h_{l−1}·h'_{l−1} is of order 1 for the first layer, where h_0 is the input, and of order w for any other. So the
    random part, over the order w of the diagonal part, is w^{−½}/w with one hidden layer and w·w^{−½}/w with more.

    Args:
      depth: number of hidden layers, >= 1.

    Returns:
      p.

    Raises:
      ValueError: a depth below 1.

    Assumes: weights of variance 1/fan-in, equal learning rate for all layers, random start.
    Error: the leading order in 1/width; one layer approaches it from above, since K adds a constant to a term in w.
    Source: derived here.
    """
    require_integer("depth", depth)
    return -1.5 if depth == 1 else -0.5
