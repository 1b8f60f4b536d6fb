"""`gapsim bench`: this engine beside other ways to train the same towers, measured in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _figures
from experiments._bench_worker import DIM_X, DIM_Y, EMBED, WIDTH

CAPTION = (
    "Speed of training. Left: replica-steps per second against replicas, at three batch sizes (bars: lowest and highest "
    "round); loops of one replica are flat. Middle: seconds per replica-step against batch size n. Right: share of the "
    "measured rate of matrix products. Numbers: medians over rounds taken in turn."
)
BATCHES, REPLICAS = (64, 256, 1024), (1, 4, 16, 64, 256)


def flops(n: int) -> float:
    """Multiplications and additions of one step that are matrix products: towers and logits, forward and backward.

    A product costs 2 per entry and inner index; backward costs twice the forward one, but the observations need no
    gradient.
    """
    first, second = 2 * n * (DIM_X + DIM_Y) * WIDTH, 2 * 2 * n * WIDTH * EMBED
    return 2 * first + 3 * second + 3 * 2 * n * n * EMBED


def points(quick: bool) -> list[tuple[str, int, int, str]]:
    """(engine, n, replicas, data) to measure."""
    batches, replicas = (BATCHES[:1], (1, 16)) if quick else (BATCHES, REPLICAS)
    wanted = []
    for n in batches:
        for data in ("fixed", "fresh"):
            wanted += [("torch_loop", n, 1, data), ("jax_loop", n, 1, data)]
            counts = replicas if data == "fixed" else replicas[-2:-1]
            wanted += [("gapsim", n, r, data) for r in counts]
            wanted += [("torch_vmap", n, r, data) for r in counts if r * n <= 64 * 256 and r > 1]
    return [("matmul", 2048, 1, "fixed"), *wanted]


def run(*, quick: bool, rounds: int, out: Path | None) -> list[dict[str, Any]]:
    """Measure every point `rounds` times, in turn, so that a slow moment of the machine hits all alike."""
    from tqdm import tqdm

    wanted = [p for p in points(quick) if not (p[0].startswith("torch") and not _has_torch())]
    if len(wanted) < len(points(quick)):
        print("PyTorch is missing: its rows are left out; pip install 'modality-gap-simulator[bench]'", file=sys.stderr)
    rates: dict[tuple, list[float]] = {point: [] for point in wanted}
    peaks: dict[tuple, int] = {}
    with tqdm(total=rounds * len(wanted), desc="bench", unit="point") as bar:
        for _ in range(rounds):
            for point in wanted:
                bar.set_postfix_str(" ".join(map(str, point)))
                done = subprocess.run(
                    [sys.executable, "-m", "experiments._bench_worker", *map(str, point)],
                    capture_output=True,
                    text=True,
                )
                if done.returncode != 0:
                    raise ValueError(f"{' '.join(map(str, point))} failed: {done.stderr.strip().splitlines()[-1]}")
                result = json.loads(done.stdout.splitlines()[-1])
                rates[point].append(float(np.median(result["rates"])))
                peaks[point] = max(peaks.get(point, 0), result["peak_bytes"])
                bar.update()
    rows = _rows(rates, peaks)
    if out is not None:
        _store(rows, out)
    return rows


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _rows(rates, peaks) -> list[dict[str, Any]]:
    """Medians with the lowest and highest round; ratios are taken round by round, and their median is given."""
    ceiling = np.median(rates[("matmul", 2048, 1, "fixed")])
    rows = []
    for (engine, n, replicas, data), values in rates.items():
        if engine == "matmul":
            continue

        def ratio(opponent, values=values, n=n, data=data):
            others = rates.get((opponent, n, 1, data))
            return None if others is None else float(np.median(np.divide(values, others)))

        rows.append(
            dict(
                engine=engine, n=n, replicas=replicas, data=data,
                median=float(np.median(values)), low=float(min(values)), high=float(max(values)),
                ratio_torch=ratio("torch_loop"), ratio_jax=ratio("jax_loop"),
                matmul_fraction=float(np.median(values) * flops(n) / ceiling),
                peak_bytes=peaks[(engine, n, replicas, data)], rounds=len(values),
            )
        )  # fmt: skip
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    from experiments._ledger import table

    number = lambda v: "" if v is None else f"{v:.3g}"  # noqa: E731
    lines = [
        [
            row["engine"], str(row["n"]), str(row["replicas"]), row["data"], f"{row['median']:.0f}",
            f"{row['low']:.0f} to {row['high']:.0f}", number(row["ratio_torch"]), number(row["ratio_jax"]),
            number(row["matmul_fraction"]), f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in sorted(rows, key=lambda r: (r["n"], r["data"], r["engine"], r["replicas"]))
    ]  # fmt: skip
    header = [
        "engine", "n", "replicas", "data", "replica-steps/s", "rounds", "× PyTorch loop", "× JAX loop", "of matmul rate",
        "peak MiB",
    ]  # fmt: skip
    return table(header, lines)


def _store(rows, out: Path) -> None:
    import xarray as xr

    from simulator.store import provenance, save_dataset

    columns = {name: ("row", [row[name] if row[name] is not None else np.nan for row in rows]) for name in rows[0]}
    data = xr.Dataset(columns, attrs=provenance() | dict(caption=CAPTION, precision="float32"))
    save_dataset(data, out / "performance.nc")
    _figures.save_figure(draw, data, out / "performance")


def draw(data):
    """Rates against replicas, cost against n, and share of the matrix-product rate."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(_figures.TWO_COLUMNS, 2.6), layout="constrained")
    frame = data.to_dataframe()
    frame = frame[frame.data == "fixed"]
    names = dict(
        gapsim="this engine", jax_loop="jitted JAX loop", torch_loop="PyTorch loop", torch_vmap="torch.func vmap"
    )
    for color, (engine, label) in zip(_figures.COLORS, names.items(), strict=False):
        here = frame[frame.engine == engine]
        for marker, (_, at_n) in zip("os^", here.groupby("n"), strict=False):
            at_n = at_n.sort_values("replicas")
            bars = np.abs(at_n[["low", "high"]].to_numpy().T - at_n["median"].to_numpy())
            left.errorbar(
                at_n.replicas, at_n["median"], bars, color=color, marker=marker, markersize=3,
                label=label if marker == "o" else None,
            )  # fmt: skip
        best = here.sort_values("replicas").groupby("n").last()
        if len(best) > 1:
            slope = np.polyfit(np.log(best.index), -np.log(best["median"]), 1)[0]
            middle.plot(
                best.index,
                1 / best["median"],
                color=color,
                marker="o",
                markersize=3,
                label=f"{label}: $n^{{{slope:.2f}}}$",
            )
        elif len(best):
            middle.plot(best.index, 1 / best["median"], color=color, marker="o", markersize=3, label=label)
        right.plot(best.index, best.matmul_fraction, color=color, marker="o", markersize=3)
    left.set(xscale="log", yscale="log", xlabel="replicas", ylabel="replica-steps per second")
    middle.set(xscale="log", yscale="log", xlabel="batch size n", ylabel="seconds per replica-step")
    right.set(xscale="log", xlabel="batch size n", ylabel="share of matrix-product rate", ylim=(0, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    middle.legend(fontsize=5)
    return figure
