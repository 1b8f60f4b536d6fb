"""What decides the numbers of a run, as plain values: settings, the source of the user's code, and the environment.

A result on disk is returned for a later call only where both are described alike. So a function of the user counts by
its source (parsed, so that comments, layout and docstrings do not matter), by its default arguments and by what it
refers to: closed-over values, and the functions, classes and constants of his modules, followed in turn. The same source
is described alike in every process and by every version of Python. Code of installed libraries goes by its name; the
versions of those that every run uses belong to `environment`, of any other its files count. What cannot be identified
in this way is marked, and `require_identified` refuses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import pathlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from simulator.storage.results import differences
from simulator.storage.source import DYNAMIC, LIBRARIES, definition, is_own, library_name, named, references
from simulator.validation import is_traced

# Raised when this project gives other numbers for the same experiment and key: what is older is then refused.
# 2: learned numbers of a loss have no weight decay; 3: swaps, wrong partners and private mixings are drawn with keys of their own
NUMBERS = 3

SETTINGS = (
    "jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion", "jax_random_seed_offset",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Versions of the libraries, the backend and those settings of JAX that decide numbers."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    settings = {name: str(getattr(jax.config, name, None)) for name in SETTINGS}  # a later JAX may not know them all
    return found | settings | dict(backend=jax.default_backend())


def describe_run(experiment: Any, key: jax.Array, params: Any) -> dict[str, Any]:
    """What the numbers of a run depend on; its environment decides whether it may be continued, not which run it is."""
    return dict(
        numbers=NUMBERS,
        experiment=describe_config(experiment),
        key=np.asarray(jax.random.key_data(key)).tolist(),
        key_kind=str(jax.random.key_impl(key)),
        params=digest(params),
        environment=environment(),
    )


def require_same_environment(path: pathlib.Path, made: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError where what was begun at `path` by one configuration would be continued in another environment."""
    if found := sorted(differences(made.get("environment"), here.get("environment"))):
        raise ValueError(
            f"{path} is not finished and was begun with other versions or settings: {', '.join(found)}. Numbers would mix; "
            "continue it with those, or give another folder"
        )


def describe_config(config: Any) -> Any:
    """A configuration as plain JSON values: dataclasses by name and field, arrays by their content, code as the module
    says. What cannot be identified is {"unidentified": why}."""
    try:
        return _describe(config, {})
    except RecursionError:
        return _unidentified("holds a value that contains itself; break the circle")


def require_identified(described: Any, where: str = "the configuration") -> None:
    """Raise ValueError where something in a described configuration could not be identified."""
    if isinstance(described, dict):
        if "unidentified" in described:
            raise ValueError(f"results on disk need to know what made them, but {where} {described['unidentified']}")
        for name, value in described.items():
            require_identified(value, name if where == "the configuration" else f"{where}.{name}")
    elif isinstance(described, list):
        for number, value in enumerate(described):
            require_identified(value, f"{where}[{number}]")


def label(described: Any) -> Any:
    """A described value as a coordinate: numbers and text as they are, code by its name, the rest as JSON."""
    short = _without_code(described)
    if isinstance(short, dict) and len(short) == 1 and (name := short.get("function", short.get("class"))):
        return name.rpartition(".")[2]
    return short if np.isscalar(short) else json.dumps(short)


def _without_code(described: Any) -> Any:
    if isinstance(described, dict):
        hidden = ("source", "uses", "of_class") if described.keys() & {"function", "type"} else ("bases", "members")
        return {name: _without_code(value) for name, value in described.items() if name not in hidden}
    return [_without_code(value) for value in described] if isinstance(described, list) else described


def digest(tree: Any) -> str | None:
    """A name for a pytree of arrays by its content; None for None."""
    if tree is None:
        return None
    content = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        content.update(f"{np.shape(leaf)} {np.asarray(leaf).dtype}".encode() + np.asarray(leaf).tobytes())
    return content.hexdigest()


def _unidentified(why: str) -> dict[str, str]:
    return {"unidentified": why}


_AS_TEXT = (
    complex, bytes, range, slice, fractions.Fraction, decimal.Decimal, datetime.date, datetime.timedelta, re.Pattern,
    np.dtype, type(...), type(NotImplemented), types.GenericAlias, types.UnionType,
)  # fmt: skip


def _describe(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """`seen` numbers the code that was described, by id, and keeps it alive: what comes again is named by its number."""
    inner = functools.partial(_describe, seen=seen)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value, inner)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, _AS_TEXT) or type(value).__module__ == "typing":
        return repr(value)
    if isinstance(value, logging.Logger):
        return f"logger {value.name}"
    if isinstance(value, inspect.Signature):  # the defaults belong to the function
        return list(value.parameters)
    if isinstance(value, functools.partial):
        arguments = {name: inner(v) for name, v in value.keywords.items()}
        return {"partial": [inner(value.func), [inner(a) for a in value.args], arguments]}
    if isinstance(value, nnx.Variable):
        return {"type": type(value).__name__, "values": [inner(leaf) for leaf in jax.tree.leaves(value)]}
    if not isinstance(value, type):
        if dataclasses.is_dataclass(value):
            names = [f.name for f in dataclasses.fields(value) if f.init]
            fields = {name: inner(getattr(value, name)) for name in names}
            return {"type": type(value).__name__} | fields | _of_class(value, inner)
        if (held := _held(value, inner)) is not None:
            own = _of_class(value, inner)
            return {"type": type(value).__name__, "values": held} | own if own else held
    return _code(value, seen)


def _array(value, inner) -> Any:
    if is_traced(value):
        return _unidentified("holds a value that JAX is tracing; describe it outside of jit, grad and vmap")
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": jax.random.key_data(value).tolist(), "kind": str(jax.random.key_impl(value))}
    if value.dtype == object:
        return inner(value.tolist())
    return value.item() if np.ndim(value) == 0 else {"array": digest(value)}


def _held(value, inner) -> Any:
    """The items of a container, or None."""
    if isinstance(value, Mapping):
        # `exec` puts Python's own names into its namespace, and an interactive session puts what it showed last among them.
        return {str(name): inner(item) for name, item in value.items() if name != "__builtins__"}
    if isinstance(value, (set, frozenset)):
        return sorted((inner(item) for item in value), key=json.dumps)
    return [inner(item) for item in value] if isinstance(value, (list, tuple)) else None


def _of_class(value, inner) -> dict[str, Any]:
    """The class of an instance where it is the user's: its methods count."""
    return {"of_class": inner(type(value))} if is_own(type(value).__module__) else {}


def _code(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """Functions, classes, modules, and instances of classes without fields."""
    inner = functools.partial(_describe, seen=seen)
    if isinstance(value, types.ModuleType):
        if is_own(value.__name__):
            return _unidentified(
                f"uses the module {value.__name__} as a value; name what it needs, as {value.__name__}.f"
            )
        return {"module": named(value.__name__)}
    if isinstance(value, types.MethodType):
        return {"method": inner(value.__func__), "self": inner(value.__self__)}
    if isinstance(value, (classmethod, staticmethod)):
        return inner(value.__func__)
    if isinstance(value, property):
        return [inner(function) for function in (value.fget, value.fset)]
    if name := library_name(value):
        return {"function": name}
    if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
        return {"method": value.__name__, "self": inner(value.__self__)}
    if id(value) in seen:
        return {"again": seen[id(value)][0]}
    seen[id(value)] = (len(seen), value)
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if isinstance(value, type):
        return _class(value, inner)
    return _instance(value, inner)


def _function(function: types.FunctionType, inner) -> dict[str, Any]:
    code, module = function.__code__, function.__globals__.get("__name__", "")
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    enclosed = {}
    for name, cell in sorted(cells, key=lambda pair: pair[0]):
        with contextlib.suppress(ValueError):  # an empty cell
            enclosed[name] = inner(cell.cell_contents)
    of = {"of": enclosed} if enclosed else {}
    if not is_own(module):
        return {"function": named(f"{module}.{code.co_qualname}")} | of
    found = definition(code)
    if isinstance(found, str):
        return _unidentified(f"holds the function {code.co_qualname}, {found}")
    defaults = {name: inner(value) for name, value in _defaults(function)}
    taken = dict(references(function, found[1]))
    if dynamic := sorted(name for name in DYNAMIC if name in taken):
        return _unidentified(
            f"holds the function {code.co_qualname}, which calls {dynamic[0]}; write out what it needs"
        )
    uses = {name: inner(taken[name]) for name in sorted(taken)}
    more = {"defaults": defaults, "attributes": {n: inner(v) for n, v in vars(function).items() if n != "__wrapped__"}}
    return {"function": code.co_qualname, "source": found[0]} | of | {
        name: part for name, part in (more | {"uses": uses}).items() if part
    }  # fmt: skip


def _defaults(function) -> Iterator[tuple[str, Any]]:
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    given = function.__defaults__ or ()
    yield from zip(positional[len(positional) - len(given) :], given, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


# What Python, decorators and libraries make of a class's body or keep in it; nothing of it decides a number.
_MADE = re.compile(
    "__(module|doc|dict|weakref|qualname|annotate.*|conditional_annotations|subclasshook|repr|str|replace)__|_(abc|pytree_)_.*"
)


def _class(cls: type, inner) -> dict[str, Any]:
    if not is_own(cls.__module__):
        return {"class": named(f"{cls.__module__}.{cls.__qualname__}")}
    fields = {}
    if "__dataclass_fields__" in vars(cls):
        made = ("default", "default_factory", "init", "kw_only")
        for field in dataclasses.fields(cast(Any, cls)):
            values = {name: getattr(field, name) for name in made}
            fields[field.name] = {n: inner(v) for n, v in values.items() if v is not dataclasses.MISSING}
    members = {}
    for name, member in sorted(vars(cls).items()):
        is_data = not callable(member) and not isinstance(member, (classmethod, staticmethod, property))
        is_slot = isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType))
        if is_slot or _MADE.fullmatch(name) or (is_data and name.startswith("__")) or _is_generated(cls, name, member):
            continue
        members[name] = inner(member)
    bases = [inner(base) for base in (*cls.__bases__, type(cls)) if base not in (object, type)]
    parts = dict(bases=bases, fields=fields, members=members)
    return {"class": cls.__qualname__} | {name: part for name, part in parts.items() if part}


def _is_generated(cls: type, name: str, member: Any) -> bool:
    """Whether a dataclass or a named tuple has this from its fields."""
    of_tuple = ("_make", "_replace", "_asdict", "__getnewargs__", *getattr(cls, "_fields", ()))
    if hasattr(cls, "_fields") and name in of_tuple:
        return True
    by_exec = isinstance(member, types.FunctionType) and member.__code__.co_filename.startswith("<string>")
    has_fields = hasattr(cls, "_fields") or dataclasses.is_dataclass(cls)
    return has_fields and by_exec and isinstance(definition(member.__code__), str)


class _Plain:
    """An instance of a class that is written in Python has the size of one of this, and of its slots."""


def _instance(value: Any, inner) -> Any:
    cls = type(value)
    if cls is object:
        return "object"
    name = f"{cls.__module__}.{cls.__qualname__}"
    # Python's classes keep what they hold in slots and __dict__; others are larger, or have neither.
    slots = [_mangled(c, s) for c in cls.__mro__ for s in _listed(vars(c).get("__slots__", ()))]
    readable = hasattr(value, "__dict__") or any("__slots__" in vars(c) for c in cls.__mro__)
    if not readable or cls.__itemsize__ or cls.__basicsize__ > _Plain.__basicsize__ + 8 * len(slots):
        wrapped = getattr(value, "__wrapped__", None)
        if callable(value) and wrapped is not None and not is_own(cls.__module__):  # jax.jit, functools.lru_cache
            return {"wrapped": named(name), "function": inner(wrapped)}
        return _unidentified(f"holds a {name}, whose content cannot be read; pass plain numbers, arrays or functions")
    state = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)} | getattr(value, "__dict__", {})
    state = {n: inner(v) for n, v in sorted(state.items()) if not n.startswith(("_pytree__", "_object__", "__"))}
    return {"type": cls.__name__ if is_own(cls.__module__) else named(name)} | state | _of_class(value, inner)


def _mangled(cls: type, slot: str) -> str:
    return f"_{cls.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot


def _listed(names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
