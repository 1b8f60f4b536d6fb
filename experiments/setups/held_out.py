"""Training of towers on full batches, measured on pairs that were not trained."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from experiments.setups.trained_towers import outputs, recorded
from simulator.losses import info_nce


@functools.partial(jax.jit, static_argnames="graphs")
def train(graphs, params, inputs, shown, temperature, learning_rate, steps):
    """Raw outputs (x, y) on the inputs `shown`, [replica, step, n, d] each, at the given steps of Adam on the cosine
    InfoNCE of all `inputs`; replicas are vmapped, and all but the graphs and the numbers have a leading axis of them."""
    optimizer = optax.adam(learning_rate)

    def one(params, inputs, shown):
        loss = lambda p: info_nce(*outputs(graphs, p, inputs), temperature=temperature)

        def step(state):
            updates, memory = optimizer.update(jax.grad(loss)(state[0]), state[1], state[0])
            return optax.apply_updates(state[0], updates), memory

        start = params, optimizer.init(params)
        return recorded(step, start, steps, lambda state: outputs(graphs, state[0], shown))

    return jax.vmap(one)(params, inputs, shown)
