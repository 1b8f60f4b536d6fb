import dataclasses

import jax
import numpy as np
import pytest

import simulator as sim
from simulator.robustness import nearest

RANGES = ("fixed", "minmax", "per_dimension")


@pytest.fixture
def rows(rng):
    return 0.4 * rng.normal(size=(7, 5))


def oracle(rows, bins, bounds):
    """One coordinate after the other: the nearest of the bin centres, which also clips."""
    result = np.empty_like(rows)
    for k, row in enumerate(rows):
        for c, value in enumerate(row):
            low, high = {
                "fixed": (-1.0, 1.0),
                "minmax": (rows.min(), rows.max()),
                "per_dimension": (rows[:, c].min(), rows[:, c].max()),
            }[bounds]
            centres = [low + (i + 0.5) * (high - low) / bins for i in range(bins)]
            result[k, c] = min(centres, key=lambda centre: abs(centre - value))
    return result


@pytest.mark.parametrize("bounds", RANGES)
@pytest.mark.parametrize("bins", [2, 5, 32])
def test_every_coordinate_becomes_the_nearest_centre(rows, bins, bounds):
    rows[0, 0] = 1.7  # outside the fixed range
    found = np.asarray(sim.Quantization(bins, range=bounds)(rows))
    np.testing.assert_allclose(found, oracle(rows, bins, bounds), atol=1e-12)
    control = oracle(rows, bins + 1, bounds)
    assert np.abs(found - control).max() > 0.01


def test_fixed_is_the_default_and_clips():
    found = np.asarray(sim.Quantization(4)(np.array([[-3.0, -1.0, 0.1, 1.0, 9.0]])))
    np.testing.assert_allclose(found, [[-0.75, -0.75, 0.25, 0.75, 0.75]])


def test_error_is_half_a_step_at_most_inside_the_range(rng):
    rows = rng.uniform(-1, 1, size=(400, 6))
    error = np.asarray(sim.Quantization(16)(rows)) - rows
    assert np.abs(error).max() <= 1 / 16 + 1e-12
    # Uniform on ± step/2: variance step²/12; control: step²/6.
    assert abs(error.var() / ((2 / 16) ** 2 / 12) - 1) < 0.1
    assert abs(error.var() / ((2 / 16) ** 2 / 6) - 1) > 0.1


def test_a_shift_of_all_rows_changes_no_error_per_dimension(rows, rng):
    shift = rng.normal(size=(1, 5))
    errors = {
        bounds: [np.asarray(sim.Quantization(8, range=bounds)(r)) - r for r in (rows, rows + shift)]
        for bounds in RANGES
    }
    np.testing.assert_allclose(*errors["per_dimension"], atol=1e-12)
    for control in ("fixed", "minmax"):
        assert np.abs(errors[control][0] - errors[control][1]).max() > 0.01


def test_one_outlier_sets_the_step_of_minmax_alone(rows):
    outlier = rows.copy()
    outlier[0, 0] = 30.0
    for bounds, spoiled in (("fixed", False), ("minmax", True), ("per_dimension", False)):
        error = np.abs(np.asarray(sim.Quantization(32, range=bounds)(outlier)) - outlier)[:, 1:]
        assert (error.max() > 0.2) == spoiled


@pytest.mark.parametrize("bounds", ["minmax", "per_dimension"])
def test_a_range_of_length_zero_is_exact(bounds):
    rows = np.full((3, 4), 0.3)
    np.testing.assert_array_equal(sim.Quantization(8, range=bounds)(rows), rows)


def test_precision_of_the_rows_is_kept(rows):
    assert sim.Quantization(8)(rows.astype(np.float32)).dtype == np.float32
    assert sim.Quantization(8)(rows).dtype == np.float64


@pytest.mark.parametrize("bounds", RANGES)
@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot", "cosine"])
def test_measured_robustness_evaluates_once(rows, rng, key, scoring, bounds):
    queries, bias, labels = rng.normal(size=(40, 5)), 0.1 * rng.normal(size=7), rng.integers(0, 7, size=40)
    noise = sim.Quantization(7, range=bounds)
    found = sim.measured_robustness(
        rows, queries, noise=noise, num_draws=5, key=key, scoring=scoring, bias=bias, labels=labels
    )
    clean = np.asarray(nearest(rows, queries, scoring=scoring, bias=bias))
    answer = np.asarray(nearest(oracle(rows, 7, bounds), queries, scoring=scoring, bias=bias))
    np.testing.assert_array_equal(found.per_query, answer == clean)
    assert found.mean == np.mean(answer == clean)
    assert 0.0 < found.mean < 1.0
    assert found.standard_error == 0.0
    assert found.accuracy == np.mean(answer == labels)
    assert found.clean_accuracy == np.mean(clean == labels)
    again = sim.measured_robustness(
        rows, queries, noise=noise, num_draws=1, key=jax.random.key(9), scoring=scoring, bias=bias
    )
    assert again.mean == found.mean
    assert np.isnan(again.accuracy)


def test_many_bins_keep_every_answer(rows, rng, key):
    queries = rng.normal(size=(40, 5))
    shares = [
        sim.measured_robustness(rows, queries, noise=sim.Quantization(bins), num_draws=1, key=key).mean
        for bins in (2, 8, 2**20)
    ]
    assert shares[0] < shares[1] <= shares[2] == 1.0


def test_settings_are_frozen_and_compared_by_value():
    assert sim.Quantization(8) == sim.Quantization(8, range="fixed")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sim.Quantization(8).bins = 9


@pytest.mark.parametrize("bins", [0, 1, 2.5, True, "8"])
def test_bad_bins_are_refused(bins):
    with pytest.raises(ValueError, match=r"Quantization\.bins"):
        sim.Quantization(bins)


def test_bad_range_and_rows_are_refused():
    with pytest.raises(ValueError, match=r"Quantization\.range"):
        sim.Quantization(8, range="per_row")
    with pytest.raises(ValueError, match="NaN"):
        sim.Quantization(8)(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot"])
def test_robustness_to_quantization_is_the_same_at_every_size(rng, key, scoring):
    gallery, queries = rng.normal(size=(20, 5)), rng.normal(size=(40, 5))
    settings = dict(noise=sim.Quantization(3, range="minmax"), scoring=scoring, num_draws=1, key=key)
    one, tiny = (
        sim.measured_robustness(size * gallery, size * queries, **settings).per_query for size in (1.0, 2.0**-560)
    )
    np.testing.assert_array_equal(tiny, one)
    assert 0.1 < one.mean() < 0.9
