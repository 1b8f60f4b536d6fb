#!/usr/bin/env bash
# FAISS's exact index answers the same query differently when more queries are asked with it.
#
# Seen with faiss-cpu 1.15.1, NumPy 2.4.6: IndexFlatL2 computes the distances of a small call row by row. From
# (queries x dimensions) = 128,000 on it takes |x|^2 + |y|^2 - 2 x.y in float32, which cancels where rows lie far from the origin
# compared with their spread. With 1,000 rows of unit variance around 300 in each of 512 dimensions, calls of up to 249 queries are
# answered right, and calls of 250 for about half of them; an inverted file (IVF) that probes all of its lists stays right.
# Remedy: subtract the mean row from both sides first; no distance changes.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

dimensions, rows, mean = 512, 1_000, 300
rng = np.random.default_rng(0)
gallery, queries = (rng.normal(size=(n, dimensions)).astype("float32") + np.float32(mean) for n in (rows, 1_000))
centred_gallery, centred_queries = gallery.astype("float64") - mean, queries.astype("float64") - mean
squared = (centred_gallery**2).sum(1) - 2 * centred_queries @ centred_gallery.T
right = squared.argmin(axis=1)


def share_right(index, asked_with, shift=0):
    found = [
        index.search(queries[i : i + asked_with] - np.float32(shift), 1)[1][:, 0] for i in range(0, 1_000, asked_with)
    ]
    return float((np.concatenate(found) == right).mean())


flat = faiss.IndexFlatL2(dimensions)
flat.add(gallery)
lists = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimensions), dimensions, 8)
lists.train(gallery)
lists.add(gallery)
lists.nprobe = 8
shifted = faiss.IndexFlatL2(dimensions)
shifted.add(gallery - np.float32(mean))
found = dict(alone=share_right(flat, 1), fewer=share_right(flat, 249), together=share_right(flat, 250), ivf=share_right(lists, 250))
found["centred together"] = share_right(shifted, 250, mean)
print("faiss", faiss.__version__, "share of right answers:", found)
same = found["alone"] == found["fewer"] == found["ivf"] == found["centred together"] == 1 and found["together"] < 0.9
sys.exit(0 if same else 1)
PYTHON
