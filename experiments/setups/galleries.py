"""Galleries and queries that several experiments share."""

from __future__ import annotations

import functools

import jax
import numpy as np

import simulator as sim

TOWERS = "MLP towers, K = 10"  # of the core galleries, the ones on synthetic clusters


def default_towers(embed_dim: int = 32, **changes) -> dict:
    """The towers, start and schedule that the core experiments share, as keyword arguments of Experiment."""
    return (
        dict(
            encoder_x=sim.MLP(64, embed_dim=embed_dim),
            encoder_y=sim.MLP(64, embed_dim=embed_dim),
            start=sim.Cones(np.pi / 2, tightness=40.0),
            loss=sim.InfoNCE(0.01),
            learning_rate=1e-3,
            batch_size=128,
            steps=4000,
        )
        | changes
    )


def prototypes(x: np.ndarray, y: np.ndarray, labels: np.ndarray, num_classes: int, *, exclude=None):
    """Class prototypes as gallery, the other pairs as queries.

    The gallery row of a class is the mean of x over the first half of the pairs; queries are the y of the second half
    whose class is among the first `num_classes`. Returns gallery [K, d], queries [n, d], labels [n], in float64.
    """
    half = len(x) // 2
    first = labels[:half]
    missing = sorted(set(range(num_classes)) - set(first.tolist()))
    if missing:
        raise ValueError(
            f"no pair of class {missing[0]} among the first {half}; evaluate on more pairs or ask for fewer classes"
        )
    gallery = np.stack([x[:half][first == k].mean(axis=0) for k in range(num_classes)]).astype(float)
    asked = labels[half:] < num_classes
    return gallery, y[half:][asked].astype(float), labels[half:][asked]


@functools.lru_cache(maxsize=8)
def trained_prototypes(data: sim.LatentPairs | sim.Digits, num_classes: int, embed_dim: int, steps: int, seed: int):
    """Class prototypes of trained MLP towers: gallery [K, d], queries [n, d], labels [n]."""
    experiment = sim.Experiment(data=data, **default_towers(embed_dim, steps=steps))
    run = sim.train(experiment, key=jax.random.key(seed))
    return prototypes(*(np.asarray(a) for a in (run.x, run.y, run.labels)), num_classes)


@functools.lru_cache(maxsize=8)
def trained_table(num_pairs: int, num_classes: int, embed_dim: int, steps: int, seed: int):
    """Free embeddings trained from two cones; the first rows are the gallery, their partners the queries.

    Free rows, because an MLP's class prototypes span all its output directions as soon as K exceeds the width: then
    the exact complement has next to nothing to move (share of ‖g‖² 0.0003 at K = 100, width 64, d = 128), although
    the variance along the gap is small.
    """
    experiment = sim.Experiment(
        data=sim.LatentPairs(num_pairs),
        encoder_x=sim.Table(embed_dim),
        encoder_y=sim.Table(embed_dim),
        start=sim.Cones(np.pi / 2, tightness=10.0),
        loss=sim.InfoNCE(0.05),
        batch_size=num_pairs,
        steps=steps,
    )
    run = sim.train(experiment, key=jax.random.key(seed))
    x, y = (np.asarray(rows, float)[:num_classes] for rows in (run.x, run.y))
    return x, y, np.arange(num_classes)


def core_galleries(data: str, embed_dim: int, steps: int, seed: int, *, num_classes: int = 100) -> dict[str, tuple]:
    """The trained galleries of the core experiments by name: MLP towers on synthetic clusters, free embeddings, and
    MLP towers on digits; `data` is "both", "synthetic" or "digits"."""
    galleries = {}
    if data != "digits":
        clusters = sim.LatentPairs(2048, latent="clusters", cluster_spread=0.6)
        galleries[TOWERS] = trained_prototypes(clusters, 10, embed_dim, steps, seed)
        galleries[f"free embeddings, K = {num_classes}"] = trained_table(256, num_classes, embed_dim, steps, seed)
    if data != "synthetic":
        galleries["digits, K = 10"] = trained_prototypes(sim.Digits(), 10, embed_dim, steps, seed)
    return galleries


def nearest_rows(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Index of the Euclidean nearest gallery row for every query, in float64 NumPy."""
    return np.argmin(np.sum(gallery**2, axis=1)[None, :] - 2 * queries @ gallery.T, axis=1)


def random_classes(num_classes: int, dimensions: int, num_queries: int, seed: int):
    """An untrained gallery whose gap is *not* orthogonal to it: unequal norms, and queries hard enough that margins
    are small. Returns gallery [K, d], queries [n, d], labels [n], in float64."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_classes, dimensions)) / dimensions**0.5
    rows *= rng.uniform(0.8, 1.25, size=(num_classes, 1))
    labels = rng.integers(0, num_classes, size=num_queries)
    gap = rows.T @ rng.normal(size=num_classes) / num_classes**0.5 + rng.normal(size=dimensions) / dimensions**0.5
    noise = rng.normal(size=(num_queries, dimensions)) / dimensions**0.5
    return rows, 0.5 * rows[labels] + 0.5 * noise + gap[None, :], labels


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, in float64."""
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_spectra(num_classes: int, dimensions: int, num_queries: int, seed: int):
    """An untrained gallery of full rank whose two modalities vary in different directions: power-law spectra in
    independent bases, means about as long as the deviations, unit rows, small margins. Returns gallery, queries,
    labels, in float64."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, dimensions + 1) ** -0.75
    spread /= np.linalg.norm(spread)
    bases = [np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0] for _ in range(2)]
    means = rng.normal(size=(2, 1, dimensions)) / dimensions**0.5
    labels = rng.integers(0, num_classes, size=num_queries)
    gallery = rng.normal(size=(num_classes, dimensions)) * spread[None, :] @ bases[0]
    queries = 0.4 * gallery[labels] + rng.normal(size=(num_queries, dimensions)) * spread[None, :] @ bases[1]
    return unit_rows(gallery + means[0]), unit_rows(queries + means[1]), labels
