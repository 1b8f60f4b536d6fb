"""The units in which robustness is computed, and the law of a noisy distance at its ends."""

import numpy as np
import pytest

from simulator.numerics.units import in_own_units
from simulator.theory.noisy_distance import log_density


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**50, 2.0**1000])
@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot", "cosine"])
def test_a_problem_in_its_own_units_is_the_same_at_every_size(rng, scoring, scale):
    gallery, queries, bias = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), rng.normal(size=5)
    bias, of_bias = (None, None) if scoring == "cosine" or scale > 1e100 else (bias, bias * scale**2)
    one = in_own_units(gallery, queries, sigma=0.3, scoring=scoring, bias=bias)
    other = in_own_units(scale * gallery, scale * queries, sigma=0.3 * scale, scoring=scoring, bias=of_bias)
    for name, value in one._asdict().items():
        if value is not None:
            np.testing.assert_array_equal(getattr(other, name), value, err_msg=name)
    # Noise and rows keep their ratio, and the largest number is between 1/2 and 1.
    centre = gallery.mean(axis=0) if scoring == "sqeuclidean" else np.zeros(3)
    np.testing.assert_allclose(0.3 * one.gallery, one.sigma_gallery * (gallery - centre), rtol=1e-14)
    np.testing.assert_allclose(0.3 * one.queries, one.sigma_queries * (queries - centre), rtol=1e-14)
    assert 0.5 <= np.abs(one.gallery).max() <= 1 or 0.5 <= np.abs(one.queries).max() <= 1


def test_no_distance_is_below_zero():
    found = log_density(np.array([-1.5, -1.0, -1.0 + 1e-9]), 1.0, 3)
    np.testing.assert_array_equal(np.isfinite(found), [False, False, True])
    assert np.all(found[:2] == -np.inf)
