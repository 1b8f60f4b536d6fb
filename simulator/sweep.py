"""A grid of experiments times seeds, trained together and labelled."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from simulator.experiment import TRACED_FIELDS, Experiment, replace_field
from simulator.store import describe_config, provenance
from simulator.training import train_replicas
from simulator.validation import require_integer


def sweep(
    experiment: Experiment,
    *,
    over: Mapping[str, Sequence[Any]],
    seeds: int = 16,
    key: jax.Array,
    progress: bool = False,
):
    """Train every combination of the swept fields with every seed.

    Seed s uses fold_in(key, s) at every point of the grid, so that points differ in the swept fields alone.
    Traced fields (temperature, angle, tightness, noise, learning rate) share one compiled program; any other
    field is looped over.

    Args:
      experiment: the common part.
      over: dotted field -> values, for instance {"loss.temperature": [0.01, 0.1], "start.angle": [0.5, 1.5]}.
      seeds: number of seeds, >= 1.
      key: JAX random key.
      progress: show a progress bar for each group of one shape.

    Returns:
      xarray.Dataset with one dimension per swept field (named by its dotted path), `seed`, and `step`: the history
      as in `Run.history`, the final embeddings `x`, `y` [..., seed, pair, embed] and `labels`; its attributes
      hold config, versions, commit and precision.

    Raises:
      ValueError: an unknown field, an empty list of values, or a value the field does not allow.
      FloatingPointError: a loss became NaN; names the step, the point and the seed.
    """
    import xarray as xr

    require_integer("seeds", seeds)
    over = {path: list(values) for path, values in over.items()}
    for path, values in over.items():
        if not values:
            raise ValueError(f"the swept field {path!r} has no values; give at least one")
        for value in values:
            replace_field(experiment, path, value)  # validates path and value before anything is trained
    traced = [p for p in over if p in TRACED_FIELDS and not any(callable(v) or not np.isscalar(v) for v in over[p])]
    static = [p for p in over if p not in traced]

    def keys_for(points):
        return jax.vmap(lambda s: jax.random.fold_in(key, s))(np.tile(np.arange(seeds), points))

    static_points = list(itertools.product(*(range(len(over[p])) for p in static)))
    traced_points = list(itertools.product(*(over[p] for p in traced)))
    groups = []
    for point in static_points:
        config = experiment
        for path, i in zip(static, point, strict=True):
            config = replace_field(config, path, over[path][i])
        varied = {p: np.repeat([v[i] for v in traced_points], seeds) for i, p in enumerate(traced)}

        def describe(replica, point=point):
            where = {p: over[p][i] for p, i in zip(static, point, strict=True)}
            where |= dict(zip(traced, traced_points[replica // seeds], strict=True))
            return f"replica {replica} ({', '.join(f'{k} = {v}' for k, v in where.items())}, seed {replica % seeds})"

        groups.append(
            train_replicas(config, varied, keys_for(len(traced_points)), progress=progress, describe=describe)
        )

    steps = groups[0][5]
    shape = (*(len(over[p]) for p in static), *(len(over[p]) for p in traced), seeds)

    def assemble(arrays, dims):
        value = np.stack([np.asarray(a) for a in arrays])
        value = value.reshape(*shape, *value.shape[2:])
        return xr.DataArray(value, dims=(*static, *traced, "seed", *dims)).transpose(*over, "seed", *dims)

    variables = {}
    for name in groups[0][0]:
        dims = ("step", "embed") if name == "gap" else ("step",)
        variables[name] = assemble([group[0][name] for group in groups], dims)
    for position, name, dims in ((2, "x", ("pair", "embed")), (3, "y", ("pair", "embed")), (4, "labels", ("pair",))):
        variables[name] = assemble([group[position] for group in groups], dims)
    coords = {p: [v if np.isscalar(v) else str(v) for v in values] for p, values in over.items()}
    config = dict(experiment=describe_config(experiment), over={k: [str(v) for v in vs] for k, vs in over.items()})
    config |= dict(seeds=seeds, key=np.asarray(jax.random.key_data(key)).tolist())
    return xr.Dataset(
        variables,
        coords=coords | dict(seed=np.arange(seeds), step=steps),
        attrs=provenance() | dict(config=json.dumps(config), precision=experiment.dtype),
    )
