"""Adam with one division against optax's own, over the steps of a noisy descent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import simulator as sim
from simulator.training.optimizer import make_optimizer

STEPS = 300


def descend(optimizer, dtype):
    """Parameters [step, 80] whose gradients span twelve decades, some of them far below epsilon."""
    start = jax.random.normal(jax.random.key(0), (80,), dtype)
    scale = 10.0 ** jnp.linspace(-12, 0, 80).astype(dtype)

    def step(carry, key):
        params, state = carry
        gradient = scale * (params + jax.random.normal(key, params.shape, dtype))
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    path = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(jax.random.key(1), STEPS))[1]
    return np.asarray(path)


SCHEDULE = optax.cosine_decay_schedule(0.01, STEPS)


@pytest.mark.parametrize("rate", [0.01, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_is_adam(rate, dtype):
    with jax.enable_x64(dtype == "float64"):
        found = descend(make_optimizer(sim.Experiment(learning_rate=rate)), dtype)
        assert found.dtype == dtype
        expected = descend(optax.adam(rate), dtype)
        close = lambda other: np.abs(found - other).max() < (1e-12 if dtype == "float64" else 1e-6)
        assert close(expected)
        # near misses: beta, epsilon, one step early in the schedule
        assert not close(descend(optax.adam(rate, b2=0.9995), dtype))
        assert not close(descend(optax.adam(rate, eps=2e-8), dtype))
        if callable(rate):
            assert not close(descend(optax.adam(lambda count: SCHEDULE(count + 1)), dtype))


def test_other_optimizers_are_untouched():
    experiment = sim.Experiment(optimizer=optax.sgd, learning_rate=0.5)
    gradient = jnp.arange(3.0)
    optimizer = make_optimizer(experiment)
    np.testing.assert_array_equal(optimizer.update(gradient, optimizer.init(gradient))[0], -0.5 * gradient)
    assert make_optimizer(dataclasses.replace(experiment, optimizer=lambda rate: rate)) == 0.5
