"""Paired data of two modalities: synthetic pairs with every knob, and one real data set.

A data configuration is a frozen dataclass. `draw_world` draws what stays fixed for a whole experiment
(the mixing matrices, the cluster centres, a shuffle of real data), `draw_pairs` draws pairs from that
world, and `sample` does both. Knobs for mismatched, one-to-many, private or imbalanced pairs belong
in `LatentPairs`, between the latent and the mixing (see `draw_pairs`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from simulator.validation import require_integer, require_number, require_one_of

Latent = Literal["gaussian", "sphere", "clusters"]
Mixing = Literal["linear", "mlp"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "y", "labels", "index"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Batch:
    """n pairs: observations x [n, dim_x] and y [n, dim_y], labels [n] (cluster or class; −1 where there is
    none) and index [n], the row of the data set (for free embeddings)."""

    x: jax.Array
    y: jax.Array
    labels: jax.Array
    index: jax.Array


@dataclasses.dataclass(frozen=True)
class LatentPairs:
    """Pairs that share a latent z: x = mix_x(z) + noise, y = mix_y(z) + noise.

    Args:
      num_pairs: size of the training set; None draws fresh pairs at every step.
      latent_dim: dimension of z.
      dim_x, dim_y: dimensions of the two observation spaces.
      noise: standard deviation of the independent Gaussian noise on every observed coordinate.
      latent: "gaussian" z ~ N(0, I); "sphere" z uniform on the sphere of radius √latent_dim; "clusters"
        z = centre + cluster_spread · N(0, I) with the cluster as label. E‖z‖² is latent_dim for the first two
        and (1 + cluster_spread²) latent_dim for the last.
      num_clusters: number of clusters, for latent="clusters".
      cluster_spread: standard deviation inside a cluster; the centres are N(0, I).
      mixing: "linear" (Gaussian matrix with entries N(0, 1/latent_dim)) or "mlp" (a random network with one
        hidden tanh layer of `mixing_width` units).
      mixing_width: hidden units of the random network.
    """

    num_pairs: int | None = 512
    _: dataclasses.KW_ONLY
    latent_dim: int = 8
    dim_x: int = 32
    dim_y: int = 48
    noise: float = 0.05
    latent: Latent = "gaussian"
    num_clusters: int = 10
    cluster_spread: float = 0.3
    mixing: Mixing = "linear"
    mixing_width: int = 64

    def __post_init__(self):
        if self.num_pairs is not None:
            require_integer("LatentPairs.num_pairs", self.num_pairs, least=2)
        for field in ("latent_dim", "dim_x", "dim_y", "num_clusters", "mixing_width"):
            require_integer(f"LatentPairs.{field}", getattr(self, field))
        require_number("LatentPairs.noise", self.noise, least=0.0)
        require_number("LatentPairs.cluster_spread", self.cluster_spread, least=0.0)
        require_one_of("LatentPairs.latent", self.latent, get_args(Latent))
        require_one_of("LatentPairs.mixing", self.mixing, get_args(Mixing))
        if self.latent == "clusters" and self.num_pairs is not None and self.num_clusters > self.num_pairs:
            raise ValueError(
                f"LatentPairs has {self.num_clusters} clusters and only {self.num_pairs} pairs; "
                "lower num_clusters or raise num_pairs"
            )


@dataclasses.dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that scikit-learn ships: x is the left half of an image, y its right half,
    32 pixels each in [0, 1], with the digit as label.

    Args:
      num_pairs: size of the training set; the pairs held out for evaluation come from the rest.
    """

    num_pairs: int = 1285

    total = 1797
    dim_x = 32
    dim_y = 32

    def __post_init__(self):
        require_integer("Digits.num_pairs", self.num_pairs, least=2)
        if self.num_pairs >= self.total:
            raise ValueError(
                f"Digits.num_pairs is {self.num_pairs}; there are {self.total} pairs in all and some must be held out"
            )


def sample(config: LatentPairs | Digits, n: int, *, key: jax.Array, dtype: Any = jnp.float32) -> Batch:
    """n pairs from a world of their own: both the mixing and the pairs are drawn from `key`.

    Args:
      config: LatentPairs or Digits.
      n: number of pairs.
      key: JAX random key.
      dtype: of the observations.

    Returns:
      Batch with x [n, dim_x], y [n, dim_y], labels [n], index [n].

    Raises:
      ValueError: n < 1, or more pairs than a real data set has.
    """
    require_integer("n", n)
    world_key, pairs_key = jax.random.split(key)
    return draw_pairs(config, draw_world(config, key=world_key, dtype=dtype), n, key=pairs_key)


def draw_world(config: LatentPairs | Digits, *, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """What stays fixed for a whole experiment, as a pytree of arrays."""
    if isinstance(config, Digits):
        x, y, labels = load_digits()
        order = jax.random.permutation(key, config.total)
        return dict(x=jnp.asarray(x, dtype)[order], y=jnp.asarray(y, dtype)[order], labels=jnp.asarray(labels)[order])
    keys = jax.random.split(key, 3)
    return dict(
        mix_x=_draw_mixing(config, config.dim_x, keys[0], dtype),
        mix_y=_draw_mixing(config, config.dim_y, keys[1], dtype),
        centres=jax.random.normal(keys[2], (config.num_clusters, config.latent_dim), dtype),
    )


def draw_pairs(
    config: LatentPairs | Digits, world: Any, n: int, *, key: jax.Array, normal: Callable = jax.random.normal
) -> Batch:
    """n pairs from a given world, their Gaussian numbers from normal(key, shape, dtype). For Digits: the first n of the
    world's shuffle."""
    if isinstance(config, Digits):
        if n > config.total:
            raise ValueError(f"{n} pairs asked for and the digits are {config.total}; ask for fewer pairs")
        return Batch(x=world["x"][:n], y=world["y"][:n], labels=world["labels"][:n], index=jnp.arange(n))
    dtype = world["centres"].dtype
    latent_key, noise_x_key, noise_y_key = jax.random.split(key, 3)
    z, labels = _draw_latent(config, world["centres"], n, latent_key, normal)
    # Private latents, mismatched or one-to-many partners would make the two modalities see different z here.
    x, y = _mix(world["mix_x"], z), _mix(world["mix_y"], z)
    x = x + config.noise * normal(noise_x_key, x.shape, dtype)
    y = y + config.noise * normal(noise_y_key, y.shape, dtype)
    return Batch(x=x, y=y, labels=labels, index=jnp.arange(n))


def take(batch: Batch, rows) -> Batch:
    """The given rows (indices or slice) of a batch."""
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def _draw_latent(config: LatentPairs, centres: jax.Array, n: int, key: jax.Array, normal: Callable):
    label_key, key = jax.random.split(key)
    z = normal(key, (n, config.latent_dim), centres.dtype)
    if config.latent == "clusters":
        labels = jax.random.randint(label_key, (n,), 0, config.num_clusters)
        return centres[labels] + config.cluster_spread * z, labels
    if config.latent == "sphere":
        z = z * jnp.sqrt(config.latent_dim) / jnp.linalg.norm(z, axis=1, keepdims=True)
    return z, jnp.full((n,), -1)


def _draw_mixing(config: LatentPairs, dim: int, key: jax.Array, dtype) -> tuple[jax.Array, ...]:
    widths = (config.latent_dim, dim) if config.mixing == "linear" else (config.latent_dim, config.mixing_width, dim)
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(
        jax.random.normal(k, (fan_in, fan_out), dtype) / jnp.sqrt(jnp.asarray(fan_in, dtype))
        for k, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    )


def _mix(matrices: tuple[jax.Array, ...], z: jax.Array) -> jax.Array:
    for matrix in matrices[:-1]:
        z = jnp.tanh(z @ matrix)
    return z @ matrices[-1]


@functools.lru_cache(maxsize=1)
def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left halves [1797, 32], right halves [1797, 32] in [0, 1], and digits [1797]."""
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install 'modality-gap-simulator[data]'"
        ) from error
    images, labels = load(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16.0
    return images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32), labels
