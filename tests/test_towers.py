"""The parameters that a sweep keeps, and the towers that are made again from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from simulator.losses import normalize_rows
from simulator.training import replica
from simulator.training.sweep import sweep

EXPERIMENT = sim.Experiment(
    data=sim.LatentPairs(48, latent_dim=3, dim_x=5, dim_y=7), encoder_x=sim.MLP(12, embed_dim=6),
    encoder_y=sim.Linear(6), loss=sim.InfoNCE(sim.Learned(0.2)), batch_size=16, steps=12, eval_pairs=16, eval_points=3,
)  # fmt: skip
OVER = {"encoder_x.width": [8, 12], "start.angle": [0.5, 1.0]}
POINT = {"encoder_x.width": 8, "start.angle": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "s"


@pytest.fixture(scope="module")
def data(folder):
    """A stored sweep with towers of two widths, whose parameters are kept."""
    return sweep(EXPERIMENT, over=OVER, seeds=2, key=jax.random.key(0), keep_params=True, store=folder)


def held_out(experiment, seed):
    """The observations of the held-out pairs of a seed."""
    return replica.start(experiment, jax.random.fold_in(jax.random.key(0), seed))["held_out"]


def test_towers_of_a_stored_sweep_embed_as_they_did(data, folder):
    """The narrower tower, which is filled up with NaN; another replica's tower gives other rows."""
    stored = sim.load_sweep(folder)
    assert stored.identical(data)
    kernel = stored["params.x.hidden.0.kernel"]
    assert kernel.dims == (*OVER, "seed", "params.x.hidden.0.kernel_0", "params.x.hidden.0.kernel_1")
    assert kernel.shape == (2, 2, 2, 5, 12)
    assert np.isnan(kernel.sel(POINT)[:, 8:]).all()
    np.testing.assert_allclose(np.exp(-stored["params.log_scale"]), stored.temperature.isel(step=-1), rtol=1e-6)
    one, here = (
        stored.sel(POINT),
        dataclasses.replace(EXPERIMENT, encoder_x=sim.MLP(8, embed_dim=6), start=sim.Cones(1.0)),
    )
    batch, run = held_out(here, 1), sim.train(here, key=jax.random.fold_in(jax.random.key(0), 1))
    for name, tower, own in zip("xy", sim.towers(EXPERIMENT, one), (run.encoder_x, run.encoder_y), strict=True):
        rows = tower(getattr(batch, name))
        np.testing.assert_allclose(normalize_rows(rows), one[name], atol=1e-6)
        np.testing.assert_allclose(rows, own(getattr(batch, name)), rtol=2e-4, atol=2e-4)
    _, other = sim.towers(EXPERIMENT, stored.sel(POINT | {"start.angle": 0.5}))
    assert np.abs(normalize_rows(other(batch.y)) - one.y.values).max() > 1e-2


def test_in_memory_as_in_a_store(data):
    kept = sweep(EXPERIMENT, over=OVER, seeds=2, key=jax.random.key(0), keep_params=True)
    assert kept.data_vars.keys() == data.data_vars.keys()
    without = sweep(EXPERIMENT, over=OVER, seeds=2, key=jax.random.key(0))
    assert not [name for name in without.data_vars if name.startswith("params.")]
    assert kept[[*without.data_vars]].equals(without)


def test_a_store_tells_whether_it_keeps_parameters(folder, data):
    with pytest.raises(ValueError, match=r"differs in keep_params \(True there, None here\). Give another folder"):
        sweep(EXPERIMENT, over=OVER, seeds=2, key=jax.random.key(0), store=folder)


@pytest.mark.slow
def test_swept_objects_and_free_rows():
    """A tower that is swept as a whole is given in its place; a Table maps row numbers."""
    table = dataclasses.replace(EXPERIMENT, encoder_x=sim.Table(6), encoder_y=sim.Table(6), start=None)
    over = {"encoder_x": [sim.Table(6), sim.Linear(6)]}
    data = sweep(table, over=over, seeds=1, key=jax.random.key(0), keep_params=True).isel(seed=0)
    rows, _ = sim.towers(table, data.isel(encoder_x=0))
    np.testing.assert_allclose(normalize_rows(rows(jnp.arange(48))), data.x.isel(encoder_x=0), atol=1e-6)
    with pytest.raises(ValueError, match=r"differs in .*encoder_x.*in place of a swept object"):
        sim.towers(table, data.isel(encoder_x=1))
    linear, _ = sim.towers(dataclasses.replace(table, encoder_x=sim.Linear(6)), data.isel(encoder_x=1))
    assert linear(jnp.ones((3, 5))).shape == (3, 6)


def one_of(data, **changes):
    return data.sel(POINT).assign(changes)


BAD = {
    "several": (lambda d: (EXPERIMENT, d.sel({"start.angle": 1.0})), r"hold several replicas; choose one of encoder_x.width, seed"),
    "no parameters": (lambda d: (EXPERIMENT, d.sel(POINT)[["loss"]]), r"call sweep\(\.\.\., keep_params=True\)"),
    "no sweep": (lambda d: (EXPERIMENT, d.sel(POINT).drop_attrs()), "do not say which sweep made them"),
    "a coordinate less": (lambda d: (EXPERIMENT, d.sel(POINT, drop=True)), "lost the coordinate encoder_x.width"),
    "another activation": (
        lambda d: (dataclasses.replace(EXPERIMENT, encoder_x=sim.MLP(12, embed_dim=6, activation="tanh")), d.sel(POINT)),
        r"differs in encoder_x.activation \('relu' there, 'tanh' here\)",
    ),
    "other names": (
        lambda d: (EXPERIMENT, d.sel(POINT).rename({"params.x.out.bias": "params.x.last.bias"})),
        r"they differ in params.x.out.bias. Flax may have changed its names",
    ),
    "another shape": (
        lambda d: (EXPERIMENT, d.sel(POINT).drop_vars("params.x.out.bias").assign({"params.x.out.bias": ("short", np.ones(4))})),
        r"params.x.out.bias has shape \[4\] and these towers need \[6\]",
    ),
    "not trained": (
        lambda d: (EXPERIMENT, one_of(d, **{"params.x.out.bias": np.nan * d["params.x.out.bias"].sel(POINT)})),
        "is not finite; the replica is not trained yet",
    ),
    "diverged": (lambda d: (EXPERIMENT, one_of(d, bad_step=3)), "this replica diverged at step 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_towers(data, case):
    build, words = BAD[case]
    with pytest.raises(ValueError, match=words) as found:
        sim.towers(*build(data))
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_a_diverged_replica_keeps_no_number(tmp_path):
    """A learning rate of 1e30 makes the loss NaN; the other replica keeps its parameters."""
    wild = dataclasses.replace(EXPERIMENT, normalize=False, loss=sim.InfoNCE(0.1, similarity="dot"))
    data = sweep(
        wild, over={"learning_rate": [1e-3, 1e30]}, seeds=1, key=jax.random.key(0), keep_params=True, keep_diverged=True,
        metrics={"whole": lambda s: s.step},
    )  # fmt: skip
    assert (data.bad_step[:, 0].values >= 0).tolist() == [False, True]
    for name in (n for n in data.data_vars if n.startswith("params.")):
        assert np.isfinite(data[name][0]).all(), name
        assert np.isnan(data[name][1]).all(), name
    assert data.whole[1, 0].values.tolist()[-1] == -1
    assert data.whole[0, 0].values.tolist()[-1] == 12
