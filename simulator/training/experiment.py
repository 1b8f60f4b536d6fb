"""The definition of an experiment, and how its fields are varied."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simulator.data import Digits, LatentPairs
from simulator.encoders import MLP, Cones, Linear, Table
from simulator.losses import InfoNCE, Sigmoid
from simulator.validation import require_boolean, require_integer, require_known, require_number, require_one_of

TRACED_FIELDS = (
    "data.noise",
    "data.cluster_spread",
    "data.anisotropy",
    "data.private_scale_x",
    "data.private_scale_y",
    "data.mismatched",
    "start.angle",
    "start.tightness",
    "loss.temperature",
    "loss.temperature.initial",
    "loss.bias",
    "swap_probability",
    "learning_rate",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a training run, but for the random key.

    Args:
      data: LatentPairs or Digits.
      encoder_x, encoder_y: gallery and query tower: MLP, Linear, Table, or a callable
        (dim_in, *, rngs, dtype) -> nnx module.
      start: Cones, or None for the start that the random towers have by themselves.
      loss: InfoNCE or Sigmoid, with its temperature.
      swap_probability: chance, per pair and step, that its two embeddings change sides before the loss: x_i takes part
        as a query and y_i as a gallery row (the hard swapping of Yaras et al. 2024). Measures are taken unswapped.
      optimizer: learning rate -> optax transformation; optax.adam runs in a faster form that is equal but for rounding.
      learning_rate: number > 0, or an optax schedule, >= 0 at every step.
      batch_size: pairs per step, drawn without replacement within an epoch; at most data.num_pairs.
      steps: number of optimiser steps.
      eval_pairs: held-out pairs on which every measure is taken (a Table is measured on its own rows).
      eval_points: number of log-spaced steps at which measures are taken, step 0 and the last included.
      normalize: whether both towers' rows are scaled to unit length.
      batch_shards: devices that share the batch of one replica; batch_size must be a multiple.
      dtype: "float32", or "float64" where JAX's 64-bit mode is on.
    """

    data: LatentPairs | Digits = LatentPairs()
    encoder_x: Callable = MLP()
    encoder_y: Callable = MLP()
    start: Cones | None = Cones()
    loss: InfoNCE | Sigmoid = InfoNCE(temperature=0.01)
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

    def __post_init__(self):
        require_known("Experiment.data", self.data, (LatentPairs, Digits))
        require_known("Experiment.loss", self.loss, (InfoNCE, Sigmoid))
        if self.start is not None:
            require_known("Experiment.start", self.start, (Cones,))
        for name in ("encoder_x", "encoder_y"):
            tower = getattr(self, name)
            shipped = next((cls for cls in (MLP, Linear, Table) if isinstance(tower, cls)), None)
            if shipped is not None and type(tower).__call__ is shipped.__call__:
                require_known(f"Experiment.{name}", tower, (shipped,))
        for name in ("encoder_x", "encoder_y", "optimizer"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"Experiment.{name} is {getattr(self, name)!r}; it must be callable, like optax.adam or MLP()"
                )
        require_boolean("Experiment.normalize", self.normalize)
        if not callable(self.learning_rate):
            require_number("Experiment.learning_rate", self.learning_rate, above=0.0)
        for field in ("batch_size", "eval_pairs", "eval_points"):
            require_integer(f"Experiment.{field}", getattr(self, field), least=2)
        for field in ("steps", "batch_shards"):
            require_integer(f"Experiment.{field}", getattr(self, field))
        if self.batch_shards > 1 and isinstance(self.loss, Sigmoid):
            raise ValueError("batch_shards spreads InfoNCE only; train a Sigmoid loss with batch_shards = 1")
        if self.batch_size % self.batch_shards:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a multiple of batch_shards = {self.batch_shards}"
            )
        require_number("Experiment.swap_probability", self.swap_probability, least=0.0, most=1.0)
        require_one_of("Experiment.dtype", self.dtype, ("float32", "float64"))
        num_pairs = self.data.num_pairs
        if num_pairs is None and self.is_table:
            raise ValueError("a Table has one row per pair; give LatentPairs a fixed num_pairs instead of None")
        if num_pairs is not None and self.batch_size > num_pairs:
            raise ValueError(f"batch_size is {self.batch_size} and the data have {num_pairs} pairs; lower batch_size")
        if isinstance(self.data, Digits) and self.data.num_pairs + self.eval_pairs > self.data.total:
            raise ValueError(
                f"{num_pairs} training and {self.eval_pairs} held-out pairs are more than the {self.data.total} digits; "
                "lower Digits.num_pairs or eval_pairs"
            )

    @property
    def is_table(self) -> bool:
        """Whether a tower is a Table, which is measured on its own rows."""
        return isinstance(self.encoder_x, Table) or isinstance(self.encoder_y, Table)


@functools.lru_cache(maxsize=256)
def _scheduled(schedule: Callable, count: int) -> np.ndarray:
    """The schedule at steps 0 to count − 1. A loop of JAX hands over the step as training does: what trains can be
    evaluated here, in one go."""
    return np.asarray(jax.lax.map(lambda step: jnp.asarray(schedule(step)), jnp.arange(count, dtype=jnp.int32)))


def require_schedules(experiment: Experiment) -> None:
    """Raise ValueError, naming the step, where a schedule of the experiment gives a temperature that is not a finite number
    > 0, or a learning rate that is not one >= 0 (a warm-up may start from 0)."""
    # Measures are taken after the last step too, at that step's temperature.
    checks = (
        ("loss.temperature", experiment.loss.temperature, experiment.steps + 1, "> 0", lambda v: v > 0),
        ("learning_rate", experiment.learning_rate, experiment.steps, ">= 0", lambda v: v >= 0),
    )
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
                f"the schedule of {name} gives {values[bad[0]]:g} at step {bad[0]}; it must be a finite number {wanted} at all "
                f"{count} steps (in {experiment.dtype}): give it an end value, or train fewer steps"
            )


def replace_field(config: Any, path: str, value: Any) -> Any:
    """A copy of a nested frozen dataclass with the field at a dotted path replaced, or ValueError."""
    name, _, rest = path.partition(".")
    names = (
        [field.name for field in dataclasses.fields(config) if field.init] if dataclasses.is_dataclass(config) else []
    )
    if name not in names:
        raise ValueError(
            f"{type(config).__name__} has no field {name!r}; it has {', '.join(n for n in names if n != '_') or 'none'}"
        )
    return dataclasses.replace(config, **{name: replace_field(getattr(config, name), rest, value) if rest else value})


def split_traced(experiment: Experiment) -> tuple[Experiment, dict[str, float]]:
    """The experiment with every traced number replaced by 1 (so that equal shapes share a compilation), and
    those numbers. A 0 stays in place: it switches a knob off, and what is off should cost nothing."""
    found = {}
    for path in TRACED_FIELDS:
        value: Any = experiment
        for name in path.split("."):
            value = getattr(value, name, None)
        if isinstance(value, (numbers.Real, np.ndarray, jax.Array)) and np.ndim(value) == 0 and value != 0:
            found[path] = float(value)
            experiment = replace_field(experiment, path, 1.0)
    return experiment, found


def join_traced(template: Experiment, values: dict[str, Any]) -> Experiment:
    """The experiment with the given values at their dotted paths, the inverse of `split_traced`."""
    return functools.reduce(lambda config, item: replace_field(config, *item), values.items(), template)
