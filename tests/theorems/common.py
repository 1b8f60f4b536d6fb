"""What every claim must survive, whatever it says."""

import functools
from pathlib import Path

from experiments import catalogue
from experiments.plotting import save_figure
from simulator.store import load_dataset, save_dataset

FIGURES = Path(__file__).parents[2] / "figures"


@functools.cache
def quick_measurement(stem: str):
    """The QUICK measurement of a claim, taken once per test process."""
    return catalogue.run(stem, quick=True, out=None, progress=False)


def check_claim(stem: str, folder):
    """Judge the QUICK measurement after a round trip through a file: expected verdicts; controls rejected; the same
    measurement under a prediction moved by three tolerances (a trend: turned back at two thirds) fails; a figure appears."""
    data, seconds = quick_measurement(stem)
    data = load_dataset(save_dataset(data, folder / f"{stem}.nc"))
    module = catalogue.load(stem)
    for row in catalogue.judge(stem, data, seconds):
        assert catalogue.as_expected(row), row
    for row in module.judge(data):
        if row.verdict() != "refuted":
            assert not row.test.perturbed().passes(), f"{row.name}: a prediction off by 3 tolerances still passes"
    for path in save_figure(module.draw, data, folder / stem):
        assert path.stat().st_size > 5_000
