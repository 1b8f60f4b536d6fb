"""The command `gapsim bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.commands.outputs import RESULTS, write_json


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the engine against jitted JAX loops, a PyTorch loop and torch.func (extra `bench`), in one run.

    Example: gapsim bench --json bench.json
    """

    quick: bool = False
    """A few points only; prints them, draws nothing."""
    rounds: int = 2
    """Times that all processes are started and take their turns (a quarter of an hour); medians and extremes are shown."""
    json: Path | None = None
    """Write the rows to this file."""
    out: Path | None = RESULTS
    """Folder for performance.pdf, .png and .nc."""


def time_engines(command: Bench) -> int:
    from experiments import plotting
    from experiments.bench import tables, turns
    from simulator.storage.files import require_outputs
    from simulator.training.devices import require_device

    out = None if command.quick else command.out  # the figures need every point
    require_outputs([command.json, *plotting.files(out, ["performance"], ["performance", "cost_model"])])
    require_device()
    data = turns.run(quick=command.quick, rounds=command.rounds)
    if command.json is not None:
        write_json(command.json, tables.rows(data))
    if out is not None:
        tables.store(data, out)
    print(tables.render(data))
    return 0
