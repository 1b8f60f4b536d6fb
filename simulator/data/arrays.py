"""Pairs that exist: arrays of one's own, and the data sets that a package ships."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simulator.data.source import Batch, require_dims
from simulator.settings import register
from simulator.validation import require_integer, require_rows


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one's own: row i of `x` belongs to row i of `y`.

    Every seed shuffles the pairs anew and trains on the first `num_pairs` of them; the next `Experiment.eval_pairs` are held out.

    Args:
      x: observations of the gallery modality [n, dim_x], finite real numbers.
      y: observations of the query modality [n, dim_y].
      labels: class of each pair [n], whole numbers; None for none.
      num_pairs: size of the training set; None for all pairs but the held-out ones.
      others: observations of a third and further modalities, each [n, dim].

    Raises:
      ValueError: arrays that are not rows, rows without a partner, NaN or infinity, labels that are no whole numbers.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x, y = rng.normal(size=(100, 5)), rng.normal(size=(100, 7))
      >>> data = sim.Pairs(x, y)
      >>> run = sim.train(sim.Experiment(data=data, eval_pairs=20, batch_size=40, steps=2), key=jax.random.key(0))
      >>> run.x.shape
      (20, 32)
    """

    x: jax.Array | np.ndarray
    y: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray | None = None
    num_pairs: int | None = None
    others: tuple[jax.Array | np.ndarray, ...] = ()

    def __post_init__(self):
        if not isinstance(self.others, tuple):
            raise ValueError(f"Pairs.others is a {type(self.others).__name__}; it must be a tuple of arrays, like (z,)")
        named = dict(x=self.x, y=self.y) | {f"others[{i}]": rows for i, rows in enumerate(self.others)}
        for name, rows in named.items():
            require_rows(f"Pairs.{name}", rows)
            if len(rows) != len(self.x):
                raise ValueError(
                    f"Pairs.x has {len(self.x)} rows and Pairs.{name} has {len(rows)}; row i of one must belong to row i of the "
                    "other"
                )
        for name in ("x", "y"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        object.__setattr__(self, "others", tuple(map(np.asarray, self.others)))
        require_dims("Pairs.others", self.dim_others)
        if self.labels is not None:
            labels = np.asarray(self.labels)
            if labels.shape != (self.total,) or labels.dtype.kind not in "iu" or (np.abs(labels) >= 2**31).any():
                raise ValueError(
                    f"Pairs.labels have shape {labels.shape} and dtype {labels.dtype}; expected one whole number below 2³¹ for "
                    f"each of the {self.total} pairs"
                )
            object.__setattr__(self, "labels", labels)
        require_fewer("Pairs", self.num_pairs, self.total)

    @property
    def total(self) -> int:
        return self.x.shape[0]

    @property
    def dim_x(self) -> int:
        return self.x.shape[1]

    @property
    def dim_y(self) -> int:
        return self.y.shape[1]

    @property
    def dim_others(self) -> tuple[int, ...]:
        return tuple(rows.shape[1] for rows in self.others)

    def draw_world(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """All pairs in a random order."""
        labels = np.full(self.total, -1) if self.labels is None else self.labels
        return shuffled((self.x, self.y, *self.others), labels, key, dtype)

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch:
        """The first n pairs of the world's order."""
        return first_pairs(world, n)


@register
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
        require_integer("Digits.num_pairs", self.num_pairs)
        require_fewer("Digits", self.num_pairs, self.total)

    def draw_world(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """All digits in a random order."""
        x, y, labels = load_digits()
        return shuffled((x, y), labels, key, dtype)

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch:
        """The first n digits of the world's order."""
        return first_pairs(world, n)


def require_fewer(name: str, num_pairs: int | None, total: int):
    """Raise ValueError where a training set of this size would leave none of all pairs to hold out."""
    if num_pairs is None:
        return
    require_integer(f"{name}.num_pairs", num_pairs, least=2)
    if num_pairs >= total:
        raise ValueError(f"{name}.num_pairs is {num_pairs}; there are {total} pairs in all and some must be held out")


def shuffled(modalities, labels, key: jax.Array, dtype) -> dict[str, Any]:
    """All pairs in a random order, as the world of a source."""
    order = jax.random.permutation(key, len(labels))
    return dict(
        modalities=tuple(jnp.asarray(rows, dtype)[order] for rows in modalities), labels=jnp.asarray(labels)[order]
    )


def first_pairs(world: Any, n: int) -> Batch:
    """The first n pairs of such a world."""
    total = len(world["labels"])
    if n > total:
        raise ValueError(f"{n} pairs asked for and there are {total} in all; ask for fewer pairs")
    x, y, *others = (rows[:n] for rows in world["modalities"])
    return Batch(x=x, y=y, labels=world["labels"][:n], others=tuple(others))


@functools.lru_cache(maxsize=1)
def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left halves [1797, 32], right halves [1797, 32] in [0, 1], and digits [1797]."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16.0
    return images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32), labels
