#!/usr/bin/env bash
# usearch's int8 rows answer a Euclidean or inner-product search as if every row had unit length.
#
# Seen with usearch 2.26.6, NumPy 2.4.6: Index(metric="l2sq" or "ip", dtype="i8") divides each float row by its own norm before it
# rounds. Exhaustive search (exact=True) of 1,000 rows whose norms differ by a factor of 15 then gives the Euclidean answer to
# about a quarter of the queries, and the cosine answer to nearly all. dtype "f16" keeps the norms. Nothing is said.
# So what holds its information in norms (a bias column, a compensated gallery) must not go into such an index.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet usearch==2.26.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import usearch
from usearch.index import Index

rng = np.random.default_rng(0)
rows = rng.normal(size=(1_000, 32)) * rng.uniform(0.2, 3, size=(1_000, 1))
queries = rng.normal(size=(200, 32))
right = dict(
    l2sq=((queries[:, None] - rows) ** 2).sum(-1).argmin(1),
    ip=(queries @ rows.T).argmax(1),
    cosine=(queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T).argmax(1),
)
found = {}
for metric in ("l2sq", "ip"):
    for dtype in ("f16", "i8"):
        index = Index(ndim=32, metric=metric, dtype=dtype)
        index.add(np.arange(1_000), rows.astype("float32"))
        answers = index.search(queries.astype("float32"), 1, exact=True).keys[:, 0]
        shares = [float((answers == right[name]).mean()) for name in (metric, "cosine")]
        found[metric, dtype] = shares
        print(f"usearch {usearch.__version__} {metric} {dtype}: as asked {shares[0]:.3f}, as by cosine {shares[1]:.3f}")
same = all(found[m, "f16"][0] > 0.97 and found[m, "i8"][0] < 0.5 < 0.8 < found[m, "i8"][1] for m in ("l2sq", "ip"))
sys.exit(0 if same else 1)
PYTHON
