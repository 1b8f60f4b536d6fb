"""The command `gapsim`: parse, dispatch, one line per error. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from experiments.commands import benchmark, judging, own_embeddings, showing, sweeping, terminal

Command = (
    Annotated[judging.Run, subcommand("run")]
    | Annotated[judging.Verify, subcommand("verify")]
    | Annotated[judging.List, subcommand("list")]
    | Annotated[showing.Figures, subcommand("figures")]
    | Annotated[showing.Report, subcommand("report")]
    | Annotated[own_embeddings.Diagnose, subcommand("diagnose")]
    | Annotated[own_embeddings.Close, subcommand("close")]
    | Annotated[sweeping.Sweep, subcommand("sweep")]
    | Annotated[benchmark.Bench, subcommand("bench")]
)

COMMANDS: dict[type, Callable[[Any], int]] = {
    judging.Run: judging.run_main_job,
    judging.Verify: judging.verify,
    judging.List: judging.list_claims,
    showing.Figures: showing.redraw_figures,
    showing.Report: showing.build_report,
    own_embeddings.Diagnose: own_embeddings.run_diagnose,
    own_embeddings.Close: own_embeddings.run_close,
    sweeping.Sweep: sweeping.run_sweep,
    benchmark.Bench: benchmark.time_engines,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command on whatever terminal there is."""
    terminal.draw_alike_everywhere()
    return terminal.printing(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    """Parse, run, and turn what a user can mend into one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["sweep"]:
        arguments = sweeping.gather_changes(arguments)
    command = tyro.cli(Command, prog="gapsim", description="Theory simulator for contrastive training.", args=arguments)
    try:
        return COMMANDS[type(command)](command)
    except KeyboardInterrupt:
        print("gapsim: stopped; what was finished is stored", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError) as error:
        return terminal.say_error(str(error) or "there is not enough memory")


if __name__ == "__main__":
    sys.exit(main())
