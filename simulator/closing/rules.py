"""Rules of closing: what each moves, and what it keeps exact. A rule more is a class more in `RULES`, and nothing elsewhere.

A rule holds its settings, says by four attributes what it is, and learns from a `Sample`; what it has learned makes an index.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from simulator.closing.directions import along_axes, complement, leading_axes
from simulator.closing.index import Index
from simulator.theory.storage import optimal_centre, optimal_metric, second_moment, shrunk_moment
from simulator.validation import require_integer, require_number, require_one_of

Centre = Literal["mean", "best"]


class Sample(NamedTuple):
    """What a rule is fitted on.

    Attributes:
      gallery: [K, d], float64.
      mean: μ_x, [d].
      gap: g = m − μ_x, [d].
      gap_floor: length up to which a gap is rounding of the stored rows.
      centre: m, the mean query, [d].
      centre_floor: length up to which a mean query is rounding.
      covariance: of the queries [d, d], where the rule needs it.
      queries: some of them [q, d], where the rule needs them.
    """

    gallery: np.ndarray
    mean: np.ndarray
    gap: np.ndarray
    gap_floor: float
    centre: np.ndarray
    centre_floor: float
    covariance: np.ndarray | None
    queries: np.ndarray | None


class Fitted(Protocol):
    """What a rule has learned."""

    @property
    def direction(self) -> np.ndarray:
        """What α multiplies, [d]."""
        ...

    def index(self, gallery: np.ndarray, alpha: float) -> Index:
        """The gallery [K, d], closed by α."""
        ...

    def alpha_star(self, queries: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """α at which each query [n, d] is closest, for a gallery with this mean: [n]. NaN where nothing moves, or where no
        theorem says so."""
        ...


class Rule:
    """One way to close a gap: a frozen dataclass that derives from this one, says where it differs, and has `fit`.

    Attributes:
      shifts: whether it moves the rows and does nothing else.
      for_every_query: whether a theorem says of every query where its robustness is highest: theory.md N5, N6.
      needs_gap: whether it moves the rows by the gap, so that there must be one.
      needs_covariance, needs_queries: whether `fit` asks for these.
    """

    shifts: ClassVar[bool] = False
    for_every_query: ClassVar[bool] = False
    needs_gap: ClassVar[bool] = False

    @property
    def needs_covariance(self) -> bool:
        return False

    @property
    def needs_queries(self) -> bool:
        return False

    def fit(self, sample: Sample) -> Fitted:
        """What there is to learn from a sample."""
        raise NotImplementedError(f"{type(self).__name__} has no fit(sample)")


@dataclasses.dataclass(frozen=True)
class Complement(Rule):
    """Rows x_k + α g', g' = g − V Vᵀ g, V the leading `num_components` principal directions of the gallery (None: all)."""

    num_components: int | None = None
    shifts: ClassVar[bool] = True
    for_every_query: ClassVar[bool] = True
    needs_gap: ClassVar[bool] = True

    def __post_init__(self):
        _require_components(self.num_components)

    def fit(self, sample: Sample) -> Shift:
        direction, rank = complement(
            sample.gallery, sample.gap, num_components=self.num_components, floor=sample.gap_floor
        )
        return Shift(direction, rank=rank)


@dataclasses.dataclass(frozen=True)
class Soft(Rule):
    """Rows x_k + α v, v = (I + penalty·C d/tr C)⁻¹ g, C the gallery's covariance."""

    penalty: float = 100.0
    shifts: ClassVar[bool] = True
    needs_gap: ClassVar[bool] = True

    def __post_init__(self):
        require_number("penalty", self.penalty, least=0.0)

    @property
    def needs_covariance(self) -> bool:
        return True  # its own is as large: what does not fit in memory is refused before the work

    def fit(self, sample: Sample) -> Shift:
        covariance = second_moment(sample.gallery, sample.mean)
        mean_variance = np.trace(covariance) / len(sample.gap)
        if mean_variance == 0:
            return Shift(sample.gap)
        system = np.eye(len(sample.gap)) + self.penalty * covariance / mean_variance
        return Shift(np.linalg.solve(system, sample.gap))


@dataclasses.dataclass(frozen=True)
class Compensated(Rule):
    """Rows x_k + α g and one exact scalar −2α⟨g, x_k⟩ added to the squared distance."""

    needs_gap: ClassVar[bool] = True

    def fit(self, sample: Sample) -> Shift:
        return Shift(sample.gap, is_compensated=True)


@dataclasses.dataclass(frozen=True)
class Centred(Rule):
    """Score ⟨y − α m, x_k⟩ + b_k, b_k = α⟨m, x_k⟩ − ½‖x_k‖² exact, and `num_components` exact scalars more (None: 0) along the
    queries' leading principal directions. m: the mean query, or the centre that is best at `sigma`."""

    num_components: int | None = None
    centre: Centre = "mean"
    sigma: float | None = None
    for_every_query: ClassVar[bool] = True

    def __post_init__(self):
        _require_components(self.num_components)
        require_one_of("centre", self.centre, ("mean", "best"))
        if self.centre == "best" and self.sigma is None:
            raise ValueError("'best' depends on the noise; give sigma, its standard deviation per coordinate")

    @property
    def needs_covariance(self) -> bool:
        return bool(self.num_components)

    @property
    def needs_queries(self) -> bool:
        return self.centre == "best"

    def fit(self, sample: Sample) -> MovedCentre:
        axes = leading_axes(_given(sample.covariance), self.num_components) if self.num_components else None
        centre = sample.centre
        if self.centre == "best" and self.sigma is not None:
            centre = optimal_centre(sample.gallery, sample.queries, sigma=self.sigma, axes=axes)
        return MovedCentre(_beyond(centre, sample.centre_floor), axes, sample.centre_floor)


@dataclasses.dataclass(frozen=True)
class Optimal(Rule):
    """Rows A⁻ᵀ(x_k − α μ_x), queries A(y − α m), A = B^{α/2}, B the best metric for noise in proportion to the stored power, of
    moments (1 − shrinkage) C + shrinkage tr(C)/d I."""

    shrinkage: float = 0.1

    def __post_init__(self):
        require_number("shrinkage", self.shrinkage, above=0.0, most=1.0)

    @property
    def needs_covariance(self) -> bool:
        return True

    def fit(self, sample: Sample) -> Metric:
        moments = second_moment(sample.gallery, sample.mean), _given(sample.covariance)
        metric = optimal_metric(*(shrunk_moment(moment, self.shrinkage) for moment in moments))
        power = float(np.mean(np.sum(sample.gallery**2, axis=1)))
        direction = _beyond(sample.centre, sample.centre_floor)
        return Metric(direction, metric, *np.linalg.eigh(metric), sample.mean, moments[0], power)


RULES: dict[str, Any] = dict(
    complement=Complement, compensated=Compensated, centred=Centred, soft=Soft, optimal=Optimal
)


@dataclasses.dataclass(frozen=True)
class Shift:
    """Rows x_k + α v; compensated, with the exact scalar −2α⟨v, x_k⟩. `rank`: of the gallery, where it was asked for."""

    direction: np.ndarray
    is_compensated: bool = False
    rank: int = 0

    def index(self, gallery: np.ndarray, alpha: float) -> Index:
        bias = -2 * alpha * gallery @ self.direction if self.is_compensated else np.zeros(len(gallery))
        return Index(gallery + alpha * self.direction[None, :], bias, np.zeros(gallery.shape[1]), "sqeuclidean")

    def alpha_star(self, queries: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """‖y − μ_x − αv‖² is least at ⟨y − μ_x, v⟩/‖v‖²."""
        squared = self.direction @ self.direction
        return (queries - mean[None, :]) @ self.direction / squared if squared > 0 else _unknown(queries)


@dataclasses.dataclass(frozen=True)
class MovedCentre:
    """Scores from α times the centre m, with exact scalars along `axes` U, [r, d] or None."""

    direction: np.ndarray
    axes: np.ndarray | None
    floor: float

    def index(self, gallery: np.ndarray, alpha: float) -> Index:
        centre = alpha * self.direction
        bias = gallery @ centre - 0.5 * np.sum(gallery**2, axis=1)
        if self.axes is None:
            return Index(gallery, bias, centre, "dot")
        return Index(gallery, bias, centre, "dot", axes=self.axes, exact=gallery @ self.axes.T)

    def alpha_star(self, queries: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """⟨Py, Pm⟩/‖Pm‖², P = I − UᵀU: noise on the rows enters a score as ⟨P(y − αm), e_k⟩, of variance σ²‖Py − αPm‖², equal for
        all classes, while the clean margins do not depend on α; so the robustness is a falling function of ‖Py − αPm‖,
        which is least there and symmetric about it. (With ‖m‖² below, the axes left in m, it would be too low by the
        share of ‖m‖² along them.)"""
        rest = self.direction - along_axes(self.direction[None, :], self.axes)[0]
        squared = rest @ rest
        # What the axes leave of a centre that lies along them is rounding.
        if np.sqrt(squared) <= max(self.floor, 1e-10 * np.linalg.norm(self.direction)):
            return _unknown(queries)
        return (queries - along_axes(queries, self.axes)) @ rest / squared


@dataclasses.dataclass(frozen=True)
class Metric:
    """Rows and queries in the metric B, of `values` and `vectors`, about α times their means; `moment` and `power` are those of
    the fitted gallery."""

    direction: np.ndarray
    matrix: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray
    moment: np.ndarray
    power: float

    def index(self, gallery: np.ndarray, alpha: float) -> Index:
        with np.errstate(all="ignore"):  # Index refuses what is no number
            root, inverse = (
                (self.vectors * self.values[None, :] ** power) @ self.vectors.T for power in (alpha / 2, -alpha / 2)
            )
        centre = alpha * self.direction
        bias = gallery @ centre - 0.5 * np.sum(gallery**2, axis=1)
        # Scaled so that the fitted rows, moved and mapped, have the mean power they had.
        moved = self.moment + (1 - alpha) ** 2 * np.outer(self.mean, self.mean)
        power = np.trace(inverse @ moved @ inverse)
        scale = np.sqrt(self.power / power) if power > 0 else 1.0
        rows = scale * (gallery - alpha * self.mean[None, :]) @ inverse
        return Index(rows, bias, centre, "dot", query_map=root / scale)

    def alpha_star(self, queries: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return _unknown(queries)


def _require_components(number: int | None):
    if number is not None:
        require_integer("num_components", number, least=0)


def _given(covariance: np.ndarray | None) -> np.ndarray:
    if covariance is None:
        raise ValueError("this rule needs the covariance of the queries")
    return covariance


def _beyond(centre: np.ndarray, floor: float) -> np.ndarray:
    """A centre, or 0 where it is no more than rounding."""
    return np.zeros_like(centre) if np.linalg.norm(centre) <= floor else centre


def _unknown(queries: np.ndarray) -> np.ndarray:
    return np.full(len(queries), np.nan)
