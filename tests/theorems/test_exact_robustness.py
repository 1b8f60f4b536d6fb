"""N4; the negative control of each row is judged in test_every_claim."""

import itertools

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import i0, ndtr
from scipy.stats import ncx2

import simulator as sim
from experiments.claims import exact_robustness
from simulator.theory.robustness import two_class_error, two_class_robustness


def precise_survival(s, dimensions, noncentrality):
    """1 − F of the noncentral χ² as its Poisson mixture, the gamma functions by recurrence."""
    shape, x, mean = mp.mpf(dimensions) / 2, s / 2, noncentrality / 2
    gamma = mp.gammainc(shape, x, mp.inf, regularized=True)
    step = x**shape * mp.exp(-x) / mp.gamma(shape + 1)
    weight, total, m = mp.exp(-mean), mp.mpf(0), 0
    while m <= mean or weight > mp.mpf(10) ** -22:
        total += weight * gamma
        gamma += step
        m += 1
        step *= x / (shape + m)
        weight *= mean / m
    return total


def precise_density(s, dimensions, noncentrality):
    """f of the noncentral χ², likewise."""
    shape, x, mean = mp.mpf(dimensions) / 2, s / 2, noncentrality / 2
    term = x ** (shape - 1) * mp.exp(-x) / mp.gamma(shape) / 2
    weight, total, m = mp.exp(-mean), mp.mpf(0), 0
    while m <= mean or weight > mp.mpf(10) ** -22:
        total += weight * term
        term *= x / (shape + m)
        m += 1
        weight *= mean / m
    return total


def precise_integral(dimensions, sigma, distances, counts):
    """P(first row stays nearest) in 25-digit arithmetic, over u = √s within 9 of its centre."""
    with mp.workdps(25):
        noncentralities = [(mp.mpf(r) / mp.mpf(sigma)) ** 2 for r in distances]
        nodes, weights = np.polynomial.legendre.leggauss(16)
        centre = mp.sqrt(noncentralities[0] + dimensions)
        edges = mp.linspace(max(centre - 9, mp.mpf(0)), centre + 9, 17)
        total = mp.mpf(0)
        for low, high in itertools.pairwise(edges):
            for node, weight in zip(nodes, weights, strict=True):
                u = low + (high - low) / 2 * (1 + mp.mpf(float(node)))
                value = u * (high - low) * mp.mpf(float(weight)) * precise_density(u**2, dimensions, noncentralities[0])
                for noncentrality, count in zip(noncentralities[1:], counts[1:], strict=True):
                    value *= precise_survival(u**2, dimensions, noncentrality) ** count
                total += value
        return float(total)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"d={case[0]}", marks=[pytest.mark.slow] if case[0] > 1000 else [])
        for case in exact_robustness.REFERENCES
    ],
)
def test_references_are_the_integral(case):
    *arguments, value = case
    assert precise_integral(*arguments) == pytest.approx(value, rel=1e-12)


def test_two_classes_on_a_line():
    """A² < B² where (B − A)(B + A) > 0, and the two factors are independent normal numbers."""
    a, b, sigma = 0.4, 1.1, 0.7
    minus, plus = (b - a) / (sigma * 2**0.5), (b + a) / (sigma * 2**0.5)
    expected = ndtr(minus) * ndtr(plus) + ndtr(-minus) * ndtr(-plus)
    assert exact_robustness.exact(np.array([a, b]), 1, sigma) == pytest.approx(expected, rel=1e-12)
    control = ndtr(minus)  # forgets that a distance has no sign
    assert abs(control - expected) > 1e-3


def test_two_classes_in_the_plane():
    """Two Rician lengths: P = Q₁(b/√2, a/√2) − ½ e^{−(a²+b²)/4} I₀(ab/2), Q₁ Marcum's function."""
    for a, b in ((0.0, 1.0), (0.8, 1.5), (6.0, 7.0)):
        expected = ncx2.sf(a**2 / 2, 2, b**2 / 2) - 0.5 * np.exp(-(a**2 + b**2) / 4) * i0(a * b / 2)
        assert exact_robustness.exact(np.array([a, b]), 2, 1.0) == pytest.approx(expected, rel=1e-11)
        control = ncx2.sf(b**2 / 2, 2, a**2 / 2) - 0.5 * np.exp(-(a**2 + b**2) / 4) * i0(a * b / 2)
        assert abs(control - expected) > 1e-3


@pytest.mark.parametrize("num_classes", [2, 40, 1000])
@pytest.mark.parametrize("dimensions", [1, 3, 300])
def test_rows_at_one_distance_share_the_chances(num_classes, dimensions):
    found = exact_robustness.exact(np.full(num_classes, 3.0), dimensions, 1.0)
    assert found == pytest.approx(1 / num_classes, rel=1e-8)


def test_two_class_formula_approaches_the_exact_value_as_edgeworth_says():
    pair = dict(nearest=20.0, other=21.0)
    for dimensions in (64, 1024):
        terms = dict(sigma=1.0, dimensions=dimensions)
        exact = exact_robustness.exact(np.array([20.0, 21.0]), dimensions, 1.0)
        error = exact - two_class_robustness(**pair, **terms)
        assert error == pytest.approx(two_class_error(**pair, **terms), rel=0.03)
        control = two_class_error(**pair, skewness=False, **terms)
        assert abs(control - error) > 0.1 * abs(error)


def test_two_class_limits_and_shapes():
    terms = dict(sigma=0.3, dimensions=5)
    assert two_class_robustness(1.0, 1.0, **terms) == two_class_robustness(0.0, 0.0, **terms) == 0.5
    assert two_class_error(1.0, 1.0, **terms) == 0.0
    assert two_class_robustness(1.0, 2.0, sigma=1e-3, dimensions=5) == pytest.approx(1.0)
    assert two_class_robustness(1.0, 2.0, sigma=1e3, dimensions=5) == pytest.approx(0.5, abs=1e-6)
    many = two_class_robustness(np.ones(3), np.array([1.0, 1.2, 1.4]), **terms)
    assert many.shape == (3,) and np.all(np.diff(many) > 0)
    assert two_class_robustness(1.0, 1.5, sigma=0.3, dimensions=np.arange(1, 5)).shape == (4,)


def test_drawn_distances_do_not_depend_on_the_threads(monkeypatch):
    distances = exact_robustness.case_distances(20, 2.0, 8.0)
    draws = lambda seed: exact_robustness.draw_distances(distances, 5, 1.0, 50_000, seed)
    share = draws(0)
    monkeypatch.setattr(exact_robustness.os, "cpu_count", lambda: 1)
    assert draws(0) == share != draws(1)


@pytest.mark.parametrize(("dimensions", "kink"), [(1, 2.0), (1, 0.3), (2, 2.0), (5, 2.0), (40, 2.0)])
def test_biased_classes_against_adaptive_quadrature(dimensions, kink):
    """A factor 1 − F(s + shift) is not smooth where s + shift = 0, least of all in few dimensions; the control is one
    Gauss–Legendre rule across it. (In 40 dimensions F is too small there to matter.)"""
    noncentralities, bias = np.array([0.5, 1.0, 3.0]), np.array([0.0, kink, -0.2])
    best = int(np.argmin(noncentralities + bias))
    others, shift = np.delete(noncentralities, best), bias[best] - np.delete(bias, best)

    def integrand(u):
        survivals = ncx2.sf(np.maximum(u**2 + shift, 0.0), dimensions, others)
        return 2 * u * ncx2.pdf(u**2, dimensions, noncentralities[best]) * np.prod(survivals)

    edges = [0.0, *np.sort(np.sqrt(-shift[shift < 0])), 4.0, 9.0, 16.0]
    expected = sum(quad(integrand, *pair, epsabs=1e-13, limit=200)[0] for pair in itertools.pairwise(edges))
    gallery = np.sqrt(noncentralities)[:, None] * np.eye(1, dimensions)
    found = sim.exact_robustness(gallery, np.zeros((1, dimensions)), sigma=1.0, bias=bias)[0]
    assert abs(found - expected) < 1e-9
    nodes, weights = np.polynomial.legendre.leggauss(80)
    control = 8 * weights @ [integrand(8 * (1 + node)) for node in nodes]
    assert (abs(control - expected) > 1e-6) == (dimensions < 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(nearest=-1.0), "swap the rows"),
        (dict(other=0.5), "swap the rows"),
        (dict(dimensions=0), "swap the rows"),
        (dict(sigma=0.0), "sigma"),
    ],
)
def test_bad_input(changes, message):
    arguments = dict(nearest=1.0, other=2.0, sigma=0.1, dimensions=4) | changes
    with pytest.raises(ValueError, match=message):
        two_class_robustness(**arguments)


def test_exact_value_depends_on_the_distances_alone(rng):
    distances = exact_robustness.case_distances(6, 2.0, 8.0)
    query = rng.normal(size=(1, 4))
    gallery = exact_robustness.gallery_around(query, 0.3 * distances, rng)
    found = sim.exact_robustness(gallery, query, sigma=0.3)[0]
    assert found == pytest.approx(exact_robustness.exact(distances, 4, 1.0), rel=1e-10)
