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
from simulator.training import compiler


def random_tower(encoder, size: int, rng):
    """Graph and parameters in float64 with the towers' own variance, 1/fan-in, and no bias; drawn in NumPy, since
    compiling the towers' own draw for every shape takes longer than all the training."""
    draw = lambda leaf: rng.normal(size=leaf.shape) * (leaf.ndim > 1) / leaf.shape[0] ** 0.5
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
    return graphs, params, inputs, tuple(features(encoder, *tower) for tower in zip(params, inputs, strict=True))


def features(encoder, params, inputs) -> np.ndarray:
    """What the output layer of a tower sees, [n, fan_in]; in NumPy, to compile nothing."""
    seen = np.asarray(inputs)
    for layer in params.get("hidden", {}).values():
        seen = seen @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])[None, :]
        seen = {"relu": lambda rows: np.maximum(rows, 0.0), "tanh": np.tanh}[encoder.activation](seen)
    return seen


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


def recorded(step, state, steps, seen):
    """What is `seen` of a state, stacked over the given numbers of steps, the first of them that of the start."""

    def record(state, interval):
        state = jax.lax.fori_loop(*interval, lambda _, state: step(state), state)
        return state, seen(state)

    later = jax.lax.scan(record, state, (steps[:-1], steps[1:]))[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), seen(state), later)


# Small programs, many shapes: optimising them takes longer than running them as they are.
_compile = functools.partial(compiler.jit, options=dict(xla_backend_optimization_level=0))


@functools.partial(_compile, static_argnames=("graphs", "optimizers", "similarity"))
def descend(
    graphs,
    params,
    inputs,
    temperature,
    learning_rate,
    steps,
    which=None,
    *,
    optimizers=(optax.sgd,),
    similarity="cosine",
):
    """Raw outputs (x, y) at the given steps, [replica, step, n, d] each: full batches, replicas vmapped, each trained by the
    optimiser of the number `which` [replica] (the first): one program for all compiles faster than one for each."""

    def one(params, inputs, temperature, learning_rate, which):
        transforms = [optimizer(learning_rate) for optimizer in optimizers]
        loss = lambda p: info_nce(*outputs(graphs, p, inputs), temperature=temperature, similarity=similarity)

        def step(state):
            gradient = jax.grad(loss)(state[0])
            moves = [t.update(gradient, memory, state[0]) for t, memory in zip(transforms, state[1], strict=True)]
            updates, memories = zip(*moves, strict=True)
            chosen = jax.tree.map(lambda *update: jax.lax.select_n(which, *update), *updates)
            return optax.apply_updates(state[0], chosen), memories

        start = params, tuple(transform.init(params) for transform in transforms)
        return recorded(step, start, steps, lambda state: outputs(graphs, state[0], inputs))

    which = jnp.zeros(len(temperature), jnp.int32) if which is None else which
    return jax.vmap(one)(params, inputs, temperature, learning_rate, which)


@functools.partial(_compile, static_argnames="graph")
def jacobian(graph, params, inputs):
    """Derivatives of the raw outputs by all parameters, [n, d, parameters]."""
    leaves = jax.tree.leaves(jax.jacrev(lambda p: nnx.merge(graph, p)(inputs))(params))
    return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


@functools.partial(_compile, static_argnames="graph")
def tangent_kernel(graph, params, inputs):
    """Inner products of the rows of the `jacobian` of an MLP, [n d, n d], without the Jacobian: a layer that sees h and
    gets back δ, the derivative of an output by its bias, adds (⟨h, h'⟩ + 1)⟨δ, δ'⟩."""

    tower, seen = nnx.merge(graph, params), [inputs]
    for layer in tower.hidden:
        seen.append(getattr(nnx, tower.activation)(layer(seen[-1])))
    layers = [*params["hidden"].values(), params["out"]]

    def outputs(biases):
        *hidden, out = (layer | dict(bias=bias) for layer, bias in zip(layers, biases, strict=True))
        return nnx.merge(graph, params | dict(hidden=dict(zip(params["hidden"], hidden, strict=True)), out=out))(inputs)

    total = 0.0
    for rows, returned in zip(seen, jax.jacrev(outputs)([layer["bias"] for layer in layers]), strict=True):
        back = returned.reshape(-1, returned.shape[-1])
        alike = jnp.repeat(jnp.repeat(rows @ rows.T + 1, returned.shape[1], axis=0), returned.shape[1], axis=1)
        total = total + alike * (back @ back.T)
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """Two random towers in tight cones: graphs, parameters, inputs, what the output layers see, directions of the mean outputs
    and frames there (each x then y), the angle between the means, their lengths, and the deviations of the unit rows in the
    frames."""

    graphs: tuple
    params: tuple
    inputs: tuple
    seen: tuple
    means: tuple
    frames: tuple
    angle: float
    norms: tuple = ()
    deviations: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((2, 0, 0)))

    def at(self, tightness: float) -> Start:
        """The same towers with other lengths of the mean outputs."""
        kernels = [np.asarray(tower["out"]["kernel"]) for tower in self.params]
        both = [*zip(self.params, self.seen, kernels, self.means, strict=True)]
        norms = tuple(tightness * (len(m) * np.sum(centred(s) ** 2) / s.size) ** 0.5 for _, s, _, m in both)
        params = tuple(with_output(*rest, r * mean) for (*rest, mean), r in zip(both, norms, strict=True))
        rows = [centred(s) @ kernel + r * mean[None, :] for (_, s, kernel, mean), r in zip(both, norms, strict=True)]
        return dataclasses.replace(self, params=params, norms=norms, deviations=self.in_frames(rows))

    def in_frames(self, raw) -> np.ndarray:
        """Unit rows minus their mean, in the frames: [modality, n, direction]."""
        rows = [np.asarray(o) / np.linalg.norm(o, axis=1, keepdims=True) for o in raw]
        return np.stack([(r - r.mean(axis=0)[None, :]) @ f for r, f in zip(rows, self.frames, strict=True)])

    def jacobians(self) -> list[np.ndarray]:
        """Derivatives of the raw outputs by the parameters, [n, d, parameters] each."""
        return [np.asarray(jacobian(*tower)) for tower in zip(self.graphs, self.params, self.inputs, strict=True)]

    def predict(self, jacobians, temperature: float, rate: float, steps: int, epsilon: float | None) -> np.ndarray:
        """Deviations after training, by `linearized_training`; epsilon is Adam's, None for gradient descent."""
        return theory.linearized_training(
            jacobians, self.deviations, norms=self.norms, frames=self.frames, angle=self.angle, temperature=temperature,
            learning_rate=rate, steps=steps, adam_epsilon=epsilon,
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
        seen = tuple(features(encoder, *tower) for tower in zip(params, inputs, strict=True))
    else:
        graphs, params, inputs, seen = random_pair(encoder, data, pairs, rng)
    axis, other = np.linalg.qr(rng.normal(size=(params[0]["out"]["kernel"].shape[1], 2)))[0].T
    means = axis, np.cos(angle) * axis + np.sin(angle) * other
    return Start(graphs, params, inputs, seen, means, theory.great_circle_frames(*means), angle).at(tightness)


def centred(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean."""
    return rows - rows.mean(axis=0)[None, :]


def train(starts: list[Start], temperatures, rates, steps, *, optimizers) -> list[np.ndarray]:
    """Raw outputs of x and of y, [optimizer, start, step, n, d], for starts of one architecture; rates [optimizer, start]."""
    rates, many = np.asarray(rates), len(optimizers)
    params, inputs = (stack([getattr(begin, name) for begin in starts] * many) for name in ("params", "inputs"))
    numbers = jnp.asarray(np.tile(temperatures, many)), jnp.asarray(rates.ravel()), jnp.asarray(steps)
    which = jnp.asarray(np.repeat(np.arange(many, dtype=np.int32), len(starts)))
    ended = descend(starts[0].graphs, params, inputs, *numbers, which, optimizers=tuple(optimizers))
    return [np.asarray(raw).reshape(*rates.shape, *raw.shape[1:]) for raw in ended]
