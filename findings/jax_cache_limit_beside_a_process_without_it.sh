#!/usr/bin/env bash
# One program that a process without jax_compilation_cache_max_size has kept stops every process with it from keeping anything.
#
# Seen with jax 0.10.2 (Python 3.11), the last that Python 3.11 can have, on a CPU; jax 0.12.0.1 keeps them. Two processes share jax_compilation_cache_dir. The first sets
# no limit, which is the default, and keeps its program, without the file of its last use that the limit needs. The second sets
# a limit of 1 GB and compiles another program: JAX warns "Error writing persistent compilation cache entry ... FileNotFoundError ...
# -atime", keeps nothing, and does so at every program, however little the folder holds. With the limit in both, or in neither,
# both programs are kept. So all processes of a folder need the same choice, also those that a test or a job starts.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 filelock==3.20.0
cat >"$folder/program.py" <<'PYTHON'
import sys
import warnings

import jax
import jax.numpy as jnp

folder, limit, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_compilation_cache_max_size", limit)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(lambda x: jnp.cos(x) * 3.0)(jnp.ones(size)).block_until_ready()
lost = [str(w.message) for w in caught if "FileNotFoundError" in str(w.message) and "-atime" in str(w.message)]
print(f"jax {jax.__version__}, limit {limit}: {len(lost)} programs not kept")
PYTHON
# The programs kept after a process with the first limit and then one with the second (-1: none).
kept() {
  local cache="$folder/cache$1$2"
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/program.py" "$cache" "$1" 3 >&2
  local before=$(find "$cache" -name '*-cache' | wc -l)
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/program.py" "$cache" "$2" 5 >&2
  echo $(($(find "$cache" -name '*-cache' | wc -l) - before))
}
mixed=$(kept -1 1000000000)
limited=$(kept 1000000000 1000000000)
without=$(kept -1 -1)
echo "kept by the second process: $mixed beside one without a limit, $limited with a limit in both, $without without one"
[ "$mixed" = 0 ] && [ "$limited" -gt 0 ] && [ "$without" -gt 0 ]
