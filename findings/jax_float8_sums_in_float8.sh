#!/usr/bin/env bash
# JAX sums float16 and bfloat16 arrays in float32, but float8 arrays in float8.
#
# Seen with jax 0.10.2 (Python 3.11) and 0.12.0.1 (3.13) on a CPU, ml_dtypes 0.6.0: the sum of 4,096 halves is 2,048. As float16 and
# bfloat16, jnp.sum says 2,048. As float8_e5m2 it says 128: the running sum stops growing where a half is less than its spacing; as
# float8_e4m3fn NaN, past 448. jnp.mean of 65,536 squares of one half in float8_e5m2 is 0, not .25. A product with
# preferred_element_type=float32 is right, so a mean square is best taken as one, or of a float32 copy.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
jax=$("$folder/venv/bin/python" -c 'import sys; print("0.10.2" if sys.version_info < (3, 12) else "0.12.0.1")')
"$folder/venv/bin/pip" install --quiet jax=="$jax" jaxlib=="$jax" ml_dtypes==0.6.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import jax
import jax.numpy as jnp

found = {}
for dtype in (jnp.float16, jnp.bfloat16, jnp.float8_e5m2, jnp.float8_e4m3fn):
    halves = jnp.full(4_096, 0.5, dtype)
    product = jnp.matmul(halves[None], halves[:, None], preferred_element_type=jnp.float32)
    found[dtype.__name__] = float(halves.sum()), float(product[0, 0])
    print(f"jax {jax.__version__} {dtype.__name__}: sum {found[dtype.__name__][0]} (2048), product {float(product[0, 0])} (1024)")
square = float(jnp.mean(jnp.full(65_536, 0.5, jnp.float8_e5m2) ** 2))
print("mean square in float8_e5m2:", square, "(0.25)")
same = all(found[name] == (2048, 1024) for name in ("float16", "bfloat16"))
same &= found["float8_e5m2"] == (128, 1024) and math.isnan(found["float8_e4m3fn"][0]) and square == 0
sys.exit(0 if same else 1)
PYTHON
