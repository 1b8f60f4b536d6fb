"""Claims, the handful of checks that judge them, and the rows of the ledger.

An experiment measures; its `judge` turns the stored measurement into rows; `verdict` decides. A check is data:
what was predicted, what was measured, how far apart they may be. Nothing here knows which verdict is wanted
until `as_expected` compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

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
      expected: the verdict of every row that `judge` returns, by the row's name.
      summary: one plain sentence, for readers who do not know the notation.

    Raises ValueError for verdicts without names, and for words that are no verdict.
    """

    id: str
    title: str
    statement: str
    source: str
    assumes: str
    expected: Mapping[str, str]
    summary: str = ""

    def __post_init__(self):
        if not isinstance(self.expected, Mapping):
            raise ValueError(
                f"Claim.expected of {self.id} is {self.expected!r}: give every verdict the name of its row, the first "
                "argument of sim.Row, as in expected={'squared gap': 'holds'}"
            )
        for name, verdict in self.expected.items():
            if verdict not in get_args(Verdict):
                raise ValueError(
                    f"Claim.expected of {self.id} is {verdict!r} for {name!r}; it must be 'holds', 'holds if' or 'refuted'"
                )


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
          monotone     largest z by which `measured`, ordered by `at`, moves against the predicted sign from one point of
                       a stretch of one sign to a later one, neighbours first of all: the difference in its standard
                       errors; `predicted` is +1, −1 or 0 (free) per step. Infinite where that is within the tolerance
                       but a stretch does not move its way by more than the tolerance from its first to its last value:
                       neither a flat curve nor a reversed one nor one that turns back passes.
      predicted, measured: arrays of one shape (for slope: a number, and the values at each `at`; for monotone: the signs
        of the steps [m − 1], and the values, [m] with their errors or [seed, m] where seeds are pairs over `at`).
      tolerance: largest error that passes, > 0.
      standard_error: like `measured`, for monte_carlo and for independent values of monotone; None for [seed, m].
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
        measured, signs = measured[..., order], np.broadcast_to(signs, len(order) - 1)
        # differences[..., i, j] from point i to point j
        differences = measured[..., None, :] - measured[..., :, None]
        if self.standard_error is None:
            error = np.std(differences, axis=0, ddof=1) / len(measured) ** 0.5
            differences = np.mean(differences, axis=0)
        else:
            spread = np.asarray(self.standard_error, float)[order]
            error = np.hypot(spread[None, :], spread[:, None])
        # Equal values are no step, also where they have no error.
        z = np.divide(differences, error, out=np.zeros_like(differences), where=differences != 0)
        ways = [(signs[s[0]], z[s[0] : s[-1] + 2, s[0] : s[-1] + 2]) for s in _stretches(signs)]
        against = max(np.max(-sign * z[np.triu_indices(len(z), 1)]) for sign, z in ways) + 0.0  # no −0
        if not against <= self.tolerance:
            return against
        return against if all(sign * z[0, -1] > self.tolerance for sign, z in ways) else np.inf  # no trend is shown

    def passes(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error() <= self.tolerance

    def has_size(self) -> bool:
        """Whether the prediction is a number that can be off by a share: neither 0 throughout nor a direction."""
        return self.kind != "monotone" and bool(np.any(np.asarray(self.predicted, float)))

    def sees(self, share: float = 0.05) -> bool:
        """Whether the prediction fails on the same measurement when it is larger, and when it is smaller, by this share."""
        moved = [np.asarray(self.predicted, float) * (1 + sign * share) for sign in (1, -1)]
        return not any(dataclasses.replace(self, predicted=values).passes() for values in moved)

    def perturbed(self, times: float = 3.0) -> Check:
        """The same stored measurement under a prediction moved by `times` the tolerance (a trend: the measurement turned
        back after two thirds of its last stretch). It must fail: a check that passes it could not have seen an error of
        that size."""
        predicted = np.asarray(self.predicted, float)
        if self.kind == "identity":
            return dataclasses.replace(self, predicted=predicted * (1 + times * self.tolerance))
        if self.kind == "monte_carlo":
            shift = times * self.tolerance * np.asarray(self.standard_error, float)
            return dataclasses.replace(self, predicted=predicted + shift)
        if self.kind == "monotone":
            return self._turned_back(predicted)
        return dataclasses.replace(self, predicted=predicted + times * self.tolerance)

    def _turned_back(self, signs) -> Check:
        order = np.argsort(np.asarray(self.at, float), kind="stable")
        steps = _stretches(np.broadcast_to(signs, len(order) - 1))[-1]
        first, last = steps[0], steps[-1] + 1
        places = np.arange(len(order))
        turn = first + round(2 / 3 * len(steps)) if len(steps) > 1 else first
        # 5, 4, 3, 2, 1, 0, −1 becomes 5, 4, 3, 2, 1, 2, 3; of a single step the two ends change places.
        places[turn : last + 1] = 2 * turn - places[turn : last + 1] if len(steps) > 1 else (last, first)
        index = np.empty_like(order)
        index[order] = order[places]
        error = None if self.standard_error is None else np.asarray(self.standard_error)[index]
        return dataclasses.replace(self, measured=np.asarray(self.measured)[..., index], standard_error=error)


def _stretches(signs) -> list[np.ndarray]:
    """Indices of the steps of each run of one predicted sign, without the free ones."""
    runs = np.split(np.arange(len(signs)), np.flatnonzero(np.diff(signs)) + 1)
    return [run for run in runs if signs[run[0]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One line of a claim's judgement.

    Attributes:
      name: what `Claim.expected` calls the row; no other row of the claim has it.
      test: the check.
      control: the same check under a near miss, which must fail.
      control_name: the near miss in words.
      outside: the same check where the assumption is broken; given, and failing while the test passes, the verdict is
        "holds if".
      condition: in words, what the row needs to hold, or what is the case instead where it is refuted.
      effect: what was measured with its standard error and how large the effect is, from the data; a row that does not
        simply hold must have one.
      blunt: why a prediction that is 5 % off would pass, where it would.
      label: what is compared, for the ledger; the name where it says that already.
    """

    name: str
    test: Check
    control: Check
    control_name: str
    outside: Check | None = None
    condition: str = ""
    effect: str = ""
    blunt: str = ""
    label: str = ""

    def __post_init__(self):
        object.__setattr__(self, "label", self.label or self.name)

    def five_percent_off(self) -> str:
        """What becomes of a prediction that is 5 % off: it fails, or the reason why it cannot."""
        if not self.test.has_size():
            return "predicts a direction" if self.test.kind == "monotone" else "predicts 0"
        return "fails" if self.test.sees(0.05) else f"passes: {self.blunt}"

    def verdict(self) -> Verdict:
        """What the measurement says, whatever was expected."""
        if not self.test.passes():
            return "refuted"
        return "holds if" if self.outside is not None and not self.outside.passes() else "holds"

    def control_rejected(self) -> bool:
        """Whether the near miss fails the check."""
        return not self.control.passes()
