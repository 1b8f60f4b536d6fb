"""P4: a gap and a learned temperature keep a quantity constant; which one depends on how both are parametrised."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import closest, equal, equals_one
from experiments.setups.trends import spread
from simulator.losses import normalize_rows
from simulator.theory import invariants
from simulator.training.flow import velocity

CLAIM = sim.Claim(
    id="P4",
    title="Closing with a learned temperature",
    summary="With a learned temperature a quantity is conserved, which fixes how the gap closes.",
    statement=(
        "With one scalar γ for both modalities and s = 1/τ = e^ν, gradient flow conserves γ s² e^{−γ²/2} whatever the "
        "features do. Other speeds κ of ν and other parametrisations s = h(ν) conserve ln γ − γ²/2 + (2/κ) ∫ s/h'² ds; rows "
        "that move on the sphere by themselves conserve ln γ + (1/κ) ∫ s/h'² ds. So the closing depends on the "
        "parametrisation: γ ~ 1/s², 1/s, e^{−s²}, or, with τ itself learned, not to zero at all."
    ),
    source="Yaras et al. 2024 (arXiv 2412.07909); all but the first sentence derived here: simulator/theory/invariants.py",
    assumes="parallel modalities; continuous time, no momentum; pairs that can all be matched",
    expected=dict.fromkeys(("shared scalar", "gap left, shared", "gap left, rows", "integrator"), "holds")
    | {"published invariant": "holds if", "equivalent rows": "holds if"},
)
CAPTION = (
    "(a) Gap against time when one scalar γ is learned with the scale s = h(ν), κ = 1, and predicted from s alone; "
    "for s = exp ν also with rows that move by themselves. (b) Relative change of what should be constant for s = "
    "exp ν, the largest of three seeds (floor 10⁻¹⁰): γ s² exp(−γ²/2) of Yaras et al. with one shared scalar; γ s "
    "with rows that are equivalent, and with random rows; grey, near misses: the first with ν at half speed, and "
    "with rows that move by themselves. (c) Gap against scale for every parametrisation."
)
NAMES = ("exponential", "softplus", "linear", "temperature")
LABELS = ("s = exp ν", "s = softplus ν", "s = ν", "s = 1/ν")
NUM_PAIRS, DIMENSIONS = 8, 8
# From here on γ is lost, and nothing is judged: in the rounding that breaks the symmetry of equivalent rows, or, as a shared
# scalar, because γ² underflows.
RESOLVED = dict(shared=1e-140, equivalent=1e-9, random=1e-9)
EARLIEST = 0.05  # t grows in proportion to t + EARLIEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flows from γ and s, to `end`, with `steps` Runge–Kutta steps per decade of time; steps for the check by halving."""

    half_gap: float = 0.5
    scale: float = 3.0
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    end: float = 1e7
    steps: int = 600
    halvings: tuple[int, ...] = (60, 120, 240, 480)
    halving_end: float = 10.0
    records_per_decade: int = 8
    seeds: int = 3
    seed: int = 0


QUICK = Config(rates=(0.5, 1.0), steps=240, seeds=2)


def scale_of(parameter, which):
    """s = h(ν) of the parametrisation numbered `which` in NAMES."""
    return jax.lax.switch(which, (jnp.exp, jax.nn.softplus, lambda v: v, lambda v: 1 / v), parameter)


def parameter_of(scale: float, which: int) -> float:
    """ν with h(ν) = scale."""
    return (np.log(scale), np.log(np.expm1(scale)), scale, 1 / scale)[which]


def lift(rows, half_gap, sign: float):
    """Unit rows [n, d + 1]: `rows` shrunk to √(1 − γ²), and ±γ along the gap."""
    along = sign * half_gap * jnp.ones_like(rows[:, :1])
    return jnp.concatenate([jnp.sqrt(1 - half_gap**2) * rows, along], axis=1)


def shared_velocity(state, which, rate):
    """Gradient flow of features (e, e'), ln γ and ν: γ̇ = −∂L/∂γ, ν̇ = −κ ∂L/∂ν, and −n ∂L/∂e on the sphere.

    ln γ stands for γ only to keep digits when γ is tiny: its velocity is γ̇/γ."""

    def loss(state):
        x, y, log_gap, parameter = state
        rows = lift(x, jnp.exp(log_gap), -1.0), lift(y, jnp.exp(log_gap), 1.0)
        return sim.info_nce(*rows, temperature=1 / scale_of(parameter, which), similarity="dot")

    dx, dy, dlog, dparameter = jax.grad(loss)(state)
    x, y, log_gap, _ = state
    dx, dy = (-NUM_PAIRS * (d - jnp.sum(d * r, axis=1, keepdims=True) * r) for d, r in ((dx, x), (dy, y)))
    return dx, dy, -dlog * jnp.exp(-2 * log_gap), -rate * dparameter


def row_velocity(state, which, rate):
    """Gradient flow of unit rows, each by itself, and of ν."""
    x, y, parameter = state

    def loss(parameter):
        return sim.info_nce(x, y, temperature=1 / scale_of(parameter, which))

    speeds = velocity(x, y, temperature=1 / scale_of(parameter, which), similarity="cosine", sphere=True)
    return *speeds, -rate * jax.grad(loss)(parameter)


@functools.partial(jax.jit, static_argnames="shared")
def _flow(state, which, rate, widths, steps_between, *, shared: bool):
    """(γ, s) at the end of each stretch of log-time, for a batch of flows."""
    speed = shared_velocity if shared else row_velocity

    def one(state, which, rate):
        def slope(carry):
            time, state = carry
            return time + EARLIEST, jax.tree.map(lambda v: v * (time + EARLIEST), speed(state, which, rate))

        def step(carry, width):
            # Runge–Kutta of order 4, its four stages in a loop: one compilation of the velocity instead of four.
            def stage(found, weights):
                last, total = found
                lead, share = weights
                now = slope(jax.tree.map(lambda a, k: a + lead * width * k, carry, last))
                return (now, jax.tree.map(lambda t, k: t + share * k, total, now)), None

            still = jax.tree.map(jnp.zeros_like, carry)
            weights = (jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([1.0, 2.0, 2.0, 1.0]) / 6)
            total = jax.lax.scan(stage, (still, still), weights)[0][1]
            time, state = jax.tree.map(lambda a, k: a + width * k, carry, total)
            return time, (normalize_rows(state[0]), normalize_rows(state[1]), *state[2:])

        def stretch(carry, width):
            carry = jax.lax.fori_loop(0, steps_between, lambda _, c: step(c, width), carry)
            state = carry[1]
            half_gap = jnp.exp(state[2]) if shared else 0.5 * (jnp.mean(state[1][:, -1]) - jnp.mean(state[0][:, -1]))
            return carry, (half_gap, scale_of(state[-1], which))

        return jax.lax.scan(stretch, (jnp.zeros(()), state), widths)[1]

    return jax.vmap(one)(state, which, rate)


def flow(starts, which, rates, config: Config, *, shared: bool, steps: int, end: float):
    """(times [T], γ and s [flow, T]), from 0 to `end`, by Runge–Kutta of order 4 with a step proportional to the time.

    starts: unit rows across the gap (x, y) [n, d] for each flow; which, rates: parametrisation and κ of each.
    """
    decades = np.log10((end + EARLIEST) / EARLIEST)
    records = int(np.ceil(decades * config.records_per_decade))
    between = max(1, round(steps / config.records_per_decade))
    width = np.log((end + EARLIEST) / EARLIEST) / (records * between)
    parameters = np.array([parameter_of(config.scale, w) for w in which])
    x, y = (np.stack(side) for side in zip(*starts, strict=True))
    if shared:
        state = (x, y, np.full(len(x), np.log(config.half_gap)), parameters)
    else:
        rows = [np.stack([np.asarray(lift(r, config.half_gap, s)) for r in side]) for side, s in ((x, -1.0), (y, 1.0))]
        state = (*rows, parameters)
    found = _flow(
        state, np.array(which), np.array(rates, float), np.full(records, width), between, shared=shared
    )  # fmt: skip
    times = EARLIEST * np.expm1(width * between * np.arange(records + 1))
    first = np.broadcast_to([[[config.half_gap]], [[config.scale]]], (2, len(x), 1))
    half_gap, scale = np.concatenate([first, np.stack([np.asarray(a) for a in found])], axis=2)
    return times, half_gap, scale


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent random unit rows of both modalities, [n, d] each: nothing is matched at the start."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, NUM_PAIRS, DIMENSIONS))
    return tuple(rows / np.linalg.norm(rows, axis=2, keepdims=True))


def equivalent_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows on a closed curve, the queries shifted along it in every frequency by its own angle: a cyclic symmetry makes all
    rows of a modality equivalent, and a reflection the two modalities, so that all keep one γ."""  # fmt: skip
    rng = np.random.default_rng(seed)
    frequencies = np.arange(1, DIMENSIONS // 2)
    amplitude = np.sqrt(rng.dirichlet(np.ones(len(frequencies)) * 5))
    angles = 2 * np.pi * np.arange(NUM_PAIRS)[:, None] * frequencies[None, :] / NUM_PAIRS
    shift = rng.uniform(0.3, 1.2, size=(1, len(frequencies)))
    x, y = (
        np.pad(
            np.stack([amplitude * f(angle) for f in (np.cos, np.sin)], axis=2).reshape(NUM_PAIRS, -1), ((0, 0), (0, 2))
        )
        for angle in (angles, angles + shift)
    )
    return x, y


def measure(config: Config, *, progress: bool = False):
    """γ and s in time, [seed, parametrisation, rate, time], for a shared scalar, equivalent rows and random rows."""
    import xarray as xr

    from simulator.progress import tqdm

    seeds = range(config.seed, config.seed + config.seeds)
    grid = [(s, w, r) for s in seeds for w in range(len(NAMES)) for r in config.rates]
    which, rates = [w for _, w, _ in grid], [r for _, _, r in grid]
    dims, values = ("seed", "parametrisation", "rate", "time"), {}
    kinds = (("shared", random_rows, True), ("equivalent", equivalent_rows, False), ("random", random_rows, False))
    with jax.enable_x64(True):
        for name, rows, shared in tqdm(kinds, disable=not progress, desc="flows", unit="kind"):
            starts = [rows(s) for s, _, _ in grid]
            settings: dict[str, Any] = dict(shared=shared, steps=config.steps, end=config.end)
            times, half_gap, scale = flow(starts, which, rates, config, **settings)
            shape = (config.seeds, len(NAMES), len(config.rates), len(times))
            values |= {
                f"{name}_half_gap": (dims, half_gap.reshape(shape)),
                f"{name}_scale": (dims, scale.reshape(shape)),
            }
        values |= _halvings(config)
    return xr.Dataset(
        values,
        coords=dict(parametrisation=list(NAMES), rate=list(config.rates), time=times, halving=list(config.halvings)),
        attrs=dict(half_gap=config.half_gap, scale=config.scale),
    )


def _halvings(config: Config) -> dict:
    """Largest drift of the logarithm of the shared invariant, s = e^ν and κ = 1, for fewer and more steps."""
    drifts = []
    for steps in config.halvings:
        settings: dict[str, Any] = dict(shared=True, steps=steps, end=config.halving_end)
        _, half_gap, scale = flow([random_rows(config.seed)], [0], [1.0], config, **settings)
        values = invariants.log_invariant(half_gap[0], scale[0], parametrisation="exponential")
        drifts.append(np.max(np.abs(values - values[0])))
    return dict(halving_drift=(("halving",), np.array(drifts)))


def relative_change(data, kind: str, parametrisation: str, rate: float, law=None) -> np.ma.MaskedArray:
    """I(t)/I(0) of one flow, [seed, time], masked once γ is lost; `law` (γ, s) -> ln I defaults to the predicted
    invariant."""
    here = data.sel(parametrisation=parametrisation, rate=rate)
    half_gap, scale = here[f"{kind}_half_gap"].values, here[f"{kind}_scale"].values
    if law is None:
        settings: dict[str, Any] = dict(parametrisation=parametrisation, rate=rate, shared=kind == "shared")
        law = lambda g, s: invariants.log_invariant(g, s, **settings)
    lost = np.logical_or.accumulate(half_gap <= RESOLVED[kind], axis=1)
    values = law(np.where(lost, 0.5, half_gap), np.where(lost, 1.0, scale))
    return np.ma.masked_array(np.exp(np.where(lost, 0.0, values - values[:, :1])), lost)


def decades(data, kind: str) -> float:
    """Over how many decades of time, from the first record on, γ can be followed in every flow of a kind."""
    time = data.time.values
    flows = [relative_change(data, kind, n, r) for n in NAMES for r in data.rate.values]
    last = min(int((~change.mask).sum(axis=1).min()) for change in flows) - 1
    return float(np.log10(time[last] / time[1]))


def yaras(half_gap, scale):
    """ln(γ s² e^{−γ²/2})."""
    return np.log(half_gap) + 2 * np.log(scale) - half_gap**2 / 2


def judge(data) -> list[sim.Row]:
    """The published invariant, the shared ones, those of rows, the gap that stays, and the integrator."""
    rates, end = data.rate.values.tolist(), np.log10(data.time.values[-1])

    def constant(*changes):
        return equals_one(np.concatenate([change.compressed() for change in changes]), 1e-4)

    def published(kind, rate):
        return constant(relative_change(data, kind, "exponential", rate, yaras))

    def every(kind, law=None, names=NAMES):
        chosen = [
            relative_change(data, kind, name, rate, law and functools.partial(law, name=name, rate=rate))
            for name in names
            for rate in rates
        ]
        return constant(*chosen)

    def missing(half_gap, scale, name, rate):  # without the γ² of the shared scalar
        return np.log(half_gap) + 2 / rate * invariants.scale_potential(scale, name)

    def like_linear(half_gap, scale, name, rate):  # softplus is linear only for large s
        return np.log(half_gap) - half_gap**2 / 2 + scale**2 / rate

    def shared_law(half_gap, scale, name, rate):
        return invariants.log_invariant(half_gap, scale, parametrisation=name, rate=rate)

    direct = data.sel(parametrisation="temperature")
    start = (data.attrs["half_gap"], data.attrs["scale"])
    at_the_end = functools.partial(invariants.half_gap_at_scale, np.inf, start, parametrisation="temperature")
    left, by_rows = (np.array([at_the_end(rate=rate, shared=shared) for rate in rates]) for shared in (True, False))

    def stays(predicted, kind="shared"):
        return equal(predicted, direct[f"{kind}_half_gap"].isel(time=-1), 0.01)

    near = [every("shared", missing), every("shared", like_linear, NAMES[1:2])]
    own = relative_change(data, "random", "exponential", 1.0, yaras)[:, -1]
    drift = np.max(np.abs(relative_change(data, "random", "exponential", 1.0) - 1), axis=1)
    steps = data.halving.values.astype(float)
    return [
        sim.Row(
            "published invariant",
            published("shared", 1.0),
            published("shared", 0.5),
            "ν at half the speed",
            label=f"γ s² e^(−γ²/2) over its start, one scalar γ, s = e^ν, κ = 1, to t = 10^{end:.0f}",
            outside=published("random", 1.0),
            condition="one scalar γ is shared by all rows",
            effect=f"with random rows that move by themselves it grows {spread(own)}-fold by then",
        ),
        sim.Row(
            "shared scalar",
            every("shared"),
            closest(near),
            "the closest of: without γ²/2; softplus taken for linear",
            label=f"invariant over its start, one scalar γ, four parametrisations, κ = {rates}, {decades(data, 'shared'):.1f} decades of t",
        ),
        sim.Row(
            "equivalent rows",
            every("equivalent"),
            every("equivalent", shared_law),
            "the invariant of a shared scalar",
            label=f"invariant over its start, equivalent rows that move by themselves, four parametrisations, κ = {rates}, while γ > 1e-9",
            outside=every("random"),
            condition="all rows keep the same γ",
            effect=f"with random rows its largest relative drift is {spread(drift)} for s = e^ν, κ = 1",
        ),
        sim.Row(
            "gap left, shared",
            stays(left),
            stays(by_rows),
            "the law of rows that move by themselves",
            label="half gap that is left when τ itself is learned, one scalar γ",
        ),
        sim.Row(
            "gap left, rows",
            stays(by_rows, "equivalent"),
            stays(left, "equivalent"),
            "the law of a shared scalar", label="the same for equivalent rows",
        ),
        sim.Row(
            "integrator",
            sim.Check("slope", -4.0, data.halving_drift.values, 0.1, at=steps),  # the next order; 5 % are 0.2
            sim.Check("slope", -3.0, data.halving_drift.values, 0.1, at=steps),
            "order 3", label="drift of the invariant over the number of steps",
        ),
    ]  # fmt: skip


def draw(data):
    """Gap in time, drift of the invariants, gap against scale."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 3.0), layout="constrained")
    grey, colors, time = plotting.CONTROL, plotting.COLORS, data.time.values
    start = (data.attrs["half_gap"], data.attrs["scale"])
    first = data.isel(seed=0).sel(rate=1.0)
    for i, (name, label) in enumerate(zip(NAMES, LABELS, strict=True)):
        here, color = first.sel(parametrisation=name), colors[i]
        for kind, line, fill in (("shared", "-", "full"), ("equivalent", "--", "none")):
            look = dict(linestyle="none", fillstyle=fill) | plotting.series(i)
            settings: dict[str, Any] = dict(parametrisation=name, shared=kind == "shared")
            scale = here[f"{kind}_scale"].values
            predicted = invariants.half_gap_at_scale(scale, start, **settings)
            fine = np.linspace(scale.min(), scale.max(), 200)
            right.plot(fine, invariants.half_gap_at_scale(fine, start, **settings), line, color=color, linewidth=0.8)
            right.plot(scale[i::6], here[f"{kind}_half_gap"][i::6], **look)
            if kind == "shared" or name == "exponential":
                width = 2.5 if name == "softplus" else 0.9  # linear lies on top of it
                left.plot(time[1:], predicted[1:], line, color=color, linewidth=width)
                left.plot(time[1 + i :: 5], here[f"{kind}_half_gap"][1 + i :: 5], **look)
        left.plot([], [], label=label, **plotting.series(i, linestyle="none"))
    for style, label in (("-", "one scalar, predicted"), ("--", "rows, predicted (open: measured)")):
        left.plot([], [], style, color="black", linewidth=0.9, label=label)
    in_time = dict(xscale="log", yscale="log", xlabel="time (units of the flow)", xlim=(1e-2, None))
    left.set(ylabel="half gap γ", ylim=(1e-4, 1), **in_time)
    right.set(yscale="log", xlabel="scale s", ylabel="half gap γ", ylim=(1e-4, 1), xlim=(0, 25))

    curves = (
        ("shared", 1.0, yaras, colors[4], "-", "γ s² exp(−γ²/2), one scalar"),
        ("equivalent", 1.0, None, colors[5], "-", "γ s, equivalent rows"),
        ("random", 1.0, None, "black", "-", "γ s, random rows"),
        ("shared", 0.5, yaras, grey, "--", "the first, κ = ½"),
        ("random", 1.0, yaras, grey, ":", "the first, rows"),
    )
    for kind, rate, law, color, style, label in curves:
        change = np.abs(relative_change(data, kind, "exponential", rate, law) - 1).max(axis=0)
        middle.plot(time[1:], np.maximum(change[1:], 1e-10), style, color=color, linewidth=1.0, label=label)
    middle.axhline(1e-4, color="black", linestyle="-.", linewidth=0.6, label="tolerance")
    middle.set(ylabel="relative change", ylim=(5e-11, 1e13), yticks=10.0 ** np.arange(-9, 2, 3), **in_time)
    middle.legend(loc="upper left")
    plotting.legend_above(figure, left, ncols=6, columnspacing=1.2)
    return plotting.lettered(figure)
