"""The shared-exponential loss against the plain one that JAX differentiates: value, gradient, both paths, batches."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from simulator.losses import info_nce, mean_log_partition, partition
from simulator.losses.partition import log_partition

# 1,000 τ ≥ 1 covers logits up to 1e3 in size; 2·256 rows take the loop over blocks.
TEMPERATURES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
PATHS = dict(paired=(True, None), unpaired=(False, None), blocks=(True, 37), unpaired_blocks=(False, 37))


def plain(a, b, w, v):
    scores = a @ b.T
    return 0.5 * (w @ logsumexp(scores, axis=1) + v @ logsumexp(scores, axis=0))


def operands(n, temperature, dtype, *, spread=0.3, seed=0):
    """Trained-looking unit rows: partners close, everybody else anywhere."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    y = x + spread * rng.normal(size=(n, 8))
    x, y = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y))
    w, v = rng.uniform(0.5, 1.5, size=(2, n)) / n
    return tuple(jnp.asarray(leaf, dtype) for leaf in (x / temperature, y, w, v))


def both(function, arguments):
    return jax.value_and_grad(function, argnums=(0, 1, 2, 3))(*arguments)


def differences(arguments, paired, block_size, reference=None):
    """Relative differences of value and gradients from the plain loss, each to the largest entry."""
    found = both(lambda *o: log_partition(*o, paired, block_size), arguments)
    wanted = both(plain, arguments) if reference is None else reference
    flat = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return largest_difference(flat)


def largest_difference(pairs) -> float:
    """NaN where one is NaN, which Python's max would pass over."""
    return float(np.max([np.abs(np.asarray(f, float) - np.asarray(p)).max() / np.abs(p).max() for f, p in pairs]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_plain_loss_in_float64(temperature, path):
    for n in (5, 512):
        assert differences(operands(n, temperature, jnp.float64), *PATHS[path]) < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_is_nearly_as_good_as_the_plain_loss(temperature, path):
    """Judged against float64 at the same operands. Rounding the logits alone costs ε/τ, so that 1e-6 is out of reach for
    any float32 loss once τ is small: there, within a small factor of the plain loss (3.3 was the worst, at τ = 1e-3)."""
    single = operands(512, temperature, jnp.float32)
    exact = both(plain, tuple(leaf.astype(jnp.float64) for leaf in single))
    flat = zip(*(jax.tree.leaves(each) for each in (both(plain, single), exact)), strict=True)
    assert differences(single, *PATHS[path], exact) < max(1e-6, 5 * largest_difference(flat))


def test_a_wrong_factor_is_seen():
    arguments = operands(64, 0.1, jnp.float64)
    wrong = both(lambda a, b, w, v: plain(a, b, w, 2 * v), arguments)
    assert differences(arguments, True, None, wrong) > 0.1


def test_paths_differ_and_the_safe_one_is_taken_where_digits_would_be_lost(monkeypatch):
    """Partners that are each other's opposite at τ = 1e-2: e^{200} in float32 without the safe path."""
    a, b, w, v = operands(64, 1e-2, jnp.float32)
    cases = ((True, (a, -b, w, v)), (True, (a * 3e3, b, w, v)), (False, (a, b[::-1] * 1e-3, w, v)))
    for block_size, (paired, opposite) in itertools.product((None, 24), cases):
        exact = both(plain, tuple(leaf.astype(jnp.float64) for leaf in opposite))
        found = both(lambda *o, p=paired, s=block_size: log_partition(*o, p, s), opposite)
        for f, p in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            assert np.isfinite(f).all()
            np.testing.assert_allclose(f, p, atol=3e-4 * float(np.abs(p).max()))
    dense = functools.partial(partition._shared_exponential, paired=True)
    for shared in (dense, functools.partial(partition._shared_by_blocks, block_size=24)):
        assert shared(a, b, w, v)[0] and not shared(a, -b, w, v)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("paired", [True, False])
def test_padded_rows_count_nowhere_where_all_logits_are_very_negative(paired, dtype):
    """Two narrow cones opposite each other at τ = 1e-3: e^{−1,000} and less beside the e^0 of a row of zeros."""
    rng = np.random.default_rng(0)
    towards = np.eye(8)[0]
    a, b = (1e3 * (towards + 0.1 * rng.normal(size=(10, 8))), 0.1 * rng.normal(size=(10, 8)) - towards)
    assert (a @ b.T).max() < -300
    arguments = tuple(jnp.asarray(leaf, dtype) for leaf in (a, b, np.full(10, 0.1), np.full(10, 0.1)))
    exact = both(plain, tuple(leaf.astype(jnp.float64) for leaf in arguments))
    for block_size in (5, 4, 16):  # one that divides, one that leaves a rest, one that is larger than the rows
        assert differences(arguments, paired, block_size, exact) < (1e-3 if dtype == jnp.float32 else 1e-11)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_row_without_weight_in_the_shared_shift_is_not_lost(dtype, path):
    """Query 1 is far from its partner, and what competes for it are rows whose factors e^{t − M} are too small for a
    number, with exponentials large enough to count: no single sum looks unsafe."""
    n = 20
    # e^{(pair − 1)/τ} < tiny; e^{(others − pair)/τ} < 1e12; e^{(own − 1)/τ} > 1e13 tiny, and others hardly less than own.
    cases = {jnp.float32: (0.01, 0.428, 0.398, 0.124), jnp.float64: (0.001, 0.3217, 0.3188, 0.2914)}
    temperature, own, others, pair = cases[dtype]
    x, y = np.zeros((2, n, 6))
    x[0, 5] = y[0, 5] = y[1, 0] = 1
    x[1, :2] = own, np.sqrt(1 - own**2)
    x[2:, 0], x[2:, 2] = others, np.sqrt(1 - others**2)
    share = pair / np.sqrt(1 - others**2)
    y[2:, 2], y[2:, 3], y[2:, 5] = share, np.sqrt(1 - share**2 - 0.36), 0.6
    arguments = tuple(jnp.asarray(leaf, dtype) for leaf in (x / temperature, y, np.full(n, 1 / n), np.full(n, 1 / n)))
    exact = both(plain, tuple(leaf.astype(jnp.float64) for leaf in arguments))
    assert differences(arguments, *PATHS[path], exact) < (1e-5 if dtype == jnp.float32 else 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_second_derivatives(path):
    a, b, w, v = operands(6, 0.1, jnp.float64)
    found = jax.jit(jax.hessian(lambda a: log_partition(a, b, w, v, *PATHS[path])))(a)
    np.testing.assert_allclose(found, jax.hessian(lambda a: plain(a, b, w, v))(a), atol=1e-13)
    twice = jax.jacrev(jax.jacrev(lambda a: log_partition(a, b, w, v, *PATHS[path])))(a)
    np.testing.assert_allclose(twice, found, atol=1e-13)


@pytest.mark.parametrize("block_size", [None, 5])
def test_one_unsafe_member_of_a_batch_spoils_nobody(block_size):
    good, other = operands(16, 1e-2, jnp.float32), operands(16, 1e-2, jnp.float32, seed=1)
    bad = (good[0], -good[1], *good[2:])
    function = lambda *o: log_partition(*o, True, block_size)
    batch = [jnp.stack(leaves) for leaves in zip(good, bad, other, strict=True)]
    values, slopes = jax.vmap(jax.value_and_grad(function, argnums=(0, 1)))(*batch)
    for i, arguments in enumerate((good, bad, other)):
        value, slope = jax.value_and_grad(function, argnums=(0, 1))(*arguments)
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        for found, wanted in zip(slopes, slope, strict=True):
            np.testing.assert_allclose(found[i], wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_weights_shared_by_a_batch():
    a, b, w, v = operands(16, 0.1, jnp.float64)
    stacked = jnp.stack([a, 2 * a])
    values = jax.vmap(lambda a: log_partition(a, b, w, v, True, None))(stacked)
    np.testing.assert_allclose(values, [plain(a, b, w, v), plain(2 * a, b, w, v)], rtol=1e-12)


def test_forward_mode():
    arguments = operands(16, 0.1, jnp.float64)
    tangents = operands(16, 1.0, jnp.float64, seed=1)
    for paired, block_size in PATHS.values():
        found = jax.jvp(lambda *o, p=paired, s=block_size: log_partition(*o, p, s), arguments, tangents)
        np.testing.assert_allclose(found, jax.jvp(plain, arguments, tangents), rtol=1e-11)


def test_blocks_never_build_the_matrix():
    """Memory linear in n: the compiled gradient's temporary arrays, against those of the dense one."""
    arguments = operands(2048, 0.1, jnp.float32)

    def temporary(block_size):
        gradient = jax.jit(jax.grad(lambda *o: log_partition(*o, True, block_size)))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 0.15 * temporary(None)
    assert temporary(1 << 16) == temporary(2048)  # a block is never larger than the rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blocks_keep_memory_linear_in_the_batch():
    """Value and gradient at n = 65,536, whose logits alone would take 16 GiB, in less than 1 GiB beyond the inputs."""
    script = """
import resource, jax
from simulator.losses import info_nce
x, noise = jax.random.normal(jax.random.key(0), (2, 65_536, 64))
y = jax.block_until_ready(x + 0.5 * noise)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
loss = lambda x, y: info_nce(x, y, temperature=0.05, block_size=256)
value, slopes = jax.block_until_ready(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, y))
assert 0 < value < 1 and all(abs(slope).max() > 0 for slope in slopes)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**20  # KiB


@pytest.mark.slow
def test_blocks_are_not_slower_than_the_matrix():
    """At n = 8,192: less than 1.15 times the dense loss and gradient, median of rounds in turn (measured: 0.9)."""
    script = """
import statistics, time, jax
from simulator.losses import info_nce
x, noise = jax.random.normal(jax.random.key(0), (2, 8192, 64))
def gradient(block_size):
    loss = lambda x, y: info_nce(x, y, temperature=0.05, block_size=block_size)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))
dense, blocks = gradient(None), gradient(512)
def seconds(function):
    started = time.perf_counter()
    jax.block_until_ready(function(x, x + 0.5 * noise))
    return time.perf_counter() - started
ratios = [seconds(blocks) / seconds(dense) for _ in range(12)]
print(statistics.median(ratios[1:]))  # the first round compiles
"""
    # The tests' own XLA_FLAGS make compiling fast and programs slow.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.15


@pytest.mark.parametrize("block_size", [None, 37])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_part_of_an_own_loss_equals_the_plain_sums(weighted, block_size):
    a, b, w, v = operands(60, 0.1, jnp.float64)
    given = dict(row_weights=w, column_weights=v) if weighted else {}
    if not weighted:
        w, v = jnp.full((2, 60), 1 / 60)
    found = jax.value_and_grad(lambda a, b: mean_log_partition(a, b, block_size=block_size, **given), (0, 1))(a, b)
    wanted = jax.value_and_grad(plain, (0, 1))(a, b, w, v)
    near = jax.value_and_grad(plain, (0, 1))(a, b, 1.01 * w, v)
    pairs = lambda other: zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True)
    assert largest_difference(pairs(wanted)) < 1e-12
    assert largest_difference(pairs(near)) > 1e-3


def test_info_nce_is_the_sums_less_the_pairs():
    x, y, *_ = operands(60, 1.0, jnp.float64)
    found = mean_log_partition(x / 0.1, y) - jnp.mean(jnp.sum(x / 0.1 * y, axis=1))
    np.testing.assert_allclose(found, info_nce(x, y, temperature=0.1), rtol=1e-12)


def test_sums_of_half_precision_are_added_up_in_float32():
    a, b, *_ = operands(512, 0.05, jnp.float16)
    found = mean_log_partition(a, b)
    assert found.dtype == jnp.float32
    w = jnp.full((512,), 1 / 512)
    np.testing.assert_allclose(found, plain(*(leaf.astype(jnp.float64) for leaf in (a, b)), w, w), rtol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(b=np.ones((4, 3))), "columns|dimensions|width"),
        (dict(row_weights=np.ones(3)), r"row_weights has shape \(3,\); expected 5 finite numbers"),
        (dict(column_weights=np.full(5, np.nan)), "column_weights has shape .* finite"),
        (dict(a=np.full((5, 2), np.inf)), "a has"),
        (dict(block_size=0), "block_size"),
    ],
)
def test_bad_input_of_the_sums(change, words):
    with pytest.raises(ValueError, match=words):
        mean_log_partition(**(dict(a=np.ones((5, 2)), b=np.ones((5, 2))) | change))
