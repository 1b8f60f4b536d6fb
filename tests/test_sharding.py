"""The batch spread over devices, in one process and in two: the same value, gradient and training."""

import json
import os
import socket
import subprocess
import sys

import pytest

# Runs in a process of its own: devices must be set before JAX starts. argv: processes, process number, port, output.
SCRIPT = """
import functools, json, sys
import jax
processes, number, port, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_num_cpu_devices", 4 // processes)
jax.config.update("jax_enable_x64", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
import jax.numpy as jnp, numpy as np, optax, simulator as sim
from jax.sharding import PartitionSpec as P
from simulator.losses import info_nce, sharded_info_nce

assert jax.device_count() == 4 and jax.process_count() == processes
rng = np.random.default_rng(0)
x, y = rng.normal(size=(2, 24, 5))
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
result = {}
for similarity in ("cosine", "sqeuclidean"):
    for block_size in (None, 4):
        loss = functools.partial(sharded_info_nce, axis_name="batch", similarity=similarity, block_size=block_size)

        @jax.jit
        def ring(x, y, t):
            def local(x, y, t):
                value, (dx, dy, dt) = jax.value_and_grad(lambda x, y, t: loss(x, y, temperature=t), (0, 1, 2))(x, y, t)
                dt = jax.lax.psum(dt, "batch")
                return value, jax.lax.all_gather(dx, "batch", tiled=True), jax.lax.all_gather(dy, "batch", tiled=True), dt
            return jax.shard_map(local, mesh=mesh, in_specs=(P("batch"), P("batch"), P()), out_specs=P(),
                                 check_vma=False)(x, y, t)
        value, dx, dy, dt = (np.asarray(leaf) for leaf in ring(x, y, np.float64(0.2)))
        plain = jax.value_and_grad(lambda x, y, t: info_nce(x, y, temperature=t, similarity=similarity), (0, 1, 2))
        wanted, (wx, wy, wt) = plain(jnp.asarray(x), jnp.asarray(y), 0.2)
        for found, right in ((value, wanted), (dx, wx), (dy, wy), (dt, wt)):
            np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-13)
        result[f"{similarity} {block_size}"] = float(value)

# Three replicas at a time on two pairs of devices. On the first pair partners of one replica are each other's opposite:
# e^2000 needs the safe path, and its messages, there and not on the second pair.
pairs = jax.make_mesh((2, 2), ("replica", "batch"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
many = rng.normal(size=(6, 24, 5))
partners = many + 0.1 * rng.normal(size=many.shape)
partners[1] *= -1
spread = P("replica", "batch")
loss = lambda x, y: sharded_info_nce(x, y, axis_name="batch", temperature=1e-3, block_size=5)
local = jax.vmap(jax.value_and_grad(loss, (0, 1)))
ring = jax.shard_map(local, mesh=pairs, in_specs=(spread, spread), out_specs=(P("replica"), (spread, spread)), check_vma=False)
found = jax.jit(ring, out_shardings=jax.sharding.NamedSharding(pairs, P()))(many, partners)
wanted = jax.vmap(jax.value_and_grad(lambda x, y: info_nce(x, y, temperature=1e-3), (0, 1)))(many, partners)
for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    f, w = np.asarray(f), np.asarray(w)
    np.testing.assert_allclose(f, w, rtol=1e-10, atol=1e-11 * np.abs(w).max())
result["opposite"] = np.asarray(found[0]).tolist()
# Cones opposite each other: all logits are very negative, and the last block of 4 of the 6 local rows is filled up.
away, facing = rng.normal(size=(2, 24, 5)) * 0.1 + np.eye(5)[0] * np.array([[[1]], [[-1]]])
loss = lambda x, y: sharded_info_nce(x, y, axis_name="batch", temperature=1e-3, block_size=4)
ring = jax.shard_map(jax.value_and_grad(loss, (0, 1)), mesh=mesh, in_specs=(P("batch"),) * 2,
                     out_specs=(P(), (P("batch"),) * 2), check_vma=False)
found = jax.jit(ring, out_shardings=jax.sharding.NamedSharding(mesh, P()))(away, facing)
wanted = jax.value_and_grad(lambda x, y: info_nce(x, y, temperature=1e-3), (0, 1))(away, facing)
for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    f, w = np.asarray(f), np.asarray(w)
    np.testing.assert_allclose(f, w, rtol=1e-10, atol=1e-11 * np.abs(w).max())
result["away"] = float(found[0])

common = dict(data=sim.LatentPairs(96), encoder_x=sim.MLP(16, embed_dim=8), encoder_y=sim.MLP(16, embed_dim=8),
              batch_size=48, steps=60, eval_pairs=32, eval_points=4, dtype="float64", loss=sim.InfoNCE(sim.Learned(0.1)))
from simulator.training import engine, runs
from simulator.training.runs import train_replicas
if number == 1:  # its clock runs a thousand times as fast: on its own it would cut its calls after single steps
    from types import SimpleNamespace
    monotonic = runs.time.monotonic
    runs.time = SimpleNamespace(monotonic=lambda: 1000 * monotonic())
keys = jax.random.split(jax.random.key(0), 2)
def trained(shards):
    history = train_replicas(sim.Experiment(**common, batch_shards=shards), {}, keys, replicas_per_block=1)[0]
    return history["loss"].ravel().tolist() + history["gap_norm"].ravel().tolist()
for shards in (1, 2, 4):
    result[f"training {shards}"] = trained(shards)
engine.calibrated_block_size = lambda *_: 2 + number  # each machine has measured another size
many = jax.random.split(jax.random.key(0), 16)
result["block"] = runs.lay_out(sim.Experiment(**common), {}, many, None)[-1].replicas_per_block
engine.agreed = lambda own: own
result["own clocks"] = trained(4)  # both replicas take their turns on the same four devices
single = sim.Experiment(**{**common, "dtype": "float32"})
result["replicas"] = [float(v).hex() for v in train_replicas(single, {}, keys, replicas_per_block=1)[0]["loss"].ravel()]
json.dump(result, open(output, "w"))
"""


GRADIENTS = """
import functools, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
import numpy as np
from jax.sharding import PartitionSpec as P
from simulator.losses import info_nce, normalize_rows, sharded_info_nce
from simulator.losses.partition import ring_partition

mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

def partition_alone(x, y):  # the loss without its alignment
    return ring_partition(normalize_rows(x) / 0.2, normalize_rows(y), axis_name="batch", block_size=None)

def gradients(loss):
    local = jax.grad(loss, (0, 1))
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=False))(x, y)

x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
sharded = functools.partial(sharded_info_nce, temperature=0.2, axis_name="batch")
right = jax.grad(functools.partial(info_nce, temperature=0.2), (0, 1))(x, y)
errors = [max(float(np.abs(f - r).max()) for f, r in zip(gradients(l), right)) for l in (sharded, partition_alone)]
print(*errors, max(float(np.abs(r).max()) for r in right))
"""


def test_the_gradient_on_two_devices_is_that_of_the_whole_batch():
    """With both of its parts: alignment and partition."""
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS], capture_output=True, text=True, env=os.environ, timeout=240
    )
    assert done.returncode == 0, done.stderr
    error, without_alignment, size = map(float, done.stdout.split())
    assert error < 1e-12 * size
    assert without_alignment > 0.1 * size  # control


def run(tmp_path, processes: int) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    outputs = [tmp_path / f"{processes}.{i}.json" for i in range(processes)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(processes), str(i), port, str(output)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ,
        )
        for i, output in enumerate(outputs)
    ]  # fmt: skip
    for process in running:
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, out[-3000:]
    return [json.loads(output.read_text()) for output in outputs]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1)[0]


@pytest.mark.slow
def test_a_batch_over_four_devices_trains_as_on_one(one_process):
    """Values and gradients are compared inside the script; here a short training, in float64."""
    for shards in (2, 4):
        assert one_process[f"training {shards}"] == pytest.approx(one_process["training 1"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_of_two_devices_agree_with_one(one_process, tmp_path):
    for found in run(tmp_path, 2):
        assert found["replicas"] == one_process["replicas"]  # to the bit
        # Negative control: calls cut by each process's own clock mix the messages of the two replicas.
        assert found["own clocks"] != pytest.approx(one_process["own clocks"], rel=1e-4)
        for name, value in one_process.items():
            # Gloo adds in another order in each process, so that a sum over devices has another last bit there.
            if name not in ("replicas", "own clocks"):
                assert found[name] == pytest.approx(value, rel=1e-9 if name.startswith("training") else 1e-13)
