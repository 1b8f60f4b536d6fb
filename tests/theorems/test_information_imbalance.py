"""P6; the negative control of each row is judged in test_every_claim."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments.claims import information_imbalance
from experiments.claims.information_imbalance import most, random_shares
from tests.theorems.common import quick_measurement


def test_most_of_the_gap():
    """One large coordinate passes, none fails, and random directions are those of an independent count."""
    assert most(np.array([0.7, 0.8, 0.9])).passes()
    assert not most(np.array([0.3, 0.31, 0.32])).passes()
    directions = np.random.default_rng(5).normal(size=(4000, 32))
    shares = [sum(sorted(g**2)[-2:]) / sum(g**2) for g in directions]
    np.testing.assert_allclose(random_shares(4000, 32, seed=3).mean(), np.mean(shares), rtol=0.03)


def test_only_the_queries_see_the_private_latents(key):
    """At a larger scale x stays as it was and y varies more."""
    batches = [
        sim.sample(sim.LatentPairs(64, private_dim_y=4, private_scale_y=scale), 64, key=key) for scale in (1.0, 3.0)
    ]
    np.testing.assert_array_equal(batches[0].x, batches[1].x)
    assert float(batches[1].y.var()) > 2 * float(batches[0].y.var())


@pytest.mark.slow
def test_temperature_is_learned_in_one_setting_only():
    data = quick_measurement("information_imbalance")[0]
    learned, *fixed, both = (data.temperature.sel(setting=name) for name in information_imbalance.SETTINGS)
    assert min(float(here.std("seed").max()) for here in (learned, both)) > 0
    for here in fixed:
        np.testing.assert_allclose(here, information_imbalance.QUICK.fixed_temperature, rtol=1e-6)


def test_full_settings_are_larger():
    quick, full = information_imbalance.QUICK, information_imbalance.Config()
    assert full.seeds > quick.seeds
    assert full.steps > quick.steps
    assert set(quick.scales) < set(full.scales)
    assert dataclasses.replace(quick, scales=full.scales, seeds=full.seeds, steps=full.steps) == full
