"""Programs in processes of their own: how they are started, and what they leave."""

import os
import subprocess
from pathlib import Path

import numpy as np

from simulator.training.devices import cache_folder

COMPILED = cache_folder() / "tests"  # a folder of the user, so that clones share it
ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def finish(process):
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return out


def run_and_count(command, **options):
    """What a program answered, and its processor time in seconds, that of its own children included: other programs on the
    machine do not lengthen it. 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return subprocess.run(command, capture_output=True, text=True, **options), 0.0
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return done, used() - before


def load(tmp_path, name="out"):
    with np.load(tmp_path / f"{name}.npz") as file:
        return dict(file)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
