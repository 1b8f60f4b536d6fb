"""Closing the gap after training: move the gallery or the queries, keep every clean decision.

Float64 NumPy: an invariance of decisions is a statement about exact arithmetic.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

import numpy as np

from simulator import streaming
from simulator.closing import scikit
from simulator.closing.certificate import (
    Certificate,
    add_counts,
    certify_cosine,
    certify_decisions,
    count_cosine_differences,
    no_gap,
    nothing_to_move,
    refusals,
)
from simulator.closing.index import Index
from simulator.closing.rules import RULES, Centre, Metric, Rule, Sample, Shift
from simulator.numerics import precision
from simulator.validation import require_number, require_one_of, require_rows, require_same_width

ALPHA_WORDS = ("best", "safe")
LARGEST_ALPHA = 1e6  # 1 closes the gap
GRID = 9  # values of α tried before the best one is refined
ROBUSTNESS_QUERIES = 256  # random ones for exact robustness: Euclid takes up to a third of a second each at K = 1,000
BLOCK_SCORES = 1 << 21  # scores of a block of queries: 16 MB
_OWNERS: dict[str, list[str]] = {}  # setting -> the rules that have it
for _name, _rule in RULES.items():
    for _field in dataclasses.fields(_rule):
        _OWNERS.setdefault(_field.name, []).append(_name)


class Curve(NamedTuple):
    """Exact mean robustness over the fitted queries (at most 256 random ones) at each α tried, in rising order of α."""

    alpha: np.ndarray
    robustness: np.ndarray


class GapCloser:
    """Close the gap between a stored gallery and its queries, keeping the Euclidean nearest-neighbour decisions.

    With g = m − μ_x, m = mean(queries), μ_x = mean(gallery), and α from 0 (leave) over 1 (close) to more (overshoot):
        "complement"   rows x_k + α g', g' = g − V Vᵀ g, V the leading `num_components` principal directions of the gallery.
                       With all of them no decision changes; a full-rank gallery leaves nothing to move.
        "soft"         rows x_k + α v, v = (I + penalty·C d/tr C)⁻¹ g, C the gallery's covariance: between the raw gap
                       (penalty 0) and the complement (∞). Decisions may change.
        "compensated"  rows x_k + α g and one exact scalar −2α⟨g, x_k⟩ added to the squared distance: no decision changes,
                       for any gallery.
        "centred"      score ⟨y − α m, x_k⟩ + b_k, b_k = α⟨m, x_k⟩ − ½‖x_k‖² exact: no decision changes; noise on the rows
                       counts by ‖y − α m‖. `num_components` exact scalars more per class keep the scores along the
                       queries' leading principal directions. α = 0 is inner product with the clean norms kept.
        "optimal"      rows A⁻ᵀ(x_k − α μ_x), queries A(y − α m), A = B^{α/2} with B the best metric for noise in proportion
                       to the stored power, scaled to the power of the gallery as it was: no decision changes.

    Args:
      rule: one of the above, or an instance of a class that derives from `simulator.closing.rules.Rule`.
      num_components: "complement": directions kept still, None for all; "centred": exact scalars, None for 0.
      alpha: how far `transform` and `index` close unless told otherwise. A number; "safe": min_y α*_y over the fitted
        queries (0 at least), up to which every one of them gains; "best": the α with the highest exact mean
        robustness at `sigma` among those tried (a grid, refined around its best point), see `curve_`.
      sigma: noise per coordinate of the stored rows, for alpha="best" and centre="best".
      penalty: of rule "soft", >= 0.
      centre: "mean" query, or the "best" centre for the mean robustness at `sigma` (rule "centred").
      shrinkage: of rule "optimal", 0 < shrinkage <= 1: both moments C become (1 − shrinkage) C + shrinkage tr(C)/d I, without
        which queries that were not fitted lose.

    Attributes (after `fit`):
      gap_: g, [d].
      direction_: what α multiplies, [d]: g', v or g for the rows, m for the queries ("centred", "optimal").
      alpha_: the number behind `alpha`.
      curve_: (alpha, robustness) tried for alpha="best", else None.
      alpha_star_: [n], α at which each query is closest: ⟨y − μ_x, v⟩/‖v‖² for a shift v, ⟨Py, Pm⟩/‖Pm‖² for "centred", P
        the projection that takes the exact directions out (see `closing.rules.MovedCentre`); the robustness of a query rises on
        [0, α*_y] and falls after for "complement" and "centred". NaN where nothing moves, and for "optimal".
      metric_: B, [d, d], for "optimal", else None.
      n_features_in_, feature_names_in_: d, and the names of the columns of a gallery that is a data frame.

    In a pipeline of scikit-learn the rows that go through are the gallery, and y are the queries, as the steps before would map
    them: docs/howto/own-embeddings.md.

    Example:
      >>> gallery = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> queries = np.array([[1.0, 0.2, 2.0], [0.1, 1.0, 2.0]])
      >>> closer = sim.GapCloser().fit(gallery, queries)
      >>> closer.transform(gallery, alpha=1.0).round(3).tolist()
      [[1.075, 0.075, 2.0], [0.075, 1.075, 2.0]]
      >>> closer.certificate(gallery, queries).changed
      0

    Source: "complement": Chowers et al. 2026, Sec. 4, Eq. 11; the others and α*_y derived here: theory.md N5–N7.
    """

    _container: str | None = None  # what `transform` returns, see `set_output`

    def __init__(
        self, rule: str | Rule = "complement", num_components: int | None = None, alpha: float | str = 1.0, *,
        sigma: float | None = None, penalty: float = 100.0, centre: Centre = "mean", shrinkage: float = 0.1,
    ):  # fmt: skip
        self.rule, self.num_components, self.alpha = rule, num_components, alpha
        self.sigma, self.penalty, self.centre, self.shrinkage = sigma, penalty, centre, shrinkage
        self._validate()

    def _validate(self):
        alpha, rule = self.alpha, self._make_rule()
        if self.sigma is not None:
            require_number("sigma", self.sigma, above=0.0)
        if isinstance(alpha, str):
            if alpha not in ALPHA_WORDS:
                raise ValueError(f"alpha is {alpha!r}; it must be a number, 'best' or 'safe'")
        else:
            require_number("alpha", alpha, least=-LARGEST_ALPHA, most=LARGEST_ALPHA)
        if alpha == "safe" and not rule.for_every_query:
            raise ValueError(
                f"alpha='safe' needs a theorem for every query, which rule={self.rule!r} lacks; give a number, or 'best' with sigma"
            )
        if self.sigma is None and alpha == "best":
            raise ValueError("'best' depends on the noise; give sigma, its standard deviation per coordinate")

    def _make_rule(self) -> Rule:
        """The rule with its settings. Raises ValueError for a setting that is wrong, or that belongs to another rule."""
        if isinstance(self.rule, str):
            require_one_of("rule", self.rule, list(RULES))
        elif not isinstance(self.rule, Rule):
            raise ValueError(
                f"rule is {self.rule!r}; it must be one of {', '.join(map(repr, RULES))}, or an instance of a class that derives "
                "from simulator.closing.rules.Rule"
            )
        for name, owners in _OWNERS.items():
            value, is_changed = getattr(self, name), getattr(self, name) != getattr(RULES[owners[0]], name)
            if is_changed and self.rule not in owners and name != "sigma":
                raise ValueError(
                    f"{name}={value!r} belongs to rule={' and rule='.join(map(repr, owners))}; the rule is {self.rule!r}"
                )
        if not isinstance(self.rule, str):
            return self.rule
        return RULES[self.rule](
            **{name: getattr(self, name) for name, owners in _OWNERS.items() if self.rule in owners}
        )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name (scikit-learn's convention; there is nothing deeper)."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> GapCloser:
        """Change constructor arguments by name; fit again to use them. Returns self."""
        known = self.get_params()
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ValueError(f"GapCloser has no parameter {unknown[0]!r}; it has {', '.join(known)}")
        type(self)(**known | params)  # nothing is set unless all of it is valid
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> GapCloser:
        return type(self)(**self.get_params()).set_output(transform=self._container)

    def __sklearn_tags__(self) -> Any:
        return scikit.tags()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "alpha_star_")

    def _repr_html_(self) -> str | None:
        try:
            from sklearn.utils import estimator_html_repr
        except ImportError:  # a notebook then shows the text
            return None
        return estimator_html_repr(self)

    def set_output(self, *, transform: str | None = None) -> GapCloser:
        """Choose what `transform` returns: "default" (an array), "pandas" or "polars" (a data frame); None changes nothing.

        Returns:
          self.
        """
        require_one_of("transform", transform, scikit.CONTAINERS)
        self._container = transform or self._container
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of the closed gallery, those of the gallery: [d]."""
        return scikit.names_out(self, input_features)

    def __repr__(self) -> str:
        return f"GapCloser({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def fit(self, gallery: Any, queries: Any, *, roundoff: float = 0.0) -> GapCloser:
        """Learn what to move.

        Args:
          gallery: [K, d].
          queries: [n, d], or a function that yields them by blocks (`simulator.streaming.Source`), read a few times.
          roundoff: unit roundoff of the type that the rows were stored in, where more bits were computed since (rows of
            a float16 file scaled to unit length: 2⁻¹¹); the numbers show it otherwise.

        Returns:
          self.

        Raises:
          ValueError: rows that are not finite numbers in one space, or no queries; a rule that moves the gallery by the gap
            where there is none, or no more than rounding makes (`precision.gap_floor`; "centred" and "optimal" need no gap: a mean
            query of that size counts as 0); "safe" where no α is safe.
        """
        if queries is None:
            raise ValueError("GapCloser requires y to be passed, but the target y is None; y are the queries, [n, d]")
        vars(self).pop("alpha_star_", None)  # a fit that fails leaves nothing fitted
        given, (gallery, source) = gallery, _checked(gallery, queries)
        self.n_features_in_ = gallery.shape[1]
        scikit.keep_columns(self, given, reset=True)
        rule = self._make_rule()
        about = streaming.moments(source(), roundoff, covariance=rule.needs_covariance)
        mean, self._roundoff = gallery.mean(axis=0), roundoff
        self.gap_, floor = about.mean - mean, precision.gap_floor(precision.stored(gallery, roundoff), about)
        if rule.needs_gap and np.linalg.norm(self.gap_) <= floor:
            raise ValueError(no_gap(float(np.linalg.norm(self.gap_)), floor))
        some = None
        if rule.needs_queries or self.alpha == "best":
            some = streaming.random_rows(source, about.count, ROBUSTNESS_QUERIES)
        centre_floor = precision.mean_floor(about.count, about.power, about.roundoff)
        covariance = about.covariance if rule.needs_covariance else None
        sample = Sample(gallery, mean, self.gap_, floor, about.mean, centre_floor, covariance, some)
        self._rule, self._fitted, self._mean, self._num_rows = rule, rule.fit(sample), mean, len(gallery)
        self.direction_, self.curve_ = self._fitted.direction, None
        self.metric_ = self._fitted.matrix if isinstance(self._fitted, Metric) else None
        self.alpha_star_ = np.concatenate([self._fitted.alpha_star(block, mean) for block in source()])
        self.alpha_ = float("nan")
        self.alpha_ = self._resolve_alpha(gallery, some)
        return self

    def fit_transform(self, X: Any, y: Any, *, roundoff: float = 0.0) -> Any:
        """Fit on the gallery X [K, d] and the queries y [n, d], and return the gallery closed: `fit`, then `transform`."""
        self._require_shift(self._make_rule())
        return self.fit(X, y, roundoff=roundoff).transform(X)

    def _resolve_alpha(self, gallery, some) -> float:
        if not isinstance(self.alpha, str):
            return float(self.alpha)
        known = self.alpha_star_[np.isfinite(self.alpha_star_)]
        if self._rule.for_every_query and not known.size:  # nothing moves
            return 0.0
        if self.alpha == "safe":
            if self._rule.shifts and not self._moves_nothing_apart(gallery):
                raise ValueError(
                    f"alpha='safe' needs a shift orthogonal to the whole gallery, and num_components={self.num_components} "
                    f"keeps only the leading ones of its {self._rank()} directions still; leave num_components out"
                )
            return float(max(known.min(), 0.0)) if known.size else 0.0
        # With a theorem per query the maximiser lies between the smallest and the largest α*_y.
        low, high = (min(known.min(), 0.0), max(known.max(), 0.0)) if self._rule.for_every_query else (0.0, 2.0)
        sigma = float(self.sigma or 0.0)  # `_validate` wants one for "best"
        mean = lambda a: float(self._fitted.index(gallery, a).robustness(some, sigma=sigma).mean())
        self.curve_ = _maximise(mean, low, high)
        return float(self.curve_.alpha[np.argmax(self.curve_.robustness)])

    def transform(self, gallery: Any, alpha: float | None = None) -> Any:
        """The gallery [K, d] moved by α times `direction_`, in float64; α is the fitted one unless given.

        An array, or what `set_output` asked for.

        Raises:
          ValueError: a rule that is more than a shift of the rows (use `index`), or one that is not fitted.
        """
        given, (gallery, alpha) = gallery, self._require(gallery, alpha)
        self._require_shift(self._rule)
        return scikit.in_container(self._fitted.index(gallery, alpha).rows, given, self, self._container)

    def _require_shift(self, rule: Rule):
        if not rule.shifts:
            raise ValueError(
                f"rule={self.rule!r} is more than a shift of the rows: it keeps exact scalars beside them; use "
                "index(gallery, alpha), which holds rows and scalars"
            )

    def index(self, gallery: Any, alpha: float | None = None) -> Index:
        """The closed gallery [K, d] as an Index: what to store, what to keep exact, how to score a query."""
        gallery, alpha = self._require(gallery, alpha)
        return self._fitted.index(gallery, alpha)

    def certificate(
        self, gallery: Any, queries: Any, alpha: float | None = None, *, sigma: float | None = None
    ) -> Certificate:
        """What closing does to the decisions of this gallery on these queries, and what it does not promise.

        Args:
          gallery: [K, d], as it was before closing; α, α*, and "before" are counted from this one, fitted or not.
          queries: [n, d], or a function that yields them by blocks; the counts are over them, `safe_margin` holds for any.
          alpha: as in `transform`.
          sigma: noise per coordinate, for the exact robustness before and after; None for the constructor's.
        """
        gallery, alpha = self._require(gallery, alpha)
        _, source = _checked(gallery, queries)
        sigma = self.sigma if sigma is None else sigma
        index, start = self._fitted.index(gallery, alpha), self._fitted.index(gallery, 0.0)
        copies, mean = precision.equal_rows(gallery, self._roundoff), gallery.mean(axis=0)
        is_shift = self._rule.shifts
        shift = alpha * self.direction_ if is_shift else None
        is_exact = is_shift and self._rule.for_every_query and self._moves_nothing_apart(gallery)
        is_exact &= bool(self.direction_.any())

        def count(block):
            found = certify_decisions(gallery, block, index, shift=shift, copies=copies)
            found |= dict(num_queries=len(block), rising=None, cosine_changed=None, cosine_changed_at_most=None)
            found["cosine_differs"] = count_cosine_differences(gallery, block, copies)
            if is_shift:
                found |= certify_cosine(gallery, index.rows, block, copies)
            if is_exact:
                star = self._fitted.alpha_star(block, mean)
                found["rising"] = int(np.sum(np.abs(alpha - star) < np.abs(star)))
            elif index.scoring == "dot":
                noise = [np.linalg.norm(i.map_queries(block), axis=1) for i in (start, index)]
                found["rising"] = int(np.sum(noise[1] < noise[0] * (1 - 1e-12)))
            return found

        counts = add_counts(map(count, source()))
        exact = dict(robustness=None, robustness_closed=None, gain_error=None, robustness_queries=0, gaining=None)
        if sigma is not None:
            some = streaming.random_rows(source, counts["num_queries"], ROBUSTNESS_QUERIES)
            before = Index(gallery, np.zeros(len(gallery)), 0 * mean, "sqeuclidean").robustness(some, sigma=sigma)
            after = index.robustness(some, sigma=sigma)
            exact = dict(
                robustness=float(before.mean()), robustness_closed=float(after.mean()), robustness_queries=len(some),
                gain_error=streaming.mean_and_error(after - before, counts["num_queries"])[1],
                gaining=int(np.sum(after > before + 1e-9)),
            )  # fmt: skip
        squared = self.gap_ @ self.gap_
        reasons, safe = [self.nothing_to_move() or ""], self.alpha_star_.min()
        if not reasons[0]:
            if is_exact:  # α* of the fitted queries belongs to the fitted mean
                safe -= (mean - self._mean) @ self.direction_ / (self.direction_ @ self.direction_)
            reasons = refusals(self._rule, alpha, gallery, index, is_exact=is_exact, safe_alpha=safe)
        return Certificate(
            rule=self.rule if isinstance(self.rule, str) else type(self.rule).__name__, alpha=alpha, num_rows=len(gallery), sigma=sigma, **counts, **exact, refusals=tuple(reasons),
            gap_share=float(self.direction_ @ self.direction_ / squared) if is_shift and squared > 0 else None,
        )  # fmt: skip

    def _moves_nothing_apart(self, gallery: np.ndarray) -> bool:
        """Whether the shift is orthogonal to the centred span of this gallery, up to rounding."""
        scale = np.linalg.norm(gallery, axis=1).max() * np.linalg.norm(self.direction_)
        return bool(np.ptp(gallery @ self.direction_) <= 1e-10 * scale)

    def _rank(self) -> int:
        return self._fitted.rank if isinstance(self._fitted, Shift) else 0

    def nothing_to_move(self) -> str | None:
        """Why a rule that shifts the rows has nothing to move, in a sentence; None if it has."""
        self._require_fitted()
        if not self._rule.shifts or self.direction_.any():
            return None
        return nothing_to_move(self._num_rows, self._rank(), len(self.gap_))

    def _require(self, gallery: Any, alpha: float | None) -> tuple[np.ndarray, float]:
        """The gallery as float64 and the α to use, if all is in order."""
        self._require_fitted()
        scikit.keep_columns(self, gallery, reset=False)
        require_rows("gallery", gallery)
        if np.shape(gallery)[1] != len(self.gap_):
            raise ValueError(
                f"the gallery X has {np.shape(gallery)[1]} features, but GapCloser is expecting {len(self.gap_)} features as "
                f"input: it was fitted in {len(self.gap_)} dimensions"
            )
        if alpha is None:
            alpha = self.alpha_
        require_number("alpha", alpha, least=-LARGEST_ALPHA, most=LARGEST_ALPHA)
        return np.asarray(gallery, float), float(alpha)

    def _require_fitted(self):
        if not self.__sklearn_is_fitted__():
            raise scikit.not_fitted("this GapCloser is not fitted; call fit(gallery, queries) first")


def _checked(gallery: Any, queries: Any) -> tuple[np.ndarray, streaming.Source]:
    """The gallery in float64, and the queries as blocks in float64 of the same width."""
    require_rows("gallery", gallery)
    gallery = np.asarray(gallery, float)
    if not callable(queries):
        require_same_width(gallery, queries)
        rows, size = np.asarray(queries, float), max(1, BLOCK_SCORES // len(gallery))
        return gallery, lambda: (rows[first : first + size] for first in range(0, len(rows), size))

    def blocks():
        for block in queries():
            require_same_width(gallery, block)
            yield np.asarray(block, float)

    return gallery, blocks


def _maximise(function, low: float, high: float) -> Curve:
    """Every α tried on [low, high] with its value: a grid that holds 0, then golden steps around the best point."""
    from scipy.optimize import minimize_scalar

    tried = {float(a): function(float(a)) for a in {0.0, *np.linspace(low, high, GRID)}}

    def negative(alpha):
        tried[float(alpha)] = function(float(alpha))
        return -tried[float(alpha)]

    at = sorted(tried)
    best = at.index(max(at, key=lambda alpha: tried[alpha]))
    bracket = at[max(best - 1, 0)], at[min(best + 1, len(at) - 1)]
    if bracket[1] - bracket[0] > 1e-9:
        minimize_scalar(negative, bounds=bracket, method="bounded", options=dict(xatol=1e-4 * (high - low)))
    at = np.array(sorted(tried))
    return Curve(at, np.array([tried[a] for a in at]))
