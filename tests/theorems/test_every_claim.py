"""What every claim must survive, whatever it says; what is special to one is in the file of its name."""

import pytest

from experiments import catalogue
from experiments.plotting import save_figure
from simulator.storage.results import load_dataset, save_dataset
from tests.theorems.common import UNCERTAIN, quick_measurement

# `make test` has no time for these; what is stored of them is judged there all the same (tests/test_ledger.py).
SLOW = {
    "alignment_uniformity",
    "cone_effect",
    "gap_temperature",
    "information_imbalance",
    "learned_temperature",
    "loss_landscape",
    "mismatched_pairs",
    "same_data_gap",
    "sigmoid_constellation",
    "simplex",
    "tower_compression",
}
LONG = {"gap_emergence"}  # on a busy machine


def marks(stem: str):
    """How long a claim may take, and where."""
    return [pytest.mark.slow] * (stem in SLOW) + [pytest.mark.timeout(600)] * (stem in LONG)


@pytest.mark.parametrize("stem", [pytest.param(stem, marks=marks(stem)) for stem in catalogue.stems()])
def test_claim(stem, tmp_path):
    """The QUICK measurement after a round trip through a file: expected verdicts; controls rejected; the same measurement
    under a prediction moved by three tolerances (a trend: turned back at two thirds) fails; a figure appears."""
    data, seconds = quick_measurement(stem)
    data = load_dataset(save_dataset(data, tmp_path / f"{stem}.nc"))
    module = catalogue.load(stem)
    for row in catalogue.judge(stem, data, seconds):
        assert catalogue.as_expected(row), row
        # A row that 5 % off would pass is one that has to say so, also at this size.
        assert UNCERTAIN.search(row["effect"]) or not catalogue.needs_reason(row), row
    for row in module.judge(data):
        if row.verdict() != "refuted":
            assert not row.test.perturbed().passes(), f"{row.name}: a prediction off by 3 tolerances still passes"
    for path in save_figure(module.draw, data, tmp_path / stem):
        assert path.stat().st_size > 5_000


def test_the_exceptions_are_claims():
    assert set(catalogue.stems()) >= SLOW | LONG
