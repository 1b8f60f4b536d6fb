#!/usr/bin/env bash
# A float64 array of JAX keeps its 64 bits outside of enable_x64, but np.sum and np.mean of it are computed in float32.
#
# Seen with jax 0.10.2 (Python 3.11) and 0.12.0.1 (3.13) on a CPU, NumPy 2.4.6: an array made under jax.enable_x64(True) holds 2²⁴,
# 1, 1, 2. After the block its dtype is float64 and a + a is float64 and exact, but a + 1 is float32, and np.sum(a), which NumPy
# hands to JAX, is 16,777,218 and a float32; the sum is 16,777,220, which np.sum(np.asarray(a)) gives. JAX warns that float64 is
# truncated. What leaves the block is best made an array of NumPy first.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
jax=$("$folder/venv/bin/python" -c 'import sys; print("0.10.2" if sys.version_info < (3, 12) else "0.12.0.1")')
"$folder/venv/bin/pip" install --quiet jax=="$jax" jaxlib=="$jax" numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np

with jax.enable_x64(True):
    a = jnp.asarray(np.array([2.0**24, 1.0, 1.0, 2.0]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    twice, more, total = a + a, a + 1, np.sum(a)
exact = np.sum(np.asarray(a))
print(f"jax {jax.__version__}, numpy {np.__version__}: a is {a.dtype}, a + a {twice.dtype}, a + 1 {more.dtype}, np.sum(a) {total.dtype}")
print(f"np.sum(a) = {float(total):.0f}, np.sum(np.asarray(a)) = {float(exact):.0f}, warnings: {len(caught)}")
same = a.dtype == twice.dtype == np.float64 and more.dtype == total.dtype == np.float32
same &= float(exact) == 2**24 + 4 and float(total) == 2**24 + 2 and any("truncated" in str(w.message) for w in caught)
sys.exit(0 if same else 1)
PYTHON
