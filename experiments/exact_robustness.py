"""N4: the probability that a noisy gallery keeps its answer is one integral, for any number of classes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from simulator.theory.robustness import two_class_error, two_class_robustness

CLAIM = sim.Claim(
    id="N4",
    title="Exact robustness for any number of classes",
    statement=(
        "Under independent Gaussian noise on every gallery row the squared distances are independent noncentral χ²_d, "
        "so the probability of keeping the answer is ∫ f_j Π (1 − F_k) ds; for two classes it tends to "
        "Φ(Δ/(2σ√(r₁² + r₂² + dσ²))), with an error that falls as 1/d."
    ),
    source="derived here: theory.md N4",
    assumes="independent N(0, σ²) noise on every coordinate of every gallery row; Euclidean nearest neighbour",
    expected=("holds", "holds", "holds", "holds", "holds", "holds if", "holds", "holds"),
)
CAPTION = (
    "Probability of keeping the answer, K classes in d dimensions, nothing fitted. Top left: exact (line) and "
    "measured, ± 4 standard errors (smaller than the marker); grey: noise variance 2σ². Bottom left: their difference "
    "in standard errors, with the limits of the check; grey: the same for the product of two-class probabilities, cut "
    "at ±10. Right: error of the two-class normal formula; lines: Edgeworth's leading term; grey: slope −½."
)
FULL_ENTRIES = 2000  # largest K·d whose noise is drawn coordinate by coordinate
EQUIVALENT_CASE = (10, 3)  # (K, d) of the case that is drawn both ways

# Values of the integral with 25-digit arithmetic: dimensions, σ, distances of the query to the rows, how many rows
# share each, P. The first row is the answer. The test recomputes them.
REFERENCES = (
    (1, 1.0, (0.0, 0.5, 1.5), (1, 2, 1), 0.32939034240806564),
    (2, 0.3, (0.4, 0.6, 0.9), (1, 1, 1), 0.6152696374679809),
    (5, 2.0, (1.0, 3.0, 6.0), (1, 3, 6), 0.34143745752067967),
    (16, 0.1, (0.7, 0.8), (1, 99), 0.07277278185636736),
    (64, 10.0, (40.0, 75.0), (1, 999), 0.20548041866829014),
    (256, 0.1, (1.0, 1.2), (1, 1), 0.8377607803706856),
    (1024, 0.03, (1.0, 1.15, 1.2), (1, 1, 998), 0.9873695862550219),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Cases (K, d, σ, distance to the nearest row in σ, margin of the others in standard deviations)."""

    cases: tuple[tuple[int, int, float, float, float], ...] = (
        (2, 1, 0.01, 2.0, 1.0),
        (100, 1, 1.0, 5.0, 2.0),
        (2, 2, 10.0, 0.0, 1.0),
        (10, 3, 0.1, 1.0, 1.5),
        (30, 8, 0.03, 20.0, 1.0),
        (10, 32, 0.3, 10.0, 0.5),
        (3, 64, 3.0, 10.0, 1.0),
        (2, 512, 0.01, 100.0, 0.5),
        (700, 3, 1.0, 3.0, 2.0),
        (200, 16, 0.2, 5.0, 2.5),
        (30, 128, 10.0, 5.0, 2.0),
        (50, 256, 0.1, 10.0, 2.0),
        (2, 1024, 0.02, 50.0, 1.0),
        (10, 1024, 0.05, 20.0, 2.5),
        (1000, 1024, 0.03, 30.0, 1.5),
    )
    num_draws: int = 1_000_000
    large_dims: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    arguments: tuple[float, ...] = (0.5, 1.0, 1.5)
    noncentrality_per_dim: float = 3.0
    seed: int = 0


QUICK = Config(
    cases=(
        (2, 1, 0.01, 2.0, 1.0),
        (2, 2, 10.0, 0.0, 1.0),
        (10, 3, 0.1, 1.0, 1.5),
        (3, 64, 3.0, 10.0, 1.0),
        (200, 16, 0.2, 5.0, 2.5),
        (2, 1024, 0.02, 50.0, 1.0),
        (1000, 1024, 0.03, 30.0, 1.5),
    ),
    num_draws=100_000,
)


def case_distances(num_classes: int, dimensions: int, nearest: float, margin: float) -> np.ndarray:
    """Distances of a query to its rows in units of σ [K], the nearest first: the squares of the others lie evenly
    between one and two margins beyond, in standard deviations of a difference of two noisy squares."""
    spread = 2 * np.sqrt(2 * nearest**2 + dimensions)
    others = nearest**2 + margin * spread * np.linspace(1.0, 2.0, num_classes - 1)
    return np.sqrt(np.append(nearest**2, others))


def gallery_around(query, distances, rng) -> np.ndarray:
    """Rows at the given distances from a query [1, d], in random directions, [K, d]."""
    directions = rng.normal(size=(len(distances), query.shape[1]))
    return query + distances[:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def on_an_axis(distances, dimensions: int) -> np.ndarray:
    """A gallery with the given distances from the origin, which is all that the exact value depends on."""
    gallery = np.zeros((len(distances), dimensions))
    gallery[:, 0] = distances
    return gallery


def exact(distances, dimensions: int, sigma: float) -> float:
    """The integral for one query, from its distances."""
    return float(sim.exact_robustness(on_an_axis(distances, dimensions), np.zeros((1, dimensions)), sigma=sigma)[0])


def draw_distances(distances, degrees: int, num_draws: int, seed: int) -> float:
    """Share of draws in which the first row stays nearest, from squared distances (r + σz)² + σ²χ² drawn directly.

    The component of the noise along y − x_k is σz; the d − 1 others add up to σ²χ²_{d−1}, and are independent of it.

    Args:
      distances: in units of σ, [K].
      degrees: of the χ², d − 1 >= 1.
      num_draws, seed: of the Monte Carlo; the result does not depend on the number of threads.
    """
    rows = distances.astype(np.float32)[None, :]
    chunk = max(200_000 // len(distances), 1)
    sizes = [min(chunk, num_draws - first) for first in range(0, num_draws, chunk)]

    def kept(size, sequence):
        rng = np.random.default_rng(sequence)
        squares = (rows + rng.standard_normal((size, len(distances)), dtype=np.float32)) ** 2
        squares += 2 * rng.standard_gamma(degrees / 2, squares.shape, dtype=np.float32)
        return np.count_nonzero(squares.argmin(axis=1) == 0)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(kept, sizes, np.random.SeedSequence(seed).spawn(len(sizes)))) / num_draws


def binomial_error(share: float, num_draws: int) -> float:
    """Standard error of a share of independent draws, and at least one of them."""
    return max(np.sqrt(share * (1 - share) / num_draws), 1 / num_draws)


def measure(config: Config, *, progress: bool = False):
    """Measured and exact probabilities per case with their near misses, the references, and the two-class errors."""
    import xarray as xr
    from tqdm import tqdm

    names = ("measured", "standard_error", "exact", "twice_the_noise", "one_dimension_less", "product")
    by_case = {name: np.empty(len(config.cases)) for name in (*names, "normal", "normal_without_noise_power")}
    both_ways = {}
    for i, (num_classes, dimensions, sigma, nearest, margin) in enumerate(
        tqdm(config.cases, disable=not progress, desc="cases")
    ):
        distances = case_distances(num_classes, dimensions, nearest, margin)
        lower = max(dimensions - 1, 1)
        if num_classes * dimensions <= FULL_ENTRIES:
            rng = np.random.default_rng([config.seed, i])
            query = sigma * max(nearest, 1.0) * rng.normal(size=(1, dimensions)) / dimensions**0.5
            gallery = gallery_around(query, sigma * distances, rng)
            # In float32 whatever JAX's precision: its rounding is far below the standard error.
            estimate = sim.measured_robustness(
                gallery.astype(np.float32), query.astype(np.float32), noise=sim.GaussianNoise(sigma),
                num_draws=config.num_draws, key=jax.random.fold_in(jax.random.key(config.seed), i),
            )  # fmt: skip
            measured, error = estimate.mean, estimate.standard_error
        else:
            measured = draw_distances(distances, lower, config.num_draws, config.seed + i)
            error = binomial_error(measured, config.num_draws)
        if (num_classes, dimensions) == EQUIVALENT_CASE:
            both_ways = dict(full=measured, full_error=error)
            for name, degrees in (("equivalent", lower), ("one_degree_more", lower + 1)):
                share = draw_distances(distances, degrees, config.num_draws, config.seed + len(config.cases))
                both_ways |= {name: share, f"{name}_error": binomial_error(share, config.num_draws)}
        r, others = sigma * distances[0], sigma * distances[1:]
        normal = two_class_robustness(r, others, sigma=sigma, dimensions=dimensions)
        only_rows = two_class_robustness(r, others, sigma=sigma, dimensions=1)
        found = dict(
            measured=measured,
            standard_error=error,
            exact=exact(sigma * distances, dimensions, sigma),
            twice_the_noise=exact(sigma * distances, dimensions, sigma * 2**0.5),
            one_dimension_less=exact(sigma * distances, lower, sigma),
            product=np.prod([exact(np.array([r, other]), dimensions, sigma) for other in others]),
            normal=normal[0] if num_classes == 2 else np.nan,
            normal_without_noise_power=only_rows[0] if num_classes == 2 else np.nan,
        )
        for name, value in found.items():
            by_case[name][i] = value
    large = {
        name: np.empty((len(config.arguments), len(config.large_dims))) for name in ("error", "leading", "kurtosis")
    }
    for i, argument in enumerate(config.arguments):
        for j, dimensions in enumerate(config.large_dims):
            pair = two_class_distances(argument, dimensions, config.noncentrality_per_dim)
            terms = dict(sigma=1.0, dimensions=dimensions)
            large["error"][i, j] = exact(pair, dimensions, 1.0) - two_class_robustness(*pair, **terms)
            large["leading"][i, j] = two_class_error(*pair, **terms)
            large["kurtosis"][i, j] = two_class_error(*pair, skewness=False, **terms)
    repeated = [(np.repeat(r, counts), d, sigma) for d, sigma, r, counts, _ in REFERENCES]
    cases = np.array(config.cases)
    columns = ("num_classes", "dimensions", "sigma", "nearest", "margin")
    return xr.Dataset(
        {name: ("case", value) for name, value in by_case.items()}
        | {name: ("case", cases[:, k]) for k, name in enumerate(columns)}
        | {f"two_class_{name}": (("argument", "large_dim"), value) for name, value in large.items()}
        | dict(
            reference=("integral", np.array([value for *_, value in REFERENCES])),
            integral_exact=("integral", np.array([exact(r, d, sigma) for r, d, sigma in repeated])),
            integral_less=("integral", np.array([exact(r, max(d - 1, 1), sigma) for r, d, sigma in repeated])),
        ),
        coords=dict(
            argument=list(config.arguments),
            large_dim=list(config.large_dims),
            reference_dim=("integral", [r[0] for r in REFERENCES]),
        ),
        attrs=dict(num_draws=config.num_draws) | both_ways,
    )


def two_class_distances(argument: float, dimensions: int, noncentrality_per_dim: float) -> np.ndarray:
    """(r₁, r₂) in σ such that Δ/(2σ√(r₁² + r₂² + dσ²)) is `argument` and (r₁² + r₂²)/(dσ²) the last number."""
    total = noncentrality_per_dim * dimensions
    difference = 2 * argument * np.sqrt(dimensions + total)
    return np.sqrt(np.array([total - difference, total + difference]) / 2)


def judge(data) -> list[sim.Row]:
    """Measured against exact in three groups, the sampling, the integrals, and the two-class formula."""
    full = data.num_classes * data.dimensions <= FULL_ENTRIES
    low = data.dimensions <= 8
    two = data.num_classes == 2

    def agreement(name, cases):
        here = data.isel(case=np.flatnonzero(cases.values))
        return sim.Check("monte_carlo", here[name].values, here.measured.values, 4.0, here.standard_error.values)

    def sampled(name):
        values = data.attrs
        error = np.hypot(values["full_error"], values[f"{name}_error"])
        return sim.Check("monte_carlo", np.array([values[name]]), np.array([values["full"]]), 4.0, np.array([error]))

    def integrals(name):
        return sim.Check("identity", data[name].values, data.reference.values, 1e-10)

    def order(predicted):
        # The worst argument speaks for all.
        checks = [
            sim.Check("slope", predicted, abs(curve), 0.02, at=data.large_dim.values.astype(float))
            for curve in data.two_class_error.values
        ]
        return max(checks, key=lambda check: check.error())

    def leading(name):
        last = data.isel(large_dim=-1)
        return sim.Check("identity", last[f"two_class_{name}"].values, last.two_class_error.values, 0.005)

    return [
        sim.Row(
            "measured against exact, d <= 8, noise on every coordinate",
            agreement("exact", full & low),
            agreement("one_dimension_less", full & low),
            "d − 1 degrees of freedom",
        ),
        sim.Row(
            "measured against exact, 8 < d, noise on every coordinate",
            agreement("exact", full & ~low),
            agreement("twice_the_noise", full & ~low),
            "noise variance 2σ² per row",
        ),
        sim.Row(
            "measured against exact, K·d up to 1,024,000, distances drawn",
            agreement("exact", ~full),
            agreement("product", ~full),
            "product of the two-class probabilities",
        ),
        sim.Row(
            "noise on every coordinate against drawing (r + σz)² + σ²χ²_{d−1}",
            sampled("equivalent"),
            sampled("one_degree_more"),
            "χ²_d in place of χ²_{d−1}",
        ),
        sim.Row(
            "integrals with 25-digit arithmetic, d to 1,024, K to 1,000",
            integrals("integral_exact"),
            integrals("integral_less"),
            "d − 1 degrees of freedom",
        ),
        sim.Row(
            "two-class normal formula against measured, d >= 512",
            agreement("normal", two & (data.dimensions >= 512)),
            agreement("normal_without_noise_power", two & (data.dimensions >= 512)),
            "dσ² counted as σ²",
            outside=agreement("normal", two & (data.dimensions <= 8)),
            condition="d is large",
        ),
        sim.Row(
            "error of the two-class normal formula in d", order(-1.0), order(-0.5), "the general order of a CLT, d^−½"
        ),
        sim.Row(
            f"that error at d = {int(data.large_dim[-1])} against Edgeworth's leading term",
            leading("leading"),
            leading("kurtosis"),
            "without the skewness",
        ),
    ]


def draw(data):
    """Probabilities and their z-scores per case, and the error of the two-class formula against d."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(_figures.TWO_COLUMNS, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.7, 1), height_ratios=(1.6, 1))
    top, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    bottom = figure.add_subplot(grid[1, 0], sharex=top)
    data_by_size = data.isel(case=np.argsort(data.exact.values))
    at, grey, blue = np.arange(data.sizes["case"]), _figures.CONTROL, _figures.COLORS[0]
    top.plot(at, data_by_size.exact, color=blue, label="exact")
    error = data_by_size.standard_error
    top.errorbar(at, data_by_size.measured, 4 * error, color=blue, fmt="o", label="measured")
    top.plot(at, data_by_size.twice_the_noise, color=grey, marker="x", linestyle="none", label="2σ² per row")
    top.set(ylabel="P(answer kept)", ylim=(0, 1.04))
    top.tick_params(labelbottom=False)
    top.legend()
    score = lambda predicted: np.clip((data_by_size.measured - predicted) / error, -10, 10)  # noqa: E731
    bottom.axhspan(-4, 4, color=blue, alpha=0.12, linewidth=0)
    bottom.plot(at, score(data_by_size["product"]), color=grey, marker="x", linestyle="none")
    bottom.plot(at, score(data_by_size.exact), color=blue, marker="o", linestyle="none")
    names = [f"{int(k)}, {int(d)}" for k, d in zip(data_by_size.num_classes, data_by_size.dimensions, strict=True)]
    bottom.set_xticks(at, names, rotation=60, ha="right", rotation_mode="anchor")
    bottom.set(xlabel="K, d", ylabel="error (s.e.)", ylim=(-11, 11))
    dims = data.large_dim.values.astype(float)
    for color, argument in zip(_figures.COLORS, data.argument.values, strict=False):
        here = data.sel(argument=argument)
        right.plot(dims, here.two_class_leading, color=color, linewidth=0.8)
        right.plot(dims, here.two_class_error, color=color, marker="o", linestyle="none", label=f"w = {argument:g}")
    start = float(data.two_class_error[-1, 0])
    right.plot(dims, start * (dims / dims[0]) ** -0.5, color=grey, linestyle="--", linewidth=0.8, label="slope −½")
    right.set(xscale="log", yscale="log", xlabel="dimensions d", ylabel="exact − Φ(w), two classes")
    right.legend()
    return figure
