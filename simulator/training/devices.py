"""Devices of this process: one per core, full vectors, and compiled programs kept on disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import jax

from simulator.training.compiler import use_flags


def use_all_cores(*, only_sweeps: bool = False, least: int = 1) -> None:
    """Set JAX up as the command `gapsim` does: one device per core, full vectors, compiled programs kept in the cache folder.

    Only possible before JAX computes anything in this process; where it has begun, it keeps the devices that it has.

    Args:
      only_sweeps: no device ever helps another with its matrix products.
      least: number of devices, also on fewer cores.

    Raises:
      ValueError: JAX finds no device, as `require_device` says.
    """
    flags = ["--xla_cpu_prefer_vector_width=512"] + ["--xla_cpu_multi_thread_eigen=false"] * only_sweeps
    use_flags(*flags, memory=cache_folder() / "xla_flags.json")
    # Not os.cpu_count(): a cluster grants a job some of a node's cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX is in use already: keep the devices it has
        jax.config.update("jax_num_cpu_devices", max(least, cores or 1))
    if not jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        with contextlib.suppress(OSError):  # a home that cannot be written: programs are compiled again
            folder = cache_folder() / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    require_device()


def require_device() -> None:
    """Raise ValueError where JAX has nothing to compute on, before the work."""
    try:
        jax.devices()
    # Of several kinds: `cuda` without its plugin is a bare AssertionError in JAX 0.10 to 0.12.
    except Exception as error:
        reason = str(error) or "the plugin of that platform is not installed"
        wanted = jax.config.jax_platforms  # ty: ignore[missing-attribute]
        raise ValueError(
            f"JAX finds no device {wanted!r} here ({reason}); set JAX_PLATFORMS to cpu, or leave it empty"
        ) from error


def cache_folder() -> Path:
    """Where compiled programs and what was measured are kept: $XDG_CACHE_HOME/gapsim, or ~/.cache/gapsim. For a user
    without a home a place where every access is an OSError, as in a home that cannot be written: nothing is kept."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapsim"
    except RuntimeError:  # a uid without an entry in passwd, and no HOME
        return Path(os.devnull) / "gapsim"
