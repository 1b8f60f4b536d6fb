"""Programs in processes of their own: how they are started, and what they leave."""

import os
from pathlib import Path

import numpy as np

from simulator.engine import cache_folder

COMPILED = cache_folder() / "tests"  # a folder of the user, so that clones share it
ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def finish(process):
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out


def load(tmp_path, name="out"):
    with np.load(tmp_path / f"{name}.npz") as file:
        return dict(file)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
