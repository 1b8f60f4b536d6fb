"""P7; the negative control of each row is judged in test_every_claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import simulator as sim
from experiments.claims import same_data_gap
from experiments.setups.trained_points import start_params
from simulator.losses import normalize_rows
from tests.theorems.common import quick_measurement


@pytest.mark.slow
def test_starts_without_cones_and_with_two():
    data = quick_measurement("same_data_gap")[0].isel(step=0)
    plain, hot, cones, cone = (data.widest_gap.sel(setting=name) for name in same_data_gap.SETTINGS)
    np.testing.assert_allclose(plain, hot, rtol=1e-5)
    np.testing.assert_allclose(cones, 2**0.5, rtol=0.02)
    assert float(plain.max()) < 0.25
    assert float(cone.max()) < 0.05
    np.testing.assert_allclose(data.gap.sel(embed_dim=data.embed_dim.max()), plain, rtol=1e-5)


def test_a_coordinate_that_both_lack_stays_away(rng):
    """What `narrowed` relies on: there the gradient is exactly 0, and Adam does not move."""
    x, y = (np.pad(rng.normal(size=(6, 3)), ((0, 0), (0, 2))) for _ in range(2))
    loss = lambda x, y: sim.info_nce(normalize_rows(x), normalize_rows(y), temperature=0.1)
    for gradient in jax.grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(y)):
        assert np.all(gradient[:, 3:] == 0)
        assert np.all(gradient[:, :3] != 0)


def test_narrowed_keeps_the_first_coordinates():
    params = dict(x=dict(hidden=np.ones((2, 4, 5)), out=dict(kernel=np.ones((2, 5, 6)), bias=np.ones((2, 6)))))
    narrow = same_data_gap.narrowed(params, np.array([2, 6]))["x"]
    assert narrow["hidden"].min() == 1
    np.testing.assert_array_equal(narrow["out"]["bias"].sum(axis=1), [2, 6])
    np.testing.assert_array_equal(narrow["out"]["kernel"][0].sum(axis=0), [5, 5, 0, 0, 0, 0])


def test_equal_pairs():
    gap = xr.DataArray(
        np.arange(8.0).reshape(2, 4), dims=("batch_size", "step"), coords=dict(batch_size=[8, 32], step=[0, 4, 16, 64])
    )
    np.testing.assert_array_equal(same_data_gap.at_equal_pairs(gap), [3, 6])


def test_both_modalities_see_the_same_rows(key):
    batch = sim.sample(sim.LatentPairs(dim_x=8, dim_y=8, same_observation=True), 16, key=key)
    np.testing.assert_array_equal(batch.x, batch.y)


@pytest.mark.slow
def test_given_starts_are_those_of_training():
    """Free tables, which cost little to compile: the start is the one that a replica draws."""
    table = sim.Table(4)
    experiment = sim.Experiment(
        data=sim.LatentPairs(8), encoder_x=table, encoder_y=table, start=None, batch_size=8, steps=2, eval_points=2
    )
    params = start_params(experiment, {"loss.temperature": (0.1, 0.2)}, seeds=2, seed=0)
    rows = np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(params)], axis=-1)
    assert len(rows) == 4
    np.testing.assert_array_equal(rows[:2], rows[2:])
    assert np.any(rows[0] != rows[1])
