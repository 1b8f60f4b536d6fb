"""One battery over all rules of closing, and over one that a user wrote."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

import simulator as sim
from simulator.closing.rules import RULES, Rule, Sample, Shift
from tests.test_index import CASES


@dataclasses.dataclass(frozen=True)
class Part(Rule):
    """Rows moved by a share of the gap."""

    share: float = 0.5
    shifts: ClassVar[bool] = True
    needs_gap: ClassVar[bool] = True

    def fit(self, sample: Sample) -> Shift:
        return Shift(self.share * sample.gap)


ALL = {rule: dict(rule=rule) for rule in RULES} | {"own": dict(rule=Part())}


def test_the_battery_knows_every_rule():
    assert set(RULES) <= {case.split(",")[0] for case in CASES}


@pytest.mark.parametrize("name", ALL)
def test_what_every_rule_keeps(rng, name):
    gallery, queries = rng.normal(size=(6, 10)), rng.normal(size=(30, 10)) + 0.5
    closer = sim.GapCloser(**ALL[name]).fit(gallery, queries)
    rule = closer._make_rule()
    clean = sim.GapCloser("compensated").fit(gallery, queries).index(gallery, 0.0).search(queries)
    np.testing.assert_array_equal(closer.index(gallery, 0.0).search(queries), clean)  # α = 0 leaves every decision
    assert closer.direction_.shape == (10,)
    assert closer.alpha_star_.shape == (30,)
    assert np.isfinite(closer.alpha_star_).all() == (name != "optimal")
    blocks = sim.GapCloser(**ALL[name]).fit(gallery, lambda: iter(np.split(queries, 3)))
    np.testing.assert_allclose(blocks.direction_, closer.direction_, rtol=1e-12, atol=1e-13)
    turn = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    turned = sim.GapCloser(**ALL[name]).fit(gallery @ turn, queries @ turn)
    np.testing.assert_allclose(turned.direction_, closer.direction_ @ turn, rtol=1e-9, atol=1e-11)
    if rule.shifts:
        np.testing.assert_allclose(
            closer.transform(gallery, 0.7), gallery + 0.7 * closer.direction_[None, :], rtol=1e-14
        )
    else:
        with pytest.raises(ValueError, match="use index"):
            closer.transform(gallery, 0.7)
    if rule.needs_gap:
        with pytest.raises(ValueError, match="no gap to close"):
            sim.GapCloser(**ALL[name]).fit(gallery, np.concatenate([gallery, gallery]))
    found = closer.certificate(gallery, queries, 0.7)
    assert found.rule == ("Part" if name == "own" else name)
    assert (found.rising is None) == (not rule.for_every_query and name != "optimal")
    assert sim.GapCloser(**closer.get_params()).fit(gallery, queries).alpha_ == closer.alpha_


def test_a_rule_of_ones_own_is_certified(rng):
    gallery, queries = rng.normal(size=(6, 10)), rng.normal(size=(30, 10)) + 2.0
    whole = sim.GapCloser(Part(1.0), alpha="best", sigma=0.3).fit(gallery, queries)
    raw = sim.GapCloser("soft", penalty=0.0, alpha="best", sigma=0.3).fit(gallery, queries)
    np.testing.assert_allclose(whole.direction_, raw.direction_)
    assert whole.alpha_ == pytest.approx(raw.alpha_)
    assert whole.certificate(gallery, queries).changed == raw.certificate(gallery, queries).changed
    with pytest.raises(ValueError, match="needs a theorem"):
        sim.GapCloser(Part(), alpha="safe")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(penalty=3.0), "penalty=3.0 belongs to rule='soft'; the rule is 'complement'"),
        (dict(rule="soft", shrinkage=0.5), "shrinkage=0.5 belongs to rule='optimal'"),
        (dict(rule=Part(), num_components=2), "num_components=2 belongs to rule='complement' and rule='centred'"),
        (dict(rule="near"), "one of 'complement'"),
        (dict(rule=object()), "an instance of a class that derives from"),
        (dict(rule=Part), "an instance of a class that derives from"),  # the class in place of an instance
    ],
)
def test_a_setting_of_another_rule_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        sim.GapCloser(**options)
