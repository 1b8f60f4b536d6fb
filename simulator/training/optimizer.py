"""The optimiser of an experiment: optax's, with Adam in a form that divides once per parameter and step.

For small towers Adam is a fifth of a step, and most of that is divisions and square roots. `optax.adam` divides both
moments by their bias corrections; Kingma & Ba 2015 (end of section 2) move these into two numbers per step:

    m̂/(√v̂ + ε) = (r/c) m/(√v + ε r),    c = 1 − β₁ᵗ,  r = √(1 − β₂ᵗ).
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from simulator.losses import learned_numbers, parameter_name
from simulator.training.experiment import Experiment

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # optax.adam's defaults


def make_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """experiment.optimizer(learning_rate), for optax.adam in the equal form above (the same steps but for rounding). A learned
    number of the loss has no weight decay, and its own optimiser where it has its own learning rate."""
    make = _adam if experiment.optimizer is optax.adam else experiment.optimizer
    optimizer = make(experiment.learning_rate)
    learned = {parameter_name(path): number for path, number in learned_numbers(experiment.loss).items()}
    if own := {name: make(n.learning_rate) for name, n in learned.items() if n.learning_rate is not None}:
        labels = lambda params: {name: f"own {name}" if name in own else "rest" for name in params}
        optimizers = {f"own {name}": one for name, one in own.items()} | dict(rest=optimizer)
        optimizer = optax.multi_transform(cast(Any, optimizers), labels)
    return _without_decay(optimizer, tuple(learned)) if learned else optimizer


def _without_decay(optimizer: optax.GradientTransformation, names: tuple[str, ...]) -> optax.GradientTransformation:
    """The optimiser for which the named parameters are 0: decay in proportion to a parameter leaves them alone."""

    def update(updates, state, params=None):
        seen = None if params is None else params | {name: jnp.zeros_like(params[name]) for name in names}
        return optimizer.update(updates, state, seen)

    return optax.GradientTransformation(optimizer.init, update)


def _adam(learning_rate: Any) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, state.mu, updates)
        square = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g**2, state.nu, updates)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        root = jnp.sqrt(1 - BETA_2**count)
        factor, floor = -rate * root / (1 - BETA_1**count), EPSILON * root
        step = lambda m, v: factor.astype(m.dtype) * m / (jnp.sqrt(v) + floor.astype(m.dtype))
        return jax.tree.map(step, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)
