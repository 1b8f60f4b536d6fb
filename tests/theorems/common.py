"""What the tests of the claims share."""

import functools
import re
from pathlib import Path

from experiments import catalogue

FIGURES = Path(__file__).parents[2] / "figures"
# A number with its uncertainty, or an exact count.
UNCERTAIN = re.compile(r"\d ± \d|\d[\d,]* of \d")


@functools.cache
def quick_measurement(stem: str):
    """The QUICK measurement of a claim, taken once per test process."""
    return catalogue.run(stem, quick=True, out=None, progress=False)


def judged(stem: str, data) -> dict:
    """The rows of a claim by their names."""
    return {row.name: row for row in catalogue.load(stem).judge(data)}
