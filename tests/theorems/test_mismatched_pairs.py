"""P5; the negative control of each row is judged in test_every_claim."""

import dataclasses

import jax
import numpy as np
import pytest

import simulator as sim
from experiments.claims import mismatched_pairs
from simulator.theory import mismatch
from simulator.theory.freezing import simplex_pairs
from tests.theorems.common import quick_measurement


def test_pairing_against_a_sample(key):
    """The population's pairing is what the knob of the data draws: the share of rows that are not their own."""
    n, share = 200, 0.3
    right = sim.sample(sim.LatentPairs(n), n, key=key)
    mixed = sim.sample(sim.LatentPairs(n, mismatched=share), n, key=key)
    wrong = np.any(np.asarray(right.y) != np.asarray(mixed.y), axis=1)
    weights = mismatch.pairing_with_wrong_pairs(n, share)
    np.testing.assert_allclose(wrong.mean(), 1 - np.trace(weights), atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=0), 1 / n)


def test_least_loss_is_a_lower_bound_and_is_reached(rng):
    n, share, temperature = 5, 0.3, 0.2
    weights = mismatch.pairing_with_wrong_pairs(n, share)
    least = mismatch.predicted_least_loss(n, share)
    loss_of = jax.jit(lambda x, y: sim.info_nce(x, y, temperature=temperature, pairing=weights))
    for _ in range(50):
        assert float(loss_of(*rng.normal(size=(2, n, n + 1)))) > least
    half_gap = mismatch.predicted_parallel_gap(n, share, temperature) / 2
    x, y = simplex_pairs(n, half_gap)
    np.testing.assert_allclose(loss_of(x, y), least, rtol=1e-12)


def test_least_share():
    """Just below p₀ no parallel gap is left, just above there is one."""
    share = mismatch.predicted_least_share(12, 0.15)
    assert mismatch.predicted_parallel_gap(12, share * 0.999, 0.15) == 0
    assert mismatch.predicted_parallel_gap(12, share * 1.001, 0.15) > 0
    np.testing.assert_allclose(0.15 * mismatch.predicted_logit_difference(12, share), 12 / 11)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match="share"):
        mismatch.predicted_least_loss(5, share)


@pytest.mark.slow
def test_remedies_keep_retrieval():
    """Neither swapping nor the schedule pays with retrieval of the right pairs: within 2 standard errors or above."""
    data = quick_measurement("mismatched_pairs")[0].isel(stage=-1)
    for name, dim, last in (("swap_recall", "swap", -2), ("schedule_recall", "final_temperature", -1)):
        change = data[name].isel({dim: last}) - data[name].isel({dim: 0})
        assert float(change.mean()) > -2 * float(change.std("seed", ddof=1)) / data.sizes["seed"] ** 0.5


@pytest.mark.slow
def test_swapping_every_pair_swaps_none():
    """The near miss of the chances: the loss is symmetric, so the gap is that of no swapping, up to rounding."""
    gap = quick_measurement("mismatched_pairs")[0].swap_gap.isel(stage=-1).transpose("swap", "seed")
    np.testing.assert_allclose(gap.sel(swap=1.0), gap.sel(swap=0.0), rtol=0.05)
    assert float(gap.sel(swap=0.5).max()) < 0.2 * float(gap.sel(swap=0.0).min())


def test_full_settings_are_larger():
    quick, full = mismatched_pairs.QUICK, mismatched_pairs.Config()
    assert set(quick.shares) < set(full.shares)
    assert set(quick.swapping) < set(full.swapping)
    changed = {f.name for f in dataclasses.fields(full) if getattr(full, f.name) != getattr(quick, f.name)}
    assert changed - {"seeds"} == {
        "flow_seeds",
        "flow_time",
        "shares",
        "swapping",
        "final_temperatures",
        "stages",
        "steps",
    }
