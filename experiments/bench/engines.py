"""One point of `gapsim bench`, in a process of its own: `python -m experiments.bench.engines ENGINE N REPLICAS DATA D`.

Says when it is ready, then prints JSON for every line of standard input: replica-steps per second of one turn, by setting
(PyTorch is timed at several numbers of threads), and the peak memory of the process. All engines train the same towers (MLP 32/48–128–d, ReLU), on the same batch sizes, in float32, with Adam at 1e-3 and InfoNCE at τ = 0.05.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable

from experiments.bench.machines import MACHINE, Task, serve

DIM_X, DIM_Y, WIDTH, EMBED = 32, 48, 128, 32  # d is EMBED where nothing else is said
TEMPERATURE, LEARNING_RATE = 0.05, 1e-3
# Steps of the engine in one call: a call copies the state (32 ms at 256 replicas), and one of a sweep makes some 30 steps.
LEAST_STEPS = 16


def gapsim(n: int, replicas: int, data: str, embed_dim: int) -> Task:
    """This engine, as `gapsim sweep` runs it."""
    program, arguments, keywords = trained_program(n, replicas, data, embed_dim)
    import jax

    def run(steps):
        jax.block_until_ready(program(*arguments(steps), **keywords))

    return Task(run, replicas, LEAST_STEPS)


def trained_program(n: int, replicas: int, data: str, embed_dim: int, *, shards: int | None = None):
    """(compiled function, steps -> its arguments, its keywords) of this engine's training; `shards` spreads the batch of
    a single replica over that many devices."""
    from simulator.training.devices import use_all_cores

    use_all_cores(only_sweeps=True)
    import jax
    import numpy as np

    import simulator as sim
    from simulator.training import replica, runs

    experiment = sim.Experiment(
        data=sim.LatentPairs(n if data == "fixed" else None, dim_x=DIM_X, dim_y=DIM_Y),
        encoder_x=sim.MLP(WIDTH, embed_dim=embed_dim), encoder_y=sim.MLP(WIDTH, embed_dim=embed_dim),
        loss=sim.InfoNCE(TEMPERATURE, block_size=256 if shards else None), batch_shards=shards or 1,
        learning_rate=LEARNING_RATE, batch_size=n, steps=1000, eval_pairs=64,
    )  # fmt: skip
    per_block = 1 if shards else runs.calibrate(experiment)
    keys = jax.random.split(jax.random.key(0), replicas)
    template, values, keys, layout = runs.lay_out(experiment, {}, keys, min(per_block, -(-replicas // 2)))
    state = replica.initialise(template, values, keys, layout=layout)
    return (
        replica.advance,
        lambda steps: (template, values, state, np.int32(0), np.int32(steps)),
        dict(layout=layout),
    )


def one_core(n: int, replicas: int, data: str, embed_dim: int) -> Task:
    """This engine with a single core."""
    _use_cores(1)
    return gapsim(n, replicas, data, embed_dim)


def _use_cores(count: int):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def sharded(n: int, shards: int, data: str, embed_dim: int) -> Task:
    """This engine with one replica whose batch is spread over as many devices and cores, in blocks of 256 rows of logits."""
    _use_cores(shards)
    program, arguments, keywords = trained_program(n, 1, data, embed_dim, shards=shards)
    import jax

    def run(steps):
        jax.block_until_ready(program(*arguments(steps), **keywords))

    return Task(run, least=LEAST_STEPS)


def first_result(n: int, replicas: int, data: str, embed_dim: int) -> float:
    """Seconds to the results of the first sweep of a process that has imported everything and whose programs are in the compilation cache:
    `sim.sweep` of 10 steps and all measures."""
    from simulator.training.devices import use_all_cores

    use_all_cores(only_sweeps=True)
    import jax
    import xarray  # the sweep imports it; no part of what is timed

    import simulator as sim

    tower = sim.MLP(WIDTH, embed_dim=embed_dim)
    experiment = sim.Experiment(
        data=sim.LatentPairs(n if data == "fixed" else None, dim_x=DIM_X, dim_y=DIM_Y), encoder_x=tower, encoder_y=tower,
        loss=sim.InfoNCE(TEMPERATURE), learning_rate=LEARNING_RATE, batch_size=n, steps=10, eval_pairs=64, eval_points=2,
    )  # fmt: skip
    started = time.perf_counter()
    sim.sweep(experiment, over={"loss.temperature": [TEMPERATURE]}, seeds=replicas, key=jax.random.key(0))
    return time.perf_counter() - started


def jax_loop(n: int, replicas: int, data: str, embed_dim: int) -> Task:
    """A jitted Flax and Optax step, called from a Python loop; replicas would follow one another."""
    _use_full_vectors()
    import jax
    import optax
    from flax import nnx

    graph, params = nnx.split(_flax_pair(embed_dim))
    optimizer = optax.adam(LEARNING_RATE)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, x, y):
        gradient = jax.grad(lambda params: _flax_loss(nnx.merge(graph, params), x, y))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run(steps):
        p, o = params, opt_state
        for i in range(steps):
            p, o = step(p, o, *batch(i))
        jax.block_until_ready(p)

    batch = _jax_batches(n, data)
    return Task(run)


def flax_loop(n: int, replicas: int, data: str, embed_dim: int) -> Task:
    """The loop of Flax's own tutorials: `nnx.jit` around a step that updates a module through `nnx.Optimizer`."""
    _use_full_vectors()
    import jax
    import optax
    from flax import nnx

    pair = _flax_pair(embed_dim)
    optimizer = nnx.Optimizer(pair, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    @nnx.jit
    def step(pair, optimizer, x, y):
        value, gradient = nnx.value_and_grad(_flax_loss)(pair, x, y)
        optimizer.update(pair, gradient)
        return value

    def run(steps):
        for i in range(steps):
            value = step(pair, optimizer, *batch(i))
        jax.block_until_ready(value)

    batch = _jax_batches(n, data)
    return Task(run)


def _use_full_vectors():
    """As wide as in this engine (some 5 % faster than XLA's default); before JAX computes anything."""
    from simulator.training.compiler import use_flags
    from simulator.training.devices import cache_folder

    use_flags("--xla_cpu_prefer_vector_width=512", memory=cache_folder() / "xla_flags.json")


def _flax_pair(embed_dim: int):
    import jax.numpy as jnp
    from flax import nnx

    class Tower(nnx.Module):
        def __init__(self, width_in, rngs):
            self.first = nnx.Linear(width_in, WIDTH, rngs=rngs)
            self.second = nnx.Linear(WIDTH, embed_dim, rngs=rngs)

        def __call__(self, rows):
            rows = self.second(nnx.relu(self.first(rows)))
            return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)

    return nnx.List([Tower(DIM_X, nnx.Rngs(0)), Tower(DIM_Y, nnx.Rngs(1))])


def _flax_loss(pair, x, y):
    import jax.numpy as jnp
    import optax

    scores = pair[0](x) @ pair[1](y).T / TEMPERATURE
    labels = jnp.arange(len(scores))
    cross = optax.softmax_cross_entropy_with_integer_labels
    return 0.5 * (cross(scores, labels).mean() + cross(scores.T, labels).mean())


def _jax_batches(n: int, data: str):
    """step -> (x, y): one fixed batch, or fresh pairs from a jitted generator."""
    import jax

    def pairs(key):
        keys = jax.random.split(key, 3)
        z = jax.random.normal(keys[0], (n, 8))
        x, y = z @ mix_x, z @ mix_y
        return x + 0.05 * jax.random.normal(keys[1], x.shape), y + 0.05 * jax.random.normal(keys[2], y.shape)

    mix_x, mix_y = (jax.random.normal(jax.random.key(i), (8, d)) / 8**0.5 for i, d in enumerate((DIM_X, DIM_Y)))
    fresh = jax.jit(lambda i: pairs(jax.random.fold_in(jax.random.key(0), i)))
    fixed = fresh(0)
    return (lambda i: fixed) if data == "fixed" else fresh


def torch_loop(n: int, replicas: int, data: str, embed_dim: int) -> dict[str, Task]:
    """A PyTorch loop at several numbers of threads: fused Adam, no `.item()`; replicas would follow one another."""
    import torch

    functional = torch.nn.functional
    labels = torch.arange(n)

    def tower(width_in):
        return torch.nn.Sequential(torch.nn.Linear(width_in, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, embed_dim))

    mix_x, mix_y = torch.randn(8, DIM_X) / 8**0.5, torch.randn(8, DIM_Y) / 8**0.5

    def pairs():
        z = torch.randn(n, 8)
        return z @ mix_x + 0.05 * torch.randn(n, DIM_X), z @ mix_y + 0.05 * torch.randn(n, DIM_Y)

    torch.manual_seed(0)
    tower_x, tower_y = tower(DIM_X), tower(DIM_Y)
    optimizer = torch.optim.Adam([*tower_x.parameters(), *tower_y.parameters()], LEARNING_RATE, fused=True)
    fixed = pairs()

    def run(steps, threads):
        torch.set_num_threads(threads)
        for _ in range(steps):
            x, y = fixed if data == "fixed" else pairs()
            scores = functional.normalize(tower_x(x), dim=1) @ functional.normalize(tower_y(y), dim=1).T / TEMPERATURE
            loss = 0.5 * (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    counts = sorted({1, len(os.sched_getaffinity(0))})
    return {f"{threads} threads": Task(functools.partial(run, threads=threads)) for threads in counts}


def torch_vmap(n: int, replicas: int, data: str, embed_dim: int) -> Task:
    """torch.func: gradients of stacked replicas by vmap, one fused Adam over the stacks."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    functional = torch.nn.functional
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(d, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, embed_dim))
                for d in (DIM_X, DIM_Y)
            )

        def forward(self, x, y):
            rows = [functional.normalize(t(r), dim=1) for t, r in zip(self.towers, (x, y), strict=True)]
            scores = rows[0] @ rows[1].T / TEMPERATURE
            paired = torch.diagonal(scores)
            return 0.5 * (torch.logsumexp(scores, 1) + torch.logsumexp(scores, 0)).mean() - paired.mean()

    models = [Pair() for _ in range(replicas)]
    params, buffers = stack_module_state(models)
    gradient: Callable = vmap(grad(lambda p, b, x, y: functional_call(models[0], (p, b), (x, y))))
    optimizer = torch.optim.Adam(list(params.values()), LEARNING_RATE, fused=True)
    x, y = torch.randn(replicas, n, DIM_X), torch.randn(replicas, n, DIM_Y)

    def run(steps):
        nonlocal x, y
        for _ in range(steps):
            if data == "fresh":
                x, y = torch.randn(replicas, n, DIM_X), torch.randn(replicas, n, DIM_Y)
            found = gradient({k: v.detach() for k, v in params.items()}, buffers, x, y)
            for name, leaf in params.items():
                leaf.grad = found[name]
            optimizer.step()

    return Task(run, replicas)


ENGINES = dict(
    gapsim=gapsim, one_core=one_core, sharded=sharded, jax_loop=jax_loop, flax_loop=flax_loop, torch_loop=torch_loop,
    torch_vmap=torch_vmap,
)  # fmt: skip

if __name__ == "__main__":
    engine, n, replicas, data, embed_dim = sys.argv[1:6]
    if engine == "first_result":
        print(json.dumps(first_result(int(n), int(replicas), data, int(embed_dim))))
    else:
        if engine in MACHINE:
            _use_cores(int(replicas))
            task = MACHINE[engine](int(n))
        else:
            task = ENGINES[engine](int(n), int(replicas), data, int(embed_dim))
        serve(task if isinstance(task, dict) else {"": task})
