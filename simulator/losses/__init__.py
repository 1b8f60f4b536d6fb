"""Losses, written out once and evaluated dense, by blocks, or sharded over devices."""

from simulator.losses.contrastive import (
    SIMILARITIES,
    Similarity,
    info_nce,
    logits,
    normalize_rows,
    sharded_info_nce,
    sigmoid_loss,
    similarity_matrix,
)
from simulator.losses.objectives import (
    InfoNCE,
    Learned,
    Loss,
    Sigmoid,
    at_step,
    ignores_length,
    learned_numbers,
    number_values,
    numbers_now,
    parameter_name,
    scheduled_numbers,
)

__all__ = [
    "SIMILARITIES",
    "InfoNCE",
    "Learned",
    "Loss",
    "Sigmoid",
    "Similarity",
    "at_step",
    "ignores_length",
    "info_nce",
    "learned_numbers",
    "logits",
    "normalize_rows",
    "number_values",
    "numbers_now",
    "parameter_name",
    "scheduled_numbers",
    "sharded_info_nce",
    "sigmoid_loss",
    "similarity_matrix",
]
