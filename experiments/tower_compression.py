"""C2T: how far the predictions for tight clusters carry over from free embeddings to trained towers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import simulator as sim
from experiments import _figures
from simulator.encoders import place_in_cones
from simulator.losses import info_nce
from simulator.theory import towers as theory
from simulator.theory.flows import critical_angle

CLAIM = sim.Claim(
    id="C2T",
    title="Tight-cluster predictions on towers",
    statement=(
        "A tower's tangent kernel multiplies the free flow: linear towers keep the free signs and, where both reach one "
        "deviation, the free threshold, at rates that their kernel sets; wide networks follow, narrow ones mix their "
        "outputs. Trained by SGD or Adam from 90°, the variance along the gap first falls at every temperature and "
        "later grows with all the rest."
    ),
    source="derived here: theory.md C2 and N1, towers; free flow: Chowers et al. 2026, Thm 3.1",
    assumes="tight cones, full batches; for predicted rates: SGD, and a network wide enough that its kernel stays",
    expected=(
        "holds", "holds if", "holds", "holds", "holds", "holds", "holds", "holds if", "holds", "refuted", "holds if",
    ),
)  # fmt: skip
CAPTION = (
    "Tight clusters on towers. (a) Deviations along the gap after SGD, linear towers, against the kernel's prediction; "
    "grey: all modes at the kernel's mean eigenvalue. (b) Error of the prediction for MLP towers with the kernel of "
    "the start (one point per angle and τ). (c) Part of the tangent kernel that mixes outputs; black: predicted "
    "slopes. (d) Angle above which the least stable deviation along the gap decays; lines: predicted; grey: a factor 2 "
    "missing. (e) Variance along the gap over its start, MLP towers from 90°; solid Adam, dashed SGD; "
    "bands: ± 2 standard errors over seeds. (f) Growth across over fall along the gap while the latter falls by "
    "e^0.3, in units of the free flow's 2τ, one factor of the base (width 64, one hidden layer, "
    "τ = 0.02, tightness 40) changed at a time; bars: ± 2 standard errors over seeds."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Small cases in float64 against predictions, and trained towers with one factor changed at a time."""

    cases: tuple[tuple[float, float], ...] = ((np.pi / 2, 0.05), (np.pi / 2, 0.5), (1.0, 0.05), (0.35, 0.3))
    widths: tuple[int, ...] = (16, 64, 256)
    law_tightness: float = 1e6
    law_steps: int = 200
    mixing_widths: tuple[tuple[int, ...], ...] = ((256, 512, 1024, 2048), (64, 128, 256, 512))  # 1 and 2 hidden layers
    mixing_seeds: int = 24
    threshold_temperatures: tuple[float, ...] = (0.02, 0.07, 0.2, 0.5)
    threshold_angles: tuple[float, ...] = tuple(np.linspace(0.05, 1.1, 25).tolist())
    threshold_noise: float = 1.0
    temperatures: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    steps: int = 400
    seeds: int = 8
    more_factors: bool = True
    seed: int = 0


QUICK = Config(
    cases=((np.pi / 2, 0.05), (0.35, 0.3)),
    widths=(16, 256),
    law_steps=100,
    threshold_temperatures=(0.07, 0.5),
    temperatures=(0.01, 1.0),
    steps=160,
    seeds=6,
    more_factors=False,
)
SMALL = dict(latent_dim=4, dim_x=8, dim_y=10)
SMALL_PAIRS, SMALL_EMBED = 32, 6
WIDTH, TEMPERATURE = 64, 0.02  # the base of the trained runs


def measure(config: Config, *, progress: bool = False):
    """Kernel predictions against SGD in float64, and trained towers over (run, seed, step)."""
    import xarray as xr
    from tqdm import tqdm

    found = {}
    parts = (_laws, _output_mixing, _thresholds, _training)
    for part in tqdm(parts, disable=not progress, desc="tower compression", unit="part"):
        with jax.enable_x64(True):
            found |= part(config)
    return xr.Dataset(found)


@functools.lru_cache(maxsize=256)
def _start(encoder, data, *, angle, tightness, seed, pairs=SMALL_PAIRS, dtype="float64"):
    """(graphs, parameters, inputs) of two towers in their cones."""
    batch = sim.sample(data, pairs, key=jax.random.key(seed), dtype=jnp.dtype(dtype))
    inputs = (batch.index, batch.index) if isinstance(encoder, sim.Table) else (batch.x, batch.y)
    sizes = (pairs, pairs) if isinstance(encoder, sim.Table) else (data.dim_x, data.dim_y)
    rng = np.random.default_rng(seed)
    towers = [nnx.merge(*_random_tower(encoder, size, rng, dtype)) for size in sizes]
    place_in_cones(
        sim.Cones(angle, tightness=tightness), *towers, *inputs, key=jax.random.fold_in(jax.random.key(seed), 1)
    )
    graphs, params = zip(*(nnx.split(tower) for tower in towers), strict=True)
    return graphs, tuple(nnx.to_pure_dict(p) for p in params), inputs


def _random_tower(encoder, size: int, rng, dtype="float64"):
    """Graph and parameters with the towers' own variance, 1/fan-in, and no bias; drawn in NumPy, since compiling the
    towers' own draw for every shape takes longer than all the training."""
    draw = lambda leaf: rng.normal(size=leaf.shape) * (leaf.ndim > 1) / leaf.shape[0] ** 0.5  # noqa: E731
    build = lambda: encoder(size, rngs=nnx.Rngs(params=0), dtype=jnp.dtype(dtype))  # noqa: E731
    graph, shapes = nnx.split(nnx.eval_shape(build))
    return graph, jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), nnx.to_pure_dict(shapes))


def _outputs(graphs, params, inputs):
    return tuple(nnx.merge(g, p)(u) for g, p, u in zip(graphs, params, inputs, strict=True))


def _stack(starts):
    """Graphs of the first start; parameters and inputs of all, with a leading axis."""
    join = lambda i: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start[i] for start in starts))  # noqa: E731
    return starts[0][0], join(1), join(2)


@functools.partial(jax.jit, static_argnames=("graphs", "optimizer"))
def _descend(graphs, params, inputs, temperature, learning_rate, steps, *, optimizer=optax.sgd):
    """Raw outputs (x, y) at the given steps, [replica, step, n, d] each: full batches, replicas vmapped."""

    def one(params, inputs, temperature, learning_rate):
        transform = optimizer(learning_rate)
        gradient = jax.grad(lambda p: info_nce(*_outputs(graphs, p, inputs), temperature=temperature))

        def step(_, state):
            updates, memory = transform.update(gradient(state[0]), state[1], state[0])
            return optax.apply_updates(state[0], updates), memory

        def record(state, interval):
            state = jax.lax.fori_loop(*interval, step, state)
            return state, _outputs(graphs, state[0], inputs)

        later = jax.lax.scan(record, (params, transform.init(params)), (steps[:-1], steps[1:]))[1]
        first = _outputs(graphs, params, inputs)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)

    return jax.vmap(one)(params, inputs, temperature, learning_rate)


def _deviations(outputs, frames) -> np.ndarray:
    """Unit rows minus their mean, in the frames: [modality, n, direction]."""
    rows = [np.asarray(o) / np.linalg.norm(o, axis=1, keepdims=True) for o in outputs]
    return np.stack([(r - r.mean(axis=0)[None, :]) @ f for r, f in zip(rows, frames, strict=True)])


def _laws(config: Config) -> dict:
    """Deviations after SGD, measured and predicted, of linear towers and of MLPs of every width."""
    dims = ("case", "modality", "pair", "direction")
    kinds = ("measured", "predicted", "mean_eigenvalue")
    linear = _law(config, sim.Linear(SMALL_EMBED), lambda _, __, inputs: inputs @ inputs.T + 1.0)
    wide = [_law(config, sim.MLP(width, embed_dim=SMALL_EMBED), _tangent_kernel) for width in config.widths]
    found = {f"linear_{kind}": (dims, values) for kind, values in zip(kinds, linear, strict=True)}
    found |= {f"mlp_{k}": (("width", *dims), np.stack(v)) for k, v in zip(kinds, zip(*wide, strict=True), strict=True)}
    return found | dict(width=("width", list(config.widths)))


def _law(config: Config, encoder, kernel) -> list[np.ndarray]:
    """Deviations [case, modality, n, direction] after SGD: measured, predicted by the kernel of the start, and with
    every mode at the kernel's mean eigenvalue. Along and across are each in units of their largest predicted value."""
    data = sim.LatentPairs(**SMALL, noise=0.3)
    starts, frames, rates, predictions = [], [], [], []
    for i, (angle, temperature) in enumerate(config.cases):
        start = _start(encoder, data, angle=angle, tightness=config.law_tightness, seed=config.seed + i)
        outputs = [np.asarray(o) for o in _outputs(*start)]
        means = [o.mean(axis=0) for o in outputs]
        frames.append(theory.great_circle_frames(*means))
        norms = [float(np.linalg.norm(m)) for m in means]
        full = [np.asarray(kernel(*tower)) for tower in zip(*start, strict=True)]
        generators = [
            theory.tower_generator(*kernels, norms=norms, frames=frames[-1], angle=angle, temperature=temperature)
            for kernels in (full, [_mean_eigenvalue(k) for k in full])
        ]
        rates.append(1.0 / (config.law_steps * np.linalg.norm(generators[0], 2)))
        begin = _deviations(outputs, frames[-1])
        path = functools.partial(theory.after_steps, learning_rate=rates[-1], steps=config.law_steps)
        predictions.append([path(generator, begin.ravel()).reshape(begin.shape) for generator in generators])
        starts.append(start)
    temperatures = jnp.asarray([t for _, t in config.cases])
    ended = _descend(*_stack(starts), temperatures, jnp.asarray(rates), jnp.array([0, config.law_steps]))
    ended = [np.asarray(e)[:, -1] for e in ended]
    measured = np.stack([_deviations(outputs, f) for *outputs, f in zip(*ended, frames, strict=True)])
    predicted, mean_eigenvalue = np.stack(predictions, axis=1)
    unit = np.abs(predicted).max(axis=(1, 2))
    unit[:, 1:] = unit[:, 1:].max(axis=1, keepdims=True)
    return [values / unit[:, None, None, :] for values in (measured, predicted, mean_eigenvalue)]


def _mean_eigenvalue(kernel) -> np.ndarray:
    """Identity times the mean eigenvalue of the centred kernel, outputs averaged, [n, n]."""
    kernel = kernel if kernel.ndim == 2 else np.einsum("aibi->ab", kernel) / kernel.shape[1]
    return np.eye(len(kernel)) * (np.trace(kernel) - kernel.sum() / len(kernel)) / (len(kernel) - 1)


@functools.partial(jax.jit, static_argnames="graph")
def _tangent_kernel(graph, params, inputs):
    """J Jᵀ over all parameters, [n, d, n, d]."""
    leaves = jax.tree.leaves(jax.jacrev(lambda p: nnx.merge(graph, p)(inputs))(params))
    shape = leaves[0].shape[:2]
    flat = [leaf.reshape(shape[0] * shape[1], -1) for leaf in leaves]
    return sum(leaf @ leaf.T for leaf in flat).reshape(shape + shape)


def _output_mixing(config: Config) -> dict:
    """How much the kernels of random networks mix their outputs, over (depth, level, mixing_seed)."""
    widths, dim_in, outputs = np.array(config.mixing_widths), 10, 4
    depths = 1 + np.arange(len(widths))
    mixing = np.empty((*widths.shape, config.mixing_seeds))
    for i, j, seed in np.ndindex(mixing.shape):
        rng = np.random.default_rng(config.seed + seed)
        inputs = jnp.asarray(rng.normal(size=(8, dim_in)))  # few: the Jacobian has a row per sample and output
        encoder = sim.MLP(int(widths[i, j]), depth=int(depths[i]), embed_dim=outputs)
        mixing[i, j, seed] = theory.output_mixing(_tangent_kernel(*_random_tower(encoder, dim_in, rng), inputs))
    return dict(
        mixing=(("depth", "level", "mixing_seed"), mixing),
        predicted_exponent=("depth", [theory.mixing_exponent(int(d)) for d in depths]),
        depth=("depth", depths),
        mixing_width=(("depth", "level"), widths),
    )


def _thresholds(config: Config) -> dict:
    """Angle at which the least stable pair of deviations stops growing, over (tower, threshold_temperature)."""
    linear, mlp = sim.Linear(SMALL_EMBED), sim.MLP(WIDTH, embed_dim=SMALL_EMBED)
    towers = {
        "linear, SGD": (linear, 0.0, optax.sgd),
        "linear, noisy inputs, SGD": (linear, config.threshold_noise, optax.sgd),
        "linear, Adam": (linear, 0.0, optax.adam),
        "MLP, SGD": (mlp, 0.0, optax.sgd),
    }
    temperatures, angles = np.array(config.threshold_temperatures), np.array(config.threshold_angles)
    growth = np.empty((len(towers), len(temperatures), len(angles)))
    correlations = []
    for i, (encoder, noise, optimizer) in enumerate(towers.values()):
        data = sim.LatentPairs(**SMALL, noise=noise)
        start = _start(encoder, data, angle=np.pi / 2, tightness=config.law_tightness, seed=config.seed)
        params, frames, fastest, correlation = _least_stable_starts(start, angles, config.law_tightness)
        correlations.append(correlation)
        many = functools.partial(jnp.full, len(angles))
        inputs = tuple(jnp.broadcast_to(u, (len(angles), *u.shape)) for u in start[2])
        for j, temperature in enumerate(temperatures):
            # A short way: the pair stands still at the boundary, and elsewhere its first motion tells the side.
            rate = 1e-4 / (fastest * (1 / temperature + 0.5 / temperature**2)) if optimizer is optax.sgd else 1e-6
            way = start[0], params, inputs, many(temperature), many(rate), jnp.array([0, 100])
            outputs = [np.asarray(o) for o in _descend(*way, optimizer=optimizer)]
            for k, frame in enumerate(frames):
                before, after = (_deviations([o[k, t] for o in outputs], frame)[..., 0] for t in (0, 1))
                growth[i, j, k] = np.log(np.sum(after**2) / np.sum(before**2))
    dims = ("tower", "threshold_temperature")
    return dict(
        measured_threshold=(dims, [[_root(angles, curve) for curve in curves] for curves in growth]),
        predicted_threshold=(
            dims, [[theory.reachable_critical_angle(t, c) for t in temperatures] for c in correlations]
        ),
        free_threshold=("threshold_temperature", critical_angle(temperatures)),
        half_threshold=("threshold_temperature", critical_angle(0.5 * temperatures)),
        correlation=("tower", correlations),
        tower=("tower", list(towers)),
        threshold_temperature=("threshold_temperature", temperatures),
    )  # fmt: skip


def _least_stable_starts(start, angles, tightness: float):
    """Parameters [angle, ...] with the means at every angle and the least stable pair of reachable deviations along
    their great circle; the frames; the largest kernel eigenvalue over n‖μ‖²; the pair's correlation."""
    params, features = [], [_features(*tower) for tower in zip(*start, strict=True)]
    *pair, correlation = theory.least_stable_pair(*features)
    means = [np.asarray(o).mean(axis=0) for o in _outputs(*start)]
    norms = [np.linalg.norm(m) for m in means]
    axis, other = (m / r for m, r in zip(means, norms, strict=True))
    directions = [(axis, np.cos(angle) * axis + np.sin(angle) * other) for angle in angles]
    frames, fastest = [theory.great_circle_frames(*d) for d in directions], 0.0
    for m, tower in enumerate(start[1]):
        mean = features[m].mean(axis=0)
        deviation = pair[m] * len(pair[m]) ** 0.5 * norms[m] / tightness
        weights = np.linalg.lstsq(features[m] - mean[None, :], deviation, rcond=1e-9)[0]
        old, tangents = np.asarray(tower["out"]["kernel"]), [frame[m][:, 0] for frame in frames]
        kernels = np.stack([old + np.outer(weights - old @ t, t) for t in tangents])
        biases = np.stack([norms[m] * d[m] for d in directions]) - mean @ kernels
        tower = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(angles), *leaf.shape)), tower)
        params.append(tower | dict(out=dict(kernel=jnp.asarray(kernels), bias=jnp.asarray(biases))))
        largest = np.linalg.norm(features[m] - mean[None, :], 2) ** 2 / (len(deviation) * norms[m] ** 2)
        fastest = max(fastest, largest)
    return tuple(params), frames, fastest, correlation


def _features(graph, params, inputs) -> np.ndarray:
    """What the output layer of a tower sees, [n, fan_in]."""
    for layer in nnx.merge(graph, params).hidden:
        inputs = nnx.relu(layer(inputs))
    return np.asarray(inputs)


def _root(angles, curve) -> float:
    """Where the growth changes sign, by monotone cubic interpolation; NaN unless it does so once."""
    from scipy.interpolate import PchipInterpolator

    roots = PchipInterpolator(angles, curve).roots(extrapolate=False)
    return float(roots[0]) if len(roots) == 1 else np.nan


def _runs(config: Config) -> list[dict]:
    """The trained runs: a base for each optimizer, and what differs from it in one factor."""
    base = dict(encoder=sim.MLP(WIDTH), temperature=TEMPERATURE, tightness=40.0, rate_factor=1.0)
    factors = {"base": {}} | {f"τ = {t:g}": dict(temperature=t) for t in config.temperatures}
    if config.more_factors:
        factors |= {f"width {w}": dict(encoder=sim.MLP(w), rate_factor=WIDTH / w) for w in (16, 256)}
        factors |= {f"{d} hidden layers": dict(encoder=sim.MLP(WIDTH, depth=d)) for d in (2, 3)}
        factors |= {"linear": dict(encoder=sim.Linear())}
        factors |= {f"tightness {t:g}": dict(tightness=t) for t in (10.0, 160.0)}
        factors |= {f"rate × {r:g}": dict(rate_factor=r) for r in (0.1, 10.0)}
    runs = [base | change | dict(factor=name, optimizer=o) for o in ("adam", "sgd") for name, change in factors.items()]
    runs.append(base | dict(encoder=sim.Table(), rate_factor=15.0, factor="free table", optimizer="sgd"))
    for run in runs:
        # SGD compresses at a rate ∝ 1/τ², and at one ∝ width: steps are comparable between the factors.
        plain = 1e-3 if run["optimizer"] == "adam" else 0.02 * (run["temperature"] / TEMPERATURE) ** 2
        run["rate"] = plain * run.pop("rate_factor")
    return runs


def _training(config: Config) -> dict:
    """Trained from 90° in float32, over (run, seed, train_step): variance along the gap and in the mean direction, over
    the start's; ln growth of the common mode across per ln fall along, over the free −2τ, when along first is < e^−0.3.
    """
    runs = _runs(config)
    steps = [0, *np.unique(np.round(np.geomspace(1, config.steps, 40)).astype(int)).tolist()]
    along, mean_direction = (np.empty((len(runs), config.seeds, len(steps))) for _ in range(2))
    across_per_along = np.empty((len(runs), config.seeds))
    groups = {}
    for k, run in enumerate(runs):
        groups.setdefault((run["encoder"], run["optimizer"]), []).append(k)
    for (encoder, optimizer), numbers in groups.items():  # one compilation for each
        settings = dict(angle=np.pi / 2, pairs=64, dtype="float32")
        many = [(k, seed) for k in numbers for seed in range(config.seeds)]
        starts = [
            _start(encoder, sim.LatentPairs(), tightness=runs[k]["tightness"], seed=config.seed + seed, **settings)
            for k, seed in many
        ]
        temperature, rate = (jnp.float32([runs[k][name] for k, _ in many]) for name in ("temperature", "rate"))
        way = *_stack(starts), temperature, rate, jnp.array(steps)
        for (k, seed), *outputs in zip(many, *_descend(*way, optimizer=getattr(optax, optimizer)), strict=True):
            spreads = np.array([_spreads(*pair) for pair in zip(*map(np.asarray, outputs), strict=True)])
            logs = np.log(spreads / spreads[:1])
            along[k, seed], mean_direction[k, seed] = np.exp(logs[:, 0]), np.exp(logs[:, 1])
            first = np.argmax(logs[:, 0] < -0.3) or -1
            across_per_along[k, seed] = logs[first, 2] / logs[first, 0] / (-2 * runs[k]["temperature"])
    return dict(
        along=(("run", "seed", "train_step"), along),
        mean_direction=(("run", "seed", "train_step"), mean_direction),
        across_per_along=(("run", "seed"), across_per_along),
        factor=("run", [run["factor"] for run in runs]),
        optimizer=("run", [run["optimizer"] for run in runs]),
        run_temperature=("run", [run["temperature"] for run in runs]),
        train_step=("train_step", steps),
    )


def _spreads(x, y) -> tuple[float, float, float]:
    """Variance along the gap and in the mean direction, averaged over modalities, and that of (a + b) across."""
    rows = [r.astype(float) / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y)]
    means = [r.mean(axis=0) for r in rows]
    gap = (means[1] - means[0]) / np.linalg.norm(means[1] - means[0])
    a, b = (r - m[None, :] for r, m in zip(rows, means, strict=True))
    across = (a + b) @ theory.great_circle_frames(*means)[0][:, 1:]
    both = np.concatenate([a, b])
    return np.mean((both @ gap) ** 2), np.mean(both**2), np.mean(across**2)


def judge(data) -> list[sim.Row]:
    """Rates by the kernel, mixing of outputs, thresholds; then what holds in training and what does not."""

    def identity(measured, predicted, tolerance):
        return sim.Check("identity", np.asarray(predicted), np.asarray(measured), tolerance)

    def mlp(width, prediction="predicted"):
        here = data.sel(width=width)
        return identity(here.mlp_measured, here[f"mlp_{prediction}"], 3e-3)

    def slope(depth, exponent):
        here = data.sel(depth=depth)
        mean = here.mixing.mean("mixing_seed").values
        return sim.Check("slope", np.array(exponent), mean, 0.1, at=here.mixing_width.values.astype(float))

    def threshold(towers, prediction, tolerance=1e-3):
        here = data.sel(tower=towers)
        predicted = data[prediction].broadcast_like(here.measured_threshold).transpose("tower", ...).sel(tower=towers)
        return identity(here.measured_threshold, predicted, tolerance)

    def trained(values, **where):
        chosen = np.logical_and.reduce([data[name].values == value for name, value in where.items()])
        return values.isel(run=chosen).transpose("run", "seed", ...).values

    def upper(values):
        return np.max(values.mean(axis=1) + 4 * values.std(axis=1, ddof=1) / values.shape[1] ** 0.5)

    def free_ratio(factor, optimizer, times=1.0):
        measured = trained(data.across_per_along, factor=factor, optimizer=optimizer).mean()
        return identity([measured], [times], 0.03)

    def falls(values):
        each = ((name, optimizer) for name in _temperature_names(data) for optimizer in ("adam", "sgd"))
        lowest = [trained(values, factor=name, optimizer=optimizer).min(axis=2) for name, optimizer in each]
        return sim.Check("absolute", 0.0, max(map(upper, lowest)), 0.95)

    cold, *_, hot = _temperature_names(data)

    def at_the_end(values, bound, factor=cold):
        return sim.Check("absolute", 0.0, upper(trained(values, factor=factor, optimizer="adam")[..., -1]), bound)

    narrow, wide = int(data.width.min()), int(data.width.max())
    exponents = data.predicted_exponent.values
    linear, noisy, others = ["linear, SGD"], ["linear, noisy inputs, SGD"], ["linear, Adam", "MLP, SGD"]
    return [
        sim.Row(
            "deviations of linear towers after SGD against their kernel's prediction",
            identity(data.linear_measured, data.linear_predicted, 1e-5),
            identity(data.linear_measured, data.linear_mean_eigenvalue, 1e-5),
            "every mode at the kernel's mean eigenvalue (the free flow in another unit of time)",
        ),
        sim.Row(
            f"deviations of MLP towers of width {wide} against the kernel of the start",
            mlp(wide),
            mlp(wide, "mean_eigenvalue"),
            "every mode at the kernel's mean eigenvalue",
            outside=mlp(narrow),
            condition=f"the network is wide: at width {narrow} its kernel moves",
        ),
        *(
            sim.Row(
                f"mixing of outputs against width, {depth} hidden layer{'s' if depth > 1 else ''}",
                slope(depth, exponent),
                slope(depth, -1.0),
                "mixing ∝ 1/width",
            )
            for depth, exponent in zip(data.depth.values, exponents, strict=True)
        ),
        sim.Row(
            "critical angle of linear towers that reach one common deviation, SGD",
            threshold(linear, "free_threshold"),
            threshold(linear, "half_threshold"),
            "sin²θ = τ cos θ, a factor 2 missing",
        ),
        sim.Row(
            "critical angle of linear towers on noisy inputs, SGD: the free one at ρτ",
            threshold(noisy, "predicted_threshold"),
            threshold(noisy, "free_threshold"),
            "the free critical angle, at τ",
        ),
        sim.Row(
            "critical angle of linear towers under Adam and of MLP towers under SGD",
            threshold(others, "free_threshold", 3e-3),
            threshold(others, "half_threshold", 3e-3),
            "sin²θ = τ cos θ, a factor 2 missing",
        ),
        sim.Row(
            "growth across per fall along the gap, over the free flow's 2τ",
            free_ratio("free table", "sgd"),
            free_ratio("free table", "sgd", times=2.0),
            "growth across twice as fast",
            outside=free_ratio("base", "adam"),
            condition="embeddings are free: towers have a ratio of their own",
        ),
        sim.Row(
            "least variance along a 90° gap over its start, every τ, Adam and SGD",
            falls(data.along),
            falls(data.mean_direction),
            "the mean direction in place of the gap",
        ),
        sim.Row(
            f"variance along the gap after training over its start, {cold}",
            at_the_end(data.along, 1.0),
            at_the_end(data.mean_direction, 1.0),
            "the mean direction in place of the gap",
        ),
        sim.Row(
            f"growth of the variance along the gap over the mean direction's, {cold}",
            at_the_end(data.along / data.mean_direction, 0.4),
            at_the_end(data.mean_direction / data.mean_direction, 0.4),
            "the mean direction in place of the gap",
            outside=at_the_end(data.along / data.mean_direction, 0.4, hot),
            condition=f"the temperature is small: not at {hot}, where the gap closes",
        ),
    ]


def draw(data):
    """Laws, mixing and thresholds (top); histories and factors of trained towers (bottom)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(_figures.TWO_COLUMNS, 5.6), layout="constrained")
    (law, wide, mixing), (threshold, history, factors) = axes
    colors, grey = _figures.COLORS, _figures.CONTROL
    along = data.isel(direction=0)
    for prediction, color, size in (("mean_eigenvalue", grey, 2), ("predicted", colors[0], 3)):
        predicted = along[f"linear_{prediction}"].values.ravel()
        law.plot(predicted, along.linear_measured.values.ravel(), ".", color=color, markersize=size)
    law.axline((0, 0), slope=1, color="black", linewidth=0.8)
    law.set(xlabel="predicted deviation", ylabel="measured deviation", title="(a) linear, along gap")
    for prediction, style, color in (("mean_eigenvalue", ":", grey), ("predicted", "o-", colors[0])):
        error = np.abs(data.mlp_measured - data[f"mlp_{prediction}"]).max(("modality", "pair", "direction"))
        wide.plot(data.width, error.transpose("width", "case"), style, color=color)
    wide.set(ylabel="largest error", title="(b) MLP towers")
    for color, depth, exponent in zip(colors, data.depth.values, data.predicted_exponent.values, strict=False):
        here = data.sel(depth=depth)
        mean, w, seeds = here.mixing.mean("mixing_seed"), here.mixing_width, here.sizes["mixing_seed"]
        error = 2 * here.mixing.std("mixing_seed", ddof=1) / seeds**0.5
        mixing.errorbar(w, mean, error, fmt="o", color=color, label=f"{depth} hidden layer" + "s" * int(depth > 1))
        mixing.plot(w, mean[-1] * (w / w[-1]) ** exponent, color="black", linewidth=0.8)
        mixing.plot(w, mean[-1] * w[-1] / w, ":", color=grey)
    mixing.set(ylabel="mixing of outputs", title="(c) tangent kernel")
    mixing.legend()
    tau = data.threshold_temperature.values
    for i, (tower, marker) in enumerate(zip(data.tower.values, "os^x", strict=True)):
        here = data.sel(tower=tower)
        threshold.plot(tau, np.degrees(here.measured_threshold), marker, color=colors[i], label=tower)
        threshold.plot(tau, np.degrees(here.predicted_threshold), color=colors[i], linewidth=0.8)
    threshold.plot(tau, np.degrees(data.half_threshold), "--", color=grey)
    threshold.set(xlabel="temperature τ", ylabel="critical angle (degrees)", title="(d) threshold", ylim=(0, 85))
    threshold.legend(loc="upper left")
    for axis, ticks in ((wide, data.width.values), (mixing, np.array([64, 256, 1024])), (threshold, tau)):
        axis.set(xscale="log", xticks=ticks, xticklabels=[f"{t:g}" for t in ticks])
        axis.minorticks_off()
    for axis in (wide, mixing):
        axis.set(xlabel="width", yscale="log")
    for color, name in zip(colors, _temperature_names(data), strict=False):
        for optimizer, style in (("adam", "-"), ("sgd", "--")):
            here = data.along.isel(run=(data.factor.values == name) & (data.optimizer.values == optimizer))
            values = np.log10(here.isel(run=0, train_step=slice(1, None)).transpose("seed", "train_step").values)
            _figures.band(history, data.train_step.values[1:], values, color, name if style == "-" else None)
            history.lines[-1].set_linestyle(style)
    history.axhline(0.0, color=grey, linewidth=0.8)
    history.set(xscale="log", xlabel="step", ylabel="log₁₀ (variance along gap / start)", title="(e) MLP from 90°")
    history.legend()
    names = list(dict.fromkeys(data.factor.values))
    for optimizer, color, shift in (("adam", colors[0], -0.15), ("sgd", colors[1], 0.15)):
        here = data.isel(run=data.optimizer.values == optimizer)
        error = 2 * here.across_per_along.std("seed", ddof=1) / here.sizes["seed"] ** 0.5
        at = [names.index(f) + shift for f in here.factor.values]
        factors.errorbar(here.across_per_along.mean("seed"), at, xerr=error, fmt="o", color=color, label=optimizer)
    factors.axvline(1.0, color="black", linewidth=0.8)
    factors.set(yticks=range(len(names)), yticklabels=names, title="(f) against free flow")
    factors.set(xscale="symlog", xlim=(-3, 100), xticks=[-1, 0, 1, 10], xticklabels=["−1", "0", "1", "10"])
    factors.set_xlabel("(across / along) / 2τ")
    factors.invert_yaxis()
    factors.legend(loc="upper right")
    return figure


def _temperature_names(data) -> list[str]:
    """The factors that are a temperature, in order."""
    return [f"τ = {t:g}" for t in np.unique(data.run_temperature) if f"τ = {t:g}" in data.factor.values]
