"""Checks of what a user brings (data source, loss, metrics) by tracing it once, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from simulator.data import Batch, Digits, LatentPairs, Pairs
from simulator.geometry import GapMeasures
from simulator.losses import SHIPPED, at_step, learned_numbers, number_values, parameter_name
from simulator.training.experiment import Experiment, name_of

RESULTS = frozenset(GapMeasures.__dataclass_fields__) | {"loss", "gap", "x", "y", "labels", "bad_step"}
AXES = frozenset({"seed", "step", "pair", "embed"})
Metrics = tuple[tuple[str, Callable], ...]


def as_metrics(metrics: Mapping[str, Callable] | None) -> Metrics:
    """The metrics in order, hashable, or ValueError for a name or a function that cannot be one."""
    found = tuple((metrics or {}).items())
    for name, function in found:
        if not isinstance(name, str) or not name or name in RESULTS | AXES:
            raise ValueError(f"a metric is called {name!r}, which is taken or no name; give it another one")
        if not callable(function):
            raise ValueError(f"the metric {name!r} is {function!r}; it must be a function snapshot -> array")
        try:
            hash(function)
        except TypeError as error:
            raise ValueError(f"the metric {name!r} is not hashable ({error}); pass a function") from error
    return found


def require_usable(experiment: Experiment) -> None:
    """Raise ValueError where the data source or the loss of an experiment cannot be trained with; shipped ones are left out."""
    if type(experiment.data) not in (LatentPairs, Pairs, Digits):
        _require_source(experiment)
    if type(experiment.loss) not in SHIPPED:
        _require_loss(experiment)


@contextlib.contextmanager
def named(what: str):
    """Whatever the user's code raises, as one line that names it."""
    try:
        yield
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"{what} fails while it is traced: {type(error).__name__}: {said}") from error


def _require_source(experiment: Experiment) -> None:
    data: Any = experiment.data
    name, n, dtype = name_of(data), 3, jnp.dtype(experiment.dtype)
    key = jax.random.key(0)
    with named(f"{name}.draw_world(key=, dtype=)"):
        world = jax.eval_shape(lambda key: data.draw_world(key=key, dtype=dtype), key)
    for method in ("draw_pairs", "draw_stream"):
        if not hasattr(data, method):
            continue
        with named(f"{name}.{method}(world, n, key=)"):
            drawn = jax.eval_shape(lambda world, key: getattr(data, method)(world, n, key=key), world, key)  # noqa: B023 (called at once)
        if isinstance(drawn, tuple) and len(drawn) in (2, 3):
            drawn = Batch(*drawn)
        if not isinstance(drawn, Batch):
            raise ValueError(
                f"{name}.{method} gives {type(drawn).__name__}; it must give (x, y), (x, y, labels) or a Batch"
            )
        for side in "xy":
            rows, wanted = getattr(drawn, side), (n, getattr(data, f"dim_{side}"))
            if rows.shape != wanted or rows.dtype.kind not in "fiu":
                raise ValueError(
                    f"{name}.{method} gives {side} of shape {rows.shape} and dtype {rows.dtype} for n = {n}; expected {wanted}, "
                    f"as dim_{side} says, and real numbers"
                )
        labels = drawn.labels
        if labels is not None and (labels.shape != (n,) or labels.dtype.kind not in "iu"):
            raise ValueError(
                f"{name}.{method} gives labels of shape {labels.shape} and dtype {labels.dtype} for n = {n}; expected whole "
                f"numbers [{n}]"
            )


def _require_loss(experiment: Experiment) -> None:
    name, dtype, n = name_of(experiment.loss), jnp.dtype(experiment.dtype), experiment.batch_size
    rows = jax.ShapeDtypeStruct((n, 2), dtype)
    whole = jax.ShapeDtypeStruct((n,), jnp.zeros(0, int).dtype)
    sides = (jax.ShapeDtypeStruct((n, getattr(experiment.data, f"dim_{side}")), dtype) for side in "xy")
    batch: Any = Batch(*cast(Any, (*sides, whole, whole)))

    def loss(x, y, batch):
        learned = learned_numbers(experiment.loss).items()
        params = {
            parameter_name(path): number.parameter(jnp.asarray(number.initial, dtype)) for path, number in learned
        }
        return at_step(experiment.loss, params, jnp.zeros((), jnp.int32), dtype)(x, y, batch)

    with named(f"the loss {name}(x, y, batch)"):
        value = jax.eval_shape(loss, rows, rows, batch)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        given = (
            f"an array of shape {value.shape} and dtype {value.dtype}"
            if hasattr(value, "shape")
            else type(value).__name__
        )
        raise ValueError(f"the loss {name} gives {given}; it must give one real number, a scalar")
    with named(f"the gradient of the loss {name}"):
        programs = [jax.make_jaxpr(jax.grad(loss, (0, 1)))(rows, rows, batch) for _ in range(2)]
    constants = [[np.asarray(c) for c in program.consts] for program in programs]
    same = str(programs[0].jaxpr) == str(programs[1].jaxpr) and len(constants[0]) == len(constants[1])
    if not same or not all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*constants, strict=True)
    ):
        raise ValueError(
            f"the loss {name} is another program each time it is traced (does it draw numbers with NumPy, or read a clock?); it "
            "must depend on x, y and batch alone"
        )
    taken = {path for path, _ in number_values(experiment.loss)} & (RESULTS | AXES)
    if taken:
        raise ValueError(
            f"the loss {name} has a number called {min(taken)}, like a result; give the field another name"
        )
