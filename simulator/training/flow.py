"""Gradient flow of free embeddings under InfoNCE, in the time units of the theory.

ẋ_k = −n ∂L/∂x_k, ẏ_i = −n ∂L/∂y_i; on the sphere projected to the tangent space of every row. This is what
the closed-form flows of `simulator.theory` are judged against; use float64.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simulator.losses import SIMILARITIES, Similarity, info_nce, normalize_rows
from simulator.numerics.scaling import widened
from simulator.validation import require_boolean, require_number, require_one_of, require_paired


def velocity(x, y, *, temperature, similarity: Similarity = "sqeuclidean", sphere: bool = False, pairing=None):
    """(ẋ, ẏ) = −n (∂L/∂x, ∂L/∂y), both [n, d]; n is the number of rows of x. With sphere=True each row is projected
    onto the tangent space of the unit sphere at that row."""

    def loss(x, y):
        return info_nce(x, y, temperature=temperature, similarity=similarity, pairing=pairing)

    gradients = jax.grad(loss, argnums=(0, 1))(x, y)
    speeds = [-x.shape[0] * g for g in gradients]
    if sphere:
        speeds = [v - jnp.sum(v * r, axis=1, keepdims=True) * r for v, r in zip(speeds, (x, y), strict=True)]
    return tuple(speeds)


def gradient_flow(
    x,
    y,
    *,
    times,
    temperature: float,
    max_step: float,
    similarity: Similarity = "sqeuclidean",
    sphere: bool = False,
    pairing=None,
):
    """Integrate the gradient flow of free embeddings with classical Runge–Kutta (order 4, fixed step).

    ẋ_k = −n ∂L/∂x_k, ẏ_i = −n ∂L/∂y_i, L the loss of `info_nce`; on the sphere their tangential parts.

    Args:
      x, y: rows at time times[0], [n, d] each; unit rows for sphere=True.
      times: increasing times at which the rows are returned [T], in units of the flow.
      temperature: τ > 0.
      max_step: upper bound on the step; check it by halving (the error falls 16-fold).
      similarity: "sqeuclidean", "dot" or "cosine".
      sphere: flow on the unit sphere: tangential velocity, rows re-normalised after every step.
      pairing: as in `info_nce`.

    Returns:
      (x [T, n, d], y [T, n, d]) at the given times, the first being the start.

    Raises:
      ValueError: rows that cannot be paired, times that do not increase, a step or temperature <= 0.

    Example:
      >>> rows = jax.random.normal(jax.random.key(0), (2, 6, 3))
      >>> x, y = sim.gradient_flow(*rows, times=[0.0, 0.5, 1.0], temperature=0.5, max_step=0.05)
      >>> x.shape, y.shape
      ((3, 6, 3), (3, 6, 3))
    """
    require_paired(x, y)
    require_one_of("similarity", similarity, SIMILARITIES)
    require_boolean("sphere", sphere)
    require_number("temperature", temperature, above=0.0)
    require_number("max_step", max_step, above=0.0)
    times = np.asarray(times, float)
    if times.ndim != 1 or len(times) < 1 or not np.all(np.diff(times) > 0):
        raise ValueError(f"times are {times}; they must increase")
    x, y = widened(x, "x"), widened(y, "y")
    counts = np.maximum(np.ceil(np.diff(times) / max_step - 1e-9), 1).astype(int)
    steps = np.diff(times) / counts
    path = _integrate(
        x, y, jnp.asarray(counts), jnp.asarray(steps, x.dtype), jnp.asarray(temperature, x.dtype), pairing,
        similarity=similarity, sphere=sphere,
    )  # fmt: skip
    return tuple(jnp.concatenate([first[None], rest]) for first, rest in zip((x, y), path, strict=True))


@functools.partial(jax.jit, static_argnames=("similarity", "sphere"))
def _integrate(x, y, counts, steps, temperature, pairing, *, similarity, sphere):
    speed = functools.partial(velocity, temperature=temperature, similarity=similarity, sphere=sphere, pairing=pairing)

    def runge_kutta(state, step):
        add = lambda state, slope, h: jax.tree.map(lambda s, v: s + h * v, state, slope)
        k1 = speed(*state)
        k2 = speed(*add(state, k1, step / 2))
        k3 = speed(*add(state, k2, step / 2))
        k4 = speed(*add(state, k3, step))
        slope = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
        state = add(state, slope, step)
        return tuple(map(normalize_rows, state)) if sphere else state

    def to_next_time(state, interval):
        count, step = interval
        state = jax.lax.fori_loop(0, count, lambda _, s: runge_kutta(s, step), state)
        return state, state

    return jax.lax.scan(to_next_time, (x, y), (counts, steps))[1]
