"""The trend test of the published claims."""

import itertools

import numpy as np
import pytest
import xarray as xr

from experiments._trends import LEVEL, _page_distribution, shuffled, spread, stated, trend, unbiased_gap


def test_distribution_by_enumeration():
    """Two seeds, three points: all 36 pairs of orders by hand."""
    sums = [sum((j + 1) * r for j, r in enumerate(order)) for order in itertools.permutations([1, 2, 3])]
    expected = np.bincount([a + b for a in sums for b in sums], minlength=29) / 36
    np.testing.assert_allclose(_page_distribution(2, 3), expected, atol=1e-15)


def test_against_scipy(rng):
    from scipy.stats import page_trend_test

    values = rng.normal(size=(6, 4)) + 0.6 * np.arange(4)[None, :]
    expected = page_trend_test(values, method="exact").pvalue
    assert trend(values, np.arange(4), +1).error() == pytest.approx(expected, rel=1e-10)
    assert trend(values[:, ::-1], np.arange(4), -1).error() == pytest.approx(expected, rel=1e-10)
    assert trend(-values, np.arange(4), -1).error() == pytest.approx(expected, rel=1e-10)


def test_size_and_power(rng):
    """Without a trend the p-value is rarely small, with one it always is; shuffled labels take it away."""
    without = [trend(rng.normal(size=(8, 5)), np.arange(5), +1).error() for _ in range(2000)]
    assert abs(np.mean(np.array(without) <= 0.05) - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5 + 0.01
    values = rng.normal(size=(8, 5)) + np.arange(5)[None, :]
    assert trend(values, np.arange(5), +1).passes()
    assert not trend(values, np.arange(5), -1).passes()
    assert np.mean([trend(shuffled(values, s), np.arange(5), +1).passes() for s in range(200)]) < 0.02


def test_points_in_any_order(rng):
    values = rng.normal(size=(8, 5)) + np.arange(5)[None, :]
    order = np.array([3, 0, 4, 1, 2])
    assert trend(values[:, order], order, +1).error() == trend(values, np.arange(5), +1).error()


def test_equal_values_count_against_the_claim():
    flat = np.zeros((8, 4))
    assert trend(flat, np.arange(4), +1).error() == pytest.approx(1.0)
    assert trend(flat, np.arange(4), -1).error() == pytest.approx(1.0)
    stepped = np.tile([0.0, 0.0, 1.0, 1.0], (8, 1))
    assert trend(stepped, np.arange(4), +1).error() > trend(np.tile(np.arange(4.0), (8, 1)), np.arange(4), +1).error()


def test_smallest_p_value():
    best = trend(np.tile(np.arange(3.0), (8, 1)), np.arange(3), +1)
    assert best.error() == pytest.approx(6.0**-8, rel=1e-6)
    assert best.error() < LEVEL


def test_shuffled_keeps_the_values_of_each_seed(rng):
    values = rng.normal(size=(8, 5))
    moved = shuffled(values)
    np.testing.assert_array_equal(np.sort(moved, axis=1), np.sort(values, axis=1))
    assert (moved != values).any(axis=1).sum() >= 7


def test_gap_without_its_sampling_error(rng):
    """Pairs of known population gap: G² alone is too large by tr Cov/n."""
    squares, naive = [], []
    for _ in range(400):
        x = rng.normal(size=(20, 5))
        y = x + rng.normal(size=(20, 5)) + 0.4
        values = dict(gap_norm=np.linalg.norm((y - x).mean(axis=0)), alignment=np.mean(np.sum((y - x) ** 2, axis=1)))
        data = xr.Dataset(values | dict(x=("pair", np.zeros(20))))
        squares.append(float(unbiased_gap(data)) ** 2)
        naive.append(values["gap_norm"] ** 2)
    error = np.std(squares, ddof=1) / 20
    assert abs(np.mean(squares) - 5 * 0.16) < 4 * error
    assert abs(np.mean(naive) - 5 * 0.16) > 4 * error


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 0.58"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.42123, 0.0411, "0.421 ± 0.041"),
        (396.31, 21.7, "396 ± 22"),
        (-0.5, 0.31, "-0.50 ± 0.31"),
        (3.2e-5, 4e-6, "(3.20 ± 0.40)·10^-5"),
        (2.5e7, 1e6, "(2.50 ± 0.10)·10^7"),
        (0.25, 2e-16, "0.25 ± 2e-16"),
        (0.0, 0.0, "0 ± 0"),
        (0.25, np.nan, "0.25 (error unknown)"),
    ],
)
def test_stated(value, error, text):
    assert stated(value, error) == text


@pytest.mark.parametrize("values", [np.zeros((8, 1)), np.zeros(5), np.full((8, 5), np.nan), np.zeros((8, 4))])
def test_bad_values(values):
    with pytest.raises(ValueError, match="trend needs"):
        trend(values, np.arange(5) if values.shape[-1] != 1 else np.arange(1), +1)
