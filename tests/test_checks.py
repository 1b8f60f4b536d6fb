"""The checks that judges share: each passes what is right and rejects what is not, on arrays with names and without."""

import numpy as np
import pytest
import xarray as xr

from experiments.setups import checks

ERROR, AT = np.full(4, 0.1), np.arange(4)
CASES = {
    "none": (checks.none, [0, 0], [0, 1]),
    "never_above": (lambda excess: checks.never_above(excess, 0.1), [-5.0, 0.05], [-5.0, 0.15]),
    "agreement": (lambda values: checks.agreement(AT, values, ERROR), AT + 0.39, AT + 0.41),
    "equal": (lambda values: checks.equal(2.0, values, 0.01), [1.99, 2.01], [1.99, 2.03]),
    "equals_one": (lambda ratio: checks.equals_one(ratio, 0.01), [0.995, 1.005], [0.995, 1.015]),
    "moves up": (lambda values: checks.moves(values, ERROR, AT), AT, [0, 1, 2, 1]),
    "moves as told": (lambda v: checks.moves(v, ERROR, AT, checks.up_to(AT, 2)), [0, 1, 2, 1], AT),
}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_check(name, labelled):
    check, right, wrong = CASES[name]
    wrap = (lambda values: xr.DataArray(np.asarray(values), dims="at")) if labelled else np.asarray
    assert check(wrap(right)).passes()
    assert not check(wrap(wrong)).passes()


def test_moves_of_paired_seeds_have_their_own_errors(rng):
    own = 10 * rng.normal(size=(8, 1))  # a level for each seed, which steps do not feel
    curves = own + AT + 0.1 * rng.normal(size=(8, 4))
    assert checks.moves(curves, None, AT).passes()
    assert not checks.moves(curves, None, AT, -1.0).passes()


def test_worst_and_closest_go_by_the_error():
    found = [checks.equals_one([value], 0.01) for value in (1.02, 1.0, 1.03)]
    assert checks.worst(found) is found[2]
    assert checks.closest(found) is found[1]


def test_upper_bound_is_four_standard_errors_above_the_mean(rng):
    values = rng.normal(size=16)
    assert checks.upper(values) == pytest.approx(values.mean() + values.std(ddof=1))
    assert checks.standard_error(np.stack([values, values]), axis=1) == pytest.approx(values.std(ddof=1) / 4)
