"""Closing the gap after training: move the gallery, keep every clean decision.

Float64 NumPy: an invariance of decisions is a statement about exact arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from simulator.validation import require_integer, require_number, require_one_of, require_rows, require_same_width

Rule = Literal["complement"]


@dataclasses.dataclass(frozen=True)
class Index:
    """What a search engine needs: query q is answered by scoring (q − centre) against `rows` with `scoring`, and
    adding `bias` as in `simulator.robustness.scores`.

    rows: [K, d]; bias: [K]; centre: [d]; scoring: "sqeuclidean" or "dot".
    """

    rows: np.ndarray
    bias: np.ndarray
    centre: np.ndarray
    scoring: str


class GapCloser:
    """Move a gallery towards the queries along the part of the gap that no gallery decision can see.

    rule="complement": g' = g − V Vᵀ g with g = mean(queries) − mean(gallery) and V the leading `num_components`
    principal directions of the gallery; rows move to x_k + α g'. With all components g' is orthogonal to the
    gallery's centred span, every squared distance of a query moves by one constant, and no Euclidean
    nearest-neighbour decision changes, whatever α; with fewer components decisions may change.

    Args:
      rule: "complement".
      num_components: number of principal directions kept still; None for all of them.

    Attributes after `fit`:
      gap_: g [d].
      direction_: g' [d]; the zero vector when the centred gallery spans the whole space.
      alpha_star_: [n], α*_y = ⟨y − μ_x, g'⟩/‖g'‖² for each query: robustness of that query rises on [0, α*_y] and
        falls after; NaN when g' = 0.

    Source: Chowers et al. 2026, Sec. 4, Eq. 11; α*_y derived here: theory.md N5.
    """

    def __init__(self, rule: Rule = "complement", num_components: int | None = None):
        require_one_of("rule", rule, get_args(Rule))
        if num_components is not None:
            require_integer("num_components", num_components, least=0)
        self.rule = rule
        self.num_components = num_components

    def fit(self, gallery: Any, queries: Any) -> GapCloser:
        """Learn g and g' from a gallery [K, d] and queries [n, d]. Returns self."""
        require_same_width(gallery, queries)
        gallery, queries = np.asarray(gallery, float), np.asarray(queries, float)
        mean = gallery.mean(axis=0)
        self.gap_ = queries.mean(axis=0) - mean
        axes = principal_directions(gallery)
        if self.num_components is not None:
            axes = axes[: self.num_components]
        direction = self.gap_ - axes.T @ (axes @ self.gap_)
        direction -= axes.T @ (axes @ direction)  # once more, so that rounding leaves nothing along the axes
        # What a full-rank gallery leaves of g is rounding alone.
        is_empty = np.linalg.norm(direction) <= 1e-10 * np.linalg.norm(self.gap_)
        self.direction_ = np.zeros_like(direction) if is_empty else direction
        self._num_dimensions = gallery.shape[1]
        squared = self.direction_ @ self.direction_
        with np.errstate(invalid="ignore"):
            self.alpha_star_ = (queries - mean[None, :]) @ self.direction_ / (squared if squared > 0 else np.nan)
        return self

    def transform(self, gallery: Any, alpha: float = 1.0) -> np.ndarray:
        """The gallery moved by α g': α = 0 leaves it, 1 closes the gap along g', above 1 overshoots. [K, d], float64."""
        self._require_fitted()
        require_rows("gallery", gallery)
        require_number("alpha", alpha)
        if np.shape(gallery)[1] != self._num_dimensions:
            raise ValueError(
                f"the gallery has {np.shape(gallery)[1]} dimensions and the closer was fitted in {self._num_dimensions}"
            )
        return np.asarray(gallery, float) + alpha * self.direction_[None, :]

    def index(self, gallery: Any, alpha: float = 1.0) -> Index:
        """The moved gallery as an Index: Euclidean scoring, no bias, centre 0."""
        rows = self.transform(gallery, alpha)
        return Index(rows, np.zeros(len(rows)), np.zeros(rows.shape[1]), "sqeuclidean")

    def _require_fitted(self):
        if not hasattr(self, "direction_"):
            raise ValueError("this GapCloser is not fitted; call fit(gallery, queries) first")


def principal_directions(gallery: np.ndarray) -> np.ndarray:
    """Orthonormal rows [r, d] that span the centred gallery, by decreasing variance; r is its numerical rank."""
    centred = gallery - gallery.mean(axis=0)[None, :]
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    # The scale of the rows, not of their deviations, sets the rounding of the centred rows.
    tolerance = max(gallery.shape) * np.finfo(float).eps * max(np.linalg.norm(gallery, axis=1).max(), 1e-300)
    return axes[singular > tolerance]
