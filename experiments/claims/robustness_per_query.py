"""N5: for every query robustness falls with its distance from its own closure; the average over queries need not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, equal, moves, never_above, none, worst
from experiments.setups.galleries import nearest_rows, random_classes
from experiments.setups.trends import stated
from simulator.theory import monotonicity as theory

CLAIM = sim.Claim(
    id="N5",
    title="Robustness is monotone for each query",
    summary="Each query has its own best closing, and is less robust on either side of it.",
    statement=(
        "Adding h >= 0 to all squared distances never raises the chance that the nearest row stays nearest, so each "
        "query is most robust at its own α*_y and symmetric about it. The average over queries is sure to rise only up "
        "to min_y α*_y: queries from the gallery's own modality can make it fall before closure."
    ),
    source="derived here: theory.md N5 (proof in simulator.theory.monotonicity)",
    assumes="independent Gaussian noise on the gallery rows; Euclidean nearest neighbour; moves orthogonal to the rows",
    expected=dict.fromkeys(
        ("step 1", "step 2", "steps 3 and 4", "step 5", "mirror", "every query", "mixed average", "clean decisions"),
        "holds",
    )
    | {"average": "holds if"},
)
PRECISION = "float32 draws, float64 predictions"
CAPTION = (
    "(a) The density ratio f⁺/f falls with the noncentrality λ: predicted by a sum over the zeros of the Bessel "
    "function of order d/2 − 1 (grey: of order d/2); points: SciPy's densities. (b) Largest rise of a win "
    "probability when one h ≥ 0 is added to all λ, over random galleries: the nearest row never rises above "
    "rounding. (c) Robustness of single queries at different depths of the gap; points: measured. (d) Average over "
    "90 queries of the other modality and 10 of the gallery's own, built so that it falls most; grey: all moved to "
    "the mean depth. No clean decision changes. Bars: ± 4 standard errors over 40,000 draws."
)
DIMENSIONS = (1, 2, 3, 8, 33, 64)
SIZES = (2, 3, 4, 6, 10)
RANKS = ("nearest", "second nearest")
NUM_OWN, PER_CLASS, LEAN = 10, 9, 0.1  # of the mixed queries, see `mixed_queries`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random small galleries for the search, one random gallery for single queries, one built for the average."""

    num_configurations: int = 100_000
    num_differences: int = 60
    num_zeros: int = 4000
    num_queries: int = 12
    num_draws: int = 40_000
    sigma: float = 0.1
    num_alphas: int = 13
    seed: int = 6


QUICK = Config(num_configurations=5_000, num_differences=20, num_queries=5, num_draws=40_000, num_alphas=7)


def measure(config: Config, *, progress: bool = False):
    """Every step of the proof, the search for a counter-example, single queries, and the average."""
    import xarray as xr

    pieces = (_densities(config), _differences(config), _search(config, progress), _queries(config), _average(config))
    return xr.merge(pieces, combine_attrs="no_conflicts")


def central_difference(function, step):
    """Slope of a function at 0, of sixth order in the step."""
    steps = [(function(k * step) - function(-k * step)) for k in (1, 2, 3)]
    return (45 * steps[0] - 9 * steps[1] + steps[2]) / (60 * step)


def _densities(config: Config):
    """Steps 1, 3 and 4 on a grid of (d, λ, s): SciPy's noncentral χ² against the formulas."""
    import xarray as xr
    from scipy.stats import ncx2

    noncentrality = np.geomspace(0.1, 100.0, 9)
    relative = np.array([0.4, 0.7, 1.0, 1.4, 2.0])  # s in units of the mean d + λ of the middle law
    d, lam = np.array(DIMENSIONS)[:, None, None], noncentrality[None, :, None]
    s = relative[None, None, :] * (d + np.median(noncentrality)) + 0.0 * lam  # on the full grid
    slope = central_difference(lambda h: ncx2.cdf(s, d, lam + h), 0.02 * np.sqrt(lam))

    def from_zeros(extra):
        orders = np.array(DIMENSIONS) / 2 - 1 + extra
        zeros = [theory.bessel_zeros(order, config.num_zeros) for order in orders]
        ratios = map(theory.bessel_ratio_from_zeros, orders, np.sqrt(lam * s), zeros)
        return s * np.array(list(ratios))

    axes = ("dimension", "noncentrality", "s")
    return xr.Dataset(
        dict(
            squared_distance=(("dimension", "s"), s[:, 0, :]),
            distribution_slope=(axes, slope),
            predicted_distribution_slope=(axes, np.array(theory.distribution_slope(s, d, lam))),
            density_ratio=(axes, ncx2.pdf(s, d + 2, lam) / ncx2.pdf(s, d, lam)),
            predicted_density_ratio=(axes, from_zeros(0)),
            wrong_density_ratio=(axes, from_zeros(1)),
        ),
        coords=dict(dimension=list(DIMENSIONS), noncentrality=noncentrality),
    )


def random_noncentralities(rng, count: int, size: int):
    """Noncentralities [count, size], nearest first, dimensions [count] and offsets h [count]: from ties to clear
    decisions, and from slight to overwhelming offsets, in units of what matters in that many dimensions."""
    dimensions = np.floor(np.exp(rng.uniform(0.0, np.log(1025.0), count)))
    nearest = np.exp(rng.uniform(np.log(1e-2), np.log(1e3), count))
    excess = 2 * np.sqrt(dimensions + 2 * nearest) * np.exp(rng.uniform(np.log(1e-3), np.log(10.0), count))
    farther = np.sort(rng.exponential(size=(count, size - 1)), axis=1) * excess[:, None]
    offset = (dimensions + nearest) * np.exp(rng.uniform(np.log(1e-3), np.log(10.0), count))
    return nearest[:, None] + np.concatenate([np.zeros((count, 1)), farther], axis=1), dimensions, offset


def stays(noncentralities, dimensions: int) -> float:
    """Exact robustness of one query, its rows along one axis at distance √λ: nothing else about them matters."""
    rows = np.sqrt(noncentralities)[:, None] * np.eye(1, dimensions)
    return sim.exact_robustness(rows, np.zeros((1, dimensions)), sigma=1.0)[0]


def _differences(config: Config):
    """Step 2: dP/dh of the nearest row, differences of the exact robustness against the formula."""
    import xarray as xr

    rng = np.random.default_rng([config.seed, 0])
    measured, predicted = [], []
    for trial in range(config.num_differences):
        lam, d, _ = (a[0] for a in random_noncentralities(rng, 1, SIZES[trial % len(SIZES)]))
        step = 0.02 * np.sqrt(d + 2 * lam[0])
        lam = lam + 3 * step  # room for the stencil

        measured.append(central_difference(lambda h, lam=lam, d=int(d): stays(lam + h, d), step))
        predicted.append(theory.win_slopes(lam[None, :], d, num_nodes=104)[0, 0])
    return xr.Dataset(dict(difference=("trial", measured), predicted_difference=("trial", predicted)))


def _search(config: Config, progress: bool):
    """Largest rise of P_j under a common h over random galleries, by (rank of j, K, d)."""
    import xarray as xr

    from simulator.progress import tqdm

    rng = np.random.default_rng([config.seed, 1])
    rises = np.full((len(RANKS), len(SIZES), 1024), -np.inf)
    block, per_size, falls = 2_000, -(-config.num_configurations // len(SIZES)), 0
    with tqdm(total=per_size * len(SIZES), disable=not progress, desc="search", unit="gallery") as bar:
        for i, size in enumerate(SIZES):
            for start in range(0, per_size, block):
                count = min(block, per_size - start)
                lam, d, h = random_noncentralities(rng, count, size)
                near, far = (theory.win_probabilities(v, d, num_nodes=44 + 6 * size) for v in (lam, lam + h[:, None]))
                rise = far - near
                for rank in range(len(RANKS)):
                    np.maximum.at(rises[rank, i], d.astype(int) - 1, rise[:, rank])
                falls += int(np.sum(rise[:, 0] < -0.01))
                bar.update(count)
    # By octaves of d.
    edges = 2 ** np.arange(11)
    rises = np.stack([rises[:, :, a - 1 : b - 1].max(axis=2) for a, b in zip(edges[:-1], edges[1:], strict=True)], 2)
    return xr.Dataset(
        dict(rise=(("rank", "num_rows", "octave"), rises)),
        coords=dict(rank=list(RANKS), num_rows=list(SIZES), octave=edges[:-1]),
        attrs=dict(configurations=per_size * len(SIZES), clear_falls=falls),
    )


def queries_in_play(config: Config):
    """A random gallery and queries at different depths of the gap, those that stay with a chance of .5 to .95 before
    the gallery moves: more or less would show no trend. Returns gallery [10, 32], queries [num_queries, 32]."""
    gallery, queries, _ = random_classes(10, 32, 40 * config.num_queries, config.seed)
    # The depth orders the queries, from near the gallery to beyond the others.
    depths = np.linspace(-0.6, 0.6, len(queries))
    queries = queries + depths[:, None] * sim.gap_vector(gallery, queries)[None, :]
    chance = sim.exact_robustness(gallery, queries, sigma=config.sigma)
    chosen = np.flatnonzero((chance > 0.5) & (chance < 0.95))
    return gallery, queries[chosen[np.linspace(0, len(chosen) - 1, config.num_queries).astype(int)]]


def _queries(config: Config):
    """Measured and exact robustness of single queries against α, the exact values at the mirror images of α, and the
    average over these queries up to the smallest and to the largest α*_y."""
    import xarray as xr

    gallery, queries = queries_in_play(config)
    closer, key = sim.GapCloser().fit(gallery, queries), jax.random.key(config.seed)
    alphas = np.linspace(-0.75, 2.75, config.num_alphas)

    def exact(alphas):
        """At one α per query."""
        moved = [closer.transform(gallery, a) for a in np.broadcast_to(alphas, len(queries))]
        pairs = zip(moved, queries[:, None, :], strict=True)
        return [sim.exact_robustness(*pair, sigma=config.sigma)[0] for pair in pairs]

    def measured(alpha):
        draws: dict[str, Any] = dict(noise=sim.GaussianNoise(config.sigma), num_draws=config.num_draws, key=key)
        return sim.measured_robustness(closer.transform(gallery, alpha), queries, **draws)

    ends, share = (closer.alpha_star_.min(), closer.alpha_star_.max()), np.linspace(0.0, 1.0, 5)
    stretches = [[measured(a) for a in share * end] for end in ends]
    return xr.Dataset(
        dict(
            query_measured=(("query_alpha", "query"), np.array([measured(a).per_query for a in alphas])),
            query_exact=(("query_alpha", "query"), np.array([exact(a) for a in alphas])),
            mirrored=(("query_alpha", "query"), np.array([exact(2 * closer.alpha_star_ - a) for a in alphas])),
            mirrored_at_one=(("query_alpha", "query"), np.array([exact(2 - a) for a in alphas])),
            stretch=(("end", "share"), np.array([[e.mean for e in row] for row in stretches])),
            stretch_error=(("end", "share"), np.array([[e.standard_error for e in row] for row in stretches])),
            alpha_star=("query", closer.alpha_star_),
        ),
        coords=dict(query_alpha=alphas, end=["smallest", "largest"], share=share),
        attrs=dict(query_draws=config.num_draws),
    )


def mixed_queries(sigma: float):
    """A gallery, queries of the other modality and of the gallery's own, built so that the average falls most.

    10 orthonormal rows e_k in 32 dimensions. The other modality asks y = e_k + LEAN Σ_l ±e_l + G u, u orthogonal to
    all rows, 9 times per class; the lean gives g a part inside the gallery's span. The gallery's own modality asks y =
    (1 − t) e_k + t e_{k+1}: such a query lies in the gallery's span, so α*_y = 0, and any move adds ‖αg'‖²/σ² to all
    its noncentralities. Closing costs it most if it is a close call (t near ½) and the gap is wide; the others gain
    little as long as they are far from any other row. G and t maximise the fall of the exact average from α = 0 to 1.
    Returns gallery [10, 32], other [90, 32], own [10, 32], and that fall.
    """
    from scipy.optimize import minimize

    gallery, across = np.eye(NUM_OWN, 32), np.eye(32)[31]
    lean = LEAN * np.resize([1.0, -1.0], NUM_OWN) @ gallery
    share = PER_CLASS / (PER_CLASS + 1)

    def queries(depth, t):
        return gallery + (lean + depth * across)[None, :], (1 - t) * gallery + t * np.roll(gallery, -1, axis=0)

    def change(sizes):
        # Two neighbouring queries stand for all of their kind; g' is share · depth · across.
        other, own = (
            [
                sim.exact_robustness(gallery + move, rows[:2], sigma=sigma).mean()
                for move in (0.0, share * sizes[0] * across)
            ]
            for rows in queries(*sizes)
        )
        return share * (other[1] - other[0]) + (1 - share) * (own[1] - own[0])

    best = minimize(change, [1.0, 0.4], method="Nelder-Mead", options=dict(xatol=1e-6, fatol=1e-9))
    if best.fun > -1e-6:
        raise ValueError(
            f"sigma is {sigma}: under that much noise no such queries make the average fall (by {-best.fun:.0e} at most), and "
            "there is nothing to judge; give a smaller sigma, such as 0.1"
        )
    other, own = queries(*best.x)
    return gallery, np.tile(other, (PER_CLASS, 1)), own, -best.fun


def _average(config: Config):
    """The averaged robustness with the queries from the gallery's own modality, and with all at the mean depth."""
    import xarray as xr

    gallery, other, own, fall = mixed_queries(config.sigma)
    queries = np.concatenate([other, own])
    closer = sim.GapCloser().fit(gallery, queries)
    aligned = queries - (closer.alpha_star_ - 1.0)[:, None] * closer.direction_[None, :]
    alphas = np.linspace(0.0, 1.5, config.num_alphas)
    moved = [closer.transform(gallery, a) for a in alphas]
    draws: dict[str, Any] = dict(num_draws=config.num_draws, key=jax.random.fold_in(jax.random.key(config.seed), 1))
    estimates = [sim.measured_robustness(m, queries, noise=sim.GaussianNoise(config.sigma), **draws) for m in moved]
    answers = nearest_rows(gallery, queries)
    changed = [
        [np.sum(nearest_rows(gallery + a * v[None, :], queries) != answers) for a in alphas]
        for v in (closer.direction_, closer.gap_)
    ]
    exact = lambda rows: [sim.exact_robustness(m, rows, sigma=config.sigma).mean() for m in moved]
    return xr.Dataset(
        dict(
            average=("alpha", [e.mean for e in estimates]),
            average_error=("alpha", [e.standard_error for e in estimates]),
            predicted_average=("alpha", exact(queries)),
            aligned_average=("alpha", exact(aligned)),
            changed=(("direction", "alpha"), np.array(changed, int)),
        ),
        coords=dict(alpha=alphas, direction=["g'", "g"]),
        attrs=dict(predicted_fall=float(fall)),
    )


def judge(data) -> list[sim.Row]:
    """Steps of the proof, the search, single queries, the average."""
    values = {name: variable.values for name, variable in data.data_vars.items()}

    def same(name, label, predicted, near_miss, measured, tolerance, control_name):
        test, control = (equal(values, measured, tolerance) for values in (predicted, near_miss))
        return sim.Row(name, test, control, control_name, label=label)

    share_kept, star = values["query_measured"], values["alpha_star"]
    resolution = 1.0 / data.attrs["query_draws"]
    query_error = np.maximum(np.sqrt(share_kept * (1 - share_kept) * resolution), resolution)
    at = data.query_alpha.values

    def single(centres):
        """The worst query speaks for all; a step across its centre has no predicted sign."""
        checks = []
        for curve, error, centre in zip(share_kept.T, query_error.T, centres, strict=True):
            signs = np.where(at[1:] <= centre, 1.0, np.where(at[:-1] >= centre, -1.0, 0.0))
            checks.append(moves(curve, error, at, signs))
        return worst(checks)

    rises = [never_above(rise, 1e-10) for rise in values["rise"]]
    mirrors = [agreement(values[name], share_kept, query_error) for name in ("mirrored", "mirrored_at_one")]
    smallest, largest = (
        moves(curve, errors, data.share)
        for curve, errors in zip(values["stretch"], values["stretch_error"], strict=True)
    )
    average, up = (values["average"], values["average_error"]), data.alpha.values <= 1.0
    mixed = moves(average[0][up], average[1][up], data.alpha[up])
    moved = lambda c: stated(c.measured[-1] - c.measured[0], np.hypot(c.standard_error[0], c.standard_error[-1]))
    averages = [agreement(values[name], *average) for name in ("predicted_average", "aligned_average")]
    unchanged = [none(counts) for counts in values["changed"]]
    slope, difference = values["predicted_distribution_slope"], values["predicted_difference"]
    ratio, ones = values["density_ratio"], np.ones(values["density_ratio"].shape)
    return [
        same("step 1", "step 1: ∂F_d/∂λ against −f_{d+2}", slope, 0.5 * slope, values["distribution_slope"], 1e-8, "a factor ½"),
        same(
            "step 2", "step 2: dP_j/dh of the nearest row against differences of the exact value",
            difference, 0.5 * difference, values["difference"], 1e-8, "∂F_d/∂λ = −½ f_{d+2}",
        ),
        # Point by point: the ratio of measured to predicted is 1, its inverse for the near miss.
        same(
            "steps 3 and 4", "steps 3, 4: f⁺/f over s Σ 2/(λs + j²), j the zeros of J_ν, ν = d/2 − 1",
            ones, values["wrong_density_ratio"] / values["predicted_density_ratio"],
            ratio / values["predicted_density_ratio"], 1e-10, "ν = d/2",
        ),
        sim.Row(
            "step 5",
            rises[0], rises[1], "the second nearest row",
            label=f"step 5: largest rise of P_j of the nearest row under h, {data.attrs['configurations']:,} galleries",
        ),
        sim.Row(
            "mirror", mirrors[0], mirrors[1], "at 2 − α",
            label="measured Rob_y(α) against the exact value at 2α*_y − α, every query",
        ),
        sim.Row(
            "every query", single(star), single(np.ones(len(star))),
            "to α = 1", label="measured Rob_y rises to α*_y and falls after, every query",
        ),
        sim.Row(
            "average", smallest, largest, "up to max_y α*_y", label="measured average rises up to min_y α*_y",
            outside=mixed,
            condition="α stays below the smallest α*_y, which is 0 when some queries are of the gallery's own modality",
            effect=f"change of the average up to min_y α*_y {moved(smallest)}, of the mixed queries' up to α = 1 {moved(mixed)}",
        ),
        sim.Row(
            "mixed average", averages[0], averages[1],
            "every query at the mean depth",
            label="measured average over mixed queries at every α against the exact value",
        ),
        sim.Row("clean decisions", unchanged[0], unchanged[1], "moving by g in place of g'",
                label="clean decisions changed, mixed queries, all α"),
    ]  # fmt: skip


def draw(data):
    """Ratio, search, single queries, average."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(plotting.TWO_COLUMNS, 4.6), layout="constrained")
    (ratio, search), (single, average) = axes
    grey = plotting.CONTROL
    middle = data.sizes["s"] // 2
    for i, d in enumerate((1, 3, 8, 64)):
        here = data.sel(dimension=d).isel(s=middle)
        s = float(here.squared_distance)
        ratio.plot(
            data.noncentrality, here.predicted_density_ratio / s, "k-", linewidth=0.8, label=None if i else "predicted"
        )
        look = plotting.series(i, color="black", linestyle="none", label=f"d = {d}")
        ratio.plot(data.noncentrality, here.density_ratio / s, **look)
        label = "order d/2" if d == 1 else None
        ratio.plot(data.noncentrality, here.wrong_density_ratio / s, "--", color=grey, linewidth=0.8, label=label)
    ratio.set(xscale="log", yscale="log", xlabel="noncentrality λ", ylabel="f⁺/(s f)", ylim=(1.5e-3, 1.5))
    ratio.set_title("density ratio")
    ratio.legend(ncols=3, loc="lower left", columnspacing=1.0)
    for rank, (color, marker) in zip(RANKS, (("black", "o"), (grey, "^")), strict=True):
        values = np.maximum(data.rise.sel(rank=rank).max("num_rows"), 1e-17)
        search.plot(data.octave * 2**0.5, values, marker, color=color, markersize=4, label=f"{rank} row")
    search.axhline(1e-10, color="black", linestyle=":", linewidth=0.8, label="tolerance")
    search.set(xscale="log", yscale="log", ylim=(3e-18, 5), xlabel="dimensions d, by octaves")
    search.set(ylabel="largest rise of Pⱼ (floor 10⁻¹⁷)", title=f"search, {data.attrs['configurations']:,} galleries")
    search.legend(loc="center right", bbox_to_anchor=(1.0, 0.7))
    chosen = np.argsort(data.alpha_star.values)[:: max(1, data.sizes["query"] // 4)][:5]
    for i, query in enumerate(chosen):
        color = plotting.COLORS[i]
        here = data.isel(query=query)
        error = np.sqrt(here.query_measured * (1 - here.query_measured) / data.attrs["query_draws"])
        single.plot(data.query_alpha, here.query_exact, color=color)
        look = plotting.series(i, linestyle="none", label=f"query {i + 1}")
        single.errorbar(data.query_alpha, here.query_measured, 4 * error, **look)
        single.axvline(float(here.alpha_star), 0.27, color=color, linestyle=":", linewidth=0.8)
    for style, label in (("-", "exact"), (":", "own best α")):
        single.plot([], [], style, color="black", linewidth=0.8, label=label)
    single.set(xlabel="closing α", ylabel="robustness of one query", title="single queries")
    single.set_ylim(0.3, None)
    single.legend(ncols=3, loc="lower left")
    average.plot(data.alpha, data.predicted_average, color="black", label="exact, mixed queries")
    average.errorbar(data.alpha, data.average, 4 * data.average_error, color="black", fmt="o", label="measured")
    average.plot(data.alpha, data.aligned_average, "--", color=grey, linewidth=0.8, label="all at the mean depth")
    average.set(xlabel="closing α", ylabel="average robustness", title="average over queries")
    bottom, upper = average.get_ylim()
    average.set_ylim(bottom - 0.4 * (upper - bottom), upper)
    average.legend(loc="lower left")
    return plotting.lettered(figure)
