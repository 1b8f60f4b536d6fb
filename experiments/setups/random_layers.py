"""Random layers and what they do to the cosine of two inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ACTIVATIONS = ("relu", "gelu", "tanh")


@functools.partial(jax.jit, static_argnames=("depth", "networks", "summary"))
def _layer_by_layer(inputs, key, which, weight_variance, bias_variance, *, depth, networks, summary):
    width = inputs.shape[1]

    def one(key):
        def layer(rows, key):
            weight_key, bias_key = jax.random.split(key)
            weights = jax.random.normal(weight_key, (width, width), rows.dtype) * jnp.sqrt(weight_variance / width)
            bias = jax.random.normal(bias_key, (width,), rows.dtype) * jnp.sqrt(bias_variance)
            rows = jax.lax.switch(which, [getattr(nnx, name) for name in ACTIVATIONS], rows @ weights + bias[None, :])
            return rows, summary(rows)

        return jnp.append(summary(inputs), jax.lax.scan(layer, inputs, jax.random.split(key, depth))[1])

    return jax.lax.map(one, jax.random.split(key, networks))


def layer_by_layer(
    inputs,
    key,
    *,
    depth: int,
    activation: str,
    networks: int,
    weight_variance=1.0,
    bias_variance=0.0,
    summary: Callable,
) -> np.ndarray:
    """`summary` of the rows [n, width] after 0, 1, …, depth layers of random networks, [networks, depth + 1].

    Weights have variance weight_variance/width; all layers are as wide as the inputs."""
    inputs = jnp.asarray(inputs)
    variances = (jnp.asarray(v, inputs.dtype) for v in (weight_variance, bias_variance))
    return np.asarray(
        _layer_by_layer(
            inputs, key, ACTIVATIONS.index(activation), *variances, depth=depth, networks=networks, summary=summary
        )
    )


def mean_cosine(rows):
    """Mean cosine over all n² ordered pairs of rows, those of a row with itself included."""
    units = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.sum(jnp.mean(units, axis=0) ** 2)


def distinct_cosine(rows):
    """Mean cosine over the pairs of different rows."""
    n = len(rows)
    return (n * mean_cosine(rows) - 1) / (n - 1)


def orthogonal_inputs(count: int, width: int) -> np.ndarray:
    """Orthogonal rows [count, width] with ‖·‖² = width."""
    return np.eye(count, width) * width**0.5


def two_inputs(norm_u: float, norm_v: float, cosine: float, width: int) -> np.ndarray:
    """Rows u, v [2, width] with ‖·‖² = width · norm² and the given cosine; what a Gaussian layer does depends on no
    more of them."""
    rows = np.zeros((2, width))
    rows[0, 0] = norm_u
    rows[1, :2] = norm_v * np.array([cosine, np.sqrt(1 - cosine**2)])
    return rows * width**0.5


def single_layers(width: int, layers: int, seed: int) -> np.ndarray:
    """Random layers of two inputs, as pre-activations of (first axis, second axis, bias), [3, layers, width]; √width
    times the weights, which no cosine feels."""
    return np.random.default_rng([seed, width]).normal(size=(3, layers, width))


def layer_cosines(layers, norm_u: float, norm_v: float, cosine: float) -> np.ndarray:
    """Cosine of two inputs after each of the random ReLU layers with bias, [layers]."""
    first, second, bias = layers
    p = np.maximum(norm_u * first + bias, 0)
    q = np.maximum(norm_v * (cosine * first + np.sqrt(1 - cosine**2) * second) + bias, 0)
    dot = lambda a, b: np.einsum("ld,ld->l", a, b)
    return dot(p, q) / np.sqrt(dot(p, p) * dot(q, q))
