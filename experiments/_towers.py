"""Towers whose start is set by hand, and their training on full batches: what the experiments on tight clusters share."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import simulator as sim
from simulator.losses import info_nce
from simulator.theory import towers as theory


def random_tower(encoder, size: int, rng):
    """Graph and parameters in float64 with the towers' own variance, 1/fan-in, and no bias; drawn in NumPy, since
    compiling the towers' own draw for every shape takes longer than all the training."""
    draw = lambda leaf: rng.normal(size=leaf.shape) * (leaf.ndim > 1) / leaf.shape[0] ** 0.5  # noqa: E731
    graph, shapes = _shapes(encoder, size)
    return graph, jax.tree.map(lambda leaf: jnp.asarray(draw(leaf)), shapes)


@functools.lru_cache(maxsize=64)
def _shapes(encoder, size: int):
    """Graph of a tower, and its parameters without values."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: encoder(size, rngs=nnx.Rngs(params=0), dtype=jnp.float64)))
    return graph, nnx.to_pure_dict(shapes)


def random_pair(encoder, data: sim.LatentPairs, pairs: int, rng):
    """(graphs, parameters, inputs, what the output layers see) of two random towers on one random world of Gaussian
    latents, or clusters of them that take turns, and linear mixing; each is a pair (x, y)."""
    latent, dims = rng.normal(size=(pairs, data.latent_dim)), (data.dim_x, data.dim_y)
    if data.latent == "clusters":
        centres = rng.normal(size=(data.num_clusters, data.latent_dim))
        latent = centres[np.arange(pairs) % data.num_clusters] + data.cluster_spread * latent
    mixed = [latent @ rng.normal(size=(data.latent_dim, dim)) / data.latent_dim**0.5 for dim in dims]
    inputs = tuple(jnp.asarray(rows + data.noise * rng.normal(size=rows.shape)) for rows in mixed)
    graphs, params = zip(*(random_tower(encoder, dim, rng) for dim in dims), strict=True)
    return graphs, params, inputs, tuple(map(features, graphs, params, inputs))


def features(graph, params, inputs) -> np.ndarray:
    """What the output layer of a tower sees, [n, fan_in]."""
    for layer in nnx.merge(graph, params).hidden:
        inputs = nnx.relu(layer(inputs))
    return np.asarray(inputs)


def with_output(params, seen: np.ndarray, kernel: np.ndarray, mean: np.ndarray):
    """The parameters with another output layer: its kernel, and the bias that puts the mean output at `mean`; `seen` is
    what the layer sees."""
    out = dict(kernel=kernel, bias=mean - seen.mean(axis=0) @ kernel)
    return params | dict(out=out)


def outputs(graphs, params, inputs):
    """Raw outputs of both towers, [n, d] each."""
    return tuple(nnx.merge(g, p)(u) for g, p, u in zip(graphs, params, inputs, strict=True))


def stack(trees):
    """Trees of one structure as one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)  # JAX's stack compiles for every length


@functools.partial(jax.jit, static_argnames=("graphs", "optimizer", "similarity"))
def descend(graphs, params, inputs, temperature, learning_rate, steps, *, optimizer=optax.sgd, similarity="cosine"):
    """Raw outputs (x, y) at the given steps, [replica, step, n, d] each: full batches, replicas vmapped."""

    def one(params, inputs, temperature, learning_rate):
        transform = optimizer(learning_rate)
        loss = lambda p: info_nce(  # noqa: E731
            *outputs(graphs, p, inputs), temperature=temperature, similarity=similarity
        )

        def step(_, state):
            updates, memory = transform.update(jax.grad(loss)(state[0]), state[1], state[0])
            return optax.apply_updates(state[0], updates), memory

        def record(state, interval):
            state = jax.lax.fori_loop(*interval, step, state)
            return state, outputs(graphs, state[0], inputs)

        later = jax.lax.scan(record, (params, transform.init(params)), (steps[:-1], steps[1:]))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), outputs(graphs, params, inputs), later)

    return jax.vmap(one)(params, inputs, temperature, learning_rate)


@functools.partial(jax.jit, static_argnames="graph")
def jacobian(graph, params, inputs):
    """Derivatives of the raw outputs by all parameters, [n, d, parameters]."""
    leaves = jax.tree.leaves(jax.jacrev(lambda p: nnx.merge(graph, p)(inputs))(params))
    return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """Two random towers in tight cones: graphs, parameters, inputs, what the output layers see (each x then y), lengths of
    the mean outputs, frames at the means, the angle between these, and the deviations of the unit rows in the frames."""

    graphs: tuple
    params: tuple
    inputs: tuple
    seen: tuple
    norms: list
    frames: tuple
    angle: float
    deviations: np.ndarray | None = None

    def in_frames(self, raw) -> np.ndarray:
        """Unit rows minus their mean, in the frames: [modality, n, direction]."""
        rows = [np.asarray(o) / np.linalg.norm(o, axis=1, keepdims=True) for o in raw]
        return np.stack([(r - r.mean(axis=0)[None, :]) @ f for r, f in zip(rows, self.frames, strict=True)])

    def jacobians(self) -> list[np.ndarray]:
        """Derivatives of the raw outputs by the parameters, [n, d, parameters] each."""
        return [np.asarray(jacobian(*tower)) for tower in zip(self.graphs, self.params, self.inputs, strict=True)]

    def predict(self, jacobians, temperature: float, rate: float, steps: int, adam: bool = False) -> np.ndarray:
        """Deviations after training, by `linearized_training`."""
        return theory.linearized_training(
            jacobians, self.deviations, norms=self.norms, frames=self.frames, angle=self.angle, temperature=temperature,
            learning_rate=rate, steps=steps, adam=adam,
        )  # fmt: skip

    def fast_rate(self, temperature: float) -> float:
        """Learning rate at which one step of plain descent changes the fastest deviation along the gap by its own size,
        as far as the output layers go."""
        steepest = max(np.linalg.norm(centred(s), 2) / r for s, r in zip(self.seen, self.norms, strict=True)) ** 2
        return len(self.seen[0]) / steepest / (1 / temperature + np.sin(self.angle) ** 2 / (2 * temperature**2))


def start(encoder, data: sim.LatentPairs | None, pairs: int, rng, *, angle: float, tightness: float) -> Start:
    """Random towers whose mean outputs are `tightness` times as long as the deviations from them (root mean square,
    expected over output layers). data=None: free embeddings, as linear towers that each see one sample per input."""
    if data is None:
        graphs, params = zip(*(random_tower(encoder, pairs, rng) for _ in "xy"), strict=True)
        inputs = jnp.eye(pairs), jnp.eye(pairs)
        seen = tuple(map(features, graphs, params, inputs))
    else:
        graphs, params, inputs, seen = random_pair(encoder, data, pairs, rng)
    kernels = [np.asarray(tower["out"]["kernel"]) for tower in params]
    axis, other = np.linalg.qr(rng.normal(size=(kernels[0].shape[1], 2)))[0].T
    means = axis, np.cos(angle) * axis + np.sin(angle) * other
    norms = [tightness * (kernels[0].shape[1] * np.sum(centred(s) ** 2) / s.size) ** 0.5 for s in seen]
    placed = zip(params, seen, kernels, (r * m for r, m in zip(norms, means, strict=True)), strict=True)
    params = tuple(with_output(*tower) for tower in placed)
    made = Start(graphs, params, inputs, seen, norms, theory.great_circle_frames(*means), angle)
    return dataclasses.replace(made, deviations=made.in_frames(outputs(graphs, params, inputs)))


def centred(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean."""
    return rows - rows.mean(axis=0)[None, :]


def train(starts: list[Start], temperatures, rates, steps, optimizer=optax.sgd) -> list[np.ndarray]:
    """Raw outputs of x and of y, [start, step, n, d], for starts of one architecture."""
    params, inputs = (stack([getattr(begin, name) for begin in starts]) for name in ("params", "inputs"))
    numbers = jnp.asarray(temperatures, float), jnp.asarray(rates, float), jnp.asarray(steps)
    return [np.asarray(raw) for raw in descend(starts[0].graphs, params, inputs, *numbers, optimizer=optimizer)]
