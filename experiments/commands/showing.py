"""The commands that show what is stored: `gapsim figures` and `gapsim report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from experiments.commands.outputs import RESULTS, SHIPPED


@dataclasses.dataclass(frozen=True)
class Figures:
    """Redraw figures from stored results, without computing anything again.

    Example: gapsim figures C1
    """

    names: Positional[tuple[str, ...]] = ()
    """Claims by id, name or file, or the names of other figures; none for all that are stored."""
    claims: Path | None = None
    """Folder of claims of your own."""
    out: Path | None = None
    """Folder that receives the figures; by default results/."""
    results: Path | None = None
    """Folder that holds the results (.nc); by default that of --out, or else results/ where a run has left some and figures/."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Build one HTML page from stored results: the ledger, every claim with its figure and origin, the disputes.

    Example: gapsim report --out report
    """

    out: Path = RESULTS
    """Folder for index.html; the page needs no other file and no network."""
    results: Path | None = None
    """Folder that holds the results (.nc); by default results/ where a run has left some, and else figures/."""
    claims: Path | None = None
    """Folder of claims of your own, shown last."""


def redraw_figures(command: Figures) -> int:
    from simulator.training.devices import require_device

    require_device()
    from experiments import catalogue, plotting
    from experiments.report import disputes, figures, stories
    from simulator.storage.files import require_outputs

    results, out = command.results or command.out or _stored(), command.out or RESULTS
    with catalogue.including(command.names, command.claims):
        found = figures.find(command.names, results)
        if not found:
            raise ValueError(f"{results} holds no stored results; run `gapsim run` or `gapsim verify --out` first")
        require_outputs(plotting.files(out, [], found), results.glob("*.nc"))
        for name in found:
            for path in figures.redraw(name, results, out):
                print(path)
    if not command.names:
        for path in [*disputes.draw_all(out, results), *stories.draw_all(out, results)]:
            print(path)
    return 0


def build_report(command: Report) -> int:
    from simulator.training.devices import require_device

    require_device()
    from experiments import catalogue
    from experiments.report import pages

    with catalogue.including(place=command.claims):
        print(f"open {pages.build(command.results or _stored(), command.out).resolve()}")
    return 0


def _stored() -> Path:
    """Where results are read from by default: what a run has left in the current folder, or what is published there."""
    return RESULTS if any(RESULTS.glob("*.nc")) else SHIPPED
