"""`gapsim bench`: this engine beside other ways to train the same towers, measured in one run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _cost_model, _figures
from experiments._bench_profile import PARTS
from experiments._bench_worker import EMBED
from experiments._cost_model import Machine, step_cost

CAPTION = (
    "Speed of training towers (MLP 32/48–128–d, Adam, float32) on the cores of one machine. (a) Replica-steps per second "
    "against replicas at batch size n = 64 (circles), 256 (squares), 1,024 (triangles), one fixed data set each, d = 32; "
    "the loops train one replica after the other. (b), (c) Core-seconds per replica-step against n (d = 32) and d (n = 256), "
    "with the exponent fitted over all points; grey: the step's matrix products alone at the measured rate of a 2,048² "
    "product. (d) Where the engine's cycles go, from a trace of the compiled program; dashed: the products at that rate. "
    "Points: medians over rounds taken in turn; bars: lowest and highest round."
)
BATCHES, REPLICAS, WIDTHS = (64, 256, 1024), (1, 4, 16, 64, 256), (8, 128, 512)
LARGEST = (4096, 4)  # batch and replicas of the last point against n
NAMES = dict(
    gapsim="this engine", jax_loop="jax.jit in a loop", flax_loop="nnx.jit in a loop", torch_loop="PyTorch loop",
    torch_vmap="torch.func vmap",
)  # fmt: skip
OPPONENTS = dict(ratio_torch="torch_loop", ratio_jax="jax_loop", ratio_flax="flax_loop")
Point = tuple[str, int, int, str, int]  # engine, n, replicas (of "sharded": devices), data, d
# Rates of the machine: products of 2,048² matrices, exponentials of 2^17 numbers, messages of one number and of 4 MB, and
# element-wise passes over arrays from 64 KiB, which a core's own cache holds, to 64 MiB, which none does.
MATMUL, EXPONENTIALS, MESSAGE, MEGABYTES, *STREAMS = (
    (name, size, 1, "fixed", EMBED)
    for name, size in (
        ("matmul", 2048), ("exponentials", 1 << 17), ("permutes", 1), ("permutes", 1 << 20),
        ("stream", 1 << 14), ("stream", 1 << 17), ("stream", 1 << 20), ("stream", 1 << 24),
    )
)  # fmt: skip
MACHINE_POINTS: tuple[Point, ...] = (MATMUL, EXPONENTIALS, MESSAGE, MEGABYTES, *STREAMS)
FIRST_RESULT: Point = ("first_result", 64, 64, "fixed", EMBED)


def points(quick: bool) -> list[Point]:
    """What is measured; all engines at all batch sizes, this engine also along n and d."""
    batches, replicas = (BATCHES[:1], (1, 16)) if quick else (BATCHES, REPLICAS)
    wanted: list[Point] = []
    for n in batches:
        for data in ("fixed", "fresh"):
            wanted += [(loop, n, 1, data, EMBED) for loop in OPPONENTS.values()]
            counts = replicas if data == "fixed" else (replicas[-2:-1] if len(replicas) > 2 else replicas[-1:])
            wanted += [("gapsim", n, r, data, EMBED) for r in counts]
            wanted += [("torch_vmap", n, r, data, EMBED) for r in counts if r * n <= 64 * 256 and r > 1]
    if not quick:
        wanted += [("gapsim", 256, 64, "fixed", d) for d in WIDTHS]
        wanted += [("gapsim", *LARGEST, "fixed", EMBED)]
        wanted += [("one_core", n, 16, "fixed", EMBED) for n in BATCHES]
        wanted += [("sharded", LARGEST[0], shards, "fixed", EMBED) for shards in (1, 2)]
    return [*MACHINE_POINTS, FIRST_RESULT, *wanted]


def run(*, quick: bool, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure every point `rounds` times, in turn, so that a slow moment of the machine hits all alike.

    Returns (rows, summary): rows as `bench --json` writes them; the summary holds what is no rate: `seconds_to_first`
    (of the first sweep of a warm process), `cost_of_256` (256 replicas over 4 × 64, by batch size), `profile` (by batch
    size: part -> core-seconds per replica-step), `matmul_flops` (per second, all cores) and `machine` (rates of one core,
    as `experiments._cost_model` needs them).
    """
    from tqdm import tqdm

    wanted = [p for p in points(quick) if not (p[0].startswith("torch") and not _has_torch())]
    if len(wanted) < len(points(quick)):
        print("PyTorch is missing: its rows are left out; pip install 'modality-gap-simulator[bench]'", file=sys.stderr)
    rates: dict[Point, list[float]] = {point: [] for point in wanted}
    peaks: dict[Point, int] = {}
    profiles: dict[int, dict[str, float]] = {}
    with tqdm(total=rounds * len(wanted), desc="bench", unit="point") as bar:
        _measure("_bench_worker", FIRST_RESULT)  # fills the compilation cache
        for _ in range(rounds):
            for point in wanted:
                bar.set_postfix_str(" ".join(map(str, point)))
                result = _measure("_bench_worker", point)
                rates[point].append(float(np.median(result["rates"])))
                peaks[point] = max(peaks.get(point, 0), result["peak_bytes"])
                bar.update()
        for n in BATCHES[:1] if quick else BATCHES:
            profiles[n] = _measure("_bench_profile", ("gapsim", n, 64, "fixed", EMBED))
    return _rows(rates, peaks), _summary(rates) | dict(profile=profiles)


def _measure(module: str, point: Point) -> dict[str, Any]:
    """What a measuring process of its own prints for a point."""
    arguments = point if module == "_bench_worker" else point[1:]
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"{' '.join(map(str, point))} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _rows(rates, peaks) -> list[dict[str, Any]]:
    """Medians with the lowest and highest round; ratios are taken round by round, and their median is given."""
    ceiling = np.median(rates[MATMUL])
    rows = []
    for point, values in rates.items():
        if point in (*MACHINE_POINTS, FIRST_RESULT):
            continue
        engine, n, replicas, data, d = point
        row = dict(
            engine=engine, n=n, replicas=replicas, data=data, d=d,
            median=float(np.median(values)), low=float(min(values)), high=float(max(values)),
        )  # fmt: skip
        for name, opponent in OPPONENTS.items():
            others = rates.get((opponent, n, 1, data, d))
            ratios = [np.nan] if others is None else np.divide(values, others)
            row |= {
                name: float(np.median(ratios)),
                f"{name}_low": float(min(ratios)),
                f"{name}_high": float(max(ratios)),
            }
        row |= dict(
            matmul_fraction=float(row["median"] * step_cost(n, d).flops / ceiling), peak_bytes=float(peaks[point])
        )
        rows.append({k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()})
    return rows


def _summary(rates) -> dict[str, Any]:
    by = {point: np.asarray(values) for point, values in rates.items()}
    spread = lambda values: [float(f(values)) for f in (np.median, np.min, np.max)]  # noqa: E731
    cost = {
        n: spread(by[few] / by[many])
        for n in BATCHES
        if (few := ("gapsim", n, 64, "fixed", EMBED)) in by and (many := ("gapsim", n, 256, "fixed", EMBED)) in by
    }
    cores = len(os.sched_getaffinity(0))
    rate = lambda point: float(np.median(by[point]))  # noqa: E731
    machine = Machine(
        "one core, measured", rate(MATMUL) / cores, tuple((4.0 * p[1], rate(p) / cores) for p in STREAMS),
        rate(EXPONENTIALS) / cores, 4.0 * MEGABYTES[1] / (1 / rate(MEGABYTES) - 1 / rate(MESSAGE)), 1 / rate(MESSAGE),
    )  # fmt: skip
    return dict(
        seconds_to_first=spread(1.0 / by[FIRST_RESULT]), cost_of_256=cost, matmul_flops=spread(by[MATMUL]),
        cores=cores, machine=dataclasses.asdict(machine),
    )  # fmt: skip


def render(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """The rows as a table, then what is no rate."""
    from experiments._ledger import table

    number = lambda v: "" if v is None else f"{v:.3g}"  # noqa: E731
    lines = [
        [
            row["engine"], str(row["n"]), str(row["d"]), str(row["replicas"]), row["data"], f"{row['median']:.0f}",
            f"{row['low']:.0f} to {row['high']:.0f}", *(number(row[name]) for name in OPPONENTS),
            number(row["matmul_fraction"]), f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in sorted(rows, key=lambda r: (r["n"], r["data"], r["engine"], r["d"], r["replicas"]))
    ]  # fmt: skip
    header = [
        "engine", "n", "d", "replicas", "data", "replica-steps/s", "rounds", "× PyTorch", "× jax.jit", "× nnx.jit",
        "of matmul rate", "peak MiB",
    ]  # fmt: skip
    between = lambda v, unit="": f"{v[0]:.3g}{unit} ({v[1]:.3g} to {v[2]:.3g})"  # noqa: E731
    rate = np.asarray(summary["matmul_flops"]) / 1e9
    after = [f"rate of a 2,048² product, all cores: {between(rate, ' GFLOP/s')}"]
    after += [f"first sweep of a warm process: {between(summary['seconds_to_first'], ' s')}"]
    after += [f"256 replicas over 4 × 64 at n = {n}: {between(v)}" for n, v in summary["cost_of_256"].items()]
    for n, parts in summary["profile"].items():
        total = sum(parts.values())
        shares = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in parts.items() if seconds)
        after += [f"cycles at n = {n}: {shares}"]
    return "\n".join([table(header, lines), "", *after])


def store(rows: list[dict[str, Any]], summary: dict[str, Any], out: Path) -> None:
    """Write performance.nc, and draw performance and cost_model from it."""
    import xarray as xr

    from simulator.store import provenance, save_dataset

    columns: dict[str, Any] = {
        name: ("row", [row[name] if row[name] is not None else np.nan for row in rows]) for name in rows[0]
    }
    profile = [[parts[part] for part in PARTS] for parts in summary["profile"].values()]
    columns["profile"] = (("batch", "part"), profile)
    data = xr.Dataset(
        columns, coords=dict(batch=list(summary["profile"]), part=list(PARTS)),
        attrs=provenance() | dict(caption=CAPTION, precision="float32", summary=json.dumps(summary)),
    )  # fmt: skip
    save_dataset(data, out / "performance.nc")
    _figures.save_figure(draw, data, out / "performance")
    _figures.save_figure(_cost_model.draw, data, out / "cost_model")


def markdown(data) -> str:
    """The README's table of a stored bench: ratios in one run (lowest to highest round), and where the cycles go."""
    frame = data.drop_dims(("batch", "part")).to_dataframe()
    summary = json.loads(data.attrs["summary"])
    sixty_four = frame[(frame.engine == "gapsim") & (frame.replicas == 64) & (frame.d == EMBED)]
    lines = [
        "| with 64 replicas | " + " | ".join(f"n = {n:,}" for n in BATCHES) + " |",
        "|---" * (len(BATCHES) + 1) + "|",
    ]

    def add(label, cells):
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    for kind, said in (("fixed", "one data set"), ("fresh", "fresh pairs each step")):
        rows = [sixty_four[(sixty_four.n == n) & (sixty_four.data == kind)].iloc[0] for n in BATCHES]
        add(f"replica-steps per second, {said}", [f"{r['median']:,.0f}" for r in rows])
        for name, opponent in OPPONENTS.items():
            spread = [(r[name], r[f"{name}_low"], r[f"{name}_high"]) for r in rows]
            add(f"over {NAMES[opponent]}, {said}", [f"{m:.3g} ({low:.3g}–{high:.3g})" for m, low, high in spread])
        if kind == "fixed":
            add("share of the rate of a 2,048² product", [f"{r['matmul_fraction']:.0%}" for r in rows])
            for name, opponent in OPPONENTS.items():
                most = [r[name] / r["matmul_fraction"] for r in rows]
                add(f"over {NAMES[opponent]}, were a step its products at that rate", [f"{m:.3g}" for m in most])
    costs = [summary["cost_of_256"][str(n)] for n in BATCHES]
    add("256 replicas over 4 × 64", [f"{m:.3g} ({low:.3g}–{high:.3g})" for m, low, high in costs])
    for number, part in enumerate(PARTS):
        profiles = [list(summary["profile"][str(n)].values()) for n in BATCHES]
        if any(parts[number] > 0.003 * sum(parts) for parts in profiles):
            add(f"cycles: {part}", [f"{parts[number] / sum(parts):.0%}" for parts in profiles])
    return "\n".join(lines)


def draw(data):
    """Rates against replicas, cost against n and d, and where the cycles go."""
    import matplotlib.pyplot as plt
    import pandas as pd

    figure, axes = plt.subplots(2, 2, figsize=(_figures.TWO_COLUMNS, 5.4), layout="constrained")
    frame = data.drop_dims(("batch", "part")).to_dataframe()
    frame = frame[frame.data == "fixed"]
    summary = json.loads(data.attrs["summary"])
    per_core = summary["matmul_flops"][0] / summary["cores"]
    _draw_rates(axes[0, 0], frame[frame.d == EMBED])
    engine = frame[frame.engine == "gapsim"]
    own = engine[engine.replicas == min(64, engine.replicas.max())]
    along_n = pd.concat([own[own.d == EMBED], engine[engine.n == LARGEST[0]]]).sort_values("n")
    along_d = own[own.n == min(256, own.n.max())].sort_values("d")
    for axis, rows, name, title in (
        (axes[0, 1], along_n, "n", "cost against batch size"),
        (axes[1, 0], along_d, "d", "cost against embedding dimension"),
    ):
        _draw_cost(axis, rows, name, per_core, summary["cores"])
        axis.set(title=title, xlabel=f"{'batch size' if name == 'n' else 'embedding dimension'} {name}")
    _draw_profile(axes[1, 1], data, own[own.d == EMBED].set_index("n").matmul_fraction)
    _figures.legend_above(figure, axes[0, 0], ncols=5)
    return _figures.lettered(figure)


def _draw_rates(axis, frame):
    styles = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
    for color, style, (engine, label) in zip(_figures.COLORS, styles, NAMES.items(), strict=False):
        for marker, (_, rows) in zip("os^", frame[frame.engine == engine].groupby("n"), strict=False):
            rows = rows.sort_values("replicas")
            bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
            look = dict(color=color, marker=marker, linestyle=style, label=label if marker == "o" else None)
            axis.errorbar(rows.replicas, rows["median"], bars, **look)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="replicas",
        ylabel="replica-steps per second",
        title="rate",
    )
    axis.set_xticks(REPLICAS, [str(r) for r in REPLICAS])
    axis.minorticks_off()


def _draw_cost(axis, rows, name, per_core, cores):
    at, cost = rows[name].to_numpy(float), cores / rows["median"].to_numpy()
    bars = np.abs(cores / rows[["high", "low"]].to_numpy().T - cost)
    label = "measured"
    if len(at) > 1:
        label = f"measured: exponent {np.polyfit(np.log(at), np.log(cost), 1)[0]:.2f}"
    axis.errorbar(at, cost, bars, color=_figures.COLORS[0], marker="o", label=label)
    products = [step_cost(int(n), int(d)).flops / per_core for n, d in zip(rows.n, rows.d, strict=True)]
    axis.plot(at, products, color=_figures.CONTROL, label="its products alone")
    axis.set(xscale="log", yscale="log", ylabel="core-seconds per replica-step")
    axis.set_xticks(np.unique(at), [f"{int(v):,}" for v in np.unique(at)])
    axis.minorticks_off()
    axis.legend(loc="upper left")


def _draw_profile(axis, data, product_share):
    """product_share: of the timed steps, by batch size: a traced run is slowed down, by a third at times."""
    shades = (*_figures.COLORS, _figures.CONTROL)
    batches = data["batch"].values
    profile = data["profile"].values
    total = profile.sum(axis=1)
    left = np.zeros(len(batches))
    for color, part, seconds in zip(shades, data["part"].values, profile.T, strict=True):
        if (seconds > 0.003 * total).any():
            axis.barh(np.arange(len(batches)), seconds / total, left=left, color=color, label=str(part), height=0.6)
        left += seconds / total
    for row, n in enumerate(batches):
        axis.plot([product_share[n]] * 2, [row - 0.4, row + 0.4], "k--")
    axis.set_yticks(np.arange(len(batches)), [f"{n:,}" for n in batches])
    axis.set(xlabel="share of core-seconds", ylabel="batch size n", title="where the cycles go")
    axis.set(xlim=(0, 1), ylim=(-0.6, len(batches) + 0.7))
    axis.legend(loc="upper center", ncols=3, fontsize=_figures.SMALL)
