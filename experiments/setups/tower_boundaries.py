"""Where the variance along the gap of towers stands still: from the least stable pair of deviations, and on average over
random output layers. Settings are those of `experiments.claims.critical_gap.Config`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import simulator as sim
from experiments.setups import trained_towers
from experiments.setups.clusters import mode_variances
from simulator.theory import flows, towers

LATENT, EMBED, NETWORK_DATA = 4, 6, (8, 10, 0.3)  # of MLP towers: inputs of x, of y, their noise
FAR = 1e6  # norm of the mean output over the spread of a single coordinate


def crossing(at: np.ndarray, values: np.ndarray) -> float:
    """Where values change sign, by monotone cubic interpolation; NaN unless they do so once."""
    from scipy.interpolate import PchipInterpolator

    roots = PchipInterpolator(at, values).roots(extrapolate=False)
    return float(roots[0]) if len(roots) == 1 else np.nan


def pair_boundaries(config, predicted: np.ndarray) -> np.ndarray:
    """Separations at which the absolute variance of the mode that loses stability stands still in MLP towers,
    [SGD or Adam, boundary, temperature, seed], searched at 0.6 to 1.4 of the predicted ones [boundary, temperature]:
    gap norms in space, angles on the sphere, and π minus the angle at the upper boundary."""
    worlds = [_world(config, seed) for seed in range(config.tower_seeds)]
    around, temperatures = np.linspace(0.6, 1.4, 9), np.array(config.tower_temperatures)
    steepest = max(np.linalg.norm(trained_towers.centred(seen), 2) ** 2 for world in worlds for seen in world[3])
    measured = np.empty((2, *predicted.shape, len(worlds)))
    for i in range(len(predicted)):
        sphere, separations = i > 0, predicted[i][:, None] * around[None, :]
        points = [(world, j, s) for world in worlds for j, row in enumerate(separations) for s in row]
        starts = [_least_stable(config, world, np.pi - s if i == 2 else s, i) for world, _, s in points]
        tau = np.array([temperatures[j] for _, j, _ in points])
        # A slow way: the pair stands still at the boundary, and elsewhere its first motion tells the side.
        sgd = 1e-4 * config.tower_pairs * config.tower_tightness**2 / steepest / (4 / tau + 2 / tau**2)
        both = np.concatenate([sgd, np.full(len(tau), 1e-6)])
        # Raw outputs are `tightness` times as large as the rows of theory, so their squared distances need τ times
        # its square; the sphere does not notice.
        ended = trained_towers.descend(
            worlds[0][0], trained_towers.stack(starts * 2), trained_towers.stack([world[2] for world, *_ in points] * 2),
            jnp.asarray(np.tile(tau if sphere else tau * config.tower_tightness**2, 2)), jnp.asarray(both),
            jnp.array([0, 10]), jnp.asarray(np.repeat(np.arange(2, dtype=np.int32), len(tau))),
            optimizers=(optax.sgd, optax.adam), similarity="cosine" if sphere else "sqeuclidean",
        )  # fmt: skip
        variances = mode_variances(*_rows(ended, sphere), sphere)[..., 1 if i == 2 else 0]
        growth = np.log(variances[:, 1] / variances[:, 0]).reshape(2, len(worlds), *separations.shape)
        for o, seed, j in np.ndindex(growth.shape[:3]):
            measured[o, i, j, seed] = crossing(separations[j], growth[o, seed, j])
    return measured


def _world(config, seed: int):
    """(graphs, parameters, inputs, what the output layers see, two orthogonal axes) of two random MLP towers."""
    rng, (dim_x, dim_y, noise) = np.random.default_rng([config.seed, seed]), NETWORK_DATA
    data = sim.LatentPairs(latent_dim=LATENT, dim_x=dim_x, dim_y=dim_y, noise=noise)
    found = trained_towers.random_pair(sim.MLP(config.tower_width, embed_dim=EMBED), data, config.tower_pairs, rng)
    return *found, np.linalg.qr(rng.normal(size=(EMBED, 2)))[0].T


def _least_stable(config, world, separation: float, boundary: int):
    """Parameters whose means are `separation` apart and whose deviations along the gap are the first canonical pair, of
    unit size; those across it stay the random towers'. At the upper boundary the two turn against one another."""
    _, params, _, seen, (axis, other) = world
    if boundary == 0:
        means, tangents = (0.0 * axis, separation * axis), (axis, axis)
    else:
        means = axis, np.cos(separation) * axis + np.sin(separation) * other
        tangents = [frame[:, 0] for frame in towers.great_circle_frames(*means)]
    u, w, _ = towers.first_canonical_pair(*seen)
    patterns = np.stack([u, -w if boundary == 2 else w]) * len(u) ** 0.5
    started = []
    for tower, features, pattern, mean, tangent in zip(params, seen, patterns, means, tangents, strict=True):
        weights = np.linalg.lstsq(trained_towers.centred(features), pattern, rcond=1e-9)[0]
        kernel = np.asarray(tower["out"]["kernel"])
        kernel = kernel + np.outer(weights - kernel @ tangent, tangent)
        started.append(trained_towers.with_output(tower, features, kernel, config.tower_tightness * mean))
    return tuple(started)


def _rows(outputs, sphere: bool):
    """Raw outputs as unit rows for the sphere, as they are in space."""
    rows = [np.asarray(rows) for rows in outputs]
    return [r / np.linalg.norm(r, axis=-1, keepdims=True) for r in rows] if sphere else rows


def random_boundaries(config) -> dict:
    """Angle at which the common mode's variance, averaged over random output layers, stands still between two numbers of
    steps, [random, interval]: measured, its standard error, predicted; and the two ends of the prediction."""
    kinds: dict[str, tuple] = {
        f"linear, {x} + {y}" + (", noisy" if noise else ""): (sim.Linear(2), config.random_draws, x, y, noise)
        for x, y, noise in config.random_linear
    }
    kinds[f"MLP {config.random_width}"] = sim.MLP(config.random_width, embed_dim=2), config.network_draws, *NETWORK_DATA
    names = ("random_measured", "random_error", "random_predicted", "random_time", "random_ends")
    found = [_in_time(config, number, *kind) for number, kind in enumerate(kinds.values())]
    values = {name: np.stack(rows) for name, rows in zip(names, zip(*found, strict=True), strict=True)}
    dims = dict.fromkeys(names, ("random", "interval")) | dict(random_ends=("random", "end"))
    return {name: (dims[name], rows) for name, rows in values.items()} | dict(random=("random", list(kinds)))


def _in_time(config, number: int, encoder, draws: int, dim_x: int, dim_y: int, noise: float):
    """One world and one set of hidden layers, many random output layers: on the circle, where no mode across outgrows
    those along."""
    rng, tau = np.random.default_rng([config.seed, 100 + number]), config.random_temperature
    data = sim.LatentPairs(latent_dim=LATENT, dim_x=dim_x, dim_y=dim_y, noise=noise)
    graphs, params, inputs, seen = trained_towers.random_pair(encoder, data, config.tower_pairs, rng)
    norms = [FAR * np.std(trained_towers.centred(s)) for s in seen]
    angles, steps = np.array(config.random_angles) * flows.critical_angle(tau), np.array(config.random_steps)
    starts = []
    for _ in range(draws):
        kernels = [rng.normal(size=(s.shape[1], 2)) / s.shape[1] ** 0.5 for s in seen]
        for angle in angles:
            means = norms[0] * np.array([1.0, 0.0]), norms[1] * np.array([np.cos(angle), np.sin(angle)])
            starts.append(tuple(map(trained_towers.with_output, params, seen, kernels, means)))
    steepest = max(np.linalg.norm(trained_towers.centred(s), 2) / r for s, r in zip(seen, norms, strict=True)) ** 2
    steepest = steepest / config.tower_pairs
    rate = 0.5 / steepest / (1 / tau + np.sin(angles[-1]) ** 2 / (2 * tau**2))  # half of what would diverge
    many = lambda value: jnp.broadcast_to(jnp.asarray(value), (len(starts), *np.shape(value)))
    way = graphs, trained_towers.stack(starts), tuple(map(many, inputs)), many(tau), many(rate), jnp.asarray(steps)
    variances = mode_variances(*_rows(trained_towers.descend(*way), True), True)[..., 0]
    kernels = [s @ s.T / r**2 for s, r in zip(seen, norms, strict=True)]
    both = *kernels, *(k / s.shape[1] for k, s in zip(kernels, seen, strict=True))
    predicted = [
        towers.apparent_critical_angle(*both, temperature=tau, learning_rate=rate, steps=pair)
        for pair in zip(config.random_steps[:-1], config.random_steps[1:], strict=True)
    ]
    time = 0.5 * (steps[1:] + steps[:-1]) * rate * steepest / tau
    ends = [towers.kernel_alignment(*both), towers.first_canonical_pair(*seen)[2]]
    still = _still(angles, variances.reshape(draws, len(angles), len(steps)))
    return *still, np.array(predicted), time, flows.critical_angle(tau * np.array(ends))


def _still(angles, variances):
    """Angles [interval] where the mean over draws of the variances [draw, angle, step] is the same at both ends, and their
    standard errors: delete-one-block jackknife, and what halving the grid of angles changes."""

    def roots(chosen, every=1):
        growth = np.diff(np.log(chosen.mean(axis=0)), axis=1)[::every]
        return np.array([crossing(angles[::every], curve) for curve in growth.T])

    blocks = np.array_split(np.arange(len(variances)), min(24, len(variances)))
    without = [roots(np.delete(variances, block, axis=0)) for block in blocks]
    measured, spread = roots(variances), np.std(without, axis=0) * (len(blocks) - 1) ** 0.5
    return measured, np.hypot(spread, measured - roots(variances, every=2))
