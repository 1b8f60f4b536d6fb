"""What gap_closing measures with: trained galleries from several seeds, means over seeds, quantisation."""

from __future__ import annotations

import jax
import numpy as np

import simulator as sim
from experiments._galleries import default_towers, nearest_rows, prototypes
from simulator.training import train_replicas

FEW = 10  # classes of a small gallery
RANGES = ("fixed", "minmax", "per_dimension")
BASES = ("spread", "one coordinate")


def trained_galleries(config, progress: bool) -> dict[str, list]:
    """Galleries by kind, [kind][seed][group] of (gallery [K, d], queries [n, d], labels [n]), for a gap_closing.Config.

    Class prototypes of trained towers, groups of ten classes and all of them; and free embeddings with their partners.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    towers = sim.Experiment(
        data=sim.LatentPairs(2048, latent="clusters", num_clusters=config.num_classes),
        eval_pairs=config.eval_pairs, eval_points=2, **default_towers(config.embed_dim, steps=config.steps),
    )  # fmt: skip
    free = sim.Experiment(
        data=sim.LatentPairs(2 * config.num_classes), encoder_x=sim.Table(config.embed_dim),
        encoder_y=sim.Table(config.embed_dim), start=sim.Cones(np.pi / 2, tightness=10.0), loss=sim.InfoNCE(0.05),
        batch_size=2 * config.num_classes, steps=config.steps, eval_points=2,
    )  # fmt: skip
    trained = [
        [np.asarray(part) for part in train_replicas(experiment, {}, keys[:count], progress=progress)[2:5]]
        for experiment, count in ((towers, config.num_seeds), (free, config.num_large))
    ]
    few, many, table, asked = [], [], [], config.num_queries
    for x, y, labels in zip(*trained[0], strict=True):
        gallery, queries, of = prototypes(x, y, labels, config.num_classes)
        many.append([(gallery, queries[:asked], of[:asked])])
        few.append([])
        for start in range(0, FEW * config.num_groups, FEW):
            among = np.flatnonzero((of >= start) & (of < start + FEW))[:asked]
            few[-1].append((gallery[start : start + FEW], queries[among], of[among] - start))
    for x, y, _ in zip(*trained[1], strict=True):
        asked = min(asked, config.num_classes)
        table.append([(x[: config.num_classes].astype(float), y[:asked].astype(float), np.arange(asked))])
    names = (f"towers, K = {FEW}", f"towers, K = {config.num_classes}", f"free embeddings, K = {config.num_classes}")
    return dict(zip(names, (few, many[: config.num_large], table), strict=True))


def over_seeds(values, decisions: int, *, paired: bool = True):
    """Mean over seeds of [seed, ..., α] and its standard error, at least one decision in all (`decisions` per seed).

    paired: for curves over α on the same galleries, the error is the one within them: each seed's own mean over α is
    taken out, with Morey's factor for the mean taken.
    """
    values = np.asarray(values, float)
    spread, factor = values, 1.0
    if paired:
        spread = values - values.mean(axis=-1, keepdims=True)
        factor = (values.shape[-1] / (values.shape[-1] - 1)) ** 0.5
    error = factor * spread.std(axis=0, ddof=1) / len(values) ** 0.5
    return values.mean(axis=0), np.maximum(error, 1.0 / (decisions * len(values)))


def exact_mean(gallery, queries, sigma: float) -> float:
    """Mean exact robustness. A query whose two nearest rows are 6 standard deviations apart is taken as safe."""
    squares = np.sort(np.sum((queries[:, None, :] - gallery[None, :, :]) ** 2, axis=2), axis=1)
    deviation = 2 * sigma * np.sqrt(squares[:, 0] + squares[:, 1] + gallery.shape[1] * sigma**2)
    close = squares[:, 1] - squares[:, 0] < 6 * deviation
    lost = np.sum(1 - sim.exact_robustness(gallery, queries[close], sigma=sigma)) if close.any() else 0.0
    return 1 - lost / len(queries)


def random_basis(rng, direction: np.ndarray, *, on_one_coordinate: bool) -> np.ndarray:
    """A random orthogonal matrix Q [d, d], uniform, or uniform among those that take `direction` to the first axis.
    Rows in the new basis are `rows @ Q.T`: all distances stay, only the coordinates that are quantised change."""
    basis, triangle = np.linalg.qr(rng.normal(size=(len(direction), len(direction))))
    basis *= np.sign(np.diag(triangle))[None, :]
    if not on_one_coordinate:
        return basis
    image = basis @ (direction / np.linalg.norm(direction))
    image[0] -= 1.0
    return basis - 2 * np.outer(image, image @ basis) / (image @ image)  # reflects the image onto the first axis


def kept_by_basis(model: sim.Quantization, rows, queries, answers) -> np.ndarray:
    """Share of queries [basis, n, d] that the quantised rows [basis, K, d] answer as before, per basis."""
    if model.range == "fixed":  # coordinate by coordinate, so all bases at once
        coarse = np.asarray(model(rows.reshape(-1, rows.shape[-1]))).reshape(rows.shape)
    else:
        coarse = np.stack([np.asarray(model(one)) for one in rows])
    scores = np.sum(coarse**2, axis=2)[:, None, :] - 2 * queries @ coarse.transpose(0, 2, 1)
    return np.mean(scores.argmin(axis=2) == answers[None, :], axis=1)


def quantized(config, seeds) -> dict:
    """Robustness of galleries [seed][group] to quantisation over (basis, range, bins, closing), as dataset variables.

    In the towers' own coordinates and random ones (the loss knows no coordinates, so they are as good), or in ones that
    put g' on the first axis. With the fixed range also the exact robustness to Gaussian noise of variance step²/12, and
    of step²/6; and what quantising the queries instead does.
    """
    shape = (len(seeds), len(BASES), len(RANGES), len(config.bins), len(config.closings))
    kept, own, on_queries = np.zeros(shape), np.zeros((shape[0], *shape[2:])), np.zeros((shape[0], *shape[3:]))
    exact, spreads = np.zeros((shape[0], 2, *shape[3:])), []
    models = [[sim.Quantization(bins, range=bounds) for bins in config.bins] for bounds in RANGES]
    for i, groups in enumerate(seeds):
        for g, (gallery, queries, _) in enumerate(groups):
            closer, answers = sim.GapCloser().fit(gallery, queries), nearest_rows(gallery, queries)
            spreads.append(np.sqrt(gallery.var(axis=0).mean()))
            rng = np.random.default_rng([config.seed, i, g])
            bases = [
                np.stack([
                    random_basis(rng, closer.direction_, on_one_coordinate=name == "one coordinate")
                    for _ in range(config.num_bases)
                ])
                for name in BASES
            ]  # fmt: skip
            bases[0][0] = np.eye(gallery.shape[1])
            for k, alpha in enumerate(config.closings):
                rows = closer.transform(gallery, alpha)
                for n, bins in enumerate(config.bins):
                    on_queries[i, n, k] += np.mean(nearest_rows(rows, np.asarray(models[0][n](queries))) == answers)
                    for p, part in enumerate((12, 6)):
                        exact[i, p, n, k] += exact_mean(rows, queries, 2 / bins / part**0.5)
                    for m, r in np.ndindex(shape[1:3]):
                        turned = (each @ bases[m].transpose(0, 2, 1) for each in (rows, queries))
                        shares = kept_by_basis(models[r][n], *turned, answers)
                        kept[i, m, r, n, k] += shares.mean()
                        own[i, r, n, k] += shares[0] if m == 0 else 0.0
        for sums in (kept, own, on_queries, exact):
            sums[i] /= len(groups)
    decisions = len(queries) * len(groups)
    mean, within = over_seeds(kept, decisions * config.num_bases)
    error = over_seeds(kept[:, 0, 0] - exact[:, 0], decisions * config.num_bases, paired=False)[1]
    flat, flat_error = over_seeds(on_queries, decisions)
    axes, on_fixed = ("basis", "range", "bins", "closing"), ("bins", "closing")
    return dict(
        quantized=(axes, mean), quantized_error=(axes, within), own_basis=(axes[1:], own.mean(axis=0)),
        quantized_queries=(on_fixed, flat), quantized_queries_error=(on_fixed, flat_error),
        predicted_quantized=(on_fixed, exact[:, 0].mean(axis=0)), twice_quantized=(on_fixed, exact[:, 1].mean(axis=0)),
        prediction_error=(on_fixed, error), step_over_spread=(("bins",), 2 / np.array(config.bins) / np.mean(spreads)),
    )  # fmt: skip
