"""N1: the critical gap; the near misses of each row are judged in test_every_claim."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments.claims.critical_gap import QUICK, _isotropic, defect_ratio, fastest_rate, measured_boundary
from experiments.setups.clusters import clouds
from experiments.setups.tower_boundaries import crossing
from simulator.theory import flows


def test_thresholds_are_the_zeros_of_the_rates():
    temperature = np.geomspace(1e-3, 5.0, 40)
    common = flows.mode_rates_euclidean(flows.critical_gap_norm(temperature), temperature).common_along
    np.testing.assert_allclose(common * temperature, 0, atol=1e-12)
    angle = flows.critical_angle(temperature)
    np.testing.assert_allclose(flows.mode_rates_sphere(angle, temperature).common_along * temperature, 0, atol=1e-9)
    # The upper threshold is the opposite mode's; control: the common mode (|·| dropped from |cos θ|) has none.
    obtuse = flows.mode_rates_sphere(np.pi - angle, temperature)
    np.testing.assert_allclose(obtuse.opposite_along * temperature, 0, atol=1e-9)
    assert np.all(obtuse.common_along < 0)


def test_critical_angle_values_and_limits():
    np.testing.assert_allclose(np.degrees(flows.critical_angle([0.07, 0.01])), [21.1805, 8.0893], atol=1e-4)
    np.testing.assert_allclose(flows.critical_angle(1e-8), np.sqrt(2e-8), rtol=1e-6)
    assert np.pi / 2 - flows.critical_angle(1e6) < 1e-5


@pytest.mark.parametrize(("symmetric", "order"), [(False, 1.0), (True, 2.0)])
def test_the_boundary_moves_with_the_third_moments_of_the_clusters(symmetric, order):
    predicted, sizes, errors = float(flows.critical_angle(0.1)), np.array([1e-3, 3e-3, 1e-2]), []
    for size in sizes:
        squares = []
        for seed in range(4):
            a, b = clouds(dataclasses.replace(QUICK, size=size), seed)
            if symmetric:  # every deviation with its opposite
                a, b = (np.concatenate([rows[:32], -rows[:32]]) for rows in (a, b))
            squares.append((measured_boundary(a, b, 0.1, np.pi / 2, 0.1, True) / predicted - 1) ** 2)
        errors.append(np.mean(squares) ** 0.5)
    assert abs(np.polyfit(np.log(sizes), np.log(errors), 1)[0] - order) < 0.1


def test_rates_change_sign_at_the_boundary():
    a, b = clouds(QUICK, 0)
    for sphere, where in ((False, flows.critical_gap_norm(0.2)), (True, flows.critical_angle(0.2))):
        assert (
            fastest_rate(a, b, 0.98 * float(where), 0.2, sphere)
            > 0
            > fastest_rate(a, b, 1.02 * float(where), 0.2, sphere)
        )


def test_defect_ratio_rate_is_the_difference_of_the_modes_rates():
    # Along the gap v = (V₊ + V₋)/4 in each modality, so its rate is the modes' weighted by their variances.
    gap_norm, temperature, d, rho = 0.4, 0.3, 8, 0.35
    rates = flows.mode_rates_euclidean(gap_norm, temperature)
    along = (1 + rho) * rates.common_along + (1 - rho) * rates.opposite_along
    across = (1 + rho) * rates.common_across + (1 - rho) * rates.opposite_across
    mean = (along + (d - 1) * across) / d
    np.testing.assert_allclose(along - mean, flows.defect_ratio_rate(gap_norm, temperature, d), rtol=1e-12)


def test_defect_ratio_is_the_one_of_measure_gap(rng):
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(9, 5)) + 0.7
    np.testing.assert_allclose(defect_ratio(x, y), sim.measure_gap(x, y).defect_ratio_x, rtol=1e-12)


def test_isotropic_deviations_are_exactly_so():
    a, b = (rows / QUICK.size for rows in _isotropic(QUICK, 0))
    for product, value in ((a.T @ a, 1.0), (b.T @ b, 1.0), (a.T @ b, 0.6)):
        np.testing.assert_allclose(product / QUICK.num_pairs, value * np.eye(8), atol=1e-12)


def test_crossing_is_the_only_root():
    at = np.linspace(0.2, 2.0, 12)
    assert abs(crossing(at, np.cos(at)) - np.pi / 2) < 1e-3
    assert np.isnan(crossing(at, 1 + 0 * at)) and np.isnan(crossing(at, np.cos(4 * at)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: flows.critical_angle(0.0),
        lambda: flows.critical_gap_norm([0.1, -1.0]),
        lambda: flows.defect_ratio_rate(0.1, 0.1, 1),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
