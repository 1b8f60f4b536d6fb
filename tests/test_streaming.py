"""The blockwise measures against `geometry`, which defines them, and subsets against the whole."""

import dataclasses

import jax
import numpy as np
import pytest

import simulator as sim
from simulator import geometry, streaming
from simulator.losses import similarity_matrix
from simulator.robustness import nearest


def blocks(rows, size):
    return (rows[first : first + size] for first in range(0, len(rows), size))


def drifting(rng, n=60, d=7):
    """Rows whose mean drifts, far from 0: the means of the blocks differ as much as the rows do."""
    x = rng.normal(size=(n, d)) * np.linspace(0.3, 2, d) + np.linspace(0, 4, n)[:, None] + 100
    y = rng.normal(size=(n, d)) + np.linspace(0, 3, n)[:, None] * np.arange(d) + 101
    return x, y


@pytest.mark.parametrize("size", [1, 7, 30, 60])
def test_moments_of_blocks_are_those_of_the_whole(rng, size):
    x, _ = drifting(rng)
    found = streaming.moments(blocks(x, size))
    assert found.count == 60
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(found.half_means, [x[::2].mean(0), x[1::2].mean(0)], rtol=1e-13)
    norms = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found.mean_direction, (x / norms[:, None]).mean(0), rtol=1e-12)
    assert (found.shortest, found.longest) == (norms.min(), norms.max())
    # Near miss: the mean of the blocks' covariances, without the spread of their means.
    within = np.mean([np.cov(block.T, bias=True) for block in blocks(x, 6)], axis=0)
    assert np.abs(within / np.cov(x.T, bias=True) - 1).max() > 0.1


def test_repeated_and_zero_rows(rng):
    x = rng.normal(size=(20, 3))
    x[[4, 11, 17]] = x[2]
    x[15] = -0.0
    x[16] = 0.0
    found = streaming.moments(blocks(x, 6))
    assert found.repeated == 4
    assert found.first_zero == 15
    assert streaming.moments(blocks(np.delete(x, [4, 11, 17, 16], axis=0), 6)).repeated == 0


@pytest.mark.parametrize("num_x", [60, 41])
def test_every_measure_equals_measure_gap(rng, num_x):
    """The whole chain on several blocks, paired and not."""
    x, y = drifting(rng)
    x, paired = x[:num_x], num_x == 60
    wanted = dataclasses.asdict(sim.measure_gap(x, y, temperature=0.05, paired=paired))
    about_x, about_y = streaming.moments(blocks(x, 13)), streaming.moments(blocks(y, 13))
    gap = about_y.mean - about_x.mean
    directions = np.concatenate([(gap / np.linalg.norm(gap))[None], streaming.half_rules(about_x, about_y)])
    along = [streaming.projections(blocks(r, 13), m, directions) for r, m in ((x, about_x), (y, about_y))]
    found = dict(gap_norm=np.linalg.norm(gap))
    found["separability"] = streaming.separability(about_x, about_y, along[0][:, 1:], along[1][:, 1:])
    for name, own, other, part in (("x", about_x, about_y, along[0]), ("y", about_y, about_x, along[1])):
        axes = geometry.principal_axes(own.covariance)
        spread = geometry.spread_measures(own.mean, other.mean, axes, directions[0], np.mean(part[:, 0] ** 2))
        found |= {f"{measure}_{name}": value for measure, value in spread.items()}
        rows = x if name == "x" else y
        found[f"uniformity_{name}"], error = streaming.uniformity(rows, len(rows))
        assert error == 0.0
    source_x, source_y = lambda: blocks(x, 13), lambda: blocks(y, 11)
    errors = streaming.marginal_errors(source_x, source_y, temperature=0.05)
    found["marginal_error_x"], found["marginal_error_y"] = errors
    if paired:
        means = streaming.pair_means(blocks(x, 13), blocks(y, 13))
        found |= dict(alignment=means.squared_distance, rmg=streaming.relative_gap(about_x, about_y, means.cosine))
        from_y, from_x = streaming.best_matches(source_x, source_y())
        found["recall_at_1_yx"] = np.mean(from_y == np.arange(60))
        found["recall_at_1_xy"] = np.mean(from_x == np.arange(60))
    for name, value in wanted.items():
        if np.isnan(value):
            assert name not in found, name
        else:
            np.testing.assert_allclose(found.pop(name), value, rtol=1e-9, err_msg=name)
    assert not found


def test_marginal_errors_are_zero_for_doubly_stochastic_softmaxes_of_any_shape():
    """A square and an octagon whose corners lie evenly around those of the square: all rows of each are alike."""
    circle = lambda angles: np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x, y = circle(np.pi / 2 * np.arange(4)), circle(np.pi / 4 * (np.arange(8) + 0.5))
    found = streaming.marginal_errors(lambda: blocks(x, 3), lambda: blocks(y, 5), temperature=0.3)
    np.testing.assert_allclose(found, 0.0, atol=1e-14)
    measured = sim.measure_gap(x, y, temperature=0.3, paired=False)
    np.testing.assert_allclose([measured.marginal_error_x, measured.marginal_error_y], 0.0, atol=1e-14)
    free = geometry.marginals(x, y, temperature=0.3)[0]
    assert np.mean(np.abs(free - 1.0)) > 0.9  # near miss: S against 1 instead of its mean n_y/n_x


@pytest.mark.parametrize("similarity", ["cosine", "dot", "sqeuclidean"])
def test_best_matches_are_the_first_largest_similarities(rng, similarity):
    x, y = rng.normal(size=(23, 4)), rng.normal(size=(31, 4))
    x[17], y[20] = x[3], y[9]  # ties within and between blocks
    from_y, from_x = streaming.best_matches(lambda: blocks(x, 5), blocks(y, 7), similarity)
    scores = np.round(similarity_matrix(x, y, similarity), 12)
    np.testing.assert_array_equal(from_y, scores.argmax(axis=0))
    np.testing.assert_array_equal(from_x, scores.argmax(axis=1))
    if similarity == "sqeuclidean":
        np.testing.assert_array_equal(from_y, nearest(x, y))


def test_uniformity_of_a_subset_and_its_standard_error(rng):
    """The errors over 150 subsets have the spread that is stated; the near miss without the factor 2 does not."""
    rows = np.concatenate([rng.normal(size=(1200, 4)) * 0.4, rng.normal(size=(300, 4)) * 0.1 + 0.5])
    whole, none = streaming.uniformity(rows, 1500)
    assert none == 0.0
    assert float(geometry._uniformity(rows)) == pytest.approx(whole, rel=1e-12)
    found = [streaming.uniformity(rows[rng.choice(1500, 200, replace=False)], 1500) for _ in range(150)]
    errors = np.array([(value - whole) / error for value, error in found])
    assert 0.85 < errors.std() < 1.15
    assert abs(errors.mean()) < 0.35
    assert not 0.85 < 2 * errors.std() < 1.15


def test_mean_of_a_subset_and_its_standard_error(rng):
    values = rng.beta(0.5, 1.0, size=400)
    found = [streaming.mean_and_error(values[rng.choice(400, 200, replace=False)], 400) for _ in range(400)]
    errors = np.array([(mean - values.mean()) / error for mean, error in found])
    assert 0.9 < errors.std() < 1.1
    assert not 0.9 < errors.std() / 2**0.5 < 1.1  # near miss: without the share that is left, half of the rows
    assert streaming.mean_and_error(values, 400) == (values.mean(), 0.0)
    assert streaming.mean_and_error(np.ones(50), 10**6)[1] == pytest.approx(1 / 50, rel=1e-3)


def test_triangular_factor_sees_what_the_covariance_loses(rng):
    """A direction with 1e-9 of the others' deviation: seen by the factor, as by an SVD of all rows; below the rounding
    of the covariance."""
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    rows = (rng.normal(size=(200, 8)) * np.array([1, 1, 1, 1, 1e-9, 0, 0, 0])) @ axes.T + 3.0
    about = streaming.moments(blocks(rows, 30))
    factor = streaming.triangular_factor(blocks(rows, 30), about.mean)
    wanted = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(factor, compute_uv=False)[:5], wanted[:5], rtol=1e-4)
    assert np.linalg.svd(factor, compute_uv=False)[4] > 1e-9
    with jax.enable_x64(True):
        assert int(np.sum(np.asarray(geometry.principal_axes(about.covariance)[0]) > 0)) == 4


def test_random_rows_are_distinct_in_order_and_reach_every_block(rng):
    rows = np.arange(100.0)[:, None]
    blocks = lambda: iter(np.array_split(rows, 7))
    found = streaming.random_rows(blocks, 100, 40)[:, 0]
    assert len(found) == 40
    assert np.all(np.diff(found) > 0)
    assert found.min() < 15 < 85 < found.max()
    np.testing.assert_array_equal(streaming.random_rows(blocks, 100, 500), rows)
    assert not np.array_equal(streaming.random_rows(blocks, 100, 40, seed=1)[:, 0], found)


def test_standard_errors_divide_by_one_less_than_the_rows(rng):
    """Three rows of 10⁶, by hand: √(s²/m) with s² over m − 1 = 2."""
    mean, error = streaming.mean_and_error(np.array([0.0, 3.0, 6.0]), 10**6)
    assert mean == 3.0
    assert error == pytest.approx(3.0 / 3**0.5, rel=1e-5)
    assert streaming.mean_and_error(np.full(20, 0.5), 30)[1] == pytest.approx((1 / 3) / 20)  # one row's worth at least
    rows = np.array([[0.0], [0.2], [0.7]])
    h = np.array([[np.exp(-2 * (a - b) ** 2) for a in rows[:, 0]] for b in rows[:, 0]])
    by_row = (h.sum(axis=1) - 1) / 2
    wanted = 2 * by_row.std(ddof=1) / by_row.mean() / 3**0.5
    assert streaming.uniformity(rows, 10**6)[1] == pytest.approx(wanted, rel=1e-5)
