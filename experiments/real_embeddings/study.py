"""Closing the gap of real embeddings (CLIP on COCO and ImageNet, VideoCLIP):
python -m experiments.real_embeddings FOLDER [OUT [PART ...]]

The folder holds clip_gallery.npy, clip_queries.npy, coco80_text.npy, in1k_text_a.npy, videoclip_gallery.npy and
videoclip_queries.npy. What is stored and drawn are rates; no embedding leaves the folder. With the names of parts, those
alone are measured anew and the rest of OUT/real_embeddings.nc is kept.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments.claims.linear_storage import STORAGES, storages
from experiments.claims.scoring_sides import SCORINGS, SIDES, moved
from experiments.setups.galleries import nearest_rows, unit_rows
from experiments.setups.quantizers import (
    COLUMN_BITS,
    FORMATS,
    bytes_per_row,
    kept_by_columns,
    library_quantisers,
    random_rotation,
    stored,
)
from simulator.closing.certificate import quantization_effects
from simulator.theory.storage import clean_scores, margin_robustness, second_moment, smallest_storage_factor

VARIANCE = 0.0005  # per coordinate of unit rows: where the gains are large
RULES = (
    "as it is",
    "complement",
    "compensated",
    "inner product",
    "centred",
    "centred, r = 8",
    "centred, r = 32",
    "optimal",
)
LARGEST = "CLIP, K = 500"  # all but spanning, so that the rules differ
FITS = ("in sample", "held out")
SPLITS = 20
TRADE_OFF = ("changed", "robustness", "error")  # quantities of a rule's setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the random subsets of captions, noise, and draws."""

    sizes: tuple[int, ...] = (10, 100, 500)
    num_subsets: int = 20
    variances: tuple[float, ...] = (0.0005, 0.001, 0.005, 0.022)
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    kept: tuple[int, ...] = (0, 1, 8, 32)
    penalties: tuple[float, ...] = (0.0, 1.0, 10.0, 100.0, 1000.0)
    components: tuple[int, ...] = (0, 50, 100, 200, 300, 400, 450)
    num_draws: int = 40
    num_rotations: int = 4
    num_video_subsets: int = 60
    seed: int = 53


def read(folder: Path | str) -> dict[str, np.ndarray]:
    """Unit rows of every array, in float64, by name."""
    names = ("clip_gallery", "clip_queries", "coco80_text", "in1k_text_a")
    return {name: unit_rows(np.load(Path(folder) / f"{name}.npy")) for name in names}


def galleries(arrays) -> dict[str, np.ndarray]:
    """The four galleries by name."""
    return {
        "CLIP, K = 10": arrays["clip_gallery"][:10],
        "COCO, K = 80": arrays["coco80_text"],
        LARGEST: arrays["clip_gallery"],
        "ImageNet, K = 1000": arrays["in1k_text_a"],
    }


def measure(folder: Path | str, config: Config, only: tuple[str, ...] = ()):
    """Everything, as rates by rule, size and format; or the named parts alone."""
    import xarray as xr

    arrays = read(folder)
    queries = arrays["clip_queries"]
    parts = dict(
        subsets=lambda: subsets(config, arrays["clip_gallery"], queries),
        rules=lambda: rules(config, arrays),
        trade_off=lambda: trade_off(config, arrays["clip_gallery"], queries),
        sides=lambda: sides(config, arrays["clip_gallery"][:100], queries),
        storage=lambda: storage(config, arrays),
        quantisation=lambda: quantisation(config, folder),
    )
    if unknown := sorted({*only} - {*parts}):
        raise ValueError(f"no part is called {', '.join(unknown)}; the parts are {', '.join(parts)}")
    found = {}
    with jax.enable_x64(True):
        for name in only or parts:
            found |= parts[name]()
    return xr.Dataset(
        found,
        coords=dict(
            size=list(config.sizes), variance=list(config.variances), alpha=list(config.alphas), kept=list(config.kept),
            gallery=list(galleries(arrays)), rule=list(RULES), scoring=list(SCORINGS), side=list(SIDES),
            storage=list(STORAGES), format=list(FORMATS), fit=list(FITS), range=["fixed", "minmax", "per_dimension"],
            **_trade_off_names(config),
        ),
        attrs=dict(num_queries=len(queries)),
    )  # fmt: skip


def _trade_off_names(config: Config) -> dict[str, list]:
    return {
        "soft setting": list(config.penalties),
        "top r setting": list(config.components),
        "quantity": list(TRADE_OFF),
    }


def named(data):
    """Results with the settings and the number of queries that version 0.1 did not store: those of its `Config`."""
    return (
        data
        if "quantity" in data.coords
        else data.assign_coords(_trade_off_names(Config())).assign_attrs(num_queries=500)
    )


def _measured(config: Config, rows, queries, sigma: float, *, scoring="sqeuclidean", bias=None, times: int = 1):
    """(mean, standard error), paired draws."""
    estimate = sim.measured_robustness(
        rows, queries, noise=sim.GaussianNoise(sigma), num_draws=times * config.num_draws, scoring=scoring, bias=bias,
        key=jax.random.key(config.seed),
    )  # fmt: skip
    return estimate.mean, estimate.standard_error


def subsets(config: Config, captions, queries) -> dict:
    """Means over random subsets of captions, with the standard error over subsets: robustness with the gap open and its
    gain, the share of the gap that can be closed, decisions that closing changes (α <= 1.5), and the centred rule with r
    exact scalars more."""
    rng = np.random.default_rng(config.seed)
    shape = (len(config.sizes), config.num_subsets)
    base, gain = np.empty((2, *shape, len(config.variances)))
    share, changed, kept = np.empty(shape), np.zeros(shape, int), np.empty((*shape, len(config.kept)))
    for i, size in enumerate(config.sizes):
        for s in range(config.num_subsets if size < len(captions) else 1):
            rows = captions[rng.permutation(len(captions))[:size]]
            closer = sim.GapCloser().fit(rows, queries)
            share[i, s] = closer.direction_ @ closer.direction_ / (closer.gap_ @ closer.gap_)
            changed[i, s] = sum(closer.certificate(rows, queries, a).changed for a in (0.5, 1.0, 1.5))
            for j, variance in enumerate(config.variances):
                ends = [_measured(config, closer.transform(rows, a), queries, variance**0.5)[0] for a in (0.0, 1.0)]
                base[i, s, j], gain[i, s, j] = ends[0], ends[1] - ends[0]
            for j, r in enumerate(config.kept):
                index = sim.GapCloser("centred", num_components=r).fit(rows, queries).index(rows)
                kept[i, s, j] = index.robustness(queries, sigma=VARIANCE**0.5).mean()
        if size >= len(captions):  # there is one subset
            for values in (base, gain, share, changed, kept):
                values[i, 1:] = values[i, :1]

    def summarised(name, axes, values):
        error = values.std(axis=1, ddof=1) / config.num_subsets**0.5
        return {name: (axes, values.mean(axis=1)), f"{name}_error": (axes, error)}

    on = ("size", "variance")
    return (
        summarised("base", on, base) | summarised("gain", on, gain) | summarised("share", ("size",), share)
        | summarised("scalars", ("size", "kept"), kept) | dict(changed=(("size",), changed.sum(axis=1)))
    )  # fmt: skip


def rules(config: Config, arrays) -> dict:
    """Robustness of each rule on each gallery, its error (0 where the value is exact), and decisions changed. A rule is
    fitted on one half of the queries and judged on the other, both ways, so that no query judges what it was fitted on."""
    found, queries = galleries(arrays), arrays["clip_queries"]
    halves = np.array_split(np.random.default_rng(config.seed).permutation(len(queries)), 2)
    shape = (len(found), len(RULES))
    robustness, variance, changed = np.zeros(shape), np.zeros(shape), np.zeros(shape, int)
    for seen, asked in (halves, halves[::-1]):
        share = len(asked) / len(queries)
        for i, rows in enumerate(found.values()):
            for j, (index, flips) in enumerate(_indices(rows, queries[seen], queries[asked])):
                value, error = _quickly(config, index, queries[asked])
                robustness[i, j] += share * value
                variance[i, j] += (share * error) ** 2
                changed[i, j] += flips
    axes = ("gallery", "rule")
    return dict(robustness=(axes, robustness), error=(axes, variance**0.5), rule_changed=(axes, changed))


def _indices(rows, seen, asked):
    """(index, decisions changed of those asked) of every rule in RULES, fitted on the queries seen."""
    closers = [
        sim.GapCloser(alpha=0.0),
        sim.GapCloser(),
        sim.GapCloser("compensated"),
        sim.GapCloser("centred", alpha=0.0),
    ]
    closers += [sim.GapCloser("centred", num_components=r) for r in (None, 8, 32)] + [sim.GapCloser("optimal")]
    for closer in closers:
        closer.fit(rows, seen)
        yield closer.index(rows), closer.certificate(rows, asked).changed


def _quickly(config: Config, index: sim.Index, queries) -> tuple[float, float]:
    """Robustness of an index and its standard error: exact for inner products, measured for distances."""
    if index.scoring == "dot":
        return float(index.robustness(queries, sigma=VARIANCE**0.5).mean()), 0.0
    times = max(1, 500 // len(index.rows))  # few classes: a draw is cheap and its outcome scattered
    return _measured(config, index.rows, queries, VARIANCE**0.5, bias=index.bias, times=times)


def trade_off(config: Config, rows, queries) -> dict:
    """Share of decisions changed and robustness at α = 1 of the soft and the top-r rule on the largest gallery."""
    closers = {
        "soft": [sim.GapCloser("soft", penalty=p) for p in config.penalties],
        "top r": [sim.GapCloser(num_components=r) for r in config.components],
    }
    found = {}
    for name, members in closers.items():
        points = []
        for closer in members:
            index = closer.fit(rows, queries).index(rows)
            flips = np.mean(index.search(queries) != nearest_rows(rows, queries))
            points.append((flips, *_quickly(config, index, queries)))
        found[f"trade_off_{name}"] = ((f"{name} setting", "quantity"), np.array(points))
    return found


def sides(config: Config, rows, queries) -> dict:
    """Robustness for every scoring, side and α along g', and of inner products with the queries at α times their mean."""
    shape = (len(SCORINGS), len(SIDES), len(config.alphas))
    value, error, mean = np.empty(shape), np.empty(shape), np.empty((2, len(config.alphas)))
    closer = sim.GapCloser().fit(rows, queries)
    for k, alpha in enumerate(config.alphas):
        for i, scoring in enumerate(SCORINGS):
            for j, side in enumerate(SIDES):
                x, y = moved(rows, queries, alpha * closer.direction_, side)
                value[i, j, k], error[i, j, k] = _measured(config, x, y, VARIANCE**0.5, scoring=scoring)
        m = alpha * queries.mean(axis=0)
        mean[:, k] = _measured(config, rows, queries - m[None, :], VARIANCE**0.5, scoring="dot", bias=rows @ m)
    axes = ("scoring", "side", "alpha")
    return dict(
        by_side=(axes, value), by_side_error=(axes, error), at_mean=(("alpha",), mean[0]), at_mean_error=(("alpha",), mean[1])
    )  # fmt: skip


def storage(config: Config, arrays) -> dict:
    """N7: noise factors, exact robustness at equal noise-to-power (fitted on all queries, or on random halves and judged
    on the others), answers kept after rounding, and FAISS's quantisers on the largest gallery."""
    queries, captions = arrays["clip_queries"], arrays["clip_gallery"]
    factor, exact = np.empty((2, len(STORAGES))), np.empty((2, 2, len(STORAGES)))
    rng = np.random.default_rng(config.seed)
    for g, rows in enumerate((captions[:10], captions)):
        for f, fit in enumerate(FITS):
            found = []
            for _ in range(1 if fit == "in sample" else SPLITS if g == 0 else 4):
                order = rng.permutation(len(queries))
                seen, asked = (queries, queries) if fit == "in sample" else (queries[order[::2]], queries[order[1::2]])
                found.append(
                    [
                        index.robustness(asked, sigma=(VARIANCE * np.mean(np.sum(index.rows**2, axis=1))) ** 0.5).mean()
                        for name, index in storages(rows, seen).items()
                        if name in STORAGES
                    ]
                )
            exact[g, f] = np.mean(found, axis=0)
        zero, x, y = np.zeros(rows.shape[1]), rows.mean(axis=0), queries.mean(axis=0)
        traces = [
            np.trace(second_moment(rows, c)) * np.trace(second_moment(queries, m))
            for c, m in ((zero, zero), (zero, y), (x, y))
        ]
        least = smallest_storage_factor(second_moment(rows, x), second_moment(queries, y))
        factor[g] = np.array([*traces, least]) / traces[0]
    answers, indices = nearest_rows(captions, queries), storages(captions, queries)
    kept = np.zeros((len(FORMATS), len(STORAGES)))
    for b in range(config.num_rotations):
        basis = random_rotation(captions.shape[1], [config.seed, b])
        for j, name in enumerate(STORAGES):
            index = indices[name]
            rows, asked = index.rows @ basis.T, index.map_queries(queries) @ basis.T
            for i, form in enumerate(FORMATS):
                bias = index.bias.astype(np.float32)[None, :]
                best = (asked @ stored(rows, form)[0].T + bias).argmax(axis=1)
                kept[i, j] += np.mean(best == answers) / config.num_rotations
    result: dict[str, Any] = dict(
        factor=(("stored", "storage"), factor), equal_power=(("stored", "fit", "storage"), exact),
        rounded=(("format", "storage"), kept), bits=(("bits",), list(COLUMN_BITS)),
        columns=(("column_storage", "bits"), kept_by_columns([indices[n] for n in STORAGES], queries, answers)),
        bytes_per_row=(("format",), [bytes_per_row(captions.shape[1], name) for name in FORMATS]),
    )  # fmt: skip
    library = library_quantisers(captions, queries, answers)
    if library:
        result["quantiser"] = (("quantiser",), list(library))
        result["library"] = (("quantiser", "quantity_of_library"), np.array(list(library.values())))
    return result


def quantisation(config: Config, folder: Path | str) -> dict:
    """VideoCLIP, 8 bins, random subsets of ten texts: answers kept before and after closing for each range, and with the
    step as it was; mean and standard error over subsets."""
    x, y = (unit_rows(np.load(Path(folder) / f"videoclip_{name}.npy")) for name in ("gallery", "queries"))
    rng, values = np.random.default_rng(config.seed), []
    for _ in range(config.num_video_subsets):
        rows = x[rng.permutation(len(x))[:10]]
        effects = quantization_effects(rows, sim.GapCloser().fit(rows, y).transform(rows), iter([y]), bins=8)
        values.append([[e.robustness, e.robustness_closed, e.robustness_same_step] for e in effects])
    values, axes = np.array(values), ("range", "when")
    error = lambda a: a.std(axis=0, ddof=1) / config.num_video_subsets**0.5
    # What closing changes, subset by subset, and what it would change with the step as it was.
    changes = values[:, :, 1:] - values[:, :, :1]
    return dict(
        video=(axes, values.mean(axis=0)), video_error=(axes, error(values)),
        video_change_error=(("range", "closed"), error(changes)),
    )  # fmt: skip
