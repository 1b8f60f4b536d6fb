"""Cheap normals against the distribution they claim, and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import erfinv

from simulator.numerics.randomness import _normal_quantile, _symmetric_uniform, hashed_normal

SHAPE = (400, 500)


def draw(seed=0):
    return np.asarray(hashed_normal(jax.random.key(seed), SHAPE, jnp.float32), float)


def test_quantiles():
    u = np.asarray(_symmetric_uniform(jax.random.bits(jax.random.key(0), (300_000,), "uint32")))
    u = np.concatenate([u, np.float32([1 - 2.0**-23, 2.0**-23 - 1, 1e-4, 1e-7, -(2.0**-23)])])
    found = np.asarray(_normal_quantile(u), float)
    np.testing.assert_allclose(found, 2**0.5 * erfinv(u.astype(float)), rtol=5e-7)
    # the polynomial's last coefficient off by 1e-6 of itself would be seen
    assert np.abs((1 + 1e-6) * found / (2**0.5 * erfinv(u.astype(float))) - 1).max() > 5e-7


def test_the_outermost_numbers_are_finite():
    bits = jnp.asarray(np.array([0, 511, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 1], np.uint32))
    u = np.asarray(_symmetric_uniform(bits), float)
    np.testing.assert_array_equal(u, -u[::-1])
    assert u[-1] == 1 - 2.0**-23
    assert abs(float(_normal_quantile(jnp.float32(u[-1]))) - stats.norm.isf(2.0**-24)) < 1e-5


def test_distribution():
    z = draw().ravel()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(z * 1.02, "norm").pvalue < 1e-3  # a spread off by 2 % is seen
    n = len(z)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - expected) < 4 * (variance / n) ** 0.5
    for threshold in (3.0, 4.0):
        count, expected = np.sum(np.abs(z) > threshold), 2 * n * stats.norm.sf(threshold)
        assert abs(count - expected) < 4 * expected**0.5 + 1


def test_no_correlation_between_neighbours_keys_steps_or_squares():
    bound = 4.5 / np.sqrt(np.prod(SHAPE))
    z = draw()
    flat = z.ravel()
    for lag in (1, 2, 3, 32, 48, 500):
        for f in (lambda v: v, lambda v: v**2 - 1):
            a, b = f(flat[:-lag]), f(flat[lag:])
            assert abs(np.mean(a * b)) < bound * np.std(a) * np.std(b)
    key = jax.random.key(0)
    others = [draw(1), *(np.asarray(hashed_normal(jax.random.fold_in(key, s), SHAPE)) for s in (0, 1, 2))]
    for other in others:
        assert abs(np.mean(z * other)) < bound
        assert abs(np.mean((z**2 - 1) * (other**2 - 1))) < 2 * bound
    # singular values of a random matrix: structure in two dimensions would stick out of the Marchenko–Pastur law
    singular = np.linalg.svd(z, compute_uv=False)
    assert singular[0] < 1.02 * (SHAPE[0] ** 0.5 + SHAPE[1] ** 0.5)


def test_bits_of_the_key_all_matter():
    words = np.random.default_rng(0).integers(0, 2**32, size=2, dtype=np.uint32)
    base = np.asarray(hashed_normal(jax.random.wrap_key_data(jnp.asarray(words)), (1000,)))
    for word in (0, 1):
        for bit in range(32):
            changed = words.copy()
            changed[word] ^= np.uint32(1 << bit)
            other = np.asarray(hashed_normal(jax.random.wrap_key_data(jnp.asarray(changed)), (1000,)))
            assert np.mean(base == other) < 0.01
            assert abs(np.mean(base * other)) < 4.5 / 1000**0.5


def test_another_kind_of_key_is_refused():
    with pytest.raises(ValueError, match=r"of kind .*rbg.*; use the default, jax.random.key"):
        hashed_normal(jax.random.key(0, impl="rbg"), (4,))


def test_float64_is_jaxs_own(key):
    with jax.enable_x64(True):
        np.testing.assert_array_equal(hashed_normal(key, (5,), jnp.float64), jax.random.normal(key, (5,), jnp.float64))
