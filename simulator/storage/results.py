"""Labelled results on disk, with what is needed to trust and repeat them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax

from simulator.storage.files import whole_file


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
    file = Path(__file__).resolve()
    package = file.parents[1]
    # Git's own variables (of a hook, say) would name another repository than the one around this file.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run = lambda *a: subprocess.run(
        ["git", "--no-optional-locks", "-C", str(file.parent), *a],
        capture_output=True, text=True, timeout=10, check=True, env=environment,
    ).stdout.strip()  # fmt: skip
    try:
        run("ls-files", "--error-unmatch", "--", file.name)
        changed = run("status", "--porcelain", "--", str(package), str(package.with_name("experiments")))
        return run("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


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


def identify(layout: int, config: dict[str, Any]) -> str:
    """A name for a configuration (JSON values, but for its `environment`) in a layout on disk."""
    named = {name: value for name, value in config.items() if name != "environment"}
    return hashlib.sha256(json.dumps([layout, named], sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted names of what two JSON values differ in, but for their `environment`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (old.keys() | new.keys()) - {"environment"}:
            place = f"{where}.{name}" if where else name
            if name == "source" and old.get(name) != new.get(name):
                yield f"{where} (the source of {old.get('function')} was edited)"
            else:
                yield from differences(old.get(name), new.get(name), place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif old != new:
        yield f"{where} ({_short(old)} there, {_short(new)} here)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
