"""What moves the gap and what freezes it: exact gradients and velocities of free embeddings under InfoNCE.

Float64 NumPy throughout, from the marginals of the two softmaxes, which are computed here by their own formula.
Rows of x are the gallery, rows of y the queries; P = Q^x + Q^y, S^y_i = Σ_k Q^y(k,i), S^x_k = Σ_i Q^x(k,i).
Velocities are those of the flow ẋ_k = −n ∂L/∂x_k, ẏ_i = −n ∂L/∂y_i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.validation import require_integer, require_number, require_one_of, require_paired


class Softmaxes(NamedTuple):
    """The two softmaxes of a batch and their free marginals.

    over_gallery: Q^x [n, n], columns sum to 1. over_queries: Q^y [n, n], rows sum to 1. Gallery along the rows.
    marginal_x: S^x [n], row sums of Q^x. marginal_y: S^y [n], column sums of Q^y. Both 1: doubly stochastic.
    """

    over_gallery: np.ndarray
    over_queries: np.ndarray
    marginal_x: np.ndarray
    marginal_y: np.ndarray


def softmaxes(x, y, *, temperature: float, similarity: str = "sqeuclidean") -> Softmaxes:
    """Both softmaxes of the logits, with their free marginals.

    Q^y(k,i) = exp(s_ki/τ) / Σ_j exp(s_kj/τ), Q^x(k,i) = exp(s_ki/τ) / Σ_j exp(s_ji/τ), with s_ki = −‖x_k − y_i‖²
    ("sqeuclidean") or the cosine of x_k and y_i ("cosine").

    Args:
      x, y: [n, d]; row i of x pairs with row i of y.
      temperature: τ > 0.
      similarity: "sqeuclidean" or "cosine".

    Returns:
      Softmaxes.

    Raises:
      ValueError: rows that cannot be paired, a temperature <= 0, another similarity.

    Error: exact; differences are squared directly, so a large common offset costs no digits.
    Source: theory.md, section 0.
    """
    x, y = _paired(x, y)
    require_number("temperature", temperature, above=0.0)
    require_one_of("similarity", similarity, ("sqeuclidean", "cosine"))
    scores = _cosines(x, y) if similarity == "cosine" else -np.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=2)
    scores = scores / temperature
    over_queries = np.exp(scores - scores.max(axis=1, keepdims=True))
    over_queries /= over_queries.sum(axis=1, keepdims=True)
    over_gallery = np.exp(scores - scores.max(axis=0, keepdims=True))
    over_gallery /= over_gallery.sum(axis=0, keepdims=True)
    return Softmaxes(over_gallery, over_queries, over_gallery.sum(axis=1), over_queries.sum(axis=0))


def predicted_gradient(x, y, *, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the sqeuclidean loss with respect to every row.

    ∂L/∂y_i = (1/nτ) [ (1 − S^y_i) y_i − 2x_i + Σ_k P(k,i) x_k ],
    ∂L/∂x_k = (1/nτ) [ (1 − S^x_k) x_k − 2y_k + Σ_i P(k,i) y_i ].

    Derivation: ∂L/∂(s_ki/τ) = P(k,i)/2n − δ_ki/n and ∂s_ki/∂y_i = 2 (x_k − y_i). Sum over k: the columns of P sum
    to 1 + S^y_i, its rows to 1 + S^x_k.

    Args:
      x, y: [n, d].
      temperature: τ > 0.

    Returns:
      (∂L/∂x, ∂L/∂y), [n, d] each, in nats per unit of length.

    Raises:
      ValueError: as `softmaxes`.

    Error: exact.
    Source: Chowers et al. 2026, Thm 3.2; constants derived here: theory.md C3.
    """
    x, y = _paired(x, y)
    q = softmaxes(x, y, temperature=temperature)
    pull = q.over_gallery + q.over_queries
    gradient_x = (1 - q.marginal_x)[:, None] * x - 2 * y + pull @ y
    gradient_y = (1 - q.marginal_y)[:, None] * y - 2 * x + pull.T @ x
    return gradient_x / (len(x) * temperature), gradient_y / (len(x) * temperature)


def predicted_slope_along(x, y, direction, *, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradient along a direction in which both modalities are constant: only the marginals are left of it.

    v·∂L/∂y_i = (1/nτ)(1 − S^y_i)(v·g), v·∂L/∂x_k = −(1/nτ)(1 − S^x_k)(v·g).

    So it vanishes for every row exactly when both softmaxes are doubly stochastic (or v·g = 0). The slope with respect
    to v·g itself is the sum over one modality, and Σ_i (1 − S^y_i) = 0: the loss is flat in v·g at any marginals.
    Derivation: put v·x_k = h^x and v·y_i = h^y into `predicted_gradient`.

    Args:
      x, y: [n, d], both constant along `direction`.
      direction: v [d], a unit vector.
      temperature: τ > 0.

    Returns:
      (v·∂L/∂x_k [n], v·∂L/∂y_i [n]), in nats per unit of length.

    Raises:
      ValueError: a modality that varies along the direction, or as `softmaxes`.

    Assumes: sqeuclidean similarity.
    Error: exact.
    Source: Chowers et al. 2026, Thm 3.2; derived here: theory.md C3.
    """
    x, y = _paired(x, y)
    v = _direction(direction, x.shape[1])
    across = _constant("y", y, v) - _constant("x", x, v)
    q = softmaxes(x, y, temperature=temperature)
    scale = across / (len(x) * temperature)
    return -scale * (1 - q.marginal_x), scale * (1 - q.marginal_y)


def predicted_gap_velocity(x, y, *, temperature: float) -> np.ndarray:
    """How fast the gap vector moves under the sqeuclidean flow.

    ġ = (2/nτ) [ Σ_i (S^y_i − 1) y_i − Σ_k (S^x_k − 1) x_k ].

    Derivation: μ̇_y = −Σ_i ∂L/∂y_i, in which Σ_i Σ_k P(k,i) x_k = Σ_k (1 + S^x_k) x_k; and μ̇_x = −μ̇_y, because the
    loss does not change when all rows move together. Zero for doubly stochastic softmaxes.

    Args:
      x, y: [n, d].
      temperature: τ > 0.

    Returns:
      ġ [d], in length per unit of flow time.

    Raises:
      ValueError: as `softmaxes`.

    Error: exact.
    Source: derived here: theory.md C3.
    """
    x, y = _paired(x, y)
    q = softmaxes(x, y, temperature=temperature)
    return 2 / (len(x) * temperature) * ((q.marginal_y - 1) @ y - (q.marginal_x - 1) @ x)


class HeightVelocity(NamedTuple):
    """`predicted_height_velocity`: the law and its two parts, [n] each.

    velocity: ḣ_i, the sum of both parts. marginal: (1/2τ)(1 − S_i) h^other. bracket: 2s_ii − Σ_k P(k,i) s_ki; the
    normalisation part is −bracket·h_i/2τ.
    """

    velocity: np.ndarray
    marginal: np.ndarray
    bracket: np.ndarray


def predicted_height_velocity(x, y, direction, *, temperature: float) -> HeightVelocity:
    """How fast the height h_i = v·y_i of every query moves under the cosine flow on the unit sphere.

    ḣ_i = (1/2τ)(1 − S^y_i) h^x − (1/2τ) [ 2s_ii − Σ_k P(k,i) s_ki ] h_i, x constant along v with value h^x.

    The second part is the normalisation alone: on a well-matched pair its bracket is positive and pulls the height to
    0 (it closes the gap) at a rate that dies with the loss, since P → 2I; on a badly matched one it can be negative.
    Derivation: the tangential velocity is ẏ_i = (1/2τ) Σ_k (2δ_ki − P(k,i)) (x_k − s_ki y_i); take its product with v.
    The law of x_k is this one with x and y exchanged (y must then be constant along v, x need not be).

    Args:
      x: [n, d], unit rows, constant along `direction`.
      y: [n, d], unit rows; their heights may differ.
      direction: v [d], a unit vector.
      temperature: τ > 0, of the cosine.

    Returns:
      HeightVelocity, in units of 1 / flow time.

    Raises:
      ValueError: rows that are not of unit length, x not constant along the direction, or as `softmaxes`.

    Error: exact.
    Source: derived here: theory.md C3.
    """
    x, y = _paired(x, y)
    v = _direction(direction, x.shape[1])
    for name, rows in (("x", x), ("y", y)):
        _require_unit(name, rows)
    height_x = _constant("x", x, v)
    q = softmaxes(x, y, temperature=temperature, similarity="cosine")
    pull, cosines = q.over_gallery + q.over_queries, x @ y.T
    bracket = 2 * np.diagonal(cosines) - np.sum(pull * cosines, axis=0)
    marginal = (1 - q.marginal_y) * height_x / (2 * temperature)
    return HeightVelocity(marginal - bracket * (y @ v) / (2 * temperature), marginal, bracket)


def predicted_balance_rate(x, y, direction, *, temperature: float) -> float:
    """Rate of G² − 2(v_x + v_y), with G = v·g and the variances taken along one fixed direction v.

    d(G² − 2(v_x + v_y))/dt = (4/nτ) [ 2 Σ_i h_ii² − Σ_ki P(k,i) h_ki² ], h_ki = β_i − α_k, for the sqeuclidean flow.

    Derivation, with p_i = v·y_i, q_k = v·x_k, d_ki = p_i − q_k = G + h_ki: ṗ_i = −(1/τ)[2d_ii − Σ_k P d_ki] and
    q̇_k = +(1/τ)[2d_kk − Σ_i P d_ki]. Since Σ P = 2n and Σ h_ii = 0, nĠ = (2/τ) ΣP h, and
    d(Σp² + Σq²)/dt = −(2/τ)[2Σ d_ii² − ΣP d²]. The common mean is conserved, so Σp² + Σq² is n(v_x + v_y + G²/2) plus a
    constant; the terms linear in G cancel against GĠ.

    Args:
      x, y: [n, d].
      direction: v [d], a unit vector, kept while the rows move.
      temperature: τ > 0.

    Returns:
      The rate, in length² per unit of flow time.

    Raises:
      ValueError: a direction that is not a unit vector, or as `softmaxes`.

    Error: exact.
    Source: derived here: theory.md N2.
    """
    x, y = _paired(x, y)
    v = _direction(direction, x.shape[1])
    q = softmaxes(x, y, temperature=temperature)
    alpha, beta = (x - x.mean(axis=0)[None, :]) @ v, (y - y.mean(axis=0)[None, :]) @ v
    squares = (beta[None, :] - alpha[:, None]) ** 2
    paired = 2 * np.trace(squares) - np.sum((q.over_gallery + q.over_queries) * squares)
    return float(4 / (len(x) * temperature) * paired)


def simplex_pairs(num_pairs: int, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Two copies of one regular simplex on parallel caps of the sphere: doubly stochastic by symmetry.

    x_i = √(1 − γ²) u_i − γ e, y_i = √(1 − γ²) u_i + γ e, u_i·u_j = −1/(n − 1), e orthogonal to all u_i.

    Args:
      num_pairs: n >= 2.
      height: γ, half of the gap, in (0, 1).

    Returns:
      (x [n, n + 1], y [n, n + 1]); e is the last coordinate.

    Raises:
      ValueError: fewer than two pairs, or a height outside [0, 1).
    """
    require_integer("num_pairs", num_pairs, least=2)
    require_number("height", height, above=0.0, most=1.0 - 1e-12)
    corners = np.sqrt(num_pairs / (num_pairs - 1)) * (np.eye(num_pairs) - 1 / num_pairs)
    rows = np.sqrt(1 - height**2) * corners
    cap = np.full((num_pairs, 1), height)
    return np.hstack([rows, -cap]), np.hstack([rows, cap])


def predicted_simplex_height(times, *, num_pairs: int, height: float, temperature: float) -> np.ndarray:
    """The height γ(t) = G/2 of `simplex_pairs` under the cosine flow on the sphere.

    γ̇/γ = −z (1 − e^{−L}), z = a (1 − γ²), a = n/((n − 1)τ), L = log(1 + (n − 1) e^{−z}): the rate dies with the loss.
    In closed form t = F(z(t)) − F(z(0)), F(z) = (1/2a) [ ln(z/(a − z)) + (Ei(z) + e^a E₁(a − z))/(n − 1) ].

    Derivation: all marginals are 1 by symmetry, so only the bracket of `predicted_height_velocity` is left. With q the
    weight of the partner, ΣP s = 2[q s_ii + (1 − q) s_off], hence bracket = 2(1 − q)(s_ii − s_off) = 2(1 − q) τ z, and
    q = e^{−L}. Then ż = 2(a − z) z (n − 1)/(e^z + n − 1); separate, and split 1/(z(a − z)) into partial fractions.

    Args:
      times: [T], >= 0, in units of the flow.
      num_pairs: n >= 2.
      height: γ at t = 0, in (0, 1).
      temperature: τ >= 1/600 (beyond, e^z leaves float64).

    Returns:
      γ [T].

    Raises:
      ValueError: a negative time, a height outside (0, 1), a temperature out of range.

    Error: exact; the inversion of F is good to 1e-12 relative.
    Source: derived here: theory.md C3 and P8.
    """
    from scipy.optimize import brentq
    from scipy.special import exp1, expi

    require_integer("num_pairs", num_pairs, least=2)
    require_number("height", height, above=0.0, most=1.0 - 1e-12)
    require_number("temperature", temperature, least=1 / 600)
    times = np.asarray(times, float)
    if times.ndim != 1 or not np.all(times >= 0):
        raise ValueError(f"times are {times}; expected a list of numbers >= 0")
    a = num_pairs / ((num_pairs - 1) * temperature)

    def clock(log_height):
        """F as a function of ln γ: a − z = a γ² keeps its digits as γ → 0."""
        z, rest = -a * np.expm1(2 * log_height), a * np.exp(2 * log_height)
        # e^a E₁(a − z) = e^z · e^w E₁(w) with w = a − z: neither factor overflows.
        tail = np.exp(z) * (np.exp(rest) * exp1(rest))
        return (np.log(z / rest) + (expi(z) + tail) / (num_pairs - 1)) / (2 * a)

    start = np.log(height)

    def height_at(time):
        if time == 0:
            return height
        low = start - 1.0
        while clock(low) - clock(start) < time:
            low = start - 2 * (start - low)
        return float(np.exp(brentq(lambda w: clock(w) - clock(start) - time, low, start, xtol=1e-14, rtol=1e-14)))

    return np.array([height_at(time) for time in times])


class ClosingRate(NamedTuple):
    """entropy: H, mean entropy of the 2n softmaxes. loss: L. Both in nats."""

    entropy: float
    loss: float

    @property
    def rate(self) -> float:
        """H − L = −d ln(v·g)/dt."""
        return self.entropy - self.loss


def predicted_closing_rate(x, y, direction, *, temperature: float) -> ClosingRate:
    """How fast the gap along a direction closes under the cosine flow on the sphere, both modalities constant along it.

    −d ln(v·g)/dt = H − L = ∂L/∂ln τ, H the mean entropy of the 2n softmaxes: neither the heights nor τ are left in it.

    Derivation: average `predicted_height_velocity` over the queries, and with x and y exchanged over the gallery. The
    marginal parts vanish, as ΣS = n. Both brackets have the mean B = (1/n) [2Σ s_ii − ΣP s], so the rate is B/2τ. For
    each softmax q of scores s/τ, Σ q s/τ = ln Σ e^{s/τ} − H(q), hence B/2τ = H − L; and ∂L/∂(1/τ) = −B/2.
    It dies with the loss. At weight e^{−ℓ} of the partner, a softmax has its largest entropy when the rest is even, so
    it adds at most f(ℓ) = (1 − e^{−ℓ}) ln((n − 1)/(e^ℓ − 1)) to H − L. With w = 1 − e^{−ℓ},
    f″ = −(1 − w) [ln((n − 1)(1 − w)/w) + 1/w] is negative for ℓ <= ln n: if every partner has a weight >= 1/n, then
    H − L <= f(L) ~ L ln((n − 1)/L). `simplex_pairs` attain it: nothing closes faster at their loss.

    Args:
      x, y: [n, d], unit rows, both constant along `direction`.
      direction: v [d], a unit vector.
      temperature: τ > 0, of the cosine.

    Returns:
      ClosingRate; its `rate` is per unit of flow time, and negative where pairs are matched so badly that the gap opens.

    Raises:
      ValueError: rows that are not of unit length or vary along the direction, or as `softmaxes`.

    Error: exact; rounding is of the order 1e-16/L, relative.
    Source: derived here, from theory.md C3.
    """
    from scipy.special import entr

    x, y = _paired(x, y)
    v = _direction(direction, x.shape[1])
    for name, rows in (("x", x), ("y", y)):
        _require_unit(name, rows)
        _constant(name, rows, v)
    q = softmaxes(x, y, temperature=temperature, similarity="cosine")
    both = np.stack([q.over_gallery, q.over_queries])
    partners = np.diagonal(both, axis1=1, axis2=2)
    return ClosingRate(float(entr(both).sum() / (2 * len(x))), float(-np.log(partners).mean()))


def _paired(x, y) -> tuple[np.ndarray, np.ndarray]:
    require_paired(x, y)
    return np.asarray(x, float), np.asarray(y, float)


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x @ y.T / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)[None, :])


def _direction(direction, dimensions: int) -> np.ndarray:
    v = np.asarray(direction, float)
    if v.shape != (dimensions,) or not abs(np.linalg.norm(v) - 1) < 1e-9:
        raise ValueError(f"direction has shape {v.shape}; expected a unit vector of {dimensions} dimensions")
    return v


def _require_unit(name: str, rows: np.ndarray):
    worst = np.max(np.abs(np.linalg.norm(rows, axis=1) - 1))
    if worst > 1e-9:
        raise ValueError(f"{name} has rows whose length is off 1 by {worst:.2g}; normalise them first")


def _constant(name: str, rows: np.ndarray, v: np.ndarray) -> float:
    """The common height of all rows along v."""
    heights = rows @ v
    spread = np.ptp(heights)
    if spread > 1e-9 * max(1.0, np.max(np.abs(rows))):
        raise ValueError(f"{name} varies along the direction, over {spread:.2g}; the law needs it constant there")
    return float(heights.mean())
