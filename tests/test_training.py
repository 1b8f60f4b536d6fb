import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import simulator as sim
from simulator.settings import replace_field
from simulator.training.runs import evaluation_steps

SMALL = sim.Experiment(
    data=sim.LatentPairs(64, latent_dim=4, dim_x=6, dim_y=7),
    encoder_x=sim.MLP(16, embed_dim=8),
    encoder_y=sim.MLP(16, embed_dim=8),
    batch_size=16,
    steps=30,
    eval_pairs=32,
    eval_points=5,
)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def test_history_has_every_measure_and_the_gap_vector(key):
    run = sim.train(SMALL, key=key)
    names = {field.name for field in dataclasses.fields(sim.GapMeasures)} | {"loss", "temperature", "gap"}
    assert set(run.history.data_vars) == names
    assert int(run.history.step[0]) == 0
    assert int(run.history.step[-1]) == 30
    np.testing.assert_allclose(run.history.gap[-1], np.mean(run.y, 0) - np.mean(run.x, 0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(run.x, axis=1), 1.0, rtol=1e-5)
    assert run.x.shape == (32, 8)
    assert run.x.dtype == jnp.float32


def test_training_lowers_the_held_out_loss(key):
    run = sim.train(small(steps=300, loss=sim.InfoNCE(0.1), start=None), key=key)
    assert float(run.history.loss[-1]) < 0.6 * float(run.history.loss[0])


@pytest.mark.parametrize(
    ("encoder", "angle"),
    [(sim.MLP(64, embed_dim=8), 0.3), (sim.Linear(8), 1.57), (sim.MLP(16, depth=2, embed_dim=8), 2.8)],
)
def test_cones_have_their_angle_and_tightness(key, encoder, angle):
    cones = sim.Cones(angle, tightness=30.0)
    run = sim.train(small(encoder_x=encoder, encoder_y=encoder, start=cones, steps=1, eval_points=2), key=key)
    start = run.history.isel(step=0)
    assert float(start.gap_norm) == pytest.approx(2 * np.sin(angle / 2), rel=0.03)
    spread = float(start.variance_along_gap_x / start.defect_ratio_x) * 8  # trace of the covariance
    assert spread**0.5 == pytest.approx(1 / 30.0, rel=0.35)


@pytest.mark.slow
def test_collapsed_and_isotropic_starts(key):
    ranks = {}
    for shape in ("network", "collapsed", "isotropic"):
        table = small(
            encoder_x=sim.Table(8), encoder_y=sim.Table(8), start=sim.Cones(shape=shape, rank=2), steps=1, eval_points=2,
            normalize=False,
        )  # fmt: skip
        ranks[shape] = float(sim.train(table, key=key).history.effective_rank_x[0])
    assert ranks["collapsed"] == pytest.approx(2.0, abs=0.1)
    assert ranks["isotropic"] == pytest.approx(8.0, abs=0.01)
    tower = small(start=sim.Cones(shape="collapsed", rank=2), normalize=False, steps=1, eval_points=2)
    assert float(sim.train(tower, key=key).history.effective_rank_x[0]) < 2.1


def test_sweep_equals_single_runs(key):
    over = {"loss.temperature": [0.05, 0.5], "encoder_x.width": [16, 24], "start.angle": [0.5, 1.5]}
    data = sim.sweep(small(dtype="float64"), over=over, seeds=2, key=key)
    assert data.loss.dims == (*over, "seed", "step")
    single = small(
        dtype="float64", encoder_x=sim.MLP(24, embed_dim=8), loss=sim.InfoNCE(0.5), start=sim.Cones(0.5)
    )  # fmt: skip
    run = sim.train(single, key=jax.random.fold_in(key, 1))
    point = data.sel({"loss.temperature": 0.5, "encoder_x.width": 24, "start.angle": 0.5, "seed": 1})
    np.testing.assert_allclose(point.loss, run.history.loss, rtol=1e-8)
    np.testing.assert_allclose(point.x, run.x, atol=1e-8)
    assert {"config", "versions", "commit", "precision"} <= set(data.attrs)


def test_results_do_not_depend_on_the_number_of_replicas(key):
    one = sim.sweep(SMALL, over={}, seeds=1, key=key)
    three = sim.sweep(SMALL, over={}, seeds=3, key=key)
    np.testing.assert_allclose(one.loss[0], three.loss[0], rtol=1e-3)
    assert np.abs(three.loss[1] - three.loss[0]).max() > 1e-3


@pytest.mark.slow
def test_fresh_stream_schedule_and_learned_temperature(key):
    stream = small(data=dataclasses.replace(SMALL.data, num_pairs=None))
    assert np.isfinite(sim.train(stream, key=key).history.loss).all()
    schedule = small(loss=sim.InfoNCE(optax.linear_schedule(1.0, 0.1, 30)), learning_rate=optax.constant_schedule(1e-3))
    history = sim.train(schedule, key=key).history
    np.testing.assert_allclose(history.temperature[[0, -1]], [1.0, 0.1], rtol=1e-5)
    learned = sim.train(small(loss=sim.InfoNCE(sim.Learned(0.5)), learning_rate=1e-2), key=key)
    np.testing.assert_allclose(learned.history.temperature[0], 0.5, rtol=1e-6)
    assert 0.3 < float(learned.history.temperature[-1]) < 0.49
    np.testing.assert_allclose(jnp.exp(-learned.params["log_scale"]), learned.history.temperature[-1], rtol=1e-5)


def test_batches_of_an_epoch_are_a_partition(key):
    """A Table with SGD moves exactly the rows of its batches: after one epoch all, before it only some."""

    def moved(steps):
        table = small(
            encoder_x=sim.Table(8), encoder_y=sim.Table(8), optimizer=optax.sgd, learning_rate=0.1, steps=steps,
            eval_points=2, loss=sim.InfoNCE(1.0), start=None,
        )  # fmt: skip
        run = sim.train(table, key=key)
        start = sim.train(dataclasses.replace(table, steps=1, learning_rate=1e-30), key=key)
        return int(np.sum(np.abs(run.params["x"]["rows"][...] - start.params["x"]["rows"][...]).max(1) > 1e-9))

    assert [moved(1), moved(2), moved(4)] == [16, 32, 64]


def test_nan_stops_with_step_and_replica(key):
    with pytest.raises(FloatingPointError, match=r"at step \d+ in replica 2 \(learning_rate = .*, seed 0\)"):
        sim.sweep(small(optimizer=optax.sgd, normalize=False, loss=sim.InfoNCE(0.1, similarity="sqeuclidean")),
                  over={"learning_rate": [1e-5, 1e9]}, seeds=2, key=key)  # fmt: skip


@pytest.mark.parametrize(("steps", "points"), [(4000, 32), (4, 2), (1, 2), (10, 3), (3, 50)])
def test_evaluation_steps(steps, points):
    found = evaluation_steps(steps, points)
    assert found[0] == 0
    assert found[-1] == steps
    assert len(found) <= max(points, 2)
    assert np.all(np.diff(found) > 0)


def test_a_callable_encoder(key):
    class Tiny(nnx.Module):
        def __init__(self, width, rngs, dtype):
            self.out = nnx.Linear(width, 8, rngs=rngs, param_dtype=dtype)

        def __call__(self, rows):
            return self.out(rows)

    run = sim.train(small(encoder_x=lambda width, *, rngs, dtype: Tiny(width, rngs, dtype)), key=key)
    assert run.x.shape == (32, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(batch_size=65), "64 pairs"),
        (dict(learning_rate=-1.0), "learning_rate"),
        (dict(steps=0), "steps"),
        (dict(dtype="bfloat16"), "one of"),
        (dict(encoder_x=sim.Table(8), data=sim.LatentPairs(None)), "fixed num_pairs"),
        (dict(data=sim.Digits(1700), eval_pairs=100), "1797 of Digits"),
    ],
)
def test_bad_experiments(change, words):
    with pytest.raises(ValueError, match=words):
        small(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(encoder_x=sim.MLP(16, embed_dim=9)), "same embed_dim"),
        (dict(encoder_x=sim.MLP(16, embed_dim=8, bias=False)), "bias"),
        (dict(start=sim.Cones(shape="collapsed", rank=9)), "rank is 9"),
    ],
)
def test_bad_towers(key, change, words):
    with pytest.raises(ValueError, match=words):
        sim.train(small(**change), key=key)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"loss.temprature": [0.1]}, "no field 'temprature'; it has temperature"),
        ({"loss.temperature": [-0.1]}, "temperature is -0.1"),
        ({"loss.temperature": []}, "no values"),
        ({"colour": ["red"]}, "Experiment has no field 'colour'"),
    ],
)
def test_bad_sweeps(key, over, words):
    with pytest.raises(ValueError, match=words):
        sim.sweep(SMALL, over=over, seeds=1, key=key)


def test_replace_field_is_deep_and_leaves_the_original():
    changed = replace_field(SMALL, "start.angle", 0.5)
    assert changed.start.angle == 0.5
    assert SMALL.start.angle == 1.57


@pytest.mark.parametrize(
    "bad", [dict(angle=4.0), dict(angle=-0.1), dict(tightness=0.0), dict(shape="round"), dict(rank=0)]
)
def test_bad_cones(bad):
    with pytest.raises(ValueError, match="Cones"):
        sim.Cones(**bad)


def test_float64_needs_64_bit_mode(key):
    with jax.enable_x64(False), pytest.raises(ValueError, match="enable_x64"):
        sim.train(small(dtype="float64"), key=key)
