"""Checks on what a caller passes in: each says what was given, what was expected and how to mend it.

Values that JAX is tracing cannot be inspected, so every check lets tracers through; the caller who
builds the traced value has had it checked before the trace.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """True while JAX traces `value`, when its entries have no values to look at."""
    return isinstance(value, Tracer)


def require_number(
    name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
):
    """Raise ValueError unless `value` is one finite number with above < value, least <= value <= most."""
    if is_traced(value):
        return
    wanted = " and ".join(
        text
        for text, used in (
            (f"> {above:g}", above > -math.inf),
            (f">= {least:g}", least > -math.inf),
            (f"<= {most:g}", most < math.inf),
        )
        if used
    )
    try:
        number = math.nan if isinstance(value, (str, bytes, bool, np.bool_)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > above and least <= number <= most):
        raise ValueError(f"{name} is {value!r}; it must be a finite number {wanted}".rstrip())


def require_integer(name: str, value: Any, *, least: int = 1):
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if is_traced(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number >= {least}")


def require_boolean(name: str, value: Any):
    """Raise ValueError unless `value` is True or False; a word like "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; it must be True or False (true or false in TOML)")


def require_known(name: str, value: Any, known: Sequence[type]):
    """Raise ValueError unless `value` is of one of these classes itself: what a subclass adds would be ignored."""
    if type(value) not in known:
        raise ValueError(
            f"{name} is of class {type(value).__name__}; it must be of class {' or '.join(c.__name__ for c in known)} itself: "
            "training would ignore what another class or a subclass adds"
        )


def require_memory(what: str, dimensions: int, squares: int):
    """Raise ValueError unless this machine has memory for so many square matrices [d, d] of float64 at once."""
    needed = 8 * squares * dimensions**2
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if needed > there:
        raise ValueError(
            f"{what} takes {needed / 2**30:,.0f} GiB for matrices of {dimensions:,} × {dimensions:,}, and this machine has "
            f"{there / 2**30:,.0f} GiB; project the rows to fewer dimensions first (a random projection nearly keeps distances)"
        )


def require_one_of(name: str, value: Any, allowed: Sequence[Any]):
    """Raise ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def require_rows(name: str, value: Any):
    """Raise ValueError unless `value` is a numeric [n, d] array with n, d >= 1 and finite entries."""
    shape = np.shape(value)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; it must be [rows, dimensions] with at least one of each")
    if is_traced(value):
        return
    if hasattr(value, "toarray"):
        raise ValueError(f"{name} is sparse; it must hold every number, as {name}.toarray() does")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} has dtype {array.dtype}; it must hold real numbers")
    bad = np.flatnonzero(~np.isfinite(array.astype(np.float64, copy=False)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} has {bad.size} row(s) with NaN or infinity, the first is row {bad[0]}; "
            "remove those rows (and their partners) first"
        )


def require_same_width(gallery: Any, queries: Any, names: tuple[str, str] = ("gallery", "queries")):
    """Raise ValueError unless both arrays are valid rows in one space: [K, d] and [n, d]."""
    for name, value in zip(names, (gallery, queries), strict=True):
        require_rows(name, value)
    if np.shape(gallery)[1] != np.shape(queries)[1]:
        raise ValueError(
            f"{names[0]} has {np.shape(gallery)[1]} dimensions and {names[1]} has {np.shape(queries)[1]}; "
            "both must be embedded in one space"
        )


def require_paired(x: Any, y: Any, names: tuple[str, str] = ("x", "y")):
    """Raise ValueError unless row i of `x` can pair with row i of `y`."""
    require_same_width(x, y, names)
    if np.shape(x)[0] != np.shape(y)[0]:
        raise ValueError(
            f"{names[0]} has {np.shape(x)[0]} rows and {names[1]} has {np.shape(y)[0]}; row i of one must pair with "
            "row i of the other: pass equally many rows, or do not ask for a paired measure"
        )


def require_labels(labels: Any, *, num_queries: int, num_classes: int) -> np.ndarray:
    """Return labels as an int array [num_queries] whose entries index the gallery rows, or raise ValueError."""
    array = np.asarray(labels)
    if array.shape != (num_queries,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {array.shape} and dtype {array.dtype}; expected one whole number for each of the "
            f"{num_queries} queries"
        )
    outside = np.flatnonzero((array < 0) | (array >= num_classes))
    if outside.size:
        raise ValueError(
            f"label {array[outside[0]]} of query {outside[0]} is not a gallery row; "
            f"labels run from 0 to {num_classes - 1}"
        )
    return array
