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
    if block_size is not None:
        return _by_blocks(a, b, row_weights, column_weights, block_size)
    return _dense(paired)(a, b, row_weights, column_weights)


@functools.cache
def _dense(paired: bool):
    """The dense pass: the shared exponential, and the safe path where it would overflow or underflow.

    `lax.cond` under vmap would run both paths for everybody; here a batch runs the safe one only if a member needs it.
    """
    shared = functools.partial(_shared_exponential, paired=paired)

    def choose(safe, results, two):
        return jax.lax.cond(safe, lambda: results, two)

    @jax.custom_batching.custom_vmap
    def dense(*operands):
        is_safe, results = shared(*operands)
        return choose(is_safe, results, lambda: _two_exponentials(*operands))

    @dense.def_vmap
    def batched(size, is_batched, *operands):
        operands = [
            leaf if mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))
            for leaf, mapped in zip(operands, is_batched, strict=True)
        ]
        are_safe, results = jax.vmap(shared)(*operands)
        results = choose(jnp.all(are_safe), results, lambda: jax.vmap(_two_exponentials)(*operands))
        return results, jax.tree.map(lambda _: True, results)

    return dense


def _shared_exponential(a, b, row_weights, column_weights, *, paired):
    """(is_safe, results) from E_ki = exp(S_ki − t_k): R_k = e^{t_k} Σ_i E_ki and C_i = e^M Σ_k E_ki e^{t_k − M}.

    t_k is the paired logit (rows of about that size) or the row's maximum, M the largest t_k. It is safe while no row
    sum is so large, and no column sum so small, that digits are lost to the shift.
    """
    n_x, n_y = a.shape[0], b.shape[0]
    limits = jnp.finfo(a.dtype)
    if paired:
        shifts = jnp.sum(a * b, axis=1)
        highest = jnp.max(shifts)
        factors = jnp.exp(shifts - highest)
    size = ROWS_AT_ONCE if paired and n_x % ROWS_AT_ONCE == 0 else n_x
    blocks = lambda rows: rows.reshape(n_x // size, size, *rows.shape[1:])  # noqa: E731
    unblock = lambda rows: rows.reshape(n_x, *rows.shape[2:])  # noqa: E731
    if paired:

        def sums(columns, block):
            rows, shift, factor = block
            exponentials = _barrier(jnp.exp(rows @ b.T - shift[:, None]))
            columns = columns + jnp.sum(exponentials * factor[:, None], axis=0)
            return columns, (exponentials, jnp.sum(exponentials, axis=1))

        columns, (exponentials, rows) = _scan(
            sums, jnp.zeros(n_y, a.dtype), (blocks(a), blocks(shifts), blocks(factors))
        )
        rows = unblock(rows)
    else:
        scores = a @ b.T
        shifts = jnp.max(scores, axis=1)
        highest = jnp.max(shifts)
        factors = jnp.exp(shifts - highest)
        exponentials = _barrier(jnp.exp(scores - shifts[:, None]))
        rows, columns = jnp.sum(exponentials, axis=1), jnp.sum(exponentials * factors[:, None], axis=0)
        exponentials = exponentials[None]
    over_rows, over_columns = jnp.log(rows) + shifts, jnp.log(columns) + highest
    value = 0.5 * (row_weights @ over_rows + column_weights @ over_columns)
    per_row, per_column = 0.5 * row_weights / rows, 0.5 * column_weights / columns

    def slopes(slope_b, block):
        exponentials, rows, per_row, factor = block
        probabilities = _barrier(exponentials * (per_row[:, None] + factor[:, None] * per_column[None, :]))
        # (aᵀP)ᵀ with the transposes kept from being merged: Pᵀa itself is multiplied at a fifth of the speed.
        return slope_b + _barrier(_barrier(rows.T) @ probabilities), probabilities @ b

    start = jnp.zeros((a.shape[1], n_y), a.dtype)
    slope_b, slope_a = _scan(slopes, start, (exponentials, blocks(a), blocks(per_row), blocks(factors)))
    is_safe = (jnp.max(rows) < 1e12) & (jnp.min(columns) > float(limits.tiny) * 1e13)
    return is_safe, (value, over_rows, over_columns, unblock(slope_a), _barrier(slope_b).T)


def _scan(step, carry, blocks):
    """`lax.scan`, but without a loop around a single block."""
    if jax.tree.leaves(blocks)[0].shape[0] > 1:
        return jax.lax.scan(step, carry, blocks)
    carry, out = step(carry, jax.tree.map(lambda leaf: leaf[0], blocks))
    return carry, jax.tree.map(lambda leaf: leaf[None], out)


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
    n_x, n_y = a.shape[0], b.shape[0]
    num_blocks = -(-n_x // block_size)
    padding = num_blocks * block_size - n_x

    def cut(rows):
        rows = jnp.pad(rows, ((0, padding), *((0, 0),) * (rows.ndim - 1)))
        return rows.reshape(num_blocks, block_size, *rows.shape[1:])

    lowest = jnp.finfo(a.dtype).min / 4  # finite: what a padded row contributes is 0 and not NaN
    is_row = cut(jnp.ones(n_x, bool))

    def logits(rows, valid):
        return jnp.where(valid[:, None], rows @ b.T, lowest)

    def sums(over_columns, block):
        scores = _barrier(logits(*block))
        return jnp.logaddexp(over_columns, logsumexp(scores, axis=0)), logsumexp(scores, axis=1)

    over_columns, over_rows = jax.lax.scan(sums, jnp.full(n_y, lowest), (cut(a), is_row))

    def slopes(slope_b, block):
        rows, valid, over_row, weight = block
        probabilities = _barrier(_probabilities(logits(rows, valid), over_row, over_columns, weight, column_weights))
        return slope_b + _barrier(_barrier(rows.T) @ probabilities), probabilities @ b

    start = jnp.zeros((a.shape[1], n_y), a.dtype)
    slope_b, slope_a = jax.lax.scan(slopes, start, (cut(a), is_row, over_rows, cut(row_weights)))
    over_rows = over_rows.reshape(-1)[:n_x]
    value = 0.5 * (row_weights @ over_rows + column_weights @ over_columns)
    return value, over_rows, over_columns, slope_a.reshape(-1, a.shape[1])[:n_x], slope_b.T
