"""The pages of the claims: verdicts and every number ± error are those of the stored ledger, the settings exist."""

import dataclasses
import re
from pathlib import Path

import pytest

from experiments import catalogue
from simulator.storage.results import load_dataset

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "claims"
HEADINGS = (
    "In plain words",
    "The claim and its ledger",
    "How it is measured",
    "The near miss",
    "How to read the figure",
    "Where it stops",
    "Derivation",
    "Run it yourself",
)
WITH_ERROR = re.compile(r"-?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")


def with_errors(text: str) -> set[str]:
    """Every number ± its error in a text, with plain minus signs."""
    return set(WITH_ERROR.findall(text.replace("−", "-")))


@pytest.mark.parametrize("stem", catalogue.stems())
def test_the_index_gives_a_claim_its_sentence_and_its_verdict(stem):
    claim, index = catalogue.load(stem).CLAIM, (PAGES / "index.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| \[{claim.id}\]\({stem}\.md\) .*$", index, re.MULTILINE)
    assert f" | {claim.summary} | " in line
    for verdict in set(claim.expected.values()) - {"holds"}:  # "refuted", or the word "if"
        assert f"*{verdict.split()[-1]}*" in line or f"*{verdict.capitalize()}*" in line


@pytest.mark.parametrize("stem", catalogue.stems())
def test_a_page_says_what_the_stored_ledger_says(stem):
    text, claim = (PAGES / f"{stem}.md").read_text(encoding="utf-8"), catalogue.load(stem).CLAIM
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == HEADINGS
    assert f"gapsim verify {claim.id} --quick" in text
    rows = catalogue.judge(stem, load_dataset(ROOT / "figures" / f"{stem}.nc"), 0.0)
    ledger = " ".join(f"{row['check']} {row['condition']} {row['effect']} {row['five_percent_off']}" for row in rows)
    assert with_errors(text) <= with_errors(ledger), with_errors(text) - with_errors(ledger)


@pytest.mark.parametrize("stem", catalogue.stems())
def test_the_setting_that_a_page_changes_exists(stem):
    text, claim = (PAGES / f"{stem}.md").read_text(encoding="utf-8"), catalogue.load(stem)
    package, name = re.search(r"^from (\S+) import (\S+) as claim$", text, re.MULTILINE).groups()
    assert f"{package}.{name}" == claim.__name__
    (change,) = re.findall(r"^data = claim\.measure\(dataclasses\.replace\(claim\.QUICK, (.*)\)\)$", text, re.MULTILINE)
    assert (
        eval(f"dataclasses.replace(claim.QUICK, {change})", dict(dataclasses=dataclasses, claim=claim)) != claim.QUICK
    )
