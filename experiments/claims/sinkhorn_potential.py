"""N3: with the gap held open, what varies along it is a Sinkhorn potential of what varies across it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups import trends
from experiments.setups.checks import equal, standard_error
from simulator.losses import logits
from simulator.theory import potentials

CLAIM = sim.Claim(
    id="N3",
    title="The gap is a Sinkhorn potential",
    summary="The variance that is left along a wide gap encodes the potentials of an optimal transport problem.",
    statement=(
        "Where the loss is stationary with the gap G held, ψ_i = −2Gβ_i/τ and φ_k = +2Gα_k/τ are, as τ/G² → 0, the "
        "Sinkhorn potentials of the orthogonal kernel with the pairing's marginals; so the variance left along the gap "
        "falls as 1/G², and vanishes only in the limit."
    ),
    source="derived here: theory.md N3 (first order), simulator.theory.potentials (second order)",
    assumes="squared-Euclidean logits, a soft pairing, G held, a regulariser of the orthogonal parts only, τ/G² small",
    expected={
        "potentials": "holds if",
        "couplings": "holds",
        "next order": "holds",
        "spread along the gap": "holds",
    },
)
CAPTION = (
    "Stationary points of the loss plus a ridge across the gap, float64, random soft pairings with uneven "
    "marginals, nothing fitted. (a) Coordinates along the gap against the potentials of an independent Sinkhorn "
    "iteration; grey: the near miss G/τ in place of 2G/τ. (b) Relative errors against G, of the residuals to first "
    "and second order and of the two couplings; grey: second order without the change of lever arm. (c) Standard "
    "deviation along the gap; grey: a coordinate across the gap. Points: geometric means; bars: from the lowest to "
    "the highest of 16 seeds."
)
SHOWN, ACROSS = 4.0, 1.0  # G at which potentials are compared, and where τ/G² is not small
ASYMPTOTIC = 4.0  # slopes are fitted from this G on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random soft pairings; `gaps` must contain 1 and 4. Only G/√τ and ridge·τ matter, the rest is a unit."""

    gaps: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    temperature: float = 0.2
    num_pairs: int = 20
    orthogonal_dim: int = 3
    ridge: float = 0.05
    seeds: int = 16
    seed: int = 7303


QUICK = Config(seeds=4, num_pairs=12)


def soft_pairing(num_pairs: int, latent_dim: int, rng: np.random.Generator) -> np.ndarray:
    """A positive pairing [n, n] of total 1: planted neighbours, log-normal marginals, and some noise that no kernel of
    distances can follow."""
    x = rng.normal(size=(num_pairs, latent_dim))
    y = x + 0.5 * rng.normal(size=(num_pairs, latent_dim))
    log_weight = -0.5 * np.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=2)
    log_weight += 0.5 * (rng.normal(size=(num_pairs, 1)) + rng.normal(size=(1, num_pairs)))
    log_weight += 0.3 * rng.normal(size=(num_pairs, num_pairs))
    weight = np.exp(log_weight)
    return weight / weight.sum()


def embeddings(coordinates, gap_norm, temperature):
    """(x, y), [n, 1 + d] each, from free coordinates [2, n, 1 + d]. The first one, along the gap, is centred, so G is
    held exactly; its unit is τ/(2G), which keeps the problem well conditioned at any G."""
    along = coordinates[..., 0] * temperature / (2 * gap_norm)
    along = along - along.mean(axis=1, keepdims=True) + jnp.stack([0.0 * gap_norm, gap_norm])[:, None]
    rows = jnp.concatenate([along[..., None], coordinates[..., 1:]], axis=2)
    return rows[0], rows[1]


def objective(flat, pairing, gap_norm, temperature, ridge):
    """L + R: the contrastive loss and a ridge on the coordinates across the gap."""
    coordinates = flat.reshape(2, len(pairing), -1)
    x, y = embeddings(coordinates, gap_norm, temperature)
    options: dict[str, Any] = dict(temperature=temperature, similarity="sqeuclidean", pairing=pairing)
    loss = sim.info_nce(x, y, **options, block_size=len(pairing))  # by blocks, it has second derivatives
    return loss + ridge * jnp.sum(coordinates[..., 1:] ** 2) / len(pairing)


_value_and_gradient = jax.jit(jax.value_and_grad(objective))
_hessian = jax.jit(jax.hessian(objective))


def stationary_points(start, pairing, gaps, temperature: float, ridge: float) -> list[np.ndarray]:
    """A stationary point of L + R for each G, [len(gaps), 2, n, 1 + d]: L-BFGS at the first G, damped Newton from
    there on.

    Raises RuntimeError where the gradient does not vanish: nothing may be judged there.
    """
    from scipy.optimize import minimize

    def evaluate(flat, gap):
        value, gradient = _value_and_gradient(flat, pairing, float(gap), temperature, ridge)
        return float(value), np.asarray(gradient)

    options = dict(maxiter=3000, gtol=1e-4, ftol=1e-14)
    flat = start.reshape(-1)
    flat = minimize(evaluate, flat, args=(gaps[0],), jac=True, method="L-BFGS-B", options=options).x
    found = []
    for gap in gaps:
        size = np.inf
        for _ in range(60):
            value, gradient = evaluate(flat, gap)
            before, size = size, np.abs(gradient).max()
            if size < 1e-11 and size > before / 2:
                break  # rounding: the logits are as large as G²/τ
            curvature, modes = np.linalg.eigh(np.asarray(_hessian(flat, pairing, float(gap), temperature, ridge)))
            # Rotations across the gap and shifts along it change nothing; |curvature| goes downhill at a saddle too.
            felt = np.abs(curvature) > 1e-7 * curvature.max()
            step = modes[:, felt] @ (modes[:, felt].T @ gradient / (np.abs(curvature[felt]) + size))
            while size > 1e-6 and evaluate(flat - step, gap)[0] > value:
                step = step / 2
            flat = flat - step
        else:
            raise RuntimeError(f"no stationary point at G = {gap}: the gradient is still {size:.1e}")
        found.append(flat.reshape(start.shape))
    return found


def measure(config: Config, *, progress: bool = False):
    """Residuals and their predictions, and how far the couplings are from the predicted one, over (seed, G)."""
    import xarray as xr

    from simulator.progress import tqdm

    gaps, temperature, n = np.array(config.gaps, float), config.temperature, config.num_pairs
    shape = (config.seeds, len(gaps))
    residuals = {name: np.empty((*shape, 2, n)) for name in ("measured", "first", "second", "without_lever")}
    errors = {name: np.empty((*shape, 2)) for name in ("coupling_error", "coupling_error_even")}
    across = np.empty(shape)
    with jax.enable_x64(True):
        for i in tqdm(range(config.seeds), disable=not progress, desc="seeds"):
            rng = np.random.default_rng([config.seed, i])
            pairing = soft_pairing(n, config.orthogonal_dim, rng)
            rows, columns = pairing.sum(axis=1), pairing.sum(axis=0)
            start = 0.5 * rng.normal(size=(2, n, 1 + config.orthogonal_dim))
            points = stationary_points(start, pairing, gaps[::-1], temperature, config.ridge)[::-1]
            for j, (gap, point) in enumerate(zip(gaps, points, strict=True)):
                x, y = (np.asarray(a) for a in embeddings(point, gap, temperature))
                cost = np.sum((x[:, None, 1:] - y[None, :, 1:]) ** 2, axis=2)
                phi, psi, coupling = potentials.sinkhorn_potentials(cost, rows, columns, temperature=temperature)
                scale: dict[str, Any] = dict(gap_norm=gap, temperature=temperature)
                predictions = dict(
                    measured=(x[:, 0] - x[:, 0].mean(), y[:, 0] - y[:, 0].mean()),
                    first=potentials.residuals_along_gap(phi, psi, **scale),
                    second=potentials.second_order_residuals(phi, psi, coupling, pairing, **scale),
                    without_lever=potentials.second_order_residuals(phi, psi, coupling, pairing, lever=False, **scale),
                )
                for name, pair in predictions.items():
                    residuals[name][i, j] = pair
                across[i, j] = y[:, 1:].std(axis=0).mean()
                scores = logits(x, y, temperature=temperature, similarity="sqeuclidean")
                over_queries, over_gallery = (np.asarray(jax.nn.softmax(scores, axis=i)) for i in (1, 0))
                measured = rows[:, None] * over_queries, columns[None, :] * over_gallery
                even = potentials.sinkhorn_potentials(cost, *np.full((2, n), 1 / n), temperature=temperature)[2]
                for name, predicted in (("coupling_error", coupling), ("coupling_error_even", even)):
                    errors[name][i, j] = [np.abs(m - predicted).max() / predicted.max() for m in measured]
    return xr.Dataset(
        {name: (("seed", "gap", "modality", "row"), value) for name, value in residuals.items()}
        | {name: (("seed", "gap", "softmax"), value) for name, value in errors.items()}
        | dict(across=(("seed", "gap"), across)),
        coords=dict(gap=gaps, modality=["gallery", "queries"], softmax=["over_queries", "over_gallery"]),
        attrs=dict(temperature=temperature),
    )


def relative_errors(data, name: str):
    """max |measured − predicted| / max |predicted| over the rows of both modalities, [seed, gap]."""
    return abs(data.measured - data[name]).max(("modality", "row")) / abs(data[name]).max(("modality", "row"))


def judge(data) -> list[sim.Row]:
    """Potentials, couplings, the next order, and the spread along the gap."""
    far = data.sel(gap=data.gap >= ASYMPTOTIC)
    gaps = far.gap.values

    def residuals(gap, factor=1.0):
        # Each seed and modality in units of its own largest prediction, so that no seed hides behind another.
        here = data.sel(gap=gap)
        unit = abs(here["first"]).max("row")
        return equal(factor * (here["first"] / unit), here.measured / unit, 0.01)

    def slope(values, predicted):
        # The interval: 4 standard errors over seeds of the slope fitted to each, plus the relative size τ/G² of the
        # neglected order at the smallest G, by which even one seed may deviate.
        logs = np.log(values).transpose("seed", "gap").values
        each = np.polyfit(np.log(gaps), logs.T, 1)[0]
        interval = 4 * standard_error(each) + data.attrs["temperature"] / gaps.min() ** 2
        return sim.Check("slope", predicted, np.exp(logs.mean(axis=0)), interval, at=gaps)

    spread = far.measured.sel(modality="queries").std("row")
    return [
        sim.Row(
            "potentials",
            residuals(SHOWN),
            residuals(SHOWN, 2.0),
            "potentials G/τ times the residuals in place of 2G/τ",
            label=f"α and β against the potentials of Sinkhorn's iteration, every seed, G = {SHOWN:g}",
            outside=residuals(ACROSS),
            condition=f"τ/G² is small; at G = {ACROSS:g} it is {data.attrs['temperature'] / ACROSS**2:g}",
            effect="relative error "
            + ", ".join(
                f"{trends.spread(relative_errors(data, 'first').sel(gap=g))} at G = {g:g}" for g in (SHOWN, ACROSS)
            ),
        ),
        sim.Row(
            "couplings",
            slope(far.coupling_error.max("softmax"), -2.0),
            slope(far.coupling_error_even.max("softmax"), -2.0),
            "even marginals: its error does not fall",
            label="diag(r) Q^y = Q^x diag(c) = P: exponent of G in the error of the worse",
        ),
        sim.Row(
            "next order",
            slope(relative_errors(far, "second"), -4.0),
            slope(relative_errors(far, "without_lever"), -4.0),
            "G + β − α taken as G in the gradient",
            label="error of α and β with the second-order term: exponent of G",
        ),
        sim.Row(
            "spread along the gap",
            slope(spread, -1.0),
            slope(spread, -0.5),
            "the variance, not the standard deviation, as 1/G",
            label="standard deviation of β: exponent of G",
        ),
    ]


def draw(data):
    """Residuals against potentials, errors against G, and spreads against G."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.5), layout="constrained")
    grey, gaps = plotting.CONTROL, data.gap.values
    here = data.sel(gap=SHOWN)
    unit = 2 * SHOWN / data.attrs["temperature"]
    for modality, sign, label, color in (
        ("queries", -1, "ψ, queries", plotting.COLORS[0]),
        ("gallery", 1, "φ, gallery", plotting.COLORS[1]),
    ):
        points = sign * unit * here.sel(modality=modality)
        look = dict(marker="o", markersize=2.5) if modality == "queries" else dict(marker="s", fillstyle="none")
        flat = [points[name].values.ravel() for name in ("first", "measured")]
        left.plot(*flat, color=color, linestyle="none", label=label, **look)
    ends = np.array(left.get_xlim())
    left.plot(ends, ends, color="black", linewidth=0.6, zorder=0, label="equal")
    left.plot(ends, ends / 2, color=grey, linestyle="--", linewidth=0.8, zorder=0, label="G/τ for 2G/τ")
    left.set(xlabel="Sinkhorn potential", ylabel=f"±2G × residual / τ, G = {SHOWN:g}")
    left.legend(loc="upper left")

    def against_gap(axis, values, color, marker, label):
        mean = np.exp(np.log(values).mean("seed"))
        bars = np.stack([(mean - values.min("seed")).values, (values.max("seed") - mean).values])
        axis.errorbar(gaps, mean, np.maximum(bars, 0.0), color=color, marker=marker, linestyle="none", label=label)
        return float(mean.sel(gap=ASYMPTOTIC))

    for values, order, label, marker, color in (
        (relative_errors(data, "first"), -2, "first order", "^", plotting.COLORS[2]),
        (data.coupling_error.max("softmax"), -2, "couplings", "v", plotting.COLORS[3]),
        (relative_errors(data, "second"), -4, "second order", "D", plotting.COLORS[4]),
    ):
        anchor = against_gap(middle, values, color, marker, label)
        middle.plot(gaps, anchor * (gaps / ASYMPTOTIC) ** order, color=color, linewidth=0.8)
    without = np.exp(np.log(relative_errors(data, "without_lever")).mean("seed"))
    middle.plot(gaps, without, color=grey, linestyle="--", linewidth=1.5, label="no change of lever")
    middle.plot([], [], "k-", linewidth=0.8, label="slopes −2, −4")
    spread = data.sel(modality="queries")
    against_gap(right, spread.measured.std("row"), plotting.COLORS[0], "o", "along the gap")
    predicted = np.exp(np.log(spread["first"].std("row")).mean("seed"))
    right.plot(gaps, predicted, color=plotting.COLORS[0], linewidth=0.8, label="τ std(ψ)/2G")
    against_gap(right, data.across, grey, "x", "across the gap")
    for axis, label in ((middle, "relative error"), (right, "standard deviation of the queries")):
        axis.set(xscale="log", yscale="log", xlabel="gap G", ylabel=label)
        axis.set_xticks(gaps, [f"{gap:g}" for gap in gaps])
        axis.minorticks_off()
        axis.legend(loc="lower left")
    middle.set_ylim(bottom=1e-13)
    return plotting.lettered(figure)
