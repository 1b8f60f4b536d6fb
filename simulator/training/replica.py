"""One replica: its start, its steps and its measures, as functions of an experiment whose numbers may be traced.

`simulator.training.engine` compiles them over many replicas; `simulator.training.runs` calls them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from simulator.data import MODALITIES, Batch, dims_of, draw, take
from simulator.encoders import Table, place_in_cones
from simulator.geometry import gap_vector, measure_gap
from simulator.losses import (
    SIMILARITIES,
    at_step,
    ignores_length,
    learned_numbers,
    normalize_rows,
    numbers_now,
    parameter_name,
)
from simulator.tracing import named, require_one_program
from simulator.training import engine
from simulator.training.checks import Metrics, traced_values
from simulator.training.experiment import Experiment
from simulator.training.optimizer import make_optimizer
from simulator.validation import is_traced


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["x", "y", "labels", "params", "step", "others"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a metric along training is a function of.

    Attributes:
      x, y: embeddings of the held-out pairs, [eval_pairs, d].
      labels: cluster or class of each held-out pair, [eval_pairs].
      params: trained parameters, as in `Run.params`.
      step: optimiser steps so far, a whole number.
      others: embeddings by a third and further towers.
    """

    x: jax.Array
    y: jax.Array
    labels: jax.Array
    params: Any
    step: jax.Array
    others: tuple[jax.Array, ...] = ()


_NEVER_A_STEP = np.uint32(2**32 - 1)


class Keys(NamedTuple):
    """Random keys of one replica, one for each thing that is drawn."""

    world: jax.Array
    training: jax.Array
    held_out: jax.Array
    towers: jax.Array
    start: jax.Array
    steps: jax.Array


def keys_of(key: jax.Array) -> Keys:
    """The keys that derive from a replica's own."""
    return Keys(*jax.random.split(key, len(Keys._fields)))


def start(experiment: Experiment, key):
    """The state of one replica before its first step."""
    keys = keys_of(key)
    data: Any = experiment.data  # what a source may have beyond DataSource is asked for
    dtype = jnp.dtype(experiment.dtype)
    num_pairs, held_out_pairs = experiment.num_pairs, experiment.eval_pairs
    world = data.draw_world(key=keys.world, dtype=dtype)
    if hasattr(data, "total"):
        everything = draw(data, world, cast(int, num_pairs) + held_out_pairs, keys.training, dtype)
        training, held_out = take(everything, slice(None, num_pairs)), take(everything, slice(num_pairs, None))
    else:
        training = draw(data, world, num_pairs or held_out_pairs, keys.training, dtype)
        right = data.held_out() if hasattr(data, "held_out") else data
        held_out = draw(right, world, held_out_pairs, keys.held_out, dtype)
    if experiment.is_table:
        held_out = training
    towers = build_towers(experiment, keys.towers)
    if experiment.start is not None:
        inputs = [_inputs(encoder, training, name) for name, encoder in experiment.encoders.items()]
        place_in_cones(experiment.start, towers, inputs, key=keys.start)
    params = trained_params(experiment, towers)
    return dict(
        params=params,
        optimizer=make_optimizer(experiment).init(params),
        # A stream draws its pairs from the world; a fixed set keeps its pairs and this epoch's order.
        source=world if num_pairs is None else training,
        order=jnp.arange(num_pairs or 0),
        held_out=held_out,
        key=keys.steps,
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), -1, jnp.int32),
    )


initialise = engine.over_replicas(start, in_blocks=False, runs_once=True)


@functools.partial(engine.over_replicas, in_blocks=True)
def advance(experiment: Experiment, state, start, stop):
    optimizer = make_optimizer(experiment)
    batch_size, num_pairs = experiment.batch_size, experiment.num_pairs
    learned = learned_numbers(experiment.loss)

    def next_batch(state, step):
        key = jax.random.fold_in(state["key"], step)
        if num_pairs is None:
            batch = draw(experiment.data, state["source"], batch_size, key, experiment.dtype, stream=True)
            return batch, state["order"]
        if batch_size == num_pairs:
            return state["source"], state["order"]
        position = step % (num_pairs // batch_size)
        order = jax.lax.cond(position == 0, lambda: jax.random.permutation(key, num_pairs), lambda: state["order"])
        rows = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        return take(state["source"], rows), order

    def body(step, state):
        with jax.named_scope("batch"):  # the scopes name the parts in a profile
            batch, order = next_batch(state, step)
        loss, gradient = _loss_and_gradient(state["params"], experiment, batch, step, state["key"])
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(gradient, state["optimizer"], state["params"])
            params = optax.apply_updates(state["params"], updates)
            params = dict(cast(dict, params))
            for path, number in learned.items():
                params[parameter_name(path)] = number.bounded(params[parameter_name(path)])
        bad = jnp.where((state["bad_step"] < 0) & ~jnp.isfinite(loss), step, state["bad_step"])
        return state | dict(
            params=params,
            optimizer=optimizer_state,
            order=order,
            step=(step + 1).astype(jnp.int32),
            bad_step=bad.astype(jnp.int32),
        )

    return jax.lax.fori_loop(start, stop, body, state)


def measure(experiment: Experiment, state, metrics: Metrics = ()):
    """(history, embeddings by modality and labels) of one replica, on its held-out pairs. What is measured between two modalities
    has a leading axis of all their pairs where there are more than two."""
    snapshot = _snapshot(experiment, state)
    rows = dict(zip(experiment.encoders, (snapshot.x, snapshot.y, *snapshot.others), strict=True))
    loss = _loss_now(experiment, state["params"], state["step"])
    numbers, similarity = numbers_now(loss, experiment.dtype), getattr(loss, "similarity", None)
    similarity: Any = similarity if similarity in SIMILARITIES else "cosine"
    temperature = numbers.get("temperature")

    def between(x, y):
        measures = measure_gap(x, y, temperature=temperature, similarity=similarity)
        return dataclasses.asdict(measures) | dict(gap=gap_vector(x, y))

    if len(rows) == 2:
        history = between(*rows.values())
    else:  # one program for all pairs
        together = jnp.stack(list(rows.values()))
        places = jnp.array([[*map(list(rows).index, pair)] for pair in experiment.pairings])
        history = jax.lax.map(lambda pair: between(*together[pair]), places)
    history |= dict(loss=_total_loss(experiment, loss, rows, state["held_out"])) | numbers
    for name, metric in metrics:
        if name in history:
            raise ValueError(f"a metric is called {name!r}, like a number of the loss; give it another name")
        with named(f"the metric {name!r}"):
            value = jnp.asarray(metric(snapshot))
            history[name] = value.astype(int) if value.dtype == bool else value  # −1 stands for none
    return history, rows | dict(labels=snapshot.labels)


def _snapshot(experiment: Experiment, state) -> Snapshot:
    x, y, *others = embed(state["params"], experiment, state["held_out"])
    return Snapshot(x, y, state["held_out"].labels, state["params"], state["step"], tuple(others))


def _total_loss(experiment: Experiment, loss, rows: dict[str, jax.Array], batch: Batch):
    """The losses between modalities, added up."""
    pairs = experiment.losses_between or experiment.pairings
    losses = [loss(rows[first], rows[second], batch.between(first, second)) for first, second in pairs]
    return functools.reduce(jnp.add, losses)


def require_metrics(experiment: Experiment, metrics: Metrics) -> None:
    """Raise ValueError where a metric cannot be traced, or is another program each time."""
    if not metrics:
        return
    template, values = traced_values(experiment)
    first = lambda values, key: _snapshot(template.join(values), start(template.join(values), key))
    leaves, structure = jax.tree.flatten(jax.eval_shape(first, values, jax.random.key(0)))
    for name, metric in metrics:
        one = lambda leaves, metric=metric: jnp.asarray(metric(structure.unflatten(leaves)))
        with named(f"the metric {name!r}"):
            jax.eval_shape(one, leaves)
        require_one_program(f"the metric {name!r}", one, leaves)


@functools.lru_cache(maxsize=64)
def evaluator(metrics: Metrics = ()):
    """`measure` over replicas, with these metrics."""
    return engine.over_replicas(functools.partial(measure, metrics=metrics), in_blocks=False)


def _loss_and_gradient(params, experiment: Experiment, batch: Batch, step, key):
    """Loss of a batch in nats and its gradient; with batch_shards, from the rows of this device and the ring."""
    shards, size = experiment.batch_shards, experiment.batch_size // experiment.batch_shards
    first = 0 if shards == 1 else jax.lax.axis_index("batch") * size
    local = lambda rows: rows if shards == 1 else jax.lax.dynamic_slice_in_dim(rows, first, size)
    batch = jax.tree.map(local, batch)

    def of_parameters(params):
        with jax.named_scope("towers"):
            # The cosine takes rows of any length: to scale them to unit length once is enough.
            rows = embed(params, experiment, batch, normalize=not ignores_length(experiment.loss))
        if is_traced(experiment.swap_probability) or experiment.swap_probability > 0:
            swapped = local(
                jax.random.bernoulli(swap_key(key, step), experiment.swap_probability, (experiment.batch_size, 1))
            )
            x, y = rows
            rows = jnp.where(swapped, y, x), jnp.where(swapped, x, y)
        with jax.named_scope("loss"):
            loss = _loss_now(experiment, params, step)
            if shards > 1:
                return loss.spread(*rows, batch, "batch")
            return _total_loss(experiment, loss, dict(zip(experiment.encoders, rows, strict=True)), batch)

    value, gradient = jax.value_and_grad(of_parameters)(params)
    return value, gradient if shards == 1 else jax.lax.psum(gradient, "batch")


def swap_key(key, step):
    """The key of a step's swaps. Whatever the batch of this step derives from fold_in(key, step) is another one: JAX's split(key, n)[i]
    is fold_in(key, i), so one that is folded into the batch's own may be one that a data source draws with."""
    return jax.random.fold_in(jax.random.fold_in(key, _NEVER_A_STEP), step)


def _loss_now(experiment: Experiment, params, step) -> Any:
    return at_step(experiment.loss, params, step, experiment.dtype)


def embed(params, experiment: Experiment, batch: Batch, *, normalize: bool = True) -> tuple[jax.Array, ...]:
    """Rows of all towers; of unit length if the experiment says so, unless `normalize` is False."""
    embeddings = []
    for (name, encoder), tower in zip(experiment.encoders.items(), towers_of(experiment, params), strict=True):
        rows = tower(_inputs(encoder, batch, name))
        embeddings.append(normalize_rows(rows) if normalize and experiment.normalize else rows)
    return tuple(embeddings)


def towers_of(experiment: Experiment, params) -> list[Any]:
    """The towers as modules with these parameters."""
    graph = lambda name, encoder: _graph(encoder, _input_width(experiment, name), experiment.dtype)
    return [nnx.merge(graph(name, encoder), params[name]) for name, encoder in experiment.encoders.items()]


def _inputs(encoder, batch: Batch, name: str):
    return batch.index if isinstance(encoder, Table) else batch.rows(name)


def _input_width(experiment: Experiment, name: str):
    dims = dict(zip(MODALITIES, dims_of(experiment.data), strict=False))
    return experiment.num_pairs if isinstance(experiment.encoders[name], Table) else dims[name]


def build_towers(experiment: Experiment, key):
    """All towers at a random start; those of x and y do not depend on how many others there are."""
    others = (jax.random.fold_in(key, number) for number in range(2, len(experiment.encoders)))
    keys = (*jax.random.split(key), *others)
    towers, widths = [], []
    for (name, encoder), key in zip(experiment.encoders.items(), keys, strict=True):
        width = _input_width(experiment, name)
        tower = encoder(width, rngs=nnx.Rngs(params=key), dtype=jnp.dtype(experiment.dtype))
        other = jax.tree.leaves(nnx.state(tower, nnx.Not(nnx.Param)))
        if other:
            raise ValueError(
                f"encoder_{name} builds a {type(tower).__name__} with state other than nnx.Param (batch statistics or "
                "random streams); only parameters are trained, so remove those layers"
            )
        towers.append(tower)
        is_table = isinstance(encoder, Table)
        example = jnp.zeros((1,), int) if is_table else jnp.zeros((1, width), experiment.dtype)
        widths.append(jax.eval_shape(tower, example).shape[-1])
    for name, width in zip(experiment.encoders, widths, strict=True):
        if width != widths[0]:
            raise ValueError(
                f"encoder_x embeds in {widths[0]} dimensions and encoder_{name} in {width}; give both the same embed_dim"
            )
    return towers


def trained_params(experiment: Experiment, towers) -> dict[str, Any]:
    """What is trained: the towers, and the learned numbers of the loss."""
    states = [nnx.state(tower, nnx.Param) for tower in towers]
    params: dict[str, Any] = dict(zip(experiment.encoders, states, strict=True))
    for path, learned in learned_numbers(experiment.loss).items():
        params[parameter_name(path)] = learned.parameter(jnp.asarray(learned.initial, experiment.dtype))
    return params


def _graph(encoder, width: int, dtype: str):
    """The static half of a tower, found without computing anything."""
    # A tower with traced numbers cannot be remembered.
    return (_built if jax.tree.leaves(encoder) != [encoder] else _remembered)(encoder, width, dtype)


def _built(encoder, width: int, dtype: str):
    build = lambda: encoder(width, rngs=nnx.Rngs(params=0), dtype=jnp.dtype(dtype))
    return nnx.split(nnx.eval_shape(build))[0]


_remembered = functools.lru_cache(maxsize=64)(_built)
