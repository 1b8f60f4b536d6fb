"""Labelled results on disk, with what is needed to trust and repeat them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def provenance() -> dict[str, str]:
    """Versions, platform and commit, as flat text attributes."""
    packages = ("modality-gap-simulator", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} (not installed)")
    return dict(
        versions=", ".join(versions),
        python=platform.python_version(),
        platform=f"{platform.machine()} {jax.default_backend()}",
        commit=_commit(),
    )


def _commit() -> str:
    """The commit of the repository that tracks this file ("+" for uncommitted changes to code), or "unknown".

    A package that is installed inside somebody's repository (an ignored .venv) has no commit; its version says what it is.
    """
    here = Path(__file__).resolve().parent
    # Git's own variables (of a hook, say) would name another repository than the one around this file.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run = lambda *a: subprocess.run(  # noqa: E731
        ["git", "--no-optional-locks", "-C", str(here), *a],
        capture_output=True, text=True, timeout=10, check=True, env=environment,
    ).stdout.strip()  # fmt: skip
    try:
        run("ls-files", "--error-unmatch", "--", Path(__file__).name)
        changed = run("status", "--porcelain", "--", str(here), str(here.parent / "experiments"))
        return run("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe_config(config: Any) -> Any:
    """A configuration as plain JSON values: dataclasses by name and field, callables by name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = [f.name for f in dataclasses.fields(config) if f.init]
        return {"type": type(config).__name__} | {name: describe_config(getattr(config, name)) for name in fields}
    if isinstance(config, (list, tuple)):
        return [describe_config(item) for item in config]
    if isinstance(config, functools.partial):
        described = [describe_config(config.func), [describe_config(a) for a in config.args]]
        return {"partial": [*described, {k: describe_config(v) for k, v in config.keywords.items()}]}
    if callable(config):
        name = getattr(config, "__qualname__", repr(config))
        enclosed = inspect.getclosurevars(config).nonlocals if inspect.isfunction(config) else {}
        # A schedule of optax is a function in a function: its numbers are what it encloses.
        return {"function": name, "of": describe_config(enclosed)} if enclosed else name
    if isinstance(config, dict):
        return {str(name): describe_config(value) for name, value in config.items()}
    if isinstance(config, (np.ndarray, np.generic, jax.Array)):
        return config.item() if np.ndim(config) == 0 else {"array": digest(config)}
    return config if isinstance(config, (str, int, float, bool, type(None))) else str(config)


def digest(tree: Any) -> str | None:
    """A name for a pytree of arrays by its content; None for None."""
    if tree is None:
        return None
    content = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        content.update(f"{np.shape(leaf)} {np.asarray(leaf).dtype}".encode() + np.asarray(leaf).tobytes())
    return content.hexdigest()


def require_named_functions(described: Any) -> None:
    """Raise ValueError where a described configuration holds a function that its name does not identify."""
    values = described.values() if isinstance(described, dict) else described if isinstance(described, list) else []
    for value in values:
        require_named_functions(value)
    if isinstance(described, str) and ("<lambda>" in described or " at 0x" in described):
        raise ValueError(
            f"the configuration holds the function {described}, which its name does not identify; results on disk need a "
            "function with a name of its own (def, or functools.partial of one)"
        )


@contextlib.contextmanager
def whole_file(path: Path | str) -> Generator[Path, None, None]:
    """A draft beside `path` that takes its place when the block ends without an error: whoever reads `path` finds the
    old file or all of the new one, also after a kill. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def require_writable(path: Path | str):
    """Raise OSError unless a file can be written at `path`, so that a long computation does not end on a wrong name."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}); name a file in a folder that you can write to"
        ) from error


def save_dataset(dataset: Any, path: Path) -> Path:
    """Write an xarray.Dataset as netCDF, whole or not at all."""
    with whole_file(path) as draft:
        dataset.to_netcdf(draft, engine="scipy")
    return Path(path)


def load_dataset(path: Path) -> Any:
    """Read a dataset that `save_dataset` wrote, into memory."""
    import xarray as xr

    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; run the experiment that writes it first")
    with xr.open_dataset(path, engine="scipy") as dataset:
        return dataset.load()


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """An object with these names, or ValueError."""
    try:
        made = json.loads(path.read_text())
        if not isinstance(made, dict) or not made.keys() >= set(names):
            raise ValueError(f"it must hold {', '.join(names)}")
    except ValueError as error:
        raise ValueError(f"{path} was damaged ({error}); move its folder away and run again") from error
    return made


def identify(layout: int, config) -> str:
    """A name for a configuration (JSON values) in a layout on disk."""
    return hashlib.sha256(json.dumps([layout, config], sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted names of what two JSON values differ in."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
    elif old != new:
        yield f"{where} ({old!r} there, {new!r} here)"


@contextlib.contextmanager
def said_where(path: Path) -> Generator[None, None, None]:
    """Say of which folder an error of the disk is, and that what is done is safe."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the quota is used up; free some space",
            errno.EROFS: "the file system is read-only; give a folder that can be written",
            errno.EACCES: "permission is denied; give a folder that can be written",
            errno.EPERM: "permission is denied; give a folder that can be written",
        }
        reason = reasons.get(error.errno, str(error))
        raise OSError(
            error.errno,
            f"{path} cannot be written: {reason}. What is stored there is safe; run again to continue",
        ) from error
