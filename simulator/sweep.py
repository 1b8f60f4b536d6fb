"""A grid of experiments times seeds, trained together and labelled; on disk, in chunks that survive a kill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simulator import engine, resume
from simulator.experiment import TRACED_FIELDS, Experiment, replace_field, require_schedules
from simulator.identity import describe_config, describe_run, label, require_identified
from simulator.store import provenance
from simulator.training import calibrate, evaluation_steps, lay_out, shapes_of, train_replicas
from simulator.validation import require_integer


def sweep(
    experiment: Experiment,
    *,
    over: Mapping[str, Sequence[Any]],
    seeds: int = 16,
    key: jax.Array,
    params: Any = None,
    store: Path | str | None = None,
    progress: bool = False,
):
    """Train every combination of the swept fields with every seed.

    Seed s uses fold_in(key, s) at every point of the grid, so that points differ in the swept fields alone.
    Traced fields (`experiment.TRACED_FIELDS`: temperature, angle, tightness, noise, learning rate and others) share one
    compiled program; any other field is looped over.

    Args:
      experiment: the common part.
      over: dotted field -> values, for instance {"loss.temperature": [0.01, 0.1], "start.angle": [0.5, 1.5]}.
      seeds: number of seeds, >= 1.
      key: JAX random key.
      params: parameters to start from at every point, each with a leading axis of `seeds` (as in the state that
        `train_replicas` returns), for fine-tuning; None starts as the experiment says.
      store: folder that keeps every finished chunk of replicas; the same call resumes there, and several processes may
        share it. None keeps everything in memory.
      progress: show a progress bar.

    Returns:
      xarray.Dataset with one dimension per swept field (named by its dotted path; "experiment.loss" for one that is called
      like a result), `seed`, and `step`: the history
      as in `Run.history`, the final embeddings `x`, `y` [..., seed, pair, embed] and `labels`; its attributes
      hold config, versions, commit and precision. Where a swept field changes a size, shorter rows are padded with NaN.

    Raises:
      ValueError: an unknown field, an empty list of values, a value the field does not allow, or a store of another
        sweep.
      FloatingPointError: a loss became NaN; names the step, the point and the seed. A store then holds all chunks in which
        none did.
      OSError: the store cannot be written; what is done is safe.
    """
    require_integer("seeds", seeds)
    over = {path: _listed(path, values) for path, values in over.items()}
    groups = _groups(experiment, over, seeds, key, params)
    shapes, parameters = zip(*(shapes_of(group.config) for group in groups), strict=True)
    largest = {
        name: (tuple(np.max([s[name][0] for s in shapes if name in s], axis=0).tolist()), dtype)
        for name, (_, dtype) in {name: found for s in shapes for name, found in s.items()}.items()
    }
    static, traced = _split(over)
    config = describe_run(experiment, key, params) | dict(
        over={path: describe_config(values) for path, values in over.items()},
        order=[*static, *traced],
        seeds=seeds,
        parameters=list(dict.fromkeys(parameters)),
    )
    if store is None:
        whole = [_train(group, slice(None), None, progress) for group in groups]
        arrays = {
            name: np.stack([_pad(part.get(name), *largest[name], groups[0].size) for part in whole]) for name in largest
        }
        return _label(arrays, _attributes(config), config)
    engine.require_one_process("sweep(store=)", "start processes that do not know of each other: they share the store")
    require_identified(config)
    chunks = resume.open_store(
        Path(store), config, num_groups=len(groups), group_size=groups[0].size, arrays=largest,
        attributes=_attributes(config), choose_cut=lambda: _choose_cut(groups),
    )  # fmt: skip
    _train_chunks(groups, chunks, progress)
    return load_sweep(store)


def load_sweep(store: Path | str):
    """What `sweep` has stored in a folder, as the Dataset that it returns; replicas that are not done are NaN.

    Args:
      store: the folder.

    Returns:
      xarray.Dataset.

    Raises:
      ValueError: the folder holds no sweep.
    """
    config = resume.read_config(Path(store))
    return _label(*resume.read_store(Path(store)), config)


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

    @property
    def size(self) -> int:
        return len(self.keys)

    def describe(self, replica: int) -> str:
        where = self.where | {name: values[replica].item() for name, values in self.varied.items()}
        settings = ", ".join(f"{name} = {value}" for name, value in where.items())
        return f"replica {replica} ({settings}{', ' if settings else ''}seed {replica % self.seeds})"


def _split(over) -> tuple[list[str], list[str]]:
    """Swept fields that need a program for each value, and those that are numbers in one program."""
    traced = [p for p in over if p in TRACED_FIELDS and not any(callable(v) or not np.isscalar(v) for v in over[p])]
    return [p for p in over if p not in traced], traced


def _groups(experiment: Experiment, over, seeds: int, key: jax.Array, params) -> list[_Group]:
    for path, values in over.items():
        if path in ("steps", "eval_points"):
            raise ValueError(
                f"{path!r} sets the axis of the results and cannot be swept; call sweep once for each value"
            )
        if not values:
            raise ValueError(f"the swept field {path!r} has no values; give at least one")
        for value in values:  # validates path and value before anything is trained
            require_schedules(replace_field(experiment, path, value))
    static, traced = _split(over)
    points = list(itertools.product(*(over[p] for p in traced)))
    keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(np.tile(np.arange(seeds), len(points)))
    varied = {p: np.repeat([v[i] for v in points], seeds) for i, p in enumerate(traced)}
    params = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(points)), params)
    groups = []
    for values in itertools.product(*(over[p] for p in static)):
        config = experiment
        for path, value in zip(static, values, strict=True):
            config = replace_field(config, path, value)
        groups.append(_Group(config, dict(zip(static, values, strict=True)), varied, keys, seeds, params))
    return groups


def _train(group: _Group, rows: slice, replicas_per_block: int | None, progress: bool) -> dict[str, np.ndarray]:
    """The results of some replicas of a group, by name, [replicas, ...]."""
    varied = {name: values[rows] for name, values in group.varied.items()}
    first = rows.start or 0
    history, _, x, y, labels, _ = train_replicas(
        group.config, varied, group.keys[rows], params=jax.tree.map(lambda leaf: leaf[rows], group.params),
        progress=progress,
        describe=lambda replica: group.describe(first + replica), replicas_per_block=replicas_per_block,
    )  # fmt: skip
    return history | dict(x=x, y=y, labels=labels)


# Replica-steps from which measuring the best block size (some seconds of compiling) pays.
WORTH_CALIBRATING = 300_000


def _choose_cut(groups: list[_Group]) -> tuple[int, int]:
    """(replicas per chunk, replicas per block) of a new store: a chunk is a block on every device."""
    config, size = groups[0].config, groups[0].size
    if size * len(groups) * config.steps >= WORTH_CALIBRATING:
        per_block = min(calibrate(config), size)
    else:
        per_block = lay_out(config, {}, groups[0].keys, None)[-1].replicas_per_block
    return min(per_block * jax.device_count(), size), per_block


def _train_chunks(groups: list[_Group], store: resume.SweepStore, progress: bool) -> None:
    """Train what is not done, sharing the work with other processes on the same store. A chunk that ends in NaN keeps
    no other from being trained; the first one's error is raised at the end."""
    from tqdm import tqdm

    done = resume.finished(store)
    failed, errors = np.zeros_like(done), []
    with tqdm(total=done.size, initial=int(done.sum()), disable=not progress, unit="chunk", desc="sweep") as bar:
        while not (done | failed).all():
            for number, chunk in np.argwhere(~(done | failed)):
                with resume.claimed(store, number, chunk) as mine:
                    if not mine:
                        continue
                    try:
                        values = _train(groups[number], store.rows(chunk), store.replicas_per_block, False)
                    except FloatingPointError as error:
                        errors.append(error)
                        failed[number, chunk] = True
                        continue
                    resume.write_chunk(store, number, chunk, values)
                bar.update()
            done = resume.finished(store)
            bar.update(int(done.sum()) - bar.n)
            if not (done | failed).all():
                time.sleep(0.5)  # the rest is being trained by other processes; one that dies gives its chunk back
    if errors:
        stored = f"the other {done.sum()} of {done.size} chunks are stored in {store.path}"
        raise FloatingPointError(f"{errors[0]}; {stored}") from errors[0]


def _pad(values: np.ndarray | None, shape: tuple[int, ...], dtype, replicas: int) -> np.ndarray:
    """Filled up to a shape per replica, with NaN (−1 for whole numbers); None, of a group that has no such result, is
    nothing but these."""
    if values is not None and values.shape[1:] == shape:
        return values
    full = np.full((replicas, *shape), np.nan if np.dtype(dtype).kind == "f" else -1, dtype)
    if values is not None:
        full[(slice(None), *(slice(0, n) for n in values.shape[1:]))] = values
    return full


def _label(arrays, attributes, config):
    """xarray.Dataset from arrays [group, replica, ...]."""
    import xarray as xr

    over, order, seeds = config["over"], config["order"], config["seeds"]
    shape = (*(len(over[p]) for p in order), seeds)
    inner = dict(gap=("step", "embed"), x=("pair", "embed"), y=("pair", "embed"), labels=("pair",))
    # A swept field may be called like a result (`loss`), which xarray would take for the result's own coordinate.
    taken = {*arrays, "seed", "step", "pair", "embed"}
    dimension = {path: f"experiment.{path}" if path in taken else path for path in over}
    variables = {}
    for name, value in arrays.items():
        dims = inner.get(name, ("step",))
        value = value.reshape(*shape, *value.shape[2:])
        whole = xr.DataArray(value, dims=(*(dimension[p] for p in order), "seed", *dims))
        variables[name] = whole.transpose(*dimension.values(), "seed", *dims)
    coords = {dimension[p]: [label(v) for v in values] for p, values in over.items()}
    steps = evaluation_steps(config["experiment"]["steps"], config["experiment"]["eval_points"])
    return xr.Dataset(variables, coords=coords | dict(seed=np.arange(seeds), step=steps), attrs=attributes)
