"""Settings of every test: 64-bit, strict broadcasting, no display, Ctrl-C heard."""

import contextlib
import ctypes
import gc
import os
import re
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

from simulator.training.compiler import use_flags
from simulator.training.engine import release_programs
from tests.processes import COMPILED

# Most of the time here is compiling: half the effort of the compiler is enough for small arrays. JAX reads this when it computes first.
FAST_COMPILING = ("--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=1")
use_flags(*FAST_COMPILING, memory=COMPILED / "xla_flags.json")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# Shells start background jobs with Ctrl-C ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What one process compiled serves the others, the next run and the next clone: most of a first run is compiling.
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


KEPT = 2_000_000_000  # bytes of compiled programs; JAX's own limit keeps nothing once a process without it has written


def pytest_sessionstart(session):
    """What was written longest ago goes first."""
    if hasattr(session.config, "workerinput"):
        return
    with contextlib.suppress(OSError):
        files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in COMPILED.iterdir())
        for (_, _, file), left in zip(files, np.cumsum([size for _, size, _ in files][::-1])[::-1], strict=True):
            if left > KEPT:
                file.unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile, a claim of the battery goes to the worker of its own file, which asks for the same measurement."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class WithItsFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return super()._split_scope(re.sub(r"test_every_claim\.py::test_claim\[(\w+)\]", r"test_\1.py", nodeid))

    return WithItsFile(config, log)


ROOM = 1_000_000_000  # bytes that a process may keep after a test; 2 GB are for the largest test on top


@pytest.fixture(autouse=True)
def _room_for_programs():
    """Compiled programs, some 20 MB each, are forgotten before they fill memory or the maps that a process is granted."""
    yield
    release_programs()
    if resident_bytes() > ROOM:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real embeddings; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("GAPSIM_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not (folder / "clip_gallery.npy").exists():
        pytest.skip(f"no real embeddings in {folder}; set GAPSIM_DATA to the folder that holds clip_gallery.npy")
    return folder


@pytest.fixture
def pinned_drawing():
    """Skips unless what draws is of the pinned version: others write other bytes."""
    root = Path(__file__).parents[1]
    pins = root / "constraints" / f"py{sys.version_info[0]}{sys.version_info[1]}.txt"
    lines = pins.read_text().splitlines() if pins.exists() else []
    for package in ("matplotlib", "pillow"):
        if f"{package}=={version(package)}" not in lines:
            pytest.skip(f"{package} {version(package)} is not pinned in {pins.name}: other bytes are expected")
