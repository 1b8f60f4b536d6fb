"""What closing a gallery is sure to do to the decisions, and what it does not promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import jax
import numpy as np

from simulator.closing.index import Index
from simulator.closing.rules import Rule
from simulator.numerics.precision import equal_rows
from simulator.robustness import Quantization, Range
from simulator.validation import require_same_width

# How far computed scores may be off, in units of (number of dimensions) × (machine epsilon) × (largest length)².
ROUNDING = 8.0
EQUAL_NORMS = 1e-6  # relative spread of norms up to which rows count as normalised (float32 files)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a closed gallery does to the Euclidean nearest-neighbour decisions of the gallery as it was.

    Attributes:
      rule, alpha: what was done.
      num_rows, num_queries: on how many it was checked.
      gap_share: share of ‖g‖² that the rows move by at α = 1, for rules that are a shift of the rows; else None.
      changed: queries whose answer differs, counted in float64 (equal rows count as one answer).
      changed_float32: the same with rows, scalars and queries rounded to float32.
      changed_at_most: queries whose clean margin, in squared distance, is at most `safe_margin`; >= `changed`.
      safe_margin: every query, seen or not, whose nearest row is nearer by more than this keeps its answer.
      rising: queries whose robustness to noise on the rows is provably higher than at α = 0 of the same rule, or None
        where no theorem says so.
      cosine_differs: queries that get another answer by cosine than by Euclidean distance from the gallery as it was; none
        if its rows have equal norms, None if it has a zero row. What is certified is the Euclidean answer.
      cosine_changed: queries whose cosine answer changes when the closed rows are re-normalised, or None where the
        closed gallery is not a set of rows to be compared by cosine.
      cosine_changed_at_most: queries for which the bound s_j − s_k <= ‖y‖ |n_j − n_k| leaves room for a flip.
      sigma: standard deviation of the noise per coordinate, or None.
      robustness, robustness_closed: exact mean robustness to noise of `sigma` of the gallery as it was under Euclidean
        distance, and closed; None without sigma.
      gain_error: standard error of their difference where they are means over `robustness_queries` random queries
        instead of all; else 0.
      robustness_queries: queries that the two means are taken over.
      gaining: how many of these gain.
      refusals: what is not promised, and why; one sentence each.
    """

    rule: str
    alpha: float
    num_rows: int
    num_queries: int
    gap_share: float | None
    changed: int
    changed_float32: int
    changed_at_most: int
    safe_margin: float
    rising: int | None
    cosine_differs: int | None
    cosine_changed: int | None
    cosine_changed_at_most: int | None
    sigma: float | None
    robustness: float | None
    robustness_closed: float | None
    gain_error: float | None
    robustness_queries: int
    gaining: int | None
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        """The certificate in sentences, one per line."""
        of = f"of {self.num_queries:,} queries"
        lines = [
            f"rule {self.rule}, α = {self.alpha:.4g}, {self.num_rows:,} rows"
            + ("" if self.gap_share is None else f"; at α = 1 they move by {self.gap_share:.1%} of ‖g‖²"),
            f"clean decisions changed: {self.changed:,} {of}, by Euclidean distance (at most {self.changed_at_most:,} by their margins; "
            f"{self.changed_float32:,} when computed in float32)",
            f"any query whose margin in squared distance exceeds {self.safe_margin:.2g} keeps its answer",
        ]
        if self.rising is not None:
            lines.append(f"robustness to noise on the rows provably rises above that at α = 0 for {self.rising:,} {of}")
        if self.cosine_differs:
            lines.append(cosine_warning(self.cosine_differs, self.num_queries))
        if self.cosine_changed is not None:
            bound = "no bound: the norms of the gallery differ"
            if self.cosine_changed_at_most is not None:
                bound = f"at most {self.cosine_changed_at_most:,} by the bound on norms"
            lines.append(
                f"cosine decisions changed after re-normalising the rows: {self.cosine_changed:,} {of} ({bound})"
            )
        if self.sigma is not None:
            some = f"{self.robustness_queries:,} {'random ' if self.gain_error else ''}queries"
            lines.append(
                f"exact robustness at σ = {self.sigma:.4g}, {some}: {self.robustness:.4f} before, "
                f"{self.robustness_closed:.4f} after"
                + (f" (the difference ± {self.gain_error:.4f})" if self.gain_error else "")
                + f"; higher for {self.gaining:,}"
            )
        return "\n".join([*lines, *(f"not promised: {reason}" for reason in self.refusals)])


def add_counts(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts over blocks of queries as counts over all of them; the largest of the margins; None stays None."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if value is None or name not in total:
                total[name] = value
            elif name == "safe_margin":
                total[name] = max(total[name], value)
            else:
                total[name] += value
    return total


def cosine_warning(differs: int, num_queries: int) -> str:
    """What unequal norms do to an answer by cosine, in a sentence."""
    return (
        f"by cosine {differs:,} of {num_queries:,} queries get another answer than by Euclidean distance, before and after: "
        "the rows have unequal norms and the Euclidean answers are the ones that are kept; normalise the rows to have both"
    )


def no_gap(gap_norm: float, floor: float) -> str:
    """The reason why nothing can be said or done along a gap of rounding size."""
    return (
        f"there is no gap to close: the two means lie {gap_norm:.3g} apart, and rounding of the stored rows alone makes up to "
        f"{floor:.3g}; rule centred and rule optimal need no gap"
    )


def nothing_to_move(num_rows: int, rank: int, dimensions: int) -> str:
    """The reason why no shift of the rows closes a gap without changing decisions."""
    return (
        f"nothing to move: the {num_rows:,} gallery rows, centred, span {rank} of {dimensions} dimensions, all of the gap "
        "included, so no part of it can be closed by moving rows without changing decisions; rule compensated and rule "
        "centred keep every decision by one exact number per row (theory: N6)"
    )


def refusals(
    rule: Rule, alpha: float, gallery: np.ndarray, index: Index, *, is_exact: bool, safe_alpha: float
) -> Iterator[str]:
    """What is not promised, and why; one sentence each.

    Args:
      rule, alpha, gallery, index: what was done to which rows [K, d].
      is_exact: the shift is orthogonal to the gallery's centred span.
      safe_alpha: the smallest α* of the fitted queries.
    """
    if rule.shifts and rule.for_every_query and not is_exact:
        yield (
            "the shift is not orthogonal to the span of these rows (only num_components directions were kept still, or "
            "they are not the rows that were fitted), so decisions may change and robustness need not rise"
        )
    elif is_exact and alpha > safe_alpha:
        yield (
            f"robustness averaged over queries is sure to rise only up to α = {max(safe_alpha, 0.0):.4g}, the smallest "
            "α* of the fitted queries: beyond it some queries lose while others gain"
        )
    if rule.needs_gap and not rule.for_every_query:
        yield (
            "no theorem says which queries gain: the shift changes the distances of different classes by different "
            "amounts; give sigma for the exact values"
        )
    if not rule.shifts:
        yield "the exact scalars carry the result: noise of the size of that on a coordinate takes the gain away"
        return
    norms = np.linalg.norm(gallery, axis=1)
    if np.ptp(norms) > EQUAL_NORMS * norms.max():
        yield (
            f"nothing holds under cosine or after re-normalising: the rows have norms from {norms.min():.4g} to "
            f"{norms.max():.4g}; normalise them before closing"
        )
    yield (
        "under inner-product scoring with stored norms moving the gallery has no effect on robustness; centre the "
        "queries instead (rule centred)"
    )
    widths = [np.ptp(rows) for rows in (gallery, index.rows)]
    yield (
        f"robustness to quantisation over [min, max] need not rise: its range goes from {widths[0]:.4g} to "
        f"{widths[1]:.4g}, and one coordinate sets everybody's step; use a fixed range or one per dimension"
    )


@dataclasses.dataclass(frozen=True)
class QuantizationEffect:
    """Robustness to quantising the gallery to `bins` bins per coordinate, before and after closing.

    range: where the bins lie, see Quantization. step, step_closed: the width of a bin (the mean over dimensions for
    "per_dimension"). robustness, robustness_closed: share of answers kept. robustness_same_step: what it would be after
    closing if the step had not changed. widest: the coordinates that set the [min, max] range before and after.
    """

    range: str
    bins: int
    step: float
    step_closed: float
    robustness: float
    robustness_closed: float
    robustness_same_step: float
    widest: tuple[int, int]

    def __str__(self) -> str:
        """One sentence, with the reason if closing does not help."""
        text = (
            f"{self.bins} bins, range {self.range.replace('_', ' ')}: robustness {self.robustness:.3f} → "
            f"{self.robustness_closed:.3f}, step {self.step:.3g} → {self.step_closed:.3g}"
        )
        if self.range == "minmax" and self.step_closed > self.step * (1 + 1e-9):
            text += (
                f": not promised to rise, since one coordinate sets everybody's step and the shift takes coordinate "
                f"{self.widest[1]} further from the others; with the step as it was it would be "
                f"{self.robustness_same_step:.3f}: use a range per dimension"
            )
        return text


def certify_decisions(
    gallery: np.ndarray, queries: np.ndarray, index: Index, *, shift: np.ndarray | None, copies: np.ndarray
) -> dict[str, Any]:
    """Counts of changed decisions, and the margin above which none can change.

    Adding v to every row changes ‖y − x_k‖² − ‖y − x_j‖² by 2⟨v, x_k − x_j⟩, whatever y: a decision can change only where
    the clean margin is at most 2 (max_k ⟨v, x_k⟩ − min_k ⟨v, x_k⟩). Rules with exact scalars change nothing but rounding.

    Args:
      gallery, queries: [K, d], [n, d], as they were.
      index: the closed gallery.
      shift: v [d] if the index is the gallery moved by v and nothing else; None for rules with exact scalars.
      copies: `precision.equal_rows` of the gallery.

    Returns:
      The fields changed, changed_float32, changed_at_most and safe_margin of the certificate.

    Source: derived here: theory.md C5, N6.
    """
    scores = 2 * queries @ gallery.T - np.sum(gallery**2, axis=1)[None, :]
    best = scores.argmax(axis=1)
    other = np.where(copies[None, :] == copies[best][:, None], -np.inf, scores)
    margin = scores.max(axis=1) - other.max(axis=1)
    along = np.zeros(1) if shift is None else gallery @ shift
    safe_margin = 2 * float(np.ptp(along)) + _rounding(gallery, queries, index)
    plain = index.inner_product()
    in_float32 = plain.map_queries(queries).astype(np.float32) @ plain.rows.astype(np.float32).T
    return dict(
        changed=int(np.sum(copies[index.search(queries)] != copies[best])),
        changed_float32=int(np.sum(copies[in_float32.argmax(axis=1)] != copies[best])),
        changed_at_most=int(np.sum(margin <= safe_margin)),
        safe_margin=safe_margin,
    )


def _rounding(gallery, queries, index: Index) -> float:
    """How far the difference of two computed squared distances may be off, before and after together."""
    longest = lambda rows: float(np.linalg.norm(rows, axis=1).max())
    stored = longest(index.rows) * max(longest(index.rows), longest(index.map_queries(queries)))
    size = max((longest(gallery) + longest(queries)) ** 2, stored, float(np.abs(index.bias).max()))
    return ROUNDING * gallery.shape[1] * np.finfo(float).eps * size


def count_cosine_differences(gallery: np.ndarray, queries: np.ndarray, copies: np.ndarray) -> int | None:
    """How many queries [n, d] get another answer by cosine than by Euclidean distance; None if a row [K, d] is zero."""
    norms = np.linalg.norm(gallery, axis=1)
    if not norms.all():
        return None
    if np.ptp(norms) <= EQUAL_NORMS * norms.max():
        return 0
    products = queries @ gallery.T
    by_cosine = (products / norms[None, :]).argmax(axis=1)
    return int(np.sum(copies[by_cosine] != copies[(products - 0.5 * norms[None, :] ** 2).argmax(axis=1)]))


def certify_cosine(gallery: np.ndarray, moved: np.ndarray, queries: np.ndarray, copies: np.ndarray) -> dict[str, Any]:
    """Cosine decisions that change when the moved rows are divided by their norms n again, and the bound on them.

    With s the inner products with the moved rows (for any v they are ordered as those with the gallery itself), a flip
    from the best j to k, s_j/n_j <= s_k/n_k, needs s_j − s_k <= (s_j/n_j)(n_j − n_k) <= ‖y‖ |n_j − n_k|. What the
    gallery's own norms differ by, in a float32 file, is added.

    Args:
      gallery, moved: [K, d] as they were and after the shift, before re-normalising.
      queries: [n, d].
      copies: `precision.equal_rows` of the gallery.

    Returns:
      The fields cosine_changed and cosine_changed_at_most; the bound is None if the gallery's own norms differ, for
      then its cosine and inner-product decisions differ to begin with.

    Source: derived here: theory.md C5.
    """
    before, after = (np.linalg.norm(rows, axis=1) for rows in (gallery, moved))
    if not (np.all(before > 0) and np.all(after > 0)):
        return dict(cosine_changed=None, cosine_changed_at_most=None)
    answers = [
        copies[(queries @ rows.T / norms[None, :]).argmax(axis=1)]
        for rows, norms in ((gallery, before), (moved, after))
    ]
    changed = int(np.sum(answers[0] != answers[1]))
    if np.ptp(before) > EQUAL_NORMS * before.max():
        return dict(cosine_changed=changed, cosine_changed_at_most=None)
    products, n = queries @ moved.T, np.arange(len(queries))
    best = products.argmax(axis=1)
    gaps = products[n, best][:, None] - products
    room = np.linalg.norm(queries, axis=1)[:, None] * (
        np.abs(after[best][:, None] - after[None, :]) + np.ptp(before) + 1e-12 * after.max()
    )
    room[copies[None, :] == copies[best][:, None]] = -1.0
    return dict(cosine_changed=changed, cosine_changed_at_most=int(np.sum((gaps <= room).any(axis=1))))


def quantization_effects(
    gallery: Any, moved: Any, queries: Iterable[np.ndarray], *, bins: int
) -> list[QuantizationEffect]:
    """What quantising the gallery does to its answers before and after a shift, for each kind of range.

    Args:
      gallery, moved: [K, d] before and after the shift.
      queries: blocks [rows, d].
      bins: per coordinate, >= 2.

    Returns:
      One QuantizationEffect each for "fixed", "minmax" and "per_dimension".

    Source: derived here: theory.md C6.
    """
    require_same_width(gallery, moved, ("gallery", "moved"))
    gallery, moved = (np.asarray(rows, float) for rows in (gallery, moved))
    ends, stored = (gallery, moved), [gallery]
    for name in get_args(Range):
        with jax.enable_x64(True):
            stored += [np.asarray(Quantization(bins, range=name)(rows)) for rows in ends]
    step, low = np.ptp(gallery) / bins, moved.min()
    stored.append(moved if step == 0 else low + (np.floor((moved - low) / step) + 0.5) * step)
    kept, count, copies = np.zeros(len(stored)), 0, equal_rows(gallery)
    for block in queries:
        scores = (2 * block @ rows.T - np.sum(rows**2, axis=1)[None, :] for rows in stored)
        answers = [copies[values.argmax(axis=1)] for values in scores]
        kept += [np.sum(answer == answers[0]) for answer in answers]
        count += len(block)
    kept, widths = kept / count, [np.ptp(rows, axis=0).mean() for rows in ends]
    spans = dict(fixed=(2.0, 2.0), minmax=[np.ptp(rows) for rows in ends], per_dimension=widths)
    widest = [int(np.abs(rows - np.median(rows)).max(axis=0).argmax()) for rows in ends]
    return [
        QuantizationEffect(
            name, bins, *(float(span) / bins for span in spans[name]), *map(float, kept[[i, i + 1]]),
            float(kept[-1] if name == "minmax" else kept[i + 1]), (widest[0], widest[1]),
        )
        for i, name in zip((1, 3, 5), get_args(Range), strict=True)
    ]  # fmt: skip
