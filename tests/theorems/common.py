"""What every claim must survive, whatever it says."""

import functools
from pathlib import Path

from experiments import _ledger
from experiments._figures import save_figure
from simulator.store import load_dataset, save_dataset

FIGURES = Path(__file__).parents[2] / "figures"


@functools.cache
def quick_measurement(stem: str):
    """The QUICK measurement of a claim, taken once per test process."""
    return _ledger.run(stem, quick=True, out=None, progress=False)


def check_claim(stem: str, folder):
    """Judge the QUICK measurement after a round trip through a file: expected verdicts; controls rejected; the same
    measurement under a prediction moved by three tolerances (a trend: turned back at two thirds) fails; in what is stored at
    full size a prediction 5 % off fails, or the row says why it cannot; a figure appears."""
    data, seconds = quick_measurement(stem)
    data = load_dataset(save_dataset(data, folder / f"{stem}.nc"))
    module = _ledger.load(stem)
    for row in _ledger.judge(stem, data, seconds):
        assert _ledger.as_expected(row), row
    for row in module.judge(data):
        if row.verdict() != "refuted":
            assert not row.test.perturbed().passes(), f"{row.name}: a prediction off by 3 tolerances still passes"
    assert_five_percent_fail(module.judge(load_dataset(FIGURES / f"{stem}.nc")))
    for path in save_figure(module.draw, data, folder / stem):
        assert path.stat().st_size > 5_000


def assert_five_percent_fail(rows):
    """A prediction with a size fails when it is 5 % off, through the same check, or the row says why it cannot; no row says so
    without need."""
    for row in rows:
        passes = row.test.has_size() and not row.test.sees(0.05)
        assert passes == bool(row.blunt), f"{row.name}: 5 % off {row.five_percent_off()}"
