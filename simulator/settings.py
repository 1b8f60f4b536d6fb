"""Frozen dataclasses whose numbers are leaves of a pytree: what an experiment and its parts are.

The numbers of a registered class can be traced, swept and differentiated. Everything else that it holds (whole numbers, words,
truth values, functions) is static: it decides which program is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

Cls = TypeVar("Cls", bound=type)
_REGISTERED: set[type] = set()


@typing.dataclass_transform(frozen_default=True)
def register(cls: Cls) -> Cls:
    """The class as a frozen dataclass and a pytree, for a loss, a data source or a tower of one's own.

    Leaves are the numbers of fields annotated with `float` (or an array type), all arrays, and the leaves of registered
    classes that a field holds; a field with `metadata=dict(static=True)` is never one. The rest is static and must be hashable.
    JAX rebuilds an object from its leaves without calling `__init__` or `__post_init__`: what these check has been checked.

    Args:
      cls: a frozen dataclass, or a class with annotated fields, which becomes one.

    Returns:
      The class.

    Raises:
      TypeError: a dataclass that is not frozen, or a field with init=False (which would not follow the numbers that it is
        computed from).

    Example:
      >>> @sim.register
      ... class Scaled:
      ...     temperature: float
      ...     rows: int
      >>> jax.tree.leaves(Scaled(temperature=0.5, rows=3))
      [0.5]
    """
    if "__dataclass_fields__" not in vars(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
    elif not cast(Any, cls).__dataclass_params__.frozen:
        raise TypeError(f"{cls.__name__} is a dataclass that is not frozen; write @dataclasses.dataclass(frozen=True)")
    if derived := [field.name for field in _fields(cls) if not field.init]:
        raise TypeError(
            f"{cls.__name__}.{derived[0]} has init=False and would not follow the numbers that it is computed from; make it "
            "a property"
        )

    def flatten_with_keys(part):
        children, names, static = [], [], []
        for field in _fields(cls):
            value = getattr(part, field.name)
            if _is_dynamic(cls, field, value):
                children.append((jax.tree_util.GetAttrKey(field.name), value))
                names.append(field.name)
            else:
                static.append((field.name, value))
        return children, (tuple(names), tuple(static))

    def flatten(part):
        children, rest = flatten_with_keys(part)
        return [value for _, value in children], rest

    def unflatten(rest, children):
        names, static = rest
        return _made(cls, (*zip(names, children, strict=True), *static))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _REGISTERED.add(cls)
    return cls


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cast(Any, cls))


def _made(cls: type, fields: Iterable[tuple[str, Any]]) -> Any:
    part = object.__new__(cls)
    for name, value in fields:
        object.__setattr__(part, name, value)
    return part


def replaced(part: Any, **changes: Any) -> Any:
    """A copy of a frozen dataclass with other fields, unchecked: for values that are traced, or checked already."""
    return _made(type(part), ((f.name, changes.get(f.name, getattr(part, f.name))) for f in dataclasses.fields(part)))


def shortened(part: Any) -> str:
    """A dataclass as the call that makes it, without the fields that are at their defaults; functions by their names, arrays by
    their shapes, anything else by its repr."""
    if isinstance(part, (np.ndarray, jax.Array)) and part.ndim:
        return f"<{part.dtype} {list(part.shape)}>"
    if isinstance(part, (types.FunctionType, types.BuiltinFunctionType)) and part.__name__ != "<lambda>":
        return part.__qualname__
    if isinstance(part, tuple) and type(part) is tuple:
        return f"({', '.join(map(shortened, part))}{',' * (len(part) == 1)})"
    if isinstance(part, type) or not dataclasses.is_dataclass(part):
        return repr(part)
    fields = {f.name: f.default for f in dataclasses.fields(part) if f.init and f.repr}
    given = ((name, getattr(part, name), default) for name, default in fields.items())
    shown = [f"{name}={shortened(value)}" for name, value, default in given if not _is_same(value, default)]
    return f"{type(part).__name__}({', '.join(shown)})"


def _is_same(value: Any, default: Any) -> bool:
    if value is default or isinstance(value, (np.ndarray, jax.Array)):
        return value is default
    return type(value) is type(default) and value == default


def static_values(part: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted path, value) of what is static in a registered object and in the registered ones that it holds; of any other object,
    itself."""
    if not is_registered(part):
        yield path, part
        return
    for field in _fields(type(part)):
        value, inner = getattr(part, field.name), f"{path}.{field.name}".lstrip(".")
        if is_registered(value):
            yield from static_values(value, inner)
        elif not _is_dynamic(type(part), field, value):
            yield inner, value


def is_own_form(cls: type, special: str, general: str) -> bool:
    """Whether a class has a special form of a method that belongs to its general one: not inherited from above the class that
    defines the general one, for which it may do another thing."""
    place = lambda name: next((i for i, base in enumerate(cls.__mro__) if name in vars(base)), None)
    found, needed = place(special), place(general)
    return found is not None and needed is not None and found <= needed


def is_registered(part: Any) -> bool:
    """Whether its own class (not one that it inherits from) was registered."""
    return type(part) in _REGISTERED


def require_own_class(name: str, part: Any, methods: tuple[str, ...]) -> None:
    """Raise ValueError for a dataclass that is not registered, or one whose new fields none of its methods reads: all are those
    of the class that it inherits from."""
    if not dataclasses.is_dataclass(part):
        return
    cls = type(part)
    if not is_registered(part):
        raise ValueError(
            f"{name} is of the dataclass {cls.__name__}, which is not registered: its numbers could not be traced; write "
            "@sim.register above it"
        )
    for base in cls.__mro__[1:]:
        if not dataclasses.is_dataclass(base):
            continue
        added = {f.name for f in dataclasses.fields(cls)} - {f.name for f in dataclasses.fields(base)}
        if added and all(getattr(cls, method, None) is getattr(base, method, None) for method in methods):
            raise ValueError(
                f"{name} is of class {cls.__name__}, which adds {', '.join(sorted(added))} to {base.__name__} and has its "
                f"{' and '.join(methods)}: training would ignore what it adds; write one that uses it"
            )


def _is_dynamic(cls: type, field: dataclasses.Field, value: Any) -> bool:
    if field.metadata.get("static"):
        return False
    if isinstance(value, (np.ndarray, jax.Array)) or is_registered(value):
        return True
    if isinstance(value, tuple) and value and all(map(is_registered, value)):
        return True
    is_number = not (value is None or callable(value) or isinstance(value, (str, bool, np.bool_)))
    return is_number and field.name in number_fields(cls)


@functools.cache
def number_fields(cls: type) -> frozenset[str]:
    """Names of the fields whose annotation allows a float or an array."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # a name that is not defined where the class is, whatever it raises
        hints = {field.name: field.type for field in _fields(cls)}
    return frozenset(field.name for field in _fields(cls) if _allows_numbers(hints[field.name]))


def _allows_numbers(hint: Any) -> bool:
    if isinstance(hint, str):  # an annotation that could not be evaluated
        return any(
            part.strip().rpartition(".")[2] in ("float", "Array", "ndarray", "ArrayLike") for part in hint.split("|")
        )
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list, dict):
        return any(map(_allows_numbers, typing.get_args(hint)))
    return hint is float or (isinstance(hint, type) and issubclass(hint, (jax.Array, np.ndarray)))


def numbers(settings: Any) -> dict[str, Any]:
    """Dotted path -> leaf of a pytree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(settings)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def replace_field(config: Any, path: str, value: Any) -> Any:
    """A copy of a nested frozen dataclass with the field at a dotted path replaced, or ValueError."""
    name, _, rest = path.partition(".")
    if isinstance(config, tuple) and name.isdigit() and int(name) < len(config):
        place = int(name)
        return (*config[:place], replace_field(config[place], rest, value) if rest else value, *config[place + 1 :])
    names = (
        [field.name for field in dataclasses.fields(config) if field.init] if dataclasses.is_dataclass(config) else []
    )
    if name not in names:
        raise ValueError(
            f"{type(config).__name__} has no field {name!r}; it has {', '.join(n for n in names if n != '_') or 'none'}"
        )
    return dataclasses.replace(config, **{name: replace_field(getattr(config, name), rest, value) if rest else value})


@dataclasses.dataclass(frozen=True)
class Template:
    """Settings without their numbers: all that one compiled program depends on.

    A 0 stays in place: it switches a knob off, and what is off should cost nothing.
    """

    structure: Any
    given: tuple[str | None, ...]  # paths of the leaves in order; None for a 0

    def join(self, values: Mapping[str, Any]) -> Any:
        """The settings with values at their paths."""
        return self.structure.unflatten([0.0 if path is None else values[path] for path in self.given])


def split(
    settings: Any, varied: Mapping[str, Sequence[float] | np.ndarray] | None = None
) -> tuple[Template, dict[str, float], dict[str, Any]]:
    """(template, numbers, arrays) of a pytree: the numbers that are not 0, as floats, and its arrays, by dotted path. What is
    varied counts among the numbers, 0 or not, with the first of its values."""
    varied = varied or {}
    for path, values in varied.items():  # perhaps in place of a schedule
        settings = replace_field(settings, path, float(values[0]))
    found = numbers(settings)
    arrays = {path: leaf for path, leaf in found.items() if np.ndim(leaf)}
    given = {path: float(leaf) for path, leaf in found.items() if path not in arrays and (path in varied or leaf != 0)}
    paths = tuple(path if path in arrays or path in given else None for path in found)
    return Template(jax.tree.structure(settings), paths), given, arrays
