"""The trend test of the published claims."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from experiments.setups.checks import worst
from experiments.setups.trends import LEVEL, spread, stated, trend, unbiased_gap

U_TURN = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 2.2, 3.2])
AT = np.arange(7)


def seeds_of(curve, rng, scatter=0.5, seeds=8):
    """Values [seed, at] about a curve, with a level of each seed's own."""
    return np.asarray(curve) + scatter * rng.normal(size=(seeds, len(curve))) + 5 * rng.normal(size=(seeds, 1))


@pytest.mark.parametrize("seeds", [8, 12])
def test_a_u_turn_is_no_fall(rng, seeds):
    """Page's L, which counts orders, takes it for one; the same curve without the turn is one."""
    from scipy.stats import page_trend_test

    values = seeds_of(U_TURN, rng, seeds=seeds)
    assert page_trend_test(-values).pvalue < LEVEL
    check = trend(values, AT, -1)
    assert not check.passes()
    assert check.error() > check.tolerance
    straight = trend(seeds_of([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0], rng, seeds=seeds), AT, -1)
    assert straight.passes()
    assert not straight.perturbed().passes()


def test_a_slow_way_back_is_seen(rng):
    """No step back is shown by itself, all of them together are."""
    values = seeds_of([0.0, 6.0, 5.6, 5.2, 4.8, 4.4, 4.0], rng, seeds=12)
    steps = np.diff(values, axis=1)[:, 1:]
    check = trend(values, AT, +1)
    assert np.all(np.abs(steps.mean(axis=0) / steps.std(axis=0, ddof=1) * 12**0.5) < check.tolerance)
    assert check.tolerance < check.error() < np.inf


def test_turned_back_is_the_u_turn():
    """What `perturbed` judges: the last third of the last stretch goes the way back, in the order of `at`."""
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    line = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0]] * 2)
    turned = trend(line[:, order], order, -1).perturbed()
    np.testing.assert_array_equal(turned.measured, np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0]] * 2)[:, order])
    peaked = dataclasses.replace(trend(line, AT, -1), predicted=np.array([1.0, 1, 1, -1, -1, -1]))
    np.testing.assert_array_equal(peaked.perturbed().measured[0], [5, 4, 3, 2, 1, 0, 1])
    np.testing.assert_array_equal(trend(line[:, :2], AT[:2], -1).perturbed().measured[0], [4, 5])


def test_what_cannot_see_a_turn_says_so(rng):
    """A rise that ends on a plateau, with a scatter that hides the way back: turned back it passes still."""
    values = seeds_of([0.0, 6.0, 6.0, 6.0, 6.1, 6.1, 6.2], rng)
    assert trend(values, AT, +1).passes()
    assert trend(values, AT, +1).perturbed().passes()


def test_level(rng):
    """Without a trend the whole way is shown in one of a thousand: of 20,000 sets of two points in 20 ± 4·√20 or fewer."""
    passed = sum(trend(values, AT[:2], +1).passes() for values in rng.normal(size=(20_000, 8, 2)))
    assert 2 <= passed <= 20 + 4 * 20**0.5


def test_seeds_are_pairs(rng):
    """A level of each seed's own, far larger than the trend, does not hide it."""
    values = seeds_of(AT, rng, scatter=0.1)
    assert np.std(values[:, 0], ddof=1) > 3
    assert trend(values, AT, +1).passes()
    alone = rng.permuted(values, axis=0)  # the same values at every point, seeds mixed
    assert not trend(alone, AT, +1).passes()


def test_points_in_any_order(rng):
    values = seeds_of(AT, rng)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    assert trend(values[:, order], order, +1).error() == pytest.approx(trend(values, AT, +1).error(), rel=1e-12)


def test_equal_values_are_no_trend():
    flat = np.zeros((8, 4))
    assert trend(flat, AT[:4], +1).error() == trend(flat, AT[:4], -1).error() == np.inf
    stepped = np.tile([0.0, 0.0, 1.0, 1.0], (8, 1)) + np.linspace(0, 0.1, 8)[:, None] * [0.0, 0.0, 1.0, 1.0]
    assert trend(stepped, AT[:4], +1).passes()
    assert not trend(stepped, AT[:4], -1).passes()


def test_the_worst_curve_speaks(rng):
    rises, falls = (trend(seeds_of(sign * AT, rng), AT, +1) for sign in (1, -1))
    assert worst([rises, falls]) is falls


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


@pytest.mark.parametrize(
    "values", [np.zeros((8, 1)), np.zeros((1, 5)), np.zeros(5), np.full((8, 5), np.nan), np.zeros((8, 4))]
)
def test_bad_values(values):
    with pytest.raises(ValueError, match="trend needs"):
        trend(values, np.arange(5) if values.shape[-1] != 1 else np.arange(1), +1)
