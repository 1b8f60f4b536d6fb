"""Printing that never costs a result: any encoding, a reader that stops early, a disk that is full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable


def draw_alike_everywhere() -> None:
    """Have NumPy compute alike on all x86-64 processors, so that a figure has the same bytes on each; before NumPy is loaded.

    For exp, log and powers it takes other code where a processor has AVX-512, and the last bit differs: a few pixels
    then differ by one grey level. JAX, which does the heavy work, does not ask.
    """
    os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")


def printing(command: Callable[[], int]) -> int:
    """The exit code of a command; quiet when whoever reads the output, `head` for one, has read enough."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="replace")  # a terminal without "α" shows "?", and all the rest
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 128 + 13  # as a shell names a process that a closed pipe ended
    except OSError as error:
        _drop_output()
        return say_error(f"standard output cannot be written ({error.strerror}); what --json and --out name is written")


def say_error(error: object) -> int:
    """One line on standard error, and the exit code."""
    print(f"gapsim: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _drop_output():
    """What is left is written at exit, and would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
