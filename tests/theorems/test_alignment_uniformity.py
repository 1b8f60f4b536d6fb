"""P9: alignment and uniformity; the near misses of each row are judged in test_every_claim."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import ive

from experiments.claims.alignment_uniformity import (
    pairs_at_angle,
    pairs_concentrated,
    pairs_with_gap,
    uniform_rows,
)
from simulator.theory import landscapes, limits


def test_optimum_on_the_ordinary_sphere():
    """d = 3: −s + log(sinh s/s)."""
    for scale, published in ((1.0, -0.839), (10.0, -2.996)):
        limit = limits.loss_limit(3, 1 / scale).limit
        np.testing.assert_allclose(limit, -scale + np.log(np.sinh(scale) / scale), rtol=1e-13)
        assert abs(limit - published) < 5e-4


@pytest.mark.parametrize("dimensions", [2, 3, 8, 64])
def test_mean_exponential_is_the_bessel_function(dimensions):
    scale, order = np.array([0.3, 2.0, 30.0]), dimensions / 2 - 1
    found = limits.log_mean_exponential(scale, dimensions)
    exact = [float(mpmath.log(mpmath.hyp0f1(dimensions / 2, s**2 / 4))) for s in scale]
    np.testing.assert_allclose(found, exact, rtol=1e-11)
    bessel = [
        float(mpmath.loggamma(dimensions / 2)) + order * np.log(2 / s) + s + np.log(ive(order, s)) for s in scale[1:]
    ]
    np.testing.assert_allclose(found[1:], bessel, rtol=1e-9)
    # Control: the order d/2 in place of d/2 − 1.
    off = float(mpmath.loggamma(dimensions / 2)) + order * np.log(2 / 2.0) + 2.0 + np.log(ive(order + 1, 2.0))
    assert abs(off - found[1]) > 0.1


def test_no_dimension_or_temperature_underflows():
    """CLIP's: d = 512, τ = 0.01, where e^{−C} pairs are needed: theory.md P9."""
    limit = limits.loss_limit(512, 0.01)
    np.testing.assert_allclose(limit.limit, -90.411, atol=1e-3)
    np.testing.assert_allclose(np.log(limit.first), -limit.limit, atol=1e-3)
    np.testing.assert_allclose(limits.log_mean_exponential(1e4, 2), 1e4 - 0.5 * np.log(2e4 * np.pi), rtol=1e-8)
    assert limits.log_mean_exponential(0.0, 5) == 0
    np.testing.assert_allclose(limits.log_mean_exponential(-3.0, 5), limits.log_mean_exponential(3.0, 5))


def test_concentrated_law_by_brute_force():
    """d = 3, κ = 2, τ = 1/2: C and A from double integrals over heights; the azimuth gives I₀."""
    from scipy.special import i0

    kappa, scale, n = 2.0, 2.0, 400
    t = (np.arange(n) + 0.5) / n * 2 - 1
    weight = np.exp(kappa * t)
    weight /= weight.sum()

    def mean(s):
        azimuth = i0(s * np.sqrt(np.outer(1 - t**2, 1 - t**2)))
        return (np.exp(s * np.outer(t, t)) * azimuth) @ weight

    one, two, three = mean(scale), mean(2 * scale), mean(3 * scale)
    limit = weight @ np.log(one) - scale
    own, square, cube = np.exp(scale) / one - 1, two / one**2, three / one**3
    first = weight @ own - 0.5 * (weight @ square - 1)
    second = weight @ (
        own * (square - 1) - own**2 / 2 + (square - 1) / 2 + (cube - 3 * square + 2) / 3 - 3 * (square - 1) ** 2 / 4
    )
    found = limits.loss_limit(3, 1 / scale, concentration=kappa)
    np.testing.assert_allclose(found, (limit, first, second), rtol=1e-4)


@pytest.mark.parametrize("dimensions", [2, 3, 8, 64, 1024])
@pytest.mark.parametrize("kappa", [0.1, 10.0, 1e3, 1e5])
def test_the_quadrature_of_von_mises_fisher_has_its_moments(dimensions, kappa):
    """E t = I_{d/2}(κ)/I_{d/2−1}(κ) in 30 digits, E t² = 1 − (d − 1) E t/κ; control: the mean of one dimension more."""

    def mean(d):
        with mpmath.workdps(30):
            return float(mpmath.besseli(mpmath.mpf(d) / 2, kappa) / mpmath.besseli(mpmath.mpf(d) / 2 - 1, kappa))

    t, weights = limits._coordinate(dimensions, kappa)
    for found, expected in (
        (weights @ t, mean(dimensions)),
        (weights @ t**2, 1 - (dimensions - 1) * mean(dimensions) / kappa),
    ):
        assert abs(found - expected) < 1e-12
    assert abs(weights @ t - mean(dimensions + 1)) > 1e-8


def test_corrections_against_exact_integrals():
    """n = 3 pairs on the circle at high temperature, where E log Σ is a double integral over the two rivals."""
    for scale in (0.2, 0.4):
        total = lambda a, b: np.exp(scale) + np.exp(scale * np.cos(a)) + np.exp(scale * np.cos(b))  # noqa: B023
        exact = dblquad(lambda a, b: np.log(total(a, b) / 3), 0, np.pi, 0, np.pi)[0] / np.pi**2 - scale  # noqa: B023
        law = limits.loss_limit(2, 1 / scale)
        orders = [law.limit, law._replace(second=0.0).at(3), law.at(3)]
        errors = np.abs(np.array(orders) - exact)
        assert errors[1] < 0.05 * errors[0] and errors[2] < 0.2 * errors[1]


def test_bounds_hold_for_every_number_of_pairs(rng):
    size = np.geomspace(1, 1e6, 50)
    for dimensions, temperature in ((2, 2.0), (3, 0.1), (16, 0.125), (512, 0.01)):
        law = limits.loss_limit(dimensions, temperature)
        lower, upper = limits.loss_bounds(dimensions, temperature, size)
        assert np.all(lower <= upper + 1e-12) and np.all(upper <= lower + np.log(2) + 1e-12)
        assert abs(lower[0]) < 1e-12 and abs(upper[0]) < 1e-12  # one pair: L = 0
        assert 0.5 * np.expm1(-law.limit) <= law.first <= np.expm1(-law.limit)
    # One batch may lie outside; their mean over 4,000 batches of two pairs on the circle may not.
    angles = rng.uniform(0, 2 * np.pi, size=4000)
    mean = np.mean(np.log1p(np.exp(5 * (np.cos(angles) - 1)))) - np.log(2)
    lower, upper = limits.loss_bounds(2, 0.2, 2)
    assert lower < mean < upper


def test_the_optimum_is_aligned_uniform_and_without_a_gap():
    best = limits.loss_limit(4, 0.2).limit
    angles = [limits.loss_limit(4, 0.2, pair_cosine=c).limit for c in (0.99, 0.5, -1.0)]
    kappas = [limits.loss_limit(4, 0.2, concentration=k).limit for k in (0.1, 1.0, 10.0, 1e3)]
    gaps = [limits.loss_limit(3, 0.2 / (1 - g**2)).limit for g in (0.0, 0.3, 0.9, 0.999)]
    for values in (angles, kappas, gaps):
        assert best < values[0] and np.all(np.diff(values) > 0)
    assert abs(kappas[-1]) < 0.02 and abs(gaps[-1]) < 0.02  # one point: L = log n


def test_limit_and_simplex_agree_at_high_dimension():
    """C is what the simplex bound less log n tends to when the rows are nearly orthogonal anyway."""
    n, temperature = 10**6, 0.5
    simplex = landscapes.smallest_loss(n, temperature) - np.log(n)
    np.testing.assert_allclose(limits.loss_limit(10**4, temperature).limit, simplex, atol=1e-3)


def test_samplers(rng):
    x, y = pairs_with_gap(rng, 400, 0.3)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([x, y]), axis=1), 1)
    np.testing.assert_allclose(y[:, -1] - x[:, -1], 0.6)
    x, y = pairs_at_angle(rng, 400, 1.1)
    np.testing.assert_allclose(np.sum(x * y, axis=1), np.cos(1.1))
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1)
    rows = pairs_concentrated(rng, 40_000, 3.0)[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    height = 1 / np.tanh(3.0) - 1 / 3.0  # E t, the Langevin function
    assert abs(rows[:, 2].mean() - height) < 4 * rows[:, 2].std() / 200
    assert np.abs(rows[:, :2].mean(axis=0)).max() < 4 * rows[:, 0].std() / 200
    assert np.abs(uniform_rows(rng, (40_000, 4)).mean(axis=0)).max() < 4 * 0.5 / 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dimensions=1), "dimensions"),
        (dict(temperature=0.0), "temperature"),
        (dict(pair_cosine=1.1), "pair_cosine"),
        (dict(concentration=-1.0), "concentration"),
        (dict(pair_cosine=0.5, concentration=1.0), "set it to 1"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        limits.loss_limit(**(dict(dimensions=3, temperature=0.1) | changes))
    with pytest.raises(ValueError, match="num_pairs"):
        limits.loss_bounds(3, 0.1, 0.5)
    with pytest.raises(ValueError, match="finite"):
        limits.log_mean_exponential(np.inf, 3)
