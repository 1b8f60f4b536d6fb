"""Wrong pairs: the least loss that is left, the one number of the embeddings that it fixes, and the gap that it does not.

A pair is right with probability 1 − p; otherwise its query belongs to one of the n − 1 other gallery rows, all equally
likely. The pairing W then has (1 − p)/n on its diagonal and p/(n(n − 1)) elsewhere.
"""

from __future__ import annotations

import numpy as np

from simulator.validation import require_integer, require_number


def pairing_with_wrong_pairs(num_pairs: int, share: float) -> np.ndarray:
    """The pairing W [n, n] of a population in which a share of the pairs is wrong.

    Args:
      num_pairs: n >= 2.
      share: p, strictly between 0 and 1 − 1/n (from there on a wrong partner is as likely as the right one).

    Returns:
      W with sum 1.

    Raises:
      ValueError: n < 2 or a share outside its range.
    """
    _require(num_pairs, share)
    wrong = share / (num_pairs * (num_pairs - 1))
    return np.full((num_pairs, num_pairs), wrong) + np.eye(num_pairs) * ((1 - share) / num_pairs - wrong)


def predicted_least_loss(num_pairs: int, share: float) -> float:
    """The least InfoNCE that any embeddings can reach with this share of wrong pairs.

    min L = H = −(1 − p) ln(1 − p) − p ln( p/(n − 1) ).

    Args:
      num_pairs: n >= 2.
      share: p, as in `pairing_with_wrong_pairs`.

    Returns:
      H in nats.

    Raises:
      ValueError: as `pairing_with_wrong_pairs`.

    Assumes: any embeddings, similarity and temperature; reached when (a) of `predicted_logit_difference` is.
    Error: exact.
    Source: derived here (each direction is a cross-entropy with the rows of nW, so never below their entropy).
    """
    _require(num_pairs, share)
    return float(-(1 - share) * np.log1p(-share) - share * np.log(share / (num_pairs - 1)))


def predicted_logit_difference(num_pairs: int, share: float) -> float:
    """How far the right logit stands above every wrong one where the loss is least.

    (a) s_ii/τ − s_ki/τ = u* = ln( (n − 1)(1 − p)/p ) for all k ≠ i.

    L = H if and only if Q^y and Q^x both equal nW. Then s_ki/τ = ln W_ki + c_k (from Q^y) = ln W_ki + d_i (from Q^x), so
    c_k = d_i is one constant: the logits are u* on the diagonal over a constant. Nothing else of the embeddings is fixed:
    not the constant, and with it not the gap.

    Args:
      num_pairs: n >= 2.
      share: p, as in `pairing_with_wrong_pairs`.

    Returns:
      u*, without a unit (a difference of logits).

    Raises:
      ValueError: as `pairing_with_wrong_pairs`.

    Assumes: the least loss is reached: on the sphere τ u* <= n/(n − 1), see `predicted_least_share`.
    Error: exact.
    Source: derived here.
    """
    _require(num_pairs, share)
    return float(np.log((num_pairs - 1) * (1 - share) / share))


def predicted_least_share(num_pairs: int, temperature: float) -> float:
    """The share of wrong pairs from which unit embeddings can reach the least loss, so that a gap costs nothing.

    p₀ = (n − 1)/(n − 1 + exp( n/((n − 1)τ) )): there u* τ = n/(n − 1), the difference of cosines of a regular simplex,
    which no n unit pairs exceed. Below p₀ more spread lowers the loss further, and a gap is paid for in spread.

    Args:
      num_pairs: n >= 2.
      temperature: τ > 0.

    Returns:
      p₀, strictly between 0 and 1 − 1/n.

    Raises:
      ValueError: n < 2 or τ <= 0.

    Assumes: cosine similarity, at least n dimensions: n − 1 leave the gap no room, and the least loss is not reached.
    Error: exact.
    Source: derived here.
    """
    require_integer("num_pairs", num_pairs, least=2)
    require_number("temperature", temperature, above=0.0)
    others = num_pairs - 1
    return float(others / (others + np.exp(num_pairs / (others * temperature))))


def predicted_parallel_gap(num_pairs: int, share: float, temperature: float) -> float:
    """The gap of least loss among two parallel copies of one simplex, apart by G = 2γ.

    Cosines differ by (1 − γ²) n/(n − 1), which (a) sets to τ u*:  G² = 4 (1 − τ u* (n − 1)/n), or 0 below p₀.

    Args:
      num_pairs: n >= 2.
      share: p, as in `pairing_with_wrong_pairs`.
      temperature: τ > 0.

    Returns:
      G, between 0 and 2.

    Raises:
      ValueError: as `pairing_with_wrong_pairs`, or τ <= 0.

    Assumes: x_i = √(1 − γ²) e_i − γ v, y_i = √(1 − γ²) e_i + γ v with e_i the corners of a regular simplex and v ⊥ e_i (the
      parallel modalities of Yaras et al. 2024). Both offsets on the same side of v would reach the same loss without a gap.
    Error: exact.
    Source: derived here; the family is Yaras et al. 2024, Sec. 3.
    """
    require_number("temperature", temperature, above=0.0)
    spread = temperature * predicted_logit_difference(num_pairs, share) * (num_pairs - 1) / num_pairs
    return float(2 * np.sqrt(max(1 - spread, 0.0)))


def _require(num_pairs: int, share: float) -> None:
    require_integer("num_pairs", num_pairs, least=2)
    require_number("share", share, above=0.0)
    if share >= 1 - 1 / num_pairs:
        raise ValueError(
            f"share is {share}; with {num_pairs} pairs it must be below 1 − 1/n = {1 - 1 / num_pairs:.4g}, where the right "
            "partner is still the most likely one"
        )
