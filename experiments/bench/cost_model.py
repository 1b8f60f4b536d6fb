"""What a step of training costs, counted; and how long that takes on a machine with given rates.

    seconds = F/R + Σ B/W + E/X + S/L + M λ,

F matrix-product operations, B bytes of element-wise passes, E exponentials, S bytes sent and M messages of one device in
one step, by the rates of a device: R FLOP/s, W bytes/s, X exponentials/s, L bytes/s of its link, λ seconds per message.
W depends on the size of the arrays that are passed over, for caches are faster than memory.
Nothing is fitted: the rates are measured by `experiments.bench.machines`, or come from a data sheet. No overlap of
sending and computing is assumed. It is a best case: every product at the rate of a large one, every pass at that of a sum
of two arrays, and nothing for starting an operation; steps have been measured from half of it (on a faster host) to all
of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments import plotting
from experiments.bench.engines import DIM_X, DIM_Y, EMBED, WIDTH
from experiments.bench.turns import ONE_CORE
from simulator.losses.partition import ROWS_AT_ONCE

CAPTION = (
    "The cost model. (a) Replica-steps per second, measured against predicted from counted operations and the "
    "machine's measured rates, nothing fitted: replicas on one core and on all cores, for all batch sizes and "
    "dimensions, and one batch over one and two devices; bars: lowest and highest round. (b) Sweeps: replicas never "
    "talk, so their rate grows with the number of devices. (c) One batch of 10⁶ pairs, d = 512, spread over a ring "
    "of devices: time falls until sending rows takes as long as computing (dot). Points: measured; lines: the "
    "model, for cores of the machine that measured and for GPUs by their data sheet (not measured)."
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of one device, in single precision: products, element-wise passes, exponentials, link; latency in seconds.

    stream: pairs (bytes of an array, bytes per second of passes over such arrays), by size; between them the rate is
      interpolated in the logarithm of the size.
    """

    name: str
    flops: float
    stream: tuple[tuple[float, float], ...]
    exponentials: float
    link: float
    latency: float


# NVIDIA's data sheet of the A100 (40 GB, 2020): 19.5 TFLOP/s in float32, 1,555 GB/s; HDR InfiniBand: 200 Gbit/s. Its
# exponentials at a quarter of its multiply-adds (CUDA C++ programming guide, throughput of native arithmetic); 10 µs per
# message, a usual value for collectives between nodes. Not measured here.
A100 = Machine("A100, data sheet", 19.5e12, ((1.0, 1555e9),), 19.5e12 / 2 / 4, 25e9, 1e-5)


@dataclasses.dataclass(frozen=True)
class Cost:
    """One device, one step: operations of matrix products, element-wise passes, exponentials, bytes sent, messages.

    passes: pairs (bytes of an array, bytes read and written in all by passes over such arrays).
    """

    flops: float
    passes: tuple[tuple[float, float], ...]
    exponentials: float
    sent: float = 0.0
    messages: float = 0.0


def parameters(embed_dim: int = EMBED) -> int:
    """Trained numbers of both towers."""
    return (DIM_X + DIM_Y + 2) * WIDTH + 2 * (WIDTH + 1) * embed_dim


def tower_flops(n: int, embed_dim: int = EMBED) -> float:
    """Products of both towers, forward and backward.

    A product costs 2 per entry and inner index; backward costs twice the forward one, but the observations need no
    gradient.
    """
    first, second = 2 * n * (DIM_X + DIM_Y) * WIDTH, 2 * 2 * n * WIDTH * embed_dim
    return 2.0 * first + 3.0 * second


def step_cost(n: int, embed_dim: int = EMBED) -> Cost:
    """A replica on a device of its own, with the dense loss: three products of n × n × d and one exponential per logit.

    Passes, each 4 bytes per number: 10 over the parameters (Adam), 12 over the hidden activations of a tower (bias, ReLU
    and their gradients), 20 over its embeddings (normalisation and its gradient), 6 over the logits: 4 of them over a
    block of ROWS_AT_ONCE rows while it is at hand, 2 over the whole matrix (written for the sums, read for the slopes).
    """
    flops = tower_flops(n, embed_dim) + 3 * 2.0 * n * n * embed_dim
    passes = (*_tower_passes(n, embed_dim), _passes(min(n, ROWS_AT_ONCE) * n, 4 * n * n), _passes(n * n, 2 * n * n))
    return Cost(flops, passes, float(n * n))


def _tower_passes(rows: float, embed_dim: int) -> tuple[tuple[float, float], ...]:
    counts = ((parameters(embed_dim), 10), (rows * WIDTH, 12), (rows * embed_dim, 20))
    return tuple(_passes(size, times * size) for size, times in counts)


def _passes(size: float, numbers: float) -> tuple[float, float]:
    """(bytes of an array of `size` numbers, bytes of `numbers` of them read or written), in single precision."""
    return 4.0 * size, 4.0 * numbers


def sharded_cost(n: int, embed_dim: int = EMBED, *, shards: int) -> Cost:
    """A batch spread over `shards` devices, with the ring loss: the logits are computed twice (once for the sums, once
    for the slopes), one exponential and three passes each; rows, sums and slopes travel around the ring; the gradients,
    the largest shift, the loss and whether its exponential was safe are gathered from all.

    Sent by a device: n (3 d + 2) numbers, whatever `shards` is, in 5 · shards messages; 2 (1 − 1/shards) · parameters in
    2 (shards − 1) messages for the gradients; three single numbers in 2 log₂ shards messages each.
    """
    rows = n / shards
    flops = (tower_flops(n, embed_dim) + 4 * 2.0 * n * n * embed_dim) / shards
    sent = messages = 0.0
    if shards > 1:
        sent = 4.0 * (n * (3 * embed_dim + 2) + 2 * (1 - 1 / shards) * parameters(embed_dim))
        messages = 5.0 * shards + 2 * (shards - 1) + 3 * 2 * np.log2(shards)
    passes = (*_tower_passes(rows, embed_dim), _passes(min(rows, ROWS_AT_ONCE) * rows, 6 * n * rows))
    return Cost(flops, passes, 2.0 * n * rows, sent, messages)


def seconds(cost: Cost, machine: Machine) -> float:
    """Time of one step on every device."""
    sizes, rates = np.array(machine.stream).T
    passing = sum(moved / np.interp(np.log(size), np.log(sizes), rates) for size, moved in cost.passes)
    computing = cost.flops / machine.flops + passing + cost.exponentials / machine.exponentials
    return computing + cost.sent / machine.link + cost.messages * machine.latency


def most_useful_shards(n: int, machine: Machine) -> float:
    """Devices beyond which a large batch is sent longer than it is computed: 8 n² d / (P R) = 12 n d / L gives
    P = ⅔ n L/R, whatever d is."""
    return 2 / 3 * n * machine.link / machine.flops


def all_busy(data):
    """The machine's rates in the groups that use every core."""
    return data.machine.isel(machine_group=data.machine_group.values != ONE_CORE)


def measured_machine(data, group: float | None = None, *, at: int | None = None) -> Machine:
    """One core of the machine that a stored bench ran on: median rates of all turns while every core was busy, or of one
    group, in all rounds or in one."""
    chosen = all_busy(data) if group is None else data.machine.sel(machine_group=group)
    chosen = chosen if at is None else chosen.isel(round=at)
    rate = {str(name): float(chosen.sel(rate=name).median()) for name in chosen["rate"].values}
    cores = 1 if group == ONE_CORE else data.attrs["cores"]
    numbers = {name: float(name.split()[1]) for name in rate}
    sizes = sorted((size, name) for name, size in numbers.items() if name.startswith("stream"))
    small, large = sorted((size, name) for name, size in numbers.items() if name.startswith("permutes"))
    return Machine(
        "one core, measured", rate["matmul 2048"] / cores, tuple((4.0 * size, rate[name] / cores) for size, name in sizes),
        rate["exponentials 131072"] / cores, 4.0 * large[0] / (1 / rate[large[1]] - 1 / rate[small[1]]), 1 / rate[small[1]],
    )  # fmt: skip


def measured_points(data) -> list[dict]:
    """Engine, devices, n, d of what the stored bench has measured on a fixed data set; `predicted` replica-steps per
    second, from the machine's median rates with as many cores; `measured`, with the `low` and `high` round; and `share`,
    measured over predicted from the rates of the machine beside it, the median of the rounds."""
    cores, found = int(data.attrs["cores"]), []
    for at in np.flatnonzero(data.data.values == "fixed"):
        row = data.isel(row=at)
        engine, n, d, replicas = str(row.engine.values), int(row.n), int(row.d), int(row.replicas)
        if engine == "sharded":
            devices, jobs, cost = replicas, 1, sharded_cost(n, d, shards=replicas)
        elif engine == "one_core" or (engine == "gapsim" and (replicas == 64 or n == data.n.max())):
            devices = jobs = 1 if engine == "one_core" else cores
            cost = step_cost(n, d)
        else:
            continue
        rounds = row.rates.median("turn").values
        group = float(row.group)
        machine = measured_machine(data, group if group == ONE_CORE else None)
        beside = [measured_machine(data, group, at=r) for r in range(len(rounds))]
        shares = [rate * seconds(cost, m) / jobs for rate, m in zip(rounds, beside, strict=True)]
        found.append(
            dict(engine=engine, devices=devices, n=n, d=d, predicted=jobs / seconds(cost, machine), share=float(np.median(shares)),
                 measured=float(row.rates.median()), low=float(rounds.min()), high=float(rounds.max()))
        )  # fmt: skip
    return found


def draw(data):
    """Measured against predicted, and the prediction from one core to ten thousand devices."""
    import matplotlib.pyplot as plt

    core = measured_machine(data)
    points = measured_points(data)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.8), layout="constrained")
    _draw_agreement(left, points)
    devices = np.geomspace(1, 1e4, 60)
    for machine, style in ((core, "-"), (A100, "--")):
        for color, n in zip(plotting.COLORS, (64, 256, 1024), strict=False):
            middle.plot(devices, devices / seconds(step_cost(n), machine), style, color=color)
        times = [seconds(sharded_cost(1_000_000, 512, shards=p), machine) for p in devices]
        right.plot(devices, times, style, color="black", label=machine.name)
        middle.plot([], [], style, color="black", label=machine.name)
        turn = most_useful_shards(1_000_000, machine)
        if turn < devices[-1]:
            right.plot(turn, np.interp(turn, devices, times), "k.", label="P = ⅔ n L/R")
    for point in points:
        if point["engine"] != "sharded" and point["d"] == EMBED and point["n"] in (64, 256, 1024):
            look = plotting.series((64, 256, 1024).index(point["n"]), linestyle="none")
            middle.plot(point["devices"], point["measured"], **look)
    for i, n in enumerate((64, 256, 1024)):
        middle.plot([], [], label=f"n = {n:,}", **plotting.series(i, linestyle="none"))
    middle.set(xscale="log", yscale="log", xlabel="devices", ylabel="replica-steps per second", title="sweeps")
    middle.set_ylim(1e-2, None)
    middle.legend(loc="lower right")
    right.set(xscale="log", yscale="log", xlabel="devices P", ylabel="seconds per step", title="one batch of 10⁶")
    right.set_ylim(None, 1e6)
    right.legend(loc="upper right")
    return plotting.lettered(figure)


def _draw_agreement(axis, points):
    values = [p["measured"] for p in points] + [p["predicted"] for p in points]
    span = np.array([min(values) / 1.6, max(values) * 1.6])
    band = "half to all of it"
    axis.fill_between(span, span / 2, span, color=plotting.CONTROL, alpha=0.3, linewidth=0, label=band)
    axis.plot(span, span, color=plotting.CONTROL, label="as predicted")
    labels = dict(one_core="one core", gapsim="all cores", sharded="one batch")
    looks = [
        dict(color="black", marker=marker, fillstyle=fill)
        for marker, fill in (("o", "none"), ("s", "full"), ("^", "full"))
    ]
    for look, (engine, label) in zip(looks, labels.items(), strict=True):
        chosen = [p for p in points if p["engine"] == engine]
        measured = np.array([p["measured"] for p in chosen])
        bars = np.abs(np.array([[p["low"], p["high"]] for p in chosen]).T.reshape(2, -1) - measured)
        axis.errorbar([p["predicted"] for p in chosen], measured, bars, linestyle="none", label=label, **look)
    axis.set(xscale="log", yscale="log", xlabel="predicted replica-steps per second", ylabel="measured")
    axis.set(title="model and measurement", ylim=(0.05, None))
    axis.legend(loc="lower right")
