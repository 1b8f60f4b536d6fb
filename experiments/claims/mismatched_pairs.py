"""P5: wrong pairs leave a gap that the loss does not remove; swapping modalities and a rising temperature do."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import equal, moves, standard_error, worst
from experiments.setups.trained_points import retrieval, train_points
from experiments.setups.trends import ends, spread, trend, unbiased_gap
from simulator.losses import normalize_rows
from simulator.theory import mismatch
from simulator.theory.freezing import simplex_pairs

CLAIM = sim.Claim(
    id="P5",
    title="Mismatched pairs",
    summary="Wrong pairs widen the gap; swapping the modalities and raising the temperature close it.",
    statement=(
        "A share of wrong pairs raises the gap at which the loss is least, and the gap that training leaves from cones apart; "
        "exchanging the modalities at random during training and raising the temperature shrink it."
    ),
    source=(
        "Liang et al. 2022, arXiv 2203.02053 (wrong pairs); Yaras et al. 2024, arXiv 2412.07909 (swapping, schedules); the "
        "least loss: derived here"
    ),
    assumes="exact rows: every wrong partner is equally likely; towers: small temperature, equally many steps",
    expected=dict.fromkeys(
        ("least gap", "logit differences", "least loss", "free gap", "towers together", "swapping", "schedule"), "holds"
    )
    | {"towers apart": "holds if"},
)
PRECISION = "float64 exact part and flows, float32 towers"
CAPTION = (
    "(a) Gap of least loss among parallel modalities against the share of wrong pairs, minimised (points); near "
    "miss: n partners for n − 1. (b) Free embeddings under the same pairing end with a gap that depends on the "
    "starting angle (± 2 standard errors over four seeds; near miss: the angle counted on past 180°), and (c) all "
    "at the least loss (the largest of the seeds). Towers trained on a fixed set with wrong pairs, measured on "
    "right ones: gap against (d) the share of wrong pairs, from two cones apart and together (near miss: modalities "
    "exchanged at random); (e) the chance per step that a pair changes sides (near miss: every pair, which mixes "
    "none); (f) the temperature at which a schedule ends (near miss: × 1,000). Bars: ± 2 standard errors over 12 "
    "seeds."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Exact part: n pairs, shares × temperatures, starting angles. Towers: shares, swapping, schedules × seeds."""

    exact_pairs: int = 12
    exact_shares: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6)
    exact_temperatures: tuple[float, ...] = (0.07, 0.1, 0.15)
    angles: tuple[float, ...] = (np.pi / 12, np.pi / 3, 2 * np.pi / 3, np.pi)
    angle_past: float = 5 * np.pi / 3  # the near miss: as far apart as at π/3
    flow_seeds: int = 4
    flow_share: float = 0.2
    flow_temperature: float = 0.1
    flow_time: float = 60.0
    shares: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
    swapping: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.5)
    final_temperatures: tuple[float, ...] = (0.1, 0.2, 0.4)
    linear: float = 1000.0  # times every temperature: the loss is linear in the cosines, whatever the schedule
    temperature: float = 0.05
    share: float = 0.1
    stages: int = 4
    steps: int = 2000
    seeds: int = 12
    num_pairs: int = 2048
    width: int = 48
    embed_dim: int = 16
    batch_size: int = 32
    learning_rate: float = 2e-3
    eval_pairs: int = 256
    seed: int = 7
    design_seeds: tuple[int, ...] = (6,)


QUICK = Config(
    flow_seeds=3,
    flow_time=36.0,
    shares=(0.0, 0.1, 0.4),
    swapping=(0.01, 0.5),
    final_temperatures=(0.1, 0.4),
    stages=2,
    steps=700,
    seeds=24,  # at 12 the gap of towers that start together is 4 standard errors above none, give or take one
)


def measure(config: Config, *, progress: bool = False):
    """Gaps of least loss, the free flow from several angles, and the three sweeps of the towers."""
    import xarray as xr

    data = xr.merge([_parallel_family(config), _free_flow(config), _towers(config, progress)])
    data.attrs = dict(share=config.share, temperature=config.temperature, flow_share=config.flow_share)
    return data


def _parallel_family(config: Config):
    """The gap at which the library's loss is least, by a scalar minimiser, beside the prediction and its near miss."""
    import xarray as xr
    from scipy.optimize import minimize_scalar

    n, shape = config.exact_pairs, (len(config.exact_temperatures), len(config.exact_shares))
    found, predicted, near_miss = np.empty(shape), np.empty(shape), np.empty(shape)
    with jax.enable_x64(True):
        loss = jax.jit(lambda x, y, t, w: sim.info_nce(x, y, temperature=t, pairing=w))
        for i, temperature in enumerate(config.exact_temperatures):
            for j, share in enumerate(config.exact_shares):
                weights = mismatch.pairing_with_wrong_pairs(n, share)

                def at(height, temperature=temperature, weights=weights):
                    return float(loss(*simplex_pairs(n, height), temperature, weights))

                height = minimize_scalar(at, bounds=(1e-9, 1 - 1e-9), method="bounded", options=dict(xatol=1e-10)).x
                found[i, j] = 2 * height
                predicted[i, j] = mismatch.predicted_parallel_gap(n, share, temperature)
                wrong = temperature * np.log(n * (1 - share) / share) * (n - 1) / n
                near_miss[i, j] = 2 * np.sqrt(max(1 - wrong, 0.0))
    dims = ("exact_temperature", "exact_share")
    return xr.Dataset(
        dict(least_gap=(dims, found), predicted_gap=(dims, predicted), gap_near_miss=(dims, near_miss)),
        coords=dict(exact_temperature=list(config.exact_temperatures), exact_share=list(config.exact_shares)),
    )


def _free_flow(config: Config):
    """Free unit rows under the pairing of wrong pairs, from clusters at several angles: loss, logits and gap at the end."""
    import xarray as xr

    n, d = config.exact_pairs, config.exact_pairs + 4
    weights = mismatch.pairing_with_wrong_pairs(n, config.flow_share)
    angles = (*config.angles, config.angle_past)
    shape = (config.flow_seeds, len(angles))
    gap, excess, largest, smallest = (np.empty(shape) for _ in range(4))
    least = mismatch.predicted_least_loss(n, config.flow_share)
    with jax.enable_x64(True):
        for s, a in np.ndindex(shape):
            rng = np.random.default_rng([config.seed, s])
            axes = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
            means = axes[0], np.cos(angles[a]) * axes[0] + np.sin(angles[a]) * axes[1]
            x, y = (normalize_rows(mean[None, :] + 0.05 * rng.normal(size=(n, d))) for mean in means)
            path = sim.gradient_flow(
                x, y, times=[0.0, config.flow_time], temperature=config.flow_temperature, max_step=0.08,
                similarity="cosine", sphere=True, pairing=weights,
            )  # fmt: skip
            x, y = (np.asarray(rows[-1]) for rows in path)
            gap[s, a] = np.linalg.norm(np.mean(y - x, axis=0))
            excess[s, a] = sim.info_nce(x, y, temperature=config.flow_temperature, pairing=weights) - least
            logits = x @ y.T / config.flow_temperature
            above = np.diag(logits)[:, None] - logits[~np.eye(n, dtype=bool)].reshape(n, n - 1)
            largest[s, a], smallest[s, a] = above.max(), above.min()
    dims = ("flow_seed", "angle")
    values = dict(flow_gap=gap, flow_excess=excess, largest_difference=largest, smallest_difference=smallest)
    constants = dict(
        least_loss=least,
        least_loss_near_miss=-(1 - config.flow_share) * np.log1p(-config.flow_share)
        - config.flow_share * np.log(config.flow_share / n),
        predicted_difference=mismatch.predicted_logit_difference(n, config.flow_share),
        difference_near_miss=np.log(n * (1 - config.flow_share) / config.flow_share),
    )
    coords = dict(angle=list(angles), flow_seed=np.arange(config.flow_seeds))
    return xr.Dataset({name: (dims, value) for name, value in values.items()} | constants, coords=coords)


def _towers(config: Config, progress: bool):
    """All towers in one program; a schedule is a chain of stages, and who has none goes on at the same temperature."""
    import xarray as xr

    experiment = sim.Experiment(
        data=sim.LatentPairs(config.num_pairs),
        encoder_x=sim.MLP(config.width, embed_dim=config.embed_dim),
        encoder_y=sim.MLP(config.width, embed_dim=config.embed_dim),
        start=sim.Cones(np.pi / 2, tightness=20.0),
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        steps=config.steps // config.stages,
        eval_pairs=config.eval_pairs,
        eval_points=2,
    )
    apart, same = np.pi / 2, config.temperature
    points = [(apart, p, 0.0, same) for p in config.shares] + [(0.0, p, 0.0, same) for p in config.shares]
    points += [(apart, config.share, q, same) for q in (*config.swapping, 1.0)]
    points += [(apart, config.share, 0.0, t) for t in config.final_temperatures]
    # Near misses: a coin decides the sides of every pair; every schedule far above the cosines.
    ends = (min(config.shares), max(config.shares))
    points += [(apart, p, 0.5, same) for p in ends]
    points += [(apart, config.share, 0.0, config.linear * t) for t in (same, *config.final_temperatures)]
    angle, share, swap, final = np.array(points).T
    first = np.where(final > config.linear * same / 2, config.linear * same, same)
    parts, params = [], None
    for stage in range(config.stages):
        rising = first * (final / first) ** (stage / (config.stages - 1))
        fields = {
            "start.angle": angle, "data.mismatched": share, "swap_probability": swap, "loss.temperature": rising,
        }  # fmt: skip
        part, params = train_points(
            experiment, fields, seeds=config.seeds, seed=config.seed, params=params, progress=progress
        )
        part = xr.Dataset(dict(gap=unbiased_gap(part), recall=retrieval(part))).isel(step=-1, drop=True)
        parts.append(part)
    data = xr.concat(parts, "stage").transpose("stage", "seed", "point")
    many, plain = len(config.shares), config.shares.index(config.share)
    both = xr.concat(
        [data.isel(point=slice(0, many)), data.isel(point=slice(many, 2 * many))],
        xr.DataArray(["apart", "together"], dims="start", name="start"),
    )
    # The point without swapping and without a schedule is one of the shares.
    sizes = len(config.swapping) + 1, len(config.final_temperatures), len(ends), len(config.final_temperatures) + 1
    swaps, schedules, coins, linear = (
        list(range(stop - size, stop)) for size, stop in zip(sizes, 2 * many + np.cumsum(sizes), strict=True)
    )
    swapped, scheduled, by_coin = (data.isel(point=at) for at in ([plain, *swaps], [plain, *schedules], coins))
    merged = dict(linear_gap=data.gap.isel(point=linear).rename(point="final_temperature"))
    for part, name, values, label in (
        (both, "share", config.shares, "share"),
        (swapped, "swap", (0.0, *config.swapping, 1.0), "swap"),
        (by_coin, "coin_share", ends, "coin"),
        (scheduled, "final_temperature", (config.temperature, *config.final_temperatures), "schedule"),
    ):
        part = part.rename(point=name).assign_coords({name: list(values)})
        merged |= {f"{label}_{key}": part[key] for key in ("gap", "recall")}
    return xr.Dataset(merged)


def judge(data) -> list[sim.Row]:
    """The exact laws, the freedom that they leave, and the three trends of the towers."""
    rates = np.stack([data.largest_difference.values, data.smallest_difference.values])

    # Tolerances: a minimiser finds its argument to the root of the loss's rounding; the flow has not quite come to rest.
    def least_gap(predicted):
        return equal(predicted, data.least_gap, 1e-5)

    def difference(predicted):
        return equal(predicted, rates, 1e-6)

    def least_loss(predicted):
        return equal(predicted, data.flow_excess + data.least_loss, 1e-10)

    def at_end(name):
        return data[name].isel(stage=-1).transpose(..., "seed", data[name].dims[-1])

    def slopes(gaps):
        return [np.polyfit(share[1:], curve[1:], 1)[0] for curve in gaps.values]

    def row(name, label, values, sign, near_miss, control_name, outside=None, **reason):
        along = lambda curve: trend(curve, curve[curve.dims[-1]].values, sign)
        return sim.Row(
            name,
            along(values),
            along(near_miss),
            control_name,
            label=f"{label} ({ends(values, values[values.dims[-1]].values)})",
            outside=None if outside is None else along(outside),
            **reason,
        )

    def opened(gaps, at):
        """Whether the gap at every share in `at` is above the first of these: the worst share speaks for all."""
        mean, error = gaps.mean(axis=0), standard_error(gaps)
        return worst(moves(mean[[at[0], i]], error[[at[0], i]], np.arange(2)) for i in at[1:])

    share, swap = data.share.values, at_end("swap_gap")
    apart, together = at_end("share_gap").sel(start="apart"), at_end("share_gap").sel(start="together")
    flow_gap = data.flow_gap.transpose("flow_seed", "angle")
    return [
        sim.Row(
            "least gap",
            least_gap(data.predicted_gap),
            least_gap(data.gap_near_miss),
            "n wrong partners in place of n − 1",
            label="gap of least loss of parallel modalities, over shares and temperatures",
        ),
        sim.Row(
            "logit differences",
            difference(data.predicted_difference),
            difference(data.difference_near_miss),
            "n wrong partners in place of n − 1",
            label="free embeddings: right logit over every wrong one, from all angles",
        ),
        sim.Row(
            "least loss",
            least_loss(data.least_loss),
            least_loss(data.least_loss_near_miss),
            "n wrong partners in place of n − 1",
            label="free embeddings: loss at the end is the least one, from all angles",
        ),
        row(
            "free gap",
            "free embeddings: gap at this same loss rises with the starting angle (rad)",
            flow_gap[:, :-1],
            +1,
            flow_gap,
            f"the angle counted on past π, to {float(data.angle[-1]):.2f}",
        ),
        row(
            "towers apart",
            "towers, apart: gap rises with the share of wrong pairs",
            apart,
            +1,
            at_end("coin_gap"),
            "the sides of every pair by a coin at every step",
            outside=together,
            condition="the modalities start apart",
            effect="slope over the shares above 0, per unit of share: "
            f"{spread(slopes(apart))} apart, {spread(slopes(together))} together",
        ),
        sim.Row(
            "towers together",
            opened(together.values, range(len(share))),
            opened(together.values, range(1, len(share))),
            "the smallest share above 0 in place of none",
            label=f"towers, together: gap at every share of wrong pairs above that without ({ends(together.values, share)})",
        ),
        row(
            "swapping",
            "towers: gap falls with the chance of swapping",
            swap[:, :-1],
            -1,
            swap,
            "chances up to 1, where every pair is swapped and none mixed",
        ),
        row(
            "schedule",
            "towers: gap falls with the final temperature of a schedule",
            at_end("schedule_gap"),
            -1,
            at_end("linear_gap"),
            "temperatures × 1,000, at which the loss is linear in the cosines",
        ),
    ]


def draw(data):
    """The exact part above, the towers below."""
    import matplotlib.pyplot as plt

    layout: list[Any] = [["family", "flow", "excess"], ["share", "swap", "schedule"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(plotting.TWO_COLUMNS, 4.0), layout="constrained")
    axis = axes["family"]
    for i, temperature in enumerate(data.exact_temperature.values):
        here, look = data.sel(exact_temperature=temperature), plotting.series(2 + i)
        axis.plot(here.exact_share, here.predicted_gap, color=look["color"])
        axis.plot(here.exact_share, here.least_gap, linestyle="none", label=f"τ = {temperature:g}", **look)
        axis.plot(here.exact_share, here.gap_near_miss, color=plotting.CONTROL, linestyle="--", linewidth=0.8)
    axis.plot([], [], "k-", label="predicted")
    axis.set(xscale="log", xlabel="share p of wrong pairs", ylabel="gap of least loss", ylim=(-0.8, 2))
    axis.set_yticks(np.arange(0, 2.1, 0.5))
    axis.legend(loc="lower right", fontsize=plotting.SMALL)
    angles = np.degrees(data.angle.values)
    flow_gap = data.flow_gap.transpose("flow_seed", "angle").values
    plotting.points(axes["flow"], angles[:-1], flow_gap[:, :-1], **plotting.series(0))
    _near_miss(axes["flow"], angles[-2:], flow_gap[:, -2:])
    axes["flow"].set(ylabel="gap at the end", ylim=(0, 2))
    axes["excess"].plot(angles, np.abs(data.flow_excess).max("flow_seed"), linestyle="none", **plotting.series(0))
    axes["excess"].set(yscale="log", ylim=(1e-17, 1), ylabel="loss − least loss (nats)")
    for name in ("flow", "excess"):
        axes[name].set(xlabel="starting angle (°)", xticks=angles)
    panels = (
        ("share", "share_gap", "share of wrong pairs"),
        ("swap", "swap_gap", "chance of swapping per step"),
        ("schedule", "schedule_gap", "final temperature"),
    )
    for name, variable, label in panels:
        axis, values = axes[name], data[variable].isel(stage=-1)
        at = values[values.dims[-1]].values
        last = len(at) - 1 if name == "swap" else len(at)  # the last chance is the near miss
        place = np.arange(len(at))  # evenly: the values span decades and begin at 0
        curves = (
            [(values.sel(start=s), s) for s in ("apart", "together")] if "start" in values.dims else [(values, None)]
        )
        for i, (curve, text) in enumerate(curves):
            curve = curve.transpose("seed", ...)
            plotting.points(axis, place[:last], curve.values[:, :last], text, **plotting.series(i))
        if name == "share":
            _near_miss(axis, place[[0, -1]], data.coin_gap.isel(stage=-1).transpose("seed", ...).values, "near miss")
        elif name == "swap":
            _near_miss(axis, place[-2:], curve.values[:, -2:])
        else:
            _near_miss(axis, place, data.linear_gap.isel(stage=-1).transpose("seed", ...).values)
        axis.set(xlabel=label, ylabel="gap after training", ylim=(0, 1.6), xlim=(-0.3, len(at) - 0.7))
        axis.set_xticks(place, [f"{v:g}" for v in at])
    plotting.legend_above(figure, axes["share"], ncols=3)
    return plotting.lettered(figure)


def _near_miss(axis, at, values, label=None):
    axis.plot(at, values.mean(axis=0), "--", color=plotting.CONTROL, linewidth=0.8, label=label)
