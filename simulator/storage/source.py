"""The source of the user's code: which code is his, its syntax tree, and what it refers to."""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import dis
import functools
import hashlib
import importlib
import importlib.util
import linecache
import os
import pathlib
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
)  # known by name; `identity.environment` has their versions
DYNAMIC = ("eval", "exec", "globals", "__import__")  # what they refer to is in no source


def is_own(module: str) -> bool:
    """Whether a module is the user's: neither of Python, nor of this project, nor installed."""
    return _origin(module) is None


def named(name: str) -> str:
    """The dotted name of something in an installed library, with what its files hold where it is not one of LIBRARIES."""
    parts = name.split(".")
    module = next((m for i in range(len(parts), 0, -1) if (m := ".".join(parts[:i])) in sys.modules), parts[0])
    return " ".join(filter(None, (name, _origin(module))))


def _origin(module: str) -> str | None:
    """None for the user's; "" for Python's, this project's and LIBRARIES'; else a digest of the installed package."""
    top = module.partition(".")[0]
    if top == "__main__":
        return None
    if top in LIBRARIES or top == __name__.partition(".")[0]:
        return ""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return "" if top in sys.stdlib_module_names else None
    if {"site-packages", "dist-packages"} & {*pathlib.Path(file).parts}:
        return _contents(top)
    return "" if pathlib.Path(file).is_relative_to(pathlib.Path(os.__file__).parent) else None


@functools.cache
def _contents(package: str) -> str:
    """A digest of the Python files of an installed package."""
    module = sys.modules[package] if package in sys.modules else importlib.import_module(package)
    folders = [pathlib.Path(folder) for folder in getattr(module, "__path__", ())]
    files = [(f.relative_to(folder).as_posix(), f) for folder in folders for f in folder.rglob("*.py")]
    if not folders and module.__file__:
        files = [(package, pathlib.Path(module.__file__))]
    content = hashlib.sha256()
    for name, file in sorted(files):
        content.update(name.encode() + file.read_bytes())
    return content.hexdigest()[:16]


def library_name(value: Any) -> str | None:
    """The name under which a callable object of a library can be imported, or None."""
    is_own_code = isinstance(value, types.FunctionType) and is_own(value.__globals__.get("__name__", ""))
    if isinstance(value, type) or not callable(value) or is_own_code:
        return None
    if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)):
        module, name = value.__objclass__.__module__, value.__qualname__
    else:
        module, name = (
            getattr(value, "__module__", None),
            getattr(value, "__qualname__", getattr(value, "__name__", None)),
        )
    for module_name in (module, "numpy", "scipy.special"):  # ufuncs do not say where they are
        place: Any = sys.modules.get(module_name) if isinstance(module_name, str) else None
        for part in name.split(".") if isinstance(name, str) else ():
            place = getattr(place, part, None)
        if place is value and not is_own(str(module_name)):
            return named(f"{module_name}.{name}")
    return None


@functools.lru_cache(maxsize=4096)
def definition(code: types.CodeType) -> tuple[str, ast.AST] | str:
    """(digest, syntax tree) of the definition of a function, or why there is none."""
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    without = "which has no source (typed at a prompt, or made by exec); write it in a file"
    if not text:
        return without
    inherited = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
    tree, compiled = _parsed(text, code.co_filename, code.co_flags & inherited)
    nodes: list[Any] = [node for node in ast.walk(tree) if _may_define(node, code)] if code in compiled else []
    if len(nodes) > 1:  # lambdas in one line: the innermost whose body holds all that was compiled
        places = [p for p in code.co_positions() if None not in p and (p[0], p[2]) != (p[1], p[3])]
        nodes = [node for node in nodes if places and all(_holds(node.body, place) for place in places)]
        nodes = [node for node in nodes if not any(_holds(node.body, _span(other)) for other in nodes)]
    if (
        len(nodes) != 1
    ):  # all that exec makes is of the file <string>, and so may be a program given on the command line
        return (
            without
            if code.co_filename.startswith("<")
            else f"whose source in {code.co_filename} is no longer what was loaded; start Python again"
        )
    return hashlib.sha256(repr(_normal(nodes[0])).encode()).hexdigest()[:16], nodes[0]


@functools.lru_cache(maxsize=64)
def _parsed(text: str, file: str, flags: int) -> tuple[ast.AST, frozenset[types.CodeType]]:
    """The syntax tree of a file, and everything in it that was compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
            whole = compile(text, file, "exec", flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        except (SyntaxError, ValueError):
            return ast.Module([], []), frozenset()
    return tree, frozenset(_inside(whole))


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _inside(constant)


def _may_define(node: ast.AST, code: types.CodeType) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name == code.co_name and min([node, *node.decorator_list], key=_span).lineno == code.co_firstlineno
    return isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno


def _span(node) -> tuple[int, int, int, int]:
    """(first line, last line, first column, last column), as code objects order them."""
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _holds(node, place) -> bool:
    first, last, begin, end = _span(node)
    return (first, begin) <= (place[0], place[2]) and (place[1], place[3]) <= (last, end)


def _normal(node: Any) -> Any:
    """A syntax tree as nested tuples, alike for every version of Python, without docstrings."""
    if isinstance(node, list):
        return tuple(_normal(item) for item in node)
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    kept = {n: v for n, v in fields.items() if n not in ("ctx", "kind", "type_comment") and v is not None and v != []}
    return type(node).__name__, *((name, _normal(value)) for name, value in kept.items())


def references(function: types.FunctionType, tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a function takes from outside: of the user's modules, which parts."""
    names = set(_globals(function.__code__))
    bound = {name: function.__globals__[name] for name in names if name in function.__globals__}
    yield from ((name, getattr(builtins, name)) for name in names.difference(bound).intersection(DYNAMIC))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= _imported(node, function.__globals__)
    whole = {
        name: value for name, value in bound.items() if isinstance(value, types.ModuleType) and is_own(value.__name__)
    }
    yield from ((name, value) for name, value in bound.items() if name not in whole)
    yield from _parts(tree, whole)


def _globals(code: types.CodeType) -> Iterator[str]:
    for inside in _inside(code):
        for instruction in dis.get_instructions(inside):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                yield instruction.argval


def _imported(node: ast.Import | ast.ImportFrom, scope: dict[str, Any]) -> dict[str, Any]:
    """What an import inside a function binds; what is not installed binds nothing."""
    found = {}
    for alias in node.names:
        with contextlib.suppress(ImportError, AttributeError):
            if isinstance(node, ast.Import):
                module = importlib.import_module(alias.name)
                found[alias.asname or alias.name.partition(".")[0]] = (
                    module if alias.asname else sys.modules[alias.name.partition(".")[0]]
                )
                continue
            package = scope.get("__package__") or scope.get("__name__", "").rpartition(".")[0]
            place = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            module = importlib.import_module(place)
            with contextlib.suppress(ImportError):  # of a submodule, or a name in the module
                importlib.import_module(f"{place}.{alias.name}")
            found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def _parts(node: ast.AST, modules: dict[str, types.ModuleType]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what is taken from modules; a module that is passed on whole is the value itself."""
    inner, path = node, []
    while isinstance(inner, ast.Attribute):
        inner, path = inner.value, [inner.attr, *path]
    if not isinstance(inner, ast.Name) or inner.id not in modules:
        for child in ast.iter_child_nodes(node):
            yield from _parts(child, modules)
        return
    name, value = inner.id, modules[inner.id]
    for part in path:
        if not isinstance(value, types.ModuleType) or not is_own(value.__name__):
            break
        if not hasattr(value, part):
            return  # an error when it runs
        name, value = f"{name}.{part}", getattr(value, part)
    yield name, value
