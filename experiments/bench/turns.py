"""What `gapsim bench` measures and in which order; the measurement itself is one data set of rates.

Rates of a machine that others use too change within seconds, by a factor of two at times. So all points of a group run in
turns of some .4 s, each in a process of its own that waits for its turn, and what is compared is compared turn by turn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from experiments.bench.engines import EMBED
from experiments.bench.profiles import PARTS

BATCHES, REPLICAS, WIDTHS = (64, 256, 1024), (1, 4, 16, 64, 256), (8, 128, 512)
LARGEST = (4096, 4)  # batch and replicas of the last point against n
LOOPS = ("torch_loop", "jax_loop", "flax_loop")
ALONG, ONE_CORE = 0, 1  # groups that are no batch size
TURNS = 7  # of a round: in every round all processes are started anew
Point = tuple[str, int, int, str, int]  # engine, n, replicas (of "sharded": devices; of the machine: cores), data, d
# Rates of the machine: products of 2,048² matrices, exponentials of 2^17 numbers, messages of one number and of 4 MB, and
# element-wise passes over arrays from 64 KiB, which a core's own cache holds, to 64 MiB, which none does.
MACHINE_RATES = (
    ("matmul", 2048), ("exponentials", 1 << 17), ("permutes", 1), ("permutes", 1 << 20),
    ("stream", 1 << 14), ("stream", 1 << 17), ("stream", 1 << 20), ("stream", 1 << 24),
)  # fmt: skip
FIRST_RESULT: Point = ("first_result", 64, 64, "fixed", EMBED)


def machine_points(group: int) -> list[Point]:
    """The machine's rates with as many cores as the points of a group use; messages need all of them."""
    cores = len(os.sched_getaffinity(0))
    used = lambda name: 1 if group == ONE_CORE and name != "permutes" else cores
    return [(name, size, used(name), "fixed", EMBED) for name, size in MACHINE_RATES]


def groups(quick: bool) -> dict[int, list[Point]]:
    """Points that take turns: all engines at a batch size; as group ALONG, this engine along n and d; and as group
    ONE_CORE what uses one core, which may run faster while the other rests."""
    batches, replicas = (BATCHES[:1], (1, 16)) if quick else (BATCHES, REPLICAS)
    found: dict[int, list[Point]] = {}
    for n in batches:
        found[n] = []
        for data in ("fixed", "fresh"):
            found[n] += [(loop, n, 1, data, EMBED) for loop in LOOPS]
            counts = replicas if data == "fixed" else (replicas[-2:-1] if len(replicas) > 2 else replicas[-1:])
            found[n] += [("gapsim", n, r, data, EMBED) for r in counts]
            found[n] += [("torch_vmap", n, r, data, EMBED) for r in counts if r * n <= 64 * 256 and r > 1]
    found[ONE_CORE] = [("one_core", n, 16, "fixed", EMBED) for n in batches]
    if not quick:
        found[ONE_CORE] += [("sharded", LARGEST[0], 1, "fixed", EMBED)]
        found[ALONG] = [("gapsim", 256, 64, "fixed", d) for d in WIDTHS] + [("gapsim", *LARGEST, "fixed", EMBED)]
        found[ALONG] += [("sharded", LARGEST[0], 2, "fixed", EMBED)]
    return found


def run(*, quick: bool, rounds: int):
    """xarray.Dataset of `rates` (row, round, turn) in replica-steps per second, of `machine` (group, rate, round, turn),
    of `first` (round), seconds to the first sweep of a warm process, and of `profile` (batch, part), core-seconds per
    replica-step; rows are labelled by group, engine, n, replicas, data, d, setting, peak_bytes."""
    import xarray as xr
    from tqdm import tqdm

    wanted = groups(quick)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is missing: its rows are left out; pip install 'modality-gap-simulator[bench]'", file=sys.stderr)
        wanted = {group: [p for p in points if not p[0].startswith("torch")] for group, points in wanted.items()}
    rates: dict[tuple[int, Point, str], list[list[float]]] = {}
    peaks: dict[tuple[int, Point], float] = {}
    first: list[float] = []
    total = rounds * (1 + TURNS) * sum(len(MACHINE_RATES) + len(points) for points in wanted.values())
    _once("_bench_worker", FIRST_RESULT)  # fills the compilation cache
    with tqdm(total=total, desc="bench", unit="turn") as bar:
        for _ in range(rounds):
            first.append(_once("_bench_worker", FIRST_RESULT))
            for group, points in wanted.items():
                _take_turns(group, [*machine_points(group), *points], rates, peaks, bar)
    profiles = {n: _once("_bench_profile", ("gapsim", n, 64, "fixed", EMBED)) for n in wanted if n in BATCHES}
    # Of several settings, the one that is fastest in the median is an engine's.
    best: dict[tuple[int, Point], tuple[str, Any]] = {}
    for (group, point, setting), values in rates.items():
        array = np.reshape(values, (rounds, TURNS))
        if (group, point) not in best or np.median(array) > np.median(best[group, point][1]):
            best[group, point] = setting, array
    rows = [(group, point) for group, points in wanted.items() for point in points]
    columns = dict(
        group=[float(group) for group, _ in rows], engine=[p[0] for _, p in rows], n=[float(p[1]) for _, p in rows],
        replicas=[float(p[2]) for _, p in rows], data=[p[3] for _, p in rows], d=[float(p[4]) for _, p in rows],
        setting=[best[row][0] for row in rows], peak_bytes=[peaks[row] for row in rows],
    )  # fmt: skip
    machine = [[best[group, point][1] for point in machine_points(group)] for group in wanted]
    cycles = np.reshape([[parts[part] for part in PARTS] for parts in profiles.values()], (-1, len(PARTS)))
    return xr.Dataset(
        dict(
            rates=(("row", "round", "turn"), np.array([best[row][1] for row in rows])),
            machine=(("machine_group", "rate", "round", "turn"), np.array(machine)), first=("round", first),
            profile=(("batch", "part"), cycles),
            **{name: ("row", values) for name, values in columns.items()},
        ),
        coords=dict(machine_group=[float(g) for g in wanted], rate=[f"{name} {size}" for name, size in MACHINE_RATES], batch=list(profiles), part=list(PARTS)),
        attrs=dict(cores=len(os.sched_getaffinity(0))),
    )  # fmt: skip


def _take_turns(group, points, rates, peaks, bar):
    with contextlib.ExitStack() as stack:
        workers = []
        for point in points:
            bar.set_postfix_str(" ".join(map(str, point)))
            workers.append(stack.enter_context(_worker(point)))
            bar.update()
        for _ in range(TURNS):
            for point, answer in zip(points, workers, strict=True):
                said = answer()
                for setting, rate in said["rates"].items():
                    rates.setdefault((group, point, setting), []).append(rate)
                peaks[group, point] = float(said["peak_bytes"])
                bar.update()


@contextlib.contextmanager
def _worker(point: Point):
    """A process that is ready to time a point; gives a function that takes one turn."""
    command = [sys.executable, "-m", "experiments.bench.engines", *map(str, point)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        )
        assert process.stdin is not None and process.stdout is not None
        turn, lines = process.stdin, process.stdout

        def answer():
            line = lines.readline()
            if not line:
                process.wait()
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"its process ended with {process.returncode}"]
                raise ValueError(f"{' '.join(map(str, point))} failed: {said[-1]}")
            return json.loads(line)

        def take_turn():
            turn.write("\n")
            turn.flush()
            return answer()

        try:
            answer()
            yield take_turn
        finally:
            process.kill()
            process.communicate()


def _once(module: str, point: Point) -> Any:
    """What a process prints that measures a point once."""
    arguments = point if module == "_bench_worker" else point[1:]
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"{' '.join(map(str, point))} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
