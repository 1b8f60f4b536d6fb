"""A grid of experiments times seeds, trained together and labelled; on disk, in chunks that survive a kill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simulator.settings import numbers, replace_field
from simulator.storage import sweeps
from simulator.storage.identity import describe_config, describe_run, label, require_identified
from simulator.storage.results import provenance
from simulator.training import engine
from simulator.training.checks import as_metrics, require_usable
from simulator.training.experiment import Experiment, require_schedules
from simulator.training.runs import (
    axes_of,
    between,
    calibrate,
    evaluation_steps,
    first_bad_step,
    lay_out,
    named_params,
    shapes_of,
    train_replicas,
)
from simulator.validation import require_boolean, require_integer


def sweep(
    experiment: Experiment,
    *,
    over: Mapping[str, Sequence[Any]],
    seeds: int = 16,
    key: jax.Array,
    params: Any = None,
    metrics: Mapping[str, Callable] | None = None,
    keep_params: bool = False,
    store: Path | str | None = None,
    keep_diverged: bool = False,
    progress: bool = False,
):
    """Train every combination of the swept fields with every seed.

    Seed s uses fold_in(key, s) at every point of the grid, so that points differ in the swept fields alone.
    Numbers (the leaves of the experiment as a pytree: temperature, angle, noise, learning rate, the numbers of a loss of one's
    own) share one compiled program; any other field is looped over.

    Args:
      experiment: the common part.
      over: dotted field -> values, for instance {"loss.temperature": [0.01, 0.1], "start.angle": [0.5, 1.5]}.
      seeds: number of seeds, >= 1.
      key: JAX random key.
      params: parameters to start from at every point, each with a leading axis of `seeds` (as in the state that
        `train_replicas` returns), for fine-tuning; None starts as the experiment says.
      metrics: as in `train`; stored with the rest.
      keep_params: whether the trained parameters of every replica are kept too; `towers` makes the towers of one again.
      store: folder that keeps every finished chunk of replicas; the same call resumes there, and several processes may
        share it. None keeps everything in memory.
      keep_diverged: return replicas whose loss became NaN or infinite too, NaN from their `bad_step` on, instead of raising.
      progress: show a progress bar.

    Returns:
      xarray.Dataset with one dimension per swept field, `seed`, and `step`. A field's dimension has its dotted path as its name
      ("experiment.loss" for one that is called like a result), and its values stand beside it with underscores, as
      `data.loss_temperature`, unless that name is taken. The variables are the history [..., seed, step] as in `Run.history`, the
      final embeddings `x`, `y` [..., seed, pair, embed] and `labels` [..., seed, pair], and `bad_step` [..., seed], the step at
      which a replica diverged (−1: it did not); the attributes hold config, versions, commit and precision. With keep_params,
      `params.x.hidden.0.kernel` [..., seed, *its own axes] and so on, by the names that Flax gives, and `params.log_scale` [..., seed] and so on for learned numbers. Where a swept field
      changes a size, shorter rows are padded with NaN. What is of whole numbers (a metric, say) has −1 in place of NaN: where it
      is padded, and from the `bad_step` of a replica on.

    Raises:
      ValueError: an unknown field, an empty list of values, a value the field does not allow, or a store of another
        sweep.
      FloatingPointError: a loss became NaN or infinite; names the step, the point and the seed. A store then holds all the
        others (`load_sweep`); without one, the first ends the sweep.
      OSError: the store cannot be written; what is done is safe.

    Example:
      >>> experiment = sim.Experiment(steps=20, batch_size=16, eval_pairs=32, eval_points=3)
      >>> over = {"loss.temperature": [0.01, 0.1], "start.angle": [0.0, 1.5]}
      >>> data = sim.sweep(experiment, over=over, seeds=2, key=jax.random.key(0))
      >>> dict(data.gap_norm.sizes)
      {'loss.temperature': 2, 'start.angle': 2, 'seed': 2, 'step': 3}

      Points are chosen by the dimension's name, or by keyword once the other name is made the dimension:

      >>> data.loss_temperature.values.tolist(), data.sel({"loss.temperature": 0.1, "seed": 0}).gap_norm.dims
      ([0.01, 0.1], ('start.angle', 'step'))
      >>> data.swap_dims({"loss.temperature": "loss_temperature"}).sel(loss_temperature=0.1, seed=0).gap_norm.dims
      ('start.angle', 'step')
    """
    if store is None:
        groups, arrays, config = _prepare(experiment, over, seeds, key, params, metrics, keep_params)
        whole = [_train(group, np.arange(group.size), None, keep_diverged, progress) for group in groups]
        together = lambda name: np.concatenate([_pad(part.get(name), *arrays[name], groups[0].size) for part in whole])
        return _label({name: together(name)[_places(config)] for name in arrays}, _attributes(config), arrays)
    fill_store(
        experiment, over=over, seeds=seeds, key=key, params=params, metrics=metrics, keep_params=keep_params, store=store,
        progress=progress,
    )  # fmt: skip
    data = load_sweep(store)
    if not keep_diverged and (found := diverged(data)):
        raise FloatingPointError(f"{found}; the others are stored in {store} (load_sweep)")
    return data


def fill_store(
    experiment: Experiment,
    *,
    over: Mapping[str, Sequence[Any]],
    seeds: int = 16,
    key: jax.Array,
    params: Any = None,
    metrics: Mapping[str, Callable] | None = None,
    keep_params: bool = False,
    store: Path | str,
    progress: bool = False,
) -> None:
    """Train what a store lacks of a sweep, and load nothing; arguments as those of `sweep`."""
    engine.require_one_process("sweep(store=)", "start processes that do not know of each other: they share the store")
    groups, arrays, config = _prepare(experiment, over, seeds, key, params, metrics, keep_params)
    require_identified(config)
    dimensions = _dimensions(config, arrays)
    shape = (*map(len, config["over"].values()), seeds)
    cut = _cut(shape, [path in groups[0].where for path in config["over"]])
    coordinates = _coordinates(config, dimensions, arrays)
    # What is of several types is kept as text.
    plain = lambda values: values if np.asarray(values).dtype.kind in "biuf" else [str(v) for v in values]
    chunks = sweeps.open_store(
        Path(store), config, shape=shape, cut=cut,
        arrays={name: (*found, axes_of(name, len(found[0]))) for name, found in arrays.items()}, dims=(*dimensions.values(), "seed"),
        coordinates={name: (axis, plain(values)) for name, (axis, values) in coordinates.items()},
        attributes=_attributes(config), choose_block=lambda: _choose_block(groups),
    )  # fmt: skip
    _train_chunks(groups, chunks, arrays, config, progress)


def load_sweep(store: Path | str, variables: Sequence[str] | None = None):
    """What `sweep` has stored in a folder, as the Dataset that it returns; replicas that are not done are NaN.

    For a look at what does not fit into memory, `xarray.open_zarr(store + "/results.zarr")` reads lazily, and checks nothing.

    Args:
      store: the folder.
      variables: names of the variables to read and check; None for all.

    Returns:
      xarray.Dataset.

    Raises:
      ValueError: the folder holds no sweep, lacks a variable, or was damaged.
    """
    return _label(*sweeps.read_store(Path(store), variables))


def diverged(data) -> str | None:
    """How many replicas of a sweep have a loss that became NaN or infinite, and the first of them, in words; None for none."""
    bad = np.argwhere(data.bad_step.values >= 0)
    if not len(bad):
        return None
    at = dict(zip(data.bad_step.dims, bad[0], strict=True))
    first = data.bad_step.isel(at)
    where = ", ".join(f"{name} = {data[name].values[i]}" for name, i in at.items() if name != "seed")
    return (
        f"the loss became NaN or infinite at step {first.item()} in {where}{', ' if where else ''}seed {at['seed']} ({len(bad)} of "
        f"{data.bad_step.size} replicas); lower the learning rate, raise the temperature, or use dtype='float64'"
    )


def _prepare(experiment: Experiment, over, seeds: int, key: jax.Array, params, metrics, keep_params: bool):
    """(groups, name -> (largest shape of a replica, dtype), configuration as JSON values) of a sweep."""
    require_integer("seeds", seeds)
    require_boolean("keep_params", keep_params)
    over = {path: _listed(path, values) for path, values in over.items()}
    groups = _groups(experiment, over, seeds, key, params, metrics, keep_params)
    for group in groups:
        require_usable(group.config, group.varied)
    one = lambda config: shapes_of(config, as_metrics(metrics), keep_params=keep_params)
    shapes, parameters = zip(*(one(group.config) for group in groups), strict=True)
    shapes = [found | dict(bad_step=((), np.dtype("int32"))) for found in shapes]
    largest = {
        name: (tuple(np.max([s[name][0] for s in shapes if name in s], axis=0).tolist()), dtype)
        for name, (_, dtype) in {name: found for s in shapes for name, found in s.items()}.items()
    }
    static, traced = _split(experiment, over)
    config = describe_run(experiment, key, params) | dict(
        over={path: describe_config(values) for path, values in over.items()},
        order=[*static, *traced],
        seeds=seeds,
        parameters=list(dict.fromkeys(parameters)),
    )
    config |= dict(metrics=describe_config(dict(metrics))) if metrics else {}
    config |= dict(keep_params=True) if keep_params else {}
    return groups, largest, config


def _listed(path: str, values) -> list[Any]:
    if isinstance(values, (np.ndarray, jax.Array)):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"the swept field {path!r} has {values!r}; give a list of values")
    return list(values)


def _attributes(config) -> dict[str, str]:
    return provenance() | dict(config=json.dumps(config), precision=config["experiment"]["dtype"])


@dataclasses.dataclass(frozen=True)
class _Group:
    """Replicas that share all shapes: points of the traced fields times seeds."""

    config: Experiment
    where: dict[str, Any]  # the static fields
    varied: dict[str, np.ndarray]  # traced field -> a number per replica
    keys: jax.Array
    seeds: int
    params: Any  # to start from, with an axis of replicas, or None
    metrics: Any
    keep_params: bool

    @property
    def size(self) -> int:
        return len(self.keys)

    def describe(self, replica: int) -> str:
        where = self.where | {name: values[replica].item() for name, values in self.varied.items()}
        settings = ", ".join(f"{name} = {value}" for name, value in where.items())
        return f"replica {replica} ({settings}{', ' if settings else ''}seed {replica % self.seeds})"


def _split(experiment: Experiment, over) -> tuple[list[str], list[str]]:
    """Swept fields that need a program for each value, and those that are numbers in one program."""
    is_leaf = lambda path, value: np.ndim(numbers(replace_field(experiment, path, value)).get(path, [])) == 0
    traced = [path for path, values in over.items() if all(is_leaf(path, value) for value in values)]
    return [path for path in over if path not in traced], traced


def _groups(
    experiment: Experiment, over, seeds: int, key: jax.Array, params, metrics, keep_params: bool
) -> list[_Group]:
    for path, values in over.items():
        if path in ("steps", "eval_points"):
            raise ValueError(
                f"{path!r} sets the axis of the results and cannot be swept; call sweep once for each value"
            )
        if not values:
            raise ValueError(f"the swept field {path!r} has no values; give at least one")
        for value in values:  # validates path and value before anything is trained
            require_schedules(replace_field(experiment, path, value))
    static, traced = _split(experiment, over)
    points = list(itertools.product(*(over[p] for p in traced)))
    keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(np.tile(np.arange(seeds), len(points)))
    varied = {p: np.repeat([v[i] for v in points], seeds) for i, p in enumerate(traced)}
    params = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(points)), params)
    groups = []
    for values in itertools.product(*(over[p] for p in static)):
        config = experiment
        for path, value in zip(static, values, strict=True):
            config = replace_field(config, path, value)
        where = dict(zip(static, values, strict=True))
        groups.append(_Group(config, where, varied, keys, seeds, params, metrics, keep_params))
    return groups


def _train(
    group: _Group,
    rows: np.ndarray,
    replicas_per_block: int | None,
    keep_diverged: bool,
    progress: bool,
    checkpoint=None,
):
    """The results of some replicas of a group, by name, [replicas, ...]; NaN from the step at which one diverged."""
    varied = {name: values[rows] for name, values in group.varied.items()}
    history, state, final, steps = train_replicas(
        group.config, varied, group.keys[rows], params=jax.tree.map(lambda leaf: leaf[rows], group.params),
        metrics=group.metrics, progress=progress, describe=lambda replica: group.describe(int(rows[replica])),
        replicas_per_block=replicas_per_block, checkpoint=checkpoint, keep_diverged=keep_diverged,
    )  # fmt: skip
    bad_step = first_bad_step(state["bad_step"], history["loss"], steps)
    bad = (bad_step >= 0)[:, None] & (steps >= bad_step[:, None])
    for values in history.values():
        values[bad] = np.nan if values.dtype.kind in "fc" else -1
    at_the_end = final | (named_params(state["params"]) if group.keep_params else {})
    for name, values in at_the_end.items():
        if name != "labels":
            ended = bad[:, -1].reshape(-1, *(1,) * (values.ndim - 1))
            at_the_end[name] = np.where(ended, np.nan, values).astype(values.dtype)
    return history | at_the_end | dict(bad_step=bad_step)


# Replica-steps from which measuring the best block size (some seconds of compiling) pays.
WORTH_CALIBRATING = 300_000


def _choose_block(groups: list[_Group]) -> int:
    """Replicas per block of a new store."""
    config, size = groups[0].config, groups[0].size
    if size * len(groups) * config.steps >= WORTH_CALIBRATING:
        return min(calibrate(config), size)
    return lay_out(config, {}, groups[0].keys, None)[-1].replicas_per_block


def _cut(shape: tuple[int, ...], is_static: list[bool]) -> tuple[int, ...]:
    """How a grid [*fields, seed] is cut into chunks: by its shape alone, so that the machine that makes a store decides for no
    other. Some 64 chunks or more, so that many workers find work, of 8 to 128 replicas each, so that files stay few."""
    left, cut = min(128, max(8, int(np.prod(shape)) // 64)), []
    for size, alone in zip(reversed(shape), reversed([*is_static, False]), strict=True):
        cut.append(1 if alone else -(-size // -(-size // left)))  # in parts of about one size
        left = max(1, left // cut[-1])
    return tuple(reversed(cut))


def _train_chunks(groups: list[_Group], store: sweeps.SweepStore, arrays, config, progress: bool) -> None:
    """Train what is not done, sharing the work with other processes on the same store. As many chunks of a group are trained
    together as fill a block on every device of this process. What they lack of that repeats the last replica, so that one
    program serves all, and always for as many devices (XLA optimises it for a single one differently)."""
    from simulator.progress import tqdm

    at_once = store.replicas_per_block * (jax.device_count() if groups[0].size > store.replicas_per_block else 1)
    at_once = max(at_once, int(np.prod(store.cut)))
    places = _places(config)
    group_of = lambda chunk: int(places[store.region(chunk)].flat[0]) // groups[0].size
    done = sweeps.finished(store)
    with tqdm(total=done.size, initial=int(done.sum()), disable=not progress, unit="chunk", desc="sweep") as bar:
        while not done.all():
            for number, chunks in _sets([tuple(c) for c in np.argwhere(~done).tolist()], store, group_of, at_once):
                with sweeps.claimed(store, chunks) as mine:
                    if not mine:
                        continue
                    rows = [places[store.region(chunk)].ravel() % groups[0].size for chunk in mine]
                    together = np.concatenate(rows)
                    together = np.pad(together, (0, at_once - len(together)), mode="edge")
                    state = sweeps.unfinished(store, mine, jax.device_count())
                    values = _train(groups[number], together, store.replicas_per_block, True, False, state)
                    first = 0
                    for chunk, part in zip(mine, rows, strict=True):
                        shape = places[store.region(chunk)].shape
                        here = {name: value[first : first + len(part)] for name, value in values.items()}
                        full = {name: _pad(here.get(name), *found, len(part)) for name, found in arrays.items()}
                        sweeps.write_chunk(store, chunk, {n: v.reshape(*shape, *v.shape[1:]) for n, v in full.items()})
                        first += len(part)
                    sweeps.forget_unfinished(store, mine)
                bar.update(len(mine))
            done = sweeps.finished(store)
            bar.update(int(done.sum()) - bar.n)
            if not done.all():
                time.sleep(0.5)  # the rest is being trained by other processes; one that dies gives its chunks back


def _places(config) -> np.ndarray:
    """The number of every place of the grid [*fields, seed] among all replicas: those of a group stand together, and groups differ
    in the first fields of `order`."""
    over, order = config["over"], config["order"]
    shape = (*(len(over[path]) for path in order), config["seeds"])
    return np.arange(np.prod(shape)).reshape(shape).transpose(*(order.index(path) for path in over), len(order))


def _sets(waiting: list[sweeps.Chunk], store: sweeps.SweepStore, group_of, at_once: int):
    """(number of a group, some of its chunks): as many as hold no more replicas than that."""
    several = at_once // int(np.prod(store.cut))
    for number, chunks in itertools.groupby(sorted(waiting, key=group_of), key=group_of):
        chunks = list(chunks)
        for first in range(0, len(chunks), several):
            yield number, chunks[first : first + several]


def _pad(values: np.ndarray | None, shape: tuple[int, ...], dtype, replicas: int) -> np.ndarray:
    """Filled up to a shape per replica, with NaN (−1 for whole numbers); None, of a group that has no such result, is
    nothing but these."""
    if values is not None and values.shape[1:] == shape:
        return values
    full = np.full((replicas, *shape), np.nan if np.dtype(dtype).kind in "fc" else -1, dtype)
    if values is not None:
        full[(slice(None), *(slice(0, n) for n in values.shape[1:]))] = values
    return full


def _dimensions(config, names: Iterable[str]) -> dict[str, str]:
    """Swept field -> name of its axis. A field may be called like a result (`loss`), which xarray would take for the result's own
    coordinate."""
    taken = {*names, "seed", "step", "pair", "embed", "between"}
    return {path: f"experiment.{path}" if path in taken else path for path in config["over"]}


def _coordinates(config, dimensions: dict[str, str], names: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Name of a coordinate -> (its axis, its values): that of every axis, and of a dotted one also with underscores, which attribute
    access reaches, unless that is taken. What is no number or text is given as JSON."""
    over = config["over"]
    fields = {axis: (axis, [label(value) for value in over[path]]) for path, axis in dimensions.items()}
    steps = evaluation_steps(config["experiment"]["steps"], config["experiment"]["eval_points"])
    modalities = 2 + len(config["experiment"].get("encoder_others", []))  # a store of before there were more has none
    own = dict(seed=np.arange(config["seeds"]), step=steps) | between(modalities)
    known = fields | {axis: (axis, values) for axis, values in own.items()}
    for axis in fields:
        if (name := axis.replace(".", "_")) not in {*names, *known, "pair", "embed"}:
            known[name] = fields[axis]
    return known


def _label(arrays, attributes, names: Iterable[str]):
    """xarray.Dataset from arrays [*grid, ...], some of those whose names are given."""
    import xarray as xr

    config = json.loads(attributes["config"])
    dimensions = _dimensions(config, names)
    outer = (*dimensions.values(), "seed")
    variables = {name: ((*outer, *axes_of(name, np.ndim(value) - len(outer))), value) for name, value in arrays.items()}
    return xr.Dataset(variables, coords=_coordinates(config, dimensions, names), attrs=attributes)
