"""P11; the negative control of each row is judged in test_every_claim."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from experiments.claims import constant_gap
from experiments.claims.constant_gap import Config, descend, start
from simulator.storage.results import load_dataset
from simulator.theory.constant_gap import predicted_log_closing
from tests.theorems.common import FIGURES, judged, quick_measurement

SMALL = Config(num_pairs=12, blocks=(3, 5, 7))


def test_start_is_random_in_one_block_each_and_constant_elsewhere(rng):
    x, y, block = start(SMALL, rng)
    assert x.shape == y.shape == (12, 3 + 5 + 2)
    assert block == 8
    for rows, random in ((x, slice(0, 3)), (y, slice(3, 8))):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
        constant = np.delete(rows, np.arange(10)[random], axis=1)
        np.testing.assert_allclose(constant, np.tile(constant[:1], (12, 1)))
        assert rows[:, random].std(axis=0).min() > 1e-3


def test_the_plane_stands_for_the_whole_block(rng):
    """The same descent with the plane embedded in nine coordinates by a random isometry."""
    x, y, block = start(SMALL, rng)
    isometry = np.linalg.qr(rng.normal(size=(9, 2)))[0].T
    wide_x, wide_y = (np.hstack([rows[:, :block], rows[:, block:] @ isometry]) for rows in (x, y))
    arguments = (jnp.log(10.0), 0.01, 0.1, 1.0)
    narrow, wide = (
        descend(a, b, *arguments, steps=30, block=block) for a, b in ((x, y), (wide_x, wide_y))
    )  # fmt: skip
    for one, other in zip(narrow[:3], wide[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_one_learning_rate_is_plain_gradient_descent(rng):
    """A step of η/n of the flow at κ = n moves the rows by −η ∂L/∂x and ν by −η ∂L/∂ν."""
    x, y, block = start(SMALL, rng)
    n, rate, scale = len(x), 0.3, 5.0
    path = descend(x, y, jnp.log(scale), rate / n, 0.0, float(n), steps=1, block=block)

    def loss(log_scale):
        return float(sim.info_nce(x, y, temperature=float(np.exp(-log_scale))))

    h = 1e-5
    slope = (loss(np.log(scale) + h) - loss(np.log(scale) - h)) / (2 * h)
    np.testing.assert_allclose(np.log(path[1][1] / path[1][0]), -rate * slope, rtol=1e-6)


def test_law_is_reached_as_steps_shrink(rng):
    """Equal heights: orthonormal random parts make all rows alike, and the law is exact but for the step."""
    n = 6
    x, y = (np.hstack([np.eye(n), np.full((n, 1), side)]) for side in (1.0, -1.0))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    errors = []
    for step in (0.02, 0.01):
        _, scale, gap, spread = descend(x, y, jnp.log(2.0), step, 0.0, 1.0, steps=round(1 / step), block=n)
        assert float(jnp.max(spread)) < 1e-9
        predicted = predicted_log_closing(scale[-1], initial_scale=2.0, rate=1.0)
        errors.append(abs(np.log(gap[-1] / gap[0]) - predicted))
    assert errors[0] < 1e-2
    np.testing.assert_allclose(errors[0] / errors[1], 2.0, rtol=0.15)


@pytest.mark.parametrize("rate, scale", [(0.0, 1.0), (1.0, 0.0)])
def test_law_refuses_what_is_not_positive(rate, scale):
    with pytest.raises(ValueError, match="> 0"):
        predicted_log_closing(2.0, initial_scale=scale, rate=rate)


def test_an_exponent_five_per_cent_off_fails():
    """Either way, in the quick measurement and in the stored one."""
    for data in (quick_measurement("constant_gap")[0], load_dataset(FIGURES / "constant_gap.nc")):
        assert data.sizes["seed"] >= 8
        for name in ("law", "law at κ = 1"):
            row = judged("constant_gap", data)[name]
            assert row.test.passes()
            for factor in (0.95, 1.05):
                assert not dataclasses.replace(row.test, predicted=factor * row.test.predicted).passes(), name


def test_plain_descent_keeps_falling():
    gap = quick_measurement("constant_gap")[0].gap.sel(setting=constant_gap.SETTINGS[0]).transpose("seed", "step")
    assert np.all(np.diff(gap.values[:, -10:], axis=1) < 0)


def test_full_settings_are_the_published_ones():
    full = Config()
    assert (full.num_pairs, full.blocks, sum(full.blocks)) == (500, (25, 230, 257), 512)
    quick = constant_gap.QUICK
    assert quick.learning_rate / quick.num_pairs == pytest.approx(full.learning_rate / full.num_pairs)
    settings = dict(num_pairs=500, learning_rate=full.learning_rate, steps=full.steps)
    assert dataclasses.replace(quick, **settings) == full
