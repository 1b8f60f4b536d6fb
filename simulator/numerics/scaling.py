"""Rows in float32 or wider, and exact scaling by powers of two, so that no square, norm or product leaves its range.

A plain product does not do: a factor such as 2⁻¹²⁷ is no normal number, and XLA's programs for CPUs take every number
below the smallest normal one for 0. So exponents are read from the bits, and entries that small are scaled as the whole
numbers that their bits are.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def widened(rows, name: str = "rows") -> jax.Array:
    """Rows as floats of 32 bits or more: 16-bit floats and whole numbers are converted, float32 and float64 stay.

    Args:
      rows: real numbers of any type that JAX or NumPy has.
      name: of the rows, for the message.

    Returns:
      jax.Array, float32; float64 for float64 rows, and for whole numbers, in JAX's 64-bit mode.

    Raises:
      ValueError: a row of NumPy floats that is outside the range of JAX's widest type.
    """
    if not isinstance(rows, jax.Array):  # JAX would cut whole numbers of 64 bits down to 32 in silence
        given = np.asarray(rows)
        wide = given.astype(np.float64) if given.dtype.kind in "iub" or given.dtype.itemsize > 8 else given
        with np.errstate(over="ignore"):
            rows = wide.astype(jnp.promote_types(jax.dtypes.canonicalize_dtype(wide.dtype), jnp.float32))
        if rows.dtype.itemsize < given.dtype.itemsize and given.dtype.kind == "f":
            largest, kept = (np.max(np.abs(r), axis=-1, initial=0) for r in (given, rows))
            lost = np.flatnonzero(np.isinf(kept) | ((kept < np.finfo(rows.dtype).tiny) & (largest > 0)))
            if lost.size:
                raise ValueError(
                    f"{name} has a row of size {largest.flat[lost[0]]:.3g}, outside the range of {rows.dtype}; scale the rows, "
                    "or compute in float64 inside `with jax.enable_x64(True):`"
                )
    rows = jnp.asarray(rows)
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        return rows.astype(float)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnames="axis", inline=True)  # one program rather than a dozen, where called alone
def exponents(rows: jax.Array, axis: int | None = None) -> jax.Array:
    """e with 2^e ≤ max |rows| < 2^(e+1) along an axis, which stays with size 1; 0 where all are 0."""
    whole, mantissa, bias = _layout(rows.dtype)
    # As whole numbers the bits of positive floats are in the order of their values, and whole numbers have no NaN.
    largest = jnp.max(_bits(rows) & np.iinfo(whole).max, axis=axis, keepdims=True)
    field = largest >> mantissa
    below = (_bits(largest.astype(rows.dtype)) >> mantissa) - (bias + mantissa - 1)
    return jnp.where(largest == 0, 0, jnp.where(field == 0, below, field) - bias)


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)
def times_power(rows: jax.Array, exponent: jax.Array) -> jax.Array:
    """rows · 2^exponent: exact where that is a normal number, for exponents up to twice the range of the type."""
    _, mantissa, bias = _layout(rows.dtype)
    bits = _bits(rows)
    is_below = ((bits >> mantissa) & (2 * bias + 1)) == 0
    digits = bits & ((1 << mantissa) - 1)
    digits = jnp.where(bits < 0, -digits, digits).astype(rows.dtype)
    return jnp.where(is_below, _times(digits, exponent - (bias + mantissa - 1)), _times(rows, exponent))


@times_power.defjvp
def _times_power_jvp(primals, tangents):
    return times_power(*primals), _times(tangents[0], primals[1])


@functools.partial(jax.jit, inline=True)
def _times(rows, exponent):
    """The product with two factors, as one alone would not reach from the smallest number to the largest."""
    half = exponent // 2
    return rows * _power(half, rows.dtype) * _power(exponent - half, rows.dtype)


def _power(exponent, dtype):
    """2^exponent, or the nearest power that is a normal number."""
    whole, mantissa, bias = _layout(dtype)
    field = jnp.clip(exponent.astype(whole) + bias, 1, 2 * bias)
    return jax.lax.bitcast_convert_type(field << mantissa, dtype)


def _bits(rows):
    return jax.lax.bitcast_convert_type(rows, _layout(rows.dtype)[0])


def _layout(dtype):
    """(the integer type of the same size, binary digits after the leading one, bias of the exponent)"""
    limits = jnp.finfo(dtype)
    return np.dtype(f"int{limits.bits}"), limits.nmant, limits.maxexp - 1
