"""N5: for every query robustness falls with its distance from its own closure; the average over queries need not."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from experiments._galleries import nearest_rows, random_classes
from simulator.theory import monotonicity as theory

CLAIM = sim.Claim(
    id="N5",
    title="Robustness is monotone for each query",
    statement=(
        "Adding h >= 0 to all squared distances never raises the chance that the nearest row stays nearest, so each "
        "query is most robust at its own α*_y and symmetric about it. The average over queries is sure to rise only up "
        "to min_y α*_y: queries from the gallery's own modality can make it fall before closure."
    ),
    source="derived here: theory.md N5 (proof in simulator.theory.monotonicity)",
    assumes="independent Gaussian noise on the gallery rows; Euclidean nearest neighbour; moves orthogonal to the rows",
    expected=(*("holds",) * 9, "holds if", "holds", "holds", "holds"),
)
CAPTION = (
    "(a) The density ratio f⁺/f falls with the noncentrality λ (lines: Bessel ratio; points: SciPy's densities; grey: "
    "I_{ν+1}/I_ν without 1/z, which rises). (b) Largest rise of a win probability when h >= 0 is added to all λ, over "
    "random galleries: the nearest row never rises above rounding; a coarse trapezoid rule would show false "
    "counter-examples, and the second nearest row has true ones. (c) Exact robustness of single queries at different "
    "depths of the gap against the closing α: each is symmetric about its own α*_y (dotted). (d) 90 queries of one "
    "modality and 10 of the gallery's own: exact average (line), measured (points, ± 4 standard errors) and predicted "
    "peak (dotted). Grey: the same if all were of one modality."
)
DIMENSIONS = (1, 2, 3, 8, 33, 64)
SIZES = (2, 3, 4, 5, 6)
CASES = ("nearest", "nearest, coarse trapezoid rule", "second nearest")
ROUNDING = 1e-12  # of an exact value: the "standard error" of a trend that has none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random small galleries for the search, and one synthetic gallery for the motion."""

    num_configurations: int = 100_000
    num_slopes: int = 20_000
    num_differences: int = 60
    num_zeros: int = 200
    num_queries: int = 12
    num_draws: int = 20_000
    sigma: float = 0.1
    num_alphas: int = 13
    seed: int = 0


QUICK = Config(
    num_configurations=5_000, num_slopes=2_000, num_differences=20, num_queries=5, num_draws=4_000, num_alphas=7
)


def measure(config: Config, *, progress: bool = False):
    """Every step of the proof, the search for a counter-example, single queries, and the average."""
    import xarray as xr

    pieces = (_densities(config), _search(config, progress), _differences(config), _queries(config), _average(config))
    return xr.merge(pieces, combine_attrs="no_conflicts")


def _densities(config: Config):
    """Steps 1, 3 and 4 on a grid of (d, λ, s): SciPy's noncentral χ² against the formulas."""
    import xarray as xr
    from scipy.special import ive
    from scipy.stats import ncx2

    noncentrality = np.geomspace(0.1, 300.0, 9)
    relative = np.array([0.4, 0.7, 1.0, 1.4, 2.0])  # s in units of the mean d + λ of the middle law
    d, lam = np.array(DIMENSIONS)[:, None, None], noncentrality[None, :, None]
    s = relative[None, None, :] * (d + np.median(noncentrality)) + 0.0 * lam  # on the full grid
    step = 0.02 * np.sqrt(lam)
    # Central difference of order 4.
    cdf = lambda times: ncx2.cdf(s, d, lam + times * step)  # noqa: E731
    slope = (8 * (cdf(1) - cdf(-1)) - (cdf(2) - cdf(-2))) / (12 * step)
    order, z = d / 2 - 1, np.sqrt(lam * s)
    arguments = np.geomspace(0.01, 20.0, 40)
    series, wrong, direct = [], [], []
    for nu in order.ravel():
        zeros, next_zeros = (theory.bessel_zeros(v, config.num_zeros) for v in (nu, nu + 1))
        series.append(theory.bessel_ratio_from_zeros(nu, arguments, zeros))
        wrong.append(theory.bessel_ratio_from_zeros(nu + 1, arguments, next_zeros))
        direct.append(ive(nu + 1, arguments) / (arguments * ive(nu, arguments)))
    axes, on_z = ("dimension", "noncentrality", "s"), ("dimension", "z")
    return xr.Dataset(
        dict(
            squared_distance=(("dimension", "s"), s[:, 0, :]),
            distribution_slope=(axes, slope),
            predicted_distribution_slope=(axes, np.array(theory.distribution_slope(s, d, lam))),
            density_ratio=(axes, ncx2.pdf(s, d + 2, lam) / ncx2.pdf(s, d, lam)),
            predicted_density_ratio=(axes, theory.density_ratio(s, d, lam)),
            wrong_density_ratio=(axes, s * theory.bessel_ratio(order + 1, z)),
            bessel_ratio=(on_z, np.array(direct)),
            predicted_bessel_ratio=(on_z, np.array(series)),
            wrong_bessel_ratio=(on_z, np.array(wrong)),
        ),
        coords=dict(dimension=list(DIMENSIONS), noncentrality=noncentrality, z=arguments),
    )


def _random_noncentralities(rng, count: int, size: int):
    """Noncentralities [count, size], nearest first, and dimensions [count]: from ties to clear decisions."""
    nearest = np.exp(rng.uniform(np.log(1e-2), np.log(300.0), count))
    spread = np.exp(rng.uniform(np.log(1e-2), np.log(100.0), count))
    farther = np.sort(rng.exponential(size=(count, size - 1)), axis=1) * spread[:, None]
    return np.concatenate([nearest[:, None], nearest[:, None] + farther], axis=1), rng.integers(1, 65, count)


def _search(config: Config, progress: bool):
    """Largest rise of P_j under a common h over random galleries, by (case, K, d); extreme slopes at h = 0."""
    import xarray as xr
    from tqdm import tqdm

    rng = np.random.default_rng(config.seed)
    # 48 to 88 nodes by size leave less than 1e-11; 24 equal steps are what a hasty search would take.
    rules = {size: theory.legendre_rule(44 + 6 * size) for size in SIZES}
    coarse = theory.trapezoid_rule(24)
    rises = np.full((len(CASES), len(SIZES), 64), -np.inf)
    slopes, falls, disagreement = np.full((2, len(SIZES)), -np.inf), 0, 0.0
    block = 2_000
    per_size = -(-config.num_configurations // len(SIZES))
    with tqdm(total=per_size * len(SIZES), disable=not progress, desc="search", unit="gallery") as bar:
        for i, size in enumerate(SIZES):
            for start in range(0, per_size, block):
                count = min(block, per_size - start)
                lam, d = _random_noncentralities(rng, count, size)
                h = np.exp(rng.uniform(np.log(1e-3), np.log(300.0), count))
                near, far = (theory.win_probabilities(v, d, rule=rules[size]) for v in (lam, lam + h[:, None]))
                rough = [theory.win_probabilities(v, d, rule=coarse)[:, 0] for v in (lam, lam + h[:, None])]
                disagreement = max(disagreement, np.abs(near.sum(axis=1) - 1).max(), np.abs(far.sum(axis=1) - 1).max())
                found = (far[:, 0] - near[:, 0], rough[1] - rough[0], far[:, 1] - near[:, 1])
                for case, rise in enumerate(found):
                    np.maximum.at(rises[case, i], d - 1, rise)
                falls += int(np.sum(found[2] < 0))
                bar.update(count)
            lam, d = _random_noncentralities(rng, config.num_slopes // len(SIZES), size)
            slope = theory.win_slopes(lam, d, rule=rules[size])
            slopes[:, i] = slope[:, 0].max(), slope[:, 1].max()
    return xr.Dataset(
        dict(
            rise=(("case", "num_rows", "searched_dimension"), np.where(np.isfinite(rises), rises, -1.0)),
            slope=(("ranked", "num_rows"), slopes),
        ),
        coords=dict(
            case=list(CASES), num_rows=list(SIZES), searched_dimension=np.arange(1, 65), ranked=["nearest", "second"]
        ),
        attrs=dict(
            configurations=per_size * len(SIZES), second_nearest_falls=falls, probabilities_off_one=float(disagreement)
        ),
    )


def _differences(config: Config):
    """dP/dh of the nearest row: differences of the exact robustness against the formula."""
    import xarray as xr

    rng = np.random.default_rng(config.seed + 1)
    measured, predicted = [], []
    for case in range(config.num_differences):
        lam, d = (a[0] for a in _random_noncentralities(rng, 1, SIZES[case % len(SIZES)]))
        step = 0.02 * np.sqrt(1.0 + lam[0])
        lam = lam + 2 * step  # room for the stencil
        stays = []
        for times in (1, -1, 2, -2):
            # Rows along one axis at distance √λ from a query at the origin: nothing else matters.
            rows = np.sqrt(lam + times * step)[:, None] * np.eye(1, d)
            stays.append(sim.exact_robustness(rows, np.zeros((1, d)), sigma=1.0)[0])
        measured.append((8 * (stays[0] - stays[1]) - (stays[2] - stays[3])) / (12 * step))
        predicted.append(theory.win_slopes(lam[None, :], d)[0, 0])
    return xr.Dataset(dict(difference=("trial", measured), predicted_difference=("trial", predicted)))


def _queries(config: Config):
    """Exact robustness of single queries on a gallery moved to α*_y ± t, and to 1 ± t."""
    import xarray as xr

    gallery, queries, _ = random_classes(10, 32, config.num_queries, config.seed)
    depths = np.linspace(-0.7, 0.7, config.num_queries)  # some queries nearer to the gallery, some beyond the others
    queries = queries + depths[:, None] * sim.gap_vector(gallery, queries)[None, :]
    closer = sim.GapCloser().fit(gallery, queries)
    offsets = np.linspace(-1.5, 1.5, 13)
    around = np.empty((2, len(queries), len(offsets)))
    for i, centres in enumerate((closer.alpha_star_, np.ones(len(queries)))):
        for j, (query, centre) in enumerate(zip(queries, centres, strict=True)):
            for k, offset in enumerate(offsets):
                moved = closer.transform(gallery, centre + offset)
                around[i, j, k] = sim.exact_robustness(moved, query[None, :], sigma=config.sigma)[0]
    return xr.Dataset(
        dict(query_robustness=(("centre", "query", "offset"), around), alpha_star=("query", closer.alpha_star_)),
        coords=dict(centre=["own", "closure"], offset=offsets),
    )


def mixed_queries(seed: int):
    """10 orthonormal gallery rows in 32 dimensions, 90 safe queries of the other modality and 10 close calls of the
    gallery's own. Returns gallery [10, 32], safe [90, 32], own [10, 32]."""
    rng = np.random.default_rng(seed)
    gallery = np.eye(10, 32)
    # The safe queries lean to the first class, so that g has a part inside the gallery's span and differs from g'.
    gap = 1.5 * np.eye(32)[31] + 0.4 * gallery[0]
    safe = np.tile(gallery, (9, 1)) + gap[None, :] + 0.02 * rng.normal(size=(90, 32))
    own = 0.58 * gallery + 0.42 * np.roll(gallery, 1, axis=0) + 0.02 * rng.normal(size=(10, 32))
    return gallery, safe, own


def _average(config: Config):
    """The averaged robustness with and without the queries from the gallery's own modality."""
    import xarray as xr
    from scipy.optimize import brentq, minimize_scalar

    gallery, safe, own = mixed_queries(config.seed)
    queries = np.concatenate([safe, own])
    closer, safe_closer = (sim.GapCloser().fit(gallery, rows) for rows in (queries, safe))
    # What the average would be if every query lay at the mean position along g', α*_y = 1.
    aligned = queries - (closer.alpha_star_ - 1.0)[:, None] * closer.direction_[None, :]

    def exact(alpha, rows=queries):
        return sim.exact_robustness(closer.transform(gallery, alpha), rows, sigma=config.sigma).mean()

    alphas = np.linspace(0.0, 1.5, config.num_alphas)
    draws = dict(noise=sim.GaussianNoise(config.sigma), num_draws=config.num_draws, key=jax.random.key(config.seed))
    estimates = [sim.measured_robustness(closer.transform(gallery, a), queries, **draws) for a in alphas]
    slope = lambda alpha: theory.average_robustness_slope(  # noqa: E731
        gallery, queries, closer.direction_, sigma=config.sigma, alpha=alpha
    )
    peak = minimize_scalar(lambda a: -exact(a), bounds=(0.0, 1.0), method="bounded", options=dict(xatol=1e-5)).x
    answers = nearest_rows(gallery, queries)
    changed = [
        [np.sum(nearest_rows(gallery + a * v[None, :], queries) != answers) for a in alphas]
        for v in (closer.direction_, closer.gap_)
    ]
    # The guaranteed stretch with the queries of one modality alone, and backwards; with all queries, up to closure.
    share, end = np.linspace(0.0, 1.0, 6), safe_closer.alpha_star_.min()
    one_modality = lambda alpha: sim.exact_robustness(  # noqa: E731
        safe_closer.transform(gallery, alpha), safe, sigma=config.sigma
    ).mean()
    stretch = [
        [one_modality(a * end) for a in share],
        [one_modality(-a * end) for a in share],
        [exact(a) for a in share],
    ]
    return xr.Dataset(
        dict(
            average=("alpha", [e.mean for e in estimates]),
            average_error=("alpha", [e.standard_error for e in estimates]),
            predicted_average=("alpha", [exact(a) for a in alphas]),
            aligned_average=("alpha", [exact(a, aligned) for a in alphas]),
            changed=(("direction", "alpha"), np.array(changed, int)),
            stretch=(("stretch_of", "share"), np.array(stretch)),
        ),
        coords=dict(
            alpha=alphas,
            direction=["g'", "g"],
            stretch_of=["one modality", "one modality, backwards", "mixed"],
            share=share,
        ),
        attrs=dict(
            measured_peak=float(peak),
            predicted_peak=float(brentq(slope, 0.01, 1.0, xtol=1e-8)),
            smallest_alpha_star=float(closer.alpha_star_.min()),
            mean_alpha_star=float(closer.alpha_star_.mean()),
        ),
    )


def judge(data) -> list[sim.Row]:
    """Steps of the proof, the search, single queries, the average."""
    values = {name: variable.values for name, variable in data.data_vars.items()}

    def same(name, predicted, near_miss, measured, tolerance, control_name):
        checks = [sim.Check("identity", np.asarray(p), np.asarray(measured), tolerance) for p in (predicted, near_miss)]
        return sim.Row(name, *checks, control_name)

    def never_above_zero(name, measured, near_miss, tolerance, control_name):
        checks = [
            sim.Check("absolute", np.zeros(np.shape(v)), np.maximum(v, 0.0), tolerance) for v in (measured, near_miss)
        ]
        return sim.Row(name, *checks, control_name)

    def trend(signs, curve, at):
        return sim.Check("monotone", signs, curve, 4.0, np.full(len(curve), ROUNDING), at)

    def worst_trend(curves):
        signs = np.where(data.offset.values[1:] <= 0, 1.0, -1.0)
        return max((trend(signs, curve, data.offset.values) for curve in curves), key=lambda check: check.error())

    ratio, slope = values["density_ratio"], values["predicted_distribution_slope"]
    # The ratio I_{ν+1}/I_ν = (f⁺/f) √(λ/s).
    without_z = ratio * np.sqrt(data.noncentrality.values[None, :, None] / values["squared_distance"][:, None, :])
    nearest, coarse, _ = values["rise"]
    own, closure = values["query_robustness"]
    half = data.sizes["offset"] // 2
    mirrored = [sim.Check("identity", c[:, :half], c[:, :half:-1], 1e-9) for c in (own, closure)]
    up, share = np.ones(data.sizes["share"] - 1), data.share.values
    forward, backward, mixed = (trend(up, curve, share) for curve in values["stretch"])
    average = values["average"], 4.0, values["average_error"]
    unchanged = [sim.Check("absolute", np.zeros(len(counts)), counts, 0.5) for counts in values["changed"]]
    peaks = data.attrs
    return [
        same("∂F_d/∂λ against −f_{d+2}", slope, 0.5 * slope, values["distribution_slope"], 2e-9, "a factor ½"),
        same(
            "f⁺/f against s I_{ν+1}(z)/(z I_ν(z))",
            values["predicted_density_ratio"], values["wrong_density_ratio"], ratio, 1e-10, "ν = d/2",
        ),
        same(
            "I_{ν+1}(z)/(z I_ν(z)) against Σ 2/(z² + j²)",
            values["predicted_bessel_ratio"], values["wrong_bessel_ratio"], values["bessel_ratio"], 1e-9,
            "ν + 1 with the zeros of J_{ν+1}",
        ),
        never_above_zero(
            "steps of log f⁺/f along λ",
            np.diff(np.log(ratio), axis=1), np.diff(np.log(without_z), axis=1), 1e-12, "I_{ν+1}/I_ν without 1/z",
        ),
        same(
            "dP_j/dh of the nearest row against differences of the exact value",
            values["predicted_difference"], 0.5 * values["predicted_difference"], values["difference"], 1e-8,
            "∂F_d/∂λ = −½ f_{d+2}",
        ),
        never_above_zero(
            "largest dP_j/dh of the nearest row, random galleries",
            values["slope"][0], values["slope"][1], 1e-11, "the second nearest row",
        ),
        never_above_zero(
            "largest rise of P_j of the nearest row under h, random galleries",
            nearest, coarse, 1e-11, "trapezoid rule of 24 nodes",
        ),
        sim.Row("Rob_y(α*_y + t) against Rob_y(α*_y − t)", *mirrored, "about α = 1"),
        sim.Row(
            "Rob_y rises to α*_y and falls after, every query", worst_trend(own), worst_trend(closure), "about α = 1"
        ),
        sim.Row(
            "average robustness rises up to min_y α*_y", forward, backward, "moving by −g'", outside=mixed,
            condition="α stays below the smallest α*_y, which is 0 when some queries are of the gallery's own modality",
        ),
        sim.Row(
            "average over mixed queries at every α against the exact value",
            sim.Check("monte_carlo", values["predicted_average"], *average),
            sim.Check("monte_carlo", values["aligned_average"], *average), "all queries of one modality",
        ),
        same(
            "peak of the average over mixed queries",
            [peaks["predicted_peak"]], [peaks["mean_alpha_star"]], [peaks["measured_peak"]], 1e-4,
            "at closure, the mean α*_y",
        ),
        sim.Row("clean decisions changed, mixed queries, all α", *unchanged, "moving by g in place of g'"),
    ]  # fmt: skip


def draw(data):
    """Ratio, search, single queries, average."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(_figures.TWO_COLUMNS, 4.6), layout="constrained")
    (ratio, search), (single, average) = axes
    grey = _figures.CONTROL
    middle = data.sizes["s"] // 2
    for color, d in zip(_figures.COLORS, (1, 3, 8, 64), strict=False):
        here = data.sel(dimension=d).isel(s=middle)
        s = float(here.squared_distance)
        ratio.plot(data.noncentrality, here.predicted_density_ratio / s, color=color, label=f"d = {d}")
        ratio.plot(data.noncentrality, here.density_ratio / s, "o", color=color)
        label = "without 1/z" if d == 1 else None
        without_z = here.density_ratio * np.sqrt(data.noncentrality / s)
        ratio.plot(data.noncentrality, without_z, color=grey, linestyle="--", linewidth=0.8, label=label)
    ratio.set(xscale="log", yscale="log", xlabel="noncentrality λ", ylabel="f⁺/(s f)", ylim=(1e-3, 2))
    ratio.set_title("(a) density ratio")
    ratio.legend(ncols=3, loc="lower left")
    styles = dict(zip(CASES, ((_figures.COLORS[0], "o"), (grey, "x"), (grey, "^")), strict=True))
    for name, (color, marker) in styles.items():
        values = np.maximum(data.rise.sel(case=name).max("num_rows"), 1e-17)
        search.plot(data.searched_dimension, values, marker, color=color, label=name)
    search.set(yscale="log", ylim=(3e-18, 5), xlabel="dimensions d", ylabel="largest rise of P_j (floor 1e-17)")
    search.set_title(f"(b) search, {data.attrs['configurations']:,} galleries")
    search.legend(loc="center right")
    chosen = np.argsort(data.alpha_star.values)[:: max(1, data.sizes["query"] // 4)][:5]
    for color, query in zip(_figures.COLORS, chosen, strict=False):
        centre = float(data.alpha_star[query])
        curve = data.query_robustness.sel(centre="own").isel(query=query)
        single.plot(centre + data.offset, curve, color=color, marker="o")
        single.axvline(centre, color=color, linestyle=":", linewidth=0.8)
    single.set(xlabel="closing α", ylabel="robustness of one query", title="(c) single queries and their α*_y")
    average.plot(data.alpha, data.predicted_average, color=_figures.COLORS[0], label="exact, mixed queries")
    average.errorbar(
        data.alpha, data.average, 4 * data.average_error, color=_figures.COLORS[0], fmt="o", label="measured"
    )
    average.plot(
        data.alpha, data.aligned_average, color=grey, linestyle="--", linewidth=0.8, label="if of one modality"
    )
    average.axvline(data.attrs["predicted_peak"], color="black", linestyle=":", linewidth=0.8, label="predicted peak")
    average.set(xlabel="closing α", ylabel="average robustness", title="(d) average over queries")
    bottom, upper = average.get_ylim()
    average.set_ylim(bottom - 0.35 * (upper - bottom), upper)
    average.legend(ncols=2, loc="lower left")
    return figure
