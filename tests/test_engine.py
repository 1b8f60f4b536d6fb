"""The engine against a plain loop over steps and replicas, and the choices it makes."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logsumexp

import simulator as sim
from simulator.data import take
from simulator.training import engine, replica, runs
from simulator.training.runs import calibrate, evaluation_steps, train_replicas

SMALL = dict(
    data=sim.LatentPairs(96, latent_dim=4, dim_x=8, dim_y=12), encoder_x=sim.MLP(16, embed_dim=8),
    encoder_y=sim.MLP(16, embed_dim=8), batch_size=32, steps=500, eval_pairs=48, eval_points=3,
)  # fmt: skip


def plain_loop(experiment: sim.Experiment, key):
    """One replica, step by step: the loss written with two logsumexps and differentiated by JAX."""
    state = replica.start(experiment, key)
    params, source, order = state["params"], state["source"], state["order"]
    optimizer = experiment.optimizer(experiment.learning_rate)
    opt_state = optimizer.init(params)
    batches = experiment.data.num_pairs // experiment.batch_size

    @jax.jit
    def step(params, opt_state, batch):
        def loss(params):
            x, y = replica.embed(params, experiment, batch)
            scores = x @ y.T / experiment.loss.temperature
            return jnp.mean(0.5 * (logsumexp(scores, 1) + logsumexp(scores, 0)) - jnp.diagonal(scores))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i in range(experiment.steps):
        if i % batches == 0:
            order = jax.random.permutation(jax.random.fold_in(state["key"], i), experiment.data.num_pairs)
        first = i % batches * experiment.batch_size
        params, opt_state = step(params, opt_state, take(source, order[first : first + experiment.batch_size]))
    return replica.embed(params, experiment, state["held_out"])


@pytest.mark.slow
def test_float64_training_equals_a_plain_loop():
    experiment = sim.Experiment(**SMALL, dtype="float64", loss=sim.InfoNCE(0.05))
    keys = jax.random.split(jax.random.key(0), 4)
    rows = train_replicas(experiment, {}, keys, replicas_per_block=2).rows
    x, y = rows["x"], rows["y"]
    for number in (0, 3):
        found = plain_loop(experiment, keys[number])
        np.testing.assert_allclose((x[number], y[number]), found, atol=1e-8)
    other = plain_loop(dataclasses.replace(experiment, loss=sim.InfoNCE(0.0505)), keys[0])
    assert np.abs(x[0] - np.asarray(other[0])).max() > 1e-4  # a temperature 1 % off is seen


@pytest.mark.slow
def test_float32_training_ends_with_the_same_gaps_as_a_plain_loop():
    """Seed by seed, to 1e-4: a hundredth of the standard error over the seeds. A temperature 1 % off shifts them by 1e-3."""
    experiment = sim.Experiment(**SMALL, loss=sim.InfoNCE(0.05))
    keys = jax.random.split(jax.random.key(0), 8)
    gaps = [float(jnp.linalg.norm(sim.gap_vector(*plain_loop(experiment, key)))) for key in keys]
    assert 0.02 * np.std(gaps, ddof=1) / len(gaps) ** 0.5 > 1e-4
    differences = lambda e: np.abs(train_replicas(e, {}, keys)[0]["gap_norm"][:, -1] - gaps)
    assert differences(experiment).max() < 1e-4
    assert differences(dataclasses.replace(experiment, loss=sim.InfoNCE(0.0505))).max() > 1e-4


@pytest.mark.slow
def test_results_do_not_depend_on_the_slices_of_time_or_the_number_of_blocks(monkeypatch):
    experiment = sim.Experiment(**SMALL | dict(steps=60))
    keys = jax.random.split(jax.random.key(0), 4)
    whole = train_replicas(experiment, {}, keys, replicas_per_block=2)
    one = lambda start, stop, bar: ((np.int32(i), np.int32(i + 1)) for i in range(start, stop))
    monkeypatch.setattr(runs, "_slices", one)
    sliced = train_replicas(experiment, {}, keys, replicas_per_block=2)
    for left, right in zip(whole[0].values(), sliced[0].values(), strict=True):
        np.testing.assert_array_equal(left, right)
    first = train_replicas(experiment, {}, keys[:2], replicas_per_block=2)
    for left, right in zip(whole[0].values(), first[0].values(), strict=True):
        np.testing.assert_array_equal(left[:2], right)


@pytest.mark.slow
def test_the_number_of_devices_changes_no_bit():
    code = (
        "import sys, jax; jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))\n"
        "import json, numpy as np, simulator as sim\n"
        "from simulator.training.runs import train_replicas\n"
        "e = sim.Experiment(data=sim.LatentPairs(64), encoder_x=sim.MLP(16), encoder_y=sim.MLP(16), batch_size=32, "
        "steps=50, eval_pairs=32, eval_points=3)\n"
        "h = train_replicas(e, {}, jax.random.split(jax.random.key(0), 7), replicas_per_block=2)[0]\n"
        "print(json.dumps([float(v).hex() for v in h['loss'].ravel()]))"
    )
    # Threads that help with a matrix product change the order of its sums; `gapsim` turns them off for sweeps.
    flags = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    command = [sys.executable, "-c", code]
    out = [
        subprocess.run([*command, devices], capture_output=True, text=True, check=True, env=flags).stdout
        for devices in "123"
    ]
    assert len(json.loads(out[0])) == 7 * 3
    assert out[1] == out[2]
    # XLA optimises a program for a single device differently: there the last bits move.
    one, two = ([float.fromhex(v) for v in json.loads(text)] for text in out[:2])
    np.testing.assert_allclose(one, two, rtol=2e-6)


def test_layouts_leave_no_device_idle(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    for count, size, shards, expected in (
        (1, 8, 1, (8, 1, 8)), (3, 2, 1, (2, 2, 4)), (64, 4, 1, (4, 4, 64)), (20, 4, 1, (4, 4, 32)), (20, 4, 2, (4, 2, 24)),
    ):  # fmt: skip
        layout, padded = engine.plan(count, size, shards)
        assert (layout.replicas_per_block, layout.num_groups, padded) == expected
        assert padded % (layout.replicas_per_block * layout.num_groups) == 0
    with pytest.raises(ValueError, match="batch_shards is 8 and there are 4 devices"):
        engine.plan(1, 1, 8)
    assert engine.block_size_from_memory(10**9, 64) == 2
    assert engine.block_size_from_memory(10**3, 64) == 8
    assert engine.block_size_from_memory(10**3, 8) == 2


@pytest.mark.slow
def test_calibration_measures_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "CANDIDATES", (1, 2))
    calls = []
    measure = engine.median_seconds
    monkeypatch.setattr(engine, "median_seconds", lambda run, **_: calls.append(1) or measure(run, least=0.0))
    experiment = sim.Experiment(**SMALL)
    best = calibrate(experiment)
    assert best in (1, 2)
    assert calibrate(dataclasses.replace(experiment, steps=7, learning_rate=0.5)) == best
    assert len(calls) == 4  # of each candidate a step, and then enough steps
    (tmp_path / "gapsim" / "block_sizes.json").write_text("broken")
    assert calibrate(experiment) in (1, 2)


def test_the_fastest_block_is_taken_and_hopeless_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cases = (
        ((3.0, 2.0, 2.1, 1.0), 16, 4),
        ((2.0, 1.0, 1.3, 0.5), 4, 3),
        ((1.0, 1.3, 0, 0), 2, 2),
        ((1.0, 0.97, 0.96, 0.951), 2, 4),  # a larger block that is hardly faster is not taken
    )
    for seconds, best, tried in cases:
        asked = []
        measured = dict(zip(engine.CANDIDATES, seconds, strict=True))
        found = engine.calibrated_block_size(str(seconds), lambda c, m=measured, a=asked: a.append(c) or m[c])
        assert (found, len(asked)) == (best, tried)
        assert engine.calibrated_block_size(str(seconds), None) == best


def test_a_broken_or_unwritable_cache_only_costs_a_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "gapsim").mkdir()
    for broken in ("broken", "[]"):
        (tmp_path / "gapsim" / "block_sizes.json").write_text(broken)
        assert engine.calibrated_block_size("shapes", lambda candidate: float(candidate)) == 2
        assert engine.calibrated_block_size("shapes", None) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert engine.calibrated_block_size("shapes", lambda candidate: 1.0 / candidate) == 16


def test_slices_cover_the_steps_once():
    class Bar:
        total = 0

        def update(self, n):
            self.total += n

    bar = Bar()
    pieces = list(runs._slices(3, 1000, bar))
    assert pieces[0][0] == 3
    assert pieces[-1][1] == 1000
    assert all(a[1] == b[0] for a, b in zip(pieces[:-1], pieces[1:], strict=True))
    assert bar.total == 997
    assert evaluation_steps(1000, 5)[-1] == 1000


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="counts the memory maps of Linux")
def test_programs_are_forgotten_before_they_fill_the_memory_maps(key):
    def maps():
        with open("/proc/self/maps") as file:
            return len(file.readlines())

    jax.clear_caches()
    before = maps()
    train_replicas(sim.Experiment(**SMALL | dict(steps=2, eval_points=2)), {}, key[None])
    after = maps()
    engine.release_programs()
    assert maps() >= after - 50  # far from the limit: kept
    engine.release_programs(share=0.0)
    assert maps() < before + 0.3 * (after - before)
