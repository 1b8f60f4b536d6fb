"""P10; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

import simulator as sim
from experiments.claims.sigmoid_constellation import BIASES, least_loss, rowwise_margin, separates
from simulator.theory.constellations import constellation_margin, predicted_margin_bounds
from tests.theorems.common import quick_measurement


def simplex(n):
    return unit(np.eye(n) - 1 / n)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_margin_against_loops(rng):
    x, y = (unit(rng.normal(size=(5, 3))) for _ in range(2))
    positives = [x[i] @ y[i] for i in range(5)]
    negatives = [x[i] @ y[j] for i in range(5) for j in range(5) if i != j]
    margin, level = constellation_margin(x, y)
    np.testing.assert_allclose(min(positives), level + margin)
    np.testing.assert_allclose(max(negatives), level - margin)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(constellation_margin(y @ rotation, x @ rotation), (margin, level))


def test_margin_of_the_simplex():
    x = y = simplex(5)
    np.testing.assert_allclose(constellation_margin(x, y), ((1 + 1 / 4) / 2, (1 - 1 / 4) / 2))


def test_bounds_are_met_where_all_terms_are_equal():
    """A simplex at its level: n² equal terms, so that the upper bound is exact."""
    n, scale = 5, 3.0
    x = y = simplex(n)
    margin, level = constellation_margin(x, y)
    loss = float(sim.sigmoid_loss(x, y, temperature=1 / scale, bias=-scale * level))
    lower, upper = predicted_margin_bounds(loss, scale, n)
    np.testing.assert_allclose(upper, margin, rtol=1e-12)
    assert lower < margin


def test_least_loss_of_one_level_is_that_of_a_fine_grid(rng):
    x, y = (unit(rng.normal(size=(6, 3))) for _ in range(2))
    scales = (1.0, 3.0, 10.0)
    grid = [
        float(sim.sigmoid_loss(x, y, temperature=1 / t, bias=-t * level))
        for t in scales
        for level in np.linspace(-1.5, 1.5, 301)
    ]
    found = least_loss(x, y, scales)
    assert found <= min(grid) + 1e-6
    np.testing.assert_allclose(found, min(grid), rtol=1e-3)


def test_rows_can_be_ordered_without_a_common_level():
    """The near miss of the experiment, on two pairs."""
    x = unit(np.array([[1.0, 0.9], [-3.0, 1.0]]))
    y = np.eye(2)
    # x yᵀ = [[.743, .669], [−.949, .316]]: each positive leads its row, but .316 lies below the negative .669.
    assert rowwise_margin(x, y) > 0
    assert rowwise_margin(y, x) < 0
    np.testing.assert_allclose(constellation_margin(x, y).margin, (1 / 10**0.5 - 0.9 / 1.81**0.5) / 2)


def test_separates(rng):
    rows = rng.normal(size=(6, 3))
    up, down = np.abs(rows), -np.abs(rows[::-1])
    assert separates(up, down)
    assert not separates(rows, rows)
    # The simplex has positives above 0 and negatives below, and n = d + 1 pairs only: nothing separates x from y = x.
    x = y = simplex(4)
    assert constellation_margin(x, y).relative_bias - constellation_margin(x, y).margin < 0
    assert not separates(x, y)


@pytest.mark.slow
def test_every_run_reached_zero_loss():
    data = quick_measurement("sigmoid_constellation")[0]
    assert float(data.loss.max()) < np.log(2) / data.attrs["num_pairs"]
    assert float(data.margin_at_zero.sel(bias=BIASES[1]).min()) > 0
    assert float(data.margin_at_zero.sel(bias=BIASES[0]).max()) < 0


def test_bad_input():
    with pytest.raises(ValueError, match="2 pairs"):
        constellation_margin(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="> 0"):
        predicted_margin_bounds(0.0, 1.0, 3)
