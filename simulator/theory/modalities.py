"""What gradient flow does to tight clusters of three and more modalities: their linear modes, and the critical gap.

Modality a has its rows about a mean m_a, with deviations u_a of size ε that sum to 0; g_ab = m_b − m_a. The loss is the sum of
InfoNCE on squared distances over chosen pairs {a, b}, each the mean of its two directions, and time runs in units of the flow
ẋ = −n ∂L/∂x. Each pair adds what it does to two modalities (`simulator.theory.flows`), so that to first order
    u̇_a = (2/τ) Σ_b [u_b − (1/τ) g_ab (g_ab·u_a)],   the sum over the partners b of a.
In the span of the gaps this is (2/τ)(A⊗I − B/τ), with A the adjacency matrix of the graph of pairs and B block-diagonal,
B_a = Σ_b g_ab g_abᵀ. Across the span the rates are (2/τ) times the eigenvalues of A.

**A regular simplex of side G, all pairs.** With Σ m_a = 0 and m̂_a the unit vector of m_a, B_a = G²[½I + ½(M − 1) m̂_a m̂_aᵀ], since
Σ_b m_b m_bᵀ = ½G² I and ‖m_a‖² = G²(M − 1)/2M. For a fixed vector c of the span the modes u_a = p c + q (m̂_a·c) m̂_a are closed under
A and B, as Σ_a m̂_a m̂_aᵀ = M/(M − 1) I. With r = G²/τ a mode of rate 0 has
    (M − 1) p + q M/(M − 1) = ½ r p,   −q = ½ r [M q + (M − 1) p],
and eliminating p and q leaves ½M r² − (M² − 2M − 1) r − 2(M − 1) = 0, whose positive root is `critical_ratio`. All other modes
decay at any side: what is orthogonal to this family, which the symmetric matrix keeps, has Σ_a u_a = 0, so A = −1 there, and B ⪰ 0.

**A modality whose gaps do not span.** If the gaps of a to its partners leave a direction e of the span, then along e the mode of a
alone has the diagonal element 0, and the element (2/τ) with a partner b. A symmetric matrix with the minor
(0, 1; 1, −s) has a positive eigenvalue, whatever s: some variance along the gaps grows, however wide they are. So it is for
the leaves of a star.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number, require_rows


class Modes(NamedTuple):
    """Linear modes of tight clusters in the span of their gaps.

    rates: growth rates in ascending order, [M·D], D the dimension of the span; < 0 decays.
    modes: deviation of each modality, [M·D, M, d], with norm 1 over both.
    """

    rates: np.ndarray
    modes: np.ndarray


def critical_ratio(num_modalities: int) -> float:
    """Critical G²/τ beyond which all variance along the gaps decays, for M modalities on a regular simplex of side G, all pairs trained.

    r = [q + √(q² + 4M(M − 1))]/M, q = M² − 2M − 1: 1, 2.4305, 4.2122, 6.1226 for M = 2 to 5.

    Args:
      num_modalities: M >= 2.

    Returns:
      G²/τ.

    Raises:
      ValueError: M < 2.

    Assumes: squared distances; clusters with Gε/τ ≪ 1 and ε²/τ ≪ 1; free rows.
    Error: exact for the linear modes.
    Source: derived here: module docstring. For M = 2 it is N1's G² = τ.
    """
    require_integer("num_modalities", num_modalities, least=2)
    m = num_modalities
    q = m**2 - 2 * m - 1
    return (q + (q**2 + 4 * m * (m - 1)) ** 0.5) / m


def mode_rates(means, temperature: float, between: Sequence[tuple[int, int]] | None = None) -> Modes:
    """Rates and modes of tight clusters along their gaps, under InfoNCE on squared distances.

    Eigenvalues and eigenvectors of (2/τ)(A⊗I − B/τ) in the span of the gaps: module docstring.

    Args:
      means: m_a, [M, d], not all equal.
      temperature: τ > 0.
      between: pairs (a, b) of modalities whose losses are added; None for all.

    Returns:
      Modes.

    Raises:
      ValueError: fewer than two means, means without a gap, a pair that is none, or a temperature <= 0.

    Assumes: clusters with Gε/τ ≪ 1 and ε²/τ ≪ 1; free rows.
    Error: O(Gε/τ) of the fastest rate.
    Source: derived here: module docstring.
    """
    require_rows("means", means)
    require_number("temperature", temperature, above=0.0)
    means = np.asarray(means, float)
    count = len(means)
    pairs = list(itertools.combinations(range(count), 2)) if between is None else [tuple(sorted(p)) for p in between]
    if len(set(pairs)) < len(pairs) or not pairs or any(not 0 <= a < b < count for a, b in pairs):
        raise ValueError(
            f"between is {between}; it must hold different pairs of numbers below {count}, one for each mean"
        )
    _, sizes, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    axes = axes[sizes > 1e-12 * max(sizes.max(), np.finfo(float).tiny)]
    if not len(axes):
        raise ValueError("the means are equal: there is no gap")
    width = len(axes)
    operator = np.zeros((count, width, count, width))
    for a, b in pairs:
        gap = axes @ (means[b] - means[a])
        for own, partner in ((a, b), (b, a)):
            operator[own, :, partner] += np.eye(width)
            operator[own, :, own] -= np.outer(gap, gap) / temperature
    rates, vectors = np.linalg.eigh(2 / temperature * operator.reshape(count * width, -1))
    return Modes(rates, vectors.T.reshape(-1, count, width) @ axes)
