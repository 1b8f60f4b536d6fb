"""How far trained towers are from the free flow and from the prediction of their kernels, one setting at a time."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import optax

import simulator as sim
from experiments.setups import trained_towers
from simulator.theory import flows

PAIRS, STEPS = 16, 10  # few pairs: a Jacobian has a row for each, and output
# Cones of 1e-7 have gradients far below Adam's usual ε of 1e-8, which would make it gradient descent with momentum.
EPSILONS = (None, 1e-30)
OPTIMIZERS = {"SGD": optax.sgd, "Adam": functools.partial(optax.adam, eps=EPSILONS[1])}
NAMES = (
    "first_error",
    "error",
    "exchanged_error",
    "second_order",
    "orbit",
    "orbit_predicted",
    "orbit_near_miss",
    "turn",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Towers and their training: encoder; data (None: free embeddings); length of the mean output over the deviations;
    learning rate, in units of that at which ten steps like the first change the deviations by their size."""

    encoder: object
    data: sim.LatentPairs | None
    tightness: float
    rate: float = 1.0


def discrepancies(settings: list[Setting], *, angle: float, temperature: float, seeds: int, seed: int) -> dict:
    """`NAMES` over [optimizer, setting, seed].

    error: ‖z − predicted‖/‖predicted − start‖ of the deviations z after ten steps, predicted by the Jacobians of the start;
    first_error: after one step; exchanged_error: predicted with the Jacobians of the two towers exchanged (linear towers,
    elsewhere NaN). second_order: error of the first step, of the raw outputs, over the square of the learning rate.
    orbit: distance of z from the nearest path of the free flow, over the way gone; orbit_predicted: the same of the predicted
    z; orbit_near_miss: from the path without cos θ. turn: angle by which the means turned.
    """
    found = {name: np.full((len(OPTIMIZERS), len(settings), seeds), np.nan) for name in NAMES}
    architectures = {}
    for number, setting in enumerate(settings):
        architectures.setdefault((setting.encoder, setting.data), []).append(number)
    for numbers in architectures.values():  # one compilation for each
        here = [settings[number] for number in numbers]
        for name, values in _one_architecture(here, angle, temperature, seeds, seed).items():
            found[name][:, numbers] = values
    return found


def _one_architecture(settings: list[Setting], angle: float, temperature: float, seeds: int, seed: int) -> dict:
    """`discrepancies` of settings that share encoder and data, and so worlds, weights and Jacobians."""
    shape = (len(OPTIMIZERS), len(settings), seeds)
    starts, rates, predicted = np.empty(shape[1:], object), np.empty(shape), np.empty(shape, object)
    for k in range(seeds):
        rng, encoder, data = np.random.default_rng([seed, 50, k]), settings[0].encoder, settings[0].data
        loose = trained_towers.start(encoder, data, PAIRS, rng, angle=angle, tightness=1.0)
        jacobians = loose.jacobians()  # the bias of the output, in which the settings differ, does not enter
        for o, i in np.ndindex(shape[:2]):
            starts[i, k] = begin = loose.at(settings[i].tightness)
            predict = functools.partial(begin.predict, temperature=temperature, epsilon=EPSILONS[o])
            trial = (
                begin.fast_rate(temperature) if EPSILONS[o] is None else 1.0
            )  # moves them by no less than their size
            move = (predict(jacobians, rate=trial, steps=1) - begin.deviations) / trial
            rate = settings[i].rate / STEPS * np.linalg.norm(begin.deviations) / np.linalg.norm(move)
            ways = [begin.deviations + rate * move, predict(jacobians, rate=rate, steps=STEPS)]
            if isinstance(encoder, sim.Linear):
                ways.append(predict(jacobians[::-1], rate=rate, steps=STEPS))
            rates[o, i, k], predicted[o, i, k] = rate, ways
    found = {name: np.full(shape, np.nan) for name in NAMES}
    flat, rates = list(starts.ravel()), rates.reshape(len(OPTIMIZERS), -1)
    ended = trained_towers.train(flat, [temperature] * len(flat), rates, [0, 1, STEPS], optimizers=OPTIMIZERS.values())
    for o, number in np.ndindex(rates.shape):
        at, raw = (o, *np.unravel_index(number, shape[1:])), [rows[o, number] for rows in ended]
        for name, value in _compare(flat[number], raw, predicted[at], rates[o, number], temperature).items():
            found[name][at] = value
    return found


def _compare(begin, raw, predicted, rate: float, temperature: float) -> dict:
    """The measures of one run; raw outputs at the start, after the first and the last step."""
    first, last = (begin.in_frames([rows[step] for rows in raw]) for step in (1, 2))
    off = lambda z, p: np.linalg.norm(z - p) / np.linalg.norm(p - begin.deviations)
    rates = np.array(flows.mode_rates_sphere(begin.angle, temperature))
    without_cosine = np.array(flows.mode_rates_sphere(np.pi / 2, temperature))
    without_cosine[:2] *= np.sin(begin.angle) ** 2
    found = dict(
        first_error=off(first, predicted[0]),
        error=off(last, predicted[1]),
        second_order=np.linalg.norm((first - predicted[0]) * np.array(begin.norms)[:, None, None]) / rate**2,
        orbit=from_orbit(begin.deviations, last, rates),
        orbit_predicted=from_orbit(begin.deviations, predicted[1], rates),
        orbit_near_miss=from_orbit(begin.deviations, last, without_cosine),
        turn=_angle([rows[2] for rows in raw]) - _angle([rows[0] for rows in raw]),
    )
    return found | (dict(exchanged_error=off(last, predicted[2])) if len(predicted) > 2 else {})


def _modes(z: np.ndarray) -> list[np.ndarray]:
    """Deviations [2, n, direction] as the four modes of `flows.ModeRates`, each of the norm it has in z."""
    common, opposite = (z[0] + z[1]) / 2**0.5, (z[1] - z[0]) / 2**0.5
    return [common[:, :1], opposite[:, :1], common[:, 1:], opposite[:, 1:]]


def from_orbit(start: np.ndarray, end: np.ndarray, rates: np.ndarray) -> float:
    """min over h > 0 of ‖end − (1 + hλ)^STEPS start‖/‖end − start‖, λ the rate of each mode: the free flow shares no unit of
    time with a tower, so it takes the one that suits it best. Bracketed on a grid of ln h and refined."""
    before, gone = _modes(start), _modes(end - start)
    own, cross = (np.array([np.sum(a * b) for a, b in zip(parts, before, strict=True)]) for parts in (before, gone))
    way = sum(np.sum(mode**2) for mode in gone)
    middle, reach = np.log(np.sqrt(way / np.sum(rates**2 * own)) / STEPS), 3.0
    for _ in range(5):
        logs = np.linspace(middle - reach, middle + reach, 121)
        change = (1 + np.exp(logs)[:, None] * rates[None, :]) ** STEPS - 1
        middle, reach = logs[np.argmin(way - 2 * change @ cross + change**2 @ own)], reach / 30
    change = (1 + np.exp(middle) * rates) ** STEPS - 1
    return float(np.sqrt(sum(np.sum((g - c * s) ** 2) for g, c, s in zip(gone, change, before, strict=True)) / way))


def _angle(raw) -> float:
    """Angle between the mean directions of the unit rows."""
    x, y = (np.mean(o / np.linalg.norm(o, axis=1, keepdims=True), axis=0) for o in raw)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return 2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y))
