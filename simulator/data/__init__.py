"""Paired data of two modalities: synthetic pairs with every knob, pairs that exist, and what any other source must have."""

from simulator.data.arrays import Digits, Pairs
from simulator.data.latent import LatentPairs
from simulator.data.source import Batch, DataSource, draw, sample, take

__all__ = ["Batch", "DataSource", "Digits", "LatentPairs", "Pairs", "draw", "sample", "take"]
