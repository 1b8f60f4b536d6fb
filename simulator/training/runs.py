"""Train two small encoders with a contrastive loss: one experiment, or many replicas of it at once.

All replicas of one shape run in one compiled program (`simulator.training.replica`, through `simulator.training.engine`). The
numbers of an experiment, the leaves of its pytree, are arguments of that program rather than constants in it, so changing them
compiles nothing again, and `train` is the engine with one replica.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from simulator.data import MODALITIES
from simulator.geometry import GapMeasures
from simulator.settings import Template, numbers, replaced, split
from simulator.storage.checkpoints import Checkpoint
from simulator.storage.identity import describe_config, describe_run, require_identified
from simulator.training import engine, replica
from simulator.training.checks import Metrics, as_metrics, require_usable, traced_values
from simulator.training.experiment import Experiment, require_schedules
from simulator.training.optimizer import make_optimizer


@dataclasses.dataclass(frozen=True)
class Run:
    """What `train` returns.

    Attributes:
      history: xarray.Dataset over `step` with every field of GapMeasures, `loss`, `temperature`, and the
        vector `gap` [step, embed], all measured on the held-out pairs. With more than two modalities what lies between two of
        them has one axis more, `between`, of all their pairs: "xy", "xz", "yz".
      params: trained parameters, dict(x=..., y=...) of nnx states (and log_scale for a learned temperature).
      x, y: final embeddings of the held-out pairs [eval_pairs, embed_dim].
      labels: cluster or class of each held-out pair [eval_pairs], −1 where there is none.
      encoder_x, encoder_y: the trained towers, nnx modules that map new observations [n, dim] (a Table: row numbers [n]) to
        rows [n, embed_dim], which are not scaled to unit length.
      others, encoder_others: final embeddings by a third and further towers, and these towers.
    """

    history: Any
    params: Any
    x: jax.Array
    y: jax.Array
    labels: jax.Array
    encoder_x: Any
    encoder_y: Any
    others: tuple[jax.Array, ...] = ()
    encoder_others: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        last = self.history.isel(step=-1)
        names = ", ".join(MODALITIES[: 2 + len(self.others)])
        gaps = ", ".join(f"{gap:.3g}" for gap in np.atleast_1d(last.gap_norm.values))
        return (
            f"Run({int(last.step):,} steps; {names} {list(self.x.shape)}; at the end gap norm {gaps}, loss "
            f"{float(last.loss):.3g}; {len(self.history.data_vars)} measures at {self.history.sizes['step']} steps in history)"
        )


def train(
    experiment: Experiment,
    *,
    key: jax.Array,
    params: Any = None,
    metrics: Mapping[str, Callable] | None = None,
    progress: bool = False,
    checkpoint: Path | str | None = None,
) -> Run:
    """Train one experiment.

    Args:
      experiment: what to train.
      key: JAX random key; data, towers and batches all derive from it.
      params: parameters to start from (`Run.params`), for fine-tuning; the same key gives the same data. None
        starts as the experiment says.
      metrics: name -> function of a `Snapshot`, of any shape, measured whenever the others are; under its name in
        `Run.history`, over `step` and axes NAME_0, NAME_1, ...
      progress: show a progress bar.
      checkpoint: folder in which a long run leaves its state about twice a minute; the same call continues from there,
        to the bit. Not with several processes (`jax.distributed`).

    Returns:
      Run.

    Raises:
      FloatingPointError: the loss became NaN or infinite; names the step.
      ValueError: towers of different embedding dimensions, a start that they cannot have, a schedule that leaves its range,
        params of another shape, a checkpoint of another run, or a data source, loss or metric of one's own that cannot be used.

    Example:
      >>> experiment = sim.Experiment(steps=20, batch_size=16, eval_pairs=32, eval_points=3)
      >>> run = sim.train(experiment, key=jax.random.key(0))
      >>> run.history.step.values.tolist(), run.x.shape == run.y.shape
      ([0, 1, 20], True)
    """
    if params is not None:
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    saved = None
    if checkpoint is not None:
        engine.require_one_process("train(checkpoint=)", "leave it out, or run on the devices of one process")
        config = describe_run(experiment, key, params) | dict(parameters=shapes_of(experiment)[1])
        config |= dict(metrics=describe_config(dict(metrics))) if metrics else {}
        require_identified(config)
        saved = Checkpoint(Path(checkpoint), config)
        saved.check()  # a folder that cannot be used is refused before anything is computed
    found = train_replicas(
        experiment, {}, key[None], params=params, metrics=metrics, progress=progress, checkpoint=saved
    )
    import xarray as xr

    history = {name: (axes_of(name, value.ndim - 1), value[0]) for name, value in found.history.items()}
    coordinates = dict(step=found.steps) | between(len(experiment.encoders))
    params, rows = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), (found.state["params"], found.rows))
    x, y, *others = (rows[name] for name in experiment.encoders)
    towers = replica.towers_of(experiment, params)
    dataset = xr.Dataset(history, coords=coordinates)
    return Run(dataset, params, x, y, rows["labels"], *towers[:2], tuple(others), tuple(towers[2:]))


def axes_of(name: str, ndim: int) -> tuple[str, ...]:
    """Names of the axes of a result of one replica; those of parameters, and of a metric after `step`, are called by its name."""
    if name in MODALITIES:
        return ("pair", "embed")
    if name.startswith("params."):
        return tuple(f"{name}_{axis}" for axis in range(ndim))
    known = dict(labels=("pair",), bad_step=())
    if name in known:
        return known[name]
    inner = ("embed",) if name == "gap" else ()
    if name == "gap" or name in GapMeasures.__dataclass_fields__:
        return ("step", "between", *inner) if ndim == 2 + len(inner) else ("step", *inner)
    return ("step", *(f"{name}_{axis}" for axis in range(ndim - 1)))


def named_params(params: Any) -> dict[str, Any]:
    """Parameters as in `Run.params` by name, in the order of their leaves: `params.x.hidden.0.kernel`, `params.log_scale`."""
    return {f"params.{path.removesuffix('.value')}": leaf for path, leaf in numbers(params).items()}


def between(modalities: int) -> dict[str, list[str]]:
    """Coordinates of the axis of pairs of modalities; none for two, whose results have no such axis."""
    pairs = ["".join(pair) for pair in itertools.combinations(MODALITIES[:modalities], 2)]
    return dict(between=pairs) if modalities > 2 else {}


class Replicas(NamedTuple):
    """What training R replicas leaves: `history` by name [R, step, ...], the final `state`, `rows`: the final embeddings of each
    modality by its name [R, eval_pairs, d] and `labels` [R, eval_pairs], and the `steps` [step]."""

    history: dict[str, np.ndarray]
    state: Any
    rows: dict[str, np.ndarray]
    steps: np.ndarray


def train_replicas(
    experiment: Experiment,
    varied: Mapping[str, Sequence[float] | np.ndarray],
    keys: jax.Array,
    *,
    params: Any = None,
    metrics: Mapping[str, Callable] | None = None,
    progress: bool = False,
    describe: Callable[[int], str] = lambda replica: f"replica {replica}",
    replicas_per_block: int | None = None,
    checkpoint: Checkpoint | None = None,
    keep_diverged: bool = False,
) -> Replicas:
    """Train R replicas that differ in their keys and in the traced fields that `varied` names.

    Args:
      experiment: the common part.
      varied: traced field -> R numbers.
      keys: R random keys.
      params: parameters to start from, each with a leading axis of R, as in the final state; None for none.
      metrics: as in `train`.
      progress: show a progress bar.
      describe: replica -> words for an error message.
      replicas_per_block: replicas that advance together (a last block is filled up); None takes what was calibrated,
        or what fits the cache.
      checkpoint: where the state is kept and continued from.
      keep_diverged: go on where a loss becomes NaN or infinite (`first_bad_step` says at which step), instead of raising.

    Returns:
      Replicas.
    """
    require_precision(experiment)
    require_schedules(experiment)
    require_usable(experiment, varied)
    replica.require_metrics(experiment, as_metrics(metrics))
    evaluate = replica.evaluator(as_metrics(metrics))
    engine.release_programs()
    count = len(keys)
    template, values, keys, layout = lay_out(experiment, varied, keys, replicas_per_block)
    steps = evaluation_steps(experiment.steps, experiment.eval_points)
    measure = lambda state: engine.fetch(evaluate(template, values, state, layout=layout)[0])
    state = replica.initialise(template, values, keys, layout=layout)
    if params is not None:
        state = _start_from(params, state, experiment)
    rows = [measure(state)]
    at, saved_at = 0, time.monotonic()
    if checkpoint is not None and (saved := checkpoint.restore(_plain(state))) is not None:
        at, leaves, columns = saved
        state = _typed(state, leaves)
        rows = [dict(zip(sorted(rows[0]), values, strict=True)) for values in zip(*columns, strict=True)]
    from simulator.progress import tqdm

    bar = tqdm(total=experiment.steps, initial=at, disable=not progress, unit="step", desc=f"training {count} replicas")
    with bar:
        for stop in steps[len(rows) :]:
            for first, last in _slices(at, int(stop), bar):
                state = jax.block_until_ready(replica.advance(template, values, state, first, last, layout=layout))
                if checkpoint is not None and time.monotonic() - saved_at > checkpoint.seconds:
                    columns = [np.stack([row[name] for row in rows]) for name in sorted(rows[0])]
                    checkpoint.save(int(last), _plain(state), columns)
                    saved_at = time.monotonic()
            at = int(stop)
            rows.append(measure(state))
            bad_step = engine.fetch(state["bad_step"])[:count]
            if not keep_diverged:
                _stop_on_nan(bad_step, rows[-1]["loss"][:count], stop, describe)
            elif (bad_step >= 0).all():  # nothing of what follows is a number
                rows += [rows[-1]] * (len(steps) - len(rows))
                break
    final = evaluate(template, values, state, layout=layout)[1]
    history = {name: np.stack([row[name] for row in rows], axis=1)[:count] for name in rows[0]}
    # On the host first: slicing an array that lies on several devices would start a collective, and two such
    # programs can deadlock on one machine's devices.
    state, final = jax.tree.map(lambda leaf: leaf[:count], engine.fetch((state, final)))
    return Replicas(history, state, final, steps)


def require_precision(experiment: Experiment) -> None:
    """Raise ValueError for float64 where JAX would round it to float32."""
    if experiment.dtype == "float64" and not jax.config.jax_enable_x64:  # ty: ignore[missing-attribute]
        raise ValueError("dtype is 'float64' and JAX runs in 32-bit mode; use `with jax.enable_x64(True):` around it")


def _plain(state) -> list[np.ndarray]:
    """The leaves of a state on the host, random keys as their words."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return engine.fetch([jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(state)])


def _typed(state, leaves):
    """The inverse of `_plain`, in the structure of `state`."""
    old, structure = jax.tree.flatten(state)
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    wrap = lambda words, leaf: jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return structure.unflatten([wrap(n, o) if is_key(o) else jnp.asarray(n) for n, o in zip(leaves, old, strict=True)])


def _slices(start: int, stop: int, bar):
    """(first, last) of calls that take about a second each, so that progress shows and Ctrl-C is heard; where the steps
    are cut changes no bit."""
    length = max(1, min(16, (stop - start) // 16))  # how long a step takes is not known yet
    while start < stop:
        last = min(start + length, stop)
        started = time.monotonic()
        yield np.int32(start), np.int32(last)  # one type, one compilation
        seconds = time.monotonic() - started
        bar.update(int(last - start))
        length = engine.agreed(max(1, int(length * min(4.0, 1.0 / max(seconds, 1e-3)))))
        start = last


def lay_out(
    experiment: Experiment, varied, keys: jax.Array, replicas_per_block: int | None
) -> tuple[Template, engine.Values, jax.Array, engine.Layout]:
    """Template, values [R'], keys [R'] and Layout for the compiled functions below; R' pads R to whole blocks on
    every device by repeating the last replica."""
    template, fixed, arrays = split(experiment, varied)
    count = len(keys)
    if replicas_per_block is None:
        known = engine.calibrated_block_size(_shape_of_work(experiment), None)
        fitting = known or engine.block_size_from_memory(_bytes_per_replica(experiment), count)
        # Machines that work together may have measured different sizes, and must cut alike.
        replicas_per_block = engine.agreed(min(fitting, -(-count // jax.device_count())))
    layout, padded = engine.plan(count, replicas_per_block, experiment.batch_shards)
    given = {path: np.full(count, value) for path, value in fixed.items()} | dict(varied)
    given = {path: np.asarray(value, experiment.dtype) for path, value in given.items()}
    given = {path: np.pad(value, (0, padded - count), mode="edge") for path, value in given.items()}
    values = engine.Values(given, engine.on_all_devices(arrays, layout))
    keys = jnp.concatenate([keys, jnp.repeat(keys[-1:], padded - count, axis=0)])
    return template, values, engine.spread(keys, layout), layout


def shapes_of(
    experiment: Experiment, metrics: Metrics = (), *, keep_params: bool = False
) -> tuple[dict[str, tuple[tuple[int, ...], Any]], str]:
    """What a replica leaves (its history over steps, final embeddings and labels, perhaps its parameters), as name -> (shape, dtype); and
    the shapes of its parameters."""
    steps = len(evaluation_steps(experiment.steps, experiment.eval_points))

    def one(key):
        state = replica.start(experiment, key)
        return state["params"], replica.measure(experiment, state, metrics)

    params, measured = jax.eval_shape(one, jax.random.key(0))
    results: dict[str, Any] = {name: ((steps, *leaf.shape), leaf.dtype) for name, leaf in measured[0].items()}
    results |= {name: (leaf.shape, leaf.dtype) for name, leaf in measured[1].items()}
    if keep_params:
        results |= {name: (leaf.shape, leaf.dtype) for name, leaf in named_params(params).items()}
    # In order of size: how Flax names and sorts parameters changes with its version.
    return results, ", ".join(sorted(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(params)))


def calibrate(experiment: Experiment) -> int:
    """Replicas per block that train this experiment fastest on this machine: measured once (some seconds, most of them
    compiling; longer where a single step is long), then looked up."""

    def seconds_per_replica(replicas_per_block):
        count = replicas_per_block * jax.device_count()
        keys = jax.random.split(jax.random.key(0), count)
        template, values, keys, layout = lay_out(experiment, {}, keys, replicas_per_block)
        state = replica.initialise(template, values, keys, layout=layout)

        def seconds(steps, least):
            run = lambda: replica.advance(template, values, state, np.int32(0), np.int32(steps), layout=layout)
            return engine.median_seconds(run, least=least) / (steps * count)

        steps = min(20, max(1, int(0.05 / (count * seconds(1, 0.0)))))  # a call of 50 ms hides what a call itself costs
        return seconds(steps, 0.3)

    return cast(int, engine.calibrated_block_size(_shape_of_work(experiment), seconds_per_replica))


def _shape_of_work(experiment: Experiment) -> str:
    """What the speed depends on: everything but the numbers, the steps and the measures; and the machine."""
    template, values = traced_values(experiment)
    known = {path: str(value) if value.shape else 1.0 for path, value in values.items()}
    experiment = replaced(template.join(known), steps=1, eval_points=2, eval_pairs=2)
    machine = (platform.processor() or platform.machine(), jax.devices()[0].device_kind, jax.device_count())
    return json.dumps([describe_config(experiment), machine, jax.__version__])


def _bytes_per_replica(experiment: Experiment) -> int:
    """What one replica touches in a step: its parameters and optimiser state, its batch, and two matrices of logits."""
    template, values = traced_values(experiment)
    one = lambda values, key: replica.start(template.join(values), key)
    state = jax.eval_shape(one, values, jax.random.key(0))
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    logits = 2 * experiment.batch_size**2 * jnp.dtype(experiment.dtype).itemsize
    return size((state["params"], state["optimizer"])) + logits


def _start_from(params, state, experiment: Experiment):
    """The initial state with the given parameters [R, ...]; it may hold more replicas, which repeat the last one."""
    shapes = lambda tree: [np.shape(leaf)[1:] for leaf in jax.tree.leaves(tree)]
    same = jax.tree.structure(params) == jax.tree.structure(state["params"])
    if not same or shapes(params) != shapes(state["params"]):
        raise ValueError(
            f"params have shapes {shapes(params)} and this experiment trains {shapes(state['params'])}; pass the params of "
            "a run with the same towers, learned temperature and trained bias"
        )
    total = len(state["step"])
    pad = lambda leaf, dtype: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], total - len(leaf), axis=0)]).astype(dtype)
    params = jax.tree.map(lambda leaf, old: pad(jnp.asarray(leaf), old.dtype), params, state["params"])
    given = dict(params=params, optimizer=jax.vmap(make_optimizer(experiment).init)(params))
    # Laid out as the initial state is, so that the programs compiled for the one serve the other.
    return state | jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), given, {k: state[k] for k in given})


def evaluation_steps(steps: int, points: int) -> np.ndarray:
    """0, `steps`, and log-spaced whole numbers between them: at most `points` in all."""
    between = np.round(np.geomspace(1, steps, max(points - 1, 2))[:-1]).astype(int)
    return np.unique(np.concatenate([[0], between[: points - 2], [steps]]))


def initial_params(experiment: Experiment, keys: jax.Array) -> Any:
    """Parameters of the random towers before a start is imposed, each with a leading axis of R: what start=None gives
    for these keys [R]. For a start made by hand (`params` of `train_replicas` and `sweep`)."""

    def one(key):
        towers = replica.build_towers(experiment, replica.keys_of(key).towers)
        return replica.trained_params(experiment, towers)

    return jax.jit(jax.vmap(one))(keys)


def first_bad_step(bad_step: np.ndarray, loss: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The step at which a replica's loss was first NaN or infinite, in training (bad_step [R], −1 for never) or on the held-out
    pairs (loss [R, step], after the start); −1 for never, [R]."""
    never = np.iinfo(np.int32).max
    measured = np.where(np.isfinite(loss[:, 1:]), never, steps[1:]).min(axis=1, initial=never)
    first = np.minimum(np.where(bad_step < 0, never, bad_step), measured)
    return np.where(first == never, -1, first).astype(np.int32)


def _stop_on_nan(bad_step, loss, step, describe):
    bad = np.flatnonzero((bad_step >= 0) | ~np.isfinite(loss))
    if bad.size:
        number = int(bad[0])
        when = int(bad_step[number]) if bad_step[number] >= 0 else int(step)
        raise FloatingPointError(
            f"the loss became NaN or infinite at step {when} in {describe(number)} ({bad.size} of {len(loss)} replicas "
            "so far); lower the learning rate, raise the temperature, or use dtype='float64'"
        )
