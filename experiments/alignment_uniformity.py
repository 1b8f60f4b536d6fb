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
    "A/n; grey: A without its variance term (dashed), and slope −½ (dotted). (c) Loss less log n at n = {n} against what "
    "is wrong with the pairs (d = 3, τ = {tau:g}): a gap of parallel modalities γ, an angle between partners α/π, a "
    "concentration κ/10; lines: predicted; grey: √(1−γ²) for 1−γ²."
).format(n="the largest", tau=0.2)
DIMENSIONS, TEMPERATURE = 3, 0.2  # of the pairs that are not optimal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """(d, τ) of aligned uniform pairs, the last with too few pairs for the limit; every n; flaws at the largest n.

    At n pairs there are draws · max(1, most/n) draws, most the largest n."""

    optima: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 1.0), (3, 0.1), (8, 1 / 3), (16, 0.125))
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    half_gaps: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
    angles: tuple[float, ...] = (0.3, 0.8, 1.6)
    concentrations: tuple[float, ...] = (1.0, 3.0, 8.0)
    draws: int = 96
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
    n = config.sizes[-1]
    across = DIMENSIONS - 1
    flaws = []
    for half_gap in config.half_gaps:
        law = lambda shrink: limits.loss_limit(across, TEMPERATURE / shrink)  # noqa: E731
        square = 1 - half_gap**2
        flaws.append(("gap", half_gap, functools.partial(pairs_with_gap, half_gap=half_gap), law(square), law(square**0.5)))
    for angle in config.angles:
        law = lambda c: limits.loss_limit(DIMENSIONS, TEMPERATURE, pair_cosine=c)  # noqa: E731
        near = np.cos(angle / 2)  # the mean of the partners, not one seen from the other
        flaws.append(("angle", angle, functools.partial(pairs_at_angle, angle=angle), law(np.cos(angle)), law(near)))
    for kappa in config.concentrations:
        law = lambda k: limits.loss_limit(DIMENSIONS, TEMPERATURE, concentration=k)  # noqa: E731
        flaws.append(("concentration", kappa, functools.partial(pairs_concentrated, concentration=kappa), law(kappa), law(0.0)))
    rows = []
    for i, (kind, size, sample, law, near) in enumerate(flaws):
        mean, error = mean_loss(sample, n, TEMPERATURE, config.draws, [config.seed, 100, i])
        rows.append((kind, size, mean, error, law.limit + law.correction / n, near.limit + near.correction / n))
    names = ("flaw_kind", "flaw_size", "flawed", "flawed_error", "flawed_predicted", "flawed_near_miss")
    alignment = [limits.loss_limit(across, TEMPERATURE).limit + 1 / TEMPERATURE for _ in config.half_gaps]
    # What uniformity alone would say of a gap: log E exp over all pairs, the −γ²/τ of the gap included.
    apart = [
        limits.loss_limit(across, TEMPERATURE / (1 - g**2)).limit + (1 - 2 * g**2) / TEMPERATURE
        for g in config.half_gaps
    ]  # fmt: skip
    del alignment
    return {name: (("flaw",), list(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)} | dict(
        uniformity_alone=(("half_gap",), np.array(apart))
    )
