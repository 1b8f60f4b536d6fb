"""Claims, the handful of checks that judge them, and the rows of the ledger.

An experiment measures; its `judge` turns the stored measurement into rows; `verdict` decides. A check is data:
what was predicted, what was measured, how far apart they may be. Nothing here knows which verdict is wanted
until `as_expected` compares.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from simulator.validation import require_number

Kind = Literal["identity", "absolute", "monte_carlo", "slope", "monotone"]
Verdict = Literal["holds", "holds if", "refuted"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement on trial.

    Attributes:
      id: as in the theory ("C4").
      title: a few words.
      statement: one sentence.
      source: paper and theorem, or "derived here".
      assumes: what the statement needs.
      expected: verdict per row of the ledger, in the order that `judge` returns them.
    """

    id: str
    title: str
    statement: str
    source: str
    assumes: str
    expected: tuple[Verdict, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """One comparison of a prediction with a measurement.

    Attributes:
      kind: which error is taken, and so the unit of `tolerance`:
          identity     max |measured − predicted| / max |predicted|; relative.
          absolute     max |measured − predicted|; in the unit of the measurement. Counts (tolerance ½); limits that
                       must be reached within a stated distance; one-sided statements, as their violation max(0, ·),
                       predicted 0.
          monte_carlo  max |measured − predicted| / standard_error; in standard errors.
          slope        |slope of log(measured) on log(at) − predicted|; absolute, in the exponent.
          monotone     largest z by which `measured`, ordered by `at`, moves against the predicted sign between
                       neighbours (in `standard_error`s); `predicted` is +1, −1 or 0 (free) per step. Infinite where
                       that is within the tolerance but a stretch of one sign does not move that way by more than the
                       tolerance from its first to its last value: neither a flat curve nor a reversed one passes.
      predicted, measured: arrays of one shape (for slope: a number, and the values at each `at`; for monotone: the signs
        of the steps [m − 1], and the values [m]).
      tolerance: largest error that passes, > 0.
      standard_error: like `measured`, for monte_carlo and monotone.
      at: the abscissa, for slope and monotone.
    """

    kind: Kind
    predicted: np.ndarray | float
    measured: np.ndarray | float
    tolerance: float
    standard_error: np.ndarray | None = None
    at: np.ndarray | None = None

    def __post_init__(self):
        require_number("Check.tolerance", self.tolerance, above=0.0)

    def error(self) -> float:
        """How far apart the two are, in the unit of the tolerance; NaN counts as infinitely far."""
        predicted, measured = np.asarray(self.predicted, float), np.asarray(self.measured, float)
        if self.kind == "identity":
            error = np.max(np.abs(measured - predicted)) / np.max(np.abs(predicted))
        elif self.kind == "absolute":
            error = np.max(np.abs(measured - predicted))
        elif self.kind == "monte_carlo":
            error = np.max(np.abs(measured - predicted) / np.asarray(self.standard_error, float))
        elif self.kind == "slope":
            error = np.abs(np.polyfit(np.log(np.asarray(self.at, float)), np.log(measured), 1)[0] - predicted)
        else:
            error = self._against_the_trend(predicted, measured)
        return float(error) if np.isfinite(error) else np.inf

    def _against_the_trend(self, signs, measured):
        order = np.argsort(np.asarray(self.at, float), kind="stable")
        measured, spread = measured[order], np.asarray(self.standard_error, float)[order]
        steps, signs = np.diff(measured), np.broadcast_to(signs, len(measured) - 1)
        against = np.max(-signs * steps / np.hypot(spread[1:], spread[:-1]))
        if not against <= self.tolerance:
            return against
        for stretch in np.split(np.arange(len(signs)), np.flatnonzero(np.diff(signs)) + 1):
            first, last = stretch[0], stretch[-1] + 1
            moved = signs[first] * (measured[last] - measured[first])
            if signs[first] and moved <= self.tolerance * np.hypot(spread[first], spread[last]):
                return np.inf  # no trend is shown
        return against

    def passes(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error() <= self.tolerance

    def perturbed(self, times: float = 3.0) -> Check:
        """The same stored measurement under a prediction moved by `times` the tolerance (a trend: under shuffled
        labels). It must fail: a check that passes it could not have seen an error of that size."""
        predicted = np.asarray(self.predicted, float)
        if self.kind == "identity":
            return dataclasses.replace(self, predicted=predicted * (1 + times * self.tolerance))
        if self.kind == "monte_carlo":
            shift = times * self.tolerance * np.asarray(self.standard_error, float)
            return dataclasses.replace(self, predicted=predicted + shift)
        if self.kind == "monotone":
            at = np.asarray(self.at)
            shuffled = np.random.default_rng(0).permutation(at)
            if np.array_equal(shuffled, at):  # of two labels every other shuffle
                shuffled = shuffled[::-1]
            return dataclasses.replace(self, at=shuffled)
        return dataclasses.replace(self, predicted=predicted + times * self.tolerance)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One line of a claim's judgement.

    Attributes:
      name: what is compared.
      test: the check.
      control: the same check under a near miss, which must fail.
      control_name: the near miss in words.
      outside: the same check where the assumption is broken; given, and failing while the test passes, the verdict is
        "holds if".
      condition: in words, what the row needs to hold, or what is the case instead where it is refuted.
      effect: what was measured with its standard error and how large the effect is, from the data; a row that does not
        simply hold must have one.
    """

    name: str
    test: Check
    control: Check
    control_name: str
    outside: Check | None = None
    condition: str = ""
    effect: str = ""

    def verdict(self) -> Verdict:
        """What the measurement says, whatever was expected."""
        if not self.test.passes():
            return "refuted"
        return "holds if" if self.outside is not None and not self.outside.passes() else "holds"

    def control_rejected(self) -> bool:
        """Whether the near miss fails the check."""
        return not self.control.passes()
