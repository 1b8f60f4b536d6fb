"""N1: below a critical gap the variance along it grows; on the sphere there is a second threshold near antipodes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax

import simulator as sim
from experiments import _figures
from experiments.compression import clouds, clusters, flow_variances, mode_variances, time_scale
from simulator.theory import flows

CLAIM = sim.Claim(
    id="N1",
    title="Critical gap",
    statement=(
        "All variance along the gap of two tight clusters decays iff G² > τ (squared distances) or θ_c < θ < π − θ_c, "
        "θ_c = arccos(√(1+τ²) − τ) (unit sphere); the defect ratio falls on either side. Random linear towers show the "
        "threshold of the temperature τ(1−κ)/(1+κ), κ the mismatch of their kernels."
    ),
    source="derived here: theory.md N1; towers: simulator/theory/flows.py",
    assumes="tight clusters; towers near their start, plain gradient descent",
    expected=("holds", "holds", "holds", "holds", "holds", "holds", "holds", "holds if"),
)
CAPTION = (
    "Critical gap. (a), (b) Measured rate of the faster mode along the gap, times τ (colour, clipped at ±1; red "
    "grows), and measured boundaries (points) on the predicted ones (black); grey: near misses. (b) has an upper "
    "boundary, which dropping |·| from |cos θ| misses. (c) The defect ratio falls at every G, at the predicted rate, "
    "while the variance of the common mode grows below G² = τ; grey: the law that would make the ratio a criterion. "
    "(d) Threshold of random towers (± 2 jackknife standard errors over seeds) against the mismatch κ that the kernels "
    "of linear towers have on the same inputs; line: predicted for linear towers, dotted: for free embeddings."
)
TOWER_STEPS, ISOTROPIC_CORRELATION = 4, 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Free embeddings on phase diagrams; towers: linear ones by (dim_x, dim_y), the first with the least like kernels,
    MLPs by (width, dim_x, dim_y), the first wide and with many inputs."""

    temperatures: tuple[float, ...] = tuple(np.geomspace(0.01, 1.0, 9).tolist())
    size: float = 1e-4
    seeds: int = 8
    map_points: tuple[int, int] = (15, 31)
    gap_ratios: tuple[float, ...] = (0.05, 0.2, 0.5, 0.9, 2.0, 5.0)
    ratio_temperature: float = 0.2
    linear_towers: tuple[tuple[int, int], ...] = ((8, 8), (16, 16), (32, 48), (128, 128))
    networks: tuple[tuple[int, int, int], ...] = ((256, 128, 128), (64, 32, 48), (16, 12, 64))
    tower_temperature: float = 0.1
    tower_angles: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1)  # in units of the critical angle
    tower_tightness: float = 300.0
    tower_seeds: int = 96
    latent_dim: int = 8
    num_pairs: int = 64
    dimensions: int = 8
    seed: int = 0


QUICK = Config(
    temperatures=(0.01, 0.1, 1.0), seeds=4, map_points=(5, 9), gap_ratios=(0.1, 0.5, 3.0), linear_towers=((8, 8),),
    networks=((128, 128, 128),), tower_angles=(0.5, 0.8, 1.1), tower_seeds=48,
)  # fmt: skip


def measure(config: Config, *, progress: bool = False):
    """Boundaries, maps and the defect ratio for free embeddings; boundaries of towers."""
    import xarray as xr
    from tqdm import tqdm

    kinds = [("linear", *dims) for dims in config.linear_towers] + [*config.networks]
    values, towers = {}, np.empty((len(kinds), 2))
    with tqdm(total=3 + len(kinds), disable=not progress, desc="critical gap", unit="part") as bar:
        with jax.enable_x64(True):
            for part in (_boundaries, _maps, _defect_ratios):
                values |= part(config)
                bar.update()
        for i, kind in enumerate(kinds):
            towers[i] = _tower_boundary(kind, config)
            bar.update()
    mismatch = np.array([flows.kernel_mismatch(config.latent_dim, *kind[1:]) for kind in kinds])
    is_linear = np.array([kind[0] == "linear" for kind in kinds])
    temperature = config.tower_temperature
    free, half = (float(flows.critical_angle(t)) for t in (temperature, temperature / 2))
    values |= dict(
        tower_boundary=(("tower", "statistic"), towers),
        tower_predicted=(("tower",), flows.critical_angle(temperature, mismatch=np.where(is_linear, mismatch, 0.0))),
        tower_mismatch=(("tower",), mismatch),
        tower_linear=(("tower",), is_linear.astype(np.int32)),
    )
    return xr.Dataset(
        values,
        coords=dict(
            temperature=list(config.temperatures),
            boundary=["space", "sphere, lower", "sphere, upper"],
            gap_ratio=list(config.gap_ratios),
            tower=["linear" if kind[0] == "linear" else f"MLP {kind[0]}" for kind in kinds],
            statistic=["mean", "standard error"],
        ),
        attrs=dict(tower_temperature=temperature, free_angle=free, free_angle_factor_two=half),
    )


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


def _boundaries(config: Config) -> dict:
    """Measured boundaries [boundary, temperature, seed], predicted ones and near misses [boundary, temperature]; the
    upper one as its distance from antipodes, π − θ."""
    searches = ((0.01, 3.0, False), (0.02, np.pi / 2, True), (np.pi / 2, np.pi - 0.02, True))
    measured = np.empty((3, len(config.temperatures), config.seeds))
    for i, j, seed in np.ndindex(measured.shape):
        low, high, sphere = searches[i]
        root = measured_boundary(*clouds(config, seed), low, high, config.temperatures[j], sphere)
        measured[i, j, seed] = np.pi - root if i == 2 else root
    temperature = np.array(config.temperatures)
    dims = ("boundary", "temperature")

    def predicted(temperature_in_angle, gap_norm):
        angle = flows.critical_angle(temperature_in_angle)
        return dims, np.stack([gap_norm, angle, angle])

    gap_norm = flows.critical_gap_norm(temperature)
    return dict(
        measured=((*dims, "seed"), measured),
        predicted=predicted(temperature, gap_norm),
        factor_two=predicted(temperature / 2, gap_norm / 2**0.5),
        temperature_squared=predicted(temperature**2, temperature),
    )


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


def _tower_boundary(kind, config: Config) -> tuple[float, float]:
    """Angle at which the mean absolute variance of the common mode stops growing, on held-out pairs, with its
    jackknife standard error over seeds; NaN when it does not change sign."""
    name, dim_x, dim_y = kind
    tower = sim.Linear(16) if name == "linear" else sim.MLP(name, embed_dim=16)
    pairs, temperature = config.num_pairs, config.tower_temperature
    experiment = sim.Experiment(
        data=sim.LatentPairs(pairs, latent_dim=config.latent_dim, dim_x=dim_x, dim_y=dim_y, noise=0.0),
        encoder_x=tower, encoder_y=tower, start=sim.Cones(tightness=config.tower_tightness),
        loss=sim.InfoNCE(temperature), optimizer=optax.sgd, batch_size=pairs, steps=TOWER_STEPS, eval_pairs=pairs,
        eval_points=3,
    )  # fmt: skip
    angles = np.array(config.tower_angles) * float(flows.critical_angle(temperature))
    # Outputs are `tightness` long, and a linear tower's kernel grows with its inputs: a step of this size moves the
    # embeddings by the same small amount for every tower. The first, negligible rate gives the start.
    rate = temperature * config.tower_tightness**2 / (TOWER_STEPS * (dim_x + dim_y))
    over = {"start.angle": angles.tolist(), "learning_rate": [1e-9 * rate, rate]}
    runs = sim.sweep(experiment, over=over, seeds=config.tower_seeds, key=jax.random.key(config.seed))
    x, y = (runs[name].transpose("start.angle", "seed", "learning_rate", ...).values.astype(float) for name in "xy")
    variances = np.empty(x.shape[:3])
    for point in np.ndindex(variances.shape):
        variances[point] = mode_variances(x[point], y[point], True)[0]
    growth = variances[:, :, 1] - variances[:, :, 0]

    def crossing(values):
        falls = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
        if len(falls) == 0:
            return np.nan
        i, j = falls[0], falls[0] + 1
        # Linear in θ², of which the rates are smooth functions.
        return np.sqrt(angles[i] ** 2 + (angles[j] ** 2 - angles[i] ** 2) * values[i] / (values[i] - values[j]))

    without = np.array([crossing(np.delete(growth, s, axis=1).mean(axis=1)) for s in range(config.tower_seeds)])
    return crossing(growth.mean(axis=1)), float(np.std(without) * (config.tower_seeds - 1) ** 0.5)


def judge(data) -> list[sim.Row]:
    """Three boundaries, the signs on the grid, the defect ratio twice, and towers twice."""

    def boundary(name, which, tolerance=1e-3):
        def over(prediction):
            measured, predicted = data.measured.sel(boundary=which).values, data[prediction].sel(boundary=which).values
            return sim.Check("identity", np.ones(measured.shape), measured / predicted[:, None], tolerance)

        near = min((over(miss) for miss in ("factor_two", "temperature_squared")), key=lambda check: check.error())
        return sim.Row(name, over("predicted"), near, "the closest of: τ/2 for τ; τ² for τ")

    def wrong_cells(predicted):
        wrong = (data.map_rate > 0) != (data[predicted] > 0)
        return sim.Check("absolute", np.zeros(2), wrong.sum(("map_temperature", "map_point")).values, 0.5)

    def ratio(predicted):
        measured = data.ratio_rate.values / predicted.values[:, None]
        return sim.Check("identity", np.ones(measured.shape), measured, 5e-3)

    def falls(rate):
        return sim.Check("absolute", np.zeros(rate.shape), np.maximum(rate.values, 0.0), 1e-9)

    linear = data.isel(tower=np.flatnonzero(data.tower_linear.values == 1))
    over_free = data.tower_boundary.values / data.attrs["free_angle"]
    wide, unlike = (over_free[data.tower_linear.values == kind][0] for kind in (0, 1))
    pairs = zip(data.tower.values, over_free, strict=True)
    listed = ", ".join(f"{mean:.2f} ± {error:.2f} ({name})" for name, (mean, error) in pairs)

    def towers(predicted):
        measured, error = linear.tower_boundary.values.T
        return sim.Check("monte_carlo", predicted, measured, 4.0, error)

    def free(tower, predicted=1.0):
        return sim.Check("identity", np.array([predicted]), tower[:1], 0.1)

    return [
        boundary("critical gap norm, measured over √τ, every τ", "space"),
        boundary("critical angle, measured over θ_c(τ), every τ", "sphere, lower"),
        boundary("upper critical angle, π minus measured over θ_c(τ), every τ", "sphere, upper"),
        sim.Row(
            "cells of the two phase diagrams with the wrong sign",
            wrong_cells("map_grows"),
            wrong_cells("map_common_grows"),
            "|cos θ| without |·|: no upper boundary",
        ),
        sim.Row(
            "rate of ln(defect ratio), measured over predicted, every G",
            ratio(data.ratio_predicted),
            ratio(data.common_predicted),
            "the ratio as a criterion: −(4/τ)(G²/τ − 1)",
        ),
        sim.Row(
            "τ · rate of ln(defect ratio), below G² = τ and above",
            falls(data.ratio_rate),
            falls(data.common_rate),
            "the absolute variance of the common mode",
        ),
        sim.Row(
            "critical angle of linear towers against that of τ(1−κ)/(1+κ)",
            towers(linear.tower_predicted.values),
            towers(np.full(linear.sizes["tower"], data.attrs["free_angle"])),
            "κ = 0, the angle of free embeddings",
        ),
        sim.Row(
            "critical angle of wide MLP towers over θ_c(τ)",
            free(wide),
            free(wide, data.attrs["free_angle_factor_two"] / data.attrs["free_angle"]),
            "τ/2 for τ",
            outside=free(unlike),
            condition=f"the kernels of the two towers act alike on the samples; measured over θ_c(τ): {listed}",
        ),
    ]


def draw(data):
    """Two phase diagrams, the defect ratio, and the towers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, 2, figsize=(_figures.TWO_COLUMNS, 5.2), layout="constrained", gridspec_kw=dict(height_ratios=(1.25, 1))
    )
    _draw_map(axes[0][0], data, 0)
    image = _draw_map(axes[0][1], data, 1)
    figure.colorbar(image, ax=axes[0][1], label="rate of the faster mode · τ", ticks=(-1, 0, 1))
    _draw_ratio(axes[1][0], data)
    _draw_towers(axes[1][1], data)
    return figure


def _draw_map(axis, data, geometry: int):
    here = data.isel(geometry=geometry)
    scale = (1.0, 180 / np.pi)[geometry]
    image = axis.pcolormesh(
        here.map_temperatures, scale * here.map_separation, here.map_rate.T, vmin=-1, vmax=1, cmap="RdBu_r",
        shading="nearest", alpha=0.6, linewidth=0, rasterized=True,
    )  # fmt: skip
    line = np.geomspace(float(here.map_temperatures.min()), float(here.map_temperatures.max()), 100)
    predict = (flows.critical_gap_norm, flows.critical_angle)[geometry]
    for temperature, style, label in (
        (line / 2, "--", "τ/2 for τ"),
        (line**2, ":", "τ² for τ"),
        (line, "-", "predicted"),
    ):
        color, curve = "black" if style == "-" else _figures.CONTROL, scale * predict(temperature)
        axis.plot(line, curve, color=color, linestyle=style, label=label)
        if geometry == 1:
            axis.plot(line, 180 - curve, color=color, linestyle=style)
    points = dict(marker="o", linestyle="none", color="black", markerfacecolor="white")
    measured = scale * data.measured.mean("seed").transpose("boundary", ...).values
    if geometry == 0:
        axis.plot(data.temperature, measured[0], label="measured", **points)
        axis.set(yscale="log", ylabel="gap norm G", ylim=tuple(here.map_separation.values[[0, -1]]))
    else:
        axis.plot(data.temperature, measured[1], label="measured", **points)
        axis.plot(data.temperature, 180 - measured[2], **points)
        axis.set(ylabel="angle of the clusters θ (degrees)", yticks=range(0, 181, 45))
    axis.set(xscale="log", xlabel="temperature τ", xlim=(line[0], line[-1]))
    axis.set_title(("(a) Squared distances", "(b) Unit sphere")[geometry], loc="left")
    axis.legend(loc=("lower right", "center left")[geometry], frameon=True, framealpha=0.85, edgecolor="none")
    return image


def _draw_ratio(axis, data):
    ratio = data.gap_ratio.values
    line = np.geomspace(ratio.min() / 1.5, ratio.max() * 1.5, 100)
    slope = float((data.ratio_predicted / data.gap_ratio)[0])  # −4 (1 − 1/d): the law is linear in G²/τ
    axis.plot(line, slope * line, color=_figures.COLORS[0])
    axis.plot(ratio, data.ratio_rate.mean("seed"), "o", color=_figures.COLORS[0], label="defect ratio")
    axis.plot(line, 4 * (1 - line), color=_figures.CONTROL, linestyle="--", linewidth=0.8)
    axis.plot(ratio, data.common_rate.mean("seed"), "s", color=_figures.COLORS[1], label="common mode's variance")
    axis.axhline(0, color="black", linewidth=0.4)
    axis.axvline(1, color="black", linewidth=0.4)
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xscale="log", xlabel="G²/τ", ylabel="rate of ln(·) · τ")
    axis.set_title("(c) Defect ratio", loc="left")
    axis.legend(loc="lower left")


def _draw_towers(axis, data):
    free = data.attrs["free_angle"]
    line = np.linspace(0, 1.2 * float(data.tower_mismatch.max()), 100)
    predicted = flows.critical_angle(data.attrs["tower_temperature"], mismatch=line)
    axis.plot(line, predicted / free, color=_figures.COLORS[0], label="linear, predicted")
    axis.axhline(1, color=_figures.CONTROL, linestyle=":", linewidth=0.8)
    for i, name in enumerate(data.tower.values):
        is_linear = int(data.tower_linear[i]) == 1
        mean, error = data.tower_boundary[i].values / free
        axis.errorbar(
            float(data.tower_mismatch[i]), mean, 2 * error, fmt="osv^D<>"[0 if is_linear else i % 6 + 1],
            color=_figures.COLORS[0 if is_linear else 1], label=None if is_linear and i else str(name),
        )  # fmt: skip
    axis.set(xlabel="kernel mismatch κ", ylabel="measured angle / θ_c(τ)")
    axis.set_title("(d) Towers", loc="left")
    axis.legend()
