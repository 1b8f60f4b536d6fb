"""A sweep written as TOML, and changes to it from the command line."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import optax

import simulator as sim
from simulator.settings import replace_field

# What a table may be, by its `type`; the first is the default.
TYPES = dict(
    data=(sim.LatentPairs, sim.Digits, sim.MultipleFeatures, sim.SpelledWords),
    loss=(sim.InfoNCE, sim.Sigmoid, sim.LabeledInfoNCE, sim.Spectral),
    encoder_x=(sim.MLP, sim.Linear, sim.Table),
    encoder_y=(sim.MLP, sim.Linear, sim.Table),
    start=(sim.Cones,),
)


OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def read_sweep(path: Path, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of `sim.sweep` from a TOML file.

    The file holds `seeds` and `key` (whole numbers), the fields of `sim.Experiment` (tables for nested ones; a table's
    `type` names the class: "MLP", "Linear", "Table", "LatentPairs", "Digits", "MultipleFeatures",
    "SpelledWords", "InfoNCE",
    "Sigmoid", "LabeledInfoNCE", "Spectral", or one's own as
    "module:Class", the module in the file's folder or installed; `encoder_others` a list of such tables; `start = "none"` for no cones; a number of a loss
    `{ learned = 0.1 }` with the fields of `sim.Learned`; `optimizer` a function of optax; functions of one's own as
    "module:function"), and a table `over` of lists by dotted field.

    Args:
      path: the file.
      changes: "dotted.field=value" each, in TOML's notation, taken after the file.

    Raises:
      FileNotFoundError, ValueError: no such file, not TOML, unknown fields, values that a field does not allow.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        settings = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    for change in changes:
        _apply(settings, change)
    over, seeds, key = settings.pop("over", {}), settings.pop("seeds", 8), settings.pop("key", 0)
    if not isinstance(over, dict) or not all(isinstance(values, list) for values in over.values()):
        raise ValueError(f'{path}: [over] must map dotted fields to lists, like "loss.temperature" = [0.01, 0.1]')
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**32:
        raise ValueError(f"{path}: key is {key!r}; it must be a whole number from 0 to 2³² − 1")
    default = sim.Experiment()
    for name in settings.keys() - {field.name for field in dataclasses.fields(default)}:
        replace_field(default, name, None)  # says which names there are
    values = {name: _value(name, value, getattr(default, name), path.parent) for name, value in settings.items()}
    experiment = dataclasses.replace(default, **values)  # at once: what its parts must agree on is checked of the whole
    for field in over.keys() & vars(experiment).keys():  # a dotted one is a number, or checked by its class
        over[field] = [_value(field, value, getattr(experiment, field), path.parent) for value in over[field]]
    return dict(experiment=experiment, over=over, seeds=seeds, key=jax.random.key(key))


def _imported(name: str, text: str, folder: Path) -> Any:
    """What "module:name" stands for; the module may lie beside the file."""
    module, _, attribute = text.partition(":")
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    try:
        found = importlib.import_module(module)
        part = getattr(found, attribute)
    except Exception as error:  # whatever importing the user's module raises
        raise ValueError(f"{name} is {text!r}, which cannot be imported: {type(error).__name__}: {error}") from error
    beside, there = folder.resolve() / f"{module.replace('.', '/')}.py", getattr(found, "__file__", None)
    if beside.exists() and (there is None or Path(there).resolve() != beside):
        raise ValueError(
            f"{name} is {text!r}, and {module} is {there} already, not {beside}; give the file another name"
        )
    return part


def _number(table: str, field: str, value: Any) -> Any:
    """A number of a loss, which may be learned."""
    if table != "loss" or not isinstance(value, dict):
        return value
    if "learned" not in value:
        raise ValueError(f"loss.{field} is {value!r}; write a number or {{ learned = 0.1 }}")
    try:
        return sim.Learned(value["learned"], **{name: inner for name, inner in value.items() if name != "learned"})
    except TypeError as error:
        raise ValueError(f"loss.{field}: {error}") from error


def _apply(settings: dict[str, Any], change: str) -> None:
    """Set one dotted field of parsed TOML."""
    field, is_set, text = change.partition("=")
    if not is_set:
        raise ValueError(f"{change!r} changes nothing; write field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # Python's spelling of a truth value, or a word without quotes.
        value = {"True": True, "False": False}.get(text.strip(), text)
    *tables, name = field.split(".") if not field.startswith("over.") else ("over", field.removeprefix("over."))
    for table in tables:
        settings = settings.setdefault(table, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{change!r}: {table} is not a table")
    settings[name] = value


def _value(name: str, value: Any, current: Any, folder: Path) -> Any:
    """A field of Experiment from its TOML value."""
    if name == "encoder_others" and isinstance(value, list):
        return tuple(_value("encoder_x", tower, sim.MLP(), folder) for tower in value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and OWN.fullmatch(value):
        return _imported(name, value, folder)
    if name == "optimizer":
        try:
            makes_one = isinstance(getattr(optax, value)(1e-3), optax.GradientTransformation)
        except Exception:  # whatever a function of optax says of being called like this
            makes_one = False
        if not makes_one:
            raise ValueError(f"optimizer is {value!r}; it must be an optimizer of optax, like 'adam' or 'sgd'")
        return getattr(optax, value)
    if name == "start" and value == "none":
        return None
    if name in TYPES and isinstance(value, dict):
        value = {field: _number(name, field, inner) for field, inner in value.items()}
        known = {cls.__name__: cls for cls in TYPES[name]}
        chosen = value.pop("type", type(current).__name__ if type(current) in TYPES[name] else next(iter(known)))
        if isinstance(chosen, str) and OWN.fullmatch(chosen):
            known = {chosen: _imported(f"{name}.type", chosen, folder)}
        if not isinstance(chosen, str) or chosen not in known:
            raise ValueError(f"{name}.type is {chosen!r}; it must be one of {', '.join(known)}, or module:Class")
        value: dict[str, Any] = {f: tuple(inner) if isinstance(inner, list) else inner for f, inner in value.items()}
        if type(current).__name__ != chosen:
            try:
                return known[chosen](**value)
            except TypeError as error:
                raise ValueError(f"{name}, of type {chosen}: {error}") from error
    if not isinstance(value, dict):
        if dataclasses.is_dataclass(current) or name in TYPES:
            fields = ", ".join(
                f.name for f in dataclasses.fields(current or TYPES[name][0]) if f.init and f.name != "_"
            )
            raise ValueError(f"{name} is {value!r}; it must be a table, with some of {fields}")
        return value
    for field, inner in value.items():
        current = replace_field(current, field, inner)
    return current
