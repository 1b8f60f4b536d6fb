"""Theory simulator for contrastive training: the modality gap, its dynamics and its robustness.

These names are the public interface. `x` is the gallery modality (what is retrieved), `y` the query modality.
"""

import importlib.metadata

from simulator.claims import Check, Claim, Row
from simulator.closing.closer import GapCloser
from simulator.closing.index import Index
from simulator.data import Batch, DataSource, Digits, LatentPairs, MultipleFeatures, Pairs, SpelledWords, sample
from simulator.encoders import MLP, Cones, Linear, Table
from simulator.geometry import GapMeasures, gap_vector, measure_gap
from simulator.losses import (
    InfoNCE,
    LabeledInfoNCE,
    Learned,
    Sigmoid,
    Spectral,
    info_nce,
    labeled_info_nce,
    mean_log_partition,
    paired_info_nce,
    sharded_info_nce,
    sigmoid_loss,
    spectral_loss,
)
from simulator.robustness import Estimate, GaussianNoise, Quantization, measured_robustness
from simulator.settings import register
from simulator.storage.embeddings import load_embeddings
from simulator.storage.results import load_dataset
from simulator.theory.robustness import exact_robustness
from simulator.training.devices import use_all_cores
from simulator.training.experiment import Experiment
from simulator.training.flow import gradient_flow
from simulator.training.replica import Snapshot
from simulator.training.runs import Run, train
from simulator.training.sweep import load_sweep, sweep
from simulator.training.towers import towers

try:
    __version__ = importlib.metadata.version("modality-gap-simulator")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "MLP",
    "Batch",
    "Check",
    "Claim",
    "Cones",
    "DataSource",
    "Digits",
    "Estimate",
    "Experiment",
    "GapCloser",
    "GapMeasures",
    "GaussianNoise",
    "Index",
    "InfoNCE",
    "LabeledInfoNCE",
    "LatentPairs",
    "Learned",
    "Linear",
    "MultipleFeatures",
    "Pairs",
    "Quantization",
    "Row",
    "Run",
    "Sigmoid",
    "Snapshot",
    "Spectral",
    "SpelledWords",
    "Table",
    "exact_robustness",
    "gap_vector",
    "gradient_flow",
    "info_nce",
    "labeled_info_nce",
    "load_dataset",
    "load_embeddings",
    "load_sweep",
    "mean_log_partition",
    "measure_gap",
    "measured_robustness",
    "paired_info_nce",
    "register",
    "sample",
    "sharded_info_nce",
    "sigmoid_loss",
    "spectral_loss",
    "sweep",
    "towers",
    "train",
    "use_all_cores",
]
