"""The counted costs, against XLA's own count, the program that is sent, and the stored measurement."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import simulator as sim
from experiments.bench import cost_model
from experiments.bench.cost_model import Machine, most_useful_shards, parameters, seconds, sharded_cost, step_cost
from experiments.bench.engines import DIM_X, DIM_Y, WIDTH
from simulator.losses import info_nce, normalize_rows
from simulator.losses.partition import ring_partition
from simulator.storage.results import load_dataset

GATHERING = {"all_gather", "all_gather_invariant", "all_to_all", "reduce_scatter", "pgather"}
STORED = Path(__file__).parents[1] / "figures" / "performance.nc"


def _products(jaxpr) -> float:
    """Operations of all matrix products in a jaxpr, those of inner jaxprs included; loops count by their length."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1)
        for inner in jaxprs_in_params(equation.params):
            total += times * _products(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner_size = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * np.prod(equation.outvars[0].aval.shape) * inner_size
    return total


@pytest.mark.parametrize("embed_dim", [8, 32])
def test_counted_products_are_those_of_a_plain_step(embed_dim):
    n = 256
    shapes = [(DIM_X, WIDTH), (DIM_Y, WIDTH), (WIDTH, embed_dim), (WIDTH, embed_dim)]
    kernels = [jnp.zeros(shape) for shape in shapes]

    def loss(kernels, x, y):
        rows = [jax.nn.relu(r @ k) @ o for r, k, o in ((x, kernels[0], kernels[2]), (y, kernels[1], kernels[3]))]
        x, y = map(normalize_rows, rows)
        scores = x @ y.T
        over = jax.nn.logsumexp(scores, axis=0).mean() + jax.nn.logsumexp(scores, axis=1).mean()
        return 0.5 * over - jnp.sum(x * y) / n

    program = jax.make_jaxpr(jax.grad(loss))(kernels, jnp.zeros((n, DIM_X)), jnp.zeros((n, DIM_Y)))
    counted = step_cost(n, embed_dim).flops
    assert _products(program.jaxpr) == pytest.approx(counted, rel=1e-12)
    # Negative control: a count that lets the backward pass cost as much as the forward one.
    near_miss = counted - 2.0 * n * n * embed_dim
    assert _products(program.jaxpr) != pytest.approx(near_miss, rel=1e-3)


def test_counted_parameters_are_those_that_are_trained():
    tower = sim.MLP(WIDTH, embed_dim=24)
    experiment = sim.Experiment(
        data=sim.LatentPairs(8, dim_x=DIM_X, dim_y=DIM_Y), encoder_x=tower, encoder_y=tower, batch_size=8
    )
    from simulator.training.runs import initial_params

    leaves = jax.tree.leaves(initial_params(experiment, jax.random.split(jax.random.key(0), 1)))
    assert sum(leaf.size for leaf in leaves) == parameters(24)


@pytest.mark.parametrize("shards", [2, 8])
def test_counted_bytes_are_those_that_the_ring_sends(shards):
    n, d = 32, 5
    mesh = jax.sharding.AbstractMesh((shards,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("batch")
    ring = jax.shard_map(
        lambda a, b: jax.value_and_grad(lambda a, b: ring_partition(a, b, axis_name="batch"), argnums=(0, 1))(a, b),
        mesh=mesh, in_specs=(rows, rows), out_specs=(jax.sharding.PartitionSpec(), (rows, rows)), check_vma=False,
    )  # fmt: skip
    gathering = jax.shard_map(
        lambda a, b: jax.lax.all_gather(b, "batch", tiled=True),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    example = jnp.zeros((n, d), jnp.float32)
    program = jax.make_jaxpr(ring)(example, example).jaxpr
    hops, small = (_sent(program, names) for names in ({"ppermute"}, {"psum", "pmax", "pmin"}))
    assert not _sent(program, GATHERING)  # nothing of which a device needs more room for more devices
    assert _sent(jax.make_jaxpr(gathering)(example, example).jaxpr, GATHERING) == [n // shards * d]
    numbers, messages = sum(hops) * shards, len(hops) * shards  # every hop of the two loops is made `shards` times
    cost = sharded_cost(n, d, shards=shards)
    gradients = 2 * (1 - 1 / shards) * parameters(d)
    assert 4 * (numbers + gradients) == pytest.approx(cost.sent)
    assert small == [1, 2, 1]
    assert messages + 2 * (shards - 1) + 2 * np.log2(shards) * len(small) == cost.messages
    # Negative control: a ring in which the slopes stayed where they are would send 2 d + 2 numbers per row.
    assert 4 * (n * (2 * d + 2) + gradients) != pytest.approx(cost.sent)


def _sent(jaxpr, primitives) -> list[int]:
    """Sizes of all arrays that a jaxpr sends along a mesh axis by these primitives, inner jaxprs included; of those of a
    `cond`, the one that needs least: the safe path of the loss sends everything again."""
    sizes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in primitives:
            sizes += [variable.aval.size for variable in equation.invars]
        inner = [_sent(inner, primitives) for inner in jaxprs_in_params(equation.params)]
        sizes += min(inner, key=sum) if equation.primitive.name == "cond" else itertools.chain(*inner)
    return sizes


def test_a_large_batch_is_sent_as_long_as_it_is_computed_at_the_useful_number_of_devices():
    machine = Machine("example", 2e13, ((1.0, 1e18),), 1e18, 5e10, 0.0)
    n, d = 1_000_000, 512
    shards = most_useful_shards(n, machine)
    cost = sharded_cost(n, d, shards=round(shards))
    assert cost.sent / machine.link == pytest.approx(cost.flops / machine.flops, rel=0.01)
    assert shards == pytest.approx(1667, rel=1e-3)


def test_the_model_is_a_best_case_and_measured_points_lie_between_two_thirds_of_it_and_all_of_it():
    """No operation runs faster than its kind does alone, in large arrays; what a step loses to small ones, to reductions
    and to roots and divisions at streaming speed is less than a third."""
    data = load_dataset(STORED)
    points = cost_model.measured_points(data)
    assert len(points) >= 10 and {p["engine"] for p in points} == {"gapsim", "one_core", "sharded"}

    def agrees(points):
        return all(2 / 3 < p["share"] < 1.05 for p in points)

    assert agrees(points), [(p["engine"], p["n"], p["d"], round(p["share"], 3)) for p in points]
    # Negative controls: the same through machines whose products are 1.5 times as fast, and as slow.
    for factor in (1.5, 1 / 1.5):
        changed = data.copy(deep=True)
        changed.machine.loc[dict(rate="matmul 2048")] *= factor
        assert not agrees(cost_model.measured_points(changed))


def test_seconds_add_up():
    machine = Machine("example", 2.0, ((1.0, 4.0), (100.0, 2.0)), 5.0, 8.0, 0.5)
    cost = cost_model.Cost(2.0, ((0.5, 4.0), (10.0, 3.0), (1000.0, 2.0)), 5.0, 8.0, 2.0)
    assert seconds(cost, machine) == pytest.approx(1 + (1 + 1 + 1) + 1 + 1 + 1)


def test_info_nce_of_the_plain_step_is_the_one_of_the_library(rng):
    x, y = (normalize_rows(jnp.asarray(rng.normal(size=(6, 3)))) for _ in range(2))
    over = jax.nn.logsumexp(x @ y.T, axis=0).mean() + jax.nn.logsumexp(x @ y.T, axis=1).mean()
    plain = 0.5 * over - jnp.sum(x * y) / 6
    np.testing.assert_allclose(plain, info_nce(x, y, temperature=1.0), rtol=1e-12)
