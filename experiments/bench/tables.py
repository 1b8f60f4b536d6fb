"""Tables and figures of `gapsim bench`: this engine beside other ways to train the same towers, measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import plotting
from experiments.bench import cost_model
from experiments.bench.cost_model import step_cost
from experiments.bench.engines import EMBED
from experiments.bench.profiles import PARTS
from experiments.bench.turns import BATCHES, LARGEST, REPLICAS

CAPTION = (
    "Speed of training towers (MLP 32/48–128–d, Adam, float32) on the cores of one machine. (a) Replica-steps per "
    "second against replicas, one fixed data set for each batch size n, d = 32; the loops train one replica after "
    "the other. (b), (c) Core-seconds per replica-step against n (d = 32) and d (n = 256); grey: the step's matrix "
    "products alone at the measured rate of a 2,048² product. In the panels, exponents of the cost of a step: (a) "
    "of all replicas together, from 4 replicas on, at n = 64, 256 and 1,024; (b), (c) fitted over all points, and, "
    "as the curves bend, between the last two; ± half the range over rounds. (d) Where the engine's cycles go, from "
    "a trace of the compiled program. Points: medians over all turns; bars: lowest and highest round."
)
NAMES = dict(
    gapsim="this engine", jax_loop="jax.jit in a loop", flax_loop="nnx.jit in a loop", torch_loop="PyTorch loop",
    torch_vmap="torch.func vmap",
)  # fmt: skip
OPPONENTS = dict(ratio_torch="torch_loop", ratio_jax="jax_loop", ratio_flax="flax_loop")
Spread = tuple[float, float, float]


def spread(values) -> Spread:
    """Median of all turns, lowest and highest median of a round; values: [round, turn]."""
    values = np.atleast_2d(np.asarray(values))
    rounds = np.median(values, axis=1)
    return float(np.median(values)), float(rounds.min()), float(rounds.max())


def found(data, engine, n, replicas, kind, d=EMBED):
    """Rates [round, turn] of a row, or None."""
    chosen = (data.engine == engine) & (data.n == n) & (data.replicas == replicas) & (data.data == kind) & (data.d == d)
    at = np.flatnonzero(chosen.values)
    return data.rates.values[at[0]] if len(at) else None


def products(data, group: float):
    """Rates [round, turn] of a 2,048² product, by as many cores, beside the rows of a group."""
    return data.machine.sel(machine_group=group, rate="matmul 2048").values


def rows(data) -> list[dict[str, Any]]:
    """Every row's median, lowest and highest round, and ratios taken turn by turn; what `gapsim bench --json` writes."""
    made = []
    for at in range(data.sizes["row"]):
        one = data.isel(row=at)
        label: dict[str, Any] = dict(
            engine=str(one.engine.values), n=int(one.n), replicas=int(one.replicas), data=str(one.data.values),
            d=int(one.d), setting=str(one.setting.values),
        )  # fmt: skip
        rates = one.rates.values
        row: dict[str, Any] = label | dict(zip(("median", "low", "high"), spread(rates), strict=True))
        for name, opponent in OPPONENTS.items():
            beside = float(one.group) == label["n"]
            others = found(data, opponent, label["n"], 1, label["data"], label["d"]) if beside else None
            for end, value in zip(
                ("", "_low", "_high"), spread(rates / others) if others is not None else (None,) * 3, strict=True
            ):
                row[name + end] = value
        share = rates * step_cost(label["n"], label["d"]).flops / products(data, float(one.group))
        row |= dict(matmul_fraction=spread(share)[0], peak_bytes=float(one.peak_bytes))
        made.append(row)
    return made


def costs_of_256(data) -> dict[int, Spread]:
    """256 replicas over 4 × 64, by batch size."""
    pairs = {n: [found(data, "gapsim", n, r, "fixed") for r in (64, 256)] for n in BATCHES}
    return {n: spread(few / many) for n, (few, many) in pairs.items() if few is not None and many is not None}


def stream_shares(data) -> dict[int, Spread]:
    """Share of a step, at 64 replicas, that fresh pairs take, by batch size."""
    pairs = {n: [found(data, "gapsim", n, 64, kind) for kind in ("fixed", "fresh")] for n in BATCHES}
    return {
        n: spread(1 - fresh / fixed) for n, (fixed, fresh) in pairs.items() if fixed is not None and fresh is not None
    }


def render(data) -> str:
    """The rows as a table, then what is no rate."""
    from experiments.catalogue import table

    number = lambda v: "" if v is None else f"{v:.3g}"
    lines = [
        [
            row["engine"], str(row["n"]), str(row["d"]), str(row["replicas"]), row["data"], row["setting"], f"{row['median']:.0f}",
            f"{row['low']:.0f} to {row['high']:.0f}", *(number(row[name]) for name in OPPONENTS),
            number(row["matmul_fraction"]), f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in sorted(rows(data), key=lambda r: (r["n"], r["data"], r["engine"], r["d"], r["replicas"]))
    ]  # fmt: skip
    header = [
        "engine", "n", "d", "replicas", "data", "setting", "replica-steps/s", "rounds", "× PyTorch", "× jax.jit", "× nnx.jit",
        "of matmul rate", "peak MiB",
    ]  # fmt: skip
    between = lambda v, unit="": f"{v[0]:.3g}{unit} ({v[1]:.3g} to {v[2]:.3g})"
    all_products = (
        cost_model.all_busy(data).sel(rate="matmul 2048").transpose("round", "machine_group", "turn").values / 1e9
    )
    rate = spread(all_products.reshape(data.sizes["round"], -1))
    after = [f"rate of a 2,048² product, all cores: {between(rate, ' GFLOP/s')}"]
    after += [f"first sweep of a warm process: {between(spread(data['first'].values[:, None]), ' s')}"]
    after += [f"256 replicas over 4 × 64 at n = {n}: {between(v)}" for n, v in costs_of_256(data).items()]
    after += [f"fresh pairs, share of a step at n = {n}: {between(v)}" for n, v in stream_shares(data).items()]
    for n, seconds in zip(data["batch"].values, data.profile.values, strict=True):
        shares = ", ".join(f"{part} {s / seconds.sum():.1%}" for part, s in zip(PARTS, seconds, strict=True) if s)
        after += [f"cycles at n = {n}: {shares}"]
    return "\n".join([table(header, lines), "", *after])


def store(data, out: Path) -> None:
    """Write performance.nc, and draw performance and cost_model from it."""
    from simulator.storage.results import provenance, save_dataset

    data = data.assign_attrs(provenance() | dict(caption=CAPTION, precision="float32"))
    save_dataset(data, out / "performance.nc")
    plotting.save_figure(draw, data, out / "performance")
    plotting.save_figure(cost_model.draw, data, out / "cost_model")


def markdown(data) -> str:
    """The table of a stored bench: ratios in one run (lowest to highest round), and where the cycles go."""
    lines: list[str] = []
    number = lambda m, low, high: f"{m:.3g} ({low:.3g}–{high:.3g})"
    percent = lambda m, low, high: f"{m:.0%} ({low:.0%}–{high:.0%})"

    def add(label, cells):
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    rounds, turns = data.sizes["round"], data.sizes["turn"]
    add(f"median of {rounds} × {turns} turns (lowest–highest round)", [f"n = {n:,}" for n in BATCHES])
    lines.append("|---" * (len(BATCHES) + 1) + "|")
    # What a step would reach that was nothing but its products, at the rate of a 2,048² product.
    bound = [products(data, n) / step_cost(n, EMBED).flops for n in BATCHES]
    for kind, said in (("fixed", "one data set"), ("fresh", "fresh pairs each step")):
        own = [found(data, "gapsim", n, 64, kind) for n in BATCHES]
        add(f"replica-steps per second, 64 replicas, {said}", [f"{np.median(r):,.0f}" for r in own])
        for opponent in OPPONENTS.values():
            others = [found(data, opponent, n, 1, kind) for n in BATCHES]
            add(f"over {NAMES[opponent]}, {said}", [number(*spread(a / b)) for a, b in zip(own, others, strict=True)])
            if kind == "fixed":
                most = [number(*spread(b / o)) for b, o in zip(bound, others, strict=True)]
                add("the same, were a step its products at the rate of a 2,048² product", most)
        if kind == "fixed":
            add("share of that rate", [percent(*spread(r / b)) for r, b in zip(own, bound, strict=True)])
    add("fresh pairs, share of a step", [percent(*v) for v in stream_shares(data).values()])
    add("256 replicas over 4 × 64", [number(*v) for v in costs_of_256(data).values()])
    for part, profile in zip(PARTS, data.profile.values.T / data.profile.values.sum(axis=1), strict=True):
        if (profile > 0.003).any():
            add(f"cycles: {part}", [f"{share:.0%}" for share in profile])
    return "\n".join(lines)


def draw(data):
    """Rates against replicas, cost against n and d, and where the cycles go."""
    import matplotlib.pyplot as plt
    import pandas as pd

    figure, axes = plt.subplots(2, 2, figsize=(plotting.TWO_COLUMNS, 5.4), layout="constrained")
    frame = pd.DataFrame(rows(data)).assign(rounds=list(np.median(data.rates.values, axis=2)))
    frame = frame[frame.data == "fixed"]
    cores = int(data.attrs["cores"])
    per_core = cost_model.measured_machine(data).flops
    _draw_rates(axes[0, 0], frame[frame.d == EMBED])
    engine = frame[frame.engine == "gapsim"]
    own = engine[engine.replicas == min(64, engine.replicas.max())]
    along_n = pd.concat([own[own.d == EMBED], engine[engine.n == LARGEST[0]]]).sort_values("n")
    along_d = own[own.n == min(256, own.n.max())].sort_values("d")
    for axis, points, name, title in (
        (axes[0, 1], along_n, "n", "cost against batch size"),
        (axes[1, 0], along_d, "d", "cost against embedding dimension"),
    ):
        _draw_cost(axis, points, name, per_core, cores)
        axis.set(title=title, xlabel=f"{'batch size' if name == 'n' else 'embedding dimension'} {name}")
    _draw_profile(axes[1, 1], data, own[own.d == EMBED].set_index("n").matmul_fraction)
    plotting.legend_above(figure, axes[0, 0], ncols=4)
    return plotting.lettered(figure)


def _draw_rates(axis, frame):
    styles = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
    for color, style, (engine, label) in zip(plotting.COLORS, styles, NAMES.items(), strict=False):
        for marker, (_, rows) in zip("os^", frame[frame.engine == engine].groupby("n"), strict=False):
            rows = rows.sort_values("replicas")
            bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
            look = dict(color=color, marker=marker, linestyle=style, label=label if marker == "o" else None)
            axis.errorbar(rows.replicas, rows["median"], bars, **look)
    for marker, n in zip("os^", np.unique(frame.n), strict=False):
        axis.plot([], [], f"k{marker}", label=f"n = {n:,}")
    axis.set(xscale="log", yscale="log", xlabel="replicas", ylabel="replica-steps per second", title="rate")
    several = frame[(frame.engine == "gapsim") & (frame.replicas >= 4)]
    costs = [rows.replicas.to_numpy()[:, None] / np.stack(rows.rounds) for _, rows in several.groupby("n")]
    at = [rows.replicas for _, rows in several.groupby("n")]
    exponents = [_exponent(r, c) for r, c in zip(at, costs, strict=True) if len(r) > 1]
    if exponents:
        said = "this engine, exponents of the cost by n:\n" + ", ".join(exponents)
        axis.set_ylim(frame["median"].min() / 8)
        axis.text(0.98, 0.02, said, ha="right", fontsize=plotting.SMALL, transform=axis.transAxes)
    axis.set_xticks(REPLICAS, [str(r) for r in REPLICAS])
    axis.minorticks_off()


def _draw_cost(axis, rows, name, per_core, cores):
    at, cost = rows[name].to_numpy(float), cores / rows["median"].to_numpy()
    bars = np.abs(cores / rows[["high", "low"]].to_numpy().T - cost)
    label, rounds = "this engine", cores / np.stack(rows.rounds)
    if len(at) > 1:
        label = f"this engine, exponent {_exponent(at, rounds)};\nlast two {_exponent(at[-2:], rounds[-2:])}"
    axis.errorbar(at, cost, bars, color=plotting.COLORS[0], marker="o", label=label)
    products = [step_cost(int(n), int(d)).flops / per_core for n, d in zip(rows.n, rows.d, strict=True)]
    axis.plot(at, products, color=plotting.CONTROL, label="its products at the measured rate")
    axis.set(xscale="log", yscale="log", ylabel="core-seconds per replica-step")
    axis.set_ylim(min(products) / 3, cost.max() * 3)
    axis.set_xticks(np.unique(at), [f"{int(v):,}" for v in np.unique(at)])
    axis.minorticks_off()
    axis.legend(loc="upper left", fontsize=plotting.SMALL)


def _exponent(at, costs) -> str:
    """Slope of log cost [point, round] over log `at`: the rounds' median ± half their range."""
    slopes = np.polyfit(np.log(at), np.log(costs), 1)[0]
    return f"{np.median(slopes):.2f} ± {np.ptp(slopes) / 2:.2f}"


def _draw_profile(axis, data, product_share):
    """product_share: of the timed steps, by batch size: a traced run is slowed down, by a third at times."""
    shades = (*plotting.COLORS, plotting.CONTROL)
    batches = data["batch"].values
    profile = data["profile"].values
    total = profile.sum(axis=1)
    left = np.zeros(len(batches))
    for color, part, seconds in zip(shades, data["part"].values, profile.T, strict=True):
        if (seconds > 0.003 * total).any():
            axis.barh(np.arange(len(batches)), seconds / total, left=left, color=color, label=str(part), height=0.6)
        left += seconds / total
    for row, n in enumerate(batches):
        label = None if row else "expected products"
        axis.plot([product_share[n]] * 2, [row - 0.4, row + 0.4], "k--", label=label)
    axis.set_yticks(np.arange(len(batches)), [f"{n:,}" for n in batches])
    axis.set(xlabel="share of core-seconds", ylabel="batch size n", title="where the cycles go")
    axis.set(xlim=(0, 1), ylim=(-0.6, len(batches) + 1.1))
    axis.legend(loc="upper center", ncols=3, fontsize=plotting.SMALL, columnspacing=1.0)
