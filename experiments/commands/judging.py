"""The commands that judge claims: `gapsim run`, `gapsim verify` and `gapsim list`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from experiments.commands.outputs import RESULTS, write_json


@dataclasses.dataclass(frozen=True)
class Run:
    """Main job: train the default sweep and the digits, check the gap-robustness relation, draw the figures; exit 0 if every
    verdict is the expected one and every control is rejected.

    Example: gapsim run --data digits
    """

    data: Literal["both", "synthetic", "digits"] = "both"
    """Synthetic pairs, the two halves of real digits, or both."""
    quick: bool = False
    """Small settings, with synthetic pairs alone."""
    out: Path = RESULTS
    """Folder for figures (.pdf, .png) and the numbers behind them (.nc)."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Judge claims: print the ledger; exit 0 if every verdict is the expected one and every control is rejected.

    Example: gapsim verify C4 --quick
    """

    names: Positional[tuple[str, ...]] = ()
    """Claims by id, name or file (FOLDER/NAME.py); none for all, or for those of --claims."""
    claims: Path | None = None
    """Folder of claims of your own: its .py files but for those whose names begin with an underscore."""
    quick: bool = False
    """Small settings."""
    json: Path | None = None
    """Write the ledger to this file."""
    out: Path | None = None
    """Also store figures and results here."""


@dataclasses.dataclass(frozen=True)
class List:
    """List the claims: id, name, title and source.

    Example: gapsim list
    """

    claims: Path | None = None
    """Folder of claims of your own, listed last."""


def run_main_job(command: Run) -> int:
    """Train, judge, draw, and build the page."""
    if command.quick and command.data == "digits":
        raise ValueError(
            "--quick trains too few steps for what C1 says of digits; leave out --quick (some minutes), or --data"
        )
    from simulator.training.devices import use_all_cores

    use_all_cores()
    from experiments import catalogue, plotting
    from experiments.claims import gap_emergence
    from experiments.report import pages
    from simulator.storage.files import require_outputs

    require_outputs([command.out / pages.PAGE, *plotting.files(command.out, catalogue.MAIN_JOB, catalogue.MAIN_JOB)])
    rows = []
    for stem in catalogue.MAIN_JOB:
        module = catalogue.load(stem)
        config = module.QUICK if command.quick else module.Config(data=command.data)
        data, seconds = catalogue.run(stem, quick=command.quick, out=command.out, config=config)
        if stem == "gap_emergence":
            print("\n" + catalogue.table(gap_emergence.SUMMARY_HEADER, gap_emergence.summary(data)) + "\n")
        rows += catalogue.judge(stem, data, seconds)
    print(catalogue.ledger_table(rows))
    print(f"\nfigures and results: {command.out.resolve()}")
    print(f"open {pages.build(command.out, command.out).resolve()}")
    return _conclude(rows)


def verify(command: Verify) -> int:
    """Run and judge claims, and print the ledger."""
    from simulator.training.devices import use_all_cores

    use_all_cores()
    from experiments import catalogue, plotting
    from simulator.storage.files import require_outputs

    rows = []
    with catalogue.including(command.names, command.claims) as own:
        stems = catalogue.find(command.names or own)
        require_outputs([command.json, *plotting.files(command.out, stems, stems)])
        for stem in stems:
            data, seconds = catalogue.run(stem, quick=command.quick, out=command.out)
            rows += catalogue.judge(stem, data, seconds)
    if command.json is not None:
        write_json(command.json, rows)
    print(catalogue.ledger_table(rows))
    return _conclude(rows)


def list_claims(command: List) -> int:
    """Print the catalogue."""
    from experiments import catalogue

    with catalogue.including(place=command.claims):
        claims = [(stem, catalogue.load(stem).CLAIM) for stem in catalogue.stems()]
    print(catalogue.table(["claim", "name", "title", "source"], [[c.id, s, c.title, c.source] for s, c in claims]))
    return 0


def _conclude(rows: list[dict[str, Any]]) -> int:
    """Say in the last line whether the ledger is as expected; the exit code."""
    from experiments import catalogue

    bad = [row for row in rows if not catalogue.as_expected(row)]
    names = ", ".join(sorted({f"{row['claim']} {row['stem']}" for row in bad}))
    print(f"NOT as expected: {names}" if bad else "every verdict is as expected and every control is rejected")
    return 1 if bad else 0
