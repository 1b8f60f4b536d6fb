"""The command `gapsim`. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from experiments.commands import terminal
from experiments.commands.own_embeddings import Close, Diagnose, require_device, run_close, run_diagnose, write_json

RESULTS, SHIPPED = Path("results"), Path("figures")  # where commands write; what is published, written only by --out


@dataclasses.dataclass(frozen=True)
class Run:
    """Main job: train the default sweep and the digits, check the gap-robustness relation, draw the figures; exit 0 if every
    verdict is the expected one and every control is rejected.

    Example: gapsim run --data digits
    """

    data: Literal["both", "synthetic", "digits"] = "both"
    """Synthetic pairs, the two halves of real digits, or both."""
    quick: bool = False
    """Small settings, with synthetic pairs alone unless --data digits."""
    out: Path = RESULTS
    """Folder for figures (.pdf, .png) and the numbers behind them (.nc)."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Judge claims: print the ledger; exit 0 if every verdict is the expected one and every control is rejected.

    Example: gapsim verify C4 --quick
    """

    claims: Positional[tuple[str, ...]] = ()
    """Claims by id or name; none for all."""
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


@dataclasses.dataclass(frozen=True)
class Figures:
    """Redraw figures from stored results, without computing anything again.

    Example: gapsim figures C1
    """

    claims: Positional[tuple[str, ...]] = ()
    """Claims by id or name, or the names of other figures; none for all that are stored."""
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


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Close, tyro.conf.subcommand("close")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command on whatever terminal there is."""
    return terminal.printing(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    """Parse, run, and turn what a user can mend into one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["sweep"]:
        arguments = _gather_changes(arguments)
    command = tyro.cli(Command, prog="gapsim", description="Theory simulator for contrastive training.", args=arguments)
    try:
        return _COMMANDS[type(command)](command)
    except KeyboardInterrupt:
        print("gapsim: stopped; what was finished is stored", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError) as error:
        return terminal.say_error(str(error) or "there is not enough memory")


def _gather_changes(arguments: list[str]) -> list[str]:
    """`--some.field value` of a sweep as `--set some.field=value`."""
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


def _use_all_cores(*, only_sweeps: bool = False, least: int = 1):
    """One XLA device per core with full vectors, and what is compiled kept on disk; only possible before JAX computes
    anything in this process. only_sweeps: no device ever helps another with its matrix products. least: devices,
    also on fewer cores."""
    import contextlib
    import tempfile

    import jax

    from simulator.training.compiler import use_flags
    from simulator.training.engine import cache_folder

    flags = ["--xla_cpu_prefer_vector_width=512"] + ["--xla_cpu_multi_thread_eigen=false"] * only_sweeps
    use_flags(*flags, memory=cache_folder() / "xla_flags.json")
    # Not os.cpu_count(): a cluster grants a job some of a node's cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX is in use already: keep the devices it has
        jax.config.update("jax_num_cpu_devices", max(least, cores or 1))
    if not jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        with contextlib.suppress(OSError):  # a home that cannot be written: programs are compiled again
            folder = cache_folder() / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    require_device()


def _run(command: Run) -> int:
    _use_all_cores()
    from experiments import catalogue, plotting
    from experiments.claims import gap_emergence
    from experiments.report import pages
    from simulator.storage.files import require_outputs

    require_outputs([command.out / pages.PAGE, *plotting.files(command.out, catalogue.MAIN_JOB, catalogue.MAIN_JOB)])
    rows = []
    for stem in catalogue.MAIN_JOB:
        module = catalogue.load(stem)
        config = module.QUICK if command.quick else module.Config()
        if not command.quick or command.data != "both":
            config = dataclasses.replace(config, data=command.data)
        data, seconds = catalogue.run(stem, quick=command.quick, out=command.out, config=config)
        if stem == "gap_emergence":
            print("\n" + catalogue.table(gap_emergence.SUMMARY_HEADER, gap_emergence.summary(data)) + "\n")
        rows += catalogue.judge(stem, data, seconds)
    print(catalogue.ledger_table(rows))
    print(f"\nfigures and results: {command.out.resolve()}")
    print(f"open {pages.build(command.out, command.out).resolve()}")
    return _conclude(rows)


def _conclude(rows: list[dict[str, Any]]) -> int:
    """Say in the last line whether the ledger is as expected; the exit code."""
    from experiments import catalogue

    bad = [row for row in rows if not catalogue.as_expected(row)]
    names = ", ".join(sorted({f"{row['claim']} {row['stem']}" for row in bad}))
    print(f"NOT as expected: {names}" if bad else "every verdict is as expected and every control is rejected")
    return 1 if bad else 0


def _verify(command: Verify) -> int:
    _use_all_cores()
    from experiments import catalogue, plotting
    from simulator.storage.files import require_outputs

    rows, stems = [], catalogue.find(command.claims)
    require_outputs([command.json, *plotting.files(command.out, stems, stems)])
    for stem in stems:
        data, seconds = catalogue.run(stem, quick=command.quick, out=command.out)
        rows += catalogue.judge(stem, data, seconds)
    if command.json is not None:
        write_json(command.json, rows)
    print(catalogue.ledger_table(rows))
    return _conclude(rows)


def _list(command: List) -> int:
    from experiments import catalogue

    claims = [(stem, catalogue.load(stem).CLAIM) for stem in catalogue.stems()]
    print(catalogue.table(["claim", "name", "title", "source"], [[c.id, s, c.title, c.source] for s, c in claims]))
    return 0


def _stored() -> Path:
    """Where results are read from by default: what a run has left in the current folder, or what is published there."""
    return RESULTS if any(RESULTS.glob("*.nc")) else SHIPPED


def plotting(command: Figures) -> int:
    require_device()
    from experiments import plotting
    from experiments.report import disputes, stories
    from simulator.storage.files import require_outputs

    results, out = command.results or command.out or _stored(), command.out or RESULTS
    found = plotting.find(command.claims, results)
    if not found:
        raise ValueError(f"{results} holds no stored results; run `gapsim run` or `gapsim verify --out` first")
    require_outputs(plotting.files(out, [], found), results.glob("*.nc"))
    for name in found:
        for path in plotting.redraw(name, results, out):
            print(path)
    if not command.claims:
        for path in [*disputes.draw_all(out, results), *stories.draw_all(out, results)]:
            print(path)
    return 0


def pages(command: Report) -> int:
    require_device()
    from experiments.report import pages

    print(f"open {pages.build(command.results or _stored(), command.out).resolve()}")
    return 0


def sweeping(command: Sweep) -> int:
    from experiments.commands import sweeping

    sweeping.require_jobs(command)
    if command.workers:
        return sweeping.train_in_jobs(command)
    # XLA compiles for a single device differently, and a stored sweep is to have the same bits wherever it is continued.
    _use_all_cores(only_sweeps=True, least=2)
    return sweeping.train_here(command)


def tables(command: Bench) -> int:
    from experiments import plotting
    from experiments.bench import tables, turns
    from simulator.storage.files import require_outputs

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


_COMMANDS: dict[type, Callable[[Any], int]] = {
    Run: _run,
    Verify: _verify,
    List: _list,
    Figures: plotting,
    Report: pages,
    Diagnose: run_diagnose,
    Close: run_close,
    Sweep: sweeping,
    Bench: tables,
}

if __name__ == "__main__":
    sys.exit(main())
