"""The trained towers of one replica of a sweep, made again from the parameters that it kept."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from simulator.data import MODALITIES
from simulator.settings import replace_field
from simulator.storage.identity import describe_config, label
from simulator.storage.results import differences
from simulator.training import replica
from simulator.training.experiment import Experiment
from simulator.training.runs import named_params, require_precision

FIELDS = (
    "data",
    "encoder_x",
    "encoder_y",
    "encoder_others",
    "dtype",
)  # what towers are made of, but for their parameters


def towers(experiment: Experiment, data: Any) -> tuple[Any, ...]:
    """The trained towers of one replica of a sweep, from the parameters that `sweep(..., keep_params=True)` kept.

    Args:
      experiment: the one that `sweep` was called with. Swept numbers and words are set as they were for this replica; a swept object,
        such as a tower, must be in its place.
      data: the replica: what `sweep` or `load_sweep` returned, after `sel` or `isel` of every swept field and of the seed.

    Returns:
      (encoder_x, encoder_y, *encoder_others), as in `Run`: nnx modules that map new observations [n, dim] (a Table: row numbers [n]) to rows [n, embed_dim],
      which are not scaled to unit length.

    Raises:
      ValueError: data of several replicas, without parameters, of another experiment, with parameters of other names (as another
        version of Flax may give) or shapes, or of a replica that diverged or is not trained yet.

    Example:
      >>> experiment = sim.Experiment(steps=20, batch_size=16, eval_pairs=32, eval_points=3)
      >>> over = {"encoder_x.width": [8, 16]}
      >>> data = sim.sweep(experiment, over=over, seeds=1, key=jax.random.key(0), keep_params=True)
      >>> encoder_x, encoder_y = sim.towers(experiment, data.sel({"encoder_x.width": 8, "seed": 0}))
      >>> encoder_x(jnp.ones((5, experiment.data.dim_x))).shape
      (5, 32)
    """
    config = json.loads(getattr(data, "attrs", {}).get("config", "{}"))
    if not {"experiment", "over"} <= config.keys() or not hasattr(data, "data_vars"):
        raise ValueError(
            "these data do not say which sweep made them; give what `sweep` returned, after sel or isel alone"
        )
    prefixes = tuple(f"params.{name}." for name in MODALITIES)
    kept = [name for name in data.data_vars if str(name).startswith(prefixes)]
    if not kept:
        raise ValueError("these data hold no parameters of towers; call sweep(..., keep_params=True)")
    axes = {path: path if path in data.coords else f"experiment.{path}" for path in config["over"]}
    if lost := [path for path, name in axes.items() if name not in data.coords]:
        raise ValueError(
            f"these data have lost the coordinate {lost[0]}; choose the replica by sel or isel without drop=True"
        )
    if several := [name for name in (*axes.values(), "seed") if name in data.coords and data[name].ndim]:
        raise ValueError(
            f"these data hold several replicas; choose one of {', '.join(several)}: data.isel({{{several[0]!r}: 0, ...}})"
        )
    experiment = _of_replica(experiment, config, {path: data[name].item() for path, name in axes.items()})
    require_precision(experiment)
    if "bad_step" in data and data.bad_step.item() >= 0:
        raise ValueError(f"this replica diverged at step {data.bad_step.item()}; choose another one")
    build = lambda key: replica.build_towers(experiment, key)
    trained = jax.eval_shape(lambda key: replica.trained_params(experiment, build(key)), jax.random.key(0))
    like = {name: trained[name] for name in experiment.encoders}
    wanted = named_params(like)
    others = [name for name in kept if name not in wanted and np.isfinite(data[name].values).any()]
    if missing := sorted(wanted.keys() - set(kept)) or others:
        raise ValueError(
            f"the kept parameters are {', '.join(map(str, kept))} and these towers have {', '.join(wanted)}; they differ in {missing[0]}. "
            f"Flax may have changed its names: use the versions that trained them ({data.attrs.get('versions')})"
        )
    leaves = [jnp.asarray(_cut(name, data[name].values, leaf.shape)) for name, leaf in wanted.items()]
    return tuple(replica.towers_of(experiment, jax.tree.unflatten(jax.tree.structure(like), leaves)))


def _of_replica(experiment: Experiment, config: dict[str, Any], point: dict[str, Any]) -> Experiment:
    """The experiment of one replica, or ValueError where it is not the one whose towers were trained."""
    made = copy.deepcopy(config["experiment"])
    for path, at in point.items():
        if path.partition(".")[0] not in FIELDS:
            continue
        value = next(v for v in config["over"][path] if label(v) == at or str(label(v)) == str(at))
        *outer, last = path.split(".")
        inner, current = made, cast(Any, experiment)
        for name in outer:
            place = int(name) if isinstance(inner, list) else name  # of encoder_others
            inner, current = inner[place], current[place] if isinstance(current, tuple) else getattr(current, name)
        inner[int(last) if isinstance(inner, list) else last] = value
        if isinstance(value, (int, float)) or (isinstance(value, str) and isinstance(getattr(current, last), str)):
            experiment = replace_field(experiment, path, value)
    here = describe_config(experiment)
    if found := sorted(differences({f: made[f] for f in FIELDS}, {f: here[f] for f in FIELDS})):
        raise ValueError(
            f"this experiment is not that of the replica; it differs in {', '.join(found)}. Give the one that `sweep` was called with, and "
            "in place of a swept object the one of this replica"
        )
    return experiment


def _cut(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Parameters without the NaN that fill them up to the largest shape of the sweep."""
    inner = values[tuple(slice(0, n) for n in shape)] if values.ndim == len(shape) else values
    if inner.shape != shape or np.isfinite(values).sum() > np.isfinite(inner).sum():
        raise ValueError(
            f"{name} has shape {list(values.shape)} and these towers need {list(shape)}; give their experiment"
        )
    if not np.isfinite(inner).all():
        raise ValueError(f"{name} is not finite; the replica is not trained yet: call `sweep` again on its store")
    return inner
