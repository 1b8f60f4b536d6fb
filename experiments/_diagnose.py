"""`gapsim diagnose`: the measures of `simulator.geometry` on somebody's own embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import simulator as sim
from simulator.robustness import nearest
from simulator.store import load_embeddings, load_labels
from simulator.validation import require_labels, require_number, require_paired, require_same_width

EXPLANATIONS = dict(
    gap_norm="distance between the two means, G",
    variance_along_gap="variance along the gap",
    defect_ratio="the same over the mean direction's (1 isotropic, 0 orthogonal gap)",
    null_defect_ratio="... expected for a random other mean of the same length",
    span_fraction="share of G² inside the top components (90 % of variance)",
    marginal_error="mean |S − 1| of the softmax marginals",
    alignment="mean squared distance of pairs",
    uniformity="log mean exp(−2 squared distance)",
    recall_at_1_xy="R@1, gallery → query",
    recall_at_1_yx="R@1, query → gallery",
    effective_rank="exp entropy of the singular values",
    separability="held-out accuracy of the midpoint rule along the gap",
    rmg="relative modality gap",
    accuracy="queries whose nearest gallery row is their label",
    complement_share="share of ‖g‖² that can be closed without changing a decision",
    robustness_open="exact robustness at σ, gap as it is (α = 0)",
    robustness_closed="exact robustness at σ, gap closed (α = 1)",
)


def diagnose(
    gallery: Path, queries: Path, *, paired: bool, labels: Path | None, normalize: bool,
    temperature: float | None, sigma: float | None,
) -> dict[str, Any]:  # fmt: skip
    """All measures as plain numbers; None where one is not defined. Computed in float64."""
    x, y = load_embeddings(gallery), load_embeddings(queries)
    (require_paired if paired else require_same_width)(x, y, (str(gallery), str(queries)))
    if sigma is not None:
        require_number("sigma", sigma, above=0.0)
    if normalize:
        x, y = (_unit_rows(rows, path) for rows, path in ((x, gallery), (y, queries)))
    with jax.enable_x64(True):
        measures = dataclasses.asdict(sim.measure_gap(x, y, temperature=temperature, paired=paired))
        result: dict[str, Any] = dict(gallery_rows=len(x), query_rows=len(y), dimensions=x.shape[1])
        result |= {name: _number(value) for name, value in measures.items()}
        if labels is not None:
            truth = require_labels(load_labels(labels), num_queries=len(y), num_classes=len(x))
            result["accuracy"] = float(np.mean(np.asarray(nearest(x, y)) == truth))
    closer = sim.GapCloser().fit(x, y)
    total = float(closer.gap_ @ closer.gap_)
    result["complement_share"] = float(closer.direction_ @ closer.direction_) / total if total > 0 else None
    if sigma is not None:
        for name, alpha in (("robustness_open", 0.0), ("robustness_closed", 1.0)):
            result[name] = float(sim.exact_robustness(closer.transform(x, alpha), y, sigma=sigma).mean())
    return result


def render(result: dict[str, Any]) -> str:
    """A table: measure, gallery, queries, what it is."""
    from experiments._ledger import table

    text = lambda value: "n/a" if value is None else f"{value:.4g}"  # noqa: E731
    lines = [["rows", str(result["gallery_rows"]), str(result["query_rows"]), f"in {result['dimensions']} dimensions"]]
    for name, words in EXPLANATIONS.items():
        if f"{name}_x" in result:
            lines.append([name, text(result[f"{name}_x"]), text(result[f"{name}_y"]), words])
        elif name in result:
            lines.append([name, text(result[name]), "", words])
    return table(["measure", "gallery", "queries", ""], lines)


def _unit_rows(rows: np.ndarray, path: Path) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(
            f"{path}: row {int(np.argmin(norms))} is zero and has no direction; remove it, or drop --normalize"
        )
    return rows / norms


def _number(value) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None
