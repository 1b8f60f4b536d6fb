"""N6: one exact scalar per class closes any gap without changing a decision, and scoring from the mean query does more."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import _figures
from experiments._galleries import core_galleries, nearest_rows, random_classes, real_embeddings, trained_table
from simulator.postprocess import principal_directions
from simulator.theory.storage import centred_robustness, optimal_centre

CLAIM = sim.Claim(
    id="N6",
    title="Closing without a condition",
    statement=(
        "With the exact scalar −2⟨v, x_k⟩ per class the gallery may move by any v, whatever its rank, and with m·x_k − ½‖x_k‖² "
        "the queries may be scored from any centre m: no clean decision changes. Noise on the rows then counts by "
        "‖y − x_k − v‖, or by ‖y − m‖ alone, and robustness has a closed form."
    ),
    source="derived here: theory.md N6",
    assumes="independent Gaussian noise on the stored rows; the scalars are kept exactly",
    expected=("holds", "holds", "holds if", "holds", "holds", "holds"),
)
CAPTION = (
    "(a, b) Robustness against α; lines: exact, points: measured ± 4 standard errors. In (b) the gallery spans the space: "
    "the complement has nothing to move. Grey: the centred rule with noise of the same size on its scalars. "
    "(c) Decisions changed against robustness gained, all rules (lower right is best). (d) r exact scalars more per class, "
    "along the queries' principal directions; grey: predicted for the gallery's directions. (e) Gain of each rule on "
    "real embeddings (unit rows, σ² = 0.0005; ± 4 standard errors where measured). (f) As (c), on them."
)
RULES = ("compensated", "centred")
NEAR_MISSES = ("half the scalar", "scalar without m·x_k")
COLORS = dict(zip(("complement", "compensated", "centred", "soft", "top r"), _figures.COLORS, strict=False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trained galleries and a random one of more rows than dimensions; the numbers of `real` need $GAPSIM_DATA."""

    towers: bool = True
    embed_dim: int = 64
    steps: int = 1500
    num_classes: int = 48
    full_rank: tuple[int, int] = (64, 32)  # rows, dimensions
    sigma: float = 0.15
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    components: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    kept: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    num_queries: int = 32
    num_draws: int = 2000
    num_other_centres: int = 100
    real: bool = True
    real_draws: int = 40
    seed: int = 0


QUICK = Config(
    towers=False, embed_dim=32, steps=300, num_classes=20, full_rank=(40, 24), alphas=(0.0, 1.0, 2.0), components=(0, 2, 8),
    penalties=(10.0,), kept=(1, 8, 16), num_queries=24, num_draws=1500, num_other_centres=50, real=False,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Everything on every gallery, and the gains on real embeddings where there are any."""
    import xarray as xr
    from tqdm import tqdm

    galleries = {}
    if config.towers:
        galleries = core_galleries(
            "synthetic", config.embed_dim, config.steps, config.seed, num_classes=config.num_classes
        )
    else:
        table = trained_table(256, config.num_classes, config.embed_dim, config.steps, config.seed)
        galleries[f"free embeddings, K = {config.num_classes}"] = table
    rows, dimensions = config.full_rank
    galleries[f"random, K = {rows} in {dimensions} dimensions"] = random_classes(rows, dimensions, 300, config.seed)
    parts = []
    for gallery, queries, _ in tqdm(galleries.values(), disable=not progress, desc="galleries"):
        few = queries[: config.num_queries]
        parts.append(
            _decisions(config, gallery, queries)
            | _against_alpha(config, gallery, few)
            | _scalars(config, gallery, few)
            | _centres(config, gallery, few)
            | _trade_off(config, gallery, few, config.sigma)
        )
    data = xr.Dataset(
        {name: (("gallery", *axes), np.stack([p[name][1] for p in parts])) for name, (axes, _) in parts[0].items()},
        coords=dict(
            gallery=list(galleries), alpha=list(config.alphas), components=list(config.components), rule=list(RULES),
            near_miss=list(NEAR_MISSES),
        ),
    )  # fmt: skip
    return data.merge(_real(config, progress)) if config.real and real_embeddings() else data


def _decisions(config: Config, gallery, queries) -> dict:
    """Clean decisions changed by both rules at every α, and by near misses of their scalars."""
    answers = nearest_rows(gallery, queries)
    changed, missed = np.empty((len(RULES), len(config.alphas)), int), np.empty((2, len(config.alphas)), int)
    compensated, centred = (sim.GapCloser(rule).fit(gallery, queries) for rule in RULES)
    for k, alpha in enumerate(config.alphas):
        shifted, scored = compensated.index(gallery, alpha), centred.index(gallery, alpha)
        near_misses = (
            dataclasses.replace(shifted, bias=0.5 * shifted.bias),
            dataclasses.replace(scored, bias=-0.5 * np.sum(gallery**2, axis=1)),
        )
        changed[:, k] = [np.sum(index.search(queries) != answers) for index in (shifted, scored)]
        missed[:, k] = [np.sum(index.search(queries) != answers) for index in near_misses]
    return dict(changed=(("rule", "alpha"), changed), missed=(("near_miss", "alpha"), missed))


def _measured(config: Config, rows, queries, *, noise, scoring, bias=None, draws=None):
    """(mean, standard error) in 64-bit."""
    with jax.enable_x64(True):
        estimate = sim.measured_robustness(
            rows, queries, noise=noise, num_draws=draws or config.num_draws, key=jax.random.key(config.seed),
            scoring=scoring, bias=bias,
        )  # fmt: skip
    return estimate.mean, estimate.standard_error


def _against_alpha(config: Config, gallery, queries) -> dict:
    """Robustness of the rules over α: measured, exact, and near misses of the exact value."""
    noise, shape = sim.GaussianNoise(config.sigma), (len(config.alphas),)
    names = ("compensated", "compensated_error", "exact_compensated", "unmoved", "centred", "centred_error")
    names += ("exact_centred", "uncentred", "noisy", "noisy_error", "exact_noisy", "complement")
    found = {name: np.empty(shape) for name in names}
    complement, shift, centre = (sim.GapCloser(rule).fit(gallery, queries) for rule in ("complement", *RULES))
    options = dict(sigma=config.sigma)
    found["unmoved"][:] = sim.exact_robustness(gallery, queries, **options).mean()
    for k, alpha in enumerate(config.alphas):
        index = shift.index(gallery, alpha)
        found["compensated"][k], found["compensated_error"][k] = _measured(
            config, index.rows, queries, noise=noise, scoring="sqeuclidean", bias=index.bias
        )
        v, m = alpha * shift.gap_, alpha * queries.mean(axis=0)
        bias = -2 * gallery @ v
        found["exact_compensated"][k] = sim.exact_robustness(gallery + v[None, :], queries, bias=bias, **options).mean()
        # The scalar is one more coordinate of an inner product: without noise, and with that of the others.
        plain = centre.index(gallery, alpha).inner_product()
        for name, coordinates in (("centred", gallery.shape[1]), ("noisy", gallery.shape[1] + 1)):
            found[name][k], found[f"{name}_error"][k] = _inner_products(config, plain, queries, coordinates)
        found["exact_centred"][k] = centred_robustness(gallery, queries, centre=m, **options).mean()
        found["uncentred"][k] = centred_robustness(gallery, queries, centre=0 * m, **options).mean()
        noisy = centred_robustness(gallery, queries, centre=m, scalar_noise=config.sigma, **options)
        found["exact_noisy"][k] = noisy.mean()
        found["complement"][k] = sim.exact_robustness(complement.transform(gallery, alpha), queries, **options).mean()
    return {name: (("alpha",), values) for name, values in found.items()}


def _inner_products(config: Config, plain, queries, noisy_coordinates: int):
    """Measured robustness of plain inner products with noise on the first coordinates of the stored rows. Padded to one
    width, since every shape is compiled anew."""
    asked = plain.map_queries(queries)
    width = len(plain.matrix) + max(config.components) + 1 - asked.shape[1]
    rows, asked = (np.pad(a, ((0, 0), (0, width))) for a in (plain.rows, asked))
    noise = sim.GaussianNoise(config.sigma, within=np.eye(rows.shape[1])[:noisy_coordinates])
    return _measured(config, rows, asked, noise=noise, scoring="dot")


def _scalars(config: Config, gallery, queries) -> dict:
    """r exact scalars more per class: measured, exact, and the exact value for the gallery's principal directions."""
    found = {name: np.empty(len(config.components)) for name in ("kept", "kept_error", "exact_kept", "kept_by_gallery")}
    centre, dimensions = queries.mean(axis=0), gallery.shape[1]
    for k, r in enumerate(config.components):
        plain = sim.GapCloser("centred", num_components=r).fit(gallery, queries).index(gallery).inner_product()
        found["kept"][k], found["kept_error"][k] = _inner_products(config, plain, queries, dimensions)
        for name, rows in (("exact_kept", queries), ("kept_by_gallery", gallery)):
            axes = principal_directions(rows)[:r]
            exact = centred_robustness(gallery, queries, sigma=config.sigma, centre=centre, axes=axes)
            found[name][k] = exact.mean()
    return {name: (("components",), values) for name, values in found.items()}


def _centres(config: Config, gallery, queries) -> dict:
    """Mean robustness at the best centre and at the mean query, and the best that other centres reach."""
    rng, mean = np.random.default_rng(config.seed), queries.mean(axis=0)
    value = lambda m: float(centred_robustness(gallery, queries, sigma=config.sigma, centre=m).mean())  # noqa: E731
    best = optimal_centre(gallery, queries, sigma=config.sigma)
    others = [best + t * (mean - best) for t in (-1.0, -0.1, 0.1, 0.5, 1.0, 2.0)]
    spread = np.sqrt(np.mean(np.sum((queries - mean[None, :]) ** 2, axis=1)))
    for size in rng.choice([1e-3, 1e-2, 0.1, 0.5], size=config.num_other_centres):
        direction = rng.normal(size=len(mean))
        others.append(best + size * spread * direction / np.linalg.norm(direction))
    others += [best + 0.05 * (query - best) for query in queries]
    # Slopes by central differences, in units of robustness per spread of the queries.
    step = 1e-4 * spread
    directions = [(mean - best) / np.linalg.norm(mean - best)] if np.any(mean != best) else []
    directions += [v / np.linalg.norm(v) for v in rng.normal(size=(8, len(mean)))]
    slopes = [
        max(abs(value(m + step * v) - value(m - step * v)) * spread / (2 * step) for v in directions)
        for m in (best, mean)
    ]
    return dict(
        centre_value=((), value(best)), mean_value=((), value(mean)), other_value=((), max(map(value, others))),
        centre_slope=((), slopes[0]), mean_slope=((), slopes[1]),
    )  # fmt: skip


def _trade_off(config: Config, gallery, queries, sigma: float) -> dict:
    """Share of clean decisions changed and exact robustness, for every rule at α = 1."""
    answers = nearest_rows(gallery, queries)
    closers = {
        "soft": [sim.GapCloser("soft", penalty=p).fit(gallery, queries) for p in (0.0, *config.penalties)],
        "top r": [sim.GapCloser(num_components=r).fit(gallery, queries) for r in (0, *config.kept)],
        "complement": [sim.GapCloser().fit(gallery, queries)],
        **{rule: [sim.GapCloser(rule).fit(gallery, queries)] for rule in RULES},
    }
    found = {}
    for name, members in closers.items():
        indices = [closer.index(gallery) for closer in members]
        points = [(np.mean(i.search(queries) != answers), i.robustness(queries, sigma=sigma).mean()) for i in indices]
        found[f"trade_off_{name}"] = ((f"{name} setting", "quantity"), np.array(points))
    return found


REAL_RULES = ("as it is", "complement", "compensated", "inner product", "centred", "centred, r = 8", "centred, r = 32")
REAL_VARIANCE = 0.0005
LARGEST = "CLIP, K = 500"  # the gallery whose trade-off is shown: all but spanning, so that the rules differ


def _real(config: Config, progress: bool):
    """Robustness of each rule on real embeddings, and the trade-off on one of them; measured where no closed form is
    quick (error 0 where the value is exact)."""
    import xarray as xr
    from tqdm import tqdm

    galleries, sigma = real_embeddings(), REAL_VARIANCE**0.5
    shape = (len(galleries), len(REAL_RULES))
    robustness, error, changed = np.zeros(shape), np.zeros(shape), np.zeros(shape, int)
    for i, (gallery, queries) in enumerate(tqdm(galleries.values(), disable=not progress, desc="real embeddings")):
        closers = [sim.GapCloser(), sim.GapCloser(), *map(sim.GapCloser, ("compensated", "centred", "centred"))]
        closers += [sim.GapCloser("centred", num_components=r) for r in (8, 32)]
        alphas = (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
        for j, (closer, alpha) in enumerate(zip(closers, alphas, strict=True)):
            index = closer.fit(gallery, queries).index(gallery, alpha)
            changed[i, j] = np.sum(index.search(queries) != nearest_rows(gallery, queries))
            robustness[i, j], error[i, j] = _quickly(config, index, queries, sigma)
    gallery, queries = galleries[LARGEST]
    points = {}
    for name, closers in {
        "soft": [sim.GapCloser("soft", penalty=p) for p in (0.0, 1.0, 10.0, 100.0, 1000.0)],
        "top r": [sim.GapCloser(num_components=r) for r in (0, 50, 100, 200, 300, 400, 450)],
    }.items():
        indices = [closer.fit(gallery, queries).index(gallery) for closer in closers]
        flips = [np.mean(index.search(queries) != nearest_rows(gallery, queries)) for index in indices]
        values = [_quickly(config, index, queries, sigma)[0] for index in indices]
        points[f"real_trade_off_{name}"] = ((f"real {name} setting", "quantity"), np.stack([flips, values], axis=1))
    by_rule = ("real_gallery", "real_rule")
    return xr.Dataset(
        dict(real_mean=(by_rule, robustness), real_error=(by_rule, error), real_changed=(by_rule, changed), **points),
        coords=dict(real_gallery=list(galleries), real_rule=list(REAL_RULES)),
    )


def _quickly(config: Config, index: sim.Index, queries, sigma: float) -> tuple[float, float]:
    """Robustness of an index and its standard error: exact for inner products, measured for distances."""
    if index.scoring == "dot":
        return float(index.robustness(queries, sigma=sigma).mean()), 0.0
    draws = config.real_draws * max(1, 500 // len(index.rows))  # few classes: a draw is cheap and its outcome scattered
    options = dict(noise=sim.GaussianNoise(sigma), scoring="sqeuclidean", bias=index.bias)
    return _measured(config, index.rows, queries, draws=draws, **options)


def judge(data) -> list[sim.Row]:
    """Decisions, both closed forms, exact scalars, best centre."""

    def none(counts):
        return sim.Check("absolute", np.zeros(counts.shape), counts.values, 0.5)

    def agreement(predicted, name):
        measured, error = data[name], data[f"{name}_error"]
        return sim.Check(
            "monte_carlo", data[predicted].values.ravel(), measured.values.ravel(), 4.0, error.values.ravel()
        )

    def never_better(name):
        return sim.Check(
            "absolute", np.zeros(data.sizes["gallery"]), np.maximum(data.other_value - data[name], 0.0), 1e-9
        )

    moved = data.sel(alpha=data.alpha != 0)
    return [
        sim.Row(
            "clean decisions changed by either rule, all galleries and α", none(data.changed),
            none(moved.missed.sel(near_miss="half the scalar")), "half the scalar, −⟨v, x_k⟩",
        ),
        sim.Row(
            "clean decisions changed by the query-centred rule", none(data.changed.sel(rule="centred")),
            none(moved.missed.sel(near_miss="scalar without m·x_k")), "the scalar without m·x_k",
        ),
        sim.Row(
            "robustness of the query-centred rule at every (gallery, α) against the closed form",
            agreement("exact_centred", "centred"), agreement("uncentred", "centred"), "‖y‖ in place of ‖y − αm‖",
            outside=agreement("exact_centred", "noisy"),
            condition="the scalars carry no noise; noise of the same size on them takes the gain away",
        ),
        sim.Row(
            "robustness of the compensated shift at every (gallery, α) against the exact value",
            agreement("exact_compensated", "compensated"), agreement("unmoved", "compensated"),
            "‖y − x_k‖ in place of ‖y − x_k − αg‖",
        ),
        sim.Row(
            "robustness with r exact scalars more per class against the closed form",
            agreement("exact_kept", "kept"), agreement("kept_by_gallery", "kept"), "the gallery's principal directions",
        ),
        sim.Row(
            "how much any other centre beats the best one", never_better("centre_value"), never_better("mean_value"),
            "the mean query",
        ),
    ]  # fmt: skip


def draw(data):
    """Two galleries over α, exact scalars, the trade-off of all rules; gains and trade-off on real embeddings."""
    import matplotlib.pyplot as plt

    has_real = "real_mean" in data
    mosaic = "aaaabbbbcccc;dddeeeffffff" if has_real else "abcd"
    figure, panels = plt.subplot_mosaic(
        mosaic, figsize=(_figures.TWO_COLUMNS, 4.9 if has_real else 2.4), layout="constrained"
    )
    for name, at in (("a", -2), ("b", -1)):
        _draw_over_alpha(panels[name], data.isel(gallery=at))
        panels[name].set_title(f"({name}) {str(data.gallery.values[at]).replace('dimensions', 'dim.')}")
    for color, marker, name in zip(_figures.COLORS[3:], "osv", data.gallery.values[::-1], strict=False):
        here = data.sel(gallery=name)
        panels["c"].plot(data.components, here.exact_kept, color=color, label=str(name).split(",")[0])
        panels["c"].errorbar(data.components, here.kept, 4 * here.kept_error, color=color, fmt=marker)
        panels["c"].plot(data.components, here.kept_by_gallery, "--", color=_figures.CONTROL, linewidth=0.8)
    panels["c"].set(title="(c) r exact scalars more", xlabel="r", ylabel="robustness", ylim=(0, 1.05))
    panels["c"].legend(loc="lower right")
    last = data.isel(gallery=-1)
    points = {name.removeprefix("trade_off_"): last[name].values for name in data if name.startswith("trade_off")}
    _draw_trade_off(panels["d"], points, float(last.unmoved[0]), "(d) as (b)")
    if has_real:
        points = {
            name.removeprefix("real_trade_off_"): data[name].values for name in data if name.startswith("real_trade")
        }
        here = data.sel(real_gallery=LARGEST)
        for rule in ("complement", *RULES):
            robustness = float(here.real_mean.sel(real_rule=rule))
            points[rule] = np.array([[float(here.real_changed.sel(real_rule=rule)), robustness]])
        _draw_trade_off(panels["e"], points, float(here.real_mean.sel(real_rule="as it is")), f"(e) {LARGEST}")
        _draw_gains(panels["f"], data)
    shared = {}
    for name in "ad":
        shared |= dict(zip(*reversed(panels[name].get_legend_handles_labels()), strict=True))
    figure.legend(shared.values(), shared, loc="outside upper center", ncols=4)
    return figure


def _draw_over_alpha(axis, here):
    """Exact curves, measured points, and the control with noisy scalars."""
    axis.plot(here.alpha, here.complement, color=COLORS["complement"], label="complement")
    for rule in RULES:
        axis.plot(here.alpha, here[f"exact_{rule}"], color=COLORS[rule], label=rule)
        axis.errorbar(here.alpha, here[rule], 4 * here[f"{rule}_error"], color=COLORS[rule], fmt="o")
    axis.plot(here.alpha, here.exact_noisy, "--", color=_figures.CONTROL, linewidth=0.8, label="centred, noisy scalars")
    axis.errorbar(here.alpha, here.noisy, 4 * here.noisy_error, color=_figures.CONTROL, fmt="o")
    axis.set(xlabel="closing α", ylabel="robustness", ylim=(0, None))


def _draw_trade_off(axis, points, base: float, title: str):
    """Share of decisions changed against robustness gained, by rule."""
    lines = {"soft": dict(marker="v", label="soft"), "top r": dict(marker="D", label="complement of the top r")}
    for name, values in points.items():
        style = lines.get(name, dict(marker="*", linestyle="none", markersize=8, clip_on=False))
        axis.plot(100 * values[:, 0], 100 * (values[:, 1] - base), color=COLORS[name], linewidth=0.8, **style)
    # Without any direction kept still the shift is the raw gap.
    raw = points["soft"][0]
    axis.plot(100 * raw[0], 100 * (raw[1] - base), "x", color="black", markersize=6, label="raw mean shift")
    axis.set(title=title, xlabel="decisions changed (%)", ylabel="gain (points)")


def _draw_gains(axis, data):
    """Robustness of each rule on each real gallery."""
    names = [str(name) for name in data.real_gallery.values]
    colors = ("#4D4D4D", COLORS["complement"], COLORS["compensated"], _figures.CONTROL, COLORS["centred"])
    colors += ("#66C2A4", "#B2E2CD")
    width, places = 0.8 / len(colors), np.arange(len(names))
    for j, (color, rule) in enumerate(zip(colors, data.real_rule.values, strict=True)):
        here, at = data.sel(real_rule=rule), places + (j - 3) * width
        axis.bar(at, here.real_mean, width, color=color, label=None if rule in COLORS else str(rule))
        error, shown = 4 * here.real_error.values, here.real_error.values > 0
        axis.errorbar(at[shown], here.real_mean.values[shown], error[shown], color="black", fmt="none", linewidth=0.6)
    axis.set_xticks(places, [name.replace(", ", "\n").replace(" classes", "") for name in names])
    axis.set(
        title="(f) real embeddings, σ² = 0.0005", ylabel="robustness", ylim=(0, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1]
    )
    axis.legend(loc="upper center", ncols=2, handlelength=1.0, columnspacing=0.8)
