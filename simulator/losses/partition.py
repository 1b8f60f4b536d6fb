"""Both log-partition sums of a contrastive loss, and their gradient, from one pass over the logits.

For logits S = a bᵀ [n_x, n_y] the symmetric loss needs
    F = ½ Σ_k w_k log Σ_i e^{S_ki} + ½ Σ_i v_i log Σ_k e^{S_ki},
    ∂F/∂a = P b,   ∂F/∂b = Pᵀ a,   P_ki = ½ e^{S_ki} (w_k/R_k + v_i/C_i),
with R and C the row and column sums of e^S. Differentiating F as written costs four passes of exp over the matrix
and a product Pᵀa in an order that CPUs multiply five times slower; here one matrix of exponentials serves the rows, the
columns and the gradient (Milakov & Gimelshein 2018 shift sums the same way, one direction at a time).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

ROWS_AT_ONCE = 256  # of exponentials, so that a block stays in a core's cache between its passes

_barrier = jax.lax.optimization_barrier


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def log_partition(a, b, row_weights, column_weights, paired: bool, block_size: int | None):
    """F of the module's docstring, a scalar.

    Args:
      a: [n_x, p], b: [n_y, p]; the temperature is already in them.
      row_weights: w [n_x]; column_weights: v [n_y].
      paired: n_x = n_y and S_kk is about the largest logit of its row: saves the search for row maxima. Only speed
        depends on it.
      block_size: rows of `a` per block, for memory linear in n; None keeps the whole matrix.
    """
    return _value_and_gradient(a, b, row_weights, column_weights, paired, block_size)[0]


@log_partition.defjvp
def _log_partition_jvp(paired, block_size, primals, tangents):
    value, over_rows, over_columns, slope_a, slope_b = _value_and_gradient(*primals, paired, block_size)
    da, db, dw, dv = tangents
    change = jnp.sum(slope_a * da) + jnp.sum(slope_b * db) + 0.5 * (over_rows @ dw + over_columns @ dv)
    return value, change


def _value_and_gradient(a, b, row_weights, column_weights, paired, block_size):
    """F, log R [n_x], log C [n_y], ∂F/∂a, ∂F/∂b."""
    if block_size is not None and not paired:
        return _by_blocks(a, b, row_weights, column_weights, block_size)
    return _on_one_device(paired, block_size)(a, b, row_weights, column_weights)


@functools.cache
def _on_one_device(paired: bool, block_size: int | None):
    if block_size is None:
        return _guarded(functools.partial(_shared_exponential, paired=paired), _two_exponentials)
    blocks = dict(block_size=block_size)
    return _guarded(functools.partial(_shared_by_blocks, **blocks), functools.partial(_by_blocks, **blocks))


def _guarded(shared, safe):
    """`shared`, which returns (is_safe, results), and `safe` instead where its exponential would over- or underflow.

    `lax.cond` under vmap would run both paths for everybody; here a batch runs the safe one only if a member needs it.
    """

    def choose(is_safe, results, two):
        return jax.lax.cond(is_safe, lambda: results, two)

    @jax.custom_batching.custom_vmap
    def guarded(*operands):
        is_safe, results = shared(*operands)
        return choose(is_safe, results, lambda: safe(*operands))

    @guarded.def_vmap
    def batched(size, is_batched, *operands):
        operands = [
            leaf if mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))
            for leaf, mapped in zip(operands, is_batched, strict=True)
        ]
        are_safe, results = jax.vmap(shared)(*operands)
        results = choose(jnp.all(are_safe), results, lambda: jax.vmap(safe)(*operands))
        return results, jax.tree.map(lambda _: True, results)

    @jax.custom_jvp
    def differentiable(*operands):
        return guarded(*operands)

    @differentiable.defjvp
    def jvp(primals, tangents):  # what it returns holds slopes already: this is for second derivatives
        return differentiable(*primals), jax.jvp(safe, primals, tangents)[1]

    return differentiable


def _shared_exponential(a, b, row_weights, column_weights, *, paired):
    """(is_safe, results) from E_ki = exp(S_ki − t_k): R_k = e^{t_k} Σ_i E_ki and C_i = e^M Σ_k E_ki e^{t_k − M}.

    t_k is the paired logit (rows of about that size) or the row's maximum, M the largest t_k.
    """
    if paired:
        shifts = jnp.sum(a * b, axis=1)
    else:
        scores = a @ b.T
        shifts = jnp.max(scores, axis=1)
    highest = jnp.max(shifts)
    factors = jnp.exp(shifts - highest)
    cut = _row_blocks(len(a)) if paired else lambda rows: [rows]
    # Blocks are written out: a loop would fill its stacked output with zeros first, and copy every block into it.
    exponentials, columns = [], 0.0
    for rows, shift, factor in zip(cut(a), cut(shifts), cut(factors), strict=True):
        exponentials.append(_barrier(jnp.exp((rows @ b.T if paired else scores) - shift[:, None])))
        columns += factor @ exponentials[-1]  # a product: XLA sums over columns five times slower
    rows = jnp.concatenate([jnp.sum(block, axis=1) for block in exponentials])
    sums, per_row, per_column = _from_sums(rows, columns, shifts, highest, row_weights, column_weights)
    slopes_a, slope_b = [], 0.0
    for block, part, scale, factor in zip(exponentials, cut(a), cut(per_row), cut(factors), strict=True):
        probabilities = _barrier(block * (scale[:, None] + factor[:, None] * per_column[None, :]))
        slopes_a.append(probabilities @ b)
        # (aᵀP)ᵀ with the transposes kept from being merged: Pᵀa itself is multiplied at a fifth of the speed.
        slope_b += _barrier(_barrier(part.T) @ probabilities)
    return _is_safe(jnp.max(rows), jnp.min(columns), len(a)), (*sums, jnp.concatenate(slopes_a), _barrier(slope_b).T)


def _is_safe(largest_row, smallest_column, num_rows: int):
    """Whether no digit is lost to the shifts, by the extreme sums of E. Every factor, exponential or product below `tiny`
    becomes 0: a column loses at most tiny × the largest E for each row, which must be less than ε of it."""
    limits = jnp.finfo(smallest_column.dtype)
    lost = num_rows * float(limits.tiny) / float(limits.eps) * largest_row
    return (largest_row < 1e12) & (smallest_column > lost)


def _from_sums(rows, columns, shifts, highest, row_weights, column_weights):
    """(F, log R, log C); ½ w_k/Σ_i E_ki and ½ v_i/Σ_k E_ki e^{t_k − M}: from these sums of E, the shifts t and M."""
    over_rows, over_columns = jnp.log(rows) + shifts, jnp.log(columns) + highest
    value = 0.5 * (row_weights @ over_rows + column_weights @ over_columns)
    return (value, over_rows, over_columns), 0.5 * row_weights / rows, 0.5 * column_weights / columns


def _shared_by_blocks(a, b, row_weights, column_weights, *, block_size):
    """The same for paired rows with a block of them in memory at a time: the exponentials are taken twice."""
    shifts = jnp.sum(a * b, axis=1)
    highest = jnp.max(shifts)
    factors = jnp.exp(shifts - highest)
    rows, columns = _shared_sums(a, b, shifts, factors, block_size)
    sums, per_row, per_column = _from_sums(rows, columns, shifts, highest, row_weights, column_weights)
    slopes = _shared_slopes(a, b, shifts, factors, per_row, per_column, block_size)
    return _is_safe(jnp.max(rows), jnp.min(columns), len(a)), (*sums, *slopes)


def _shared_sums(a, b, shifts, factors, block_size: int):
    """(Σ_i E_ki [n_x], Σ_k E_ki e^{t_k − M} [n_y]), `block_size` rows of E in memory at a time."""

    def step(columns, block):
        rows, shift, factor = block
        exponentials = _barrier(jnp.exp(rows @ b.T - shift[:, None]))
        return columns + factor @ exponentials, jnp.sum(exponentials, axis=1)

    # A padded row is zero, with factor and scale 0: its exponentials are 1 and are counted nowhere.
    blocks = tuple(_cut(leaf, block_size) for leaf in (a, shifts, factors))
    columns, rows = jax.lax.scan(step, jnp.zeros(len(b), a.dtype), blocks)
    return rows.reshape(-1)[: len(a)], columns


def _shared_slopes(a, b, shifts, factors, per_row, per_column, block_size: int):
    """(P b [n_x, p], Pᵀ a [n_y, p]) with P_ki = E_ki (per_row_k + e^{t_k − M} per_column_i), by the same blocks."""

    def step(slope_b, block):
        rows, shift, factor, scale = block
        weights = scale[:, None] + factor[:, None] * per_column[None, :]
        probabilities = _barrier(jnp.exp(rows @ b.T - shift[:, None]) * weights)
        return slope_b + _barrier(_barrier(rows.T) @ probabilities), probabilities @ b

    blocks = tuple(_cut(leaf, block_size) for leaf in (a, shifts, factors, per_row))
    slope_b, slope_a = jax.lax.scan(step, jnp.zeros((a.shape[1], len(b)), a.dtype), blocks)
    return slope_a.reshape(-1, a.shape[1])[: len(a)], slope_b.T


def _row_blocks(n: int):
    """Cuts n rows into equal blocks of at least ROWS_AT_ONCE, 16 at most; what does not divide stays whole."""
    count = max((c for c in range(1, 17) if n % c == 0 and n // c >= ROWS_AT_ONCE), default=1)
    return lambda rows: jnp.split(rows, count)


def _two_exponentials(a, b, row_weights, column_weights):
    """The same from one exponential per direction, each shifted by its own maximum: never out of range."""
    scores = a @ b.T
    over_rows, over_columns = logsumexp(scores, axis=1), logsumexp(scores, axis=0)
    value = 0.5 * (row_weights @ over_rows + column_weights @ over_columns)
    probabilities = _probabilities(scores, over_rows, over_columns, row_weights, column_weights)
    return value, over_rows, over_columns, probabilities @ b, _barrier(_barrier(a.T) @ probabilities).T


def _probabilities(scores, over_rows, over_columns, row_weights, column_weights):
    """P from the logits and both log-partition sums."""
    by_row = row_weights[:, None] * jnp.exp(scores - over_rows[:, None])
    by_column = column_weights[None, :] * jnp.exp(scores - over_columns[None, :])
    return 0.5 * (by_row + by_column)


def _by_blocks(a, b, row_weights, column_weights, block_size):
    """The same with a block of rows in memory at a time: one sweep for the sums, one for the slopes."""
    over_rows, over_columns = sums_by_blocks(a, b, block_size)
    slopes = slopes_by_blocks(a, b, over_rows, over_columns, row_weights, column_weights, block_size)
    return 0.5 * (row_weights @ over_rows + column_weights @ over_columns), over_rows, over_columns, *slopes


def sums_by_blocks(a, b, block_size: int):
    """(log R [n_x], log C [n_y]), `block_size` rows of the logits in memory at a time."""
    lowest = _lowest(a)

    def step(over_columns, block):
        rows, offset = block
        scores = _barrier(rows @ b.T + offset[:, None])
        return jnp.logaddexp(over_columns, logsumexp(scores, axis=0)), logsumexp(scores, axis=1)

    blocks = (_cut(a, block_size), _cut(jnp.zeros(len(a), a.dtype), block_size, lowest))
    over_columns, over_rows = jax.lax.scan(step, jnp.full(len(b), lowest, a.dtype), blocks)
    return over_rows.reshape(-1)[: len(a)], over_columns


def slopes_by_blocks(a, b, over_rows, over_columns, row_weights, column_weights, block_size: int):
    """(P b [n_x, p], Pᵀ a [n_y, p]), `block_size` rows of P in memory at a time."""

    def step(slope_b, block):
        rows, offset, over_row, weight = block
        scores = rows @ b.T + offset[:, None]
        probabilities = _barrier(_probabilities(scores, over_row, over_columns, weight, column_weights))
        return slope_b + _barrier(_barrier(rows.T) @ probabilities), probabilities @ b

    offsets = _cut(jnp.zeros(len(a), a.dtype), block_size, _lowest(a))
    blocks = (_cut(a, block_size), offsets, *(_cut(leaf, block_size) for leaf in (over_rows, row_weights)))
    slope_b, slope_a = jax.lax.scan(step, jnp.zeros((a.shape[1], len(b)), a.dtype), blocks)
    return slope_a.reshape(-1, a.shape[1])[: len(a)], slope_b.T


def _lowest(a) -> float:
    """The logit of a padded row: its exponential is 0 beside any other, and finite, as 0 × ∞ would be NaN."""
    return float(jnp.finfo(a.dtype).min / 4)


def _cut(rows, block_size: int, fill: float = 0.0):
    """[blocks, block_size, ...], the last block padded with `fill`; fewer rows than a block are one block of their own."""
    block_size = min(block_size, len(rows))
    num_blocks = -(-len(rows) // block_size)
    padding = ((0, num_blocks * block_size - len(rows)), *((0, 0),) * (rows.ndim - 1))
    rows = jnp.pad(rows, padding, constant_values=fill)
    return rows.reshape(num_blocks, block_size, *rows.shape[1:])


def ring_partition(a, b, *, axis_name: str, block_size: int | None = None):
    """F with uniform weights over rows that are spread along a mesh axis: for use inside `jax.shard_map`.

    The rows of b travel once around the ring of devices for the sums, with the column sums gathered so far, and once
    more for the slopes, with the slopes gathered so far: nothing is ever all-gathered, and a device holds 1/P of the
    rows and one block of logits. Value and slopes are those of the whole batch: differentiate the local rows with
    respect to parameters and `psum` the result.

    Args:
      a: [n/P, p] the local rows, the temperature in them; b: [n/P, p].
      axis_name: mesh axis of P devices.
      block_size: local rows per block of logits; None takes all n/P.

    Returns:
      F of the whole batch, the same on every device.
    """
    return _ring(a, b, axis_name, block_size or len(a))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _ring(a, b, axis_name, block_size):
    return _ring_forward(a, b, axis_name, block_size)[0]


def _ring_forward(a, b, axis_name, block_size):
    return _on_a_ring(axis_name, block_size)(a, b)


def _ring_backward(axis_name, block_size, slopes, cotangent):
    return jax.tree.map(lambda slope: cotangent * slope, slopes)


_ring.defvjp(_ring_forward, _ring_backward)


@functools.cache
def _on_a_ring(axis_name: str, block_size: int):
    where = dict(axis_name=axis_name, block_size=block_size)
    return _guarded(functools.partial(_shared_on_ring, **where), functools.partial(_safe_on_ring, **where))


def _around(axis_name: str, step, here, travelling):
    """`here` after `step(here, travelling)`, which returns both, on every device that what travels passes by; and what
    has travelled, at home again."""
    shards = jax.lax.axis_size(axis_name)
    onward = [(i, (i + 1) % shards) for i in range(shards)]

    def hop(_, state):
        here, travelling = step(*state)
        return here, jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis_name, onward), travelling)

    return jax.lax.fori_loop(0, shards, hop, (here, travelling))


def _uniform(a, axis_name: str):
    return jnp.full(len(a), 1.0 / (jax.lax.axis_size(axis_name) * len(a)), a.dtype)


def _shared_on_ring(a, b, *, axis_name, block_size):
    """(is_safe, (F, (∂F/∂a, ∂F/∂b))): the shifts of the local rows are their own, M is the largest of all devices."""
    shifts, weights = jnp.sum(a * b, axis=1), _uniform(a, axis_name)
    highest = jax.lax.pmax(jnp.max(shifts), axis_name)
    factors = jnp.exp(shifts - highest)

    def sums(rows, travelling):
        visitor, columns = travelling
        more_rows, more_columns = _shared_sums(a, visitor, shifts, factors, block_size)
        return rows + more_rows, (visitor, columns + more_columns)

    rows, (b, columns) = _around(axis_name, sums, jnp.zeros_like(shifts), (b, jnp.zeros_like(shifts)))
    (value, *_), per_row, per_column = _from_sums(rows, columns, shifts, highest, weights, weights)

    def slopes(slope_a, travelling):
        visitor, per_column, slope_b = travelling
        here, there = _shared_slopes(a, visitor, shifts, factors, per_row, per_column, block_size)
        return slope_a + here, (visitor, per_column, slope_b + there)

    start = (b, per_column, jnp.zeros_like(b))
    slope_a, (*_, slope_b) = _around(axis_name, slopes, jnp.zeros_like(a), start)
    # A column has rows on every device. And the safe path exchanges messages, in which XLA's devices wait for each other,
    # those of other rings too: all devices of the mesh judge by the same extremes (NaN as the worst of them).
    every_axis = jax.sharding.get_abstract_mesh().manual_axes
    extremes = jnp.stack([-jnp.max(rows), jnp.min(columns)])
    extremes = jax.lax.pmin(jnp.where(jnp.isnan(extremes), -jnp.inf, extremes), every_axis)
    is_safe = _is_safe(-extremes[0], extremes[1], len(a) * jax.lax.axis_size(axis_name))
    return is_safe, (jax.lax.psum(value, axis_name), (slope_a, slope_b))


def _safe_on_ring(a, b, *, axis_name, block_size):
    """The same without is_safe, every exponential shifted by its own maximum."""
    weights = _uniform(a, axis_name)
    empty = jnp.full(len(a), jnp.finfo(a.dtype).min / 4, a.dtype)

    def sums(over_rows, travelling):
        visitor, over_columns = travelling
        rows, columns = sums_by_blocks(a, visitor, block_size)
        return jnp.logaddexp(over_rows, rows), (visitor, jnp.logaddexp(over_columns, columns))

    over_rows, (b, over_columns) = _around(axis_name, sums, empty, (b, empty))

    def slopes(slope_a, travelling):
        visitor, over_columns, slope_b = travelling
        here, there = slopes_by_blocks(a, visitor, over_rows, over_columns, weights, weights, block_size)
        return slope_a + here, (visitor, over_columns, slope_b + there)

    slope_a, (*_, slope_b) = _around(axis_name, slopes, jnp.zeros_like(a), (b, over_columns, jnp.zeros_like(b)))
    value = jax.lax.psum(0.5 * (weights @ over_rows + weights @ over_columns), axis_name)
    return value, (slope_a, slope_b)
