"""A user's function under JAX's tracing: errors that name it, and whether it is one program."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def named(what: str):
    """Whatever the user's code raises, as one line that names it."""
    try:
        yield
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"{what} fails while it is traced: {type(error).__name__}: {said}") from error


def require_one_program(what: str, function: Callable, *given: Any) -> None:
    """Raise ValueError where a function is another program each time it is traced: what it draws would be the same numbers at
    every step and for every seed."""
    # A new function each time: JAX remembers what it has traced.
    trace = lambda: jax.make_jaxpr(lambda *arguments: function(*arguments))(*given)
    first, again = trace(), trace()
    text = lambda program: re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr))  # addresses of functions
    is_key = lambda leaf: jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    plain = lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    content = lambda program: [(c.shape, c.dtype, c.tobytes()) for c in map(plain, program.consts)]
    if text(first) != text(again) or content(first) != content(again):
        raise ValueError(
            f"{what} is another program each time it is traced (does it draw numbers with NumPy, or read a clock?); it must "
            "depend on its arguments alone, and draw with jax.random from the key that it is given"
        )
