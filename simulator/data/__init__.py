"""Paired data of two or more modalities: synthetic pairs with every knob, pairs that exist, and what any other source must have."""

from simulator.data.arrays import Digits, Pairs
from simulator.data.latent import LatentPairs
from simulator.data.packaged import MultipleFeatures, SpelledWords
from simulator.data.source import MODALITIES, Batch, DataSource, dims_of, draw, require_dims, sample, take

SHIPPED = (LatentPairs, Pairs, Digits, MultipleFeatures, SpelledWords)

__all__ = [
    "MODALITIES",
    "SHIPPED",
    "Batch",
    "DataSource",
    "Digits",
    "LatentPairs",
    "MultipleFeatures",
    "Pairs",
    "SpelledWords",
    "dims_of",
    "draw",
    "require_dims",
    "sample",
    "take",
]
