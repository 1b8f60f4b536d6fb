"""Labelled results on disk, with what is needed to trust and repeat them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simulator.validation import require_rows


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
    """The commit of the checkout this code runs from ("+" for uncommitted changes to code), or "unknown"."""
    here = Path(__file__).resolve().parent
    run = lambda *a: subprocess.run(  # noqa: E731
        ["git", "-C", str(here), *a], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
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
        return getattr(config, "__qualname__", repr(config))
    return config if isinstance(config, (str, int, float, bool, type(None))) else str(config)


def require_named_functions(described: Any) -> None:
    """Raise ValueError where a described configuration holds a function that its name does not identify."""
    values = described.values() if isinstance(described, dict) else described if isinstance(described, list) else []
    for value in values:
        require_named_functions(value)
    if isinstance(described, str) and "<lambda>" in described:
        raise ValueError(
            f"the configuration holds the function {described}, which its name does not identify; results on disk need a "
            "function with a name of its own (def, or functools.partial of one)"
        )


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def save_dataset(dataset: Any, path: Path) -> Path:
    """Write an xarray.Dataset as netCDF, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        dataset.to_netcdf(draft, engine="scipy")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load_dataset(path: Path) -> Any:
    """Read a dataset that `save_dataset` wrote, into memory."""
    import xarray as xr

    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; run the experiment that writes it first")
    with xr.open_dataset(path, engine="scipy") as dataset:
        return dataset.load()


def load_embeddings(path: Path) -> np.ndarray:
    """Rows of embeddings from a .npy file, [n, d] as float64.

    Raises:
      FileNotFoundError: no such file. ValueError: not a readable .npy file, or not finite [rows, dimensions].
    """
    path = Path(path)
    array = _load_npy(path)
    require_rows(str(path), array)
    return np.asarray(array, float)


def load_labels(path: Path) -> np.ndarray:
    """Whole numbers from a .npy file or a text file with one per line, [n]."""
    path = Path(path)
    if path.suffix == ".npy":
        return _load_npy(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return np.array([int(line) for line in path.read_text().split()])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a list of whole numbers, one per line ({error})") from error


def _load_npy(path: Path) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy array ({error}); save it with numpy.save") from error
