"""C5: moving a gallery orthogonally to itself changes no decision, and what noise cannot see either."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import never_above, none
from experiments.setups.galleries import core_galleries, nearest_rows, random_classes
from simulator.robustness import changed_decisions

CLAIM = sim.Claim(
    id="C5",
    title="Clean decisions are invariant",
    summary="Moving the gallery at right angles to itself changes no answer.",
    statement=(
        "Adding αv to every gallery row, v orthogonal to the gallery's affine span, changes no Euclidean nearest "
        "neighbour, for any query and any α; nor under noise on the queries, one shared draw, or row noise that is "
        "orthogonal to v or inside the centred span. It survives re-normalisation when all rows have equal norms."
    ),
    source="Chowers et al. 2026, Thm 3.5; exact controls and flip bound derived here: theory.md C5, C6",
    assumes="the centred gallery does not span the whole space; after re-normalising, rows of equal norm",
    expected=dict.fromkeys(
        (
            "clean decisions",
            "noise: queries",
            "noise: shared",
            "noise: orthogonal to g'",
            "noise: centred span",
            "flip bound",
        ),
        "holds",
    )
    | {"re-normalising": "holds if"},
)
PRECISION = "float32 training, float64 predictions and decisions"
CAPTION = (
    "(a) Decisions that change when the gallery moves by α g', under the same noise draws (float64; linear below 1). "
    "Coloured: noise that closing cannot touch; all lie at exactly 0. Grey: independent row noise, and the near misses "
    "'orthogonal to g' and 'in the uncentred span'. (b) Every flip j → k after re-normalising rows of unequal norm "
    "obeys sⱼ − sₖ ≤ ‖y‖ |nⱼ − nₖ| (below the diagonal); dropping ‖y‖ (grey) does not hold."
)
NOISES = ("queries", "shared", "orthogonal to g'", "centred span")
RENORMALIZED = ("equal norms", "unequal norms", "equal norms, moved by g")
CONTROLS = ("independent", "orthogonal to g", "uncentred span")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A random gallery with a generic gap and trained ones, moved by α g'."""

    data: Literal["both", "synthetic", "digits"] = "both"
    alphas: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    num_classes: int = 50
    dimensions: int = 64
    num_queries: int = 500
    num_draws: int = 40
    sigma: float = 0.1
    trained_classes: int = 100
    embed_dim: int = 128
    steps: int = 2000
    query_norm: float = 3.0
    seed: int = 0


QUICK = Config(data="synthetic", num_draws=10, steps=300, trained_classes=20, embed_dim=32)


def measure(config: Config, *, progress: bool = False):
    """Changed decisions over (gallery, noise, α), cosine flips, and the flips of the bound."""
    import xarray as xr

    from simulator.progress import tqdm

    galleries = dict(random=random_classes(config.num_classes, config.dimensions, config.num_queries, config.seed)[:2])
    trained = core_galleries(
        config.data, config.embed_dim, config.steps, config.seed, num_classes=config.trained_classes
    )
    galleries |= {name: arrays[:2] for name, arrays in trained.items()}
    kinds = (*NOISES, *CONTROLS)
    changed = np.zeros((len(galleries), len(kinds), len(config.alphas)), int)
    clean = np.zeros((len(galleries), 2, len(config.alphas)), int)
    flips = np.zeros((len(galleries), len(RENORMALIZED), len(config.alphas)), int)
    bar = tqdm(total=changed.size, disable=not progress, desc="decisions", unit="point")
    with jax.enable_x64(True):
        key = jax.random.key(config.seed)
        for i, (gallery, queries) in enumerate(galleries.values()):
            closer = sim.GapCloser().fit(gallery, queries)
            unit = _normalized(gallery)
            unit_closer = sim.GapCloser().fit(unit, queries)
            for k, alpha in enumerate(config.alphas):
                moved = closer.transform(gallery, alpha)
                for j, kind in enumerate(kinds):
                    changed[i, j, k] = changed_decisions(
                        gallery, moved, queries, noise=_noise(kind, config.sigma, closer, gallery),
                        num_draws=config.num_draws, key=jax.random.fold_in(key, j),
                    )  # fmt: skip
                    bar.update()
                for j, direction in enumerate((closer.direction_, closer.gap_)):
                    clean[i, j, k] = np.sum(
                        nearest_rows(gallery + alpha * direction, queries) != nearest_rows(gallery, queries)
                    )
                cases = ((unit, unit_closer.direction_), (gallery, closer.direction_), (unit, unit_closer.gap_))
                for j, (rows, direction) in enumerate(cases):
                    before, after = _normalized(rows), _normalized(rows + alpha * direction[None, :])
                    flips[i, j, k] = np.sum(_best(before, queries) != _best(after, queries))
    bar.close()
    bounds = _flip_bounds(*galleries["random"], config)
    return xr.Dataset(
        dict(
            changed=(("gallery", "noise", "alpha"), changed),
            clean=(("gallery", "direction", "alpha"), clean),
            renormalized_flips=(("gallery", "renormalized", "alpha"), flips),
            flip_score_gap=("flip", bounds[0]),
            flip_norm_gap=("flip", bounds[1]),
        ),
        coords=dict(
            gallery=list(galleries),
            noise=list(kinds),
            renormalized=list(RENORMALIZED),
            direction=["g'", "g"],
            alpha=list(config.alphas),
        ),
        attrs=dict(query_norm=config.query_norm, num_queries=config.num_queries),
    )


def _noise(kind: str, sigma: float, closer: sim.GapCloser, gallery) -> sim.GaussianNoise:
    if kind in ("queries", "shared"):
        return sim.GaussianNoise(sigma, on=kind)
    directions = {"orthogonal to g'": closer.direction_, "orthogonal to g": closer.gap_}
    spans = {"centred span": gallery - gallery.mean(axis=0)[None, :], "uncentred span": gallery}
    return sim.GaussianNoise(sigma, orthogonal_to=directions.get(kind), within=spans.get(kind))


def _best(gallery, queries):
    return np.argmax(queries @ gallery.T, axis=1)


def _normalized(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _flip_bounds(gallery, queries, config: Config):
    """Every flip j → k of the inner-product decision when rows are divided by their norms n after moving:
    s_j − s_k and |n_j − n_k|, for queries of one length."""
    queries = config.query_norm * _normalized(queries)
    closer = sim.GapCloser().fit(gallery, queries)
    score_gaps, norm_gaps = [], []
    for alpha in config.alphas:
        moved = closer.transform(gallery, alpha)
        norms, inner = np.linalg.norm(moved, axis=1), queries @ moved.T
        before, after = inner.argmax(axis=1), (inner / norms[None, :]).argmax(axis=1)
        row = np.arange(len(queries))
        flipped = before != after
        score_gaps.append((inner[row, before] - inner[row, after])[flipped])
        norm_gaps.append(np.abs(norms[before] - norms[after])[flipped])
    return np.concatenate(score_gaps), np.concatenate(norm_gaps)


def judge(data) -> list[sim.Row]:
    """Clean decisions, four kinds of noise, re-normalisation, the flip bound."""

    def noisy(kind):
        return none(data.changed.sel(noise=kind))

    def bound(norm):
        return never_above(data.flip_score_gap - norm * data.flip_norm_gap, 1e-12)

    flips = data.renormalized_flips.sel(gallery="random").sum("alpha")
    asked = int(np.sum(data.alpha != 0)) * data.attrs["num_queries"]
    counts = {kind: f"{int(flips.sel(renormalized=kind)):,} of {asked:,}" for kind in ("equal norms", "unequal norms")}
    near_misses = {
        "queries": "independent",
        "shared": "independent",
        "orthogonal to g'": "orthogonal to g",
        "centred span": "uncentred span",
    }
    return [
        sim.Row(
            "clean decisions",
            none(data.clean.sel(direction="g'")),
            none(data.clean.sel(direction="g")),
            "g in place of g'",
            label="clean decisions changed by α g'",
        ),
        *(
            sim.Row(
                f"noise: {kind}",
                noisy(kind),
                noisy(control),
                f"noise: {control}",
                label=f"decisions changed under noise: {kind}",
            )
            for kind, control in near_misses.items()
        ),
        sim.Row(
            "re-normalising",
            none(data.renormalized_flips.sel(renormalized="equal norms")),
            none(data.renormalized_flips.sel(renormalized="equal norms, moved by g")),
            "g in place of g'",
            label="decisions changed after re-normalising",
            outside=none(data.renormalized_flips.sel(renormalized="unequal norms")),
            condition="all gallery rows have equal norms",
            effect="decisions changed in the random gallery: "
            + ", ".join(f"{count} with {kind}" for kind, count in counts.items()),
        ),
        sim.Row(
            "flip bound",
            bound(data.attrs["query_norm"]),
            bound(1.0),
            "without ‖y‖",
            label="s_j − s_k − ‖y‖·|n_j − n_k| over all flips",
        ),
    ]


def draw(data):
    """Changed decisions against α, and the flip bound."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(plotting.TWO_COLUMNS, 2.8), layout="constrained")
    total = data.changed.sum("gallery")
    for style, kind in zip(("-", "--", ":"), CONTROLS, strict=True):
        left.plot(data.alpha, total.sel(noise=kind), color=plotting.CONTROL, linestyle=style, label=kind)
    for i, kind in enumerate(NOISES):
        look = plotting.series(i, markersize=9 - 2 * i, fillstyle="none")  # one within the other
        left.plot(data.alpha, total.sel(noise=kind), label=kind, **look)
    left.set_yscale("symlog", linthresh=1)
    left.set(xlabel="closing α", ylabel="decisions changed", ylim=(-0.5, None))
    norm = float(data.attrs["query_norm"])
    look = dict(markersize=2.5, linestyle="none")
    right.plot(data.flip_norm_gap, data.flip_score_gap, "^", color=plotting.CONTROL, label="‖y‖ dropped", **look)
    right.plot(
        norm * data.flip_norm_gap, data.flip_score_gap, "o", color=plotting.COLORS[4], label=f"‖y‖ = {norm:g}", **look
    )
    top = float((norm * data.flip_norm_gap).max())
    right.plot([0, top], [0, top], color="black", linewidth=0.8, label="equal to the bound")
    right.set(xlabel="bound $‖y‖\\,|n_j - n_k|$", ylabel="$s_j - s_k$ of each flip")
    right.legend(loc="upper left")
    plotting.legend_above(figure, left, ncols=7, columnspacing=1.0)
    return plotting.lettered(figure)
