"""N7: the best linear storage of a gallery under noise in proportion to the stored power, and real low-precision formats."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, equal, moves, never_above, none
from experiments.setups.galleries import core_galleries, nearest_rows, random_classes, two_spectra
from experiments.setups.quantizers import (
    COLUMN_BITS,
    FORMATS,
    bytes_per_row,
    kept_by_columns,
    library_quantisers,
    random_rotation,
    stored,
)
from simulator.theory.storage import (
    clean_scores,
    margin_robustness,
    optimal_metric,
    second_moment,
    shrunk_moment,
    smallest_storage_factor,
    storage_factor,
    symmetric_root,
)

CLAIM = sim.Claim(
    id="N7",
    title="The best linear storage",
    summary="One linear map, known in closed form, is the best in which to store a gallery with limited precision.",
    statement=(
        "Rows A⁻ᵀ(x − c), queries A(y − m) and one exact scalar per class keep every decision for every invertible A. Under "
        "noise in proportion to the stored power the mean noise of a score is least for B = AᵀA with B C_y B = C_x, where it "
        "is (tr (C_y^½ C_x C_y^½)^½)²; low-precision storage gains in the same order."
    ),
    source="derived here: theory.md N7",
    assumes="the scalar is kept exactly; noise independent and of equal variance on all coordinates (a random rotation)",
    expected=dict.fromkeys(
        (
            "decisions",
            "noise factor",
            "random metrics",
            "gradient search",
            "robustness",
            "robustness rises",
            "rounding",
            "rounding to int4 rises",
        ),
        "holds",
    ),
)
PRECISION = "float32 training, float64 draws, predictions and decisions"
CAPTION = (
    "(a) Noise factor tr(BC) tr(B⁻¹C′), C and C′ the second moments of queries and gallery, over its predicted "
    "least value: 1,000 random metrics per gallery, and gradient search from random starts. (b) Robustness at equal "
    "noise-to-power, ± 4 standard errors over 2,000 draws; storages are fitted on half of the queries and judged on "
    "others. (c) Answers kept after rounding the rows of the first gallery to low precision, predicted from the "
    "steps and measured, ± 4 standard errors over 100 random bases; grey: near miss. (d) Answers kept against bytes "
    "per row (scalars and scales included) on the first gallery: the formats of (c), 3 to 8 bits with a range per "
    "column, and FAISS's quantizers at the better of its two metrics."
)
STORAGES = ("as it is", "queries centred", "both centred", "optimum")
WHITENED = "queries whitened"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Galleries (rows, dimensions) of two spectra and of classes without structure, and trained prototypes."""

    towers: bool = True
    spectra: tuple[int, int] = (96, 32)
    isotropic: tuple[int, int] = (20, 32)
    noise: float = 0.2  # standard deviation over the root mean square of the stored entries
    num_queries: int = 144
    num_metrics: int = 1000
    num_starts: int = 4
    search_steps: int = 2000
    num_draws: int = 2000
    num_rotations: int = 100  # with a prediction
    num_bases: int = 150  # in all
    seed: int = 60
    design_seeds: tuple[int, ...] = (59,)


QUICK = Config(
    towers=False, spectra=(40, 16), isotropic=(12, 16), num_queries=96, num_starts=2, num_draws=1000, num_rotations=12
)


def measure(config: Config, *, progress: bool = False):
    """Decisions, factors, robustness and rounding on every gallery."""
    import xarray as xr

    from simulator.progress import tqdm

    galleries = {"two spectra": two_spectra(*config.spectra, 300, config.seed)}
    galleries["isotropic"] = random_classes(*config.isotropic, 300, config.seed)
    if config.towers:
        galleries["MLP towers"] = core_galleries("synthetic", 32, 300, config.seed, num_classes=20)[
            "MLP towers, K = 10"
        ]
    parts = []
    for gallery, queries, _ in tqdm(galleries.values(), disable=not progress, desc="galleries"):
        # Storages are fitted on the one half, judged on the other.
        seen, asked = queries[::2], queries[1::2][: config.num_queries]
        indices = storages(gallery, seen)
        parts.append(
            _decisions(config, gallery, seen, asked)
            | _factors(config, gallery, seen)
            | _robustness(config, gallery, asked, indices)
            | _rounding(config, gallery, asked, indices)
        )
    gallery, queries, _ = next(iter(galleries.values()))
    seen, asked = queries[::2], queries[1::2][: config.num_queries]
    sizes = [bytes_per_row(gallery.shape[1], name) for name in FORMATS]
    data = xr.Dataset(
        {name: (("gallery", *axes), np.stack([p[name][1] for p in parts])) for name, (axes, _) in parts[0].items()}
        | dict(bytes_per_row=("format", sizes)),
        coords=dict(gallery=list(galleries), storage=[*STORAGES, WHITENED], format=list(FORMATS)),
        attrs=dict(num_dimensions=gallery.shape[1]),
    )
    answers, indices = nearest_rows(gallery, asked), storages(gallery, seen)
    columns = kept_by_columns([indices[name] for name in STORAGES], asked, answers)
    data = data.assign(columns=(("column_storage", "bits"), columns)).assign_coords(bits=list(COLUMN_BITS))
    found = library_quantisers(gallery, asked, answers)
    if not found:  # FAISS is not installed
        return data
    return data.assign(library=(("quantiser", "quantity"), np.array(list(found.values())))).assign_coords(
        quantiser=list(found)
    )


def moments(gallery, queries, shrinkage: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Second moments C_x, C_y about the means, shrunk to full rank as `GapCloser` does."""
    of_gallery, of_queries = (shrunk_moment(second_moment(r, r.mean(axis=0)), shrinkage) for r in (gallery, queries))
    return of_gallery, of_queries


def storages(gallery, queries) -> dict[str, sim.Index]:
    """The ladder from the gallery as it is to the optimum, and the near miss that whitens the queries, whatever the gallery."""
    centred, optimal = (sim.GapCloser(rule).fit(gallery, queries) for rule in ("centred", "optimal"))
    once, best = centred.index(gallery), optimal.index(gallery)
    both = dataclasses.replace(once, rows=gallery - gallery.mean(axis=0)[None, :])
    root = symmetric_root(moments(gallery, queries)[1])
    white = dataclasses.replace(both, rows=both.rows @ root, query_map=np.linalg.inv(root))
    return dict(zip((*STORAGES, WHITENED), (centred.index(gallery, 0.0), once, both, best, white), strict=True))


def _random_map(rng, dimensions: int) -> np.ndarray:
    """An invertible matrix, not symmetric, with singular values over about two decades."""
    left, right = (random_rotation(dimensions, rng) for _ in range(2))
    return left * 10 ** rng.uniform(-1, 1, size=dimensions)[None, :] @ right


def _decisions(config: Config, gallery, seen, queries) -> dict:
    """Decisions changed by linear storage with 20 random maps A and the optimal one; by A⁻¹ in place of A⁻ᵀ."""
    rng, answers = np.random.default_rng(config.seed), nearest_rows(gallery, queries)
    once = sim.GapCloser("centred").fit(gallery, seen).index(gallery)
    deviations, changed, missed = gallery - gallery.mean(axis=0)[None, :], 0, 0
    for _ in range(20):
        matrix = _random_map(rng, gallery.shape[1])
        inverse = np.linalg.inv(matrix)
        # A row x is a row vector: A⁻ᵀ x is x A⁻¹.
        right, wrong = (dataclasses.replace(once, rows=deviations @ m, query_map=matrix) for m in (inverse, inverse.T))
        changed += int(np.sum(right.search(queries) != answers))
        missed += int(np.sum(wrong.search(queries) != answers))
    changed += int(np.sum(sim.GapCloser("optimal").fit(gallery, seen).index(gallery).search(queries) != answers))
    return dict(changed=((), changed), missed=((), missed))


def _factors(config: Config, gallery, queries) -> dict:
    """The factor of the optimum, of its near misses, of random metrics, and what gradient search finds."""
    from scipy.optimize import minimize

    rng, (x, y) = np.random.default_rng(config.seed), moments(gallery, queries)
    dimensions, best = len(x), optimal_metric(x, y)
    root = symmetric_root(best)
    random = []
    for size in np.geomspace(1e-3, 1.0, config.num_metrics):
        # From close to the optimum to anywhere.
        matrix = root @ (np.eye(dimensions) + size * rng.normal(size=x.shape) / dimensions**0.5)
        matrix = matrix if size < 0.5 else _random_map(rng, dimensions)
        random.append(storage_factor(matrix.T @ matrix, x, y))

    def logarithm(flat):
        matrix = flat.reshape(x.shape)
        inverse = np.linalg.inv(matrix)
        asked, rows = matrix @ y, inverse.T @ x @ inverse
        traces = np.sum(asked * matrix), np.trace(rows)
        return sum(map(np.log, traces)), 2 * (asked / traces[0] - rows @ inverse.T / traces[1]).ravel()

    paths = np.full((config.num_starts, 60), np.nan)
    for i in range(config.num_starts):
        path, start = [], _random_map(rng, dimensions).ravel()
        found = minimize(
            logarithm, start, jac=True, method="L-BFGS-B", callback=lambda flat, path=path: path.append(logarithm(flat)[0]),
            options=dict(maxiter=config.search_steps, maxfun=2 * config.search_steps, ftol=0.0, gtol=1e-10),
        )  # fmt: skip
        steps = np.linspace(0, len(path) - 1, paths.shape[1] - 1).astype(int)
        paths[i] = np.exp([*np.array(path)[steps], found.fun])
    white = np.linalg.inv(y)
    return dict(
        optimum=((), smallest_storage_factor(x, y)), at_optimum=((), storage_factor(best, x, y)),
        # The trace in place of the sum of singular values: right only if the moments commute.
        commuting=((), np.trace(symmetric_root(x) @ symmetric_root(y)) ** 2), whitened=((), storage_factor(white, x, y)),
        random=(("metric",), np.array(random)), search=(("start", "point"), paths),
    )  # fmt: skip


def _entry_noise(config: Config, index: sim.Index) -> float:
    """Standard deviation in proportion to the root mean square of the stored entries."""
    return config.noise * float(np.sqrt(np.mean(index.rows**2)))


def _robustness(config: Config, gallery, queries, indices) -> dict:
    """Robustness at equal noise-to-power: measured, exact, and exact for the noise of the gallery as it is."""
    names = ("measured", "measured_error", "exact", "fixed_noise", "factor")
    found = {name: np.empty(len(indices)) for name in names}
    scores, first = clean_scores(gallery, queries), _entry_noise(config, indices[STORAGES[0]])
    for k, index in enumerate(indices.values()):
        sigma, mapped = _entry_noise(config, index), index.map_queries(queries)
        with jax.enable_x64(True):
            estimate = sim.measured_robustness(
                index.rows, mapped, noise=sim.GaussianNoise(sigma), num_draws=config.num_draws,
                key=jax.random.key(config.seed), scoring="dot", bias=index.bias,
            )  # fmt: skip
        found["measured"][k], found["measured_error"][k] = estimate.mean, estimate.standard_error
        length = np.linalg.norm(mapped, axis=1)
        found["exact"][k] = margin_robustness(scores, sigma * length).mean()
        found["fixed_noise"][k] = margin_robustness(scores, first * length).mean()
        found["factor"][k] = np.mean(np.sum(index.rows**2, axis=1)) * np.mean(length**2)
    return {name: (("storage",), values) for name, values in found.items()}


def _rounding(config: Config, gallery, queries, indices) -> dict:
    """Answers kept after rounding in random bases: measured and predicted, means and standard errors over bases.

    Error of the comparison: of measured − predicted, basis by basis. Error of a curve over storages: that within bases
    (each basis's own mean taken out, with Morey's factor), over more of them, since nothing is predicted for it.
    """
    answers, scores = nearest_rows(gallery, queries), clean_scores(gallery, queries)
    kept = np.empty((config.num_bases, len(FORMATS), len(indices)))
    predicted, twice = np.empty((2, config.num_rotations, *kept.shape[1:]))
    for b in range(config.num_bases):
        basis = random_rotation(gallery.shape[1], [config.seed, b])
        for k, index in enumerate(indices.values()):
            rows, asked = index.rows @ basis.T, index.map_queries(queries) @ basis.T
            bias = index.bias.astype(np.float32)[None, :]
            for j, name in enumerate(FORMATS):
                values, step = stored(rows, name)
                kept[b, j, k] = np.mean((asked @ values.T + bias).argmax(axis=1) == answers)
                if b >= config.num_rotations:
                    continue
                variance = asked**2 @ (step**2).T / 12
                predicted[b, j, k] = margin_robustness(scores, np.sqrt(variance)).mean()
                if b < 4:  # a control: its mean is known well enough
                    twice[b, j, k] = margin_robustness(scores, np.sqrt(2 * variance)).mean()

    def error(values):
        # No basis may show an error though there is one: at least one decision in all.
        return np.maximum(values.std(axis=0, ddof=1) / len(values) ** 0.5, 1.0 / (len(values) * len(queries)))

    same, morey = kept[: config.num_rotations], (len(indices) / (len(indices) - 1)) ** 0.5
    axes = ("format", "storage")
    return dict(
        kept=(axes, same.mean(axis=0)), kept_error=(axes, error(same - predicted)), predicted_kept=(axes, predicted.mean(axis=0)),
        twice_kept=(axes, twice[:4].mean(axis=0)), ladder=(axes, kept.mean(axis=0)),
        ladder_error=(axes, morey * error(kept - kept.mean(axis=2, keepdims=True))),
    )  # fmt: skip


def judge(data) -> list[sim.Row]:
    """Decisions, the optimum twice, robustness and its order, rounding and its order."""
    ladder, wrong = list(STORAGES), [*STORAGES[:-1], WHITENED]

    def against(predicted, name):
        return agreement(*(data[each].values.ravel() for each in (predicted, name, f"{name}_error")))

    def identity(predicted, measured, tolerance):
        return equal(data[predicted], measured, tolerance)

    def never_below(name):
        return never_above((data[name] - data.random.min("metric")) / data[name], 1e-9)

    def rises(values, errors, steps):
        """On every gallery: one stretch each, with a free step to the next; the one of two spectra, where every storage gains,
        is the last, which is turned back."""
        signs = np.tile([*np.ones(len(steps) - 1), 0.0], data.sizes["gallery"])[:-1]
        here, error = (
            each.sel(storage=steps).transpose("gallery", "storage").values[::-1].ravel() for each in (values, errors)
        )
        return moves(here, error, np.arange(len(here)), signs)

    four_bits = data.sel(format="int4")
    return [
        sim.Row("decisions", none(data.changed), none(data.missed), "A⁻¹ in place of A⁻ᵀ",
                label="decisions changed by 20 random maps A and the optimum"),
        sim.Row(
            "noise factor",
            identity("optimum", data.at_optimum, 1e-10), identity("commuting", data.at_optimum, 1e-10), "(tr C_y^½ C_x^½)²",
            label="noise factor at B C_y B = C_x against the squared sum of singular values",
        ),
        sim.Row(
            "random metrics", never_below("optimum"),
            never_below("whitened"), "whitened queries as optimum",
            label="how far the best of 1,000 random metrics falls below the optimum",
        ),
        sim.Row(
            "gradient search",
            identity("optimum", data.search.isel(point=-1).max("start"), 1e-6),
            identity("commuting", data.search.isel(point=-1).max("start"), 1e-6), "(tr C_y^½ C_x^½)²",
            label="noise factor that gradient search reaches from random starts",
        ),
        sim.Row(
            "robustness",
            against("exact", "measured"), against("fixed_noise", "measured"),
            "noise that does not follow the power",
            label="robustness under noise in proportion to the stored power against the exact value",
        ),
        sim.Row(
            "robustness rises",
            rises(data.measured, data.measured_error, ladder), rises(data.measured, data.measured_error, wrong), WHITENED,
            label="robustness rises from the gallery as it is to the optimum, every gallery, held-out queries",
        ),
        sim.Row(
            "rounding",
            against("predicted_kept", "kept"), against("twice_kept", "kept"), "step²/6",
            label="answers kept after rounding to bf16, fp8, int8, int4, int3 against the value for noise step²/12",
        ),
        sim.Row(
            "rounding to int4 rises",
            rises(four_bits.ladder, four_bits.ladder_error, ladder), rises(four_bits.ladder, four_bits.ladder_error, wrong), WHITENED,
            label="answers kept after rounding to int4 rise from the gallery as it is to the optimum, every gallery, held-out queries",
        ),
    ]  # fmt: skip


SERIES = dict(zip((*STORAGES, WHITENED), (0, 5, 2, 1, 3), strict=True))


def draw(data):
    """Factors, robustness at equal noise-to-power, rounding, and answers kept against size."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(plotting.TWO_COLUMNS, 5.0), layout="constrained")
    factor, ladder, rounding, sizes = axes.ravel()
    share = np.linspace(0, 100, data.sizes["metric"])
    factor.plot([], [], color=plotting.CONTROL, linewidth=0.8, label="random metrics, each gallery")
    for style, name in zip(("-", "--", ":"), data.gallery.values, strict=False):
        here = data.sel(gallery=name)
        factor.plot(share, np.sort(here.random / here.optimum), color=plotting.CONTROL, linewidth=0.8)
        points = np.linspace(0, 100, data.sizes["point"])
        for start in range(data.sizes["start"]):
            label = f"search, {name}" if start == 0 else None
            values = here.search.isel(start=start) / here.optimum
            factor.plot(points, values, style, color="black", linewidth=0.8, label=label)
    factor.set(title="least noise factor", yscale="log", ylabel="noise factor / predicted least", ylim=(0.7, None))
    factor.set_xlabel("metrics, sorted (%); iterations (%)")
    factor.legend(loc="upper center")
    _draw_bars(ladder, data.gallery.values, data.exact, data.measured, data.measured_error)
    ladder.set(title="equal noise-to-power (bars: exact)", xlabel="gallery", ylabel="robustness", ylim=(0, 1.05))
    first = data.isel(gallery=0)
    _draw_bars(rounding, data.format.values, first.predicted_kept, first.kept, first.kept_error, first.twice_kept)
    rounding.set(title=f"rounding, {first.gallery.item()} (bars: predicted)", xlabel="format", ylim=(0, 1.05))
    rounding.set_ylabel("share of answers kept")
    order = np.argsort(data.bytes_per_row.values, kind="stable")
    for storage in STORAGES:
        values = first.ladder.sel(storage=storage)[order]
        sizes.plot(data.bytes_per_row[order], values, linewidth=0.8, **plotting.series(SERIES[storage]))
    draw_library(sizes, data, data.attrs["num_dimensions"])
    sizes.margins(y=0.1)
    sizes.set(
        title="answers kept against size", xlabel="bytes per row", ylabel="share of answers kept", ylim=(None, 1.03)
    )
    sizes.legend(loc="lower right")
    plotting.legend_above(figure, rounding, ncols=7, columnspacing=1.2, handlelength=1.2)
    return plotting.lettered(figure)


def _draw_bars(axis, names, predicted, measured, error, control=None):
    """Groups of bars (predicted) with points (measured), one bar per storage; grey ticks for the control."""
    width, places = 0.8 / len(SERIES), np.arange(len(names))
    for j, (storage, i) in enumerate(SERIES.items()):
        at, color = places + (j - (len(SERIES) - 1) / 2) * width, plotting.COLORS[i]
        axis.bar(at, predicted.sel(storage=storage), width, color=color, alpha=0.55, label=storage)
        points = [each.sel(storage=storage) for each in (measured, error)]
        axis.errorbar(at, points[0], 4 * points[1], color="black", fmt="o", markersize=2, linewidth=0.8)
        if control is not None:
            axis.plot(at, control.sel(storage=storage), "_", color=plotting.CONTROL, markersize=6)
    axis.plot([], [], "ko", markersize=2, label="measured")
    axis.plot([], [], "_", color=plotting.CONTROL, markersize=6, label="step²/6")
    axis.set_xticks(places, [str(name) for name in names])


def draw_library(axis, data, dimensions: int):
    """Answers kept with a range per column and an exact scalar (dashed), and FAISS's quantisers."""
    places = dimensions * data.bits / 8 + 4
    for name, values in zip(STORAGES, data.columns.values, strict=True):
        axis.plot(places, values, linewidth=0.8, linestyle="--", fillstyle="none", **plotting.series(SERIES[name]))
    axis.plot([], [], "k-", linewidth=0.8, label="a scale per row")
    axis.plot([], [], "k--", linewidth=0.8, label="a range per column")
    for family, marker, words in (("SQ", "x", "scalar"), ("PQ", "+", "product")) if "library" in data else ():
        chosen = np.char.startswith(data.quantiser.values.astype(str), family)
        label = f"FAISS, {words} quantiser"
        axis.plot(*data.library.values[chosen].T, marker, color="black", markersize=5, label=label)
