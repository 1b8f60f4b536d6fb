"""Many trained points in one compiled program, as a labelled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from simulator.training import engine, replica
from simulator.training.runs import lay_out, train_replicas

# What the published claims look at; the rest of a history would only make the stored files large.
KEPT = ("gap_norm", "alignment", "recall_at_1_xy", "recall_at_1_yx", "rmg", "separability", "loss")


def train_points(
    experiment: sim.Experiment,
    points: Mapping[str, Sequence[float]],
    *,
    seeds: int,
    seed: int,
    params=None,
    keep: tuple[str, ...] = KEPT,
    progress: bool = False,
):
    """Train the listed points with every seed: unlike `sim.sweep` no grid but P points, which may start from `params`.

    points: traced field -> P values. params: parameters with a leading axis of P · seeds, seeds inner, or None.
    Returns (Dataset over point, seed, step with the kept histories and `pair`, the held-out pairs; trained parameters,
    ordered as `params`). Seed s has the same key at every point and in every call with the same `seed`.
    """
    import xarray as xr

    count = len(next(iter(points.values())))
    varied, keys = _replicas(points, seeds, seed)
    history, state, rows, steps = train_replicas(experiment, varied, keys, params=params, progress=progress)
    arrays = {name: history[name].reshape(count, seeds, *history[name].shape[1:]) for name in keep}
    dims = ("point", "seed", "step", "embed")
    data = xr.Dataset(
        {name: (dims[: value.ndim], value) for name, value in arrays.items()},
        coords=dict(seed=np.arange(seeds), step=steps, pair=np.arange(rows["x"].shape[1])),
    )
    return data, state["params"]


def start_params(experiment: sim.Experiment, points: Mapping[str, Sequence[float]], *, seeds: int, seed: int):
    """The parameters with which `train_points` starts by itself, ordered as there: for a start changed by hand."""
    varied, keys = _replicas(points, seeds, seed)
    template, values, padded, layout = lay_out(experiment, varied, keys, None)
    params = engine.fetch(replica.initialise(template, values, padded, layout=layout)["params"])
    return jax.tree.map(lambda leaf: leaf[: len(keys)], params)


def _replicas(points, seeds: int, seed: int):
    count = len(next(iter(points.values())))
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(seed), s))(np.tile(np.arange(seeds), count))
    return {path: np.repeat(np.asarray(values, float), seeds) for path, values in points.items()}, keys


def at_point(params, point: int, seeds: int, copies: int = 1):
    """The parameters of one point, repeated for `copies` points: where fine-tuning starts."""
    rows = slice(point * seeds, (point + 1) * seeds)
    return jax.tree.map(lambda leaf: jnp.concatenate([jnp.asarray(leaf[rows])] * copies), params)


def retrieval(data):
    """Recall at 1, mean of both directions."""
    return 0.5 * (data.recall_at_1_xy + data.recall_at_1_yx)
