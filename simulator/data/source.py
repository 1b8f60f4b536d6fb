"""What a source of paired data is, and how pairs are taken from any of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from simulator.settings import is_own_form, register, replaced
from simulator.validation import require_integer

MODALITIES = "xyzuvw"  # names of the modalities in order; a source has two or more


@register
@dataclasses.dataclass(frozen=True)
class Batch:
    """n pairs, as `sample` draws them.

    Attributes:
      x, y: observations, [n, dim_x] and [n, dim_y].
      labels: cluster or class, [n]; −1 where there is none.
      index: place in the order of the world's pairs, [n] (for free embeddings). `Pairs` shuffles its rows for every world: its
        labels may be the numbers of the rows.
      others: observations of a third and further modalities, each [n, dim].
    """

    x: jax.Array
    y: jax.Array
    labels: jax.Array | None = None
    index: jax.Array | None = None
    others: tuple[jax.Array, ...] = ()

    def rows(self, modality: str) -> jax.Array:
        """Observations of a modality by its name: x, y, z, u, v or w."""
        return (self.x, self.y, *self.others)[MODALITIES.index(modality)]

    def between(self, first: str, second: str) -> Batch:
        """The pairs of two modalities, as x and y."""
        return replaced(self, x=self.rows(first), y=self.rows(second), others=())


def require_dims(name: str, dims: Any) -> None:
    """Raise ValueError unless these are dimensions of further modalities: a tuple of whole numbers, few enough to have names."""
    if not isinstance(dims, tuple) or len(dims) > len(MODALITIES) - 2:
        raise ValueError(
            f"{name} is {dims!r}; it must be a tuple of at most {len(MODALITIES) - 2} dimensions, like (32,)"
        )
    for dim in dims:
        require_integer(name, dim)


class DataSource(Protocol):
    """A source of pairs: any object with these attributes and methods, as `Experiment(data=...)`.

    Attributes:
      dim_x, dim_y: dimensions of the two observation spaces.
      num_pairs: size of the training set; None draws fresh pairs at every step.

    A source may have more. `total`: how many pairs there are in all; training pairs and held-out pairs are then the first and
    the next of one draw, and num_pairs=None trains on all that are not held out. Without it held-out pairs are a draw of their
    own, which for a source that picks from a finite set could repeat training pairs. `held_out()`: the source that held-out pairs
    are drawn from, in the same world. `dim_others`: dimensions of a third and further modalities, which `draw_pairs` then gives as
    `Batch.others`. `draw_stream(world, n, key)`: as `draw_pairs`, for the pairs of a stream, where speed
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
    x, y, *others = (jnp.asarray(rows, dtype) for rows in (drawn.x, drawn.y, *drawn.others))
    return Batch(x, y, labels, index=jnp.arange(n), others=tuple(others))


def dims_of(source: Any) -> tuple[int, ...]:
    """Dimension of the observations of every modality."""
    return (source.dim_x, source.dim_y, *getattr(source, "dim_others", ()))


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
