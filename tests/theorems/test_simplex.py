"""P8: the simplex; the near misses of each row are judged in test_every_claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from experiments.claims.simplex import contrasts_loss, optimum, rows_with_gap, smallest
from simulator.theory import landscapes


def simplex(n: int) -> np.ndarray:
    """Regular simplex of unit rows, [n, n]."""
    rows = np.eye(n) - 1 / n
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def parallel(n: int, gap_norm: float) -> tuple[np.ndarray, np.ndarray]:
    """The same simplex in both modalities, a gap apart, orthogonal to it."""
    across, along = (1 - gap_norm**2 / 4) ** 0.5 * simplex(n), np.full((n, 1), gap_norm / 2)
    return np.concatenate([across, -along], axis=1), np.concatenate([across, along], axis=1)


@pytest.mark.parametrize("gap_norm", [0.0, 0.7, 1.9])
def test_a_parallel_simplex_has_the_smallest_loss(gap_norm):
    x, y = parallel(5, gap_norm)
    loss = float(sim.info_nce(x, y, temperature=0.2))
    np.testing.assert_allclose(loss, landscapes.smallest_loss(5, 0.2, gap_norm=gap_norm), rtol=1e-11)


@pytest.mark.parametrize("wrong_share", [0.0, 0.1])
def test_nothing_lies_below_the_bound(rng, wrong_share):
    """Random rows, and small moves away from the optimum, at the gap that they happen to have."""
    n, temperature = 5, 0.3
    pairing = (1 - wrong_share) * np.eye(n) + wrong_share / n
    loss_of = jax.jit(lambda x, y: sim.info_nce(x, y, temperature=temperature, pairing=pairing))
    margins = []
    for i in range(300):
        x, y = parallel(n, rng.uniform(0, 1.5)) if i % 2 else rng.normal(size=(2, n, 3))
        x, y = (rows + 0.03 * rng.normal(size=rows.shape) for rows in (x, y))
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
        # All of them in n + 1 dimensions: one shape to compile.
        x, y = (np.pad(rows, ((0, 0), (0, n + 1 - rows.shape[1]))) for rows in (x, y))
        loss, gap = float(loss_of(x, y)), float(np.linalg.norm(y.mean(axis=0) - x.mean(axis=0)))
        bounds = [
            landscapes.smallest_loss(n, temperature, gap_norm=g, wrong_share=wrong_share)
            for g in (gap, min(gap * 2**0.5, 2.0))
        ]
        margins.append([loss - bound for bound in bounds])
    margins = np.array(margins)
    assert margins[:, 0].min() > 0
    assert margins[:, 0].min() < 0.05  # it is nearly reached, so it is not idle
    if not wrong_share:
        assert margins[:, 1].min() < 0  # control: G²/2 for G²/4


def test_every_gap_costs_unless_pairs_are_wrong():
    gaps = np.linspace(0, 1.99, 50)
    values = [landscapes.smallest_loss(8, 0.1, gap_norm=g) for g in gaps]
    assert np.all(np.diff(values) > 0)
    widest = landscapes.free_gap_norm(8, 0.1, wrong_share=0.05)
    free = [landscapes.smallest_loss(8, 0.1, gap_norm=g, wrong_share=0.05) for g in gaps]
    np.testing.assert_allclose([v for g, v in zip(gaps, free, strict=True) if g <= widest], free[0], rtol=1e-13)
    assert all(v > free[0] for g, v in zip(gaps, free, strict=True) if g > widest)
    assert landscapes.free_gap_norm(8, 0.1) == 0
    assert landscapes.free_gap_norm(8, 10.0, wrong_share=0.05) == 0
    # What cannot be avoided is the entropy of the partner.
    own, other = 0.95 + 0.05 / 8, 0.05 / 8
    np.testing.assert_allclose(free[0], -own * np.log(own) - 7 * other * np.log(other), rtol=1e-12)


def test_vanishing_share_joins_on():
    exact = landscapes.smallest_loss(6, 0.5, gap_norm=0.5)
    np.testing.assert_allclose(landscapes.smallest_loss(6, 0.5, gap_norm=0.5, wrong_share=1e-12), exact, rtol=1e-10)


def test_optimum_is_the_simplex_itself():
    """Not just its value: the rows of both modalities agree, and all inner products are −1/(n−1)."""
    n = 4
    x, y, *_ = optimum(np.random.default_rng(0).normal(size=(2, n, 6)), temperature=0.5)
    np.testing.assert_allclose(x @ y.T, simplex(n) @ simplex(n).T, atol=1e-6)
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_coordinates_become_unit_rows(key):
    x, y = rows_with_gap(jax.random.normal(key, (2, 4, 3)), jnp.array([1.0, 1.0, 0.0]), 0.8)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([x, y]), axis=1), 1)
    np.testing.assert_allclose([x[:, 2], y[:, 2]], 0)
    np.testing.assert_allclose(y[:, 3] - x[:, 3], 0.8)


def test_an_unfinished_search_is_not_judged(monkeypatch):
    monkeypatch.setattr("experiments.claims.simplex.MAX_STEPS", 2)
    with pytest.raises(RuntimeError, match="gradient is still"):
        smallest(np.random.default_rng(0).normal(size=(2, 4, 6)), temperature=0.1)


def test_wrong_pairs_need_one_dimension_more():
    """Less contrast than the simplex's cannot be had in n − 1 dimensions: three points of the circle have no room for it."""
    start, settings = np.random.default_rng(0).normal(size=(2, 3, 3)), dict(temperature=0.1, wrong_share=0.2)
    bound = landscapes.smallest_loss(3, 0.1, wrong_share=0.2)
    np.testing.assert_allclose(smallest(start, **settings)[0], bound, rtol=1e-9)
    assert smallest(start, dimensions=2, **settings)[0] > 1.01 * bound
    # Without wrong pairs it can.
    np.testing.assert_allclose(
        smallest(start, dimensions=2, temperature=0.1)[0], landscapes.smallest_loss(3, 0.1), rtol=1e-8
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_loss_of_a_millionth_is_minimised_from_any_start(dimensions):
    """Among them starts whose coordinates grow to lengths of thousands, and others where rounding once stopped the search."""
    bound = landscapes.smallest_loss(3, 0.1)
    for seed in (0, 4, 6):
        start = np.random.default_rng(seed).normal(size=(2, 3, 3))
        x, y, *_ = optimum(start, dimensions=dimensions, temperature=0.1)
        np.testing.assert_allclose(contrasts_loss(x, y, 0.1, np.eye(3)), bound, rtol=2e-9)


def test_the_loss_of_differences_is_info_nce(rng):
    x, y = rng.normal(size=(2, 6, 4))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    for pairing in (np.eye(6), np.full((6, 6), 0.1), rng.random((6, 6))):
        expected = sim.info_nce(x, y, temperature=0.2, pairing=pairing)
        np.testing.assert_allclose(contrasts_loss(x, y, 0.2, pairing), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_pairs=1), "num_pairs"),
        (dict(temperature=0.0), "temperature"),
        (dict(gap_norm=2.1), "gap_norm"),
        (dict(wrong_share=1.0), "wrong_share"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        landscapes.smallest_loss(**(dict(num_pairs=4, temperature=0.1) | changes))
