"""What is asked of XLA's compiler, where this version knows it: options and flags come and go between versions.

An unknown option of one program is an error; an unknown flag in XLA_FLAGS ends the process. So nothing is passed before it
was asked for, and what is not known is left out: all of it is about speed alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

from simulator.storage.files import whole_file

Value = bool | int | str


def jit(function: Callable | None = None, *, options: Mapping[str, Value], **settings) -> Callable:
    """`jax.jit` with those compiler options that XLA knows, asked at the first call: asking starts JAX's devices."""
    if function is None:
        return functools.partial(jit, options=options, **settings)

    @functools.cache
    def compiled():
        return jax.jit(function, compiler_options=known_options(options), **settings)

    @functools.wraps(function)
    def call(*arguments, **keywords):
        return compiled()(*arguments, **keywords)

    return call


def known_options(options: Mapping[str, Value]) -> dict[str, Value]:
    """Those compiler options that XLA knows."""
    return {name: value for name, value in options.items() if _is_option(name, value)}


@functools.cache
def _is_option(name: str, value: Value) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def use_flags(*flags: str, memory: Path) -> None:
    """Put those flags that XLA knows before what XLA_FLAGS holds; heard until JAX computes first in this process.

    Args:
      flags: "--name=value" each.
      memory: file that remembers the answers for every version of jaxlib; a new question takes one to two seconds.
    """
    os.environ["XLA_FLAGS"] = " ".join([*known_flags(*flags, memory=memory), os.environ.get("XLA_FLAGS", "")]).strip()


def known_flags(*flags: str, memory: Path) -> list[str]:
    """Those flags that XLA knows, as `use_flags` takes them."""
    name = f"jaxlib {jaxlib.__version__}"
    try:
        remembered: Any = json.loads(memory.read_text())
    except (OSError, ValueError, RecursionError):
        remembered = None
    answers = remembered if isinstance(remembered, dict) else {}
    known = answers.get(name)
    known = {flag: value for flag, value in known.items() if value in (True, False)} if isinstance(known, dict) else {}
    new = [flag for flag in flags if flag not in known]
    if new:
        if _starts(new):
            known |= dict.fromkeys(new, True)
        elif _starts([]):
            known |= {flag: _starts([flag]) for flag in new}
        else:  # it fails for another reason, which is not to be remembered as an answer
            return [flag for flag in flags if known.get(flag)]
        with contextlib.suppress(OSError), whole_file(memory) as draft:  # a folder that is read-only: it is asked again
            draft.write_text(json.dumps(answers | {name: known}, indent=1) + "\n")
    return [flag for flag in flags if known[flag]]


def _starts(flags: list[str]) -> bool:
    """Whether JAX starts with these flags, tried in another process: an unknown one would end this one."""
    environment = os.environ | dict(XLA_FLAGS=" ".join(flags), JAX_PLATFORMS="cpu")
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
