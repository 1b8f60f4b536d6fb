"""The figures of the disputes: one column each, from stored results alone."""

from __future__ import annotations

import numpy as np

from experiments import plotting
from experiments.real_embeddings.study import LARGEST, named

COLORS, CONTROL = plotting.COLORS, plotting.CONTROL
SPARED = 300  # principal directions of the largest gallery of CLIP that the top-r rule leaves alone

FLAT = (
    "(a) Change of the loss while the gap is moved along a direction in which neither modality varies: none in Euclid, much "
    "for the cosine. (b) Share of the gap that the gradient flow leaves of the same two random cones at t = 8, ± 2 standard "
    "errors over seeds (within the markers): all of it in Euclid, less with every τ on the sphere."
)
OPTIMUM = (
    "(a) Smallest loss of eight pairs (τ = 0.1) with a gap that is held, for a share p of wrong pairs; points: found, lines: "
    "predicted. True pairs always pay for a gap; wrong ones make it free up to a width. (b) Gap of trained towers, ± 2 standard "
    "errors over seeds: far from the optimum's (0) at small τ, and still falling when training stops."
)
CONE = (
    "(a) Final gap against the angle between the starts, isotropic and collapsed, "
    "τ = 0.01; grey: towers with labels exchanged within pairs. (b) Gap along training of two towers on the same "
    "data (batch 8, 64 dimensions): without a cone it grows at τ = 0.02, and closes at 0.1. ± 2 standard errors over seeds."
)
ACCURACY = (
    "Share of decisions that a shift of the gallery (α = 1) changes, ± 2 standard errors over decisions; the axis is linear "
    "below 1 %. Moving by the raw gap g, or sparing only the top r principal directions (r = 8; 300 for CLIP), changes answers and "
    "so accuracy; the part g' orthogonal to the gallery, or any shift with one exact scalar per class, changes none."
)
ROBUSTNESS = (
    "(a) Towers, ten classes, σ = 0.09: share of decisions that noise leaves as they are, against closing α; lines: exact, "
    "points: measured ± 4 standard errors over draws. Noise on the queries is not affected at all. "
    "(b) What full closing gains on CLIP, in points, ± 2 standard errors over 20 random subsets of captions (500: one set)."
)


def _panels(columns: int, height: float = 2.0):
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(plotting.ONE_COLUMN, height), layout="constrained")


def _name(axis, at, text: str, color: str, **options):
    """Name a curve beside it."""
    axis.annotate(text, at, color=color, fontsize=7, **(dict(xytext=(3, 3), textcoords="offset points") | options))


def _two_errors(values):
    """(mean, 2 standard errors) over seeds."""
    return values.mean("seed"), 2 * values.std("seed", ddof=1) / values.sizes["seed"] ** 0.5


def flat(results):
    """The loss against the gap; what is left of it against the temperature."""
    data = results["gap_freezing"]
    figure, (left, right) = _panels(2)
    for rows, color, label, at in (("constant", COLORS[0], "Euclid", 4), ("cosine", COLORS[1], "cosine", 3)):
        change = data.loss_at_offset.sel(rows=rows) - data.loss_at_offset.sel(rows=rows)[0]
        left.plot(data.offset, change, "o-", color=color)
        _name(left, (data.offset[at], change[at]), label, color, xytext=(-4, 4), ha="right" if at == 3 else "left")
    left.set(xlabel="gap moved by", ylabel="change of loss (nats)")
    temperature = data.temperature.values
    for name, color, at, place in (("euclid", COLORS[0], 1, (0, -10)), ("sphere", COLORS[1], 1, (5, 3))):
        mean, error = _two_errors(data[f"cones_{name}"].isel(time=-1))
        right.errorbar(temperature, mean, error, color=color, marker="o")
        _name(right, (temperature[at], mean[at]), name.replace("e", "E", name == "euclid"), color, xytext=place)
    right.set(xscale="log", xlabel="temperature τ", ylabel="share of gap left", ylim=(-0.04, 1.08))
    right.set_xticks(temperature, [f"{t:g}" for t in temperature])
    right.minorticks_off()
    return plotting.lettered(figure)


def optimum(results):
    """The price of a gap that is held; the gap of trained towers against the optimum's."""
    from simulator.theory import landscapes

    simplex, towers = results["simplex"], results["gap_emergence"]
    figure, (left, right) = _panels(2)
    pairs, tau = int(simplex.attrs["drawn"]), simplex.attrs["gap_temperature"]
    fine = np.linspace(0, 1.7, 80)
    for wrong, color in zip(simplex.wrong_share.values, COLORS, strict=False):
        line = [landscapes.smallest_loss(pairs, tau, gap_norm=g, wrong_share=wrong) for g in fine]
        left.plot(fine, line, color=color, linewidth=0.9)
        left.plot(simplex.gap, simplex.parallel.sel(wrong_share=wrong), "o", color=color)
        below = wrong == simplex.wrong_share[1]
        _name(left, (0, line[0]), f"p = {wrong:g}", color, xytext=(0, -10) if below else (0, 7))
    left.set(
        yscale="log", xlabel="gap norm G held", ylabel="smallest loss (nats)", xticks=[0, 0.5, 1, 1.5], ylim=(4e-5, 3)
    )
    here = towers.gap_norm.sel(data="synthetic").sel(angle=np.pi / 2, method="nearest").isel(step=slice(1, None))
    for tau, color in zip(towers.temperature.values, COLORS, strict=False):
        curve = here.sel(temperature=tau).transpose("seed", "step").values
        plotting.band(right, here.step.values, curve, color, f"τ = {tau:g}")
    right.axhline(0, color=CONTROL, linestyle="--", linewidth=0.8)
    right.set(xscale="log", xlabel="step", ylabel="gap norm G", ylim=(-0.06, 1.8), xticks=[1, 10, 100, 1000])
    right.legend(loc="lower left", bbox_to_anchor=(0, 0.08))
    _name(right, (1, 0), "optimum", CONTROL, xytext=(0, 2))
    return plotting.lettered(figure)


def cone(results):
    """The final gap by angle and shape of the start; the gap that grows without a cone."""
    shapes, same = results["collapse_controls"].isel(step=-1), results["same_data_gap"]
    figure, (left, right) = _panels(2)
    degrees = np.degrees(shapes.angle.values)
    for encoder, style in zip(shapes.encoder.values, ("o-", "s:"), strict=False):
        for shape, color in zip(shapes["shape"].values, COLORS, strict=False):
            mean, error = _two_errors(shapes.gap_norm.sel(encoder=encoder, shape=shape))
            label = str(shape) if style == "o-" else None
            left.errorbar(degrees, mean, error, color=color, fmt=style, fillstyle="none", label=label)
        left.plot([], [], f"k{style}", fillstyle="none", label=str(encoder))
    chance = shapes.chance.isel(encoder=0, shape=0).mean("seed")
    left.plot(degrees, chance, "--", color=CONTROL, linewidth=0.8)
    _name(left, (degrees[-1], chance[-1]), "exchanged", CONTROL, ha="right", xytext=(0, 3))
    left.set(
        xlabel="angle of the start (°)",
        ylabel="final gap norm G",
        xticks=[0, 45, 90],
        ylim=(-0.05, 2.6),
        yticks=np.arange(0, 1.6, 0.5),
    )
    left.legend(loc="upper left", borderaxespad=0, handlelength=1.2)
    corner = same.widest_gap.sel(batch_size=same.batch_size.min()).transpose("setting", "seed", "step")
    labels = [f"τ = {same.attrs[name]:g}" for name in ("small_temperature", "large_temperature")]
    for curve, color, label in zip(corner[:2], (COLORS[2], COLORS[3]), labels, strict=True):
        plotting.band(right, same.step.values, curve.values, color, label)
    right.set_xscale("symlog", linthresh=1)
    right.set(xlabel="step", ylabel="gap norm G, no cone", ylim=(0, 0.36), xticks=[0, 1, 10, 100, 1000])
    right.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
    right.legend(loc="upper left", borderaxespad=0)
    return plotting.lettered(figure)


def changed_by_top(real, r: int):
    """Share of decisions on the largest gallery of CLIP that a shift changes which spares the top r principal directions."""
    return real["trade_off_top r"].sel({"top r setting": r, "quantity": "changed"})


def changes_by_rule(results) -> dict[str, list[tuple[str, float, int]]]:
    """Rule -> (gallery, share of decisions changed at α = 1, number of decisions)."""
    closing, scalar, real = (results[s] for s in ("gap_closing", "compensated_closing", "real_embeddings"))
    closing, real = closing.sel(alpha=1.0), named(real)
    kinds, total = [str(kind) for kind in closing.kind.values], closing.clean_decisions.values

    def trained(counts):
        return [(kind, float(count / n), int(n)) for kind, count, n in zip(kinds, counts, total, strict=True)]

    def top(r):
        return LARGEST, float(changed_by_top(real, r)), real.num_queries

    def certified(rule):
        return LARGEST, float(real.rule_changed.sel(gallery=LARGEST, rule=rule) / real.num_queries), real.num_queries

    whole = closing.changed.sel
    scalars = zip(scalar.gallery.values, scalar.changed.sel(alpha=1.0, rule="centred").values, strict=True)
    return {
        "raw gap g": [*trained(closing.changed_by_gap.values), top(0)],
        "all but top r": [*trained(whole(components="8").values), top(SPARED)],
        "complement g'": [*trained(whole(components="all").values), certified("complement")],
        "one scalar\nper class": [*((str(g), float(n), 1) for g, n in scalars), certified("centred")],
    }


def accuracy(results):
    """Share of decisions that every rule changes."""
    figure, axis = _panels(1)
    rules = changes_by_rule(results)
    kinds = {}  # of gallery, in the order of their first appearance
    for place, shares in enumerate(rules.values()):
        for i, (gallery, changed, decisions) in enumerate(shares):
            name = gallery.removeprefix("MLP ") if "towers" in gallery or gallery == LARGEST else gallery.split(",")[0]
            look = kinds.setdefault(name, plotting.series(len(kinds), linestyle=""))
            error = 200 * (changed * (1 - changed) / decisions) ** 0.5 if changed else None
            axis.errorbar(100 * changed, place + 0.16 * (i - 0.5 * (len(shares) - 1)), xerr=error, **look)
    for name, look in kinds.items():
        axis.plot([], [], label=name, **look)
    axis.set_xscale("symlog", linthresh=1, linscale=0.5)
    axis.set(xlabel="decisions changed (%)", ylabel="moved by", xlim=(-0.1, 100), ylim=(len(rules) - 0.5, -0.5))
    axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.set_yticks(range(len(rules)), list(rules))
    axis.legend(loc="lower right", borderaxespad=0)
    return plotting.lettered(figure)


def robustness(results):
    """Robustness against closing for noise on either side; the gain on CLIP."""
    monotone, real = results["robustness_monotone"], results["real_embeddings"]
    figure, (left, right) = _panels(2)
    sigma = monotone.attrs["control_sigma"]
    here = monotone.isel(gallery=0).sel(sigma=sigma)
    left.plot(here.alpha, here.predicted, color=COLORS[0])
    left.errorbar(here.alpha, here.measured, 4 * here.standard_error, color=COLORS[0], fmt="o")
    left.errorbar(here.alpha, here.query_noise, 4 * here.query_noise_error, color=CONTROL, fmt="s:")
    _name(left, (1, here.predicted.sel(alpha=1.0)), "noise on the gallery", COLORS[0], ha="center", xytext=(0, 5))
    _name(left, (1, here.query_noise.sel(alpha=1.0)), "noise on the queries", CONTROL, ha="center", xytext=(0, 5))
    left.set(xlabel="closing α", ylabel="robustness", ylim=(0.6, 1.0), xticks=[0, 1, 2])
    for i, color in ((0, COLORS[1]), (2, COLORS[2])):
        label = f"σ² = {float(real.variance[i]):g}"
        right.errorbar(
            real["size"], 100 * real.gain[:, i], 200 * real.gain_error[:, i], color=color, marker="o", label=label
        )
    right.axhline(0, color=CONTROL, linewidth=0.8, label="no gain")
    right.set(xscale="log", xlabel="captions K", ylabel="gain of closing (points)", ylim=(-0.5, 14))
    right.set_xticks(real["size"].values, [str(k) for k in real["size"].values])
    right.minorticks_off()
    right.legend(loc="upper right", borderaxespad=0)
    return plotting.lettered(figure)
