"""N8: which side to move under which scoring, and when the paper's step matters."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, moves, none, up_to, worst
from experiments.setups.galleries import core_galleries, random_classes, unit_rows
from experiments.setups.trends import spread, stated
from simulator.losses import Similarity
from simulator.theory.scoring import cosine_robustness
from simulator.theory.storage import centred_robustness

CLAIM = sim.Claim(
    id="N8",
    title="Which scoring, which side",
    summary="Whether to move the gallery or the queries depends on the scoring: distance, inner product or cosine.",
    statement=(
        "On unit rows and along g' no clean decision depends on scoring or side, but robustness to noise on the rows does: "
        "under distance moving the gallery is moving the queries back; under inner products moving the gallery has no effect "
        "and the queries belong at their mean (moved by g' they may lose); under cosine both sides count, and a gallery moved far ends at the "
        "inner-product rule with the query's part along g' taken out."
    ),
    source="derived here (with theory.md N6); distances: Chowers et al. 2026, Sec. 4",
    assumes="unit rows; independent Gaussian noise on the gallery rows; cosine normalises the rows after the noise",
    expected=dict.fromkeys(
        (
            "clean decisions",
            "inner products, gallery",
            "distance, both sides",
            "exact values",
            "mean query",
            "mean beats gap",
            "far limit",
        ),
        "holds",
    )
    | {"gap helps": "refuted"},
)
PRECISION = "float32 training, float64 draws, predictions and decisions"
CAPTION = (
    "(a–l) Robustness against the shift α along g' applied to the gallery, the queries (the other way) or half to each, one "
    "column per scoring, one row per gallery of unit rows; lines: exact, points: measured, ± 4 standard errors over 12,000 "
    "draws (mostly smaller than the marker). Under inner products also: queries moved by α times their mean, with one exact "
    "scalar per class (black). Dotted: the limit of a gallery moved far under cosine. Grey: the value for cosine if the rows "
    "were not normalised again after the noise (gallery moved)."
)
SCORINGS: tuple[Similarity, ...] = ("sqeuclidean", "dot", "cosine")
SIDES = ("gallery", "queries", "both")
TITLES = dict(sqeuclidean="distance", dot="inner product", cosine="cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Unit rows of trained galleries, and of a random one whose gap is not orthogonal to it, moved along g' by α."""

    towers: bool = True
    embed_dim: int = 32
    steps: int = 1500
    num_classes: int = 24
    random: tuple[int, int] = (12, 32)  # rows, dimensions
    sigma: float = 0.15
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    far: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0, 256.0)
    num_queries: int = 32
    num_draws: int = 12_000
    num_far_draws: int = 1000
    seed: int = 62
    design_seeds: tuple[int, ...] = (61,)


QUICK = Config(towers=False, alphas=(0.0, 1.0, 2.0), num_queries=20, num_draws=8000, num_far_draws=800)


def measure(config: Config, *, progress: bool = False):
    """Robustness for every gallery, scoring, side and α; decisions changed; the limit of a far gallery."""
    import xarray as xr

    from simulator.progress import tqdm

    galleries = {}
    if config.towers:
        options = dict(num_classes=config.num_classes)
        galleries = core_galleries("synthetic", config.embed_dim, config.steps, config.seed, **options)
    rows, dimensions = config.random
    galleries[f"random, K = {rows}"] = random_classes(rows, dimensions, 200, config.seed)
    galleries[f"narrow, K = {rows}"] = narrow_gallery(rows, dimensions, 200, config.seed)
    parts = []
    with jax.enable_x64(True):
        for gallery, queries, _ in tqdm(galleries.values(), disable=not progress, desc="galleries"):
            x, y = unit_rows(gallery), unit_rows(queries[: config.num_queries])
            closer = sim.GapCloser().fit(x, unit_rows(queries))
            parts.append(_cells(config, x, y, closer) | _means(config, x, y) | _far(config, x, y, closer.direction_))
    return xr.Dataset(
        {name: (("gallery", *axes), np.stack([p[name][1] for p in parts])) for name, (axes, _) in parts[0].items()},
        coords=dict(
            gallery=list(galleries), scoring=list(SCORINGS), side=list(SIDES), alpha=list(config.alphas),
            far=list(config.far),
        ),
    )  # fmt: skip


def narrow_gallery(num_classes: int, dimensions: int, num_queries: int, seed: int):
    """The classes of `random_classes` in a narrow cone, asked from everywhere: the mean query is 0, so that the gap is the
    gallery's mean. Returns gallery [K, d], queries [n, d], labels [n], in float64."""
    gallery, queries, labels = random_classes(num_classes, dimensions, num_queries, seed)
    centre = np.random.default_rng([seed, 1]).normal(size=dimensions)
    return gallery + 1.5 * centre[None, :] / np.linalg.norm(centre), queries - queries.mean(axis=0)[None, :], labels


def moved(x, y, shift, side: str):
    """(gallery, queries) with `shift` [d] added to the gallery, taken from the queries, or half of each."""
    on_gallery, on_queries = dict(gallery=(1.0, 0.0), queries=(0.0, 1.0), both=(0.5, 0.5))[side]
    return x + on_gallery * shift[None, :], y - on_queries * shift[None, :]


def _answers(x, y, scoring: str):
    products = y @ x.T
    if scoring == "cosine":
        products = products / np.linalg.norm(x, axis=1)[None, :]
    if scoring == "sqeuclidean":
        products = products - 0.5 * np.sum(x**2, axis=1)[None, :]
    return products.argmax(axis=1)


def _estimate(config: Config, x, y, scoring: Similarity, bias=None) -> sim.Estimate:
    """Paired draws: the same noise in every cell."""
    noise, key = sim.GaussianNoise(config.sigma), jax.random.key(config.seed)
    return sim.measured_robustness(x, y, noise=noise, num_draws=config.num_draws, key=key, scoring=scoring, bias=bias)


def _exact(x, y, sigma: float, scoring: str) -> float:
    if scoring == "cosine":
        return cosine_robustness(x, y, sigma=sigma).mean()
    return sim.exact_robustness(x, y, sigma=sigma, scoring=scoring).mean()


def _cells(config: Config, x, y, closer) -> dict:
    """Measured and exact robustness; clean decisions changed by α g' and by α g; noisy ones that differ from those of
    the gallery as it was (dot), and from those of the queries moved the other way or the same way (distance)."""
    shape = (len(SCORINGS), len(SIDES), len(config.alphas))
    measured, error, exact = (np.empty(shape) for _ in range(3))
    changed, by_gap, kept = np.empty(shape, int), np.empty(shape, int), {}
    unnormalised = np.empty(len(config.alphas))
    same_way = np.zeros(len(config.alphas))
    for i, scoring in enumerate(SCORINGS):
        clean = _answers(x, y, scoring)
        for k, alpha in enumerate(config.alphas):
            for j, side in enumerate(SIDES):
                rows, asked = moved(x, y, alpha * closer.direction_, side)
                estimate = _estimate(config, rows, asked, scoring)
                kept[scoring, side, k] = estimate.per_query
                measured[i, j, k], error[i, j, k] = estimate.mean, estimate.standard_error
                exact[i, j, k] = _exact(rows, asked, config.sigma, scoring)
                changed[i, j, k] = np.sum(_answers(rows, asked, scoring) != clean)
                by_gap[i, j, k] = np.sum(_answers(*moved(x, y, alpha * closer.gap_, side), scoring) != clean)
            if scoring == "cosine":  # the noisy rows keep the length they have
                rows, _ = moved(x, y, alpha * closer.direction_, "gallery")
                unnormalised[k] = _exact(rows, y, config.sigma, "dot")
            if scoring == "sqeuclidean":
                wrong = _estimate(config, x, y + alpha * closer.direction_[None, :], scoring)
                same_way[k] = np.sum(np.abs(wrong.per_query - kept[scoring, "gallery", k])) * config.num_draws

    def differ(first, second):
        counts = [
            np.sum(np.abs(kept[(*first, k)] - kept[(*second, k)])) * config.num_draws for k in range(len(config.alphas))
        ]
        return np.round(counts)

    for side in ("gallery", "queries"):
        for k in range(len(config.alphas)):
            kept["start", side, k] = kept["dot", side, 0]
    axes, on_alpha = ("scoring", "side", "alpha"), ("alpha",)
    return dict(
        measured=(axes, measured), error=(axes, error), exact=(axes, exact), changed=(axes, changed), by_gap=(axes, by_gap),
        unnormalised=(on_alpha, unnormalised), same_way=(on_alpha, np.round(same_way)),
        dot_gallery=(on_alpha, differ(("dot", "gallery"), ("start", "gallery"))),
        dot_queries=(on_alpha, differ(("dot", "queries"), ("start", "queries"))),
        two_sides=(on_alpha, differ(("sqeuclidean", "gallery"), ("sqeuclidean", "queries"))),
    )  # fmt: skip


def _means(config: Config, x, y) -> dict:
    """Inner products with the queries moved by α times their mean, and the exact scalar."""
    found = {name: np.empty(len(config.alphas)) for name in ("mean", "mean_error", "exact_mean")}
    for k, alpha in enumerate(config.alphas):
        m = alpha * y.mean(axis=0)
        estimate = _estimate(config, x, y - m[None, :], "dot", bias=x @ m)
        found["mean"][k], found["mean_error"][k] = estimate.mean, estimate.standard_error
        found["exact_mean"][k] = centred_robustness(x, y, sigma=config.sigma, centre=m).mean()
    return {name: (("alpha",), values) for name, values in found.items()}


def _far(config: Config, x, y, direction) -> dict:
    """Share of noisy cosine decisions that differ from the rule of the limit, the gallery α‖g'‖ away; from the same rule
    with the whole query; and the exact robustness of the limit."""
    rng, along = np.random.default_rng(config.seed), direction / np.linalg.norm(direction)
    projected = y - (y @ along)[:, None] * along[None, :]
    differ, whole = np.zeros((2, len(config.far)))
    for _ in range(config.num_far_draws):
        noisy = x + config.sigma * rng.normal(size=x.shape)
        limit, near_miss = (asked @ noisy.T for asked in (projected, y))
        limit, near_miss = limit.argmax(axis=1), near_miss.argmax(axis=1)
        for k, alpha in enumerate(config.far):
            found = _answers(noisy + alpha * along[None, :], y, "cosine")
            differ[k] += np.mean(found != limit) / config.num_far_draws
            whole[k] += np.mean(found != near_miss) / config.num_far_draws
    limit = sim.exact_robustness(x, projected, sigma=config.sigma, scoring="dot").mean()
    return dict(far_differ=(("far",), differ), far_whole=(("far",), whole), limit=((), limit))


def judge(data) -> list[sim.Row]:
    """Decisions, the two identities, the exact values, the mean query, the far limit."""

    def worst_gallery(values, errors, at, signs):
        # The worst gallery speaks for all; where one moves against the signs a flat one says less.
        pairs = zip(np.asarray(values), np.asarray(errors), strict=True)
        checks = [moves(value, error, at, signs) for value, error in pairs]
        return max(checks, key=lambda check: (not check.passes(), np.isfinite(check.error()), check.error()))

    def over_alpha(values, errors):
        alpha = data.alpha.values
        return worst_gallery(values, errors, alpha, up_to(alpha, 1.0))

    def from_start(values, errors):
        pair = [np.stack([a.sel(alpha=0.0), a.sel(alpha=1.0)], axis=-1) for a in (values, errors)]
        return worst_gallery(*pair, np.arange(2), np.ones(1))

    def changes(values, errors):
        (start, end), (first, last) = ([a.sel(alpha=at).values for at in (0.0, 1.0)] for a in (values, errors))
        pairs = zip(data.gallery.values, end - start, np.hypot(first, last), strict=True)
        return "; ".join(f"{stated(change, error)}, {name}" for name, change, error in pairs)

    def never_below(first, second):
        excess = [f.sel(alpha=1.0).values for f in (second[0] - first[0], np.hypot(first[1], second[1]))]
        shown = np.argmax(excess[0] / excess[1])
        return sim.Check("absolute", np.zeros(1), np.maximum(excess[0][[shown]], 0.0), 4 * float(excess[1][shown]))

    def slope(values):
        checks = [sim.Check("slope", np.array(-1.0), v, 0.15, at=data.far.values) for v in values.values]
        return worst(checks)

    def exponent(shares):
        return spread(np.polyfit(np.log(data.far.values), np.log(shares.transpose("far", ...).values), 1)[0])

    cosine = data.sel(scoring="cosine", side="gallery")
    gallery, by_gap = ((d.measured, d.error) for d in (data.sel(scoring="dot", side=s) for s in ("gallery", "queries")))
    at_mean = data["mean"], data.mean_error
    return [
        sim.Row(
            "clean decisions", none(data.changed), none(data.by_gap),
            "moving by g in place of g'", label="clean decisions changed by α g', every gallery, scoring, side and α",
        ),
        sim.Row(
            "inner products, gallery", none(data.dot_gallery),
            none(data.dot_queries), "moving the queries",
            label="inner products: noisy decisions changed by moving the gallery",
        ),
        sim.Row(
            "distance, both sides",
            none(data.two_sides), none(data.same_way), "the queries by +v",
            label="distance: noisy decisions that differ between moving the gallery by v and the queries by −v",
        ),
        sim.Row(
            "exact values", agreement(data.exact, data.measured, data.error),
            agreement(cosine.unnormalised, cosine.measured, cosine.error), "cosine without normalising after the noise",
            label="robustness at every (gallery, scoring, side, α) against the exact value",
        ),
        sim.Row(
            "mean query", over_alpha(*at_mean),
            over_alpha(*gallery), "moving the gallery",
            label="inner products: robustness rises until the queries are at their mean and falls after",
        ),
        sim.Row(
            "mean beats gap", never_below(at_mean, by_gap),
            never_below(by_gap, at_mean), "the gap in place of the mean",
            label="inner products: how much queries moved by g' beat queries at their mean, at most",
        ),
        sim.Row(
            "gap helps", from_start(*by_gap),
            from_start(*gallery), "moving the gallery",
            label="inner products: moving the queries by g' makes them more robust in every gallery",
            condition="where the queries' mean is short, y − g' is longer than y, and they lose",
            effect=f"change from α = 0 to 1, by gallery: {changes(*by_gap)}",
        ),
        sim.Row(
            "far limit", slope(data.far_differ),
            slope(data.far_whole), "the whole query in the limit",
            label="cosine: decisions that differ from the limit of a gallery α away, exponent in α",
            blunt="farthest away a few of 32,000 decisions differ, whose count tells the exponent to ± 0.1",
            effect=f"exponent, mean over galleries: {exponent(data.far_differ)}",
        ),
    ]  # fmt: skip


def draw(data):
    """One panel per gallery and scoring."""
    import matplotlib.pyplot as plt

    rows = data.sizes["gallery"]
    figure, axes = plt.subplots(
        rows, 3, figsize=(plotting.TWO_COLUMNS, 1.55 * rows + 0.7), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    styles = dict(gallery="-", queries="--", both="-.")
    for i, name in enumerate(data.gallery.values):
        for axis, scoring in zip(axes[i], SCORINGS, strict=True):
            here = data.sel(gallery=name, scoring=scoring)
            for k, side in enumerate(SIDES):
                curve, look = here.sel(side=side), dict(linestyle="none", fillstyle="none")
                axis.plot(data.alpha, curve.exact, color=plotting.COLORS[k], linestyle=styles[side])
                look |= plotting.series(k, markersize=6 - 1.5 * k)  # one within the other
                axis.errorbar(data.alpha, curve.measured, 4 * curve.error, **look)
                axis.plot([], [], label=f"{side} moved", **look | dict(linestyle=styles[side]))
            if scoring == "dot":
                axis.plot(data.alpha, here.exact_mean, color="black", label="queries moved to their mean")
                axis.errorbar(data.alpha, here["mean"], 4 * here.mean_error, color="black", fmt="x")
            if scoring == "cosine":
                axis.axhline(float(here.limit), color=plotting.COLORS[0], linestyle=":", label="limit, gallery far")
                style = dict(color=plotting.CONTROL, linewidth=0.8, linestyle="--")
                axis.plot(data.alpha, here.unnormalised, **style, label="not normalised again")
            short = str(name).replace("free embeddings", "free rows")
            axis.set(ylim=(0, 1.03), title=f"{short}: {TITLES[scoring]}")
            if i == rows - 1:
                axis.set_xlabel("shift α along g'")
        axes[i][0].set_ylabel("robustness")
    plotting.legend_above(figure, *axes[0], ncols=3)
    return plotting.lettered(figure)
