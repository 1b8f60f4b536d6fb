#!/usr/bin/env bash
# JAX 0.10.2 and 0.12.0.1: the checker of random keys (jax.debug_key_reuse) refuses a key that is drawn from or split twice, and
# says nothing of one that is split and also folded. Since split and fold_in were made symmetric (with threefry as it is set today)
# split(key, n)[i] is fold_in(key, i), so two independent streams, as they look, are one: here both normal numbers are equal to the
# bit. We expected the checker to find equal keys, or the documentation of fold_in to name the rule: fold in what lies beyond
# what is split.
# Expected output: "refused" twice, "passed" twice with True for equal numbers; exit 0. Exit 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/keys.py" <<'PYTHON'
import sys

import jax


def drawn_twice(key):
    return jax.random.normal(key), jax.random.normal(key)


def split_twice(key):
    return jax.random.normal(jax.random.split(key)[1]), jax.random.normal(jax.random.split(key, 3)[1])


def folded_then_split(key):
    own = jax.random.fold_in(key, 1)
    return jax.random.normal(own), jax.random.normal(jax.random.split(key)[1])


def split_then_folded(key):
    parts = jax.random.split(key)
    return jax.random.normal(jax.random.fold_in(key, 1)), jax.random.normal(parts[1])


def said_of(function):
    try:
        first, second = function(jax.random.key(3))
    except jax.errors.KeyReuseError:
        return "refused"
    return f"passed, equal numbers: {first == second}"


with jax.debug_key_reuse(True):
    found = [said_of(f) for f in (drawn_twice, split_twice, folded_then_split, split_then_folded)]
print(f"JAX {jax.__version__}:", "; ".join(found))
sys.exit(found != ["refused"] * 2 + ["passed, equal numbers: True"] * 2)
PYTHON
# The newest JAX that each version of Python gets.
version=0.10.2
if python3 -c 'import sys; raise SystemExit(sys.version_info < (3, 12))'; then version=0.12.0.1; fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==$version" "jaxlib==$version"
"$folder/venv/bin/python" "$folder/keys.py"
