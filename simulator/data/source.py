"""What a source of paired data is, and how pairs are taken from any of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from simulator.settings import is_own_form, register
from simulator.validation import require_integer


@register
@dataclasses.dataclass(frozen=True)
class Batch:
    """n pairs, as `sample` draws them.

    Attributes:
      x, y: observations, [n, dim_x] and [n, dim_y].
      labels: cluster or class, [n]; −1 where there is none.
      index: place in the order of the world's pairs, [n] (for free embeddings). `Pairs` shuffles its rows for every world: its
        labels may be the numbers of the rows.
    """

    x: jax.Array
    y: jax.Array
    labels: jax.Array | None = None
    index: jax.Array | None = None


class DataSource(Protocol):
    """A source of pairs: any object with these attributes and methods, as `Experiment(data=...)`.

    Attributes:
      dim_x, dim_y: dimensions of the two observation spaces.
      num_pairs: size of the training set; None draws fresh pairs at every step.

    A source may have more. `total`: how many pairs there are in all; training pairs and held-out pairs are then the first and
    the next of one draw, and num_pairs=None trains on all that are not held out. Without it held-out pairs are a draw of their
    own, which for a source that picks from a finite set could repeat training pairs. `held_out()`: the source that held-out pairs
    are drawn from, in the same world. `draw_stream(world, n, key)`: as `draw_pairs`, for the pairs of a stream, where speed
    matters.
    """

    @property
    def dim_x(self) -> int: ...
    @property
    def dim_y(self) -> int: ...
    @property
    def num_pairs(self) -> int | None: ...

    def draw_world(self, key: jax.Array, dtype: Any) -> Any:
        """What stays fixed for a whole experiment, as a pytree of arrays."""

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch | tuple[jax.Array, ...]:
        """n pairs from a given world: a Batch, or (x [n, dim_x], y [n, dim_y]), or (x, y, labels [n])."""


def draw(source: Any, world: Any, n: int, key: jax.Array, dtype: Any, *, stream: bool = False) -> Batch:
    """n pairs of a source from a given world, as a whole Batch with observations of a type."""
    stream = stream and is_own_form(type(source), "draw_stream", "draw_pairs")
    drawn = (source.draw_stream if stream else source.draw_pairs)(world, n, key=key)
    if isinstance(drawn, tuple):
        drawn = Batch(*drawn)
    labels = jnp.full((n,), -1) if drawn.labels is None else drawn.labels
    x, y = (jnp.asarray(rows, dtype) for rows in (drawn.x, drawn.y))
    return Batch(x, y, labels, index=jnp.arange(n))


def take(batch: Batch, rows) -> Batch:
    """The given rows (indices or slice) of a batch."""
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def sample(config: DataSource, n: int, *, key: jax.Array, dtype: Any = jnp.float32) -> Batch:
    """n pairs from a world of their own: both the mixing and the pairs are drawn from `key`.

    Args:
      config: LatentPairs, Pairs, Digits, or any other source.
      n: number of pairs.
      key: JAX random key.
      dtype: of the observations.

    Returns:
      Batch with x [n, dim_x], y [n, dim_y], labels [n], index [n].

    Raises:
      ValueError: n < 1, or more pairs than a real data set has.

    Example:
      >>> batch = sim.sample(sim.LatentPairs(dim_x=8, dim_y=6), 5, key=jax.random.key(0))
      >>> batch.x.shape, batch.y.shape
      ((5, 8), (5, 6))
    """
    require_integer("n", n)
    world_key, pairs_key = jax.random.split(key)
    return draw(config, config.draw_world(key=world_key, dtype=dtype), n, pairs_key, dtype)
