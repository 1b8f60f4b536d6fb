"""N2; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

from simulator.theory import freezing, phase_one
from tests.theorems.common import quick_measurement


def test_the_step_is_small_enough():
    assert quick_measurement("phase_one_law")[0].halved_step_change.values.max() < 1e-5


def clusters(rng, ratio, scale, temperature=0.2, shape=(40, 5)):
    a, b = scale * temperature**0.5 * rng.normal(size=(2, *shape))
    axis = np.ones(shape[1]) / shape[1] ** 0.5
    gap = (ratio * temperature) ** 0.5 * axis
    a, b = a - a.mean(axis=0)[None, :], b - b.mean(axis=0)[None, :]
    return a + 3.0, b + 3.0 + gap[None, :]


def start(ratio=4.0, variance_sum=3e-4, variance_difference=1e-4, growing_spread=2e-8, temperature=0.2):
    return phase_one.TightStart(ratio * temperature, variance_sum, variance_difference, growing_spread, temperature)


def test_start_by_loops(rng):
    x, y = clusters(rng, 4.0, 0.1)
    found = phase_one.tight_start(x, y, temperature=0.2)
    axis = np.ones(5) / 5**0.5
    sums, differences, squares = [], [], []
    for row_x, row_y in zip(x - x.mean(axis=0), y - y.mean(axis=0), strict=True):
        sums.append(axis @ (row_x + row_y))
        differences.append(axis @ (row_y - row_x))
        across = 0.5 * (row_x + row_y)
        squares.append(across @ across - (axis @ across) ** 2)
    assert found.ratio == pytest.approx(4.0, rel=1e-12)
    assert found.variance_sum == pytest.approx(np.var(sums), rel=1e-10)
    assert found.variance_difference == pytest.approx(np.var(differences), rel=1e-10)
    assert found.growing_spread == pytest.approx(np.var(squares), rel=1e-10)


def test_law_is_the_integral_of_the_rate():
    from scipy.integrate import quad

    here = start()
    tau, r = here.temperature, here.ratio

    def rate(t):
        common = here.variance_sum * np.exp(-4 * (r - 1) * t / tau)
        opposite = here.variance_difference * np.exp(-4 * (r + 1) * t / tau)
        return -(4 / tau**2) * 0.5 * (common + opposite)

    law = phase_one.predicted_log_gap_change(here)
    assert law == pytest.approx(quad(rate, 0, 5 * tau, epsabs=0, epsrel=1e-11)[0], rel=1e-9)
    control = phase_one.predicted_log_gap_change(here._replace(temperature=2 * tau))
    assert abs(control / law - 1) > 0.1


def test_rate_of_the_gap_to_second_order(rng):
    """Ġ = −(4G/τ²)(v_x + v_y) at the start, against the exact velocity of the gap; the error falls as ε."""
    errors, scales = [], np.array([1e-2, 1e-3, 1e-4])
    for scale in scales:
        x, y = clusters(np.random.default_rng(0), 4.0, scale)
        gap = y.mean(axis=0) - x.mean(axis=0)
        axis = gap / np.linalg.norm(gap)
        velocity = freezing.predicted_gap_velocity(x, y, temperature=0.2) @ axis
        predicted = -4 / 0.2**2 * np.linalg.norm(gap) * (np.var(x @ axis) + np.var(y @ axis))
        errors.append(abs(velocity / predicted - 1))
        control = -4 / 0.2**2 * np.linalg.norm(gap) * np.var(y @ axis)
        assert abs(velocity / control - 1) > 0.3
    assert errors[-1] < 1e-3
    assert np.polyfit(np.log(scales), np.log(errors), 1)[0] == pytest.approx(1, abs=0.2)


def test_end_is_the_minimum_of_the_two_modes():
    from scipy.optimize import minimize_scalar

    here = start(ratio=2.5)
    tau, r = here.temperature, here.ratio
    driven = r * here.growing_spread / (tau * (r + 3) ** 2)

    def log_variance(t):
        return np.log(here.variance_sum * np.exp(-4 * (r - 1) * t / tau) + driven * np.exp(8 * t / tau))

    found = minimize_scalar(log_variance, bounds=(0, 2 * tau), method="bounded", options=dict(xatol=1e-10)).x
    end = phase_one.predicted_end(here)
    assert end.time == pytest.approx(found, rel=1e-5)
    assert end.residual == pytest.approx(np.exp(-4 * (r - 1) * end.time / tau), rel=1e-12)


def test_shortfall_adds_up_the_parts():
    """Integrate d ln G/dt with the driven mode and its second-order softmax up to the end, without the decayed start of
    the opposite mode, and compare with law × (1 − shortfall)."""
    from scipy.integrate import quad

    here = start(ratio=2.5)
    tau, r = here.temperature, here.ratio
    end = phase_one.predicted_end(here)
    driven = r * here.growing_spread / (tau * (r + 3) ** 2)

    def left_out_and_driven(t):
        return (2 / tau**2) * (3 / r) * driven * np.exp(8 * t / tau)

    rise = quad(left_out_and_driven, -40 * tau, end.time, epsabs=0, epsrel=1e-11, limit=500)[0]
    left_out = 0.5 * here.variance_sum * end.residual / (here.squared_gap - tau)
    law = phase_one.predicted_log_gap_change(here)
    shortfall = phase_one.predicted_shortfall(here)
    assert law * (1 - shortfall) == pytest.approx(law + left_out + rise, rel=1e-9)
    control = law + left_out
    assert abs(control / (law * (1 - shortfall)) - 1) > 1e-3


@pytest.mark.parametrize("ratio", [1.1, 2.0, 5.0])
def test_shortfall_falls_with_its_exponent(ratio):
    scales = np.array([1e-4, 1e-3, 1e-2])
    values = [phase_one.predicted_shortfall(start(ratio, 3 * s**2, s**2, 2 * s**4)) for s in scales]
    slope = np.polyfit(np.log(scales), np.log(values), 1)[0]
    assert slope == pytest.approx(2 * (ratio - 1) / (ratio + 1), rel=1e-10)


def test_shortfall_of_independent_clusters(rng):
    """The closed form in the docstring, for the moments that independent Gaussian clusters have in expectation."""
    ratio, dimension, scale = 1.8, 7, 1e-3
    here = start(ratio, 2 * scale**2, 2 * scale**2, dimension * scale**4 / 2)
    bracket = ratio**2 * dimension * scale**2 / (2 * (ratio - 1) * (ratio + 3) ** 2 * here.squared_gap)
    assert phase_one.predicted_end(here).residual == pytest.approx(bracket ** ((ratio - 1) / (ratio + 1)), rel=1e-12)
    u = rng.normal(size=(200_000, dimension)) * scale / 2**0.5
    assert np.var(np.sum(u**2, axis=1)) == pytest.approx(here.growing_spread, rel=0.05)


def test_leak_limits():
    equal = start(ratio=10.0, variance_sum=1e-4, variance_difference=1e-4)
    assert phase_one.predicted_balance_leak(equal) == pytest.approx(1 / 100, rel=1e-12)
    matched = start(ratio=10.0, variance_sum=1e-4, variance_difference=0.0)
    assert phase_one.predicted_balance_leak(matched) == pytest.approx(1 / 10, rel=1e-12)
    opposite = start(ratio=10.0, variance_sum=0.0, variance_difference=1e-4)
    assert phase_one.predicted_balance_leak(opposite) == pytest.approx(-1 / 10, rel=1e-12)


def test_laws_know_no_unit_of_length(rng):
    x, y = clusters(rng, 3.0, 0.05)
    small = phase_one.tight_start(x, y, temperature=0.2)
    large = phase_one.tight_start(3 * x, 3 * y, temperature=9 * 0.2)
    for law in (phase_one.predicted_log_gap_change, phase_one.predicted_shortfall, phase_one.predicted_balance_leak):
        assert law(large) == pytest.approx(law(small), rel=1e-9)
    assert phase_one.predicted_end(large).time == pytest.approx(9 * phase_one.predicted_end(small).time, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: phase_one.tight_start(x, y, temperature=0.0), "temperature"),
        (lambda x, y: phase_one.tight_start(x, y, temperature=50.0), "phase 1 needs"),
        (lambda x, y: phase_one.tight_start(x, y[:-1], temperature=0.2), "rows"),
    ],
)
def test_bad_input(rng, call, message):
    with pytest.raises(ValueError, match=message):
        call(*clusters(rng, 3.0, 0.05))
