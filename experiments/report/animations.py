"""The gap emerging on a sphere one can see: python -m experiments.report.animations [--redraw] [FOLDER]

Two pairs of small towers with three outputs, alike but for the temperature, are trained from two cones at a right angle. The
stored rows (emergence.nc) are enough to draw the animation (emergence.gif) again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.held_out import train
from experiments.setups.trained_towers import centred, random_pair, stack, with_output
from simulator.losses import normalize_rows
from simulator.training.runs import evaluation_steps

STEM = "emergence"
SIDE_COLORS = (plotting.COLORS[0], plotting.COLORS[1])  # gallery, queries
YAW, TILT = np.radians(22), np.radians(16)  # of the view, so that circles around the gap are seen as ellipses
CAPTION = (
    "One run of towers with three outputs, trained from two cones at a right angle at a small and a large temperature. "
    "Spheres: all pairs, those on the far side pale; arrow: the gap vector. Within some thirty steps the variance along the "
    "gap falls to a few per cent of the mean direction's (compression), so that both modalities lie on circles around it, "
    "whatever the temperature; then the gap stays, and closes the earlier the larger the temperature. On a sphere of so few "
    "dimensions it closes in the end at the small one too. (Without a gap, compression says nothing.)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Temperatures, towers and their data; chosen so that one can see what happens. frames: steps that are stored."""

    temperatures: tuple[float, float] = (0.01, 0.1)
    num_pairs: int = 80
    latent_dim: int = 2
    width: int = 64
    angle: float = np.pi / 2
    tightness: float = 5.0
    learning_rate: float = 1e-3
    steps: int = 3000
    frames: int = 110
    seed: int = 0


QUICK = Config(num_pairs=12, width=8, steps=12, frames=5)


def measure(config: Config):
    """Unit rows x, y [temperature, step, pair, 3], and of them gap norm, variance along the gap over the mean direction's
    (mean of both modalities) and loss [temperature, step]."""
    import xarray as xr

    steps = evaluation_steps(config.steps, config.frames)
    with jax.enable_x64(True):
        graphs, params, inputs = _start(config)
        one = [stack([tree]) for tree in (params, inputs, inputs)]
        rows = np.array([
            [np.asarray(normalize_rows(raw[0])) for raw in train(graphs, *one, tau, config.learning_rate, jnp.asarray(steps))]
            for tau in config.temperatures
        ])  # fmt: skip
        rows = rows.astype(np.float32)  # what is stored is what is measured
        measures = np.array([
            [_measures(x, y, tau) for x, y in zip(*pair, strict=True)]
            for pair, tau in zip(rows.astype(float), config.temperatures, strict=True)
        ])  # fmt: skip
    on_rows, on_steps = ("temperature", "step", "pair", "coordinate"), ("temperature", "step")
    names = ("gap_norm", "compression", "loss")
    return xr.Dataset(
        dict(x=(on_rows, rows[:, 0]), y=(on_rows, rows[:, 1]))
        | {name: (on_steps, measures[..., i]) for i, name in enumerate(names)},
        coords=dict(temperature=list(config.temperatures), step=steps),
    )


def _start(config: Config):
    """Graphs, parameters and inputs of two random towers whose outputs are two cones at the angle."""
    rng, n = np.random.default_rng(config.seed), config.num_pairs
    first, second = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
    means = first, np.cos(config.angle) * first + np.sin(config.angle) * second
    tower, data = sim.MLP(config.width, embed_dim=3), sim.LatentPairs(n, latent_dim=config.latent_dim)
    graphs, params, inputs, seen = random_pair(tower, data, n, rng)
    placed = []
    for param, sees, mean in zip(params, seen, means, strict=True):
        kernel = np.asarray(param["out"]["kernel"])
        size = np.sum(centred(sees @ kernel) ** 2 / n) ** 0.5
        placed.append(with_output(param, sees, kernel, config.tightness * size * mean))
    return graphs, tuple(placed), inputs


@jax.jit
def _measures(x, y, temperature):
    found = sim.measure_gap(x, y)
    compression = 0.5 * (found.defect_ratio_x + found.defect_ratio_y)
    return jnp.stack([found.gap_norm, compression, sim.info_nce(x, y, temperature=temperature)])


def view_of(x, y) -> np.ndarray:
    """Axes (right, up, towards the viewer) [3, 3] of a picture in which the gap of rows x, y points to the right, seen from the
    side of both means, then turned a little."""
    gap, middle = np.mean(y, axis=0) - np.mean(x, axis=0), np.mean(x, axis=0) + np.mean(y, axis=0)
    right = gap / np.linalg.norm(gap)
    towards = middle - (middle @ right) * right
    towards = towards / np.linalg.norm(towards)
    return _turn() @ np.stack([right, np.cross(towards, right), towards])


def draw_sphere(axis, x, y, view, *, size: float = 9.0):
    """Both modalities on the unit sphere, and the gap vector between their means."""
    axis.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    axis.axis("off")
    circle = np.linspace(0, 2 * np.pi, 100)
    axis.fill(np.cos(circle), np.sin(circle), color=plotting.CONTROL, alpha=0.09, linewidth=0, zorder=0)
    axis.plot(np.cos(circle), np.sin(circle), color=plotting.CONTROL, alpha=0.7, linewidth=0.8, zorder=1)
    # Circles around the first gap: rows that vary only orthogonally to it lie on one of them.
    for height in (-0.75, -0.4, 0.0, 0.4, 0.75):
        radius = (1 - height**2) ** 0.5
        ring = np.stack([np.full_like(circle, height), radius * np.cos(circle), radius * np.sin(circle)])
        turned = _turn() @ ring
        front = np.where(turned[2] >= 0, 1.0, np.nan)
        axis.plot(turned[0] * front, turned[1] * front, color=plotting.CONTROL, alpha=0.3, linewidth=0.6, zorder=1)
    for rows, color in zip((x, y), SIDE_COLORS, strict=True):
        right, up, depth = view @ np.asarray(rows, float).T
        for chosen, alpha, order in ((depth < 0, 0.22, 2), (depth >= 0, 0.85, 4)):
            axis.scatter(right[chosen], up[chosen], s=size, color=color, alpha=alpha, linewidth=0, zorder=order)
    start, end = (view @ np.mean(rows, axis=0) for rows in (x, y))
    arrow = dict(arrowstyle="-|>", color="black", linewidth=1.4, shrinkA=0, shrinkB=0, mutation_scale=9)
    if np.linalg.norm(end - start) > 0.02:
        axis.annotate("", end[:2], start[:2], arrowprops=arrow, zorder=5)


def _turn() -> np.ndarray:
    """From (along the gap, up, towards the viewer) to the picture."""
    yaw = np.array([[np.cos(YAW), 0, -np.sin(YAW)], [0, 1, 0], [np.sin(YAW), 0, np.cos(YAW)]])
    return np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]) @ yaw


def animate(data, path: Path | str, *, seconds: float = 10.0, dpi: int = 100) -> Path:
    """Write the GIF of a stored training: spheres on the left; on the right gap norm, compression and loss so far."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import PillowWriter

    from simulator.storage.files import whole_file

    steps, temperatures = data.step.values, data.temperature.values
    with plt.style.context(plotting.STYLE):
        figure = plt.figure(figsize=(plotting.TWO_COLUMNS, 3.1))
        spheres = [figure.add_axes((0.005 + 0.325 * i, 0.02, 0.315, 0.80)) for i in range(len(temperatures))]
        panels = [figure.add_axes((0.745, 0.72 - 0.295 * i, 0.245, 0.235)) for i in range(3)]
        dots = [_curves(axis, data, name, i == 2) for i, (axis, name) in enumerate(zip(panels, _MEASURES, strict=True))]
        title = figure.text(0.33, 0.93, "", ha="center", fontsize=10)
        for side, color, at in (("gallery", SIDE_COLORS[0], 0.02), ("queries", SIDE_COLORS[1], 0.12)):
            figure.text(at, 0.935, f"● {side}", color=color, fontsize=8)
        views = [view_of(*(data[m].isel(temperature=i, step=0).values for m in "xy")) for i in range(len(spheres))]
        pace = max(1, round(len(steps) / seconds))  # pictures per second
        writer = PillowWriter(fps=pace)
        with whole_file(Path(path)) as draft, writer.saving(figure, str(draft), dpi):
            for number in [*range(len(steps)), *[len(steps) - 1] * int(1.5 * pace)]:
                here = data.isel(step=number)
                for i, axis in enumerate(spheres):
                    axis.clear()
                    draw_sphere(axis, here.x.values[i], here.y.values[i], views[i])
                    axis.set_title(f"τ = {temperatures[i]:g}", color=LINES[i], fontsize=10, loc="center")
                for lines in dots:
                    for line, values in lines:
                        line.set_data(_shown(steps[: number + 1]), values[: number + 1])
                title.set_text(f"step {steps[number]:,}")
                writer.grab_frame()
        plt.close(figure)
    return Path(path)


LINES = ("black", plotting.COLORS[2])  # small and large temperature
_MEASURES = dict(gap_norm="gap norm G", compression="compression", loss="loss (nats)")


def _shown(steps):
    """Steps on a logarithmic axis, the start at 0.5."""
    return np.maximum(np.asarray(steps, float), 0.5)


def _curves(axis, data, name: str, is_last: bool):
    """Empty lines of one measure in their final axes, with the values they will show."""
    values = data[name].values
    lines = []
    for curve, color in zip(values, LINES, strict=False):
        axis.plot(_shown(data.step), curve, color=color, linewidth=0.6, alpha=0.18)
        lines.append((axis.plot([], [], color=color, linewidth=1.4)[0], curve))
    axis.set(xscale="log", xlim=(0.5, data.step.values[-1]))
    if name == "gap_norm":
        axis.set(ylim=(0, 1.1 * values.max()))
    else:
        axis.set_yscale("log")
    axis.set_ylabel(_MEASURES[name])
    axis.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"] if is_last else [])
    axis.minorticks_off()
    if is_last:
        axis.set_xlabel("step", labelpad=1)
    return lines


def main(out: Path | str = "figures", config: Config = Config(), *, redraw: bool = False) -> list[Path]:
    """Train, store and animate; redraw: animate what is stored. Returns the files written."""
    from simulator.storage.identity import describe_config
    from simulator.storage.results import load_dataset, provenance, save_dataset

    numbers, picture = Path(out) / f"{STEM}.nc", Path(out) / f"{STEM}.gif"
    if redraw:
        return [animate(load_dataset(numbers), picture)]
    data = measure(config)
    data.attrs |= provenance() | dict(
        config=json.dumps(describe_config(config)), precision="float64 training, rows stored and measured in float32"
    )
    return [save_dataset(data, numbers), animate(data, picture)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.report.animations", description=__doc__)
    parser.add_argument("out", nargs="?", default="results", help="folder of emergence.nc and emergence.gif")
    parser.add_argument("--redraw", action="store_true", help="from the stored numbers, without training")
    chosen = parser.parse_args()
    for written in main(chosen.out, redraw=chosen.redraw):
        print(written)
