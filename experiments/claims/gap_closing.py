"""C6: what closing the gap buys under every noise model, for the exact rule, the top-r rule and a choice of four."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, closest, none, worst
from experiments.setups.galleries import nearest_rows
from experiments.setups.trained_galleries import (
    BASES,
    FREE,
    NEAR_MISSES,
    RANGES,
    SMALL,
    UNTOUCHED,
    choices,
    exact_mean,
    gained,
    over_seeds,
    quantized,
    rounded,
    told,
    trained_galleries,
    trend,
    untold,
    untouched,
)
from experiments.setups.trends import stated
from simulator.robustness import Target

CLAIM = sim.Claim(
    id="C6",
    title="Closing the gap after training",
    summary="Closing the gap after training helps against noise that moves each gallery row by itself along the gap.",
    statement=(
        "Moving the gallery by α g', g' = g − V Vᵀ g, changes no clean decision and raises robustness, up to α = 1, "
        "against noise that is independent between gallery rows (Gaussian, also with noise on the queries; "
        "quantisation; a choice of four). Noise on the queries, one draw for all rows, noise in the gallery's span or "
        "orthogonal to g' is left exactly as it was."
    ),
    source="Chowers et al. 2026, Sec. 4, Eq. 11; exact values: theory.md N4; quantisation derived here",
    assumes="V spans the centred gallery and leaves a part of g; Euclidean nearest neighbour",
    expected={
        "clean decisions": "holds if",
        "exact values": "holds",
        "Gaussian noise": "holds if",
        "untouched noise": "holds",
        "fixed range": "holds if",
        "rounding as noise": "holds if",
        "per-dimension range": "holds if",
        "[min, max] range": "holds if",
        "choice of four": "holds if",
    },
)
CAPTION = (
    "Galleries of trained towers (ten of their classes, or all) and of free embeddings. (a) Robustness to noise on "
    "the gallery, on both sides and on the queries, ten classes; bars: ± 4 standard errors over 12 seeds, each "
    "seed's mean over α taken out. (b) Gallery noise at the paper's variances, ± 4 standard errors over 192 draws. "
    "The gap of the towers with all classes lies almost all inside the span of the classes: nothing to move. (c) "
    "The same for a choice among four rows. (d) Answers to noisy galleries that closing changes under the same "
    "draws, ten classes: none where the theory says none (black); grey: near misses. (e) Clean answers changed when "
    "g' leaves only the top r principal directions alone. (f) Answers lost to quantization, ± 4 standard errors "
    "over 64 bases; exact at σ² = step²/12, for a step of at most twice the smallest difference of two rows per "
    "coordinate (else too coarse, dotted). (g) The same with each range, bars as in (a): with g' on one coordinate, "
    "fixed and per-dimension ranges gain nothing, and the [min, max] range widens."
)
SIDES, KIND_STYLES = ("both", "queries"), ("-", "--", ":")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Towers and free embeddings trained from several seeds; the paper's variances, numbers of classes and bins.

    num_classes exceeds the towers' width, so that all classes leave next to nothing of their gap to move.
    """

    num_seeds: int = 12
    free: bool = True
    num_classes: int = 100
    embed_dim: int = 128
    learning_rate: float = 1e-3
    steps: int = 500
    variances: tuple[float, ...] = (0.005, 0.022, 0.040)
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    components: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    bins: tuple[int, ...] = (8, 32, 64, 128, 256)
    closings: tuple[float, ...] = (0.0, 0.5, 1.0)
    num_groups: int = 6
    num_bases: int = 4
    num_queries: int = 80
    num_asked: int = 20  # of the queries, under Gaussian noise and in a choice of four
    num_exact: int = 3  # seeds on which exact values and paired draws are taken
    num_rounded: int = 64  # random bases of a quantised gallery that is compared with its exact value
    num_draws: int = 192
    num_paired_draws: int = 20
    seed: int = 20262


QUICK = Config(
    num_seeds=8, free=False, num_classes=72, embed_dim=80, steps=150, variances=(0.005,), alphas=(0.0, 1.0, 2.0),
    components=(1, 4, 8), bins=(8, 32, 256), num_queries=40, num_asked=12, num_exact=2,
    num_draws=256, num_groups=4, num_bases=3, num_paired_draws=8,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Every noise model on every kind of gallery, as means and standard errors over seeds."""
    import xarray as xr

    from simulator.progress import tqdm

    with jax.enable_x64(True):
        kinds, by_kind = trained_galleries(config), []
        for seeds in tqdm(kinds.values(), disable=not progress, desc="kinds of gallery"):
            galleries = [groups[0] for groups in seeds]
            by_kind.append(_clean(config, galleries) | _noise(config, galleries) | choices(config, galleries))
        few = next(iter(kinds.values()))
        first = [groups[0] for groups in few]
        parts = _on_other_sides(config, first) | quantized(config, few)
        parts |= untouched(config, first[: config.num_exact]) | rounded(config, first[: config.num_exact])
    parts |= {
        name: (("kind", *axes), np.stack([p[name][1] for p in by_kind])) for name, (axes, _) in by_kind[0].items()
    }
    return xr.Dataset(
        parts,
        coords=dict(
            kind=list(kinds), alpha=list(config.alphas), components=[*map(str, config.components), "all"],
            noise=[*UNTOUCHED, *NEAR_MISSES], variance=list(config.variances), range=list(RANGES), basis=list(BASES),
            bins=list(config.bins), closing=list(config.closings), on=list(SIDES), target=["rows", "query"],
        ),
    )  # fmt: skip


def _clean(config: Config, galleries) -> dict:
    """Clean decisions changed by the rule with r components and by g itself, over all seeds; accuracy; what the exact
    rule moves."""
    changed, by_gap, share, right = 0, 0, [], []
    for gallery, queries, labels in galleries:
        answers = nearest_rows(gallery, queries)
        rules = [sim.GapCloser(num_components=r).fit(gallery, queries) for r in (*config.components, None)]
        counts = lambda v: [np.sum(nearest_rows(gallery + a * v, queries) != answers) for a in config.alphas]  # noqa: B023
        changed = changed + np.array([counts(rule.direction_[None, :]) for rule in rules])
        by_gap = by_gap + np.array(counts(rules[-1].gap_[None, :]))
        share.append(np.sum(rules[-1].direction_ ** 2) / np.sum(rules[-1].gap_ ** 2))
        right.append(np.mean(answers == labels))
    return dict(
        changed=(("components", "alpha"), changed), changed_by_gap=(("alpha",), by_gap), moved_share=((), np.mean(share)),
        accuracy=((), np.mean(right)), clean_decisions=((), sum(len(queries) for _, queries, _ in galleries)),
    )  # fmt: skip


def _noise(config: Config, galleries) -> dict:
    """Robustness to Gaussian noise on the gallery at every variance; on the first seeds with its exact value, and (at the
    first variance) that of moving the wrong way."""
    mean, errors = _robustness(config, galleries, "gallery", config.variances)
    exact = np.empty((config.num_exact, *mean.shape[1:]))
    wrong_way = np.empty((config.num_exact, mean.shape[-1]))
    for i, (gallery, queries, _) in enumerate(galleries[: config.num_exact]):
        closer, asked = sim.GapCloser().fit(gallery, queries), queries[: config.num_asked]
        for k, alpha in enumerate(config.alphas):
            rows = [closer.transform(gallery, side * alpha) for side in (1, -1)]
            exact[i, :, k] = [exact_mean(rows[0], asked, variance**0.5) for variance in config.variances]
            wrong_way[i, k] = exact_mean(rows[1], asked, config.variances[0] ** 0.5) if alpha else exact[i, 0, k]
    first, axes = slice(config.num_exact), ("variance", "alpha")
    population, within = over_seeds(mean, config.num_draws * config.num_asked)
    return dict(
        measured=(axes, population), population_error=(axes, within), on_exact=(axes, mean[first].mean(axis=0)),
        draw_error=(axes, np.linalg.norm(errors[first], axis=0) / config.num_exact),
        predicted=(axes, exact.mean(axis=0)), wrong_way=(axes[1:], wrong_way.mean(axis=0)),
    )  # fmt: skip


def _on_other_sides(config: Config, galleries) -> dict:
    """Robustness to Gaussian noise on both sides at every variance, and on the queries."""
    axes, decisions = ("on", "variance", "alpha"), config.num_draws * config.num_asked
    found = [_robustness(config, galleries, on, config.variances)[0] for on in SIDES]
    mean, within = zip(*(over_seeds(values, decisions) for values in found), strict=True)
    return dict(by_side=(axes, np.stack(mean)), by_side_error=(axes, np.stack(within)))


def _robustness(config: Config, galleries, on: Target, variances):
    """Measured robustness [seed, variance, α] and its standard error; draws are paired over α."""
    found = np.empty((2, len(galleries), len(variances), len(config.alphas)))
    for i, (gallery, queries, _) in enumerate(galleries):
        closer, key = sim.GapCloser().fit(gallery, queries), jax.random.fold_in(jax.random.key(config.seed), i)
        for j, k in np.ndindex(found.shape[2:]):
            estimate = sim.measured_robustness(
                closer.transform(gallery, config.alphas[k]), queries[: config.num_asked],
                noise=sim.GaussianNoise(variances[j] ** 0.5, on=on), num_draws=config.num_draws,
                key=jax.random.fold_in(key, j),
            )  # fmt: skip
            found[:, i, j, k] = estimate.mean, estimate.standard_error
    return found


def judge(data) -> list[sim.Row]:
    """Clean decisions, Gaussian noise, quantisation, choices."""
    kinds = list(data.kind.values)
    # The towers' galleries of all classes, more than the towers are wide, leave next to no gap to move.
    movable = [kind for kind in kinds if kind == SMALL or kind.startswith(FREE)]
    stuck = [kind for kind in kinds if kind not in movable]

    def together(*triples):
        return agreement(
            *(np.concatenate([np.ravel(values) for values in part]) for part in zip(*triples, strict=True))
        )

    def by_range(bounds, basis="spread", bins=(8,)):
        here = data.sel(range=bounds, basis=basis, bins=list(bins))  # with more bins next to no answer is lost
        return here.quantized, here.quantized_error

    gaussian = lambda of: (data.measured.sel(kind=of), data.population_error.sel(kind=of))
    on_side = lambda on: trend(data.by_side.sel(on=on), data.by_side_error.sel(on=on))
    four = lambda target, of: tuple(data[n].sel(target=target, kind=of) for n in ("choice", "choice_error"))
    seen = told(data.predicted.sel(kind=movable), gaussian(movable)[1])
    seen_four = told(data.predicted_choice.sel(kind=movable), four("rows", movable)[1])
    every = by_range("fixed", bins=data.bins.values)
    seen_bins = told(data.predicted_rounded, every[1])
    first = data.isel(variance=0)
    # Rounding to steps q leaves two normal coordinates that differ by D (root mean square) with errors whose difference
    # has variance (q²/6)(1 − (6/π²) exp(−2π² D²/q²) − …): 0.4 % less than that of independent ones at q = 2 D.
    fine = data.step_over_difference.values <= 2.0
    by_steps = lambda which, name: together((data[name][which], data.rounded[which], data.rounded_error[which]))
    queries_instead = trend(data.quantized_queries, data.quantized_queries_error)
    has_room = f"g has a part outside the gallery's span ({float(data.moved_share.sel(kind=stuck[0])):.1%} of it at {stuck[0]})"
    spread_out = "g' is spread over coordinates; "
    all_alike = spread_out + "on one, all rows err alike along g'"
    costs = "; and the step costs answers, which finer ones hardly do"
    saves = ", and closing has answers to save (too few to tell: "
    most = [f"{int(v.max())} of {int(data.clean_decisions[0])}" for v in (data.changed[:, -1], data.changed[:, :-1])]
    by_kind = lambda pick: "largest gain: " + "; ".join(f"{gained(*pick(kind))}, {kind}" for kind in kinds)

    def by_basis(bounds):
        gains = (f"{gained(*by_range(bounds, basis))} with g' {basis}" for basis in BASES)
        return "gain at 8 bins: " + ", ".join(gains)

    coarse = data.isel(bins=0, closing=0)
    off = stated(coarse.rounded - coarse.predicted_rounded, coarse.rounded_error)
    near_misses = [none(data.paired_changes.sel(noise=[kind])) for kind in NEAR_MISSES]
    return [
        sim.Row(
            "clean decisions", none(data.changed.sel(components="all")),
            none(data.changed_by_gap), "moving by g",
            label="clean decisions changed by α g', all principal directions", outside=none(data.changed.isel(components=slice(0, -1))),
            condition="V spans the centred gallery; the top r directions do not suffice",
            effect=f"at most {most[0]} decisions change at one α, with the top r directions {most[1]}",
        ),
        sim.Row(
            "exact values",
            together(
                (data.predicted, data.on_exact, data.draw_error),
                (data.predicted_choice, data.choice_on_exact, data.choice_draw_error),
            ),
            together((first.wrong_way, first.on_exact, first.draw_error)), "moving by −α g'",
            label="robustness to noise on the gallery and of a choice of four, every (kind, σ², α), against the exact value",
        ),
        sim.Row(
            "Gaussian noise",
            worst([trend(*gaussian(movable), seen), on_side("both")]), on_side("queries"), "noise on the queries alone",
            label="robustness rises to α = 1 and falls after, σ² by σ²: noise on the gallery, noise on both",
            outside=trend(*gaussian(stuck)), condition=f"{has_room}{saves}{untold(seen)})", effect=by_kind(gaussian),
        ),
        sim.Row(
            "untouched noise",
            none(data.paired_changes.sel(noise=list(UNTOUCHED))), closest(near_misses),
            f"noise {', '.join(NEAR_MISSES)}: the one that changes least",
            label="noisy decisions changed by α g': noise on queries, shared, in the centred span, orthogonal to g'",
        ),
        sim.Row(
            "fixed range",
            trend(*every, seen_bins), queries_instead, "the queries quantised instead",
            label=f"robustness to quantisation rises to α = 1: fixed range, {', '.join(map(str, data.bins.values[seen_bins]))} bins",
            outside=trend(*by_range("fixed", "one coordinate")), condition=f"{all_alike}{saves}{untold(seen_bins)})",
            effect=by_basis("fixed"),
        ),
        sim.Row(
            "rounding as noise",
            by_steps(fine, "predicted_rounded"), by_steps(fine, "twice_rounded"), "σ² = step²/6",
            label="robustness to fixed-range quantisation against the exact value at σ² = step²/12",
            outside=by_steps(~fine, "predicted_rounded"),
            condition="the step is at most twice the smallest difference of two rows per coordinate",
            effect=f"measured less predicted share of answers at {float(coarse.step_over_difference):.1f} times that difference {off}",
        ),
        sim.Row(
            "per-dimension range",
            trend(*by_range("per_dimension")), queries_instead, "the queries quantised instead",
            label="robustness to quantisation rises to α = 1: per-dimension range, 8 bins",
            outside=trend(*by_range("per_dimension", "one coordinate")), condition=all_alike + costs,
            effect=by_basis("per_dimension"),
        ),
        sim.Row(
            "[min, max] range",
            trend(*by_range("minmax")), queries_instead, "the queries quantised instead",
            label="robustness to quantisation rises to α = 1: [min, max] range, 8 bins",
            outside=trend(*by_range("minmax", "one coordinate")),
            condition=spread_out + "a shift of one coordinate widens the range, and so the step, of all" + costs,
            effect=by_basis("minmax"),
        ),
        sim.Row(
            "choice of four",
            trend(*four("rows", movable), seen_four), trend(*four("query", movable)), "noise on the queries",
            label="choice of four: robustness rises to α = 1 and falls after, σ² by σ²",
            outside=trend(*four("rows", stuck)), condition=f"{has_room}{saves}{untold(seen_four)})",
            effect=by_kind(lambda kind: four("rows", kind)),
        ),
    ]  # fmt: skip


def draw(data):
    """Noise: robustness by kind, by variance, of a choice; decisions changed: noisy, clean; quantisation."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [[n for n in row.split() for _ in "12"] for row in ("noises variances choice", "paired top top")]
        + [["fixed"] * 3 + ["ranges"] * 3],
        figsize=(plotting.TWO_COLUMNS, 6.9),
        layout="constrained",
    )
    colors, grey, kinds = plotting.COLORS, plotting.CONTROL, [str(kind) for kind in data.kind.values]
    with_room = dict(xlabel="closing α", ylabel="robustness", ylim=(0, 1.4), yticks=[0, 0.25, 0.5, 0.75, 1])
    narrow: dict[str, Any] = dict(
        loc="upper center", handlelength=1.2, columnspacing=0.8, borderaxespad=0.0, labelspacing=0.3
    )
    first = data.isel(kind=0, variance=0)
    curves = [("the gallery", first.measured, first.population_error)]
    curves += [
        (f"{'the ' * (on == 'queries')}{on}", first.by_side.sel(on=on), first.by_side_error.sel(on=on)) for on in SIDES
    ]
    looks = (plotting.series(0), plotting.series(1, color="black"), plotting.series(2, color=grey, marker="x"))
    for look, (label, mean, error) in zip(looks, curves, strict=True):
        axes["noises"].errorbar(data.alpha, mean, 4 * error, label=f"on {label}", **look)
    for i, style in zip(range(len(kinds)), KIND_STYLES, strict=False):
        here = data.isel(kind=i)
        for color, marker, variance in zip(colors, plotting.MARKERS, data.variance.values, strict=False):
            at = here.sel(variance=variance)
            for axis, mean, error, predicted in (
                (axes["variances"], at.on_exact, at.draw_error, at.predicted),
                (axes["choice"], at.choice_on_exact, at.choice_draw_error, at.predicted_choice),
            ):
                axis.plot(data.alpha, predicted, style, color=color)
                label = None if i else f"σ² = {variance:g}"
                axis.errorbar(data.alpha, mean, 4 * error, color=color, fmt=marker, label=label)
        axes["variances"].plot(data.alpha, here.wrong_way, style, color=grey, linewidth=0.8)
        axes["variances"].plot([], [], style, color="black", label=kinds[i])
    axes["variances"].plot([], [], color=grey, linewidth=0.8, label="moved the wrong way")
    entries = plotting.legend_entries(axes["variances"])
    lines = {label: handle for label, handle in entries.items() if "σ" not in label}
    figure.legend(
        lines.values(),
        lines,
        loc="outside upper center",
        ncols=4,
        title="(b, c, e) galleries; (b, c) lines exact, points measured",
    )
    for name, title in (
        ("noises", f"noise of σ² = {data.variance.values[0]:g}"),
        ("variances", "noise on the gallery"),
        ("choice", "choice of four"),
    ):
        axes[name].set(title=title, **with_room)
        plotting.legend_inside(axes[name], above=lines, ncols=1 if name == "noises" else 2, **narrow)
    _draw_changes(axes["paired"], axes["top"], data, narrow)
    _draw_quantized(axes["fixed"], axes["ranges"], data, narrow)
    return plotting.lettered(figure)


def _draw_changes(paired, top, data, narrow):
    grey = plotting.CONTROL
    share = 100 * data.paired_changes / data.paired_decisions
    for i, kind in enumerate(UNTOUCHED):
        look = plotting.series(i, color="black", markersize=9 - 2 * i, fillstyle="none")  # one within the other
        paired.plot(data.alpha, share.sel(noise=kind), label=kind, **look)
    for kind, style in zip(NEAR_MISSES, ("-", "--", ":"), strict=True):
        paired.plot(data.alpha, share.sel(noise=kind), style, color=grey, label=kind)
    most = float(share.max())
    paired.set(title="under the same noise", xlabel="closing α", ylabel="answers changed (%)")
    paired.set(ylim=(-0.05 * most, 3.6 * most), yticks=[0, 50, 100])
    paired.legend(title="noise", **narrow)
    places = np.arange(data.sizes["components"])
    for marker, style, i in zip("os^", KIND_STYLES, range(data.sizes["kind"]), strict=False):
        here = data.isel(kind=i).sel(alpha=1.0)
        share = 100 / here.clean_decisions
        label = f"{here.kind.values} (accuracy {float(here.accuracy):.2f}, ‖g'‖²/‖g‖² = {float(here.moved_share):.2g})"
        top.plot(places, share * here.changed, marker + style, color="black", fillstyle="none", label=label)
        top.axhline(float(share * here.changed_by_gap), color=grey, linestyle=style, linewidth=0.8)
    top.plot([], [], color=grey, linewidth=0.8, label="moving by g, each gallery")
    most = float((100 * data.changed.sel(alpha=1.0) / data.clean_decisions).max())
    top.set(
        title="no noise, α = 1",
        xlabel="principal directions left alone, r",
        ylabel="answers changed (%)",
        ylim=(-0.05 * most, 1.9 * most),
    )
    top.set_xticks(places, data.components.values)
    top.legend(loc="upper right")


def _draw_quantized(fixed, ranges, data, narrow):
    grey = plotting.CONTROL
    for marker, bins in zip(plotting.MARKERS, data.bins.values, strict=False):
        at = data.sel(bins=bins)
        fine = at.step_over_difference <= 2
        label = f"{bins} bins"
        fixed.errorbar(data.closing, 1 - at.rounded, 4 * at.rounded_error, color="black", fmt=marker, label=label)
        fixed.plot(data.closing, 1 - at.predicted_rounded, "k-" if fine else "k:", linewidth=0.8)
        if fine:
            fixed.plot(data.closing, 1 - at.twice_rounded, "--", color=grey, linewidth=0.8)
    for style, color, label in (
        ("-", "black", "exact"),
        (":", "black", "exact, coarse step"),
        ("--", grey, "near miss, step²/6"),
    ):
        fixed.plot([], [], style, color=color, linewidth=0.8, label=label)
    fixed.set(title="fixed range", xlabel="closing α", ylabel="share of answers lost", yscale="log", ylim=(2e-4, 60))
    fixed.set_yticks([1e-3, 1e-2, 1e-1, 1])
    fixed.legend(ncols=3, **narrow)
    for color, marker, bounds in zip(plotting.COLORS[3:], plotting.MARKERS[3:], RANGES, strict=True):
        for basis, style in zip(BASES, ("-", "--"), strict=True):
            at = data.sel(basis=basis, range=bounds).isel(bins=0)
            label = bounds.replace("_", " ") if basis == BASES[0] else None
            look = dict(color=color, fmt=marker + style, label=label)
            ranges.errorbar(data.closing, 1 - at.quantized, 4 * at.quantized_error, **look)
    for style, label in (("-", "random bases"), ("--", "g' on one axis")):
        ranges.plot([], [], style, color="black", label=label)
    ranges.set(title=f"{data.bins.values[0]} bins", xlabel="closing α", ylabel="share of answers lost")
    ranges.set(yscale="log", ylim=(2e-3, 8))
    ranges.legend(ncols=2, **narrow)
