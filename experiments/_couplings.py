"""The coupling of trained towers: growth across a 90° gap over fall along it in the first steps, against free flow."""

from __future__ import annotations

import numpy as np
import optax

from experiments import _towers

PAIRS = 32
OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
BASE_RATES = 3e-5, 1e-6  # SGD: of `Start.fast_rate`; Adam: as it is. Ten steps move weights by 1e-4 of their size


def _variances(z: np.ndarray) -> list[float]:
    """Variance along the gap, and of the common mode across it, of deviations in the frames; at 90° both modes along have
    one rate."""
    return [np.mean(z[..., 0] ** 2), np.mean(np.sum(z, axis=0)[:, 1:] ** 2)]


def coupling(variances: np.ndarray, temperature: float) -> float:
    """Growth across over fall along in units of the free flow's 2τ, from variances [seed, when, 2]: means over seeds."""
    (along, across), (end_along, end_across) = variances.mean(axis=0)
    return (end_across / across - 1) / (1 - end_along / along) / (2 * temperature)


def couplings(config, settings: dict[str, dict]) -> dict:
    """Coupling in the first steps at 90°, measured and predicted, [optimizer, factor], with jackknife standard errors; the
    alignment of the output layers' kernels [factor]. A setting holds encoder, data (None: free embeddings), temperature,
    tightness, and the learning rate in units of `BASE_RATES`."""
    towers, found = {}, {}
    for name, setting in settings.items():
        towers.setdefault((setting["encoder"], setting["data"]), []).append(name)
    for names in towers.values():  # one compilation for each
        found |= _first_steps(config, {name: settings[name] for name in names})
    kinds = ("measured", "predicted", "error", "difference_error")
    values = {kind: np.empty((len(OPTIMIZERS), len(settings))) for kind in kinds}
    for f, (name, setting) in enumerate(settings.items()):
        for o, variances in enumerate(found[name][0]):  # [measured or predicted, seed, when, which]
            both = lambda v: np.array([coupling(kind, setting["temperature"]) for kind in v])  # noqa: B023, E731
            without = np.array([both(np.delete(variances, seed, axis=1)) for seed in range(config.factor_seeds)])
            spread = lambda v: np.std(v) * (config.factor_seeds - 1) ** 0.5  # noqa: E731
            errors = spread(without[:, 0]), spread(without[:, 0] - without[:, 1])
            for kind, value in zip(kinds, (*both(variances), *errors), strict=True):
                values[kind][o, f] = value
    return {f"coupling_{kind}": (("optimizer", "factor"), value) for kind, value in values.items()} | dict(
        alignment=("factor", [found[name][1] for name in settings]), factor=("factor", list(settings))
    )


def _first_steps(config, settings: dict[str, dict]) -> dict[str, tuple]:
    """name -> (variances [optimizer, measured or predicted, seed, when, which], alignment) for factors of one
    architecture. The seeds are the same for every factor."""
    seeds, steps, many = range(config.factor_seeds), config.factor_steps, []
    for name, s in settings.items():
        rngs = [np.random.default_rng([config.seed, 50, seed]) for seed in seeds]
        place = dict(angle=np.pi / 2, tightness=s["tightness"])
        starts = [_towers.start(s["encoder"], s["data"], PAIRS, rng, **place) for rng in rngs]
        sgd = BASE_RATES[0] * np.mean([begin.fast_rate(s["temperature"]) for begin in starts])
        many += [(name, s, seed, begin, sgd) for seed, begin in zip(seeds, starts, strict=True)]
    jacobians = [begin.jacobians() for _, _, _, begin, _ in many[: len(seeds)]]  # the bias of the output does not enter
    variances = {name: np.empty((len(OPTIMIZERS), 2, len(seeds), 2, 2)) for name in settings}
    for o, optimizer in enumerate(OPTIMIZERS.values()):
        rates = [s["rate"] * (sgd, BASE_RATES[1])[o] for _, s, _, _, sgd in many]
        temperatures = [s["temperature"] for _, s, *_ in many]
        ended = _towers.train([begin for *_, begin, _ in many], temperatures, rates, [0, steps], optimizer)
        for (name, s, seed, begin, _), rate, *raw in zip(many, rates, *ended, strict=True):
            predicted = begin.predict(jacobians[seed], s["temperature"], rate, steps, adam=o == 1)
            for kind, z in enumerate((begin.in_frames([rows[-1] for rows in raw]), predicted)):
                variances[name][o, kind, seed] = _variances(begin.deviations), _variances(z)
    # Means over seeds of numerator and denominator: X and S of `kernel_alignment`, of output layers.
    x_and_s = np.mean([_overlaps(begin) for _, _, _, begin, _ in many[: len(seeds)]], axis=0)
    return {name: (values, x_and_s[0] / x_and_s[1]) for name, values in variances.items()}


def _overlaps(begin: _towers.Start) -> tuple[float, float]:
    """(tr K_x C_y + tr K_y C_x, tr K_x C_x + tr K_y C_y) of the output layers, in units of the variances at the start."""
    unit = [_towers.centred(s) / np.linalg.norm(_towers.centred(s)) for s in begin.seen]
    (k_x, k_y), (n_x, n_y) = (u @ u.T for u in unit), (u.shape[1] for u in unit)
    cross = np.sum(k_x * k_y) * (n_x + n_y)
    return cross, np.sum(k_x**2) * n_x + np.sum(k_y**2) * n_y
