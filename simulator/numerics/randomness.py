"""Cheap Gaussian numbers for streams of fresh pairs.

Drawing with JAX's default generator costs more than half of a training step of a small model. Here a counter is
hashed with the two words of a key (which JAX's own generator has made from seed, replica and step), and the hash is
mapped through the inverse error function in single precision, in elementary operations that a compiler turns into
vector instructions whole: `log`, `sqrt` and a tail of its own would make it half as slow again.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# √2 erf⁻¹(u)/u as a polynomial in x = w/7.625 − 1, w = −log(1 − u²) < 15.25, and log(1 + t)/t on √½ − 1 < t < √2 − 1:
# least largest relative error of the one (6e-8), least largest absolute error of t times the other (9e-8), fitted in
# float64 to scipy.special.erfinv and log1p. Highest power first.
_QUANTILE = (
    0.00510324148, -0.0104389608, -0.0109243844, 0.0388252238, -0.0181268844, -0.0245852797, 0.0429884778, -0.0542707198,
    0.0608883275, -0.0343990956, -0.0361446138, 0.161886142, -0.438996453, 1.9437474, 3.66929121,
)  # fmt: skip
_LOG = (0.118291414, -0.189011943, 0.20603832, -0.248814332, 0.333033825, -0.500019621, 1.00000323)
_SQRT_HALF_BITS = 0x3F3504F3  # √½ as the bits of a float32


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

    Errors: the inverse error function is within a relative 4e-7 of exact.

    Source: Giles 2010, "Approximating the erfinv function", for the variable w = −log(1 − u²) (the polynomial is our
    own); the 32-bit mixer is the "lowbias32" family found by C. Wellons' search.
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
    return _normal_quantile(_symmetric_uniform(bits)).reshape(shape)


def _symmetric_uniform(bits):
    """u in (−1, 1), never ±1: 23 bits and a half are what float32 holds exactly (one bit more rounds to 1)."""
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0


def _mix(word):
    """A bijection of 32-bit words in which every input bit changes every output bit with probability close to ½."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x21F0AAAD)
    word = (word ^ (word >> 15)) * jnp.uint32(0x735A2D97)
    return word ^ (word >> 15)


def _normal_quantile(u):
    """√2 erf⁻¹(u) for float32 |u| ≤ 1 − 2⁻²³."""
    bits = jax.lax.bitcast_convert_type((1.0 - u) * (1.0 + u), jnp.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23  # 1 − u² = 2^exponent (1 + t)
    t = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1.0
    w = exponent.astype(jnp.float32) * -math.log(2.0) - t * _polynomial(_LOG, t)
    return u * _polynomial(_QUANTILE, w * (1 / 7.625) - 1.0)


def _polynomial(coefficients, x):
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
