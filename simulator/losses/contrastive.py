"""Contrastive losses. This is the only place that divides a similarity by the temperature.

Row k of `x` is a gallery embedding, row i of `y` a query embedding; every matrix below has shape
[n_x, n_y] with the gallery along rows.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid
from jax.scipy.special import logsumexp

from simulator.losses.partition import log_partition, ring_partition
from simulator.numerics.scaling import exponents, times_power, widened
from simulator.validation import (
    is_traced,
    require_integer,
    require_number,
    require_one_of,
    require_paired,
    require_same_width,
)

Similarity = Literal["cosine", "dot", "sqeuclidean"]
Rows = jax.Array | np.ndarray
SIMILARITIES = get_args(Similarity)


def normalize_rows(rows: Rows) -> jax.Array:
    """Rows scaled to unit length in float32 or wider, [n, d]; a zero row stays zero, with zero gradient."""
    rows = widened(rows)
    # The power of two changes no digit of what follows, so it needs no derivative.
    rows = times_power(rows, -exponents(rows, axis=-1))
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    is_zero = squares == 0
    # One division per row: per entry, forward and backward, they cost more than the rest of a small step's loss.
    return rows * jnp.where(is_zero, 0.0, 1.0 / jnp.sqrt(jnp.where(is_zero, 1.0, squares)))


def similarity_matrix(x: Rows, y: Rows, similarity: Similarity = "cosine") -> jax.Array:
    """Similarity of every gallery row to every query, [n_x, n_y], in float32 or wider.

    "cosine": ⟨x_k, y_i⟩/(‖x_k‖‖y_i‖) (0 for a zero row); "dot": ⟨x_k, y_i⟩; "sqeuclidean": −‖x_k − y_i‖².
    """
    require_one_of("similarity", similarity, SIMILARITIES)
    x, y = _comparable(x, y, similarity)
    products = x @ y.T
    if similarity != "sqeuclidean":
        return products
    return 2.0 * products - jnp.sum(x * x, axis=1)[:, None] - jnp.sum(y * y, axis=1)[None, :]


def _comparable(x, y, similarity: Similarity, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Rows with the same similarities, of one type, and such that no digit is lost on the way to a similarity that has
    them: of unit length for "cosine"; of about equal size for "dot"; about a common centre for "sqeuclidean".

    axis_name: of the mesh axis along which the rows are spread, if they are."""
    x, y = widened(x, "x"), widened(y, "y")
    if similarity == "cosine":
        return _same_type(normalize_rows(x), normalize_rows(y))
    x, y = _same_type(x, y)
    if similarity == "dot":
        shift = (exponents(x) - exponents(y)) // 2
        if axis_name is not None:
            shift = jax.lax.pmax(shift, axis_name)
        return times_power(x, -shift), times_power(y, shift)
    centre = 0.5 * jax.lax.stop_gradient(jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True))
    if axis_name is not None:
        centre = jax.lax.pmean(centre, axis_name)
    return x - centre, y - centre


def logits(x: Rows, y: Rows, *, temperature, similarity: Similarity = "cosine") -> jax.Array:
    """similarity/τ, [n_x, n_y]: the argument of both softmaxes."""
    return similarity_matrix(x, y, similarity) / temperature


def info_nce(
    x: Rows,
    y: Rows,
    *,
    temperature,
    similarity: Similarity = "cosine",
    pairing: Rows | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """The symmetric contrastive loss of CLIP: the mean of the two directions.

    L = −½ Σ_ki W_ki [log Q^y(k,i) + log Q^x(k,i)], with Q^y the softmax of the logits s_ki/τ over the
    queries i, Q^x the softmax over the gallery k, and W = pairing/Σ pairing (I/n when pairing is None).

    Args:
      x: gallery embeddings [n_x, d].
      y: query embeddings [n_y, d]; n_y = n_x unless a pairing is given.
      temperature: τ > 0, a number or a traced scalar.
      similarity: "cosine", "dot" or "sqeuclidean" (−‖x−y‖²).
      pairing: non-negative weights [n_x, n_y], not all zero; None pairs row i with row i.
      block_size: gallery rows per block; the value and the gradient are those of the dense loss, with
        memory linear instead of quadratic in n. None computes the dense matrix.

    Returns:
      The loss in nats, a scalar.

    Raises:
      ValueError: wrong shapes, non-finite rows, a temperature <= 0, a negative or all-zero pairing.

    Example:
      >>> rows = jnp.eye(4)
      >>> round(float(sim.info_nce(rows, rows, temperature=0.5)), 4)
      0.3408

    Source: Radford et al. 2021 (CLIP); Eq. 6 of Chowers et al. 2026 is twice this value.
    """
    require_number("temperature", temperature, above=0.0)
    require_one_of("similarity", similarity, SIMILARITIES)
    if pairing is None:
        require_paired(x, y)
        weights = None
    else:
        require_same_width(x, y, ("x", "y"))
        weights = _weights(pairing, (len(x), len(y)))
    if block_size is not None:
        require_integer("block_size", block_size)
    a, b = _factors(x, y, temperature, similarity)
    if weights is None:
        uniform = jnp.full((len(a),), 1.0 / len(a), a.dtype)
        return log_partition(a, b, uniform, uniform, True, block_size) - jnp.mean(jnp.sum(a * b, axis=1))
    weights = weights.astype(a.dtype)
    partition = log_partition(a, b, weights.sum(1), weights.sum(0), False, block_size)
    return partition - jnp.sum(a * (weights @ b))


def mean_log_partition(a: Rows, b: Rows, *, row_weights=None, column_weights=None, block_size: int | None = None):
    """What a contrastive loss of one's own has beside its pairs: the log-partition sums of both directions, weighted.

    F = ½ Σ_k w_k log Σ_i e^{S_ki} + ½ Σ_i v_i log Σ_k e^{S_ki}, S = a bᵀ. `info_nce` is F − mean_k S_kk. One matrix of
    exponentials serves both directions and the gradient, where two `logsumexp` take four.

    Args:
      a: gallery rows [n_x, d], the temperature in them (x/τ).
      b: query rows [n_y, d].
      row_weights, column_weights: w [n_x] and v [n_y]; None for 1/n_x and 1/n_y.
      block_size: gallery rows per block, None for the dense matrix; for memory linear in n, as in `info_nce`.

    Returns:
      F in nats, a scalar.

    Raises:
      ValueError: wrong shapes, non-finite rows or weights.

    Example:
      >>> x, y = jnp.eye(3), jnp.ones((3, 3))
      >>> round(float(sim.mean_log_partition(x, y) - jnp.log(3.0)), 6)
      1.0
    """
    require_same_width(a, b, ("a", "b"))
    if block_size is not None:
        require_integer("block_size", block_size)
    a, b = _same_type(widened(a, "a"), widened(b, "b"))
    weights = []
    for name, given, rows in (("row_weights", row_weights, a), ("column_weights", column_weights, b)):
        values = jnp.full((len(rows),), 1.0 / len(rows)) if given is None else given
        if np.shape(values) != (len(rows),) or not (is_traced(values) or np.isfinite(values).all()):
            raise ValueError(f"{name} has shape {np.shape(values)}; expected {len(rows)} finite numbers")
        weights.append(jnp.asarray(values, a.dtype))
    paired = len(a) == len(b) and row_weights is None and column_weights is None
    return log_partition(a, b, *weights, paired, block_size)


def sharded_info_nce(
    x: Rows, y: Rows, *, temperature, axis_name: str, similarity: Similarity = "cosine",
    block_size: int | None = None,
) -> jax.Array:  # fmt: skip
    """`info_nce` of a batch whose rows are spread along a mesh axis, for use inside `jax.shard_map(check_vma=False)`.

    Args:
      x, y: the local rows [n/P, d] of gallery and queries; row i pairs with row i.
      temperature, similarity: as in `info_nce`.
      axis_name: mesh axis of P devices.
      block_size: local gallery rows per block of logits; None for all n/P.

    Returns:
      The loss of the whole batch in nats, the same on every device. Its gradient with respect to local rows is that of
      the whole batch; `psum` what it gives for parameters that all devices share. Memory per device falls as 1/P, or as
      1/P² for the logits.

    Raises:
      ValueError: as `info_nce` does.

    Source: derived here; see `simulator.losses.partition.ring_partition`.
    """
    require_number("temperature", temperature, above=0.0)
    require_one_of("similarity", similarity, SIMILARITIES)
    require_paired(x, y)
    if block_size is not None:
        require_integer("block_size", block_size)
    a, b = _factors(x, y, temperature, similarity, axis_name)
    # Every device adds its own pairs, so that a psum of gradients counts each pair once: the sum itself is psum'd
    # without a gradient through it.
    paired = jnp.sum(a * b) / (len(a) * jax.lax.axis_size(axis_name))
    others = jax.lax.psum(jax.lax.stop_gradient(paired), axis_name) - jax.lax.stop_gradient(paired)
    return ring_partition(a, b, axis_name=axis_name, block_size=block_size) - paired - others


def _factors(x, y, temperature, similarity: Similarity, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """a [n_x, p] and b [n_y, p] whose products are the logits: a bᵀ = similarity/τ."""
    x, y = _comparable(x, y, similarity, axis_name)
    if similarity != "sqeuclidean":
        return _same_type(x / temperature, y)
    # −‖x − y‖² = 2 x·y − ‖x‖² − ‖y‖² as one product.
    one = jnp.ones((1, 1), x.dtype)
    squares_x, squares_y = (jnp.sum(r * r, axis=1, keepdims=True) for r in (x, y))
    a = jnp.concatenate([2.0 * x, -squares_x, jnp.broadcast_to(one, squares_x.shape)], axis=1) / temperature
    return _same_type(a, jnp.concatenate([y, jnp.broadcast_to(one, squares_y.shape), -squares_y], axis=1))


def _same_type(a, b) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def _weights(pairing, shape: tuple[int, int]) -> jax.Array:
    if jnp.shape(pairing) != shape:
        raise ValueError(f"pairing has shape {jnp.shape(pairing)}; expected {shape}: gallery rows by queries")
    if not is_traced(pairing):
        given = np.asarray(pairing, np.float64)
        if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
            raise ValueError(
                "pairing has a negative, NaN, infinite or no positive entry; its weights must be >= 0, not all zero"
            )
        pairing = given / given.max()  # a sum of very large ones would be infinite
    pairing = jnp.asarray(pairing, dtype=jnp.result_type(float))
    return pairing / pairing.sum()


def sigmoid_loss(x: Rows, y: Rows, *, temperature, bias, similarity: Similarity = "cosine") -> jax.Array:
    """The pairwise sigmoid loss of SigLIP.

    L = −(1/n) Σ_ki log σ(z_ki (s_ki/τ + b)), z_ki = +1 for k = i and −1 otherwise.

    Args:
      x: gallery embeddings [n, d].
      y: query embeddings [n, d]; row i pairs with row i of `x`.
      temperature: τ > 0.
      bias: b, any finite scalar (SigLIP starts at −10).
      similarity: "cosine", "dot" or "sqeuclidean".

    Returns:
      The loss in nats, a scalar.

    Raises:
      ValueError: rows that cannot be paired, non-finite rows, a temperature <= 0.

    Example:
      >>> rows = jnp.eye(4)
      >>> round(float(sim.sigmoid_loss(rows, rows, temperature=0.1, bias=-5.0)), 4)
      0.0269

    Source: Zhai et al. 2023 (SigLIP), Eq. 1.
    """
    require_number("temperature", temperature, above=0.0)
    require_number("bias", bias)
    require_paired(x, y)
    scores = logits(x, y, temperature=temperature, similarity=similarity) + bias
    signs = 2.0 * jnp.eye(len(scores), dtype=scores.dtype) - 1.0
    return -jnp.sum(log_sigmoid(signs * scores)) / len(scores)


def spectral_loss(x: Rows, y: Rows) -> jax.Array:
    """The spectral contrastive loss of pairs.

    L = −(2/n) Σ_i ⟨x_i, y_i⟩ + (1/n²) Σ_ki ⟨x_k, y_i⟩² = ‖XYᵀ − nI‖²/n² − n.

    Args:
      x: gallery embeddings [n, d], not necessarily of unit length.
      y: query embeddings [n, d]; row i pairs with row i of `x`.

    Returns:
      The loss, a scalar >= −n; −n where XYᵀ = nI, which needs d >= n.

    Raises:
      ValueError: rows that cannot be paired, non-finite rows.

    Example:
      >>> rows = 2.0 * jnp.eye(4)
      >>> round(float(sim.spectral_loss(rows, rows)), 4)
      -4.0

    Source: HaoChen et al. 2021, the spectral contrastive loss, for the empirical distribution of n pairs.
    """
    require_paired(x, y)
    x, y = _same_type(widened(x, "x"), widened(y, "y"))
    products = x @ y.T
    return jnp.mean(products**2) - 2.0 * jnp.mean(jnp.diagonal(products))


def labeled_info_nce(
    x: Rows, y: Rows, labels: Rows, *, temperature, same_label: Literal["positive", "ignored"] = "positive",
    similarity: Similarity = "cosine",
) -> jax.Array:  # fmt: skip
    """InfoNCE of pairs of which several belong together: captions of one image, or duplicates.

    "positive": L = −½ Σ_ki W_ki [log Q^y(k,i) + log Q^x(k,i)] as in `info_nce`, with W_ki = 1/(n n_i) where k and i have one
    label, which n_i pairs have, and 0 elsewhere. "ignored": `info_nce` of the n pairs, with the others of one label left
    out of both softmaxes: they are neither positives nor negatives.

    Args:
      x: gallery embeddings [n, d].
      y: query embeddings [n, d]; row i pairs with row i of `x`.
      labels: of the pairs [n], whole numbers; one < 0 is like no other.
      temperature: τ > 0.
      same_label: what another pair of the same label is.
      similarity: "cosine", "dot" or "sqeuclidean".

    Returns:
      The loss in nats, a scalar.

    Raises:
      ValueError: rows that cannot be paired, labels of another shape, a temperature <= 0.

    Example:
      >>> rows = jnp.eye(4)
      >>> for labels in ([0, 1, 2, 3], [0, 0, 1, 2]):
      ...     round(float(sim.labeled_info_nce(rows, rows, jnp.array(labels), temperature=0.5, same_label="ignored")), 3)
      0.341
      0.29

    Source: Yang et al. 2022 (UniCL), for "positive".
    """
    require_number("temperature", temperature, above=0.0)
    require_one_of("similarity", similarity, SIMILARITIES)
    require_one_of("same_label", same_label, ("positive", "ignored"))
    require_paired(x, y)
    labels = jnp.asarray(labels)
    if labels.shape != (len(x),) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; expected one whole number for each of the {len(x)} pairs"
        )
    own = jnp.eye(len(x), dtype=bool)
    same = own | ((labels[:, None] == labels[None, :]) & (labels >= 0)[None, :])
    if same_label == "positive":
        pairing = same / jnp.sum(same, axis=0, keepdims=True)
        return info_nce(x, y, temperature=temperature, similarity=similarity, pairing=pairing)
    scores = jnp.where(same & ~own, -jnp.inf, logits(x, y, temperature=temperature, similarity=similarity))
    partition = 0.5 * (logsumexp(scores, axis=0) + logsumexp(scores, axis=1))
    return jnp.mean(partition - jnp.diagonal(scores))


def paired_info_nce(x: Rows, y: Rows, positives: Rows, *, temperature, similarity: Similarity = "cosine") -> jax.Array:
    """InfoNCE with the positives of every row given by a matrix of weights: captions that fit several images, or moments of a
    film, each of which fits its neighbours.

    L = −½ [1/n_x Σ_ki (P_ki/Σ_j P_kj) log Q^y(k,i) + 1/n_y Σ_ki (P_ki/Σ_j P_ji) log Q^x(k,i)], P = positives and Q as in
    `info_nce`: every row counts once, and its positives in proportion to their weights. This is `info_nce` where P = I, `labeled_info_nce` where
    P_ki = 1 for equal labels and 0 elsewhere, and `info_nce(pairing=P)`, where every pair counts by its weight, if
    all rows of P have the same sum and all columns have the same sum.

    Args:
      x: gallery embeddings [n_x, d].
      y: query embeddings [n_y, d].
      positives: P [n_x, n_y], truth values or weights >= 0; at least one > 0 in every row and every column.
      temperature: τ > 0.
      similarity: "cosine", "dot" or "sqeuclidean".

    Returns:
      The loss in nats, a scalar; NaN where a traced P has a row or a column without a positive.

    Raises:
      ValueError: rows of different widths, positives of another shape, negative or not finite, a row or a column without
        any, a temperature <= 0.

    Example:
      >>> rows, near = jnp.eye(4), jnp.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])
      >>> round(float(sim.paired_info_nce(rows, rows, near, temperature=0.5)), 3)
      1.507

    Source: Yang et al. 2022 (UniCL), with weights in place of equal labels.
    """
    require_number("temperature", temperature, above=0.0)
    require_one_of("similarity", similarity, SIMILARITIES)
    require_same_width(x, y, ("x", "y"))
    shares = _shares(positives, (len(x), len(y)))
    a, b = _factors(x, y, temperature, similarity)
    rows, columns = (jnp.full((len(side),), 1.0 / len(side), a.dtype) for side in (a, b))
    return log_partition(a, b, rows, columns, False, None) - jnp.sum(a * (jnp.asarray(shares, a.dtype) @ b))


def _shares(positives, shape: tuple[int, int]):
    """Mean of the rows' and the columns' shares: P_ki/(2 n_x Σ_j P_kj) + P_ki/(2 n_y Σ_j P_ji)."""
    if jnp.shape(positives) != shape:
        raise ValueError(f"positives have shape {jnp.shape(positives)}; expected {shape}: gallery rows by queries")
    if is_traced(positives):
        weights = jnp.asarray(positives, jnp.result_type(float))
    else:
        weights = np.asarray(positives, np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("positives have a negative, NaN or infinite entry; weights are >= 0")
        for axis, name in ((1, "row"), (0, "column")):
            if (alone := np.flatnonzero(~weights.any(axis=axis))).size:
                raise ValueError(
                    f"positives have no positive in {name} {alone[0]}; every row and column needs one: give it its own pair, "
                    "or leave it out"
                )
    parts = []
    for axis in (0, 1):
        part = weights / weights.max(axis=axis, keepdims=True)  # a sum of very large ones would be infinite
        parts.append(part / part.sum(axis=axis, keepdims=True) / shape[1 - axis])
    return 0.5 * (parts[0] + parts[1])
