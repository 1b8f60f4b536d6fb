"""`gapsim diagnose`: what is known about the gap of somebody's own embeddings, read by blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments.report import diagnosis_page
from simulator import geometry, streaming
from simulator.closing.directions import complement
from simulator.numerics import precision
from simulator.storage.embeddings import Embeddings, load_labels
from simulator.validation import require_integer, require_labels, require_memory, require_number

ALPHA_QUANTILES = dict(min=0.0, q05=0.05, q25=0.25, median=0.5, q75=0.75, q95=0.95, max=1.0)
ROBUSTNESS_ROWS = 500  # each takes up to a third of a second at K = 1,000
LARGEST_ROBUST_GALLERY = 32_768  # rows that are held in memory for the exact robustness
LARGEST_PRODUCT = 1e13  # multiplications for which all pairs are compared: a quarter of an hour on two cores
MARGINAL_BATCHES = 8
TILE = 2048  # rows of each modality in a block of scores: 32 MiB
# The first seconds show nothing, so that a short run and an error are one clean line.
_BAR = dict(leave=False, delay=2, mininterval=0.5)  # on standard error
# Keys that are there in any case, None where the input does not define them.
NOT_ALWAYS = ("alignment", "recall_at_1_xy", "recall_at_1_yx", "rmg", "marginal_error_x", "marginal_error_y")


@dataclasses.dataclass(frozen=True)
class Modality:
    """A file of rows, whether they are scaled to unit length, and its name in progress bars."""

    file: Embeddings
    unit: bool
    progress: bool

    @property
    def roundoff(self) -> float:
        """Unit roundoff of the stored numbers."""
        return precision.ROUNDOFF.get(self.file.dtype, 0.0)

    def __call__(self, words: str = "", rows: int | None = None) -> Iterator[np.ndarray]:
        """The rows by blocks, with a progress bar if there are words for it."""
        from tqdm import tqdm

        hidden = not (self.progress and words)
        with tqdm(total=len(self.file), desc=words, unit="row", unit_scale=True, disable=hidden, **_BAR) as bar:
            for block in self.file.blocks(rows, unit=self.unit):
                yield block
                bar.update(len(block))


def diagnose(
    gallery: Path | str, queries: Path | str, *, paired: bool = False, labels: Path | str | None = None,
    normalize: bool = False, temperature: float | None = None, sigma: float | None = None, subset: int = 5000,
    seed: int = 0, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All measures as plain values, in float64, with memory for a few blocks and some 60 bytes per query.

    Args:
      gallery, queries: files of `Embeddings`, "file.npz:name" for an array inside a file.
      paired: row i of one pairs with row i of the other.
      labels: file with the right gallery row of each query.
      normalize: scale every row to unit length first.
      temperature: of the model, for the marginal errors.
      sigma: noise per coordinate on the gallery rows, for the exact robustness.
      subset: what needs all pairs of rows within a modality, and what would need more than 1e13 multiplications, uses
        this many random rows.
      seed: of the random subset.
      progress: show bars on standard error.

    Returns:
      dict: the names of `diagnosis_page.EXPLANATIONS` (with _x for the gallery and _y for the queries where a measure has both), None
      where one is not defined; sampled: {name: rows, of, standard_error} for every number that is not exact on all
      rows; warnings, summary: sentences; curves: what the page draws.

    Raises:
      ValueError, OSError: input that cannot be read or does not fit together; the message says which, where and how to
      mend it.
    """
    require_integer("subset", subset, least=2)
    require_integer("seed", seed, least=0)
    for name, value in (("temperature", temperature), ("sigma", sigma)):
        if value is not None:
            require_number(
                name, value, least=1e-290, most=1e290
            )  # beyond, 1/value or its product with a row is no number
    x, y = (Modality(Embeddings(path), normalize, progress) for path in (gallery, queries))
    require_match(x.file, y.file, paired)
    require_memory("diagnose", x.file.shape[1], squares=6)
    truth = None
    if labels is not None:
        truth = require_labels(load_labels(labels), num_queries=len(y.file), num_classes=len(x.file))

    rng = np.random.default_rng(seed)
    chosen_x, chosen_y = (np.sort(rng.permutation(len(m.file))[:subset]) for m in (x, y))
    if paired:
        chosen_y = chosen_x
    kept_x, kept_y = [], []
    about_x = streaming.moments(_keep(x("gallery: moments"), chosen_x, kept_x), x.roundoff)
    about_y = streaming.moments(_keep(y("queries: moments"), chosen_y, kept_y), y.roundoff)
    some_x, some_y = np.concatenate(kept_x), np.concatenate(kept_y)
    if paired or temperature is not None:
        _require_directions((x.file, about_x), (y.file, about_y))

    result: dict[str, Any] = dict(
        gallery=str(x.file), queries=str(y.file), gallery_rows=len(x.file), query_rows=len(y.file),
        dimensions=x.file.shape[1], paired=paired, normalized=normalize, temperature=temperature, sigma=sigma,
    )  # fmt: skip
    sampled: dict[str, dict[str, Any]] = {}
    shift, result["gallery_rank"] = _complement(x, about_x, about_y)
    values, curves = _spread(x, y, about_x, about_y, shift)
    result |= values
    for name, rows, total in (("x", some_x, len(x.file)), ("y", some_y, len(y.file))):
        value = streaming.uniformity(rows, total)
        _estimate(result, sampled, f"uniformity_{name}", *value, rows=len(rows), total=total)
    if paired:
        means = streaming.pair_means(x("pairs"), y())
        result |= dict(alignment=means.squared_distance, rmg=streaming.relative_gap(about_x, about_y, means.cosine))
    same_x, same_y = about_x.copies(), about_y.copies() if paired else None
    is_small = float(len(x.file)) * len(y.file) * x.file.shape[1] <= LARGEST_PRODUCT
    _decisions(result, sampled, x, y, truth, (chosen_x, some_x), (chosen_y, some_y), same_x, same_y, is_small)
    if temperature is not None:
        _marginals(result, sampled, x, y, some_x, some_y, temperature, is_small, rng)
    if sigma is not None and len(x.file) <= LARGEST_ROBUST_GALLERY:
        asked = np.sort(rng.permutation(len(some_y))[:ROBUSTNESS_ROWS])
        curves |= _robustness(result, sampled, x, some_y[asked], len(y.file), shift, same_x, sigma)

    result = dict.fromkeys(NOT_ALWAYS) | {name: _plain(value) for name, value in result.items()}
    result |= dict(sampled=sampled, warnings=_warnings(result, about_x, about_y, same_x, same_y))
    return result | dict(summary=diagnosis_page.summary(result), curves=curves)


def require_match(x: Embeddings, y: Embeddings, paired: bool):
    for file in (x, y):
        if len(file) < 2:
            raise ValueError(f"{file} has 1 row; a gap between two clouds needs at least 2 rows of each")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{x} has {x.shape[1]} dimensions and {y} has {y.shape[1]}; both must be embedded in one space"
        )
    if paired and len(x) != len(y):
        raise ValueError(
            f"{x} has {len(x)} rows and {y} has {len(y)}; with --paired row i of one must pair with row i of the other"
        )


def _require_directions(*modalities: tuple[Embeddings, streaming.Moments]):
    for file, about in modalities:
        if about.first_zero is not None:
            raise ValueError(
                f"{file}: row {about.first_zero} is zero and has no direction, which --paired, --temperature and "
                "--normalize need; remove it (and its partner) first"
            )


def _keep(blocks: Iterable[np.ndarray], chosen: np.ndarray, kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks as they are, while their chosen rows (increasing numbers) are copied to `kept`."""
    first = 0
    for block in blocks:
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(block))]
        kept.append(block[inside - first])
        first += len(block)
        yield block


def _complement(x: Modality, about_x, about_y) -> tuple[np.ndarray, int]:
    """The exact complement of the gap, and the rank of the centred gallery, without holding more than 2d rows."""
    dimensions = x.file.shape[1]
    if about_x.count <= dimensions:
        rows = np.concatenate(list(x()))
    else:
        variances = np.linalg.eigvalsh(about_x.covariance)
        if variances[0] > 1e-6 * variances[-1]:  # far above rounding: it spans the space
            factor = np.eye(dimensions)
        else:
            factor = streaming.triangular_factor(x("gallery: rank"), about_x.mean)
        # ±R about the mean: the gallery's mean and centred span in 2d rows.
        rows = about_x.mean[None, :] + np.concatenate([factor, -factor])
    return complement(rows, about_y.mean - about_x.mean, floor=precision.gap_floor(about_x, about_y))


def _spread(x: Modality, y: Modality, about_x, about_y, shift: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gap, what varies along it (None if it is of rounding size), and how far each query is from its best α."""
    gap = about_y.mean - about_x.mean
    gap_norm = float(np.linalg.norm(gap))
    floor = precision.gap_floor(about_x, about_y)
    is_gap, squared = gap_norm > floor, float(shift @ shift)
    direction = gap / gap_norm if is_gap else np.zeros_like(gap)
    directions = np.concatenate([direction[None, :], shift[None, :], streaming.half_rules(about_x, about_y)])
    along_x = streaming.projections(x("gallery: along the gap"), about_x, directions)
    along_y = streaming.projections(y("queries: along the gap"), about_y, directions)
    values: dict[str, Any] = dict(gap_norm=gap_norm, gap_floor=floor)
    values["complement_share"] = squared / gap_norm**2 if is_gap else None
    values["separability"] = streaming.separability(about_x, about_y, along_x[:, 2:], along_y[:, 2:])
    curves: dict[str, Any] = {}
    # NaN is what is not defined, also for those who debug with JAX_DEBUG_NANS.
    with jax.enable_x64(True), jax.debug_nans(False), jax.debug_infs(False):
        for name, about, other, along in (("x", about_x, about_y, along_x), ("y", about_y, about_x, along_y)):
            axes = geometry.principal_axes(about.covariance)
            spread: dict[str, Any] = geometry.spread_measures(
                about.mean, other.mean, axes, direction, np.mean(along[:, 0] ** 2)
            )
            if not is_gap:
                spread |= dict.fromkeys(("variance_along_gap", "defect_ratio", "span_fraction"), np.nan)
            values |= {f"{measure}_{name}": value for measure, value in spread.items()}
            curves[f"variances_{name}"] = np.asarray(axes[0]).tolist()
            if is_gap:
                curves[f"gap_energy_{name}"] = np.cumsum((direction @ np.asarray(axes[1])) ** 2).tolist()
    if is_gap:
        # Both on one axis with the midpoint of the means at 0.
        centres = dict(x=-gap_norm / 2, y=gap_norm / 2)
        columns = dict(x=along_x[:, 0], y=along_y[:, 0])
        ends = [f(columns[m]) + centres[m] for m in "xy" for f in (np.min, np.max)]
        edges = np.linspace(min(ends), max(ends), 81)
        curves["position_edges"] = edges.tolist()
        for name, column in columns.items():
            counts, _ = np.histogram(column, edges - centres[name])
            curves[f"positions_{name}"] = (counts / len(column)).tolist()
    if squared:
        # α* = ⟨y − μ_x, g'⟩/‖g'‖²; the projections are taken from the queries' mean.
        offset, alpha = gap @ shift / squared, along_y[:, 1]
        alpha /= squared
        quantiles = np.quantile(alpha, list(ALPHA_QUANTILES.values())) + offset
        values |= {f"alpha_star_{name}": q for name, q in zip(ALPHA_QUANTILES, quantiles, strict=True)}
        middle = (quantiles[0] + quantiles[-1]) / 2
        reach = max((quantiles[-1] - quantiles[0]) / 2, 0.2)
        edges = np.linspace(middle - reach, middle + reach, 62)
        counts, _ = np.histogram(alpha, edges - offset)
        curves |= dict(alpha_star=(counts / len(alpha)).tolist(), alpha_star_edges=edges.tolist())
    return values, curves


def _decisions(result, sampled, x: Modality, y: Modality, truth, some_x, some_y, same_x, same_y, is_small: bool):
    """Retrieval of partners by cosine and of labels by distance; of all rows, or of random ones among all. Rows that are
    copies (one number in same_x or same_y) are one answer."""
    tile: dict[str, Any] = dict(rows=TILE)
    if result["paired"]:
        all_rows = np.arange(len(same_x))
        if is_small:
            from_y, from_x = streaming.best_matches(lambda: x(**tile), y("nearest rows, by cosine", **tile))
            result["recall_at_1_yx"] = np.mean(streaming.are_partners(from_y, all_rows, same_x, same_y))
            result["recall_at_1_xy"] = np.mean(streaming.are_partners(from_x, all_rows, same_y, same_x))
        else:
            for name, searched, same, (chosen, rows) in (
                ("yx", x, (same_x, same_y), some_y),
                ("xy", y, (same_y, same_x), some_x),
            ):
                pieces = (rows[first : first + TILE] for first in range(0, len(rows), TILE))
                found, _ = streaming.best_matches(lambda m=searched: m("nearest rows, by cosine", **tile), pieces)
                right = streaming.are_partners(found, chosen, *same)
                estimate = streaming.mean_and_error(right, result["query_rows"])
                rows_of = dict(rows=len(rows), total=result["query_rows"])
                _estimate(result, sampled, f"recall_at_1_{name}", *estimate, **rows_of)
    if truth is not None:
        chosen, rows = some_y
        asked = y("nearest rows", **tile) if is_small else (rows[i : i + TILE] for i in range(0, len(rows), TILE))
        found, _ = streaming.best_matches(lambda: x(**tile), asked, "sqeuclidean")
        right = same_x[found] == same_x[truth if is_small else truth[chosen]]
        estimate = streaming.mean_and_error(right, len(truth))
        _estimate(result, sampled, "accuracy", *estimate, rows=len(right), total=len(truth))


def _marginals(result, sampled, x, y, some_x, some_y, temperature: float, is_small: bool, rng):
    """The marginal errors of all rows; or of random batches, whose softmax runs over the batch as in training."""
    names, tile = ("marginal_error_x", "marginal_error_y"), dict(rows=TILE)
    if is_small:
        words = "marginals, both passes"
        errors = streaming.marginal_errors(lambda: x(**tile), lambda: y(words, **tile), temperature=temperature)
        result |= dict(zip(names, errors, strict=True))
        return
    size = min(len(some_x), len(some_y)) // MARGINAL_BATCHES
    orders = (
        [rng.permutation(len(some_x))] * 2 if result["paired"] else [rng.permutation(len(r)) for r in (some_x, some_y)]
    )
    errors = []
    for batch in range(MARGINAL_BATCHES):
        at = slice(batch * size, (batch + 1) * size)
        rows_x, rows_y = some_x[orders[0][at]], some_y[orders[1][at]]
        errors.append(
            streaming.marginal_errors(lambda r=rows_x: iter([r]), lambda r=rows_y: iter([r]), temperature=temperature)
        )
    spread = np.std(errors, axis=0, ddof=1) / MARGINAL_BATCHES**0.5
    for name, value, error in zip(names, np.mean(errors, axis=0), spread, strict=True):
        _estimate(
            result, sampled, name, value, error, rows=size, total=max(result["query_rows"], result["gallery_rows"])
        )
        sampled[name]["batches"] = MARGINAL_BATCHES


def _robustness(result, sampled, x: Modality, asked, total: int, shift, same, sigma: float) -> dict[str, Any]:
    """The exact robustness of some queries with the gap open and closed."""
    from tqdm import tqdm

    gallery = np.concatenate(list(x()))
    by_alpha, num_copies = {}, np.bincount(same)[same]
    for name, alpha in (("open", 0.0), ("closed", 1.0)):
        if alpha and not shift.any():
            by_alpha[name] = by_alpha["open"]
            continue
        rows, words = gallery + alpha * shift[None, :], f"exact robustness at α = {alpha:g}"
        bar = tqdm(asked, desc=words, unit="query", disable=not x.progress, **_BAR)
        kept = np.array([sim.exact_robustness(rows, query[None, :], sigma=sigma)[0] for query in bar])
        # Copies are one answer, and each of them is the nearest with the same probability.
        nearest = streaming.best_matches(lambda r=rows: iter([r]), iter([asked]), "sqeuclidean")[0]
        by_alpha[name] = np.minimum(kept * num_copies[nearest], 1.0)
    for name, values in (by_alpha | dict(gain=by_alpha["closed"] - by_alpha["open"])).items():
        estimate = streaming.mean_and_error(values, total)
        _estimate(result, sampled, f"robustness_{name}", *estimate, rows=len(values), total=total)
    if not shift.any():  # the same gallery twice
        sampled.pop("robustness_gain", None)
    return {f"robustness_{name}": values.tolist() for name, values in by_alpha.items()}


def _estimate(result, sampled, name: str, value, standard_error, *, rows: int, total: int):
    result[name] = value
    if rows < total:
        sampled[name] = dict(rows=rows, of=total, standard_error=_plain(standard_error))


def _plain(value):
    """A number as JSON has it: None for NaN and infinity."""
    if isinstance(value, (str, bool, int, type(None))):
        return value
    return float(value) if np.isfinite(float(value)) else None


def repeats(name: str, num_rows: int, repeated: int, copies: np.ndarray | None) -> list[str]:
    """A sentence about rows that repeat an earlier row, bit by bit or (by their copies) up to rounding; none without."""
    count = repeated if copies is None else num_rows - len(np.unique(copies))
    if not count:
        return []
    near = f" ({count - repeated:,} of them only up to rounding)" if count > repeated else ""
    return [f"{name}: {count:,} of {num_rows:,} rows repeat an earlier row{near}; equal rows count as one answer"]


def _warnings(result, about_x, about_y, same_x, same_y) -> list[str]:
    found = repeats(result["gallery"], about_x.count, about_x.repeated, same_x)
    found += repeats(result["queries"], about_y.count, about_y.repeated, same_y)
    shortest, longest = min(about_x.shortest, about_y.shortest), max(about_x.longest, about_y.longest)
    if shortest < 0.99 * longest:
        found.append(
            f"the rows are {shortest:.4g} to {longest:.4g} long; recall and marginal errors compare directions, accuracy "
            "and robustness distances: --normalize makes the two agree"
        )
    if result["sigma"] is not None and result["gallery_rows"] > LARGEST_ROBUST_GALLERY:
        found.append(
            f"robustness is computed for galleries of up to {LARGEST_ROBUST_GALLERY:,} rows and this one has "
            f"{result['gallery_rows']:,}; pass a smaller one (robustness depends on the number of rows)"
        )
    return found
