"""N5: every step of the proof against an independent computation; the rows of the ledger in test_every_claim."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import jn_zeros
from scipy.stats import ncx2

import simulator as sim
from experiments.claims.robustness_per_query import mixed_queries, random_noncentralities
from experiments.setups.galleries import random_classes
from simulator.theory import monotonicity as theory
from tests.theorems.common import quick_measurement


def test_the_averaged_counter_example_rises_and_falls_before_closure():
    data = quick_measurement("robustness_per_query")[0]
    start, peak, closure = (float(data.predicted_average.sel(alpha=a)) for a in (0.0, 0.25, 1.0))
    assert peak > start > closure
    assert start - closure == pytest.approx(data.attrs["predicted_fall"], rel=1e-6)
    error = float(np.hypot(*data.average_error.sel(alpha=[0.0, 1.0])))
    assert float(data.average.sel(alpha=0.0) - data.average.sel(alpha=1.0)) > 10 * error
    assert data.attrs["predicted_fall"] > 10 * error


def test_own_queries_lie_in_the_span_and_the_sizes_are_a_maximum():
    gallery, other, own, fall = mixed_queries(0.1)
    closer = sim.GapCloser().fit(gallery, np.concatenate([other, own]))
    np.testing.assert_allclose(closer.alpha_star_, [10 / 9] * 90 + [0.0] * 10, atol=1e-12)

    def average_falls(other, own):
        queries = np.concatenate([other, own])
        closer = sim.GapCloser().fit(gallery, queries)
        before, after = (sim.exact_robustness(closer.transform(gallery, a), queries, sigma=0.1).mean() for a in (0, 1))
        return before - after

    assert average_falls(other, own) == pytest.approx(fall, rel=1e-9)
    across, step = np.eye(32)[31], 0.05
    for changed in ((other + step * across, own), (other - step * across, own), (other, own + step * (gallery - own))):
        assert average_falls(*changed) < fall - 1e-5


def test_the_search_looks_where_something_happens():
    data = quick_measurement("robustness_per_query")[0]
    assert data.attrs["clear_falls"] > 0.2 * data.attrs["configurations"]
    lam, d, h = random_noncentralities(np.random.default_rng(0), 500, 4)
    assert np.all(lam[:, :1] <= lam) and d.min() == 1 and d.max() > 500 and h.min() > 0


def test_a_coarse_trapezoid_rule_finds_false_counter_examples():
    """Why the search integrates by Gauss–Legendre: 24 equal steps show rises of a win probability that never rises."""
    rng = np.random.default_rng(0)
    lam, d, h = np.sort(rng.uniform(0.1, 40, size=(300, 3)), axis=1), rng.integers(1, 65, 300), rng.uniform(0, 1, 300)
    u = np.linspace(-7.5, 7.5, 24)[None, :] + np.sqrt(lam[:, :1] + d[:, None])
    u = np.maximum(u, 1e-9)

    def coarse(lam):
        density = 2 * u * ncx2.pdf(u**2, d[:, None], lam[:, :1])
        survivals = [ncx2.sf(u**2, d[:, None], lam[:, [k]]) for k in (1, 2)]
        return np.trapezoid(density * survivals[0] * survivals[1], u, axis=1)

    exact = theory.win_probabilities(lam + h[:, None], d)[:, 0] - theory.win_probabilities(lam, d)[:, 0]
    assert exact.max() < 1e-10 < 1e-6 < np.max(coarse(lam + h[:, None]) - coarse(lam))


@pytest.fixture
def noncentralities(rng):
    lam = np.sort(rng.uniform(0.1, 40, size=(24, 5)), axis=1)
    return lam, rng.integers(1, 65, 24)


@pytest.mark.parametrize("order", [-0.5, 0.0, 0.5, 7.0, 31.0, 400.0])
def test_bessel_ratio_in_thirty_digits(order):
    for z in (1e-6, 0.02, 1.0, 30.0, 2000.0):
        with mpmath.workdps(30):
            exact = float(mpmath.besseli(order + 1, z) / mpmath.besseli(order, z) / z)
        assert theory.bessel_ratio(order, z) == pytest.approx(exact, rel=1e-11)
        control = theory.bessel_ratio(order + 1, z)  # ν = d/2 in place of d/2 − 1
        assert control != pytest.approx(exact, rel=1e-4)
    assert theory.bessel_ratio(order, 0.0) == pytest.approx(1 / (2 * order + 2), rel=1e-13)


def test_one_dimension_is_the_hyperbolic_tangent():
    z = np.geomspace(1e-3, 50, 20)
    np.testing.assert_allclose(theory.bessel_ratio(-0.5, z), np.tanh(z) / z, rtol=1e-12)


def test_zeros_of_known_orders():
    np.testing.assert_allclose(theory.bessel_zeros(0.5, 9), np.pi * np.arange(1, 10), rtol=1e-13)
    for order in (0, 1, 12):
        np.testing.assert_allclose(theory.bessel_zeros(order, 9), jn_zeros(order, 9), rtol=1e-12)
    control = theory.bessel_zeros(1, 9)
    assert np.all(control > jn_zeros(0, 9))  # interlacing: the next order's zeros lie between
    with pytest.raises(ValueError, match="order"):
        theory.bessel_zeros(0.3, 4)
    with pytest.raises(ValueError, match="order"):
        theory.bessel_zeros(-1.0, 4)
    with pytest.raises(ValueError, match="count"):
        theory.bessel_zeros(0.0, 0)


@pytest.mark.parametrize("order", [-0.5, 2.0, 15.5])
def test_the_series_over_zeros_is_the_ratio(order):
    z, zeros = np.geomspace(0.01, 15, 30), theory.bessel_zeros(order, 150)
    direct = theory.bessel_ratio(order, z)
    np.testing.assert_allclose(theory.bessel_ratio_from_zeros(order, z, zeros), direct, rtol=1e-7)
    control = np.sum(1 / (z[:, None] ** 2 + zeros[None, :] ** 2), axis=1)  # without the 2
    assert np.abs(control / direct - 1).min() > 0.4


@pytest.mark.parametrize("dimensions", [1, 2, 9, 64])
def test_density_ratio_and_slope_against_scipy(dimensions):
    lam = np.array([0.3, 4.0, 50.0])
    s = np.array([[0.5], [1.0], [1.6]]) * (dimensions + lam)
    ratio = theory.density_ratio(s, dimensions, lam)
    np.testing.assert_allclose(ratio, ncx2.pdf(s, dimensions + 2, lam) / ncx2.pdf(s, dimensions, lam), rtol=1e-11)
    slope = theory.distribution_slope(s, dimensions, lam)
    # A Poisson mixture: exactly half the difference of two distribution functions.
    np.testing.assert_allclose(
        slope, 0.5 * (ncx2.cdf(s, dimensions + 2, lam) - ncx2.cdf(s, dimensions, lam)), rtol=1e-10
    )
    step = 1e-3
    difference = (ncx2.cdf(s, dimensions, lam + step) - ncx2.cdf(s, dimensions, lam - step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    control = 0.5 * slope
    assert np.abs(control / difference - 1).min() > 0.4


def test_win_probabilities_are_exact(noncentralities):
    lam, d = noncentralities
    found = theory.win_probabilities(lam, d)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-11)
    exact = [
        sim.exact_robustness(np.sqrt(v)[:, None] * np.eye(1, n), np.zeros((1, n)), sigma=1.0)[0]
        for v, n in zip(lam, d, strict=True)
    ]
    np.testing.assert_allclose(found[:, 0], exact, atol=1e-11)
    control = theory.win_probabilities(lam, d, num_nodes=12)
    assert np.abs(control - found).max() > 1e-6


@pytest.mark.parametrize("dimensions", [1, 3, 300])
def test_two_rows_against_adaptive_quadrature(dimensions):
    lam = np.array([2.0, 9.0])
    for j, k in ((0, 1), (1, 0)):
        integrand = lambda u: 2 * u * ncx2.pdf(u**2, dimensions, lam[j]) * ncx2.sf(u**2, dimensions, lam[k])  # noqa: B023
        centre = np.sqrt(dimensions + lam[j])
        exact = quad(integrand, max(centre - 9, 0), centre + 9, epsabs=1e-12, limit=200)[0]
        assert theory.win_probabilities(lam[None, :], dimensions)[0, j] == pytest.approx(exact, abs=1e-10)


def test_a_query_that_lies_on_its_row():
    found = theory.win_probabilities([[0.0, 1.0, 5.0]], 2)
    near = theory.win_probabilities([[1e-9, 1.0, 5.0]], 2)
    np.testing.assert_allclose(found, near, atol=1e-8)
    assert np.isfinite(theory.win_slopes([[0.0, 1.0, 5.0]], 1)).all()


def test_slopes_are_differences_of_the_probabilities(noncentralities):
    lam, d = noncentralities
    step = 0.01
    at = lambda h: theory.win_probabilities(lam + h, d)
    difference = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    found = theory.win_slopes(lam, d)
    np.testing.assert_allclose(found, difference, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-13)
    control = 0.5 * found
    assert np.abs(control - difference).max() > 1e-4


def test_sign_of_the_slope_by_rank(noncentralities):
    lam, d = noncentralities
    slopes = theory.win_slopes(lam, d)
    assert slopes[:, 0].max() < 0  # the nearest falls
    assert slopes[:, -1].min() > 0  # the farthest rises
    control = slopes[:, 1:-1]  # between them, both happen
    assert control.min() < 0 < control.max()
    np.testing.assert_allclose(theory.win_slopes([[3.0, 3.0]], 5), 0.0, atol=1e-15)  # a tie has nothing to lose


def test_own_closures_average_to_one():
    gallery, queries, _ = random_classes(8, 24, 50, 3)
    closer = sim.GapCloser().fit(gallery, queries)
    assert closer.alpha_star_.mean() == pytest.approx(1.0, abs=1e-12)
    control = (queries - gallery.mean(axis=0)[None, :]) @ closer.gap_ / (closer.direction_ @ closer.direction_)
    assert control.mean() != pytest.approx(1.0, abs=1e-3)  # measured on g in place of g'


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[-1.0, 2.0]], [[np.nan, 2.0]], [[]]])
def test_bad_noncentralities_are_refused(bad):
    with pytest.raises(ValueError, match="noncentralities"):
        theory.win_probabilities(bad, 3)


def test_bad_dimensions_are_refused():
    with pytest.raises(ValueError, match="dimensions"):
        theory.win_slopes([[1.0, 2.0]], 0)


@pytest.mark.slow
def test_noise_under_which_no_average_falls_is_named():
    with pytest.raises(ValueError, match=r"^sigma is 0.2: .*such as 0.1$"):
        mixed_queries(0.2)
