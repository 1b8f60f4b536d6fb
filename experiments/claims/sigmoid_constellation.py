"""P10: the sigmoid loss reaches zero exactly on constellations; without a bias these have a separating direction."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import simulator as sim
from experiments import plotting
from experiments.setups.checks import equal, never_above, none
from experiments.setups.trends import stated
from simulator.theory.constellations import constellation_margin, predicted_margin_bounds
from simulator.training.runs import train_replicas

CLAIM = sim.Claim(
    id="P10",
    title="Sigmoid loss and constellations",
    summary="The sigmoid loss can reach zero exactly if one level parts right from wrong pairs with room to spare.",
    statement=(
        "With a trained temperature and bias the sigmoid loss can reach zero if and only if one level separates all "
        "positive from all negative cosines; if that level is 0 and n ≥ d + 2, a direction separates the modalities."
    ),
    source="Bangachev et al. 2025, arXiv 2509.18552; thresholds and bounds: derived here",
    assumes="unit rows, cosine similarity; a margin m > 0: at m = 0 the loss stays above zero",
    expected={
        "dichotomy": "holds",
        "margin bounds": "holds",
        "no separator": "holds",
        "tie": "refuted",
        "tie exactly": "holds",
    },
)
PRECISION = "float32 training, float64 losses, margins and separators"
CAPTION = (
    "(a) Least sigmoid loss over temperature and bias against the margin of the rows (smaller losses at 10⁻⁵; rows "
    "between a constellation and random rows); below ln 2/n lie only constellations; grey: rows that satisfy the "
    "near miss, every positive above the negatives of its own row, without being one. (b) Margin of trained free "
    "rows, 32 seeds each, within the interval that loss and scale predict. (c) Gap of the trained runs, by whether "
    "the bias is trained or 0, and whether a direction separates the modalities."
)
FLOOR = 1e-5  # where the figure puts smaller losses
BIASES = ("trained bias", "bias 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """n pairs in d dimensions, n ≥ d + 2: `mixtures` of a constellation with random rows, and trained free rows."""

    num_pairs: int = 24
    embed_dim: int = 6
    mixtures: int = 200
    scales: tuple[float, ...] = tuple(np.geomspace(1, 1e8, 33).tolist())
    seeds: int = 32
    learning_rate: float = 0.02
    steps: int = 4000
    initial_bias: float = -5.0
    initial_temperature: float = 0.1
    seed: int = 4


QUICK = Config(mixtures=60, seeds=12, steps=3000)


def measure(config: Config, *, progress: bool = False):
    """Least losses and margins of mixtures; losses, margins, gaps and separators of trained rows; the tie at m = 0."""
    import xarray as xr

    trained = [_train(config, train_bias, progress) for train_bias in (True, False)]
    data = xr.concat(trained, xr.DataArray(list(BIASES), dims="bias", name="bias"))
    with jax.enable_x64(True):
        data = xr.merge([data, _mixtures(config), _tie(config)])
    data.attrs = dict(num_pairs=config.num_pairs, embed_dim=config.embed_dim)
    return data


def least_loss(x, y, scales) -> float:
    """The smallest sigmoid loss over the given scales and all biases: golden sections of the level at every scale, since in
    the bias the loss is convex."""
    x, y, scales = jnp.asarray(x), jnp.asarray(y), np.asarray(scales, float)
    shrink = (5**0.5 - 1) / 2
    low, high = (np.full(scales.shape, end) for end in (-1.5, 1.5))
    inner = [high - shrink * (high - low), low + shrink * (high - low)]
    values = [np.asarray(_losses(x, y, scales, level)) for level in inner]
    for _ in range(70):  # to rounding
        left = values[0] < values[1]
        low, high = np.where(left, low, inner[0]), np.where(left, inner[1], high)
        new = np.where(left, high - shrink * (high - low), low + shrink * (high - low))
        found = np.asarray(_losses(x, y, scales, new))
        inner = [np.where(left, new, inner[1]), np.where(left, inner[0], new)]
        values = [np.where(left, found, values[1]), np.where(left, values[0], found)]
    return float(np.min(values))


@jax.jit
def _losses(x, y, scales, levels):
    """At every scale with its level."""
    return jax.vmap(lambda s, level: sim.sigmoid_loss(x, y, temperature=1 / s, bias=-s * level))(scales, levels)


@jax.jit
def _loss(x, y, temperature, bias):
    return sim.sigmoid_loss(x, y, temperature=temperature, bias=bias)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rowwise_margin(x, y) -> float:
    """The near miss: by how much every positive exceeds the negatives of its own row, at worst; no common level."""
    scores = x @ y.T
    others = np.where(np.eye(len(x), dtype=bool), -np.inf, scores).max(axis=1)
    return float(np.min(np.diag(scores) - others) / 2)


def _mixtures(config: Config):
    """Rows from a constellation (share 0) to random ones (share 1), most of them near the boundary."""
    import xarray as xr

    n, d = config.num_pairs, config.embed_dim
    rng = np.random.default_rng(config.seed)
    found = np.empty((3, config.mixtures))
    for i in range(config.mixtures):
        rows = _unit(rng.normal(size=(n, d)))
        share = rng.uniform(0.0, 0.4)
        x, y = (_unit((1 - share) * rows + share * _unit(rng.normal(size=(n, d)))) for _ in range(2))
        found[:, i] = constellation_margin(x, y).margin, rowwise_margin(x, y), least_loss(x, y, config.scales)
    names = ("mixture_margin", "mixture_rowwise", "mixture_loss")
    return xr.Dataset({name: ("mixture", values) for name, values in zip(names, found, strict=True)})


def _tie(config: Config):
    """m = 0: x_1 = x_2 halfway between y_1 and y_2, all else orthonormal. Four logits are equal, two of each sign."""
    import xarray as xr

    n = config.num_pairs
    y = np.eye(n)
    x = y.copy()
    x[:2] = (y[:1] + y[1:2]) / 2**0.5
    worse = x.copy()
    worse[:2] = _unit(y[:2] + 1.05 * y[1::-1])
    return xr.Dataset(
        dict(
            tie_margin=constellation_margin(x, y).margin,
            tie_loss=least_loss(x, y, config.scales),
            overlap_margin=constellation_margin(worse, y).margin,
            overlap_loss=least_loss(worse, y, config.scales),
        )
    )


def _train(config: Config, train_bias: bool, progress: bool):
    """Free rows under the library's loss; judged in double precision on what was trained."""
    import xarray as xr

    n = config.num_pairs
    experiment = sim.Experiment(
        data=sim.LatentPairs(n),
        encoder_x=sim.Table(config.embed_dim),
        encoder_y=sim.Table(config.embed_dim),
        start=None,
        loss=sim.Sigmoid(
            sim.Learned(config.initial_temperature),
            bias=config.initial_bias if train_bias else 0.0,
            train_bias=train_bias,
        ),
        optimizer=optax.adam,
        learning_rate=config.learning_rate,
        batch_size=n,
        steps=config.steps,
        eval_points=2,
    )
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(config.seed), s))(np.arange(config.seeds))
    history, _, final, _ = train_replicas(experiment, {}, keys, progress=progress)
    names = ("loss", "scale", "margin", "margin_at_zero", "gap", "separable")
    found = np.empty((len(names), config.seeds))
    with jax.enable_x64(True):
        for s in range(config.seeds):
            rows = [_unit(np.asarray(side[s], float)) for side in (final["x"], final["y"])]
            scale, bias = 1 / float(history["temperature"][s, -1]), float(history["bias"][s, -1])
            signs = 2 * np.eye(n) - 1
            scores = rows[0] @ rows[1].T
            found[:, s] = (
                _loss(*rows, 1 / scale, bias), scale, np.min(signs * (scores + bias / scale)), np.min(signs * scores),
                np.linalg.norm(np.mean(rows[1] - rows[0], axis=0)), separates(*rows),
            )  # fmt: skip
    return xr.Dataset({name: ("seed", values) for name, values in zip(names, found, strict=True)})


def separates(x, y) -> bool:
    """Whether some h has ⟨h, x_i⟩ ≥ 1 and ⟨h, y_j⟩ ≤ −1 for all rows, by linear programming."""
    from scipy.optimize import linprog

    rows = np.concatenate([-x, y])
    found = linprog(np.zeros(x.shape[1]), A_ub=rows, b_ub=-np.ones(len(rows)), bounds=(None, None), method="highs")
    return found.status == 0


def judge(data) -> list[sim.Row]:
    """The dichotomy, the margins of zero-loss runs, their separators, and the tie."""
    n = data.attrs["num_pairs"]
    threshold = np.log(2) / n
    reached = data.mixture_loss.values < threshold

    def mismatches(margin):
        return none(np.sum(reached != (margin.values > 0)))

    zero = data.where(data.loss < threshold)
    runs = {name: int(np.isfinite(zero.loss.sel(bias=name)).sum()) for name in BIASES}

    def outside_bounds(near_miss=False):
        loss, scale, margin = (zero[name].values[np.isfinite(zero.loss.values)] for name in ("loss", "scale", "margin"))
        lower, upper = predicted_margin_bounds(loss, scale, n)
        upper = predicted_margin_bounds(n * loss, scale, n)[1] if near_miss else upper
        return never_above(np.max(np.maximum(lower - margin, margin - upper)), 1e-9)

    def inseparable(name):
        # Without a run at zero loss nothing is shown, so that the count is none.
        here = zero.separable.sel(bias=name).values
        return none(np.sum(here == 0) if runs[name] else np.nan)

    def at_zero(loss):
        return sim.Check("absolute", 0.0, float(loss), threshold)

    def tie(ties):
        return equal(ties * np.log(2) / n, data.tie_loss, 1e-4)

    free = zero.sel(bias=BIASES[0])
    return [
        sim.Row(
            "dichotomy",
            mismatches(data.mixture_margin),
            mismatches(data.mixture_rowwise),
            "every positive above the negatives of its own row",
            label=f"least loss below ln 2/n if and only if m > 0: exceptions among {data.sizes['mixture']} sets of rows, "
            f"{int(reached.sum())} of them below",
        ),
        sim.Row(
            "margin bounds",
            outside_bounds(),
            outside_bounds(near_miss=True),
            "the upper bound with L for L/n: the largest of n terms, not of n²",
            label=f"margin of trained rows within the bounds from loss and scale ({runs[BIASES[0]]} runs with a trained bias, "
            f"{runs[BIASES[1]]} without, at L < ln 2/n)",
        ),
        sim.Row(
            "no separator",
            inseparable(BIASES[1]),
            inseparable(BIASES[0]),
            "a trained bias: the level is not 0",
            label=f"bias 0, n = {n} ≥ d + 2 = {data.attrs['embed_dim'] + 2}: zero-loss runs without a separating direction (gap "
            f"{float(zero.gap.sel(bias=BIASES[1]).mean()):.2f}, with a trained bias {float(free.gap.mean()):.2f} and "
            f"{int(np.sum(free.separable.values == 0))} of {runs[BIASES[0]]} without one)",
        ),
        sim.Row(
            "tie",
            at_zero(data.tie_loss),
            at_zero(data.overlap_loss),
            f"m = {float(data.overlap_margin):.3f}",
            label=f"m ≥ 0 is enough: least loss at m = 0 ({float(data.tie_loss):.4f} nats, for ln 2/n = {threshold:.4f})",
            condition="at m = 0 the loss stays above zero by what the logits tied at the level cost",
            effect=f"least loss {stated(data.tie_loss, abs(data.tie_loss - 4 * threshold))} nats, "
            f"{float(data.tie_loss) / threshold:.2f} ln 2/n",
        ),
        sim.Row(
            "tie exactly",
            tie(4),
            tie(2),
            "two of them counted",
            label="least loss at m = 0 with four equal logits: 4 ln 2/n",
        ),
    ]


def draw(data):
    """Least loss against the margin; margins within their bounds; gaps and separators."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.5), layout="constrained")
    n, threshold = data.attrs["num_pairs"], np.log(2) / data.attrs["num_pairs"]
    axis, margin, loss = axes[0], data.mixture_margin.values, np.maximum(data.mixture_loss.values, FLOOR)
    missed = (data.mixture_rowwise.values > 0) & (margin <= 0)
    for chosen, look, label in (
        (margin > 0, plotting.series(0), "m > 0"),
        ((margin <= 0) & ~missed, plotting.series(1), "m ≤ 0"),
        (missed, dict(color=plotting.CONTROL, marker="x"), "m ≤ 0, near miss"),
    ):
        axis.plot(margin[chosen], loss[chosen], linestyle="none", label=label, **look)
    axis.axhline(threshold, color="black", linestyle="--", linewidth=0.8, label="ln 2/n")
    axis.axvline(0, color="black", linestyle=":", linewidth=0.8, label="m = 0")
    axis.set(
        xlabel="margin m",
        ylabel="least loss (nats)",
        yscale="log",
        ylim=(FLOOR / 100, 10),
        yticks=10.0 ** np.arange(-5, 2),
    )
    axis.legend(loc="lower left")
    zero = data.where(data.loss < threshold)
    for i, name in enumerate(BIASES):
        here, color, look = zero.sel(bias=name), plotting.COLORS[2 + i], plotting.series(2 + i, linestyle="none")
        here = here.isel(seed=np.flatnonzero(np.isfinite(here.loss.values))).sortby("margin")
        lower, upper = predicted_margin_bounds(here.loss.values, here.scale.values, n)
        place = np.arange(here.sizes["seed"]) + (0 if name == BIASES[0] else data.sizes["seed"] + 2)
        axes[1].vlines(place, lower, upper, color=color, alpha=0.4, linewidth=2)
        axes[1].plot(place, here.margin, label=name, **look)
        separable = here.separable.values == 1
        height = np.full(here.sizes["seed"], float(BIASES.index(name)))
        height = height + np.linspace(-0.25, 0.25, len(height))
        for chosen, words, fill in ((separable, "separable", "full"), (~separable, "not separable", "none")):
            style = look | dict(fillstyle=fill, markersize=5, markeredgewidth=0.6, label=f"{name}, {words}")
            if chosen.any():
                axes[2].plot(here.gap.values[chosen], height[chosen], **style)
    axes[1].plot([], [], "k-", alpha=0.4, linewidth=2, label="predicted interval")
    axes[1].set(
        xlabel="run (sorted)", ylabel="margin m(b)", ylim=(-0.12, None), yticks=np.arange(0, 0.45, 0.1), xticks=[]
    )
    axes[1].legend(loc="lower left")
    axes[2].legend(loc="upper right")
    axes[2].set(xlabel="gap norm G", ylabel="bias", yticks=[0, 1], yticklabels=("trained", "0"))
    axes[2].set(ylim=(-0.6, 3), xlim=(-0.1, 2))
    return plotting.lettered(figure)
