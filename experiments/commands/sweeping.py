"""The command `gapsim sweep`: train here or through jobs, and say what the last step holds."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

NAMES = ("loss", "gap_norm", "defect_ratio_x", "recall_at_1_yx")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train every point of a grid, in chunks that survive Ctrl-C and a kill; the same command continues.

    Example: gapsim sweep grid.toml --store results/grid --learning_rate 0.002 --loss.temperature 0.05
    """

    config: Positional[Path]
    """TOML file: fields of Experiment, `seeds`, `key`, and a table `over` of lists by dotted field."""
    store: Path
    """Folder that keeps what is finished; several processes may share it."""
    set: tuple[str, ...] = ()
    """Changes to the file, dotted.field=value each; --dotted.field value is the same."""
    workers: int = 0
    """Share the work among this many jobs instead of training here (extra `slurm`)."""
    executor: Literal["slurm", "local"] = "slurm"
    """Where the jobs run: Slurm, or processes of this machine."""
    minutes: int = 60
    """Time limit of a job; submit again to continue what was not done."""
    cpus: int = 8
    """Cores of a job."""
    gpus: int = 0
    """GPUs of a job; jax must be installed for them."""
    partition: str | None = None
    """Slurm partition; the default one if not given."""
    quiet: bool = False
    """Train without a progress bar and print no table, as jobs do."""


def gather_changes(arguments: list[str]) -> list[str]:
    """`--some.field value` of a sweep as `--set some.field=value`: which fields there are, only the file says, so no parser can know."""
    own = {f"--{field.name}" for field in dataclasses.fields(Sweep)} | {"--help", "-h"}
    kept, changes = [], []
    rest = iter(arguments)
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in own:
            name, is_set, value = word[2:].partition("=")
            changes.append(f"{name}={value if is_set else next(rest, '')}")
        else:
            kept.append(word)
    return kept + (["--set", *changes] if changes else [])


def run_sweep(command: Sweep) -> int:
    require_jobs(command)
    if command.workers:
        return train_in_jobs(command)
    # XLA compiles for a single device differently, and a stored sweep is to have the same bits wherever it is continued.
    from simulator.training.devices import use_all_cores

    use_all_cores(only_sweeps=True, least=2)
    return train_here(command)


def require_jobs(command: Sweep) -> None:
    """Raise ValueError for jobs that could not run, before anything is submitted."""
    for name, least in dict(workers=0, minutes=1, cpus=1, gpus=0).items():
        if (number := getattr(command, name)) < least:
            raise ValueError(f"--{name} is {number}; it must be a whole number >= {least}")


def _one_line(message, category, filename: str, lineno: int, line: str | None = None) -> str:
    return f"gapsim: note: {message}\n"


def train_here(command: Sweep) -> int:
    """Train what the store lacks; exit code."""
    import jax

    from experiments.commands import cluster, sweep_file
    from simulator.training.sweep import fill_store

    warnings.formatwarning = _one_line  # ty: ignore[invalid-assignment]
    arguments = sweep_file.read_sweep(command.config, command.set)
    if command.quiet:
        cluster.end_with_parent()
    try:
        with jax.enable_x64(arguments["experiment"].dtype == "float64"):
            fill_store(**arguments, store=command.store, progress=not command.quiet)
    except KeyboardInterrupt:
        print(f"\ngapsim: stopped; run the same command to continue {command.store}", file=sys.stderr)
        return 130
    return 0 if command.quiet else report(command.store)


def train_in_jobs(command: Sweep) -> int:
    """Submit jobs, and wait for those of this machine; exit code."""
    from experiments.commands import cluster, sweep_file

    sweep_file.read_sweep(command.config, command.set)  # what is wrong with the settings is said here, not in a log
    arguments = ["sweep", str(command.config.resolve()), "--store", str(command.store.resolve()), "--quiet"]
    arguments += ["--set", *command.set] if command.set else []
    jobs = cluster.submit(
        arguments, workers=command.workers, executor=command.executor, store=command.store, minutes=command.minutes,
        cpus=command.cpus, gpus=command.gpus, partition=command.partition,
    )  # fmt: skip
    print(f"submitted {len(jobs)} jobs ({', '.join(job.job_id for job in jobs)}); logs in {command.store / '.jobs'}")
    if command.executor != "local":
        return 0
    cluster.wait(jobs, command.store, command.minutes)
    return report(command.store)


def report(store: Path) -> int:
    """Print the last step of a sweep, and what of it is no number; exit code."""
    from simulator.training.sweep import diverged, load_sweep

    data = load_sweep(store, [*NAMES, "bad_step"])
    print(table(data))
    seeds = data.sizes["seed"]
    print(f"\n± one standard error over {seeds} seeds. In Python: simulator.load_sweep({str(store)!r})")
    if found := diverged(data):
        print(f"gapsim: {found}; the others are stored", file=sys.stderr)
        return 2
    return 0


def table(data: Any) -> str:
    """Means over the seeds that did not diverge at the last step of every point of a grid, and how many these are where some did."""
    import numpy as np

    from experiments import catalogue

    last = data.gap_norm.isel(step=-1)  # between each two of more than two modalities
    grid = [name for name in last.dims if name != "seed"]
    values = {name: data[name].isel(step=-1).broadcast_like(last).transpose(*grid, "seed").values for name in NAMES}
    finite = (data.bad_step.broadcast_like(last).transpose(*grid, "seed").values < 0).astype(int).sum(axis=-1)
    lines = []
    for point in itertools.product(*(range(data.sizes[name]) for name in grid)):
        line = [str(data[name].values[i]) for name, i in zip(grid, point, strict=True)]
        for name in NAMES:
            kept = values[name][point][np.isfinite(values[name][point])]
            error = kept.std(ddof=1) / len(kept) ** 0.5 if len(kept) > 1 else 0
            line.append(f"{kept.mean():.4g} ± {error:.2g}" if len(kept) else "–")
        lines.append([*line, f"{finite[point]} of {data.sizes['seed']}"])
    if (finite == data.sizes["seed"]).all():
        return catalogue.table([*grid, *NAMES], [line[:-1] for line in lines])
    return catalogue.table([*grid, *NAMES, "finite seeds"], lines)
