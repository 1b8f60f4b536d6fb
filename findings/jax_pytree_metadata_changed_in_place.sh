#!/usr/bin/env bash
# A list among the metadata of a pytree that is changed in place makes `jax.jit` (JAX 0.10.2 and 0.12.0.1) return the old program's number,
# without a word, even for a new object that holds the new list from the start.
#
# A static argument of `jax.jit` must be hashable, and a list is refused. Metadata of a registered dataclass (`meta_fields`) are compared
# by == alone: no hash is asked for. The cache keeps the list itself, so once that is changed its entry equals the new metadata
# and serves the program of the old. Tuples cannot be changed and are safe.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >count.py <<'PYTHON'
import dataclasses
import functools

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["names"])
@dataclasses.dataclass
class Settings:
    weight: float
    names: object


@jax.jit
def total(settings):
    return settings.weight * len(settings.names)


@functools.partial(jax.jit, static_argnums=1)
def with_static(weight, names):
    return weight * len(names)


names = ["a"]
before = float(total(Settings(1.0, names)))
names.append("b")
same, new = float(total(Settings(1.0, names))), float(total(Settings(1.0, ["a", "b"])))
tuples = float(total(Settings(1.0, ("a",)))), float(total(Settings(1.0, ("a", "b"))))
try:
    with_static(1.0, names)
    refused = False
except ValueError:
    refused = True
print(f"jax {jax.__version__}: one name {before}; two names in the changed list {same}, in a new list {new}, in a tuple {tuples[1]}; a static "
      f"argument that is a list is {'refused' if refused else 'taken'}")
raise SystemExit((before, same, new, tuples, refused) != (1.0, 1.0, 1.0, (1.0, 2.0), True))
PYTHON
# The newest JAX that each version of Python gets.
version=0.10.2
if python3 -c 'import sys; raise SystemExit(sys.version_info < (3, 12))'; then version=0.12.0.1; fi
python3 -m venv venv
venv/bin/pip install --quiet "jax==$version" "jaxlib==$version"
venv/bin/python count.py
