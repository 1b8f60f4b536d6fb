"""C6: what closing the gap buys under every noise model, for the exact rule, the top-r rule and a choice of four."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from experiments._galleries import core_galleries, nearest_rows
from simulator.robustness import changed_decisions

CLAIM = sim.Claim(
    id="C6",
    title="Closing the gap after training",
    statement=(
        "Moving the gallery by α g', g' = g − V Vᵀ g, changes no clean decision and raises robustness, up to α = 1, "
        "against noise that is independent between gallery rows (Gaussian, also with noise on the queries; "
        "quantisation; a choice of four). Noise on the queries, one draw for all rows, noise in the gallery's span or "
        "orthogonal to g' is left exactly as it was."
    ),
    source="Chowers et al. 2026, Sec. 4, Eq. 11; exact values: theory.md N4; quantisation derived here",
    assumes="V spans the centred gallery; Euclidean nearest neighbour; a quantisation step that does not grow with α",
    expected=("holds if", "holds", "holds", "holds", "holds if", "holds if", "holds", "holds", "holds"),
)
CAPTION = (
    "(a) Robustness against closing under each kind of noise (σ² = 0.005, first gallery); noise that closing cannot "
    "touch is flat, with 0 changed decisions in float64. (b) Gallery noise at the paper's variances: exact (lines; "
    "solid, dashed, dotted: the galleries of (c)), measured (points, ± 4 standard errors, mostly smaller than the "
    "marker); grey: moving the wrong way, −α g'. (c) Clean decisions changed at α = 1 when g' keeps only the top r "
    "principal directions. (d) Quantisation, mean over galleries and random bases ± 4 standard errors: it rises with "
    "closing when g' is spread over many coordinates; with g' on one coordinate a fixed or per-dimension range gains "
    "nothing, and the [min, max] range widens with the shift. (e) Fixed range against the number of bins, first "
    "gallery: exact robustness at σ² = step²/12 (lines) holds once the step is at most half the spread of a "
    "coordinate; grey: step²/6. (f) A choice among four rows, one set per query (σ² = 0.022)."
)
KINDS = ("gallery", "both", "queries", "shared", "gallery's span", "orthogonal to g'")
UNTOUCHED = KINDS[2:]
RANGES = ("fixed", "minmax", "per_dimension")
BASES = ("spread", "one coordinate")
COARSE_BINS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trained galleries of class prototypes, the paper's variances (chance is near at .022 and .040) and bins."""

    data: Literal["both", "synthetic", "digits"] = "both"
    num_galleries: int = 3
    num_classes: int = 100
    embed_dim: int = 128
    steps: int = 2000
    variances: tuple[float, ...] = (0.005, 0.022, 0.040)
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    components: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    bins: tuple[int, ...] = (4, COARSE_BINS, 32, 64, 128, 256)
    closings: tuple[float, ...] = (0.0, 0.5, 1.0)
    num_bases: int = 48
    num_queries: int = 48
    num_choosers: int = 24
    num_choices: int = 4
    num_draws: int = 800
    num_paired_draws: int = 20
    seed: int = 0


QUICK = Config(
    data="synthetic",
    num_galleries=1,  # every shape is compiled anew
    num_classes=20,
    embed_dim=32,
    steps=300,
    alphas=(0.0, 0.5, 1.0, 1.5, 2.0),
    components=(1, 4, 8, 16),
    num_queries=32,
    num_choosers=16,
    num_paired_draws=10,
)


def measure(config: Config, *, progress: bool = False):
    """Every noise model on every gallery."""
    import xarray as xr
    from tqdm import tqdm

    galleries = core_galleries(config.data, config.embed_dim, config.steps, config.seed, num_classes=config.num_classes)
    galleries, parts = dict(list(galleries.items())[: config.num_galleries]), []
    with jax.enable_x64(True):
        for gallery, queries, labels in tqdm(galleries.values(), disable=not progress, desc="galleries"):
            closer = sim.GapCloser().fit(gallery, queries)
            few, choosers = queries[: config.num_queries], queries[: config.num_choosers]
            parts.append(
                _clean(config, closer, gallery, queries)
                | _noise(config, closer, gallery, few)
                | _choices(config, closer, gallery, choosers, labels[: len(choosers)])
                | _quantized(config, closer, gallery, few)
            )
    return xr.Dataset(
        {name: (("gallery", *axes), np.stack([p[name][1] for p in parts])) for name, (axes, _) in parts[0].items()},
        coords=dict(
            gallery=list(galleries), alpha=list(config.alphas), components=[*map(str, config.components), "all"],
            kind=list(KINDS), variance=list(config.variances), range=list(RANGES), basis=list(BASES),
            bins=list(config.bins), closing=list(config.closings),
        ),
    )  # fmt: skip


def _clean(config: Config, closer, gallery, queries) -> dict:
    """Clean decisions changed by the rule with r components, and by g itself."""
    answers = nearest_rows(gallery, queries)
    changed = lambda direction, alpha: np.sum(nearest_rows(gallery + alpha * direction, queries) != answers)  # noqa: E731
    rules = [sim.GapCloser(num_components=r).fit(gallery, queries) for r in config.components] + [closer]
    counts = [[changed(rule.direction_[None, :], a) for a in config.alphas] for rule in rules]
    by_gap = [changed(closer.gap_[None, :], a) for a in config.alphas]
    return dict(changed=(("components", "alpha"), np.array(counts)), changed_by_gap=(("alpha",), np.array(by_gap)))


def _noise_model(kind: str, sigma: float, closer, gallery) -> sim.GaussianNoise:
    if kind == "gallery's span":
        return sim.GaussianNoise(sigma, within=gallery - gallery.mean(axis=0)[None, :])
    if kind == "orthogonal to g'":
        return sim.GaussianNoise(sigma, orthogonal_to=closer.direction_)
    return sim.GaussianNoise(sigma, on=kind)


def _noise(config: Config, closer, gallery, queries) -> dict:
    """Robustness to noise on the gallery at every variance, measured and exact; to the other kinds at the first one.
    Draws are paired over α."""
    key = jax.random.key(config.seed)
    sigmas = np.sqrt(config.variances)
    measured, error, exact = (np.empty((len(sigmas), len(config.alphas))) for _ in range(3))
    by_kind, by_kind_error, paired = (np.empty((len(KINDS), len(config.alphas))) for _ in range(3))
    wrong_way = np.empty(len(config.alphas))
    for k, alpha in enumerate(config.alphas):
        moved = closer.transform(gallery, alpha)
        for j, sigma in enumerate(sigmas):
            draws = dict(num_draws=config.num_draws, key=jax.random.fold_in(key, j))
            estimate = sim.measured_robustness(moved, queries, noise=sim.GaussianNoise(sigma), **draws)
            measured[j, k], error[j, k] = estimate.mean, estimate.standard_error
            exact[j, k] = sim.exact_robustness(moved, queries, sigma=sigma).mean()
        wrong_way[k] = sim.exact_robustness(closer.transform(gallery, -alpha), queries, sigma=sigmas[0]).mean()
        for i, kind in enumerate(KINDS):
            noise = _noise_model(kind, sigmas[0], closer, gallery)
            estimate = sim.measured_robustness(moved, queries, noise=noise, num_draws=config.num_draws, key=key)
            by_kind[i, k], by_kind_error[i, k] = estimate.mean, estimate.standard_error
            draws = dict(num_draws=config.num_paired_draws, key=key)
            paired[i, k] = changed_decisions(gallery, moved, queries, noise=noise, **draws)
    axes, on_kind = ("variance", "alpha"), ("kind", "alpha")
    return dict(
        measured=(axes, measured), standard_error=(axes, error), predicted=(axes, exact), wrong_way=(("alpha",), wrong_way),
        by_kind=(on_kind, by_kind), by_kind_error=(on_kind, by_kind_error), paired_changes=(on_kind, paired),
    )  # fmt: skip


def _choices(config: Config, closer, gallery, queries, labels) -> dict:
    """Each query chooses among its own gallery row and others drawn for it (multiple-choice question answering)."""
    rng, rows = np.random.default_rng(config.seed), np.arange(len(gallery))
    others = [rng.permutation(np.delete(rows, label))[: config.num_choices - 1] for label in labels]
    options = [np.array([label, *rest]) for label, rest in zip(labels, others, strict=True)]
    # The middle variance: with four rows the smallest is no challenge to the best galleries.
    key, sigma = jax.random.key(config.seed), np.sqrt(config.variances[len(config.variances) // 2])
    found = {
        name: np.empty(len(config.alphas))
        for name in (
            "choice",
            "choice_error",
            "predicted_choice",
            "wrong_way_choice",
            "flat_choice",
            "flat_choice_error",
        )
    }
    for k, alpha in enumerate(config.alphas):
        moved, opposite = closer.transform(gallery, alpha), closer.transform(gallery, -alpha)
        exact = lambda rows: np.mean([  # noqa: E731
            sim.exact_robustness(rows[four], query[None, :], sigma=sigma)[0]
            for four, query in zip(options, queries, strict=True)
        ])  # fmt: skip
        found["predicted_choice"][k], found["wrong_way_choice"][k] = exact(moved), exact(opposite)
        for on, name in (("gallery", "choice"), ("queries", "flat_choice")):
            estimates = [
                sim.measured_robustness(
                    moved[four], query[None, :], noise=sim.GaussianNoise(sigma, on=on), num_draws=config.num_draws,
                    key=jax.random.fold_in(key, i),
                )
                for i, (four, query) in enumerate(zip(options, queries, strict=True))
            ]  # fmt: skip
            found[name][k] = np.mean([e.mean for e in estimates])
            # Queries have independent draws here.
            found[f"{name}_error"][k] = np.linalg.norm([e.standard_error for e in estimates]) / len(estimates)
    return {name: (("alpha",), values) for name, values in found.items()}


def random_basis(rng, direction: np.ndarray, *, on_one_coordinate: bool) -> np.ndarray:
    """A random orthogonal matrix Q [d, d], uniform, or uniform among those that take `direction` to the first axis.
    Rows in the new basis are `rows @ Q.T`: all distances stay, only the coordinates that are quantised change."""
    basis, triangle = np.linalg.qr(rng.normal(size=(len(direction), len(direction))))
    basis *= np.sign(np.diag(triangle))[None, :]
    if not on_one_coordinate:
        return basis
    image = basis @ (direction / np.linalg.norm(direction))
    image[0] -= 1.0
    return basis - 2 * np.outer(image, image @ basis) / (image @ image)  # reflects the image onto the first axis


def _quantized(config: Config, closer, gallery, queries) -> dict:
    """Robustness to quantisation, mean and standard error over bases; decisions that closing changes under it.

    The bases are the same at every α, so the error of a curve over α is the one within bases (each basis's own mean
    over α taken out, with Morey's factor for the mean taken).
    """
    shape = (len(BASES), len(RANGES), len(config.closings))
    answers = nearest_rows(gallery, queries)  # in every basis, and at every α
    survives = lambda rows, asked, bins, bounds: (  # noqa: E731
        nearest_rows(np.asarray(sim.Quantization(bins, range=bounds)(rows)), asked) == answers
    )
    coarse, fine = (np.empty((config.num_bases, *axes)) for axes in (shape, (len(config.bins), 2)))
    changes = np.zeros(shape, int)
    for b in range(config.num_bases):
        for i, name in enumerate(BASES):
            rng = np.random.default_rng([config.seed, b])
            basis = random_basis(rng, closer.direction_, on_one_coordinate=name == "one coordinate")
            asked, rows = queries @ basis.T, [closer.transform(gallery, a) @ basis.T for a in config.closings]
            for j, bounds in enumerate(RANGES):
                kept = np.array([survives(row, asked, COARSE_BINS, bounds) for row in rows])
                coarse[b, i, j] = kept.mean(axis=1)
                changes[i, j] += np.sum(kept != kept[:1], axis=1)
            if name == "spread":
                fine[b] = [[survives(rows[k], asked, n, "fixed").mean() for k in (0, -1)] for n in config.bins]
    ends = [gallery, closer.transform(gallery, 1.0)]
    steps = 2.0 / np.array(config.bins)
    exact = [
        [[sim.exact_robustness(r, queries, sigma=s / part**0.5).mean() for r in ends] for s in steps]
        for part in (12, 6)
    ]
    # No basis may show an error though there is one: at least one decision in all.
    resolution = 1.0 / (config.num_bases * len(queries))
    error = lambda values: np.maximum(values.std(axis=0, ddof=1) / config.num_bases**0.5, resolution)  # noqa: E731
    within = coarse - coarse.mean(axis=3, keepdims=True) + coarse.mean()
    morey = (len(config.closings) / (len(config.closings) - 1)) ** 0.5
    on_coarse, on_fine = ("basis", "range", "closing"), ("bins", "end")
    return dict(
        coarse=(on_coarse, coarse.mean(axis=0)), coarse_error=(on_coarse, morey * error(within)),
        quantized_changes=(on_coarse, changes), fine=(on_fine, fine.mean(axis=0)), fine_error=(on_fine, error(fine)),
        predicted_fine=(on_fine, np.array(exact[0])), twice_fine=(on_fine, np.array(exact[1])),
        step_over_spread=(("bins",), steps / gallery.std()),
    )  # fmt: skip


def over_galleries(data, name: str):
    """Mean of a curve over the galleries, and its standard error."""
    return data[name].mean("gallery"), np.sqrt((data[f"{name}_error"] ** 2).sum("gallery")) / data.sizes["gallery"]


def judge(data) -> list[sim.Row]:
    """Clean decisions, Gaussian noise, quantisation, choices."""
    alpha, closing = data.alpha.values, data.closing.values

    def none(counts):
        return sim.Check("absolute", np.zeros(counts.shape), counts.values, 0.5)

    def agreement(predicted, measured, error):
        return sim.Check("monte_carlo", predicted.values.ravel(), measured.values.ravel(), 4.0, error.values.ravel())

    def trend(at, *curves):
        # The worst curve speaks for all.
        signs = np.where(at[1:] <= 1.0, 1.0, -1.0)
        checks = [sim.Check("monotone", signs, np.asarray(v), 4.0, np.asarray(e), at) for v, e in curves]
        return max(checks, key=lambda check: check.error())

    on = lambda kind: list(  # noqa: E731
        zip(data.by_kind.sel(kind=kind).values, data.by_kind_error.sel(kind=kind).values, strict=True)
    )

    def quantized(basis):
        return [over_galleries(data.sel(basis=basis, range=bounds), "coarse") for bounds in ("fixed", "per_dimension")]

    fine, wide = data.step_over_spread.values <= 0.5, data.step_over_spread.values > 1.0
    on_steps = [data[name].values for name in ("predicted_fine", "twice_fine", "fine", "fine_error")]
    by_steps = lambda which, twice=0: sim.Check(  # noqa: E731
        "monte_carlo", on_steps[twice][which].ravel(), on_steps[2][which].ravel(), 4.0, on_steps[3][which].ravel()
    )
    first = data.isel(variance=0)
    minmax = data.sel(basis="one coordinate", range="minmax")
    one = data.quantized_changes.sel(basis="one coordinate")
    return [
        sim.Row(
            "clean decisions changed by α g', all principal directions", none(data.changed.sel(components="all")),
            none(data.changed_by_gap), "moving by g", outside=none(data.changed.isel(components=slice(0, -1))),
            condition="V spans the centred gallery; the top r directions do not suffice",
        ),
        sim.Row(
            "robustness to gallery noise at every (gallery, σ², α) against the exact value",
            agreement(data.predicted, data.measured, data.standard_error),
            agreement(first.wrong_way, first.measured, first.standard_error), "moving by −α g'",
        ),
        sim.Row(
            "robustness rises to α = 1 and falls after: noise on the gallery, noise on both",
            trend(alpha, *on("gallery"), *on("both")), trend(alpha, *on("queries")), "noise on the queries alone",
        ),
        sim.Row(
            "noisy decisions changed by α g': noise on queries, shared, in the gallery's span, orthogonal to g'",
            none(data.paired_changes.sel(kind=list(UNTOUCHED))), none(data.paired_changes.sel(kind=["gallery"])),
            "independent noise on every row",
        ),
        sim.Row(
            "robustness to fixed-range quantisation against the exact value at σ² = step²/12", by_steps(fine),
            by_steps(fine, 1), "σ² = step²/6", outside=by_steps(wide),
            condition="the step is at most half the spread of a gallery coordinate",
        ),
        sim.Row(
            f"robustness to {COARSE_BINS} bins rises to α = 1: fixed, per-dimension range, g' spread over coordinates",
            trend(closing, *quantized("spread")), trend(closing, *quantized("one coordinate")),
            "g' on one coordinate", outside=trend(closing, over_galleries(minmax, "coarse")),
            condition="the range is fixed or per dimension and g' is spread over coordinates; [min, max] widens with α",
        ),
        sim.Row(
            f"decisions under {COARSE_BINS} bins changed by α g' with g' on one coordinate: fixed, per-dimension range",
            none(one.sel(range=["fixed", "per_dimension"])), none(one.sel(range=["minmax"])), "range [min, max]",
        ),
        sim.Row(
            "choice of four: robustness against the exact value",
            agreement(data.predicted_choice, data.choice, data.choice_error),
            agreement(data.wrong_way_choice, data.choice, data.choice_error), "moving by −α g'",
        ),
        sim.Row(
            "choice of four: robustness rises to α = 1 and falls after, mean over galleries",
            trend(alpha, over_galleries(data, "choice")), trend(alpha, over_galleries(data, "flat_choice")),
            "noise on the queries",
        ),
    ]  # fmt: skip


def draw(data):
    """Six panels: kinds of noise, variances, top-r rule, quantisation twice, choices."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(_figures.TWO_COLUMNS, 4.8), layout="constrained")
    kinds, variances, top, coarse, fine, choice = axes.ravel()
    colors, grey, name = _figures.COLORS, _figures.CONTROL, str(data.gallery.values[0])
    with_room = dict(xlabel="closing α", ylabel="robustness", ylim=(0, 1.45), yticks=[0, 0.25, 0.5, 0.75, 1])
    narrow = dict(loc="upper center", handlelength=1.2, columnspacing=0.8, borderaxespad=0.0)
    for color, kind, marker in zip(colors, KINDS, "osv^D*", strict=True):
        here = data.isel(gallery=0).sel(kind=kind)
        kinds.plot(data.alpha, here.by_kind, color=color, marker=marker, fillstyle="none", label=kind)
    kinds.set(title=f"(a) {name}", **with_room)
    kinds.legend(ncols=2, **narrow)
    for i, style in zip(range(data.sizes["gallery"]), ("-", "--", ":"), strict=False):
        for color, variance in zip(colors, data.variance.values, strict=False):
            here = data.isel(gallery=i).sel(variance=variance)
            variances.plot(data.alpha, here.predicted, style, color=color)
            variances.errorbar(data.alpha, here.measured, 4 * here.standard_error, color=color, fmt="o")
            if i == 0:
                variances.plot([], [], color=color, label=f"σ² = {variance:g}")
        variances.plot(data.alpha, data.wrong_way.isel(gallery=i), style, color=grey, linewidth=0.8)
    variances.set(title="(b) all galleries", **with_room)
    variances.legend(ncols=2, **narrow)
    at = int(np.argmin(np.abs(data.alpha.values - 1.0)))
    places = np.arange(data.sizes["components"])
    for i, (color, label) in enumerate(zip(colors, data.gallery.values, strict=False)):
        here = data.isel(gallery=i)
        top.plot(places, here.changed.isel(alpha=at), color=color, marker="o", label=str(label))
        by_gap = float(here.changed_by_gap.isel(alpha=at))
        top.axhline(by_gap, color=grey, linestyle=":", linewidth=0.8, label="moving by g" if i == 0 else None)
        choice.plot(data.alpha, here.predicted_choice, color=color, label=str(label))
        choice.errorbar(data.alpha, here.choice, 4 * here.choice_error, color=color, fmt="o")
        choice.plot(data.alpha, here.wrong_way_choice, color=grey, linewidth=0.8)
    top.set_yscale("symlog", linthresh=1)
    top.set(title="(c) top r directions", xlabel="r", ylabel="decisions changed", ylim=(-0.3, 1e5))
    top.set_xticks(places, data.components.values)
    top.legend(loc="upper right")
    for color, bounds in zip(colors, RANGES, strict=False):
        for basis, style in zip(BASES, ("-", "--"), strict=True):
            values, error = over_galleries(data.sel(basis=basis, range=bounds), "coarse")
            label = bounds.replace("_", " ") if basis == "spread" else None
            coarse.errorbar(data.closing, values, 4 * error, color=color, fmt=f"o{style}", label=label)
    coarse.plot([], [], "--", color=grey, label="g' on one axis")
    coarse.set(
        **with_room | dict(title=f"(d) {COARSE_BINS} bins, all galleries", ylim=(0.5, 1.2), yticks=[0.6, 0.8, 1])
    )
    coarse.legend(ncols=2, **narrow)
    for end, color in zip((0, 1), colors, strict=False):
        here = data.isel(gallery=0, end=end)
        fine.plot(data.bins, here.predicted_fine, color=color)
        fine.plot(data.bins, here.twice_fine, "--", color=grey, linewidth=0.8, label=None if end else "step²/6")
        fine.errorbar(data.bins, here.fine, 4 * here.fine_error, color=color, fmt="o", label=f"α = {end}")
    fine.set(title="(e) fixed range", xscale="log", xlabel="bins", ylabel="robustness")
    fine.set_xticks(data.bins.values, [str(b) for b in data.bins.values])
    fine.minorticks_off()
    fine.legend(loc="lower right")
    choice.set(title="(f) choice of four", **with_room)
    choice.legend(**narrow)
    return figure
