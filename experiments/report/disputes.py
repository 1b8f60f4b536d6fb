"""What the field argues about: each question answered in one line and one figure, from the stored results of the claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import simulator as sim
from experiments.real_embeddings.study import named
from experiments.report import dispute_figures as figures
from experiments.report.dispute_figures import SPARED, changed_by_top
from experiments.setups.checks import worst
from experiments.setups.galleries import TOWERS
from experiments.setups.trends import trend

Results = dict[str, Any]  # stem -> xarray.Dataset
RIGHT_ANGLE = np.pi / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispute:
    """A question of the field.

    name: stem of its figure, dispute_<name>; claims: ids that speak to it; stems: the results it reads.
    sentence: results -> the answer in one line, every number computed from them. evidence: results -> rows that must hold
    for the sentence to be said, each with a control. show: results -> figure.
    """

    name: str
    question: str
    claims: tuple[str, ...]
    stems: tuple[str, ...]
    sentence: Callable[[Results], str]
    evidence: Callable[[Results], list[sim.Row]]
    show: Callable[[Results], Any]
    caption: str

    def read(self, folder: Path | str) -> Results:
        """The stored results of `stems`; FileNotFoundError names one that is missing."""
        from simulator.storage.results import load_dataset

        return {stem: load_dataset(Path(folder) / f"{stem}.nc") for stem in self.stems}

    def is_stored(self, folder: Path | str) -> bool:
        """Whether the folder holds all the results that the answer needs."""
        return all((Path(folder) / f"{stem}.nc").exists() for stem in self.stems)

    def answer(self, folder: Path | str) -> str:
        """The answer in one line; it says so where the results in the folder do not bear it out."""
        return self.answer_from(self.read(folder))

    def answer_from(self, results: Results) -> str:
        """`answer` for results in memory."""
        open_rows = [
            row.name for row in self.evidence(results) if row.verdict() == "refuted" or not row.control_rejected()
        ]
        doubt = f"Not settled by these results ({'; '.join(open_rows)}). " if open_rows else ""
        return doubt + self.sentence(results)

    def draw(self, folder: Path | str) -> Any:
        """One-column figure from the stored numbers."""
        return self.show(self.read(folder))


def draw_all(out: Path | str, folder: Path | str | None = None) -> list[Path]:
    """Write dispute_<name>.pdf and .png under `out` for every dispute whose results lie in `folder` (None: `out`)."""
    from experiments.plotting import save_figure

    out, folder = Path(out), Path(out if folder is None else folder)
    written = []
    for dispute in DISPUTES:
        if dispute.is_stored(folder):
            written += save_figure(dispute.draw, folder, out / f"dispute_{dispute.name}")
    return written


def with_error(mean: float, error: float, unit: str = "") -> str:
    """Mean ± one standard error, to the first digit of the error that counts; an exact number by three digits."""
    if not error > 0:
        return f"{mean:.3g}{unit}"
    places = max(0, -int(np.floor(np.log10(error))))
    return f"{mean:.{places}f} ± {error:.{places}f}{unit}"


def over_seeds(values, scale: float = 1.0, unit: str = "") -> str:
    """`with_error` of independent values, one per seed."""
    values = scale * np.ravel(np.asarray(values, float))
    return with_error(values.mean(), values.std(ddof=1) / values.size**0.5, unit)


def share(part: float, of: int) -> str:
    """A share of `of` decisions in per cent, ± its binomial standard error."""
    return with_error(100 * part, 100 * (part * (1 - part) / of) ** 0.5, " %")


def _zero(counts) -> sim.Check:
    counts = np.asarray(counts, float)
    return sim.Check("absolute", np.zeros(counts.shape), counts, 0.5)


# Is the gap flat in the loss, or tied to temperature?


def _flat_sentence(results: Results) -> str:
    data, learned = results["gap_freezing"], results["learned_temperature"]
    loss = abs(data.loss_at_offset - data.loss_at_offset.isel(offset=0)).max("offset")
    euclid, sphere = (100 * data[f"cones_{name}"].isel(time=-1) for name in ("euclid", "sphere"))
    cold, hot = float(data.temperature[0]), float(data.temperature[-1])
    left = learned.shared_half_gap.sel(rate=1.0).isel(time=-1)
    return (
        f"Flat in Euclid, tied to the temperature on the sphere: moving the gap by {float(data.offset[-1]):g} changes the "
        f"Euclidean loss by {float(loss.sel(rows='constant')):.0e} nats and the cosine loss by "
        f"{float(loss.sel(rows='cosine')):.2f}, and of the same gap {over_seeds(euclid.mean('temperature'))} % is left in "
        f"Euclid at t = {data.attrs['flow_time']:g} whatever τ, on the sphere {over_seeds(sphere.sel(temperature=cold))} % at "
        f"τ = {cold:g} and {over_seeds(sphere.sel(temperature=hot))} % at {hot:g}; if τ is learned too, the parametrisation "
        f"decides (half gap {learned.attrs['half_gap']:g} → {over_seeds(left.sel(parametrisation='exponential'))} for "
        f"1/τ = e^ν, {over_seeds(left.sel(parametrisation='temperature'))} for τ itself)."
    )


def _flat_evidence(results: Results) -> list[sim.Row]:
    data = results["gap_freezing"]
    loss = (data.loss_at_offset - data.loss_at_offset.isel(offset=0)).sel
    left = data.cones_sphere.isel(time=-1).transpose("seed", "temperature")
    euclid = data.cones_euclid.isel(time=-1).transpose("seed", "temperature")
    flat = lambda rows: sim.Check("absolute", np.zeros(data.sizes["offset"]), loss(rows=rows).values, 1e-10)
    kept = lambda shares: sim.Check("absolute", np.ones(shares.shape), shares.values, 0.01)
    return [
        sim.Row("the Euclidean loss is flat in the gap", flat("constant"), flat("cosine"), "cosine similarity"),
        sim.Row("Euclid keeps 99 % of the gap or more at every τ", kept(euclid), kept(left), "the sphere"),
        sim.Row(
            "what the sphere keeps falls with τ",
            trend(left, data.temperature.values, -1),
            trend(euclid, data.temperature.values, -1),
            "Euclid",
        ),
    ]


# Does the optimum have a gap?


def _cold(results: Results):
    """Gap norm [seed, step] of the towers at the smallest temperature, from cones at a right angle, synthetic pairs."""
    data = results["gap_emergence"]
    here = data.gap_norm.sel(data="synthetic", temperature=data.temperature.min()).sel(
        angle=RIGHT_ANGLE, method="nearest"
    )
    return here.transpose("seed", "step")


def _optimum_sentence(results: Results) -> str:
    simplex, sigmoid, many = (results[s] for s in ("simplex", "sigmoid_constellation", "alignment_uniformity"))
    free = simplex.free_gap.sel(wrong_share=0.0)
    held = float(simplex.gap[2])
    costs = simplex.parallel.sel(wrong_share=0.0)
    wrong, tau = float(simplex.wrong_share[1]), simplex.attrs["gap_temperature"]
    cold = _cold(results)
    late = int(np.searchsorted(cold.step.values, cold.step.values[-1] / 2))
    rows = many.flaw_kind.values == "gap"
    loss, error = many.flawed.values[rows], many.flawed_error.values[rows]
    at = int(np.argmin(np.abs(many.flaw_size.values[rows] - 0.6)))
    cost = with_error(loss[at] - loss[0], float(np.hypot(error[at], error[0])))
    return (
        f"No, with true pairs: free rows that start apart end at G ≤ {float(free.max()):.0e} ({free.size} runs), and holding "
        f"G = {held:g} makes the smallest loss {float(costs.sel(gap=held) / costs.sel(gap=0.0)):.1f} times larger at τ = {tau:g} "
        f"(many pairs: a half gap of {many.flaw_size.values[rows][at]:g} costs {cost} nats); training just does not get there "
        f"(towers at τ = {float(cold.temperature):g}: G = {over_seeds(cold[:, late])} at step {int(cold.step[late]):,}, "
        f"{over_seeds(cold[:, -1])} at {int(cold.step[-1]):,}). Exceptions: {100 * wrong:g} % wrong pairs make gaps up to "
        f"{float(simplex.widest.sel(wrong_share=wrong)):.2f} free, and the sigmoid loss keeps one if its bias is held at 0 "
        f"({over_seeds(sigmoid.gap.sel(bias='bias 0'))}; trained: {over_seeds(sigmoid.gap.sel(bias='trained bias'))})."
    )


def _optimum_evidence(results: Results) -> list[sim.Row]:
    simplex, cold = results["simplex"], _cold(results)
    closed = lambda gaps: sim.Check("absolute", np.zeros(gaps.shape), gaps.values, 1e-4)
    late, before = cold.isel(step=slice(-5, None)), cold.isel(step=slice(-10, -5))
    # The optimiser leaves losses within 1e-8 of their predicted values (P8).
    rising = lambda curve: sim.Check(
        "monotone", np.ones(len(curve) - 1), curve.values, 4.0, 1e-8 * curve.values, simplex.gap.values
    )
    wrong = simplex.free_gap.sel(wrong_share=simplex.wrong_share[1:]).isel(inverse_temperature=-1)
    return [
        sim.Row("free rows with one partner each end without a gap", closed(simplex.free_gap.sel(wrong_share=0.0)),
                closed(wrong), "wrong pairs at the smallest τ"),
        sim.Row("the smallest loss rises with the gap that is held", rising(simplex.parallel.sel(wrong_share=0.0)),
                rising(simplex.parallel.isel(wrong_share=-1)), "wrong pairs"),
        sim.Row("the trained gap is still falling", trend(late, late.step.values, -1),
                trend(before, before.step.values, -1), "the five recorded steps before these, while the clusters form"),
    ]  # fmt: skip


# Is the cone the cause?


def _cone_sentence(results: Results) -> str:
    shapes, same = results["collapse_controls"], results["same_data_gap"]
    towers = shapes.isel(step=-1).sel(encoder="MLP towers")
    final = lambda shape, i: over_seeds(towers.gap_norm.sel(shape=shape).isel(angle=i))
    corner = same.widest_gap.sel(batch_size=same.batch_size.min()).transpose("setting", "seed", "step")
    grown, hot, *_ = (corner.sel(setting=name).values for name in same.setting.values)
    return (
        f"Its separation is, its shape is not: at τ = 0.01 towers that start {np.degrees(float(towers.angle[-1])):.0f}° apart end at G = "
        f"{final('isotropic', -1)} (isotropic) or {final('collapsed', -1)} (collapsed), together at {final('isotropic', 0)} or "
        f"{final('collapsed', 0)}, small but more than chance ({over_seeds(towers.chance.isel(angle=0, shape=0))}). And a gap "
        f"needs no cone: two towers fed the same data in batches of {int(same.batch_size.min())} go from "
        f"{over_seeds(grown[:, 0])} to {over_seeds(grown[:, -1])} at τ = {same.attrs['small_temperature']:g} (to "
        f"{over_seeds(hot[:, -1])} at τ = {same.attrs['large_temperature']:g})."
    )


def _cone_evidence(results: Results) -> list[sim.Row]:
    shapes, same = results["collapse_controls"].isel(step=-1), results["same_data_gap"]
    angles, names = shapes.angle.values, shapes["shape"].values
    gap = shapes.gap_norm
    by_angle = [gap.sel(encoder=e, shape=s).transpose("seed", "angle") for e in shapes.encoder for s in names]
    by_shape = [gap.sel(encoder=e, angle=a).transpose("seed", "shape") for e in shapes.encoder for a in angles]
    corner = same.widest_gap.sel(batch_size=same.batch_size.min()).transpose("setting", "seed", "step")
    grows = lambda i: trend(corner[i], same.step.values, +1)
    return [
        sim.Row(
            "the final gap rises with the angle of the start, every shape", worst(trend(c, angles, +1) for c in by_angle),
            worst(trend(c, np.arange(2), +1) for c in by_shape), "the shape in place of the angle",
        ),
        sim.Row("without a cone the gap grows at small τ", grows(0), grows(1), "a large τ"),
    ]  # fmt: skip


# Does closing cost accuracy?


def _accuracy_sentence(results: Results) -> str:
    closing, monotone, real = (results[s] for s in ("gap_closing", "robustness_monotone", "real_embeddings"))
    total, whole = closing.clean_decisions.values, closing.sel(alpha=1.0)
    by_gap = [share(part / n, int(n)) for part, n in zip(whole.changed_by_gap.values, total, strict=True)]
    accuracy = [float(monotone.clean_accuracy.sel(alpha=a)[0]) for a in (0.0, 1.0)]
    scalars = results["compensated_closing"].changed
    real = named(real)
    raw, top = (share(float(changed_by_top(real, r)), real.num_queries) for r in (0, SPARED))
    return (
        f"Not if only what is orthogonal to the gallery is moved: g' changed "
        f"{int(closing.changed.sel(components='all').sum())} of {int(total.sum()):,} decisions at each of "
        f"{closing.sizes['alpha']} α (accuracy of ten tower classes {accuracy[0]:.3f} → {accuracy[-1]:.3f}), and with "
        f"one exact scalar per class any shift will do ({int(scalars.sum())} changed). Moving by the raw gap costs: it changed "
        f"{', '.join(by_gap)} of decisions on trained galleries and {raw} on CLIP "
        f"with 500 classes, and {top} there if only the top {SPARED} principal directions are spared."
    )


def _accuracy_evidence(results: Results) -> list[sim.Row]:
    closing, scalar, real = (results[s] for s in ("gap_closing", "compensated_closing", "real_embeddings"))
    real = named(real)
    return [
        sim.Row("g' changes no decision", _zero(closing.changed.sel(components="all")),
                _zero(closing.changed_by_gap), "g itself"),
        sim.Row("one exact scalar per class: none changes", _zero(scalar.changed), _zero(scalar.missed),
                "half the scalar, or without its mean"),
        sim.Row("none changes on CLIP and ImageNet, any rule with a certificate", _zero(real.rule_changed),
                _zero(real.num_queries * real["trade_off_top r"].sel(quantity="changed")), "top-r rules"),
    ]  # fmt: skip


# Does closing help robustness?


def _robustness_sentence(results: Results) -> str:
    monotone, closing, real = (results[s] for s in ("robustness_monotone", "gap_closing", "real_embeddings"))
    sigma = float(monotone.sigma[-1])
    here = monotone.sel(gallery=TOWERS, sigma=sigma)
    at = [with_error(100 * float(here.measured.sel(alpha=a)), 100 * float(here.standard_error.sel(alpha=a)))
          for a in (0.0, 1.0, 2.0)]  # fmt: skip
    gains = [
        with_error(100 * float(real.gain[i, 0]), 100 * float(real.gain_error[i, 0]))
        + f" points for {int(real['size'][i])}"
        for i in (0, 1)
    ]
    stuck = closing.moved_share.values[1]
    return (
        f"Against noise on the stored rows, yes: ten classes of towers keep {at[0]} % of answers with the gap open, {at[1]} % "
        f"closed, {at[2]} % overshot as far (σ = {sigma:g}); CLIP gains {gains[0]} and {gains[1]} captions (σ² = "
        f"{float(real.variance[0]):g}). Against noise on the query, exactly not: "
        f"{int(closing.paired_changes.sel(noise='queries').sum())} of {int(closing.paired_decisions):,} noisy decisions change "
        f"at any α. Nor where the gallery leaves nothing to move ({100 * stuck:.1f} % of ‖g‖² for {closing.kind.values[1]}); one "
        f"exact scalar per class helps there too (ImageNet: {_rule(real, 'as it is')} → {_rule(real, 'centred')} %)."
    )


def _rule(real, rule: str) -> str:
    """Robustness of a rule on ImageNet's 1,000 classes, in per cent."""
    here = real.sel(gallery="ImageNet, K = 1000", rule=rule)
    return with_error(100 * float(here.robustness), 100 * float(here.error))


def _robustness_evidence(results: Results) -> list[sim.Row]:
    data, closing = results["robustness_monotone"], results["gap_closing"]

    def worst_curve(curves, at, errors):
        signs = np.where(at.values[1:] <= 1.0, 1.0, -1.0)
        return worst(
            sim.Check("monotone", signs, curve, 4.0, error, at.values)
            for curve, error in zip(curves, errors, strict=True)
        )

    towers = data.exact.stack(case=("gallery", "sigma")).transpose("case", "tower", "exact_alpha").values
    same = worst_curve(data.query_noise.values, data.alpha, data.query_noise_error.values)
    changed = lambda noise: _zero(closing.paired_changes.sel(noise=noise))
    return [
        sim.Row("queries of the other modality: rises to α = 1 and falls after", worst_curve(towers, data.exact_alpha, [None] * len(towers)),
                same, "the same noise on the queries"),
        sim.Row("noise on the queries: no decision changes", changed("queries"), changed("every row"), "noise on the rows"),
    ]  # fmt: skip


DISPUTES: tuple[Dispute, ...] = (
    Dispute(
        name="flat",
        question="Is the gap flat in the loss, or tied to temperature?",
        claims=("C3", "P4"),
        stems=("gap_freezing", "learned_temperature"),
        sentence=_flat_sentence,
        evidence=_flat_evidence,
        show=figures.flat,
        caption=figures.FLAT,
    ),
    Dispute(
        name="optimum",
        question="Does the optimum have a gap?",
        claims=("P8", "P9", "P10", "C1"),
        stems=("simplex", "alignment_uniformity", "sigmoid_constellation", "gap_emergence"),
        sentence=_optimum_sentence,
        evidence=_optimum_evidence,
        show=figures.optimum,
        caption=figures.OPTIMUM,
    ),
    Dispute(
        name="cone",
        question="Is the cone the cause?",
        claims=("C7", "P7"),
        stems=("collapse_controls", "same_data_gap"),
        sentence=_cone_sentence,
        evidence=_cone_evidence,
        show=figures.cone,
        caption=figures.CONE,
    ),
    Dispute(
        name="accuracy",
        question="Does closing the gap cost accuracy?",
        claims=("C5", "C6", "N6"),
        stems=("gap_closing", "robustness_monotone", "compensated_closing", "real_embeddings"),
        sentence=_accuracy_sentence,
        evidence=_accuracy_evidence,
        show=figures.accuracy,
        caption=figures.ACCURACY,
    ),
    Dispute(
        name="robustness",
        question="Does closing the gap help robustness?",
        claims=("C4", "C6", "N6"),
        stems=("robustness_monotone", "gap_closing", "real_embeddings"),
        sentence=_robustness_sentence,
        evidence=_robustness_evidence,
        show=figures.robustness,
        caption=figures.ROBUSTNESS,
    ),
)
