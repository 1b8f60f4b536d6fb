"""Checks of what a user brings (data source, towers, loss, metrics) by tracing it, before anything is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simulator.data import MODALITIES, Batch, dims_of
from simulator.data import SHIPPED as SHIPPED_DATA
from simulator.encoders import MLP, Linear, Table
from simulator.geometry import GapMeasures
from simulator.losses import SHIPPED, at_step, learned_numbers, number_values, parameter_name
from simulator.settings import Template, split
from simulator.tracing import named, require_one_program
from simulator.training.experiment import Experiment, name_of

RESULTS = frozenset(GapMeasures.__dataclass_fields__) | {"loss", "gap", "labels", "bad_step", *MODALITIES}
AXES = frozenset({"seed", "step", "pair", "embed", "between"})
Metrics = tuple[tuple[str, Callable], ...]


def as_metrics(metrics: Mapping[str, Callable] | None) -> Metrics:
    """The metrics in order, hashable, or ValueError for a name or a function that cannot be one."""
    found = tuple((metrics or {}).items())
    for name, function in found:
        if not isinstance(name, str) or not name.isidentifier() or name in RESULTS | AXES:
            raise ValueError(f"a metric is called {name!r}, which is taken, or no name in Python; give it another one")
        if not callable(function):
            raise ValueError(f"the metric {name!r} is {function!r}; it must be a function snapshot -> array")
        try:
            hash(function)
        except TypeError as error:
            raise ValueError(f"the metric {name!r} is not hashable ({error}); pass a function") from error
    return found


def traced_values(experiment: Experiment, varied: Mapping[str, Any] | None = None) -> tuple[Template, dict[str, Any]]:
    """The template of an experiment, and shape and type of what it lacks, by dotted path."""
    template, numbers, arrays = split(experiment, varied)
    values: dict[str, Any] = {path: jax.ShapeDtypeStruct((), experiment.dtype) for path in numbers}
    return template, values | {path: jax.ShapeDtypeStruct(np.shape(a), a.dtype) for path, a in arrays.items()}


def require_usable(experiment: Experiment, varied: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError where the data source, a tower or the loss of an experiment cannot be trained with, its numbers traced as
    in training; shipped ones are left out."""
    own_towers = [name for name, tower in experiment.encoders.items() if type(tower) not in (MLP, Linear, Table)]
    own_data = type(experiment.data) not in SHIPPED_DATA
    own_loss = type(experiment.loss) not in SHIPPED
    if not (own_towers or own_data or own_loss):
        return
    template, values = traced_values(experiment, varied)
    if own_data:
        _require_source(experiment, template, values)
    for name in own_towers:
        width = dict(zip(MODALITIES, dims_of(experiment.data), strict=False))[name]
        _require_tower(name, width, template, values)
    if own_loss:
        rows = cast(int, experiment.num_pairs if experiment.is_table else experiment.eval_pairs)
        for count in dict.fromkeys((experiment.batch_size, rows)):  # training and measures
            _require_loss(experiment, count, template, values)


def _require_source(experiment: Experiment, template: Template, values: dict[str, Any]) -> None:
    data: Any = experiment.data
    name, n, dtype, key = name_of(data), 3, jnp.dtype(experiment.dtype), jax.random.key(0)
    what = f"{name}.draw_world(key=, dtype=)"
    with named(what):
        world = jax.eval_shape(lambda v, key: template.join(v).data.draw_world(key=key, dtype=dtype), values, key)
    require_one_program(what, lambda v, key: template.join(v).data.draw_world(key=key, dtype=dtype), values, key)
    for method in ("draw_pairs", "draw_stream"):
        if not hasattr(data, method):
            continue
        call = functools.partial(
            lambda method, v, world, key: getattr(template.join(v).data, method)(world, n, key=key), method
        )
        with named(f"{name}.{method}(world, n, key=)"):
            drawn = jax.eval_shape(call, values, world, key)
        if isinstance(drawn, tuple) and len(drawn) in (2, 3):
            drawn = Batch(*drawn)
        if not isinstance(drawn, Batch):
            raise ValueError(
                f"{name}.{method} gives {type(drawn).__name__}; it must give (x, y), (x, y, labels) or a Batch"
            )
        dims = dims_of(data)
        if len(drawn.others) != len(dims) - 2:
            raise ValueError(
                f"{name}.{method} gives {2 + len(drawn.others)} modalities and {name} has {len(dims)}; a Batch holds those of "
                "dim_others as `others`"
            )
        for side, dim in zip(MODALITIES, dims, strict=False):
            rows, wanted = drawn.rows(side), (n, dim)
            if rows.shape != wanted or rows.dtype.kind not in "fiu":
                raise ValueError(
                    f"{name}.{method} gives {side} of shape {rows.shape} and dtype {rows.dtype} for n = {n}; expected {wanted}, "
                    f"as {f'dim_{side}' if side in 'xy' else 'dim_others'} says, and real numbers"
                )
        labels = drawn.labels
        if labels is not None and (labels.shape != (n,) or labels.dtype.kind not in "iu"):
            raise ValueError(
                f"{name}.{method} gives labels of shape {labels.shape} and dtype {labels.dtype} for n = {n}; expected whole "
                f"numbers [{n}]"
            )
        require_one_program(f"{name}.{method}", call, values, world, key)


def _require_tower(name: str, width: int, template: Template, values: dict[str, Any]) -> None:
    """What is wrong with a tower alone is said where it is built."""

    def start(values, key):
        experiment = template.join(values)
        tower = experiment.encoders[name](width, rngs=nnx.Rngs(params=key), dtype=jnp.dtype(experiment.dtype))
        return nnx.state(tower, nnx.Param)

    require_one_program(f"encoder_{name}", start, values, jax.random.key(0))


def _require_loss(experiment: Experiment, count: int, template: Template, values: dict[str, Any]) -> None:
    name, dtype = name_of(experiment.loss), jnp.dtype(experiment.dtype)
    rows = jax.ShapeDtypeStruct((count, 2), dtype)
    whole = jax.ShapeDtypeStruct((count,), jnp.zeros(0, int).dtype)
    sides = (jax.ShapeDtypeStruct((count, dim), dtype) for dim in dims_of(experiment.data)[:2])
    batch: Any = Batch(*cast(Any, (*sides, whole, whole)))

    def loss(x, y, values, batch):
        part = template.join(values).loss
        learned = learned_numbers(part).items()
        params = {
            parameter_name(path): number.parameter(jnp.asarray(number.initial, dtype)) for path, number in learned
        }
        return at_step(part, params, jnp.zeros((), jnp.int32), dtype)(x, y, batch)

    with named(f"the loss {name}(x, y, batch) of {count} pairs"):
        value = jax.eval_shape(loss, rows, rows, values, batch)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        given = (
            f"an array of shape {value.shape} and dtype {value.dtype}"
            if hasattr(value, "shape")
            else type(value).__name__
        )
        raise ValueError(f"the loss {name} gives {given}; it must give one real number, a scalar")
    with named(f"the gradient of the loss {name}"):
        jax.eval_shape(jax.grad(loss, (0, 1)), rows, rows, values, batch)
    require_one_program(f"the loss {name}", jax.grad(loss, (0, 1)), rows, rows, values, batch)
    if taken := {path for path, _ in number_values(experiment.loss)} & (RESULTS | AXES):
        raise ValueError(
            f"the loss {name} has a number called {min(taken)}, like a result; give the field another name"
        )
