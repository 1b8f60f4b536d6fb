"""Losses, written out once and evaluated dense, by blocks, or sharded over devices."""

from simulator.losses.contrastive import (
    SIMILARITIES,
    InfoNCE,
    Learned,
    Sigmoid,
    Similarity,
    info_nce,
    logits,
    normalize_rows,
    sharded_info_nce,
    sigmoid_loss,
    similarity_matrix,
)

__all__ = [
    "SIMILARITIES",
    "InfoNCE",
    "Learned",
    "Sigmoid",
    "Similarity",
    "info_nce",
    "logits",
    "normalize_rows",
    "sharded_info_nce",
    "sigmoid_loss",
    "similarity_matrix",
]
