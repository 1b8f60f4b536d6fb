"""P2: on circles of the sphere the loss depends on one number, so the latitude of least loss follows from one scale."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import closest, equal
from simulator.theory import landscapes

CLAIM = sim.Claim(
    id="P2",
    title="Loss landscape on the sphere",
    summary="With a wrong match, the loss on two circles of latitude is smallest at a gap.",
    statement=(
        "For pairs on two circles of latitude the loss is f(cos θ_x cos θ_y/τ) with f convex, for any longitudes and any "
        "matching. A wrong match makes its minimum s* finite, and then a gap opens at temperatures below 1/s*, "
        "cos θ* = s*τ; with every pair a best match the best gap is zero at every temperature."
    ),
    source="Liang et al. 2022 (arXiv 2203.02053), Fig. 3; closed form and threshold derived here: theory.md P2",
    assumes="rows that can only move in latitude, all by the same angle; temperature held",
    expected={
        "one curve": "holds",
        "published latitudes": "holds",
        "published loss": "holds",
        "random longitudes": "holds",
        "no wrong match": "holds",
    },
)
CAPTION = (
    "(a) Loss of the six pairs of Liang et al. with two texts swapped, against the latitude of the texts, measured "
    "(points); grey: the same without the swap at 1/τ = 100. (b) All latitudes θ and θ′ of both circles and all "
    "temperatures fall on one curve of cos θ cos θ′/τ; grey: on none of cos(θ − θ′)/τ. (c) Latitude of least loss "
    "against 1/τ, for the published example, for random longitudes with swapped or soft matchings, and for the "
    "unswapped example, measured (points); grey: s* of one direction of the loss."
)
STEP = np.radians(20)
PUBLISHED = STEP * np.arange(-1, 5)  # longitudes of the images; the texts' are the same, the first two swapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random geometries: n longitudes on an arc of random length; in every other one `mismatched` neighbours swap
    partners in turn, in the rest one gallery row is missing and the matching is soft."""

    scales: tuple[float, ...] = (10.0, 20.0, 35.0, 50.0, 100.0)
    geometries: int = 12
    num_pairs: tuple[int, ...] = (5, 8, 12)
    mismatched: int = 3
    lifts: int = 60
    grid: int = 61
    seed: int = 0


QUICK = Config(geometries=4, lifts=20, grid=31)


def on_circle(longitudes, latitude: float) -> np.ndarray:
    """Unit rows [n, 3] at the given longitudes and latitude, in radians."""
    longitudes = np.asarray(longitudes)
    ones = np.ones_like(longitudes)
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitudes), flat * np.sin(longitudes), np.sin(latitude) * ones], axis=1)


@jax.jit
def _loss(x, y, temperature, pairing):
    return sim.info_nce(x, y, temperature=temperature, pairing=pairing)


def loss_at(longitudes_x, longitudes_y, latitude_x, latitude_y, temperature, pairing=None) -> float:
    """Measured loss of rows on two circles."""
    pairing = np.eye(len(longitudes_x)) if pairing is None else pairing
    x, y = on_circle(longitudes_x, latitude_x), on_circle(longitudes_y, latitude_y)
    return float(_loss(jnp.asarray(x), jnp.asarray(y), temperature, pairing))


def measured_latitude(longitudes_x, longitudes_y, temperature: float, pairing=None) -> float:
    """Latitude of the gallery's circle, in [0, π/2], at which the measured loss is smallest, the queries on the equator.

    A grid brackets the minimum, the bounded method of Brent refines it; at the edge 0 the loss is symmetric.
    """
    from scipy.optimize import minimize_scalar

    loss = lambda latitude: loss_at(longitudes_x, longitudes_y, latitude, 0.0, temperature, pairing)
    grid = np.linspace(0, np.pi / 2, 46)
    at = int(np.argmin([loss(latitude) for latitude in grid]))
    bounds = (grid[at - 1] if at else -grid[1], grid[min(at + 1, len(grid) - 1)])
    return abs(float(minimize_scalar(loss, bounds=bounds, method="bounded", options=dict(xatol=1e-10)).x))


def geometry(index: int, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitudes of gallery and queries and their pairing, [n_x], [n], [n_x, n]: nearby angles on a random arc; even
    indices pair row by row with a few neighbours swapped in turn, odd ones softly with whatever is near."""
    rng = np.random.default_rng([config.seed, index])
    n = config.num_pairs[index % len(config.num_pairs)]
    queries = np.sort(rng.uniform(0, rng.uniform(0.5, 2.0), size=n))
    spacing = np.mean(np.diff(queries))
    gallery = queries + 0.3 * spacing * rng.normal(size=n)
    if index % 2:
        distance = (gallery[1:, None] - queries[None, :]) / spacing
        return gallery[1:], queries, np.exp(-0.5 * distance**2) * rng.uniform(0.5, 1.5, size=distance.shape)
    wrong = rng.integers(n - config.mismatched + 1) + np.arange(config.mismatched)
    gallery[wrong] = gallery[np.roll(wrong, 1)]
    return gallery, queries, np.eye(n)


def measure(config: Config, *, progress: bool = False):
    """Losses on lifted circles, the published landscape, and latitudes of least loss of every geometry."""
    import xarray as xr

    from simulator.progress import tqdm

    values = {}
    with jax.enable_x64(True):
        for part in tqdm((_lifts, _landscape, _latitudes), disable=not progress, desc="landscapes", unit="part"):
            values |= part(config)
    return xr.Dataset(values, coords=dict(inverse_temperature=list(config.scales)))


def _lifts(config: Config) -> dict:
    """Loss at random latitudes of both circles, temperatures and soft pairings, with f and near misses, [lift]."""
    rng = np.random.default_rng([config.seed, 1000])
    found = np.empty((4, config.lifts))
    latitudes = rng.uniform(0.0, 1.4, size=(config.lifts, 2))
    temperatures = np.exp(rng.uniform(np.log(0.01), np.log(1.0), size=config.lifts))
    for i in range(config.lifts):
        if i < config.lifts // 2:  # the published pairs, for the figure
            gallery, queries, pairing = _swapped(), PUBLISHED, None
        else:
            gallery, queries, pairing = geometry(i, config)
        similarities = landscapes.circle_similarities(gallery, queries)
        (a, b), temperature = latitudes[i], temperatures[i]
        flat = np.cos(latitudes[i])
        scales = (np.prod(flat), np.cos(a - b), np.max(flat))
        found[0, i] = loss_at(gallery, queries, a, b, temperature, pairing)
        for j, scale in enumerate(scales):
            found[j + 1, i] = landscapes.loss_at_scale(similarities, scale / temperature, pairing=pairing)
    names = ("lift_loss", "lift_predicted", "lift_difference", "lift_one_side")
    scales = dict(
        lift_scale=np.prod(np.cos(latitudes), axis=1) / temperatures,
        lift_other_scale=np.cos(latitudes[:, 0] - latitudes[:, 1]) / temperatures,
        lift_is_published=(np.arange(config.lifts) < config.lifts // 2).astype(np.int32),
    )
    return {name: (("lift",), value) for name, value in zip(names, found, strict=True)} | {
        name: (("lift",), value) for name, value in scales.items()
    }


def _swapped() -> np.ndarray:
    longitudes = PUBLISHED.copy()
    longitudes[:2] = longitudes[1::-1]
    return longitudes


def _landscape(config: Config) -> dict:
    """Loss of the published pairs over [inverse_temperature, latitude], swapped and not, with f."""
    latitudes = np.linspace(-np.pi / 2, np.pi / 2, config.grid)
    measured = np.empty((2, len(config.scales), config.grid))
    predicted = np.empty_like(measured)
    for which, gallery in enumerate((_swapped(), PUBLISHED)):
        similarities = landscapes.circle_similarities(gallery, PUBLISHED)
        for j, k in np.ndindex(measured.shape[1:]):
            scale = config.scales[j]
            measured[which, j, k] = loss_at(gallery, PUBLISHED, latitudes[k], 0.0, 1 / scale)
            predicted[which, j, k] = landscapes.loss_at_scale(similarities, scale * np.cos(latitudes[k]))
    dims = ("matching", "inverse_temperature", "latitude")
    return dict(
        loss=(dims, measured),
        loss_predicted=(dims, predicted),
        latitude=(("latitude",), latitudes),
        matching=(("matching",), ["swapped", "unswapped"]),
    )


def _latitudes(config: Config) -> dict:
    """Latitude of least loss, measured and predicted: the published pairs, swapped and not, [inverse_temperature];
    random geometries at four temperatures around 1/s*, and the same queries paired with themselves, [geometry, ratio]."""
    scales = np.array(config.scales)
    published = landscapes.best_scale(landscapes.circle_similarities(_swapped(), PUBLISHED))
    measured = np.array([measured_latitude(_swapped(), PUBLISHED, 1 / scale) for scale in scales])
    matched = np.array([measured_latitude(PUBLISHED, PUBLISHED, 1 / scale) for scale in scales])
    lowest = np.array([
        loss_at(_swapped(), PUBLISHED, latitude, 0.0, 1 / scale) for latitude, scale in zip(measured, scales, strict=True)
    ])  # fmt: skip
    ratios = np.array([0.7, 1.5, 3.0, 8.0])  # 1/(s*τ)
    found, scale = np.empty((5, config.geometries, len(ratios))), np.empty(config.geometries)
    for i in range(config.geometries):
        gallery, queries, pairing = geometry(i, config)
        similarities = landscapes.circle_similarities(gallery, queries)
        best = landscapes.best_scale(similarities, pairing=pairing).scale
        one_way = _one_directional_scale(similarities, pairing)
        temperatures = 1 / (ratios * (best or config.scales[0]))  # s* = 0: pairs no better than chance, θ* = 90°
        found[0, i] = [measured_latitude(gallery, queries, t, pairing) for t in temperatures]
        found[1, i] = landscapes.best_latitude(best, temperatures)
        found[2, i] = landscapes.best_latitude(one_way, temperatures)
        found[3, i], scale[i] = 1 / temperatures, best
        found[4, i] = [measured_latitude(queries, queries, t) for t in temperatures]
    dims, both = ("inverse_temperature",), ("geometry", "ratio")
    return dict(
        published_latitude=(dims, measured),
        published_predicted=(dims, landscapes.best_latitude(published.scale, 1 / scales)),
        published_twice=(dims, landscapes.best_latitude(2 * published.scale, 1 / scales)),
        published_lowest=(dims, lowest),
        published_loss=((), published.loss),
        published_loss_twice=(
            (),
            landscapes.loss_at_scale(landscapes.circle_similarities(_swapped(), PUBLISHED), 2 * published.scale),
        ),
        published_scale=((), published.scale),
        matched_latitude=(dims, matched),
        random_latitude=(both, found[0]),
        random_predicted=(both, found[1]),
        random_one_way=(both, found[2]),
        random_inverse_temperature=(both, found[3]),
        random_matched=(both, found[4]),
        random_scale=(both[:1], scale),
    )


def _one_directional_scale(similarities, pairing) -> float:
    """Minimum of the loss over the gallery alone, a near miss: each query picks its row, not each row its query."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    one_way = lambda scale: -np.sum(pairing * log_softmax(scale * similarities, axis=0))
    return max(0.0, float(minimize_scalar(one_way, bracket=(1.0, 10.0)).x))


def judge(data) -> list[sim.Row]:
    """One curve, the published latitudes and loss, other geometries, no gap without a wrong match."""

    def one_curve(predicted):
        return equal(predicted, data.lift_loss, 1e-12)

    published = data.published_latitude.values

    def latitude(predicted, measured):
        return sim.Check("absolute", np.degrees(predicted), np.degrees(measured), 1e-3)

    open_at = data.inverse_temperature.values > float(data.published_scale)
    near = [one_curve(data.lift_difference), one_curve(data.lift_one_side)]
    lowest = data.published_lowest.values[open_at]
    matched = np.concatenate([data.matched_latitude.values, data.random_matched.values.ravel()])

    def constant(value):
        return equal(value, lowest, 1e-10)

    return [
        sim.Row(
            "one curve",
            one_curve(data.lift_predicted),
            closest(near),
            "the closest of: f(cos(θ_x − θ_y)/τ); the larger cosine alone",
            label="loss at random latitudes of both circles, τ, longitudes and soft pairings",
        ),
        sim.Row(
            "published latitudes",
            latitude(data.published_predicted.values, published),
            latitude(data.published_twice.values, published),
            "2s*: Euclid's temperature, half of the cosine's",
            label=f"latitude of least loss in degrees, published pairs, 1/τ = {data.inverse_temperature.values.tolist()}",
        ),
        sim.Row(
            "published loss",
            constant(data.published_loss),
            constant(data.published_loss_twice),
            "f(2s*): Euclid's temperature, half of the cosine's",
            label="the loss there, published pairs, every 1/τ > s*, in nats",
        ),
        sim.Row(
            "random longitudes",
            latitude(data.random_predicted.values, data.random_latitude.values),
            latitude(data.random_one_way.values, data.random_latitude.values),
            "s* of one direction of the loss",
            label="latitude of least loss in degrees, random longitudes, swapped and soft matchings",
        ),
        sim.Row(
            "no wrong match",
            latitude(np.zeros(matched.shape), matched),
            latitude(np.zeros(open_at.sum()), published[open_at]),
            "two texts swapped, 1/τ > s*",
            label="latitude of least loss in degrees without a wrong match, published and random longitudes",
        ),
    ]


def draw(data):
    """The landscape, its collapse on one curve, and latitudes against inverse temperature."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.7), layout="constrained")
    grey, colors = plotting.CONTROL, plotting.COLORS
    degrees = np.degrees(data.latitude)
    for i, scale in enumerate(data.inverse_temperature.values):
        here = data.sel(matching="swapped", inverse_temperature=scale)
        look = plotting.series(i, markersize=2.5)
        left.plot(degrees, here.loss_predicted, color=colors[i], linewidth=0.9)
        left.plot(degrees[i::5], here.loss[i::5], linestyle="none", **look)
        left.plot([], [], linestyle="none", label=f"1/τ = {scale:g}", **look)
        star = np.degrees(float(here.published_latitude))
        left.plot([star, -star], 2 * [float(here.published_lowest)], "*", color=colors[i], markersize=6)
    matched = data.sel(matching="unswapped", inverse_temperature=data.inverse_temperature.values[-1])
    left.plot(degrees, matched.loss_predicted, color=grey, linewidth=0.9)
    left.plot(degrees[::3], matched.loss[::3], "x", color=grey, markersize=2.5)
    left.plot([], [], "k-", linewidth=0.9, label="f(cos θ/τ)")
    left.plot([], [], "k*", markersize=6, label="minimum")
    left.plot([], [], "x-", color=grey, linewidth=0.9, markersize=2.5, label="no swap")
    left.set(xlabel="latitude θ (degrees)", ylabel="loss (nats)", xticks=range(-90, 91, 45), ylim=(-0.1, 2.1))
    left.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.08),
        ncols=2,
        handlelength=1,
        columnspacing=0.6,
        fontsize=plotting.SMALL,
    )

    shown = data.lift_is_published.values == 1
    scale, loss = data.lift_scale.values[shown], data.lift_loss.values[shown]
    fine = np.geomspace(max(scale.min(), 0.3), scale.max(), 200)
    similarities = landscapes.circle_similarities(_swapped(), PUBLISHED)
    curve = [landscapes.loss_at_scale(similarities, s) for s in fine]
    middle.plot(data.lift_other_scale.values[shown], loss, "x", color=grey, label="cos(θ − θ′)/τ")
    middle.plot(fine, curve, "k-", linewidth=0.9, label="f")
    middle.plot(scale, loss, "ko", label="cos θ cos θ′/τ")
    middle.plot(float(data.published_scale), float(data.published_loss), "k*", markersize=7, label="minimum")
    middle.set(xscale="log", xlabel="scale", ylabel="loss (nats)", xlim=(fine[0], None), ylim=(0.7, 2.4))
    middle.legend(loc="upper left")

    inverse = np.geomspace(5, 1.3 * max(data.inverse_temperature.values.max(), 100), 200)
    published = np.degrees(landscapes.best_latitude(float(data.published_scale), 1 / inverse))
    right.plot(inverse, published, "k-", linewidth=0.9, label="arccos(s*τ)")
    look = plotting.series(0, color="black", linestyle="none", label="published")
    right.plot(data.inverse_temperature, np.degrees(data.published_latitude), **look)
    right.plot(
        data.inverse_temperature, np.degrees(data.matched_latitude), "k^", fillstyle="none", label="no swap", zorder=1
    )
    for i in range(data.sizes["geometry"]):
        here, label = data.isel(geometry=i), "random" if i == 0 else None
        at = here.random_inverse_temperature.values
        reach = np.geomspace(at.min(), at.max(), 100)
        best = float(here.random_scale)
        right.plot(reach, np.degrees(landscapes.best_latitude(best, 1 / reach)), color=colors[5], linewidth=0.4)
        right.plot(
            at, np.degrees(here.random_one_way), "x", color=grey, markersize=2, zorder=0, label=None if i else "one way"
        )
        right.plot(at, np.degrees(here.random_latitude), "s", color=colors[5], markersize=2, label=label)
    right.set(xscale="log", xlabel="1/τ", ylabel="latitude of least loss (degrees)", ylim=(-4, 140))
    right.set_yticks(range(0, 91, 30))
    right.legend(loc="upper center", ncols=2, fontsize=plotting.SMALL)
    return plotting.lettered(figure)
