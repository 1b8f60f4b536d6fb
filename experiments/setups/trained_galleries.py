"""What gap_closing measures with: trained galleries from several seeds, means over seeds, a choice of four, quantisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments.setups.checks import worst
from experiments.setups.galleries import nearest_rows, prototypes
from experiments.setups.held_out import train
from experiments.setups.trained_towers import stack, start
from experiments.setups.trends import stated
from simulator.robustness import changed_decisions

FEW = 10  # classes of a small gallery
SMALL, FREE = f"towers, K = {FEW}", "free embeddings"  # kinds of galleries, beside the towers' of all classes
RANGES = ("fixed", "minmax", "per_dimension")
BASES = ("spread", "one coordinate")
UNTOUCHED = ("queries", "shared", "within the centred span", "orthogonal to g'")
NEAR_MISSES = ("orthogonal to g", "within the uncentred span", "every row")
WIDTH = 64  # of the towers: more classes than this span every direction that a tower reaches
PER_CLASS = 8  # pairs behind a prototype, and queries


def trained_galleries(config) -> dict[str, list]:
    """Galleries by kind, [kind][seed][group] of (gallery [K, d], queries [n, d], labels [n]), for a gap_closing.Config.

    Class prototypes of trained towers on pairs that were not trained, in groups of ten classes and all of them; and free
    embeddings with their partners.
    """
    classes, many = config.num_classes, f"K = {config.num_classes}"
    kinds = {SMALL: [], f"towers, {many}": []}
    data = sim.LatentPairs(None, latent="clusters", num_clusters=classes)
    encoder, pairs = sim.MLP(WIDTH, embed_dim=config.embed_dim), (2 + 2 * PER_CLASS) * classes
    place = dict(angle=np.pi / 2, tightness=40.0)
    starts = [start(encoder, data, pairs, _rng(config, 0, seed), **place) for seed in range(config.num_seeds)]
    for x, y in zip(*_train(starts, config, 0.01, 2 * classes), strict=True):
        gallery, queries, labels = prototypes(x, y, np.arange(len(x)) % classes, classes)
        groups = []
        for first in range(0, FEW * config.num_groups, FEW):
            among = np.flatnonzero((labels >= first) & (labels < first + FEW))[: config.num_queries]
            groups.append((gallery[first : first + FEW], queries[among], labels[among] - first))
        kinds[SMALL].append(groups)
        kinds[f"towers, {many}"].append([(gallery, queries[: config.num_queries], labels[: config.num_queries])])
    if config.free:
        tower, place = sim.Linear(config.embed_dim), dict(angle=np.pi / 2, tightness=10.0)
        starts = [start(tower, None, 2 * classes, _rng(config, 1, seed), **place) for seed in range(config.num_seeds)]
        asked = min(config.num_queries, classes)
        kinds[f"{FREE}, {many}"] = [
            [(x[:classes], y[:asked], np.arange(asked))]
            for x, y in zip(*_train(starts, config, 0.05, None), strict=True)
        ]
    return kinds


def _rng(config, kind: int, seed: int):
    return np.random.default_rng([config.seed, kind, seed])


def _train(starts, config, temperature: float, trained: int | None):
    """Unit rows (x, y) [seed, n, d] at the end of training on the first pairs, of the other ones; None trains all, and
    returns all."""
    params, inputs = (stack([getattr(begin, name) for begin in starts]) for name in ("params", "inputs"))
    first, others = (tuple(u[:, part] for u in inputs) for part in (slice(trained), slice(trained or 0, None)))
    steps = jnp.asarray([0, config.steps])
    raw = train(starts[0].graphs, params, first, others, temperature, config.learning_rate, steps)
    ends = [np.asarray(rows, float)[:, -1] for rows in raw]
    return [rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in ends]


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


def told(exact, errors):
    """Curves of which the exact value promises what the check wants of a rise, 4 standard errors of a difference, and 2
    more: a smaller rise may be there and not be seen."""
    at = exact.dims[-1]
    return exact.sel({at: 1.0}) - exact.sel({at: 0.0}) > 6 * 2**0.5 * errors.max(at)


def untold(which) -> str:
    """The others, in words."""
    places = [zip(which.dims, place, strict=True) for place in np.argwhere(~which.values)]
    return "; ".join(", ".join(f"{d} {which[d].values[i]}" for d, i in place) for place in places) or "nowhere"


def trend(values, errors, which=None):
    """Rise to 1 and fall after along the last axis: the worst curve of those chosen speaks for all."""
    at = values[values.dims[-1]].values
    signs = np.where(at[1:] <= 1.0, 1.0, -1.0)
    curves = [v.values.reshape(-1, len(at)) for v in (values, errors)]
    chosen = np.flatnonzero(np.ones(len(curves[0])) if which is None else which.values)
    return worst(sim.Check("monotone", signs, curves[0][i], 4.0, curves[1][i], at) for i in chosen)


def gained(values, errors) -> str:
    """The largest change from 0 to 1 along the last axis, with its standard error, as text."""
    at = values.dims[-1]
    change = (values.sel({at: 1.0}) - values.sel({at: 0.0})).values
    error = np.hypot(errors.sel({at: 1.0}), errors.sel({at: 0.0})).values
    largest = np.unravel_index(np.argmax(np.abs(change)), change.shape)
    return stated(change[largest], error[largest])


def exact_mean(gallery, queries, sigma: float) -> float:
    """Mean exact robustness. A query whose two nearest rows are 6 standard deviations apart is taken as safe."""
    squares = np.sort(np.sum((queries[:, None, :] - gallery[None, :, :]) ** 2, axis=2), axis=1)
    deviation = 2 * sigma * np.sqrt(squares[:, 0] + squares[:, 1] + gallery.shape[1] * sigma**2)
    close = squares[:, 1] - squares[:, 0] < 6 * deviation
    lost = np.sum(1 - sim.exact_robustness(gallery, queries[close], sigma=sigma)) if close.any() else 0.0
    return 1 - lost / len(queries)


def choices(config, galleries) -> dict:
    """Each query chooses among its own gallery row and three others drawn for it (multiple-choice question answering),
    with noise on the rows or on the query; on the first seeds with its exact value. The same draws serve every α and σ."""
    shape = (len(galleries), 2, len(config.variances), len(config.alphas))
    kept, exact = np.empty(shape), np.empty((config.num_exact, *shape[2:]))
    for i, (gallery, queries, labels) in enumerate(galleries):
        rng, rows = np.random.default_rng([config.seed, 4, i]), np.arange(len(gallery))
        closer, asked = sim.GapCloser().fit(gallery, queries), queries[: config.num_asked, None, :]
        others = [rng.permutation(np.delete(rows, label))[:3] for label in labels[: config.num_asked]]
        options = np.concatenate([labels[: config.num_asked, None], np.array(others)], axis=1)
        noises = [rng.normal(size=(config.num_draws, len(asked), rows, gallery.shape[1])) for rows in (4, 1)]
        for k, alpha in enumerate(config.alphas):
            differences = closer.transform(gallery, alpha)[options] - asked
            best = np.argmin(np.sum(differences**2, axis=-1), axis=-1)
            for j, sigma in enumerate(np.sqrt(config.variances)):
                for t, noise in enumerate(noises):  # on four rows, or one on the query (its sign does not matter)
                    squares = np.sum((differences[None] + sigma * noise) ** 2, axis=-1)
                    kept[i, t, j, k] = np.mean(np.argmin(squares, axis=-1) == best[None, :])
                if i < config.num_exact:
                    four = zip(differences, np.zeros((len(asked), 1, gallery.shape[1])), strict=True)
                    exact[i, j, k] = np.mean([sim.exact_robustness(*pair, sigma=sigma)[0] for pair in four])
    decisions, axes = config.num_draws * len(asked), ("target", "variance", "alpha")
    mean, within = over_seeds(kept, decisions)
    # What the draws alone leave uncertain: the queries have independent draws.
    chance = np.sqrt(exact * (1 - exact) / decisions).mean(axis=0) / config.num_exact**0.5
    return dict(
        choice=(axes, mean), choice_error=(axes, within), predicted_choice=(axes[1:], exact.mean(axis=0)),
        choice_on_exact=(axes[1:], kept[: config.num_exact, 0].mean(axis=0)),
        choice_draw_error=(axes[1:], np.maximum(chance, 1 / (decisions * config.num_exact))),
    )  # fmt: skip


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


def smallest_difference(gallery: np.ndarray) -> float:
    """Root mean square difference per coordinate of the two rows that differ least."""
    squares = np.sum((gallery[:, None, :] - gallery[None, :, :]) ** 2, axis=2)
    return float(np.sqrt(np.min(squares[~np.eye(len(gallery), dtype=bool)]) / gallery.shape[1]))


def quantized(config, seeds) -> dict:
    """Robustness of galleries [seed][group] to quantisation over (basis, range, bins, closing), as dataset variables; and
    what quantising the queries instead does.

    In the towers' own coordinates and random ones (the loss knows no coordinates, so they are as good), or in ones that
    put g' on the first axis.
    """
    shape = (len(seeds), len(BASES), len(RANGES), len(config.bins), len(config.closings))
    kept, on_queries = np.zeros(shape), np.zeros((shape[0], *shape[3:]))
    models = [[sim.Quantization(bins, range=bounds) for bins in config.bins] for bounds in RANGES]
    for i, groups in enumerate(seeds):
        for g, (gallery, queries, _) in enumerate(groups):
            closer, answers = sim.GapCloser().fit(gallery, queries), nearest_rows(gallery, queries)
            rng = np.random.default_rng([config.seed, 2, i, g])
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
                for n in range(len(config.bins)):
                    coarse = np.asarray(models[0][n](queries))
                    on_queries[i, n, k] += np.mean(nearest_rows(rows, coarse) == answers) / len(groups)
                    for m, r in np.ndindex(shape[1:3]):
                        turned = (each @ bases[m].transpose(0, 2, 1) for each in (rows, queries))
                        kept[i, m, r, n, k] += kept_by_basis(models[r][n], *turned, answers).mean() / len(groups)
    decisions = len(queries) * len(groups)
    mean, within = over_seeds(kept, decisions * config.num_bases)
    flat, flat_error = over_seeds(on_queries, decisions)
    axes, on_fixed = ("basis", "range", "bins", "closing"), ("bins", "closing")
    return dict(
        quantized=(axes, mean), quantized_error=(axes, within), quantized_queries=(on_fixed, flat),
        quantized_queries_error=(on_fixed, flat_error),
    )  # fmt: skip


def rounded(config, galleries) -> dict:
    """Robustness of a few galleries to quantisation with a fixed range over (bins, closing), measured over random bases,
    and exact for Gaussian noise of variance step²/12 and step²/6; the step over the smallest difference of two rows."""
    steps, ends = 2 / np.array(config.bins), [(gallery, queries) for gallery, queries, _ in galleries]
    shape = (len(ends), len(steps), len(config.closings))
    exact, twice, mean, error = (np.empty(shape) for _ in range(4))
    for i, (gallery, queries) in enumerate(ends):
        closer, rng = sim.GapCloser().fit(gallery, queries), np.random.default_rng([config.seed, 3, i])
        asked = queries[: config.num_asked]
        answers = nearest_rows(gallery, asked)
        turn = [random_basis(rng, closer.direction_, on_one_coordinate=False).T for _ in range(config.num_rounded)]
        for n, k in np.ndindex(shape[1:]):
            rows = closer.transform(gallery, config.closings[k])
            exact[i, n, k], twice[i, n, k] = (exact_mean(rows, asked, steps[n] / part**0.5) for part in (12, 6))
            kept = kept_by_basis(
                sim.Quantization(config.bins[n]), rows @ np.stack(turn), asked @ np.stack(turn), answers
            )
            mean[i, n, k], error[i, n, k] = kept.mean(), kept.std(ddof=1) / len(turn) ** 0.5
    axes, least = ("bins", "closing"), 1 / (len(ends) * config.num_rounded * len(asked))
    return dict(
        rounded=(axes, mean.mean(axis=0)), predicted_rounded=(axes, exact.mean(axis=0)),
        rounded_error=(axes, np.maximum(np.linalg.norm(error, axis=0) / len(ends), least)),
        twice_rounded=(axes, twice.mean(axis=0)),
        step_over_difference=(("bins",), steps / min(smallest_difference(gallery) for gallery, _ in ends)),
    )  # fmt: skip


def _noise_model(kind: Any, sigma: float, closer, gallery) -> sim.GaussianNoise:
    return {
        "within the centred span": sim.GaussianNoise(sigma, within=gallery - gallery.mean(axis=0)[None, :]),
        "within the uncentred span": sim.GaussianNoise(sigma, within=gallery),
        "orthogonal to g'": sim.GaussianNoise(sigma, orthogonal_to=closer.direction_),
        "orthogonal to g": sim.GaussianNoise(sigma, orthogonal_to=closer.gap_),
        "every row": sim.GaussianNoise(sigma, within=np.eye(gallery.shape[1])),  # one program for all projections
    }.get(kind) or sim.GaussianNoise(sigma, on=kind)


def untouched(config, galleries) -> dict:
    """Share of noisy decisions at the first variance that differ between the gallery and the moved one under the same
    draws, over all seeds, and their number: for noise that closing cannot touch, and its near misses."""
    kinds, sigma = (*UNTOUCHED, *NEAR_MISSES), config.variances[0] ** 0.5
    changes, total = np.zeros((len(kinds), len(config.alphas)), int), 0
    for i, (gallery, queries, _) in enumerate(galleries):
        closer, key = sim.GapCloser().fit(gallery, queries), jax.random.fold_in(jax.random.key(config.seed), i)
        total += config.num_paired_draws * len(queries)
        for j, kind in enumerate(kinds):
            noise = _noise_model(kind, sigma, closer, gallery)
            for k, alpha in enumerate(config.alphas):
                moved, draws = closer.transform(gallery, alpha), config.num_paired_draws
                changes[j, k] += changed_decisions(gallery, moved, queries, noise=noise, num_draws=draws, key=key)
    return dict(paired_changes=(("noise", "alpha"), changes), paired_decisions=((), total))
