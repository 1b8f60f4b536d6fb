"""Losses as parts of an experiment: settings that are called with the rows of a batch.

A loss of one's own is a class like these, registered with `simulator.register`, or any function (x, y, batch) -> scalar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from simulator.losses.contrastive import (
    SIMILARITIES,
    Similarity,
    info_nce,
    labeled_info_nce,
    sharded_info_nce,
    sigmoid_loss,
    spectral_loss,
)
from simulator.numerics.scaling import widened
from simulator.settings import is_registered, number_fields, register, replaced, require_own_class
from simulator.validation import require_boolean, require_integer, require_number, require_one_of


@register
@dataclasses.dataclass(frozen=True)
class Learned:
    """A number of a loss that is trained with the embeddings, as CLIP's temperature: τ = exp(−ν), ν a scalar parameter.

    It is not subject to the optimiser's weight decay.

    Args:
      initial: the number at the start; > 0 where `positive`.
      least, most: bounds that it is set back to after every step; None for none. CLIP's temperature has least = 0.01.
      learning_rate: its own learning rate; None for the experiment's.
      positive: whether −log of the number is the parameter; False trains the number itself (SigLIP's bias).
    """

    initial: float
    _: dataclasses.KW_ONLY
    least: float | None = None
    most: float | None = None
    learning_rate: float | None = None
    positive: bool = True

    def __post_init__(self):
        require_own_class("a learned number", self, ("parameter", "number", "bounded"))
        require_boolean("Learned.positive", self.positive)
        above = 0.0 if self.positive else float("-inf")
        for name in ("least", "most"):
            if getattr(self, name) is not None:
                require_number(f"Learned.{name}", getattr(self, name), above=above)
        inside = dict(least=self.least, most=self.most)
        inside = {name: bound for name, bound in inside.items() if bound is not None}
        require_number("Learned.initial", self.initial, above=above, **inside)
        if self.learning_rate is not None:
            require_number("Learned.learning_rate", self.learning_rate, above=0.0)

    def parameter(self, number: Any) -> jax.Array:
        """The parameter of a number."""
        return -jnp.log(number) if self.positive else jnp.asarray(number)

    def number(self, parameter: Any) -> jax.Array:
        """The number of a parameter, the inverse of `parameter`."""
        return jnp.exp(-parameter) if self.positive else parameter

    def bounded(self, parameter: jax.Array) -> jax.Array:
        """The parameter with its number set back into its bounds."""
        bounds = [
            None if b is None else self.parameter(jnp.asarray(b, parameter.dtype)) for b in (self.least, self.most)
        ]
        return jnp.clip(parameter, *(reversed(bounds) if self.positive else bounds))


@register
@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """The loss of an experiment: `info_nce` with a fixed, scheduled or learned temperature.

    Args:
      temperature: τ > 0; or an optax schedule step -> τ; or `Learned(initial)`.
      similarity: "cosine", "dot" or "sqeuclidean".
      block_size: rows of the gallery per block, None for the dense loss.
    """

    temperature: float | Callable | Learned
    _: dataclasses.KW_ONLY
    similarity: Similarity = "cosine"
    block_size: int | None = None

    def __post_init__(self):
        _require_positive("InfoNCE.temperature", self.temperature)
        require_one_of("InfoNCE.similarity", self.similarity, SIMILARITIES)
        if self.block_size is not None:
            require_integer("InfoNCE.block_size", self.block_size)

    def __call__(self, x, y, batch=None) -> jax.Array:
        return info_nce(x, y, temperature=self.temperature, similarity=self.similarity, block_size=self.block_size)

    def spread(self, x, y, batch, axis_name: str) -> jax.Array:
        """The loss of a batch whose rows are spread along a mesh axis."""
        return sharded_info_nce(
            x,
            y,
            temperature=self.temperature,
            axis_name=axis_name,
            similarity=self.similarity,
            block_size=self.block_size,
        )


@register
@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """The loss of an experiment: `sigmoid_loss` with a fixed, scheduled or learned temperature and bias.

    Args:
      temperature: τ > 0; or an optax schedule step -> τ; or `Learned(initial)`.
      bias: b, added to every logit; a number, a schedule, or `Learned(initial, positive=False)`.
      train_bias: whether a bias that is a number is only the start of one that is trained.
      similarity: "cosine", "dot" or "sqeuclidean".
    """

    temperature: float | Callable | Learned
    _: dataclasses.KW_ONLY
    bias: float | Callable | Learned = -10.0
    train_bias: bool = False
    similarity: Similarity = "cosine"

    def __post_init__(self):
        _require_positive("Sigmoid.temperature", self.temperature)
        require_boolean("Sigmoid.train_bias", self.train_bias)
        if not isinstance(self.bias, Learned) and (self.train_bias or not callable(self.bias)):
            require_number("Sigmoid.bias", self.bias)
        require_one_of("Sigmoid.similarity", self.similarity, SIMILARITIES)

    def __call__(self, x, y, batch=None) -> jax.Array:
        return sigmoid_loss(x, y, temperature=self.temperature, bias=self.bias, similarity=self.similarity)


@register
@dataclasses.dataclass(frozen=True)
class LabeledInfoNCE:
    """The loss of an experiment: `labeled_info_nce` with the labels of the data.

    Args:
      temperature: τ > 0; or an optax schedule step -> τ; or `Learned(initial)`.
      same_label: what another pair of the same label is, "positive" or "ignored".
      similarity: "cosine", "dot" or "sqeuclidean".
    """

    temperature: float | Callable | Learned
    _: dataclasses.KW_ONLY
    same_label: Literal["positive", "ignored"] = "positive"
    similarity: Similarity = "cosine"

    def __post_init__(self):
        _require_positive("LabeledInfoNCE.temperature", self.temperature)
        require_one_of("LabeledInfoNCE.same_label", self.same_label, ("positive", "ignored"))
        require_one_of("LabeledInfoNCE.similarity", self.similarity, SIMILARITIES)

    def __call__(self, x, y, batch) -> jax.Array:
        return labeled_info_nce(
            x, y, batch.labels, temperature=self.temperature, same_label=self.same_label, similarity=self.similarity
        )


@register
@dataclasses.dataclass(frozen=True)
class Spectral:
    """The loss of an experiment: `spectral_loss`, which has no temperature.

    Args:
      scale: s > 0, a factor on every ⟨x, y⟩, for rows of unit length: the least loss, −n, is at XYᵀ = (n/s)I. A number, an
        optax schedule, or `Learned(initial)`.
    """

    scale: float | Callable | Learned = 1.0

    def __post_init__(self):
        _require_positive("Spectral.scale", self.scale)

    def __call__(self, x, y, batch=None) -> jax.Array:
        return spectral_loss(widened(x) * cast(Any, self.scale), y)


SHIPPED = (InfoNCE, Sigmoid, LabeledInfoNCE, Spectral)
Loss = Callable[..., jax.Array]


def _require_positive(name: str, number) -> None:
    if isinstance(number, Learned):
        if not number.positive:
            raise ValueError(f"{name} is learned with positive=False; it stays > 0 with positive=True")
    elif not callable(number):
        require_number(name, number, above=0.0)


def learned_numbers(loss: Loss) -> dict[str, Learned]:
    """Dotted field -> how it is learned, for the numbers of a loss that are trained."""
    found = {path: value for path, value in number_values(loss) if isinstance(value, Learned)}
    if type(loss) is Sigmoid and loss.train_bias and not isinstance(loss.bias, Learned):
        found["bias"] = Learned(cast(float, loss.bias), positive=False)  # its `initial` may be traced
    return found


def scheduled_numbers(loss: Loss) -> dict[str, Callable]:
    """Dotted field -> schedule step -> number, for the numbers of a loss that follow one."""
    return {path: value for path, value in number_values(loss) if callable(value)}


def parameter_name(path: str) -> str:
    """Name of the parameter of a learned number among those of a run; that of a temperature is CLIP's."""
    return "log_scale" if path == "temperature" else path


def at_step(loss: Loss, params: Mapping[str, Any], step: Any, dtype: Any) -> Loss:
    """The loss with numbers alone: learned ones from the parameters, scheduled ones from the step. What is no array yet stays as
    it is: a 0 that is off can be asked for by Python."""
    found = {path: learned.number(params[parameter_name(path)]) for path, learned in learned_numbers(loss).items()}
    found |= {path: schedule(step) for path, schedule in scheduled_numbers(loss).items()}
    return _with_numbers(loss, found, dtype)


def numbers_now(loss: Loss, dtype: Any) -> dict[str, jax.Array]:
    """Dotted field -> number of a loss that is `at_step`."""
    is_number = lambda value: isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
    return {path: jnp.asarray(value, dtype) for path, value in number_values(loss) if is_number(value)}


def ignores_length(loss: Any) -> bool:
    """Whether the loss sees the directions of the rows alone, so that they need not be scaled to unit length before it."""
    return type(loss) in (InfoNCE, Sigmoid, LabeledInfoNCE) and loss.similarity == "cosine"


def number_values(part: Any, above: str = ""):
    """(dotted path, value) of all number fields of a loss and of the registered parts that it holds; the value is a number, an
    array, a schedule, a Learned or None."""
    if not is_registered(part):
        return
    for field in dataclasses.fields(part):
        value, path = getattr(part, field.name), f"{above}{field.name}"
        if is_registered(value) and not isinstance(value, Learned):
            yield from number_values(value, f"{path}.")
        elif isinstance(value, Learned) or (
            field.name in number_fields(type(part)) and not isinstance(value, (str, bool))
        ):
            yield path, value


def _with_numbers(part: Any, found: Mapping[str, Any], dtype: Any, above: str = "") -> Any:
    if not is_registered(part):
        return part
    changed = {}
    for path, value in number_values(part, above):
        inner = path.removeprefix(above)
        if "." not in inner and value is not None:
            typed = lambda leaf: leaf if isinstance(leaf, (int, float)) else jnp.asarray(leaf, dtype)
            changed[inner] = jax.tree.map(typed, found.get(path, value))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if is_registered(value) and not isinstance(value, Learned):
            changed[field.name] = _with_numbers(value, found, dtype, f"{above}{field.name}.")
    return replaced(part, **changed)
