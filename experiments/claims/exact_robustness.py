"""N4: the probability that a noisy gallery keeps its answer is one integral, for any number of classes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, worst
from experiments.setups.trends import stated
from simulator.theory.robustness import two_class_error, two_class_robustness

CLAIM = sim.Claim(
    id="N4",
    title="Exact robustness for any number of classes",
    summary="The probability that an answer survives noise is one integral, for any number of gallery rows.",
    statement=(
        "Under independent Gaussian noise on every gallery row the squared distances are independent noncentral χ²_d, "
        "so the probability of keeping the answer is ∫ f_j Π (1 − F_k) ds; for two classes it tends to "
        "Φ(Δ/(2σ√(r₁² + r₂² + dσ²))), with an error of order 1/N, N = d + (r₁² + r₂²)/σ²."
    ),
    source="derived here: theory.md N4",
    assumes="independent N(0, σ²) noise on every coordinate of every gallery row; Euclidean nearest neighbour",
    expected=dict.fromkeys(
        ("few dimensions", "many dimensions", "many rows", "two ways to draw", "integrals", "Edgeworth's order"),
        "holds",
    )
    | {"normal formula": "holds if"},
)
PRECISION = "float32 draws, float64 predictions"
CAPTION = (
    "(a) Probability that the nearest of K rows in d dimensions stays nearest, against the noise: exact (lines, "
    "nothing fitted) and measured, ± 4 standard errors over 1,000,000 draws (smaller than the marker) of the noise "
    "on every coordinate or of the distances. Grey: noise variance 2σ², for each point. (b) What Edgeworth's "
    "leading term leaves of the error of the two-class normal formula falls as d⁻² (line through the last point); "
    "grey: without the skewness it falls as 1/d. (c) Measured less exact in standard errors; grey: less the product "
    "of the two-class probabilities, cut at ±10."
)
FULL_ENTRIES = 2000  # largest K·d whose noise is drawn coordinate by coordinate
FEW_ROWS = 10  # cases of at most so many rows are also drawn the other way

# Values of the integral with 25-digit arithmetic: dimensions, σ, distances of the query to the rows, how many rows
# share each, P. The first row is the answer. The test recomputes them.
REFERENCES = (
    (1, 1.0, (0.0, 0.5, 1.5), (1, 2, 1), 0.32939034240806564),
    (2, 0.3, (0.4, 0.6, 0.9), (1, 1, 1), 0.6152696374679809),
    (5, 2.0, (1.0, 3.0, 6.0), (1, 3, 6), 0.34143745752067967),
    (4, 1.0, tuple(1 + 0.01 * k for k in range(45)), (1,) * 45, 0.027498510554246885),  # so many are interpolated
    (16, 0.1, (0.7, 0.8), (1, 99), 0.07277278185636736),
    (64, 10.0, (40.0, 75.0), (1, 999), 0.20548041866829014),
    (256, 0.1, (1.0, 1.2), (1, 1), 0.8377607803706856),
    (1024, 0.03, (1.0, 1.15, 1.2), (1, 1, 998), 0.9873695862550219),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Cases (K, d, distance to the nearest row, excess of the next one's square, the σ that are measured)."""

    cases: tuple[tuple[int, int, float, float, tuple[float, ...]], ...] = (
        (2, 1, 1.0, 0.03, (0.01,)),
        (10, 3, 1.0, 0.3, (0.05, 0.2)),
        (100, 8, 1.0, 2.0, (0.3,)),
        (2, 2, 0.0, 300.0, (10.0,)),
        (10, 32, 1.0, 20.0, (0.8, 2.0)),
        (2, 512, 0.0, 4500.0, (10.0,)),
        (2, 1024, 1.0, 0.06, (0.01, 0.02, 0.06)),
        (200, 16, 1.0, 1.0, (0.15,)),
        (30, 256, 3.0, 300.0, (2.0, 4.0)),
        (1000, 1024, 1.0, 0.25, (0.03,)),
    )
    num_draws: int = 1_000_000
    large_dims: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    arguments: tuple[float, ...] = (0.5, 1.0, 1.5)
    noncentrality_per_dim: float = 3.0
    seed: int = 4


QUICK = Config(
    cases=(
        (2, 1, 1.0, 0.03, (0.01,)),
        (10, 3, 1.0, 0.3, (0.05, 0.2)),
        (2, 2, 0.0, 300.0, (10.0,)),
        (3, 64, 1.0, 30.0, (1.0,)),
        (2, 1024, 1.0, 0.06, (0.02,)),
        (200, 16, 1.0, 1.0, (0.15,)),
        (1000, 1024, 1.0, 0.25, (0.03,)),
    ),
    num_draws=100_000,
)


def case_distances(num_classes: int, nearest: float, excess: float) -> np.ndarray:
    """Distances of a query to its rows [K], the nearest first: the squares of the others lie evenly between one and
    two excesses above the nearest one's."""
    return np.sqrt(np.append(nearest**2, nearest**2 + excess * np.linspace(1.0, 2.0, num_classes - 1)))


def gallery_around(query, distances, rng) -> np.ndarray:
    """Rows at the given distances from a query [1, d], in random directions, [K, d]."""
    directions = rng.normal(size=(len(distances), query.shape[1]))
    return query + distances[:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def exact(distances, dimensions: int, sigma: float) -> float:
    """The integral for one query, from its distances: rows on one axis, since nothing else about them matters."""
    gallery = np.zeros((len(distances), dimensions))
    gallery[:, 0] = distances
    return float(sim.exact_robustness(gallery, np.zeros((1, dimensions)), sigma=sigma)[0])


def draw_coordinates(distances, dimensions: int, sigma: float, num_draws: int, seed: int) -> float:
    """Share of draws in which the first row stays nearest, with noise on every coordinate of a random gallery."""
    rng = np.random.default_rng(seed)
    query = max(distances[0], sigma) * rng.normal(size=(1, dimensions)) / dimensions**0.5
    # In float32 whatever JAX's precision: its rounding is far below the standard error.
    gallery, query = (a.astype(np.float32) for a in (gallery_around(query, distances, rng), query))
    noise, key = sim.GaussianNoise(sigma), jax.random.key(seed)
    return sim.measured_robustness(gallery, query, noise=noise, num_draws=num_draws, key=key).mean


def draw_distances(distances, degrees: int, sigma: float, num_draws: int, seed: int) -> float:
    """The same share from squared distances (r + σz)² + σ²χ² drawn directly.

    The component of the noise along y − x_k is σz; the d − 1 others add up to σ²χ²_{d−1}, and are independent of it.

    Args:
      distances: of the query to the rows, [K].
      degrees: of the χ², d − 1 >= 1.
      sigma: standard deviation of the noise per coordinate.
      num_draws, seed: of the Monte Carlo; the result does not depend on the number of threads.
    """
    rows = (distances / sigma).astype(np.float32)[None, :]
    chunk = max(200_000 // len(distances), 1)
    sizes = [min(chunk, num_draws - first) for first in range(0, num_draws, chunk)]

    def kept(size, sequence):
        rng = np.random.default_rng(sequence)
        squares = (rows + rng.standard_normal((size, len(distances)), dtype=np.float32)) ** 2
        squares += 2 * rng.standard_gamma(degrees / 2, squares.shape, dtype=np.float32)
        return np.count_nonzero(squares.argmin(axis=1) == 0)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(kept, sizes, np.random.SeedSequence(seed).spawn(len(sizes)))) / num_draws


def measure(config: Config, *, progress: bool = False):
    """Measured and exact probabilities per point with their near misses, the references, and the two-class errors."""
    import xarray as xr

    from simulator.progress import tqdm

    points = [(case, sigma) for case in config.cases for sigma in case[-1]]
    found = []
    for i, ((num_classes, dimensions, nearest, excess, _), sigma) in enumerate(
        tqdm(points, disable=not progress, desc="points")
    ):
        distances, seed = case_distances(num_classes, nearest, excess), 1000 * config.seed + 3 * i
        full, two = num_classes * dimensions <= FULL_ENTRIES, num_classes == 2
        draws = (sigma, config.num_draws)
        fewer = max(dimensions - 1, 1)  # of degrees of freedom
        first = (draw_coordinates, dimensions) if full else (draw_distances, fewer)
        again = full and dimensions > 1 and num_classes <= FEW_ROWS
        others = distances[1:]
        found.append(
            dict(
                num_classes=num_classes, dimensions=dimensions, sigma=sigma, full=int(full),
                measured=first[0](distances, first[1], *draws, seed),
                drawn_as_distances=draw_distances(distances, fewer, *draws, seed + 1) if again else np.nan,
                one_degree_more=draw_distances(distances, fewer + 1, *draws, seed + 2) if again else np.nan,
                exact=exact(distances, dimensions, sigma),
                twice_the_noise=exact(distances, dimensions, sigma * 2**0.5),
                one_dimension_less=exact(distances, fewer, sigma),
                product=np.prod([exact(np.array([nearest, r]), dimensions, sigma) for r in others]),
                # N = d + λ₁ + λ₂ and the formula, with its near miss.
                size=dimensions + np.sum(distances**2) / sigma**2 if two else np.nan,
                normal=two_class_robustness(nearest, others[0], sigma=sigma, dimensions=dimensions) if two else np.nan,
                normal_with_one_dimension=two_class_robustness(nearest, others[0], sigma=sigma, dimensions=1)
                if two else np.nan,
            )
        )  # fmt: skip
    factors = np.geomspace(0.2, 5.0, 21)  # of the geometric mean of a case's σ
    middle = np.array([np.exp(np.mean(np.log(case[-1]))) for case in config.cases])
    curves = [
        [exact(case_distances(k, r, excess), d, s * f) for f in factors]
        for (k, d, r, excess, _), s in zip(config.cases, middle, strict=True)
    ]
    large = {name: np.empty((len(config.arguments), len(config.large_dims))) for name in ("error", "leading", "even")}
    for i, argument in enumerate(config.arguments):
        for j, dimensions in enumerate(config.large_dims):
            pair = two_class_distances(argument, dimensions, config.noncentrality_per_dim)
            terms: dict[str, Any] = dict(sigma=1.0, dimensions=dimensions)
            large["error"][i, j] = exact(pair, dimensions, 1.0) - two_class_robustness(*pair, **terms)
            large["leading"][i, j] = two_class_error(*pair, **terms)
            large["even"][i, j] = two_class_error(*pair, skewness=False, **terms)
    repeated = [(np.repeat(r, counts), d, sigma) for d, sigma, r, counts, _ in REFERENCES]
    return xr.Dataset(
        {name: ("point", np.array([point[name] for point in found])) for name in found[0]}
        | {f"two_class_{name}": (("argument", "large_dim"), value) for name, value in large.items()}
        | dict(
            reference=("integral", np.array([value for *_, value in REFERENCES])),
            integral_exact=("integral", np.array([exact(r, d, sigma) for r, d, sigma in repeated])),
            integral_less=("integral", np.array([exact(r, max(d - 1, 1), sigma) for r, d, sigma in repeated])),
            curve=(("case", "factor"), np.array(curves)),
            curve_sigma=(("case", "factor"), middle[:, None] * factors[None, :]),
            case_size=(("case", "of"), np.array([case[:2] for case in config.cases])),
        ),
        coords=dict(argument=list(config.arguments), large_dim=list(config.large_dims)),
        attrs=dict(num_draws=config.num_draws),
    )


def two_class_distances(argument: float, dimensions: int, noncentrality_per_dim: float) -> np.ndarray:
    """(r₁, r₂) in σ such that Δ/(2σ√(r₁² + r₂² + dσ²)) is `argument` and (r₁² + r₂²)/(dσ²) the last number."""
    total = noncentrality_per_dim * dimensions
    difference = 2 * argument * np.sqrt(dimensions + total)
    return np.sqrt(np.array([total - difference, total + difference]) / 2)


def binomial_error(share, num_draws: int) -> np.ndarray:
    """Standard error of shares of independent draws, and at least one draw."""
    return np.maximum(np.sqrt(share * (1 - share) / num_draws), 1 / num_draws)


def judge(data) -> list[sim.Row]:
    """Measured against exact in three groups, the two ways to draw, the integrals, and the two-class formula."""
    full, low = data.full.values.astype(bool), data.dimensions.values <= 8
    share, num_draws = data.measured.values, data.attrs["num_draws"]
    error = binomial_error(share, num_draws)
    # The leading error is .32/N at most, over all w: from N = 1,500 on less than half a standard error of 10⁶ draws.
    normal, not_normal = data["size"].values >= 1500, data["size"].values <= 8

    def against(name, points):
        return agreement(data[name].values[points], share[points], error[points])

    def both_ways(name):
        again = np.isfinite(data[name].values)
        other = data[name].values[again]
        return agreement(other, share[again], np.hypot(error[again], binomial_error(other, num_draws)))

    def integrals(name):
        return sim.Check("absolute", data[name].values, data.reference.values, 1e-8)

    def order_of_remainder(name):
        # The worst argument speaks for all. The next order, 1/d of the remainder, tilts the exponent by about 1/16 over
        # these d, beginning with 16: an order is told from its neighbours, half a power away, and from 5 % more.
        remainders = abs(data.two_class_error - data[f"two_class_{name}"]).values
        at = data.large_dim.values.astype(float)
        return worst(sim.Check("slope", -2.0, remainder, 0.08, at=at) for remainder in remainders)

    def farthest(points):
        """Measured less normal formula where they differ most, with N."""
        off = share - data.normal.values
        at = np.flatnonzero(points)[np.argmax(np.abs(off[points]))]
        return f"{stated(off[at], error[at])} at N = {data['size'].values[at]:.0f}"

    return [
        sim.Row(
            "few dimensions",
            against("exact", full & low),
            against("one_dimension_less", full & low),
            "d − 1 degrees of freedom",
            label="measured against exact, d <= 8, noise on every coordinate",
        ),
        sim.Row(
            "many dimensions",
            against("exact", full & ~low),
            against("twice_the_noise", full & ~low),
            "noise variance 2σ² per row",
            label="measured against exact, 8 < d, noise on every coordinate",
        ),
        sim.Row(
            "many rows",
            against("exact", ~full),
            against("product", ~full),
            "product of the two-class probabilities",
            label="measured against exact, K·d up to 1,024,000, distances drawn",
        ),
        sim.Row(
            "two ways to draw",
            both_ways("drawn_as_distances"),
            both_ways("one_degree_more"),
            "χ²_d in place of χ²_{d−1}",
            label="noise on every coordinate against drawing (r + σz)² + σ²χ²_{d−1}",
        ),
        sim.Row(
            "integrals",
            integrals("integral_exact"),
            integrals("integral_less"),
            "d − 1 degrees of freedom",
            label="integrals with 25-digit arithmetic, d to 1,024, K to 1,000",
        ),
        sim.Row(
            "normal formula",
            against("normal", normal),
            against("normal_with_one_dimension", normal),
            "dσ² counted as σ²",
            label="two-class normal formula against measured, N >= 1,500",
            outside=against("normal", not_normal),
            condition="N = d + (r₁² + r₂²)/σ² is large",
            effect=f"measured less formula {farthest(normal)}, {farthest(not_normal)}",
        ),
        sim.Row(
            "Edgeworth's order",
            order_of_remainder("leading"),
            order_of_remainder("even"),
            "without the skewness",
            label="order in d of what Edgeworth's leading term leaves of its error",
        ),
    ]


def draw(data):
    """Probabilities against σ with their z-scores, and the error of the two-class formula against d."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(plotting.TWO_COLUMNS, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.9, 1), height_ratios=(1.9, 1))
    top, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    bottom = figure.add_subplot(grid[1, 0], sharex=top)
    grey, sigma = plotting.CONTROL, data.sigma.values
    error = binomial_error(data.measured.values, data.attrs["num_draws"])
    looks = [plotting.series(i % 6, marker="", linestyle="--" if i >= 6 else "-") for i in range(12)]
    order = np.argsort(data.curve_sigma.values[:, 0])
    top.plot(sigma, data.twice_the_noise, "x", color=grey, label="near miss, 2σ²")
    for look, i in zip(looks, order, strict=False):
        k, d = data.case_size.values[i]
        here = np.flatnonzero((data.num_classes.values == k) & (data.dimensions.values == d))
        top.plot(data.curve_sigma[i], data.curve[i], label=f"K = {k}, d = {d}", **look)
        marker = "o" if data.full.values[here[0]] else "s"
        top.errorbar(sigma[here], data.measured[here], 4 * error[here], color=look["color"], fmt=marker, markersize=4)
    for marker, label in (("o", "noise drawn"), ("s", "distances drawn")):
        top.plot([], [], f"k{marker}", markersize=4, label=label)
    top.set(xscale="log", ylabel="P(answer kept)", ylim=(0, 1.04), title="keeping the answer")
    top.tick_params(labelbottom=False)
    score = lambda predicted: np.clip((data.measured - predicted) / error, -10, 10)
    bottom.axhspan(-4, 4, color="black", alpha=0.1, linewidth=0, label="limits of the check")
    bottom.plot(sigma, score(data["product"]), "x", color=grey, label="product of pairs")
    bottom.plot(sigma, score(data.exact), "ko", label="exact")
    bottom.set(xlabel="noise σ per coordinate", ylabel="error (s.e.)", ylim=(-19, 11), title="measured − predicted")
    bottom.set_yticks([-10, -5, 0, 5, 10])
    bottom.legend(ncols=3, loc="lower center")
    dims = data.large_dim.values.astype(float)
    for i, argument in enumerate(data.argument.values):
        here = data.sel(argument=argument)
        left, without = (abs(here.two_class_error - here[f"two_class_{n}"]).values for n in ("leading", "even"))
        right.plot(dims, left[-1] * (dims / dims[-1]) ** -2, "k-", linewidth=0.8, label=None if i else "slope −2")
        right.plot(dims, left, label=f"w = {argument:g}", **plotting.series(i, color="black", linestyle="none"))
        if argument != 1.0:  # the skewness term is 0 there
            right.plot(dims, without, "--", color=grey, linewidth=0.8, label=None if i else "no skewness")
    right.set(xscale="log", yscale="log", xlabel="dimensions d", title="two classes")
    right.set_ylabel("|exact − Φ(w) − leading term|")
    right.set_ylim(1e-10, None)
    right.legend(loc="lower left")
    plotting.legend_above(figure, top, ncols=5, columnspacing=1.2)
    return plotting.lettered(figure)
