"""N1: below a critical gap the variance along it grows; on the sphere there is a second threshold near antipodes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import agreement, closest, equals_one, none
from experiments.setups.clusters import clouds, clusters, flow_variances, time_scale
from experiments.setups.tower_boundaries import pair_boundaries, random_boundaries
from simulator.theory import flows

CLAIM = sim.Claim(
    id="N1",
    title="Critical gap",
    summary="Variance along the gap decays only beyond a critical gap, which the temperature sets.",
    statement=(
        "All variance along the gap of two tight clusters decays iff G² > τ (squared distances) or θ_c < θ < π − θ_c, "
        "θ_c = arccos(√(1+τ²) − τ) (unit sphere); the defect ratio falls on either side. For towers whose kernels act on "
        "samples the threshold is that of the temperature ρτ: at a random start ρ is the alignment of the two kernels, "
        "in the end the first canonical correlation of what the towers can reach."
    ),
    source="derived here: theory.md N1; towers: simulator/theory/towers.py",
    assumes="tight clusters; towers in their linear phase, on full batches",
    expected=dict.fromkeys(
        ("gap norm", "angle", "upper angle", "signs", "defect ratio", "towers", "random towers"), "holds"
    ),
)
CAPTION = (
    "Critical gap. (a, b) Measured rate of the faster mode along the gap of free embeddings, times τ (colour, "
    "clipped at ±1; yellow grows), and measured boundaries on the predicted ones: free embeddings, and MLP towers "
    "that start at the least stable pair of deviations (± 2 standard errors over 8 seeds); grey: near misses. (b) "
    "has an upper boundary, which dropping |·| from |cos θ| misses. (c) The defect ratio falls at every G, at the "
    "predicted rate, while the variance of the common mode grows below G² = τ; grey: its law, which would make the "
    "ratio a criterion. (d) Coupling ρ = sin²θ/(2τ cos θ) at the angle where the common mode's variance over random "
    "towers stands still, during training (± 2 jackknife standard errors over 256 draws of linear towers, 48 draws "
    "of MLPs); lines: predicted from the kernels, from their alignment (limit left) to the first canonical "
    "correlation (limit right)."
)
ISOTROPIC_CORRELATION = 0.6
BOUNDARIES = ("space", "sphere, lower", "sphere, upper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Free embeddings on phase diagrams; MLP towers at their least stable pair; random towers (name: encoder on the
    circle, dim_x, dim_y, noise of the inputs) in time."""

    temperatures: tuple[float, ...] = tuple(np.geomspace(0.01, 1.0, 9).tolist())
    size: float = 1e-4
    seeds: int = 8
    map_points: tuple[int, int] = (15, 31)
    gap_ratios: tuple[float, ...] = (0.05, 0.2, 0.5, 0.9, 2.0, 5.0)
    ratio_temperature: float = 0.2
    num_pairs: int = 64
    dimensions: int = 8
    tower_temperatures: tuple[float, ...] = (0.02, 0.07, 0.2, 0.6)
    tower_width: int = 128
    tower_seeds: int = 8
    tower_pairs: int = 32
    tower_tightness: float = 1e3
    random_linear: tuple[tuple[int, int, float], ...] = ((8, 8, 0.0), (8, 10, 2.0))
    random_width: int = 256
    random_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128)
    random_angles: tuple[float, ...] = tuple(np.linspace(0.35, 1.1, 31).tolist())  # in units of the critical angle
    random_temperature: float = 0.1
    random_draws: int = 256
    network_draws: int = 48
    seed: int = 32


QUICK = Config(
    temperatures=(0.01, 1.0), seeds=3, map_points=(5, 9), gap_ratios=(0.1, 0.5, 3.0),
    tower_temperatures=(0.07, 0.6), tower_width=64, tower_seeds=4, random_linear=((8, 8, 0.0),), random_width=128,
    random_steps=(0, 1, 4, 16, 32), random_angles=tuple(np.linspace(0.35, 1.1, 17).tolist()), random_draws=96,
    network_draws=24,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Boundaries, maps and the defect ratio for free embeddings; boundaries of towers from two kinds of start."""
    import xarray as xr

    from simulator.progress import tqdm

    values, parts = {}, (_boundaries, _maps, _defect_ratios, _networks, random_boundaries)
    with jax.enable_x64(True):
        for part in tqdm(parts, disable=not progress, desc="critical gap", unit="part"):
            values |= part(config)
    return xr.Dataset(
        values,
        coords=dict(
            temperature=list(config.temperatures),
            boundary=list(BOUNDARIES),
            gap_ratio=list(config.gap_ratios),
            tower_temperature=list(config.tower_temperatures),
            optimizer=["SGD", "Adam"],
        ),
        attrs=dict(
            size=config.size, random_temperature=config.random_temperature, ratio_temperature=config.ratio_temperature,
        ),
    )  # fmt: skip


def fastest_rate(a, b, separation: float, temperature: float, sphere: bool) -> float:
    """Measured rate of the faster of the two modes along the gap: half the change of the log of its absolute variance
    over a short flow, a tenth of a time scale."""
    window = 0.1 * time_scale(separation, temperature, sphere)
    x, y = clusters(a, b, separation, sphere)
    start, end = flow_variances(x, y, [0.0, window], temperature, sphere, window / 2)[:, :2]
    return float(np.max(np.log(end / start)) / (2 * window))


def measured_boundary(a, b, low: float, high: float, temperature: float, sphere: bool) -> float:
    """Separation at which the measured rate of the faster mode changes sign, by root finding on flows."""
    from scipy.optimize import brentq

    return brentq(lambda s: fastest_rate(a, b, s, temperature, sphere), low, high, xtol=1e-7, rtol=1e-7)


def _predictions(temperatures, dim: str) -> dict:
    """Boundaries [boundary, temperature] and near misses; the upper one as its distance from antipodes, π − θ."""
    temperature, dims = np.array(temperatures), ("boundary", dim)

    def at(in_angle, gap_norm):
        angle = flows.critical_angle(in_angle)
        return dims, np.stack([gap_norm, angle, angle])

    gap_norm = flows.critical_gap_norm(temperature)
    return dict(
        predicted=at(temperature, gap_norm),
        factor_two=at(temperature / 2, gap_norm / 2**0.5),
        temperature_squared=at(temperature**2, temperature),
    )


def _boundaries(config: Config) -> dict:
    """Measured boundaries of free embeddings [boundary, temperature, seed]."""
    searches = ((0.01, 3.0, False), (0.02, np.pi / 2, True), (np.pi / 2, np.pi - 0.02, True))
    measured = np.empty((3, len(config.temperatures), config.seeds))
    for i, j, seed in np.ndindex(measured.shape):
        low, high, sphere = searches[i]
        root = measured_boundary(*clouds(config, seed), low, high, config.temperatures[j], sphere)
        measured[i, j, seed] = np.pi - root if i == 2 else root
    found = dict(measured=(("boundary", "temperature", "seed"), measured))
    return found | _predictions(config.temperatures, "temperature")


def _networks(config: Config) -> dict:
    """Boundaries of MLP towers from the least stable pair, with what is predicted."""
    predicted = _predictions(config.tower_temperatures, "tower_temperature")
    found = pair_boundaries(config, predicted["predicted"][1])
    dims = ("optimizer", "boundary", "tower_temperature", "tower_seed")
    return {"tower_measured": (dims, found)} | {f"tower_{name}": value for name, value in predicted.items()}


def _maps(config: Config) -> dict:
    """Rate of the faster mode times τ on a grid [geometry, map_temperature, map_point], and where it should grow."""
    temperatures = np.geomspace(min(config.temperatures), max(config.temperatures), config.map_points[0])
    separations = np.stack([
        np.geomspace(0.045, 2.1, config.map_points[1]),
        np.pi * (np.arange(config.map_points[1]) + 0.5) / config.map_points[1],
    ])  # fmt: skip
    rates = np.empty((2, *config.map_points))
    for i, j, k in np.ndindex(rates.shape):
        a, b = clouds(config, 0)
        rates[i, j, k] = temperatures[j] * fastest_rate(a, b, separations[i, k], temperatures[j], i == 1)
    column = temperatures[:, None]
    along = np.array([
        flows.mode_rates_euclidean(separations[0][None, :], column)[:2],
        flows.mode_rates_sphere(separations[1][None, :], column)[:2],
    ])  # fmt: skip
    dims = ("geometry", "map_temperature", "map_point")
    return dict(
        map_rate=(dims, rates),
        map_grows=(dims, (along.max(axis=1) > 0).astype(np.int32)),
        map_common_grows=(dims, (along[:, 0] > 0).astype(np.int32)),
        map_separation=(("geometry", "map_point"), separations),
        map_temperatures=(("map_temperature",), temperatures),
    )


def _defect_ratios(config: Config) -> dict:
    """Rates of ln(defect ratio) and of ln(variance of the common mode), in units of 1/τ, [gap_ratio, seed]."""
    temperature = config.ratio_temperature
    rates = np.empty((2, len(config.gap_ratios), config.seeds))
    for i, seed in np.ndindex(rates.shape[1:]):
        gap_norm = (config.gap_ratios[i] * temperature) ** 0.5
        times = np.array([0.0, 1.0, 2.0]) * 1e-3 * time_scale(gap_norm, temperature, False)
        x, y = clusters(*_isotropic(config, seed), gap_norm, False)
        path = sim.gradient_flow(x, y, times=times, temperature=temperature, max_step=times[1])
        ratios = [defect_ratio(*rows) for rows in zip(*map(np.asarray, path), strict=True)]
        common = flow_variances(x, y, times, temperature, False, times[1])[:, 0]
        for values, rate in zip((ratios, common), rates[:, i], strict=True):
            first, second, third = np.log(values)  # one-sided difference of second order
            rate[seed] = temperature * (4 * second - 3 * first - third) / times[2]
    gap = np.sqrt(np.array(config.gap_ratios) * temperature)
    return dict(
        ratio_rate=(("gap_ratio", "seed"), rates[0]),
        common_rate=(("gap_ratio", "seed"), rates[1]),
        ratio_predicted=(("gap_ratio",), temperature * flows.defect_ratio_rate(gap, temperature, config.dimensions)),
        common_predicted=(("gap_ratio",), 2 * temperature * flows.mode_rates_euclidean(gap, temperature)[0]),
    )


def defect_ratio(x: np.ndarray, y: np.ndarray) -> float:
    """Variance of the gallery along the gap over its mean direction's, as in `GapMeasures.defect_ratio_x`."""
    deviations, gap = x - x.mean(axis=0)[None, :], y.mean(axis=0) - x.mean(axis=0)
    return float(np.mean((deviations @ gap) ** 2) / (gap @ gap) / np.mean(deviations**2))


def _isotropic(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deviations whose sample covariances are exactly ∝ I, each modality's and between the two."""
    rng = np.random.default_rng([config.seed, seed])
    draws = rng.normal(size=(config.num_pairs, 2 * config.dimensions))
    axes = np.linalg.qr(draws - draws.mean(axis=0)[None, :])[0] * config.num_pairs**0.5 * config.size
    a, other = np.split(axes, 2, axis=1)
    return a, ISOTROPIC_CORRELATION * a + (1 - ISOTROPIC_CORRELATION**2) ** 0.5 * other


def judge(data) -> list[sim.Row]:
    """Three boundaries, the signs on the grid, the defect ratio, and towers from two kinds of start."""
    # Errors are first order in ε, times a third moment over ε times a second: at most the largest of a few hundred
    # deviations, 4 standard deviations. Boundaries: ε/√τ, in angle √2 times that. Rates: Gε/τ of the faster mode's.
    size, ratios = data.attrs["size"], data.gap_ratio.values
    tolerance = 4 * 2**0.5 * size / float(data.temperature.min()) ** 0.5
    ratio_tolerance = 4 * size * np.max((1 + ratios) / np.sqrt(ratios * data.attrs["ratio_temperature"]))
    misses = ("factor_two", "temperature_squared")

    def boundary(name, label, which):
        def over(prediction):
            measured, predicted = data.measured.sel(boundary=which).values, data[prediction].sel(boundary=which).values
            return equals_one(measured / predicted[:, None], tolerance)

        near = closest(over(miss) for miss in misses)
        return sim.Row(name, over("predicted"), near, "the closest of: τ/2 for τ; τ² for τ", label=label)

    def wrong_cells(predicted):
        wrong = (data.map_rate > 0) != (data[predicted] > 0)
        return none(wrong.sum(("map_temperature", "map_point")))

    def rate(predicted):
        return equals_one(data.ratio_rate.values / predicted.values[:, None], ratio_tolerance)

    def networks(prediction):  # a mean over seeds has an error of some 0.007
        return equals_one(data.tower_measured.mean("tower_seed") / data[f"tower_{prediction}"], 0.03)

    def in_time(predicted):
        return agreement(predicted.broadcast_like(data.random_measured), data.random_measured, data.random_error)

    near_networks = closest(networks(miss) for miss in misses)
    ends = [in_time(data.random_ends.isel(end=end)) for end in (0, 1)]
    return [
        boundary("gap norm", "critical gap norm, measured over √τ, every τ", "space"),
        boundary("angle", "critical angle, measured over θ_c(τ), every τ", "sphere, lower"),
        boundary("upper angle", "upper critical angle, π minus measured over θ_c(τ), every τ", "sphere, upper"),
        sim.Row(
            "signs",
            wrong_cells("map_grows"),
            wrong_cells("map_common_grows"),
            "|cos θ| without |·|: no upper boundary",
            label="cells of the two phase diagrams with the wrong sign",
        ),
        sim.Row(
            "defect ratio",
            rate(data.ratio_predicted),
            rate(data.common_predicted),
            "the ratio as a criterion: −(4/τ)(G²/τ − 1)",
            label="rate of ln(defect ratio), measured over predicted, below G² = τ and above",
        ),
        sim.Row(
            "towers",
            networks("predicted"),
            near_networks,
            "the closest of: τ/2 for τ; τ² for τ",
            label="all three boundaries of MLP towers, SGD and Adam, mean over seeds over predicted, every τ",
        ),
        sim.Row(
            "random towers",
            in_time(data.random_predicted),
            closest(ends),
            "the closest of: the kernels' alignment at all times; the canonical correlation at all times",
            label="apparent critical angle of random towers in time, linear and MLP",
        ),
    ]


def draw(data):
    """Two phase diagrams, the defect ratio, and the towers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, 2, figsize=(plotting.TWO_COLUMNS, 5.2), layout="constrained", gridspec_kw=dict(height_ratios=(1.25, 1))
    )
    _draw_map(axes[0][0], data, 0)
    image = _draw_map(axes[0][1], data, 1)
    figure.colorbar(image, ax=axes[0][1], label="rate of the faster mode · τ", ticks=(-1, 0, 1))
    _draw_ratio(axes[1][0], data)
    _draw_towers(axes[1][1], data)
    plotting.legend_above(figure, axes[0][0], ncols=6, columnspacing=1.2)
    return plotting.lettered(figure)


def _draw_map(axis, data, geometry: int):
    here = data.isel(geometry=geometry)
    scale = (1.0, 180 / np.pi)[geometry]
    image = axis.pcolormesh(
        here.map_temperatures, scale * here.map_separation, here.map_rate.T, vmin=-1, vmax=1, cmap="cividis",
        shading="nearest", alpha=0.6, linewidth=0, rasterized=True,
    )  # fmt: skip
    line = np.geomspace(float(here.map_temperatures.min()), float(here.map_temperatures.max()), 100)
    predict = (flows.critical_gap_norm, flows.critical_angle)[geometry]
    for temperature, style, label in (
        (line / 2, "--", "τ/2 for τ"),
        (line**2, ":", "τ² for τ"),
        (line, "-", "predicted"),
    ):
        color, curve = "black" if style == "-" else plotting.CONTROL, scale * predict(temperature)
        axis.plot(line, curve, color=color, linestyle=style, label=label)
        if geometry == 1:
            axis.plot(line, 180 - curve, color=color, linestyle=style)
    for which, boundary in [(0, "space")] if geometry == 0 else [(0, "sphere, lower"), (180, "sphere, upper")]:
        shown = lambda values: which - values if which else values  # noqa: B023
        place = scale * data.measured.sel(boundary=boundary).mean("seed")
        points = dict(marker="o", linestyle="none", color="black", markerfacecolor="white")
        axis.plot(data.temperature, shown(place), label=None if which else "free embeddings", **points)
        for k, optimizer in enumerate(data.optimizer.values):
            towers = scale * data.tower_measured.sel(boundary=boundary, optimizer=optimizer)
            error = 2 * towers.std("tower_seed", ddof=1) / towers.sizes["tower_seed"] ** 0.5
            at = data.tower_temperature * (0.95, 1.05)[k]
            look = dict(fmt="s^"[k], color=plotting.COLORS[(1, 3)[k]], markersize=3.5, zorder=3)
            label = None if which else f"MLP towers, {optimizer}"
            axis.errorbar(at, shown(towers.mean("tower_seed")), error, label=label, **look)
    if geometry == 0:
        axis.set(yscale="log", ylabel="gap norm G", ylim=tuple(here.map_separation.values[[0, -1]]))
    else:
        axis.set(ylabel="angle of the clusters θ (degrees)", yticks=range(0, 181, 45))
    axis.set(xscale="log", xlabel="temperature τ", xlim=(line[0], line[-1]))
    axis.set_title(("squared distances", "unit sphere")[geometry])
    return image


def _draw_ratio(axis, data):
    ratio = data.gap_ratio.values
    line = np.geomspace(ratio.min() / 1.5, ratio.max() * 1.5, 100)
    slope = float((data.ratio_predicted / data.gap_ratio)[0])  # −4 (1 − 1/d): the law is linear in G²/τ
    axis.plot(line, slope * line, color=plotting.COLORS[0])
    axis.plot(ratio, data.ratio_rate.mean("seed"), "o", color=plotting.COLORS[0], label="defect ratio")
    axis.plot(ratio, data.common_rate.mean("seed"), "s", color=plotting.COLORS[5], label="common mode")
    axis.plot(line, 4 * (1 - line), color=plotting.CONTROL, linestyle="--", linewidth=0.8, label="its law")
    axis.axhline(0, color="black", linestyle=":", linewidth=0.6, label="no change")
    axis.axvline(1, color="black", linestyle="-.", linewidth=0.6, label="G² = τ")
    axis.set_yscale("asinh", linear_width=1)
    axis.set(xscale="log", xlabel="G²/τ", ylabel="rate of ln(·) · τ")
    axis.set(yticks=(-20, -5, -1, 0, 1, 3), yticklabels=("−20", "−5", "−1", "0", "1", "3"), ylim=(-60, 5))
    axis.set_title("defect ratio")
    axis.legend(loc="lower left")


def _draw_towers(axis, data):
    tau = data.attrs["random_temperature"]
    coupling = lambda angle: np.sin(angle) ** 2 / (2 * tau * np.cos(angle))
    for k, name in enumerate(data.random.values):
        here, color = data.isel(random=k), (plotting.COLORS[2], plotting.COLORS[4], "black")[k]
        low, mean, high = (coupling(here.random_measured + s * here.random_error).values for s in (-2, 0, 2))
        axis.plot(here.random_time, coupling(here.random_predicted), color=color)
        axis.errorbar(
            here.random_time, mean, [mean - low, high - mean], fmt=plotting.MARKERS[k], color=color, label=str(name)
        )
        for end, span in enumerate(((0.0, 0.12), (0.88, 1.0))):
            axis.axhline(coupling(float(here.random_ends[end])), *span, color=color, linestyle=":", linewidth=0.8)
    axis.plot([], [], "k:", linewidth=0.8, label="limits")
    axis.set(xscale="log", xlabel="time · largest kernel eigenvalue / τ", ylabel="coupling ρ", ylim=(0, 1.05))
    axis.set_title("random towers")
    axis.legend(loc="lower right", ncols=2)
