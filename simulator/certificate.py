"""What closing a gallery is sure to do to the decisions, and what it does not promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from simulator.index import Index
from simulator.robustness import Quantization
from simulator.validation import require_same_width

# How far computed scores may be off, in units of (number of dimensions) × (machine epsilon) × (largest length)².
ROUNDING = 8.0
EQUAL_NORMS = 1e-6  # relative spread of norms up to which rows count as normalised (float32 files)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a closed gallery does to the Euclidean nearest-neighbour decisions of the gallery as it was.

    rule, alpha: what was done. num_rows, num_queries: on how many it was checked.
    gap_share: share of ‖g‖² that the rows move by at α = 1, for rules that are a shift of the rows; else None.
    changed: queries whose answer differs, counted in float64 (equal rows count as one answer).
    changed_float32: the same with rows, scalars and queries rounded to float32.
    changed_at_most: queries whose clean margin, in squared distance, is at most `safe_margin`; >= `changed`.
    safe_margin: every query, seen or not, whose nearest row is nearer by more than this keeps its answer.
    rising: queries whose robustness to noise on the rows is provably higher than at α = 0 of the same rule, or None
      where no theorem says so.
    cosine_changed: queries whose cosine answer changes when the closed rows are re-normalised, or None where the
      closed gallery is not a set of rows to be compared by cosine.
    cosine_changed_at_most: queries for which the bound s_j − s_k <= ‖y‖ |n_j − n_k| leaves room for a flip.
    robustness, robustness_closed: exact mean robustness to noise of `sigma` before and after; None without sigma.
    gaining: queries whose exact robustness is higher after closing; None without sigma.
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
    cosine_changed: int | None
    cosine_changed_at_most: int | None
    sigma: float | None
    robustness: float | None
    robustness_closed: float | None
    gaining: int | None
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        """The certificate in sentences, one per line."""
        of = f"of {self.num_queries} queries"
        lines = [
            f"rule {self.rule}, α = {self.alpha:.4g}, {self.num_rows} rows"
            + ("" if self.gap_share is None else f"; at α = 1 they move by {self.gap_share:.1%} of ‖g‖²"),
            f"clean decisions changed: {self.changed} {of} (at most {self.changed_at_most} by their margins; "
            f"{self.changed_float32} in float32)",
            f"any query whose margin in squared distance exceeds {self.safe_margin:.2g} keeps its answer",
        ]
        if self.rising is not None:
            lines.append(f"robustness to noise on the rows provably rises above that at α = 0 for {self.rising} {of}")
        if self.cosine_changed is not None:
            lines.append(
                f"cosine decisions changed after re-normalising the rows: {self.cosine_changed} {of} (at most "
                f"{self.cosine_changed_at_most} by the bound on norms)"
            )
        if self.sigma is not None:
            lines.append(
                f"exact robustness at σ = {self.sigma:.4g}: {self.robustness:.4f} before, {self.robustness_closed:.4f} "
                f"after; higher for {self.gaining} {of}"
            )
        return "\n".join([*lines, *(f"not promised: {reason}" for reason in self.refusals)])


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
                f"; the shift takes coordinate {self.widest[1]} out of the range of the others, and one coordinate sets "
                f"everybody's step: with the old step it would be {self.robustness_same_step:.3f}; use a range per dimension"
            )
        return text


def certify_decisions(gallery: np.ndarray, queries: np.ndarray, index: Index, *, shift: np.ndarray | None) -> dict:
    """Counts of changed decisions, and the margin above which none can change.

    Adding v to every row changes ‖y − x_k‖² − ‖y − x_j‖² by 2⟨v, x_k − x_j⟩, whatever y: a decision can change only where
    the clean margin is at most 2 (max_k ⟨v, x_k⟩ − min_k ⟨v, x_k⟩). Rules with exact scalars change nothing but rounding.

    Args:
      gallery, queries: [K, d], [n, d], as they were.
      index: the closed gallery.
      shift: v [d] if the index is the gallery moved by v and nothing else; None for rules with exact scalars.

    Returns:
      The fields changed, changed_float32, changed_at_most and safe_margin of the certificate.

    Source: derived here: theory.md C5, N6.
    """
    scores = 2 * queries @ gallery.T - np.sum(gallery**2, axis=1)[None, :]
    best = scores.argmax(axis=1)
    copies = np.unique(gallery, axis=0, return_inverse=True)[1].reshape(-1)  # rows with one number are equal
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
    longest = lambda rows: float(np.linalg.norm(rows, axis=1).max())  # noqa: E731
    stored = longest(index.rows) * max(longest(index.rows), longest(index.map_queries(queries)))
    size = max((longest(gallery) + longest(queries)) ** 2, stored, float(np.abs(index.bias).max()))
    return ROUNDING * gallery.shape[1] * np.finfo(float).eps * size


def certify_cosine(gallery: np.ndarray, moved: np.ndarray, queries: np.ndarray) -> dict:
    """Cosine decisions that change when the moved rows are divided by their norms n again, and the bound on them.

    With s the inner products with the moved rows (for any v they are ordered as those with the gallery itself), a flip
    from the best j to k needs s_j − s_k <= ‖y‖ |n_j − n_k|.

    Args:
      gallery, moved: [K, d] as they were and after the shift, before re-normalising.
      queries: [n, d].

    Returns:
      The fields cosine_changed and cosine_changed_at_most; the bound is None if the gallery's own norms differ, for
      then its cosine and inner-product decisions differ to begin with.

    Source: derived here: theory.md C5.
    """
    before, after = (np.linalg.norm(rows, axis=1) for rows in (gallery, moved))
    if not (np.all(before > 0) and np.all(after > 0)):
        return dict(cosine_changed=None, cosine_changed_at_most=None)
    answers = [
        (queries @ rows.T / norms[None, :]).argmax(axis=1) for rows, norms in ((gallery, before), (moved, after))
    ]
    changed = int(np.sum(answers[0] != answers[1]))
    if np.ptp(before) > EQUAL_NORMS * before.max():
        return dict(cosine_changed=changed, cosine_changed_at_most=None)
    products, n = queries @ moved.T, np.arange(len(queries))
    best = products.argmax(axis=1)
    gaps = products[n, best][:, None] - products
    room = np.linalg.norm(queries, axis=1)[:, None] * (
        np.abs(after[best][:, None] - after[None, :]) + 1e-12 * after.max()
    )
    room[n, best] = -1.0
    return dict(cosine_changed=changed, cosine_changed_at_most=int(np.sum((gaps <= room).any(axis=1))))


def quantization_effects(gallery: Any, moved: Any, queries: Any, *, bins: int) -> list[QuantizationEffect]:
    """What quantising the gallery does to its answers before and after a shift, for each kind of range.

    Args:
      gallery, moved: [K, d] before and after the shift.
      queries: [n, d].
      bins: per coordinate, >= 2.

    Returns:
      One QuantizationEffect each for "fixed", "minmax" and "per_dimension".

    Source: derived here: theory.md C6.
    """
    require_same_width(gallery, queries)
    require_same_width(gallery, moved, ("gallery", "moved"))
    gallery, moved, queries = (np.asarray(a, float) for a in (gallery, moved, queries))
    nearest = lambda rows: (2 * queries @ rows.T - np.sum(rows**2, axis=1)[None, :]).argmax(axis=1)  # noqa: E731
    clean, ends = nearest(gallery), (gallery, moved)
    spans = {
        "fixed": [2.0, 2.0],
        "minmax": [float(np.ptp(rows)) for rows in ends],
        "per_dimension": [float(np.ptp(rows, axis=0).mean()) for rows in ends],
    }
    widest = tuple(int(np.abs(rows - rows.mean()).max(axis=0).argmax()) for rows in ends)
    effects = []
    for name, span in spans.items():
        with jax.enable_x64(True):
            stored = [np.asarray(Quantization(bins, range=name)(rows)) for rows in ends]
        kept = [float(np.mean(nearest(rows) == clean)) for rows in stored]
        same = kept[1]
        if name == "minmax" and span[0] > 0:
            step, low = span[0] / bins, moved.min()
            same = float(np.mean(nearest(low + (np.floor((moved - low) / step) + 0.5) * step) == clean))
        effects.append(QuantizationEffect(name, bins, *(s / bins for s in span), *kept, same, widest))
    return effects
