"""P2: the landscape on circles; the negative control of each row, a near miss, is judged in test_every_claim."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims.loss_landscape import PUBLISHED, _loss, _swapped, loss_at, measured_latitude, on_circle
from simulator.theory import landscapes
from tests.theorems.common import quick_measurement

PAIRS = landscapes.circle_similarities(_swapped(), PUBLISHED)


@pytest.mark.slow
def test_published_example_to_its_digits():
    best = landscapes.best_scale(PAIRS)
    np.testing.assert_allclose(best, (21.2158, 0.80952), rtol=1e-5)
    latitudes = np.degrees(landscapes.best_latitude(best.scale, 1 / np.array([20.0, 35, 50, 100])))
    np.testing.assert_allclose(latitudes, [0, 52.69, 64.89, 77.75], atol=0.005)
    measured = quick_measurement("loss_landscape")[0]
    opens = measured.inverse_temperature.values > best.scale
    np.testing.assert_allclose(measured.published_lowest.values[opens], best.loss, rtol=1e-12)
    assert np.all(measured.published_lowest.values[~opens] > best.loss + 1e-4)


def test_scale_is_the_minimum_of_the_measured_loss(rng):
    """Any similarities and pairing: the measured loss of rows with these inner products is no lower elsewhere."""
    for n_x, n_y in ((4, 4), (5, 3)):
        x, y = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (rng.normal(size=(n, 3)) for n in (n_x, n_y))
        )
        pairing = np.exp(2 * x @ y.T + rng.normal(size=(n_x, n_y)))
        best = landscapes.best_scale(x @ y.T, pairing=pairing)
        assert 0 < best.scale < np.inf
        at = lambda s: float(_loss(jnp.asarray(x), jnp.asarray(y), 1 / s, jnp.asarray(pairing)))  # noqa: B023
        np.testing.assert_allclose(at(best.scale), best.loss, rtol=1e-13)
        assert min(at(0.99 * best.scale), at(1.01 * best.scale)) > best.loss
        np.testing.assert_allclose(landscapes.loss_at_scale(x @ y.T, 3.0, pairing=pairing), at(3.0), rtol=1e-13)


def test_matching_decides_whether_the_scale_is_finite():
    matched = landscapes.circle_similarities(PUBLISHED, PUBLISHED)
    for least, most in ((-1.0, 1.0), (0.2, 0.7)):  # the matches need not touch
        assert landscapes.best_scale(least + (most - least) * (matched + 1) / 2) == (np.inf, 0.0)
    # Two texts at one place: a tie costs log 2 in its two rows, in one direction.
    tied = landscapes.circle_similarities([0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(landscapes.best_scale(tied), (np.inf, 2 / 3 * np.log(2)))
    # Opposite matches: no scale helps.
    np.testing.assert_allclose(landscapes.best_scale(matched, pairing=1 - matched), (0.0, np.log(6)))
    assert landscapes.best_latitude(0.0, 0.1) == np.pi / 2
    assert landscapes.best_latitude(np.inf, 0.1) == 0


def test_measured_gap_opens_where_predicted():
    scale = landscapes.best_scale(PAIRS).scale
    assert measured_latitude(_swapped(), PUBLISHED, 1.01 / scale) < 1e-5
    opened = measured_latitude(_swapped(), PUBLISHED, 0.99 / scale)
    np.testing.assert_allclose(opened, np.arccos(0.99), rtol=1e-5)  # the minimum is flat: √rounding


def test_rows_are_unit_and_at_their_latitudes():
    rows = on_circle([0.0, 0.5], 0.3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    np.testing.assert_allclose(rows[:, 2], np.sin(0.3))
    # x ↔ y
    forward, back = loss_at(_swapped(), PUBLISHED, 0.4, 0.9, 0.05), loss_at(PUBLISHED, _swapped(), 0.9, 0.4, 0.05)
    np.testing.assert_allclose(forward, back, rtol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: landscapes.circle_similarities([[0.0]], [0.0]), "longitudes_x"),
        (lambda: landscapes.circle_similarities([0.0], [np.nan]), "longitudes_y"),
        (lambda: landscapes.loss_at_scale(PAIRS, -1.0), "scale"),
        (lambda: landscapes.best_scale(PAIRS[:2]), "square"),
        (lambda: landscapes.best_scale(PAIRS, pairing=np.zeros((6, 6))), "not all zero"),
        (lambda: landscapes.best_latitude(np.nan, 0.1), "scale"),
        (lambda: landscapes.best_latitude(1.0, 0.0), "temperature"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
