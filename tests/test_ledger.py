"""The ledger: every stored measurement judged again, with its reasons, its near misses and its names; and all of it quickly."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simulator as sim
from experiments import catalogue
from simulator.storage.results import load_dataset
from tests.processes import run_and_count
from tests.theorems.common import UNCERTAIN

ROOT = Path(__file__).parents[1]
STEMS = catalogue.stems()
QUICK_MINUTES = 16  # of one processor: eight minutes on two

every_claim = pytest.mark.parametrize("stem", STEMS)


@functools.cache
def stored(stem: str):
    """(judged rows, their lines in the ledger) of figures/<stem>.nc."""
    data = load_dataset(ROOT / "figures" / f"{stem}.nc")
    return catalogue.load(stem).judge(data), catalogue.judge(stem, data, 0.0)


@every_claim
def test_stored_measurements_give_the_expected_verdicts(stem):
    for line in stored(stem)[1]:
        assert catalogue.as_expected(line), catalogue.reason(line)


@every_claim
def test_a_row_that_does_not_simply_hold_says_why_and_by_how_much(stem):
    for line in filter(catalogue.needs_reason, stored(stem)[1]):
        if line["verdict"] != "holds":
            assert line["condition"], line["check"]
            assert not line["condition"].startswith(("if", "not")), line["condition"]
        assert UNCERTAIN.search(line["effect"]), (
            f"{line['check']}: {line['effect']!r} has no number with its uncertainty"
        )
        assert not re.search(r"\b(nan|inf)\b", line["effect"]), line["effect"]
        assert line["assumed"]
        said = catalogue.reason(line)
        assert all(part in said for part in (line["stem"], line["condition"], line["effect"], line["assumed"]))


@every_claim
def test_predictions_off_by_three_tolerances_fail(stem):
    for row in stored(stem)[0]:
        if row.verdict() != "refuted":
            assert not row.test.perturbed().passes(), row.name


def assert_five_percent_fail(rows):
    """A prediction with a size fails when it is 5 % off, through the same check, or the row says why it cannot; no row says so
    without need."""
    for row in rows:
        passes = row.test.has_size() and not row.test.sees(0.05)
        assert passes == bool(row.blunt), f"{row.name}: 5 % off {row.five_percent_off()}"


@every_claim
def test_predictions_five_percent_off_fail_or_the_row_says_why(stem):
    assert_five_percent_fail(stored(stem)[0])


def test_the_rule_can_be_broken():
    """A blunt row that says nothing, and a sharp one that says it is blunt."""
    sharp, blunt = (sim.Check("identity", np.ones(2), np.ones(2), tolerance) for tolerance in (0.01, 0.2))
    assert_five_percent_fail([sim.Row("r", sharp, blunt, "c"), sim.Row("r", blunt, blunt, "c", blunt="few draws")])
    for row in (sim.Row("r", blunt, blunt, "c"), sim.Row("r", sharp, blunt, "c", blunt="few draws")):
        with pytest.raises(AssertionError, match="5 % off"):
            assert_five_percent_fail([row])


@every_claim
def test_near_misses_fail_by_what_was_measured(stem):
    """Not by a NaN, an empty set or an infinite ratio; only a curve that shows no trend is infinitely far from one."""
    for row in stored(stem)[0]:
        for check in filter(None, (row.test, row.control, row.outside)):
            for values in (check.predicted, check.measured, check.standard_error, check.at):
                assert values is None or (np.size(values) and np.isfinite(np.asarray(values, float)).all()), row.name
            assert np.isfinite(check.error()) or check.kind == "monotone", row.name
        assert not row.control.passes(), row.name


@every_claim
def test_trends_are_seen(stem):
    """The same curve upside down fails, and so does a flat one."""
    for row in stored(stem)[0]:
        if row.test.kind == "monotone" and row.test.passes():
            measured = np.asarray(row.test.measured, float)
            for other in (-measured, np.full_like(measured, measured.mean())):
                assert not dataclasses.replace(row.test, measured=other).passes(), row.name


@every_claim
def test_a_row_leads_to_its_code_figure_and_test(stem):
    listed = (ROOT / "docs" / "claims" / "index.md").read_text()
    for line in stored(stem)[1]:
        name, claim = line["stem"], line["claim"]
        for path in (
            f"experiments/claims/{name}.py",
            f"figures/{name}.pdf",
            f"figures/{name}.png",
            f"figures/{name}.nc",
        ):
            assert (ROOT / path).exists(), path
        assert (ROOT / "tests" / "theorems" / f"test_{name}.py").exists(), name
        assert (ROOT / "docs" / "claims" / f"{name}.md").exists(), name
        assert f"| [{claim}]({name}.md) |" in listed, claim
    assert f"{name}  " in catalogue.ledger_table(stored(stem)[1])


def test_readme_names_no_other_claim():
    listed = re.findall(r"^\| \[([CNP]\d+T?)\]", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert listed == [catalogue.load(stem).CLAIM.id for stem in STEMS]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # on a busy machine
def test_the_quick_ledger_of_all_claims_ends_in_time(tmp_path):
    """The command as a user calls it: all verdicts as expected, with their reasons, within the time."""
    file = tmp_path / "ledger.json"
    command = [sys.executable, "-m", "experiments", "verify", "--quick", "--json", str(file)]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    done, seconds = run_and_count(command, cwd=tmp_path, env=environment | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    lines = json.loads(file.read_text())
    assert [stem for stem in STEMS if stem in {line["stem"] for line in lines}] == STEMS
    for line in filter(catalogue.needs_reason, lines):
        assert UNCERTAIN.search(line["effect"]), line["check"]
        assert line["check"] in done.stdout
    assert seconds < 60 * QUICK_MINUTES, f"the quick ledger took {seconds / 60:.1f} minutes of processor time"
