"""Every kind of check passes what is right, fails a near miss, and fails a prediction off by three tolerances."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import catalogue
from simulator.claims import Check, Claim, Row

AT = np.array([1.0, 2.0, 4.0, 8.0])
EXAMPLES = dict(
    identity=(Check("identity", AT, AT * (1 + 1e-4), 1e-3), AT * 1.01),
    absolute=(Check("absolute", np.zeros(3), np.zeros(3), 0.5), np.ones(3)),
    monte_carlo=(Check("monte_carlo", AT, AT + 0.03, 4.0, np.full(4, 0.01)), AT + 0.08),
    slope=(Check("slope", np.array(2.0), 3 * AT**2.05, 0.1, at=AT), np.array(1.0)),
    monotone=(Check("monotone", np.ones(3), AT, 4.0, np.full(4, 0.01), AT), -np.ones(3)),
)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_check(kind):
    check, near_miss = EXAMPLES[kind]
    assert check.passes()
    assert not Check(kind, near_miss, check.measured, check.tolerance, check.standard_error, check.at).passes()
    assert not check.perturbed().passes()


def test_nan_never_passes():
    for kind, (check, _) in EXAMPLES.items():
        broken = np.array(check.measured, float)
        broken.flat[0] = np.nan
        assert not Check(kind, check.predicted, broken, check.tolerance, check.standard_error, check.at).passes()


def test_a_flat_line_is_no_trend():
    assert not Check("monotone", np.ones(3), np.ones(4), 4.0, np.full(4, 0.01), AT).passes()


@pytest.mark.parametrize(
    ("signs", "curve", "passes"),
    [
        ((1, 1, 1, 1), (0, 1.6, 3.2, 4.8, 6.4), True),  # no step is 4 standard errors, all of them are
        ((1, 1, 1, 1), (6.4, 4.8, 3.2, 1.6, 0), False),
        ((1, 1, 1, 1), (0, 1, 2, 3, 4), False),  # 4 < 4 √2
        ((1, 1, -1, -1), (0, 4, 8, 4, 0), True),
        ((1, 1, -1, -1), (0, 4, 8, 8, 8), False),  # no fall
        ((1, 1, -1, -1), (8, 8, 8, 4, 0), False),  # no rise
        ((1, 0, 0, -1), (0, 8, -9, 8, 0), True),  # between the two anything goes
    ],
)
def test_every_stretch_of_a_trend_must_be_seen(signs, curve, passes):
    check = Check("monotone", np.array(signs, float), np.array(curve, float), 4.0, np.ones(5), np.arange(5))
    assert check.passes() == passes


def test_what_goes_against_a_trend_is_told_from_what_shows_none():
    falls, flat = (
        Check("monotone", np.ones(1), np.array(v), 4.0, np.ones(2), AT[:2]) for v in ([8.0, 0.0], [0.0, 0.0])
    )
    assert falls.error() == pytest.approx(8 / 2**0.5)
    assert flat.error() == np.inf


def test_a_way_back_over_several_points_counts_as_one_over_one():
    back = Check("monotone", np.ones(3), np.array([0.0, 9.0, 6.0, 3.0]), 4.0, np.ones(4), AT)
    assert back.error() == pytest.approx(6 / 2**0.5)
    free = Check("monotone", np.array([1.0, 0.0, 1.0]), np.array([0.0, 9.0, 6.0, 12.0]), 4.0, np.ones(4), AT)
    assert free.passes()


def test_a_single_step_is_turned_back():
    assert not Check("monotone", np.ones(1), np.array([0.0, 8.0]), 4.0, np.ones(2), AT[:2]).perturbed().passes()


def test_five_percent_off():
    """Both ways; a prediction of 0 and a direction have no size to be off by."""
    fine, coarse = (Check("identity", AT, AT * 1.01, tolerance) for tolerance in (0.02, 0.2))
    assert fine.sees(0.05)
    assert not coarse.sees(0.05)
    one_way = Check("absolute", np.ones(1), np.full(1, 1.04), 0.045)
    assert not one_way.sees(0.05)
    assert Row("r", fine, coarse, "c").five_percent_off() == "fails"
    assert Row("r", coarse, fine, "c", blunt="few draws").five_percent_off() == "passes: few draws"
    for kind, words in (("monotone", "predicts a direction"), ("absolute", "predicts 0")):
        assert not EXAMPLES[kind][0].has_size()
        assert Row("r", EXAMPLES[kind][0], coarse, "c").five_percent_off() == words


def test_verdicts_follow_from_the_checks():
    good, bad = EXAMPLES["identity"][0], Check("identity", AT, 2 * AT, 1e-3)
    assert Row("r", good, bad, "c").verdict() == "holds"
    assert Row("r", bad, bad, "c").verdict() == "refuted"
    assert Row("r", good, bad, "c", outside=bad).verdict() == "holds if"
    assert Row("r", good, bad, "c", outside=good).verdict() == "holds"
    assert Row("r", good, bad, "c").control_rejected()
    assert not Row("r", good, good, "c").control_rejected()


def test_a_row_is_labelled_by_its_name_unless_it_says_more():
    check = EXAMPLES["identity"][0]
    assert Row("r", check, check, "c").label == "r"
    assert Row("r", check, check, "c", label="what is compared").label == "what is compared"


def claim(expected) -> Claim:
    return Claim(id="S1", title="t", statement="s", source="here", assumes="nothing", expected=expected)


def test_verdicts_by_position_are_refused_with_the_way_to_name_them():
    with pytest.raises(
        ValueError, match=r"Claim.expected of S1 is \('holds',\): .*name of its row.*sim.Row.*expected=\{"
    ):
        claim(("holds",))
    with pytest.raises(
        ValueError, match=r"Claim.expected of S1 is 'hold' for 'a'; it must be 'holds', 'holds if' or 'ref"
    ):
        claim({"b": "refuted", "a": "hold"})


@pytest.mark.parametrize(
    ("expected", "names", "words"),
    [
        (["a", "b"], ["a"], "'b' is no row"),
        (["a"], ["a", "b"], "'b' has no verdict"),
        (["a"], ["a", "a"], "'a' names 2 rows"),
    ],
)
def test_rows_and_verdicts_have_the_same_names(monkeypatch, expected, names, words):
    check = EXAMPLES["identity"][0]
    rows = [Row(name, check, check, "c") for name in names]
    module = SimpleNamespace(CLAIM=claim(dict.fromkeys(expected, "holds")), judge=lambda data: rows)
    monkeypatch.setattr(catalogue, "load", lambda stem: module)
    with pytest.raises(ValueError, match=f"CLAIM.expected of sample must name every row of its judge once: {words}"):
        catalogue.judge("sample", None, 0.0)
