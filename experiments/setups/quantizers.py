"""Low-precision formats for stored rows, and the quantisers of a vector-search library beside them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

FORMATS = ("bf16", "fp8 e4m3", "int8", "int4", "int3")
BITS = {"bf16": 16, "fp8 e4m3": 8, "int8": 8, "int4": 4, "int3": 3}
LARGEST_FP8 = 448.0


def stored(rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows [K, d] after storage in a format, and the width of the rounding step at every entry, [K, d].

    "intB": one scale per row, 2^(B−1) − 1 steps to the largest entry; "fp8 e4m3": one scale per row that takes the
    largest entry to 448; "bf16": as they are. An entry that sets the scale is stored exactly: its step is 0.
    """
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    inexact = magnitudes < largest
    if name == "bf16":
        return rows.astype(ml_dtypes.bfloat16).astype(float), 2.0 ** (_exponent(rows, -126) - 7)
    if name == "fp8 e4m3":
        scale = scale / LARGEST_FP8
        values = (rows / scale).astype(ml_dtypes.float8_e4m3fn).astype(float)
        return scale * values, inexact * scale * 2.0 ** (_exponent(rows / scale, -6) - 3)
    step = scale / (2 ** (BITS[name] - 1) - 1)
    return step * np.round(rows / step), inexact * step


COLUMN_BITS = (3, 4, 6, 8)


def kept_by_columns(indices, queries: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Share of answers kept when every column of the rows has its own range, min to max in 2^B − 1 steps, as FAISS's
    scalar quantisers have, with the exact scalar in float32 beside it: [index, B in COLUMN_BITS]."""
    found = np.empty((len(indices), len(COLUMN_BITS)))
    for i, index in enumerate(indices):
        low = index.rows.min(axis=0, keepdims=True)
        width = index.rows.max(axis=0, keepdims=True) - low
        for j, bits in enumerate(COLUMN_BITS):
            step = np.where(width > 0, width, 1.0) / (2**bits - 1)
            rows = low + step * np.round((index.rows - low) / step)
            scores = index.map_queries(queries) @ rows.T + index.bias.astype(np.float32)[None, :]
            found[i, j] = np.mean(scores.argmax(axis=1) == answers)
    return found


def bytes_per_row(dimensions: int, name: str) -> float:
    """Of a row in a format, with its exact scalar in float32 and, but for bf16, its scale in float32."""
    return dimensions * BITS[name] / 8 + (4 if name == "bf16" else 8)


def _exponent(values: np.ndarray, least: int) -> np.ndarray:
    """⌊log₂|value|⌋, no smaller than the format's smallest normal exponent."""
    magnitudes = np.maximum(np.abs(values), 2.0**least)
    return np.floor(np.log2(magnitudes))


def random_rotation(dimensions: int, seed) -> np.ndarray:
    """A uniformly random orthogonal matrix [d, d]."""
    basis, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))
    return basis * np.sign(np.diag(triangle))[None, :]


def library_quantisers(gallery: np.ndarray, queries: np.ndarray, answers: np.ndarray) -> dict[str, tuple[float, float]]:
    """Bytes per row and share of answers kept by FAISS's scalar and product quantisers, by name: the better of its two
    metrics (distance, and inner product where the rows have one length). Empty where faiss is not installed.

    "SQ": one range per dimension, trained on the gallery; "PQmxb": a code of b bits for each of m blocks of dimensions,
    of 8 bits where the gallery has rows enough to train it.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        return {}
    dimensions = gallery.shape[1]
    factories = {"SQ8": dimensions, "SQ6": dimensions * 0.75, "SQ4": dimensions / 2}
    blocks = [min(dimensions // 2, 64), min(dimensions // 4, 32)]
    if len(gallery) >= 16:
        factories |= {f"PQ{m}x4": m / 2 for m in blocks}
    if len(gallery) >= 256:
        factories |= {f"PQ{m}x8": float(m) for m in blocks}
    norms = np.linalg.norm(gallery, axis=1)
    metrics = [faiss.METRIC_L2]
    if np.ptp(norms) < 1e-6 * norms.max():
        metrics.append(faiss.METRIC_INNER_PRODUCT)
    threads, found = faiss.omp_get_max_threads(), {}
    faiss.omp_set_num_threads(1)
    try:
        for name, size in factories.items():
            kept = []
            for metric in metrics:
                index: Any = faiss.index_factory(dimensions, name, metric)
                if hasattr(index, "pq"):
                    index.pq.cp.min_points_per_centroid = 1  # small galleries are the point here: no warning
                    index.do_polysemous_training = False  # reorders the codes, slowly; the answers are the same
                index.train(gallery.astype(np.float32))
                index.add(gallery.astype(np.float32))
                kept.append(np.mean(index.search(queries.astype(np.float32), 1)[1][:, 0] == answers))
            found[name] = (size, float(max(kept)))
    finally:
        faiss.omp_set_num_threads(threads)
    return found
