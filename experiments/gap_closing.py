"""C6: what closing the gap buys under every noise model, for the exact rule, the top-r rule and a choice of four."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from experiments._closing import BASES, FEW, RANGES, exact_mean, over_seeds, quantized, trained_galleries
from experiments._galleries import nearest_rows
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
    assumes="V spans the centred gallery and leaves a part of g; Euclidean nearest neighbour",
    expected=("holds if", "holds", "holds if", "holds", "holds if", "holds if", "holds if", "holds if", "holds"),
)
CAPTION = (
    "Galleries of trained towers (ten of their classes, or all of them) and of free embeddings; means over random "
    "seeds, ± 4 standard errors over seeds. (a) Each kind of noise at σ² = 0.005, ten classes; what closing cannot touch "
    "is flat, with 0 changed decisions. (b) Gallery noise at the paper's variances (solid, dashed, dotted: the three "
    "kinds of gallery): exact (lines) and measured; grey: moving the wrong way. The towers' gap lies almost all inside "
    "the span of their 100 classes, so there is nothing to move. (c) Clean decisions changed at α = 1 when g' keeps the "
    "top r principal directions still. (d) Answers lost to quantisation with a fixed range; lines: exact at σ² = "
    "step²/12, where the step is at most twice the spread of a coordinate; grey: step²/6. (e) The same with the other "
    "ranges (8 bins); dashed: g' on one coordinate, where a per-dimension range gains nothing and the [min, max] range "
    "widens with the shift. (f) A choice among four rows."
)
UNTOUCHED = ("queries", "shared", "gallery's span", "orthogonal to g'")
NEAR_MISS = "orthogonal to g"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Towers and free embeddings trained from several seeds; the paper's variances, numbers of classes and bins."""

    num_seeds: int = 16
    num_large: int = 4  # seeds of the galleries with many classes
    num_classes: int = 100
    embed_dim: int = 128
    steps: int = 1000
    eval_pairs: int = 2560
    variances: tuple[float, ...] = (0.005, 0.022, 0.040)
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    components: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    bins: tuple[int, ...] = (8, 32, 64, 128, 256)
    closings: tuple[float, ...] = (0.0, 0.5, 1.0)
    num_groups: int = 4
    num_bases: int = 4
    num_queries: int = 80
    num_asked: int = 32  # of the queries, under Gaussian noise and in a choice of four
    num_draws: int = 256
    num_paired_draws: int = 20
    seed: int = 0


QUICK = Config(
    num_seeds=6, num_large=3, num_classes=40, embed_dim=64, steps=300, eval_pairs=1024, alphas=(0.0, 0.5, 1.0, 2.0),
    components=(1, 4, 8, 16), num_groups=2, num_queries=60, num_asked=12, num_draws=64, num_paired_draws=5,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Every noise model on every kind of gallery, as means and standard errors over seeds."""
    import xarray as xr
    from tqdm import tqdm

    kinds = trained_galleries(config, progress)
    by_kind = []
    for seeds in tqdm(kinds.values(), disable=not progress, desc="kinds of gallery"):
        galleries = [groups[0] for groups in seeds]
        by_kind.append(_clean(config, galleries) | _noise(config, galleries) | _choices(config, galleries))
    few = next(iter(kinds.values()))
    with jax.enable_x64(True):
        parts = _untouched(config, [groups[0] for groups in few[: config.num_large]]) | quantized(config, few)
    parts |= {
        name: (("kind", *axes), np.stack([p[name][1] for p in by_kind])) for name, (axes, _) in by_kind[0].items()
    }
    return xr.Dataset(
        parts,
        coords=dict(
            kind=list(kinds), alpha=list(config.alphas), components=[*map(str, config.components), "all"],
            noise=[*UNTOUCHED, NEAR_MISS], variance=list(config.variances), range=list(RANGES), basis=list(BASES),
            bins=list(config.bins), closing=list(config.closings), on=["gallery", "both"], target=["rows", "query"],
        ),
    )  # fmt: skip


def _clean(config: Config, galleries) -> dict:
    """Clean decisions changed by the rule with r components and by g itself, over all seeds; what the exact rule moves."""
    changed, by_gap, share = 0, 0, []
    for gallery, queries, _ in galleries:
        answers = nearest_rows(gallery, queries)
        rules = [sim.GapCloser(num_components=r).fit(gallery, queries) for r in (*config.components, None)]
        counts = lambda v: [np.sum(nearest_rows(gallery + a * v, queries) != answers) for a in config.alphas]  # noqa: B023, E731
        changed = changed + np.array([counts(rule.direction_[None, :]) for rule in rules])
        by_gap = by_gap + np.array(counts(rules[-1].gap_[None, :]))
        share.append(np.sum(rules[-1].direction_ ** 2) / np.sum(rules[-1].gap_ ** 2))
    return dict(
        changed=(("components", "alpha"), changed), changed_by_gap=(("alpha",), by_gap), moved_share=((), np.mean(share)),
        clean_decisions=((), sum(len(queries) for _, queries, _ in galleries)),
    )  # fmt: skip


def _noise(config: Config, galleries) -> dict:
    """Robustness to Gaussian noise on the gallery and on both, at every variance; exact on the gallery, there and (at
    the first variance) moved the wrong way. Draws are paired over α."""
    targets, sigmas = ("gallery", "both"), np.sqrt(config.variances)
    shape = (len(galleries), len(targets), len(sigmas), len(config.alphas))
    measured, errors = np.empty(shape), np.empty(shape)
    exact, wrong_way = np.empty((shape[0], *shape[2:])), np.empty((shape[0], shape[-1]))
    for i, (gallery, queries, _) in enumerate(galleries):
        closer, key = sim.GapCloser().fit(gallery, queries), jax.random.fold_in(jax.random.key(config.seed), i)
        asked = queries[: config.num_asked]
        for k, alpha in enumerate(config.alphas):
            moved = closer.transform(gallery, alpha)
            wrong_way[i, k] = exact_mean(closer.transform(gallery, -alpha), asked, sigmas[0])
            for j, sigma in enumerate(sigmas):
                exact[i, j, k] = exact_mean(moved, asked, sigma)
                for t, on in enumerate(targets):
                    draws = dict(num_draws=config.num_draws, key=jax.random.fold_in(key, j))
                    estimate = sim.measured_robustness(moved, asked, noise=sim.GaussianNoise(sigma, on=on), **draws)
                    measured[i, t, j, k], errors[i, t, j, k] = estimate.mean, estimate.standard_error
    mean, within = over_seeds(measured, config.num_draws * config.num_asked)
    axes = ("on", "variance", "alpha")
    return dict(
        measured=(axes, mean), population_error=(axes, within),
        draw_error=(axes, np.linalg.norm(errors, axis=0) / len(galleries)),
        predicted=(axes[1:], exact.mean(axis=0)), wrong_way=(axes[2:], wrong_way.mean(axis=0)),
    )  # fmt: skip


def _noise_model(kind: str, sigma: float, closer, gallery) -> sim.GaussianNoise:
    if kind == "gallery's span":
        return sim.GaussianNoise(sigma, within=gallery - gallery.mean(axis=0)[None, :])
    if kind in ("orthogonal to g'", NEAR_MISS):
        return sim.GaussianNoise(sigma, orthogonal_to=closer.direction_ if kind != NEAR_MISS else closer.gap_)
    return sim.GaussianNoise(sigma, on=kind)


def _untouched(config: Config, galleries) -> dict:
    """Noise that closing cannot touch, at the first variance: decisions that differ between the gallery and the moved
    one under the same draws, over all seeds; robustness to it with its error."""
    kinds, sigma = (*UNTOUCHED, NEAR_MISS), config.variances[0] ** 0.5
    changes = np.zeros((len(kinds), len(config.alphas)), int)
    robustness = np.empty((len(galleries), *changes.shape))
    for i, (gallery, queries, _) in enumerate(galleries):
        closer, key = sim.GapCloser().fit(gallery, queries), jax.random.fold_in(jax.random.key(config.seed), i)
        for j, kind in enumerate(kinds):
            noise = _noise_model(kind, sigma, closer, gallery)
            for k, alpha in enumerate(config.alphas):
                moved = closer.transform(gallery, alpha)
                draws = dict(noise=noise, num_draws=config.num_paired_draws, key=key)
                changes[j, k] += changed_decisions(gallery, moved, queries, **draws)
                robustness[i, j, k] = sim.measured_robustness(moved, queries, **draws).mean
    mean, within = over_seeds(robustness, config.num_paired_draws * config.num_queries)
    axes = ("noise", "alpha")
    return dict(paired_changes=(axes, changes), untouched=(axes, mean), untouched_error=(axes, within))


def _choices(config: Config, galleries) -> dict:
    """Each query chooses among its own gallery row and three others drawn for it (multiple-choice question answering),
    with noise on the rows or on the query. The same draws serve every α and σ."""
    shape = (len(galleries), 2, len(config.variances), len(config.alphas))
    kept, exact = np.empty(shape), np.empty((shape[0], *shape[2:]))
    for i, (gallery, queries, labels) in enumerate(galleries):
        rng, rows = np.random.default_rng([config.seed, i]), np.arange(len(gallery))
        closer, asked = sim.GapCloser().fit(gallery, queries), queries[: config.num_asked, None, :]
        others = [rng.permutation(np.delete(rows, label))[:3] for label in labels[: config.num_asked]]
        options = np.concatenate([labels[: config.num_asked, None], np.array(others)], axis=1)
        noises = [rng.normal(size=(config.num_draws, len(asked), rows, gallery.shape[1])) for rows in (4, 1)]
        for k, alpha in enumerate(config.alphas):
            differences = closer.transform(gallery, alpha)[options] - asked
            best = np.argmin(np.sum(differences**2, axis=-1), axis=-1)
            for j, sigma in enumerate(np.sqrt(config.variances)):
                for t, noise in enumerate(noises):  # on four rows, or one on the query (its sign does not matter)
                    squares = np.sum((differences[None] + sigma * noise) ** 2, axis=-1)
                    kept[i, t, j, k] = np.mean(np.argmin(squares, axis=-1) == best[None, :])
                four = zip(differences, np.zeros((len(asked), 1, gallery.shape[1])), strict=True)
                exact[i, j, k] = np.mean([sim.exact_robustness(*pair, sigma=sigma)[0] for pair in four])
    decisions, axes = config.num_draws * config.num_asked, ("target", "variance", "alpha")
    mean, within = over_seeds(kept, decisions)
    # What the draws alone leave uncertain: the queries have independent draws.
    chance = np.sqrt(exact * (1 - exact) / decisions).mean(axis=0) / len(galleries) ** 0.5
    return dict(
        choice=(axes, mean), choice_error=(axes, within), predicted_choice=(axes[1:], exact.mean(axis=0)),
        choice_draw_error=(axes[1:], np.maximum(chance, 1 / (decisions * len(galleries)))),
    )  # fmt: skip


def judge(data) -> list[sim.Row]:
    """Clean decisions, Gaussian noise, quantisation, choices."""
    alpha, closing, kinds = data.alpha.values, data.closing.values, data.kind.values
    # Where the exact rule moves most of the gap, and where that lies in the gallery's span and it cannot.
    movable, stuck = kinds[data.moved_share.values > 0.5], kinds[data.moved_share.values <= 0.5]

    def none(counts):
        return sim.Check("absolute", np.zeros(counts.shape), counts.values, 0.5)

    def agreement(*triples):
        flat = [np.concatenate([np.ravel(t[i].values) for t in triples]) for i in range(3)]
        return sim.Check("monte_carlo", flat[0], flat[1], 4.0, flat[2])

    def trend(at, values, errors):
        # The worst curve speaks for all.
        signs = np.where(at[1:] <= 1.0, 1.0, -1.0)
        curves = zip(values.values.reshape(-1, len(at)), errors.values.reshape(-1, len(at)), strict=True)
        checks = [sim.Check("monotone", signs, curve, 4.0, error, at) for curve, error in curves]
        return max(checks, key=lambda check: check.error())

    def gaussian(on, of):
        here = data.sel(on=on, kind=of)
        return trend(alpha, here.measured, here.population_error)

    def by_range(bounds, basis="spread", bins=slice(None)):
        here = data.sel(range=bounds, basis=basis, bins=bins)
        return trend(closing, here.quantized, here.quantized_error)

    on_gallery, four = data.sel(on="gallery"), data.sel(target="rows")
    first = on_gallery.isel(variance=0)
    fixed, query_noise = data.sel(basis="spread", range="fixed"), data.sel(noise=["queries"])
    # Widrow: rounding a normal coordinate of spread s errs with variance step²/12, but for a part
    # (12/π²) exp(−2π² s²/step²) of it, 1 % at step = 2 s; errors of two rows are correlated by less.
    fine = data.step_over_spread.values <= 2.0
    by_steps = lambda which, name: agreement(  # noqa: E731
        (fixed[name][which], fixed.quantized[which], fixed.prediction_error[which])
    )
    queries_instead = trend(closing, data.quantized_queries, data.quantized_queries_error)
    coarse = slice(0, 32)  # beyond, these ranges lose next to no answer
    spread_out = "g' is spread over coordinates; "
    return [
        sim.Row(
            "clean decisions changed by α g', all principal directions", none(data.changed.sel(components="all")),
            none(data.changed_by_gap), "moving by g", outside=none(data.changed.isel(components=slice(0, -1))),
            condition="V spans the centred gallery; the top r directions do not suffice",
        ),
        sim.Row(
            "robustness to noise on the gallery and of a choice of four, every (kind, σ², α), against the exact value",
            agreement(
                (on_gallery.predicted, on_gallery.measured, on_gallery.draw_error),
                (four.predicted_choice, four.choice, four.choice_draw_error),
            ),
            agreement((first.wrong_way, first.measured, first.draw_error)), "moving by −α g'",
        ),
        sim.Row(
            "robustness rises to α = 1 and falls after, every σ²: noise on the gallery, noise on both",
            gaussian(["gallery", "both"], movable), trend(alpha, query_noise.untouched, query_noise.untouched_error),
            "noise on the queries alone", outside=gaussian(["gallery", "both"], stuck),
            condition="most of g lies outside the gallery's span, which that of towers with many classes does not",
        ),
        sim.Row(
            "noisy decisions changed by α g': noise on queries, shared, in the gallery's span, orthogonal to g'",
            none(data.paired_changes.sel(noise=list(UNTOUCHED))), none(data.paired_changes.sel(noise=[NEAR_MISS])),
            "row noise orthogonal to g",
        ),
        sim.Row(
            f"robustness to quantisation rises to α = 1: fixed range, {', '.join(map(str, data.bins.values))} bins",
            by_range("fixed"), queries_instead, "the queries quantised instead",
            outside=by_range("fixed", "one coordinate"), condition=spread_out + "on one, all rows err alike along g'",
        ),
        sim.Row(
            "robustness to fixed-range quantisation against the exact value at σ² = step²/12",
            by_steps(fine, "predicted_quantized"), by_steps(fine, "twice_quantized"), "σ² = step²/6",
            outside=by_steps(~fine, "predicted_quantized"),
            condition="the step is at most twice the spread of a gallery coordinate",
        ),
        sim.Row(
            "robustness to quantisation rises to α = 1: per-dimension range, 8 and 32 bins",
            by_range("per_dimension", bins=coarse), queries_instead, "the queries quantised instead",
            outside=by_range("per_dimension", "one coordinate", coarse),
            condition=spread_out + "on one, all rows err alike along g'",
        ),
        sim.Row(
            "robustness to quantisation rises to α = 1: [min, max] range, 8 and 32 bins",
            by_range("minmax", bins=coarse), queries_instead, "the queries quantised instead",
            outside=by_range("minmax", "one coordinate", coarse),
            condition=spread_out + "a shift of one coordinate widens the range, and so the step, of all",
        ),
        sim.Row(
            "choice of four: robustness rises to α = 1 and falls after, every σ²",
            *(
                trend(alpha, here.choice, here.choice_error)
                for here in (data.sel(target=t, kind=movable) for t in ("rows", "query"))
            ),
            "noise on the queries",
        ),
    ]  # fmt: skip


def draw(data):
    """Six panels: kinds of noise, variances, top-r rule, quantisation twice, choices."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(_figures.TWO_COLUMNS, 4.8), layout="constrained")
    noises, variances, top, fixed, ranges, choice = axes.ravel()
    colors, grey, styles = _figures.COLORS, _figures.CONTROL, ("-", "--", ":")
    with_room = dict(xlabel="closing α", ylabel="robustness", ylim=(0, 1.5), yticks=[0, 0.25, 0.5, 0.75, 1])
    narrow = dict(loc="upper center", handlelength=1.2, columnspacing=0.8, borderaxespad=0.0, labelspacing=0.3)
    first = data.isel(kind=0, variance=0)
    for color, on, label in zip(colors, ("gallery", "both"), ("on the gallery", "on both"), strict=False):
        here = first.sel(on=on)
        noises.errorbar(data.alpha, here.measured, 4 * here.population_error, color=color, fmt="o-", label=label)
    for color, kind, marker in zip(colors[2:], UNTOUCHED, "sv^D", strict=True):
        here = data.sel(noise=kind)
        label = f"on {kind}" if kind == "queries" else kind
        noises.plot(data.alpha, here.untouched, color=color, marker=marker, fillstyle="none", label=label)
    noises.set(title="(a) kinds of noise", **with_room)
    noises.legend(ncols=2, **narrow)
    for i, style in zip(range(data.sizes["kind"]), styles, strict=True):
        here = data.isel(kind=i).sel(on="gallery", target="rows")
        for color, variance in zip(colors, data.variance.values, strict=False):
            at = here.sel(variance=variance)
            for axis, mean, error, predicted in (
                (variances, at.measured, at.draw_error, at.predicted),
                (choice, at.choice, at.choice_draw_error, at.predicted_choice),
            ):
                axis.plot(data.alpha, predicted, style, color=color, label=f"σ² = {variance:g}" if i == 0 else None)
                axis.errorbar(data.alpha, mean, 4 * error, color=color, fmt="o")
        variances.plot(data.alpha, here.wrong_way, style, color=grey, linewidth=0.8)
        choice.plot([], [], style, color=grey, label=str(data.kind.values[i]))
    variances.set(title="(b) noise on the gallery", **with_room)
    choice.set(title="(f) choice of four", **with_room)
    variances.legend(handles=variances.get_legend_handles_labels()[0], **narrow)
    choice.legend(handles=choice.get_legend_handles_labels()[0][-3:], **narrow)
    places = np.arange(data.sizes["components"])
    for color, marker, i in zip(colors, "osD", range(data.sizes["kind"]), strict=False):
        here = data.isel(kind=i).sel(alpha=1.0)
        share = 100 / here.clean_decisions
        top.plot(
            places, share * here.changed, color=color, marker=marker, fillstyle="none", label=str(here.kind.values)
        )
        top.axhline(float(share * here.changed_by_gap), color=grey, linestyle=":", linewidth=0.8)
    top.plot([], [], ":", color=grey, label="moving by g")
    most = float((100 * data.changed.sel(alpha=1.0) / data.clean_decisions).max())
    top.set(title="(c) top r directions", xlabel="r", ylabel="decisions changed (%)", ylim=(-0.05 * most, 1.9 * most))
    top.set_xticks(places, data.components.values)
    top.legend(loc="upper right")
    here = data.sel(basis="spread", range="fixed")
    for color, bins in zip(colors, data.bins.values, strict=False):
        at = here.sel(bins=bins)
        fixed.errorbar(data.closing, 1 - at.quantized, 4 * at.quantized_error, color=color, fmt="o", label=f"{bins}")
        fixed.plot(data.closing, 1 - at.own_basis, "+", color=color, markersize=6)
        if at.step_over_spread <= 2:
            fixed.plot(data.closing, 1 - at.predicted_quantized, color=color)
            fixed.plot(data.closing, 1 - at.twice_quantized, "--", color=grey, linewidth=0.8)
    fixed.set(title="(d) fixed range", xlabel="closing α", ylabel="answers lost", yscale="log", ylim=(5e-4, 5))
    fixed.legend(title="bins", ncols=5, **narrow | dict(columnspacing=0.4, handletextpad=0.1))
    for color, bounds in zip(colors, RANGES, strict=False):
        for basis, style in zip(BASES, ("o-", "o--"), strict=True):
            at = data.sel(basis=basis, range=bounds).isel(bins=0)
            label = bounds.replace("_", " ") if basis == BASES[0] else None
            ranges.errorbar(data.closing, 1 - at.quantized, 4 * at.quantized_error, color=color, fmt=style, label=label)
    ranges.plot([], [], "--", color=grey, label="g' on one axis")
    ranges.set(
        title=f"(e) {data.bins.values[0]} bins", xlabel="closing α", ylabel="answers lost", yscale="log", ylim=(2e-3, 5)
    )
    ranges.legend(ncols=2, **narrow)
    return figure
