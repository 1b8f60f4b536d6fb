"""N6: one exact scalar per class closes any gap without changing a decision, and scoring from the mean query does more."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, never_above, none
from experiments.setups.galleries import core_galleries, nearest_rows, random_classes, trained_table
from experiments.setups.trends import stated
from simulator.closing.directions import principal_directions
from simulator.theory.storage import centred_robustness, optimal_centre

CLAIM = sim.Claim(
    id="N6",
    title="Closing without a condition",
    summary="One exact number kept beside each gallery row lets the gap be closed for any gallery.",
    statement=(
        "With the exact scalar −2⟨v, x_k⟩ per class the gallery may move by any v, whatever its rank, and with m·x_k − ½‖x_k‖² "
        "the queries may be scored from any centre m: no clean decision changes. Noise on the rows then counts by "
        "‖y − x_k − v‖, or by ‖y − m‖ alone, and robustness has a closed form."
    ),
    source="derived here: theory.md N6",
    assumes="independent Gaussian noise on the stored rows; the scalars are kept exactly",
    expected=dict.fromkeys(
        ("clean decisions", "clean decisions, centred", "compensated shift", "exact scalars", "best centre"), "holds"
    )
    | {"centred rule": "holds if"},
)
PRECISION = "float32 training, float64 draws, predictions and decisions"
CAPTION = (
    "(a, b) Robustness against α. In (b) the gallery spans the space: the complement has nothing to move. Grey: the "
    "centred rule with noise of the same size on its scalars. (c) r exact scalars more per class, along the "
    "queries' principal directions; grey: predicted for the gallery's directions. Bars, mostly smaller than the "
    "marker: ± 4 standard errors over 2,000 draws. (d, e) Decisions changed against robustness gained at α = 1, all "
    "rules, exact; lower right is best. Optimal: at the same mean power of the stored rows."
)
RULES = ("compensated", "centred")
NEAR_MISSES = ("half the scalar", "scalar without m·x_k")
COLORS = dict(zip(("complement", "compensated", "centred", "soft", "top r", "optimal"), plotting.COLORS, strict=True))
MARKERS = dict(zip(COLORS, plotting.MARKERS, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trained galleries and a random one of more rows than dimensions."""

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
    seed: int = 41


QUICK = Config(
    towers=False, embed_dim=32, steps=300, num_classes=20, full_rank=(40, 24), alphas=(0.0, 1.0, 2.0), components=(0, 2, 8),
    penalties=(10.0,), kept=(1, 8, 16), num_queries=20, num_draws=800, num_other_centres=30,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Everything on every gallery."""
    import xarray as xr

    from simulator.progress import tqdm

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
    return xr.Dataset(
        {name: (("gallery", *axes), np.stack([p[name][1] for p in parts])) for name, (axes, _) in parts[0].items()},
        coords=dict(
            gallery=list(galleries), alpha=list(config.alphas), components=list(config.components), rule=list(RULES),
            near_miss=list(NEAR_MISSES),
        ),
    )  # fmt: skip


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


def _measured(config: Config, rows, queries, *, noise, scoring, bias=None):
    """(mean, standard error) in 64-bit."""
    with jax.enable_x64(True):
        estimate = sim.measured_robustness(
            rows, queries, noise=noise, num_draws=config.num_draws, key=jax.random.key(config.seed),
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
    options: dict[str, Any] = dict(sigma=config.sigma)
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
    value = lambda m: float(centred_robustness(gallery, queries, sigma=config.sigma, centre=m).mean())
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
        **{rule: [sim.GapCloser(rule).fit(gallery, queries)] for rule in (*RULES, "optimal")},
    }
    found = {}
    for name, members in closers.items():
        indices = [closer.index(gallery) for closer in members]
        points = [(np.mean(i.search(queries) != answers), i.robustness(queries, sigma=sigma).mean()) for i in indices]
        found[f"trade_off_{name}"] = ((f"{name} setting", "quantity"), np.array(points))
    return found


def judge(data) -> list[sim.Row]:
    """Decisions, both closed forms, exact scalars, best centre."""

    def against(predicted, name):
        return agreement(*(data[each].values.ravel() for each in (predicted, name, f"{name}_error")))

    def never_better(name):
        return never_above(data.other_value - data[name], 1e-9)

    def gain(name):
        """From α = 0 with exact scalars to α = 1, by gallery."""
        gained = data[name].sel(alpha=1.0) - data.centred.sel(alpha=0.0)
        error = np.hypot(data.centred_error.sel(alpha=0.0), data[f"{name}_error"].sel(alpha=1.0))
        return ", ".join(stated(*pair) for pair in zip(gained.values, error.values, strict=True))

    moved = data.sel(alpha=data.alpha != 0)
    return [
        sim.Row(
            "clean decisions", none(data.changed),
            none(moved.missed.sel(near_miss="half the scalar")), "half the scalar, −⟨v, x_k⟩",
            label="clean decisions changed by either rule, all galleries and α",
        ),
        sim.Row(
            "clean decisions, centred", none(data.changed.sel(rule="centred")),
            none(moved.missed.sel(near_miss="scalar without m·x_k")), "the scalar without m·x_k",
            label="clean decisions changed by the query-centred rule",
        ),
        sim.Row(
            "centred rule",
            against("exact_centred", "centred"), against("uncentred", "centred"), "‖y‖ in place of ‖y − αm‖",
            label="robustness of the query-centred rule at every (gallery, α) against the closed form",
            outside=against("exact_centred", "noisy"),
            condition="the scalars carry no noise; noise of the same size on them takes the gain away",
            effect=f"gain at α = 1, by gallery: {gain('centred')}; with noisy scalars {gain('noisy')}",
        ),
        sim.Row(
            "compensated shift",
            against("exact_compensated", "compensated"), against("unmoved", "compensated"),
            "‖y − x_k‖ in place of ‖y − x_k − αg‖",
            label="robustness of the compensated shift at every (gallery, α) against the exact value",
        ),
        sim.Row(
            "exact scalars",
            against("exact_kept", "kept"), against("kept_by_gallery", "kept"), "the gallery's principal directions",
            label="robustness with r exact scalars more per class against the closed form",
        ),
        sim.Row(
            "best centre", never_better("centre_value"), never_better("mean_value"),
            "the mean query", label="how much any other centre beats the best one",
        ),
    ]  # fmt: skip


def draw(data):
    """Two galleries over α, exact scalars, and the trade-off of all rules."""
    import matplotlib.pyplot as plt

    mosaic = "aabbcc;dddeee"
    figure, panels = plt.subplot_mosaic(mosaic, figsize=(plotting.TWO_COLUMNS, 4.6), layout="constrained")
    shown = [str(name).replace("dimensions", "dim.") for name in data.gallery.values]
    for name, at in (("a", -2), ("b", -1)):
        at = max(at, -data.sizes["gallery"])
        _draw_over_alpha(panels[name], data.isel(gallery=at))
        panels[name].set_title(shown[at])
    for i, name in enumerate(data.gallery.values[::-1]):
        here, look = data.sel(gallery=name), plotting.series(i, color="black", fillstyle="none", linewidth=0.8)
        dots = plotting.series(i, color="black", fillstyle="none", linestyle="none")
        panels["c"].errorbar(data.components, here.kept, 4 * here.kept_error, **dots)
        panels["c"].plot(data.components, here.exact_kept, color="black", linewidth=0.8)
        panels["c"].plot([], [], label=str(name).split(",")[0], **look)
        panels["c"].plot(data.components, here.kept_by_gallery, "--", color=plotting.CONTROL, linewidth=0.8)
    panels["c"].plot([], [], "--", color=plotting.CONTROL, linewidth=0.8, label="gallery's directions")
    panels["c"].set(title="exact scalars", xlabel="scalars more per class, r", ylabel="robustness", ylim=(0, 1.05))
    panels["c"].legend(loc="lower right")
    for name, at in (("d", -2), ("e", -1)):
        here = data.isel(gallery=max(at, -data.sizes["gallery"]))
        points = {key.removeprefix("trade_off_"): here[key].values for key in data if key.startswith("trade_off")}
        draw_trade_off(panels[name], points, float(here.unmoved[0]))
        panels[name].set_title(f"as ({'ab'[name == 'e']})")
    plotting.legend_above(figure, panels["d"], panels["a"], ncols=5)
    return plotting.lettered(figure)


def _draw_over_alpha(axis, here):
    """Exact curves, measured points, and the control with noisy scalars."""
    axis.plot(here.alpha, here.complement, color=COLORS["complement"], label="complement")
    for rule in RULES:
        axis.plot(here.alpha, here[f"exact_{rule}"], color=COLORS[rule], label=rule)
        look = dict(color=COLORS[rule], fmt=MARKERS[rule])
        axis.errorbar(here.alpha, here[rule], 4 * here[f"{rule}_error"], **look)
    axis.plot(here.alpha, here.exact_noisy, "--", color=plotting.CONTROL, linewidth=0.8, label="centred, noisy scalars")
    axis.errorbar(here.alpha, here.noisy, 4 * here.noisy_error, color=plotting.CONTROL, fmt="x")
    axis.plot([], [], "k-", linewidth=0.8, label="exact; points: measured")
    axis.set(xlabel="closing α", ylabel="robustness", ylim=(0, None))


def draw_trade_off(axis, points, base: float):
    """Share of decisions changed against robustness gained, by rule: {rule: [setting, (share, robustness)]}."""
    lines = {"soft": dict(label="soft"), "top r": dict(label="complement of the top r")}
    for name, values in points.items():
        style = lines.get(name, dict(linestyle="none", markersize=6, clip_on=False, zorder=3, label=name))
        look = dict(color=COLORS[name], marker=MARKERS[name], linewidth=0.8) | style
        axis.plot(100 * (values[:, 1] - base), 100 * values[:, 0], **look)
    # Without any direction kept still the shift is the raw gap.
    raw = points["soft"][0]
    axis.plot(
        100 * (raw[1] - base),
        100 * raw[0],
        "x",
        color="black",
        markersize=6,
        zorder=4,
        clip_on=False,
        label="raw mean shift",
    )
    most = 105 * max(values[:, 0].max() for values in points.values())
    axis.set(ylabel="decisions changed (%)", xlabel="robustness gained (points)", ylim=(0, max(most, 10.0)))
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
