"""Cheap Gaussian numbers for streams of fresh pairs.

Drawing with JAX's default generator costs more than half of a training step of a small model. Here a counter is
hashed with the two words of a key (which JAX's own generator has made from seed, replica and step), and the hash is
mapped through the inverse error function in single precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Giles 2010, "Approximating the erfinv function": coefficients in w − 5/2 below w = 5 and in √w − 3 above,
# w = −log(1 − u²); relative error below 4e-7.
_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


def hashed_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Standard normal numbers that depend on the key and their position alone.

    2²³ equally likely values √2 erf⁻¹(u), u = (2m + 1)/2²³ − 1, so |z| < 5.3; of the key every bit is used. Float64 is
    left to `jax.random.normal`: it is for theorem checks, where speed does not matter.

    Args:
      key: JAX random key (threefry), used once.
      shape: of the result, fewer than 2³² numbers.
      dtype: float32, or float64.

    Returns:
      Array of the given shape.

    Source: Giles 2010 for erf⁻¹; the 32-bit mixer is the "lowbias32" family found by C. Wellons' search.
    """
    if jnp.dtype(dtype) != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    size = 1
    for length in shape:
        size *= length
    words = jax.random.key_data(key)
    if words.shape != (2,):
        raise ValueError(f"the random key is of kind {jax.random.key_impl(key)}; use the default, jax.random.key(seed)")
    first, second = words
    bits = _mix(_mix(jnp.arange(size, dtype=jnp.uint32) + first) ^ second)
    u = _symmetric_uniform(bits)
    return (jnp.sqrt(2.0).astype(jnp.float32) * u * _erf_inv_over_u(u)).reshape(shape)


def _symmetric_uniform(bits):
    """u in (−1, 1), never ±1: 23 bits and a half are what float32 holds exactly (one bit more rounds to 1)."""
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0


def _mix(word):
    """A bijection of 32-bit words in which every input bit changes every output bit with probability close to ½."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x21F0AAAD)
    word = (word ^ (word >> 15)) * jnp.uint32(0x735A2D97)
    return word ^ (word >> 15)


def _erf_inv_over_u(u):
    w = -jnp.log((1.0 - u) * (1.0 + u))
    is_tail = w >= 5.0
    x = jnp.where(is_tail, jnp.sqrt(w) - 3.0, w - 2.5)
    value = jnp.where(is_tail, _TAIL[0], _CENTRE[0])
    for tail, centre in zip(_TAIL[1:], _CENTRE[1:], strict=True):
        value = value * x + jnp.where(is_tail, tail, centre)
    return value
