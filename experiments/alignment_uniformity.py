"""P9: with many pairs the loss becomes alignment plus uniformity; how many is decided by the temperature."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import _figures
from simulator.theory import limits

CLAIM = sim.Claim(
    id="P9",
    title="Alignment and uniformity",
    statement=(
        "For independent pairs L − log n tends to −E⟨x,y⟩/τ + E log E e^{⟨x,y⟩/τ}, whose optimum is aligned, uniform and "
        "without a gap, C_d(1/τ) = −1/τ + log[Γ(d/2)(2τ)^{d/2−1} I_{d/2−1}(1/τ)]. The mean deviates by A/n, with A known: "
        "faster than the O(n^{−1/2}) of the theorem. The limit speaks for batches n ≫ e^{−C} only: e^{90} for d = 512 and "
        "τ = 0.01."
    ),
    source="Wang & Isola 2020, Thm 1; the correction A, gaps and concentration derived here: simulator/theory/limits.py",
    assumes="independent pairs, unit rows, one distribution for both modalities, temperature held",
    expected=("holds", "holds", "holds", "holds", "holds if"),
)
CAPTION = (
    "(a) Mean loss less log n of aligned uniform pairs against n (points, ± 4 standard errors), log n + C + A/n (lines) and "
    "its limit C (dotted); dashed grey: L = 0, below which nothing can lie. (b) Deviation from the limit against n; lines: "
    "A/n; grey: A without its variance term (dashed), and slope −½ (dotted). (c) Loss less log n at the largest n against what "
    "is wrong with the pairs (d = 3, τ = 0.2): a gap of parallel modalities γ, an angle between partners α/π, a "
    "concentration κ/10; lines: predicted; grey: √(1−γ²) for 1−γ². (A gap keeps one dimension for itself even at γ = 0.)"
)
DIMENSIONS, TEMPERATURE = 3, 0.2  # of the pairs that are not optimal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """(d, τ) of aligned uniform pairs, the last with too few pairs for the limit; every n; flaws at the largest n.

    At n pairs there are draws · max(1, most/n) draws, most the largest n."""

    optima: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 1.0), (3, 0.1), (8, 1 / 3), (16, 0.125))
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    half_gaps: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
    angles: tuple[float, ...] = (0.3, 0.8, 1.2)
    concentrations: tuple[float, ...] = (1.0, 3.0, 8.0)
    draws: int = 64
    seed: int = 0


QUICK = Config(sizes=(64, 128, 256, 512), half_gaps=(0.0, 0.4, 0.8), angles=(0.8,), concentrations=(3.0,))


def uniform_rows(rng, shape) -> np.ndarray:
    """Uniform points on the unit sphere, [..., d]."""
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs_with_gap(rng, num_pairs: int, half_gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Aligned rows, uniform across a gap, with ∓γ along it, in DIMENSIONS dimensions in all."""
    across = np.sqrt(1 - half_gap**2) * uniform_rows(rng, (num_pairs, DIMENSIONS - 1))
    along = np.full((num_pairs, 1), half_gap)
    return np.concatenate([across, -along], axis=1), np.concatenate([across, along], axis=1)


def pairs_at_angle(rng, num_pairs: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Uniform rows with partners at a fixed angle, in a random direction from them."""
    x = uniform_rows(rng, (num_pairs, DIMENSIONS))
    tangent = rng.normal(size=x.shape)
    tangent -= np.sum(tangent * x, axis=1, keepdims=True) * x
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return x, np.cos(angle) * x + np.sin(angle) * tangent


def pairs_concentrated(rng, num_pairs: int, concentration: float) -> tuple[np.ndarray, np.ndarray]:
    """Aligned von Mises–Fisher rows on the sphere of R³, by inverting the distribution of the height."""
    share = rng.uniform(size=(num_pairs, 1))
    height = 1 + np.log(share + (1 - share) * np.exp(-2 * concentration)) / concentration
    rows = np.concatenate([np.sqrt(1 - height**2) * uniform_rows(rng, (num_pairs, 2)), height], axis=1)
    return rows, rows


@jax.jit
def _loss(x, y, temperature):
    return sim.info_nce(x, y, temperature=temperature)


def mean_loss(sample, num_pairs: int, temperature: float, draws: int, seed) -> tuple[float, float]:
    """Mean loss less log n over independent draws of n pairs, and its standard error; sample(rng, n) -> (x, y)."""
    rng = np.random.default_rng(seed)
    losses = np.array([float(_loss(*map(jnp.asarray, sample(rng, num_pairs)), temperature)) for _ in range(draws)])
    return losses.mean() - np.log(num_pairs), losses.std(ddof=1) / draws**0.5


def measure(config: Config, *, progress: bool = False):
    """Mean losses of optimal pairs over [optimum, size] and of flawed ones over [flaw] at the largest size."""
    import xarray as xr
    from tqdm import tqdm

    values = {}
    with jax.enable_x64(True):
        for part in tqdm((_optimal, _flawed), disable=not progress, desc="losses", unit="part"):
            values |= part(config)
    return xr.Dataset(values, coords=dict(size=list(config.sizes)))


def _optimal(config: Config) -> dict:
    """Aligned uniform pairs: mean loss less log n with its standard error, [optimum, size]; C, A and near misses."""
    shape = (len(config.optima), len(config.sizes))
    found = np.empty((2, *shape))
    for i, j in np.ndindex(shape):
        (dimensions, temperature), n = config.optima[i], config.sizes[j]

        def sample(rng, n, dimensions=dimensions):
            rows = uniform_rows(rng, (n, dimensions))
            return rows, rows

        draws = config.draws * max(1, config.sizes[-1] // n)
        found[:, i, j] = mean_loss(sample, n, temperature, draws, [config.seed, i, j])
    laws = [limits.loss_limit(d, t) for d, t in config.optima]
    next_dimension = [limits.loss_limit(d + 1, t) for d, t in config.optima]
    dims, one = ("optimum", "size"), ("optimum",)
    return dict(
        optimal=(dims, found[0]),
        optimal_error=(dims, found[1]),
        limit=(one, np.array([law.limit for law in laws])),
        correction=(one, np.array([law.correction for law in laws])),
        # Var(rival)/M² = e^{ℓ(2s) − 2ℓ(s)} − 1 is left out: e^{−C} − 1 remains.
        without_variance=(one, np.array([np.exp(-law.limit) - 1 for law in laws])),
        next_dimension=(one, np.array([law.limit for law in next_dimension])),
        dimensions=(one, np.array([d for d, _ in config.optima])),
        temperature=(one, np.array([t for _, t in config.optima])),
    )


def _flawed(config: Config) -> dict:
    """Pairs with a gap, an angle or a concentration: mean loss less log n at the largest size, predictions and near
    misses, [flaw]."""
    n, rows = config.sizes[-1], []

    def gap(half_gap):
        # A gap shrinks the cosines across it to 1 − γ²; were it one modality's alone, to √(1 − γ²).
        square = 1 - half_gap**2
        return [limits.loss_limit(DIMENSIONS - 1, TEMPERATURE / shrink) for shrink in (square, square**0.5)]

    def angle(size):
        return [limits.loss_limit(DIMENSIONS, TEMPERATURE, pair_cosine=np.cos(a)) for a in (size, size / 2)]

    def concentration(size):
        return [limits.loss_limit(DIMENSIONS, TEMPERATURE, concentration=kappa) for kappa in (size, 0.0)]

    kinds = (
        (gap, pairs_with_gap, config.half_gaps),
        (angle, pairs_at_angle, config.angles),
        (concentration, pairs_concentrated, config.concentrations),
    )
    for predict, pairs, sizes in kinds:
        for size in sizes:
            sample = lambda rng, n, pairs=pairs, size=size: pairs(rng, n, size)  # noqa: E731
            mean, error = mean_loss(sample, n, TEMPERATURE, config.draws, [config.seed, 100, len(rows)])
            values = [law.limit + law.correction / n for law in predict(size)]
            rows.append((predict.__name__, size, mean, error, *values))
    names = ("flaw_kind", "flaw_size", "flawed", "flawed_error", "flawed_predicted", "flawed_near_miss")
    return {name: (("flaw",), list(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def judge(data) -> list[sim.Row]:
    """Limit and correction, their order, flawed pairs, the optimal gap, and the range of the limit."""
    size, enough = data["size"].values, slice(0, -1)  # the last optimum has too few pairs
    good = data.isel(optimum=enough)
    last = good.isel(size=-1)

    def corrected(correction):
        predicted = (last.limit + last[correction] / size[-1]).values
        return sim.Check("monte_carlo", predicted, last.optimal.values, 4.0, last.optimal_error.values)

    def slope(predicted, pick):
        excess = (good.optimal - good.limit).transpose("optimum", "size").values
        checks = [sim.Check("slope", predicted, values, 0.1, at=size) for values in excess]
        return pick(checks, key=lambda check: check.error())

    def flawed(predicted, kind=None):
        here = data if kind is None else data.isel(flaw=np.flatnonzero(data.flaw_kind.values == kind))
        return sim.Check("monte_carlo", here[predicted].values, here.flawed.values, 4.0, here.flawed_error.values)

    gap = data.isel(flaw=np.flatnonzero(data.flaw_kind.values == "gap"))
    at = gap.flaw_size.values

    def rises(values):
        return sim.Check("monotone", np.ones(len(at) - 1), values, 4.0, gap.flawed_error.values, at)

    pairs_needed = np.exp(-data.limit)
    ratio = (data["size"] / pairs_needed).transpose("optimum", "size").values

    def limit_alone(name, chosen):
        predicted = data[name].values[:, None] * np.ones((1, len(size)))
        return sim.Check("absolute", predicted[chosen], data.optimal.values[chosen], 0.05)

    wide, narrow = ratio >= 25, ratio <= 1  # A/n < e^{−C}/n, so at most .04 for the first
    near = [flawed("flawed_near_miss", kind) for kind in ("gap", "angle", "concentration")]
    return [
        sim.Row(
            f"mean loss less log n of aligned uniform pairs against C + A/n, n = {size[-1]}",
            corrected("correction"),
            corrected("without_variance"),
            "A without the variance of the denominator",
        ),
        sim.Row(
            "deviation from the limit C over n, worst (d, τ)",
            slope(-1.0, max),
            slope(-0.5, min),
            "order ½, as in the theorem",
        ),
        sim.Row(
            f"the same with a gap, with partners at an angle, and concentrated, n = {size[-1]}",
            flawed("flawed_predicted"),
            min(near, key=lambda check: check.error()),
            "the closest of: √(1−γ²) for 1−γ²; half the angle; no concentration",
        ),
        sim.Row(
            "the loss rises with the gap of parallel modalities",
            rises(gap.flawed.values),
            rises(gap.flawed.values + (1 - 2 * at**2) / TEMPERATURE),
            "uniformity alone, without alignment",
        ),
        sim.Row(
            "loss less log n against the limit alone, n ≥ 25 e^{−C}",
            limit_alone("limit", wide),
            limit_alone("next_dimension", wide),
            "the sphere of one dimension more",
            outside=limit_alone("limit", narrow),
            condition="n ≫ e^{−C}; below e^{−C} pairs the limit asks for a negative loss",
        ),
    ]


def draw(data):
    """Losses against n, deviations against n, losses of flawed pairs."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(_figures.TWO_COLUMNS, 3.0), layout="constrained")
    grey, size = _figures.CONTROL, data["size"].values
    fine = np.geomspace(size[0] / 1.3, size[-1] * 1.3, 100)
    for i, color in zip(range(data.sizes["optimum"]), _figures.COLORS, strict=False):
        here = data.isel(optimum=i)
        limit, correction = float(here.limit), float(here.correction)
        label = f"d = {int(here.dimensions)}, τ = {float(here.temperature):.3g}"
        # Where A/n is no longer small the line would leave the range in which it was derived.
        near = fine > 1.5 * correction
        left.plot(fine[near], limit + correction / fine[near], color=color, linewidth=0.9)
        left.axhline(limit, color=color, linestyle=":", linewidth=0.8)
        left.errorbar(size, here.optimal, 4 * here.optimal_error, fmt="o", color=color, label=label)
        middle.plot(fine[near], correction / fine[near], color=color, linewidth=0.9)
        middle.plot(fine[near], float(here.without_variance) / fine[near], "--", color=grey, linewidth=0.7, zorder=0)
        middle.errorbar(size, here.optimal - limit, 4 * here.optimal_error, fmt="o", color=color)
    left.plot(fine, -np.log(fine), "--", color=grey)
    left.set(xscale="log", xlabel="pairs n", ylabel="loss − log n (nats)")
    start = float((data.optimal - data.limit).isel(optimum=0, size=0))
    middle.plot(fine, start * (size[0] / fine) ** 0.5, ":", color=grey, label="slope −½")
    middle.set(xscale="log", yscale="log", xlabel="pairs n", ylabel="deviation from C (nats)")
    middle.legend(loc="lower left")
    units = dict(gap=(1.0, "gap γ"), angle=(np.pi, "angle/π"), concentration=(10.0, "κ/10"))
    for color, (kind, (unit, label)) in zip(_figures.COLORS, units.items(), strict=False):
        here = data.isel(flaw=np.flatnonzero(data.flaw_kind.values == kind))
        at = here.flaw_size.values
        settings, reach = dict(temperature=TEMPERATURE), np.linspace(0 if kind == "gap" else 1e-3, at.max(), 80)
        laws = [
            limits.loss_limit(DIMENSIONS - 1, TEMPERATURE / (1 - v**2)) if kind == "gap"
            else limits.loss_limit(DIMENSIONS, pair_cosine=np.cos(v), **settings) if kind == "angle"
            else limits.loss_limit(DIMENSIONS, concentration=v, **settings)
            for v in reach
        ]  # fmt: skip
        right.plot(reach / unit, [w.limit + w.correction / size[-1] for w in laws], color=color, linewidth=0.9)
        right.errorbar(at / unit, here.flawed, 4 * here.flawed_error, fmt="o", color=color, label=label)
        if kind == "gap":
            right.plot(at / unit, here.flawed_near_miss, "x", color=grey)
    right.set(xlabel="size of the flaw", ylabel="loss − log n (nats)")
    right.legend(loc="upper right")
    for axis in (left, middle):
        axis.set_xticks(size[::2], [f"{n}" for n in size[::2]])
        axis.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    for axis, letter in zip((left, middle, right), "abc", strict=True):
        axis.set_title(f"({letter})", loc="left")
    return figure
