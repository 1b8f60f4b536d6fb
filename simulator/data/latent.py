"""Synthetic pairs that share a hidden variable, with a knob for everything.

What makes pairs imperfect (wrong partners, several queries per gallery row) is for training only: `LatentPairs.held_out` takes it
out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from simulator.data.source import Batch, require_dims
from simulator.numerics.randomness import hashed_normal
from simulator.settings import register
from simulator.validation import is_traced, require_boolean, require_integer, require_number, require_one_of

Latent = Literal["gaussian", "sphere", "clusters"]
Mixing = Literal["linear", "mlp"]


@register
@dataclasses.dataclass(frozen=True)
class LatentPairs:
    """Pairs that share a latent z: x = mix_x(z, u) + noise, y = mix_y(z, w) + noise, with u and w private to a modality.

    Args:
      num_pairs: size of the training set; None draws fresh pairs at every step.
      latent_dim: dimension of z.
      dim_x, dim_y: dimensions of the two observation spaces.
      dim_others: dimensions of a third and further modalities, which see z and noise: z_observed = mix_z(z) + noise, ...
      noise: standard deviation of the independent Gaussian noise on every observed coordinate.
      latent: "gaussian" z ~ N(0, I); "sphere" z uniform on the sphere of radius √latent_dim; "clusters"
        z = centre + cluster_spread · N(0, I) with the cluster as label. E‖z‖² is latent_dim for the first two
        and (1 + cluster_spread²) latent_dim for the last.
      num_clusters: number of clusters, for latent="clusters".
      cluster_spread: standard deviation inside a cluster; the centres are N(0, I).
      class_imbalance: cluster k (from 0) has a share ∝ (k + 1)^(−class_imbalance); 0 is balanced, 1 Zipf's law.
      anisotropy: coordinate j (from 0) of z is scaled by a factor ∝ (j + 1)^(−anisotropy), with Σ factor² =
        latent_dim, so that E‖z‖² of a Gaussian latent stays; 0 is isotropic.
      private_dim_x, private_dim_y: dimensions of u ~ N(0, private_scale_x² I), which only x sees, and of w, which
        only y sees. They enter the mixing like further coordinates of z.
      private_scale_x, private_scale_y: standard deviations of u and w; 1 is that of a coordinate of z.
      mismatched: share of the pairs whose y belongs to another pair's z. Rounded to whole pairs, which exchange
        their y in a ring, so that none keeps its own; a fixed training set keeps these partners for good.
      queries_per_gallery: how many pairs in a row share one x (the same observation, noise included), each with
        a y of its own.
      same_observation: y is x itself (same mixing, same noise): two encoders on the same data. Needs equal dims.
      mixing: "linear" (Gaussian matrix with entries N(0, 1/latent_dim)) or "mlp" (a random network with one
        hidden tanh layer of `mixing_width` units).
      mixing_width: hidden units of the random network.
    """

    num_pairs: int | None = 512
    _: dataclasses.KW_ONLY
    latent_dim: int = 8
    dim_x: int = 32
    dim_y: int = 48
    dim_others: tuple[int, ...] = ()
    noise: float = 0.05
    latent: Latent = "gaussian"
    num_clusters: int = 10
    cluster_spread: float = 0.3
    class_imbalance: float = dataclasses.field(default=0.0, metadata=dict(static=True))  # 0 draws labels in another way
    anisotropy: float = 0.0
    private_dim_x: int = 0
    private_dim_y: int = 0
    private_scale_x: float = 1.0
    private_scale_y: float = 1.0
    mismatched: float = 0.0
    queries_per_gallery: int = 1
    same_observation: bool = False
    mixing: Mixing = "linear"
    mixing_width: int = 64

    def __post_init__(self):
        if self.num_pairs is not None:
            require_integer("LatentPairs.num_pairs", self.num_pairs, least=2)
        for field in ("latent_dim", "dim_x", "dim_y", "num_clusters", "mixing_width", "queries_per_gallery"):
            require_integer(f"LatentPairs.{field}", getattr(self, field))
        require_dims("LatentPairs.dim_others", self.dim_others)
        for field in ("private_dim_x", "private_dim_y"):
            require_integer(f"LatentPairs.{field}", getattr(self, field), least=0)
        for field in ("noise", "cluster_spread", "class_imbalance", "anisotropy", "private_scale_x", "private_scale_y"):
            require_number(f"LatentPairs.{field}", getattr(self, field), least=0.0)
        require_number("LatentPairs.mismatched", self.mismatched, least=0.0, most=1.0)
        require_boolean("LatentPairs.same_observation", self.same_observation)
        require_one_of("LatentPairs.latent", self.latent, get_args(Latent))
        require_one_of("LatentPairs.mixing", self.mixing, get_args(Mixing))
        if self.latent == "clusters" and self.num_pairs is not None and self.num_clusters > self.num_pairs:
            raise ValueError(
                f"LatentPairs has {self.num_clusters} clusters and only {self.num_pairs} pairs; "
                "lower num_clusters or raise num_pairs"
            )
        if self.class_imbalance > 0 and self.latent != "clusters":
            raise ValueError(
                f"LatentPairs.class_imbalance is {self.class_imbalance} and latent={self.latent!r} has no classes; "
                "use latent='clusters'"
            )
        if self.same_observation and (self.dim_x != self.dim_y or self.private_dim_y or self.queries_per_gallery > 1):
            raise ValueError(
                "LatentPairs.same_observation makes y the same rows as x; it needs dim_x = dim_y, private_dim_y = 0 and "
                f"queries_per_gallery = 1, not {self.dim_x} and {self.dim_y}, {self.private_dim_y}, "
                f"{self.queries_per_gallery}"
            )

    def draw_world(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """The mixings of both modalities and the cluster centres."""
        keys = jax.random.split(key, 3)
        return dict(
            mix_x=_draw_mixing(self, self.private_dim_x, self.dim_x, keys[0], dtype),
            mix_y=_draw_mixing(self, self.private_dim_y, self.dim_y, keys[1], dtype),
            centres=jax.random.normal(keys[2], (self.num_clusters, self.latent_dim), dtype),
            mix_others=tuple(
                _draw_mixing(self, 0, dim, jax.random.fold_in(key, number), dtype)
                for number, dim in enumerate(self.dim_others, start=len(keys))
            ),
        )

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch:
        """n pairs from a given world; labels are those of x."""
        return _draw(self, world, n, key, jax.random.normal)

    def draw_stream(self, world: Any, n: int, key: jax.Array) -> Batch:
        """As `draw_pairs`, with cheaper Gaussian numbers."""
        return _draw(self, world, n, key, hashed_normal)

    def held_out(self) -> LatentPairs:
        """The same world with right, one-to-one pairs: what retrieval and alignment are measured on."""
        return dataclasses.replace(self, mismatched=0.0, queries_per_gallery=1)


def _draw(config: LatentPairs, world: Any, n: int, key: jax.Array, normal: Callable) -> Batch:
    """n pairs, their Gaussian numbers from normal(key, shape, dtype)."""
    latent_key, noise_x_key, noise_y_key = jax.random.split(key, 3)
    partners_key, others_key = jax.random.fold_in(key, 3), jax.random.fold_in(key, 4)
    z, labels = _draw_latent(config, world["centres"], n, latent_key, normal)
    x = _observe(world["mix_x"], z, config.private_dim_x, config.private_scale_x, config.noise, noise_x_key, normal)
    if config.queries_per_gallery > 1:
        first = jnp.arange(n) // config.queries_per_gallery * config.queries_per_gallery
        x, z, labels = x[first], z[first], labels[first]
    if config.same_observation:
        y = x
    else:
        y = _observe(world["mix_y"], z, config.private_dim_y, config.private_scale_y, config.noise, noise_y_key, normal)
    if is_traced(config.mismatched) or config.mismatched > 0:
        y = y[_partners(n, config.mismatched, partners_key)]
    others = (
        _observe(mixing, z, 0, 0.0, config.noise, jax.random.fold_in(others_key, number), normal)
        for number, mixing in enumerate(world["mix_others"])
    )
    return Batch(x=x, y=y, labels=labels, others=tuple(others))


def _draw_latent(config: LatentPairs, centres: jax.Array, n: int, key: jax.Array, normal: Callable):
    label_key, key = jax.random.split(key)
    z = normal(key, (n, config.latent_dim), centres.dtype)
    labels = jnp.full((n,), -1)
    if config.latent == "clusters":
        labels = _draw_labels(config, n, label_key)
        z = centres[labels] + config.cluster_spread * z
    elif config.latent == "sphere":
        z = z * jnp.sqrt(config.latent_dim) / jnp.linalg.norm(z, axis=1, keepdims=True)
    factors = jnp.arange(1.0, config.latent_dim + 1, dtype=z.dtype) ** -config.anisotropy
    return z * (factors * jnp.sqrt(config.latent_dim / jnp.sum(factors**2)))[None, :], labels


def _draw_labels(config: LatentPairs, n: int, key: jax.Array):
    if config.class_imbalance == 0:
        return jax.random.randint(key, (n,), 0, config.num_clusters)
    log_shares = -config.class_imbalance * jnp.log(jnp.arange(1.0, config.num_clusters + 1))
    return jax.random.categorical(key, log_shares, shape=(n,))


def _partners(n: int, share, key: jax.Array) -> jax.Array:
    """For each pair the row its y comes from: its own, but for round(share · n) pairs, which form a ring."""
    order = jax.random.permutation(key, n)
    count = jnp.floor(share * n + 0.5).astype(int)
    count = jnp.where(count == 1, 0, count)  # a single pair has nobody to exchange with
    place = jnp.arange(n)
    following = jnp.where(place < count, (place + 1) % jnp.maximum(count, 1), place)
    return jnp.zeros(n, int).at[order].set(order[following])


def _observe(
    matrices, z: jax.Array, private_dim: int, private_scale, noise, key: jax.Array, normal: Callable
) -> jax.Array:
    """Observations of the latents [n, latent_dim] by one modality, with its private latents and its noise."""
    if private_dim:
        private = normal(jax.random.fold_in(key, 1), (z.shape[0], private_dim), z.dtype)
        z = jnp.concatenate([z, private_scale * private], axis=1)
    rows = _mix(matrices, z)
    return rows + noise * normal(key, rows.shape, rows.dtype)


def _draw_mixing(config: LatentPairs, private_dim: int, dim: int, key: jax.Array, dtype) -> tuple[jax.Array, ...]:
    """Matrices of the mixing; the rows of private latents have the variance of the others and are drawn apart, so that
    the shared part of a world does not depend on the private dimensions."""
    widths = (config.latent_dim, dim) if config.mixing == "linear" else (config.latent_dim, config.mixing_width, dim)
    keys = jax.random.split(key, len(widths) - 1)
    matrices = [
        jax.random.normal(k, (fan_in, fan_out), dtype) / jnp.sqrt(jnp.asarray(fan_in, dtype))
        for k, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    if private_dim:
        # One that is not among `keys`: split(key)[i] is fold_in(key, i).
        private = jax.random.normal(jax.random.fold_in(key, len(keys)), (private_dim, widths[1]), dtype)
        matrices[0] = jnp.concatenate([matrices[0], private / jnp.sqrt(jnp.asarray(config.latent_dim, dtype))])
    return tuple(matrices)


def _mix(matrices: tuple[jax.Array, ...], z: jax.Array) -> jax.Array:
    for matrix in matrices[:-1]:
        z = jnp.tanh(z @ matrix)
    return z @ matrices[-1]
