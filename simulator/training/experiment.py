"""The definition of an experiment."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simulator.data import MODALITIES, DataSource, LatentPairs, dims_of, require_dims
from simulator.encoders import MLP, Cones, Linear, Table
from simulator.losses import InfoNCE, Loss, learned_numbers, parameter_name, scheduled_numbers
from simulator.settings import is_own_form, register, replace_field, require_own_class, shortened, static_values
from simulator.validation import (
    is_traced,
    require_boolean,
    require_integer,
    require_known,
    require_number,
    require_one_of,
)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a training run, but for the random key.

    Args:
      data: LatentPairs, Pairs, Digits, MultipleFeatures, SpelledWords, or any object that is a `DataSource`.
      encoder_x, encoder_y: gallery and query tower: MLP, Linear, Table, or a callable
        (dim_in, *, rngs, dtype) -> nnx module.
      encoder_others: towers of a third and further modalities (called z, u, v, w), where the data have them (`dim_others`).
      losses_between: pairs of modalities whose losses are added up, like ("xy", "xz") for a star about x; None for all pairs.
      start: Cones, or None for the start that the random towers have by themselves.
      loss: InfoNCE, Sigmoid, or anything callable as (x, y, batch) -> scalar, x and y the rows of the batch [batch_size, d].
        What is a dataclass must be registered (`simulator.register`): its numbers are then traced, swept, scheduled (optax
        schedules) and learned (`Learned`) like a temperature.
      swap_probability: chance, per pair and step, that its two embeddings change sides before the loss: x_i takes part
        as a query and y_i as a gallery row (the hard swapping of Yaras et al. 2024). Measures are taken unswapped.
      optimizer: learning rate -> optax transformation; optax.adam runs in a faster form that is equal but for rounding.
      learning_rate: number > 0, or an optax schedule, >= 0 at every step.
      batch_size: pairs per step, drawn without replacement within an epoch; at most as many as there are to train on.
      steps: number of optimiser steps.
      eval_pairs: held-out pairs on which every measure is taken (a Table is measured on its own rows).
      eval_points: number of log-spaced steps at which measures are taken, step 0 and the last included.
      normalize: whether both towers' rows are scaled to unit length.
      batch_shards: devices that share the batch of one replica; batch_size must be a multiple.
      dtype: "float32", or "float64" where JAX's 64-bit mode is on.
    """

    data: DataSource = LatentPairs()
    encoder_x: Callable = MLP()
    encoder_y: Callable = MLP()
    encoder_others: tuple[Callable, ...] = ()
    losses_between: tuple[str, ...] | None = None
    start: Cones | None = Cones()
    loss: Loss = InfoNCE(temperature=0.01)
    swap_probability: float = 0.0
    optimizer: Callable = optax.adam
    learning_rate: float | Callable = 1e-3
    batch_size: int = 256
    steps: int = 4000
    eval_pairs: int = 512
    eval_points: int = 32
    normalize: bool = True
    batch_shards: int = 1
    dtype: Literal["float32", "float64"] = "float32"

    def __repr__(self) -> str:
        """What differs from the defaults, of its parts too."""
        return shortened(self)

    def __post_init__(self):
        _require_source(self.data)
        _require_loss(self.loss)
        if self.start is not None:
            require_known("Experiment.start", self.start, (Cones,))
        _require_modalities(self)
        towers = {f"encoder_{name}": tower for name, tower in self.encoders.items()}
        for name, tower in towers.items():
            shipped = next((cls for cls in (MLP, Linear, Table) if isinstance(tower, cls)), None)
            if shipped is not None and type(tower).__call__ is shipped.__call__:
                require_known(f"Experiment.{name}", tower, (shipped,))
        for name, part in dict(data=self.data, loss=self.loss, **towers, optimizer=self.optimizer).items():
            _require_hashable(name, part)
        for name, part in dict(**towers, optimizer=self.optimizer).items():
            if not callable(part):
                raise ValueError(f"Experiment.{name} is {part!r}; it must be callable, like optax.adam or MLP()")
        require_boolean("Experiment.normalize", self.normalize)
        if not callable(self.learning_rate):
            require_number("Experiment.learning_rate", self.learning_rate, above=0.0)
        for field in ("batch_size", "eval_pairs", "eval_points"):
            require_integer(f"Experiment.{field}", getattr(self, field), least=2)
        for field in ("steps", "batch_shards"):
            require_integer(f"Experiment.{field}", getattr(self, field))
        if self.batch_shards > 1 and not is_own_form(type(self.loss), "spread", "__call__"):
            raise ValueError(
                f"batch_shards spreads InfoNCE only; train {type(self.loss).__name__} with batch_shards = 1, or give it a "
                "method spread(x, y, batch, axis_name)"
            )
        if self.batch_size % self.batch_shards:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a multiple of batch_shards = {self.batch_shards}"
            )
        require_number("Experiment.swap_probability", self.swap_probability, least=0.0, most=1.0)
        require_one_of("Experiment.dtype", self.dtype, ("float32", "float64"))
        num_pairs, total = self.num_pairs, getattr(self.data, "total", None)
        if num_pairs is None and self.is_table:
            raise ValueError("a Table has one row per pair; give LatentPairs a fixed num_pairs instead of None")
        if num_pairs is not None and total is not None and not 2 <= num_pairs <= total - self.eval_pairs:
            raise ValueError(
                f"{max(num_pairs, 2)} training and {self.eval_pairs} held-out pairs are more than the {total} of "
                f"{name_of(self.data)}; lower {name_of(self.data)}.num_pairs or eval_pairs"
            )
        if num_pairs is not None and self.batch_size > num_pairs:
            raise ValueError(f"batch_size is {self.batch_size} and the data have {num_pairs} pairs; lower batch_size")

    @property
    def num_pairs(self) -> int | None:
        """Size of the training set; None where every step draws fresh pairs."""
        total = getattr(self.data, "total", None)
        return total - self.eval_pairs if self.data.num_pairs is None and total is not None else self.data.num_pairs

    @property
    def encoders(self) -> dict[str, Callable]:
        """Tower of every modality by its name."""
        return dict(zip(MODALITIES, (self.encoder_x, self.encoder_y, *self.encoder_others), strict=False))

    @property
    def pairings(self) -> tuple[str, ...]:
        """All pairs of modalities, in order; the gap is measured between each."""
        return tuple(map("".join, itertools.combinations(self.encoders, 2)))

    @property
    def is_table(self) -> bool:
        """Whether a tower is a Table, which is measured on its own rows."""
        return any(isinstance(tower, Table) for tower in self.encoders.values())


def name_of(part: Any) -> str:
    """A function's or a class's name, or that of an object's class."""
    return getattr(part, "__name__", type(part).__name__)


def _require_modalities(experiment: Experiment) -> None:
    """Raise ValueError unless data, towers, losses and start agree on what modalities there are."""
    others, count = experiment.encoder_others, len(dims_of(experiment.data))
    if not isinstance(others, tuple) or len(others) != count - 2:
        raise ValueError(
            f"Experiment.encoder_others is {others!r} and {name_of(experiment.data)} has {count} modalities; it must be a tuple of "
            f"{count - 2} towers, one for each of dim_others"
        )
    between = experiment.losses_between
    if between is not None:
        known = [*experiment.pairings, *(pair[::-1] for pair in experiment.pairings)]
        if not isinstance(between, tuple) or not set(between) <= set(known) or len(set(between)) < len(between):
            raise ValueError(
                f"Experiment.losses_between is {between!r}; it must be a tuple of different pairs among {', '.join(known)}"
            )
        if lost := [name for name in experiment.encoders if name not in "".join(between)]:
            raise ValueError(
                f"Experiment.losses_between is {between!r} and leaves out {lost[0]}, whose tower would not be trained"
            )
    if count == 2:
        return
    angle = None if experiment.start is None else experiment.start.angle
    if angle is not None and not is_traced(angle) and math.cos(angle) < -1 / (count - 1) - 1e-6:
        raise ValueError(
            f"Cones.angle is {angle} and there are {count} modalities, any two at this angle: it can be at most "
            f"{math.acos(-1 / (count - 1)):.4f}"
        )
    for name, off in (("swap_probability", 0), ("batch_shards", 1)):
        if is_traced(value := getattr(experiment, name)) or value != off:
            raise ValueError(
                f"Experiment.{name} is {value} and there are {count} modalities; it is for two, leave it {off}"
            )


def _require_hashable(name: str, part: Any) -> None:
    for path, value in static_values(part, name):
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"Experiment.{path} is a {type(value).__name__}, which is not hashable: it could change after a program was compiled "
                "for it; give a tuple for a list, and keep arrays in fields of a class that is registered (sim.register)"
            ) from error


def _require_source(data: Any) -> None:
    missing = [name for name in ("dim_x", "dim_y", "num_pairs", "draw_world", "draw_pairs") if not hasattr(data, name)]
    if isinstance(data, type) or missing:
        lacks = "is a class; pass an object of it" if isinstance(data, type) else f"lacks {', '.join(missing)}"
        raise ValueError(
            f"Experiment.data is {name_of(data)}, which {lacks}; a source of pairs has dim_x, dim_y, num_pairs, draw_world(key, "
            "dtype) and draw_pairs(world, n, key); for arrays use Pairs(x, y)"
        )
    for name in ("dim_x", "dim_y"):
        require_integer(f"{name_of(data)}.{name}", getattr(data, name))
    require_dims(f"{name_of(data)}.dim_others", getattr(data, "dim_others", ()))
    if data.num_pairs is not None:
        require_integer(f"{name_of(data)}.num_pairs", data.num_pairs, least=2)
    require_own_class("Experiment.data", data, ("draw_world", "draw_pairs"))


def _require_loss(loss: Any) -> None:
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(
            f"Experiment.loss is {loss!r}; it must be an object that is called as loss(x, y, batch), like InfoNCE(0.1)"
        )
    require_own_class("Experiment.loss", loss, ("__call__",))
    names = [*MODALITIES, *(parameter_name(path) for path in learned_numbers(loss))]  # beside the towers
    if clash := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{name_of(loss)} learns a number whose parameter is called {clash[0]}, as another one is; give the field another name"
        )


@functools.lru_cache(maxsize=256)
def _scheduled(schedule: Callable, count: int) -> np.ndarray:
    """The schedule at steps 0 to count − 1. A loop of JAX hands over the step as training does: what trains can be
    evaluated here, in one go."""
    return np.asarray(jax.lax.map(lambda step: jnp.asarray(schedule(step)), jnp.arange(count, dtype=jnp.int32)))


def require_schedules(experiment: Experiment) -> None:
    """Raise ValueError, naming the step, where a schedule of the experiment gives a number that is not finite, a temperature
    that is not > 0, or a learning rate that is not >= 0 (a warm-up may start from 0)."""
    # Measures are taken after the last step too, with that step's loss.
    checks = [("learning_rate", experiment.learning_rate, experiment.steps, " >= 0", lambda v: v >= 0)]
    for path, schedule in scheduled_numbers(experiment.loss).items():
        wanted, is_good = (" > 0", lambda v: v > 0) if path == "temperature" else ("", lambda v: v == v)
        checks.append((f"loss.{path}", schedule, experiment.steps + 1, wanted, is_good))
    for name, schedule, count, wanted, is_good in checks:
        if not callable(schedule):
            continue
        values = _scheduled(schedule, count).astype(experiment.dtype)
        if values.ndim != 1:
            raise ValueError(
                f"the schedule of {name} gives an array of shape {values.shape[1:]}; it must give one number"
            )
        bad = np.flatnonzero(~(np.isfinite(values) & is_good(values)))
        if bad.size:
            raise ValueError(
                f"the schedule of {name} gives {values[bad[0]]:g} at step {bad[0]}; it must be a finite number{wanted} at all "
                f"{count} steps (in {experiment.dtype}): give it an end value, or train fewer steps"
            )
        if name == "learning_rate":
            continue
        for number in (float(values.min()), float(values.max())):  # what the class asks of a number, it asks of these
            try:
                replace_field(experiment, name, number)
            except ValueError as error:
                raise ValueError(
                    f"the schedule of {name} gives {number:g} at step {int(np.flatnonzero(values == values.dtype.type(number))[0])}: "
                    f"{error}"
                ) from error
