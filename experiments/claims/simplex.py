"""P8: at a fixed temperature the best embedding is a regular simplex without a gap, if every row has one partner."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import equal, never_above
from experiments.setups.trends import stated
from simulator.losses import normalize_rows
from simulator.theory import landscapes

CLAIM = sim.Claim(
    id="P8",
    title="Simplex",
    summary="The contrastive loss is smallest at a regular simplex without a gap.",
    statement=(
        "At a fixed temperature the contrastive loss of n pairs of unit rows is smallest, "
        "log(1 + (n−1)e^{−n/((n−1)τ)}), where both modalities are the same regular simplex (d ≥ n − 1); with a gap of norm G "
        "held, n/(n−1) becomes (1 − G²/4) n/(n−1) (d ≥ n). So the optimum has no gap, unless a share of the pairs is wrong "
        "and the temperature low: then gaps up to a known width are free."
    ),
    source=(
        "Lu & Steinerberger 2022 (arXiv 2012.08465), parallel gap as in the double-constant embeddings of Lee et al. 2024 "
        "(arXiv 2402.12613); any gap and wrong pairs derived here: theory.md P8"
    ),
    assumes="free unit rows, cosine logits, temperature held",
    expected=dict.fromkeys(("pulled apart", "wrong pairs", "free gap", "optimum has no gap"), "holds")
    | {"no gap": "holds if", "parallel gap": "holds if"},
)
CAPTION = (
    "(a) Smallest loss found from random starts (points) and predicted, without a gap and with parallel gaps (n = "
    "8); grey: an orthonormal frame in place of a simplex. (b) Its rise with a gap that is held, for a share p of "
    "wrong pairs, at τ = 0.1: measured on parallel modalities and on free rows, pulled apart, and predicted; grey: "
    "a near miss. (c) Gap at the optimum of free rows from starts with a gap, against 1/τ: none for p = 0 and at "
    "high temperature; below the predicted temperature any value up to the widest free gap (the points of one 1/τ "
    "stand side by side)."
)
MAX_STEPS, RESTARTS = 2000, 4  # of L-BFGS; some tens of steps are enough
STATIONARY = 5e-5  # relative gradient of unit rows; the loss is off by its square


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random starts for every number of pairs n, dimension and temperature; the last n is drawn and takes the gaps."""

    num_pairs: tuple[int, ...] = (4, 16, 8)
    extra_dimensions: tuple[int, ...] = (0, 1, 5)  # d − (n − 1)
    temperatures: tuple[float, ...] = (1.0, 0.5, 0.3, 0.2, 0.1)
    gaps: tuple[float, ...] = (0.0, 0.4, 0.8, 1.2, 1.6)
    wrong_shares: tuple[float, ...] = (0.0, 0.05, 0.2)
    gap_temperature: float = 0.1
    pulls: tuple[float, ...] = (1e-4, 0.01, 0.1, 0.3)  # the first stands for a vanishing one
    inverse_temperatures: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
    starts: int = 4
    start_separation: float = 2.0
    seed: int = 0


QUICK = Config(
    num_pairs=(4, 8), extra_dimensions=(0, 3), temperatures=(1.0, 0.1), gaps=(0.0, 0.8, 1.6),
    inverse_temperatures=(1.0, 3.0, 10.0), starts=2,
)  # fmt: skip


def rows_with_gap(coordinates, mask, gap_norm):
    """Unit rows [2, n, d + 1] from free coordinates [2, n, d]: those that `mask` [d] keeps, normalised, and one more
    coordinate of ∓G/2 along the gap."""
    units = normalize_rows(coordinates * mask[None, None, :])
    along = jnp.stack([-0.5 * gap_norm, 0.5 * gap_norm])[:, None, None] * jnp.ones_like(units[:, :, :1])
    return jnp.concatenate([units * jnp.sqrt(1 - 0.25 * gap_norm**2), along], axis=2)


def contrasts_loss(x, y, temperature, pairing):
    """`info_nce` of unit rows from differences to the paired logits: Σ_k w_k log(1 + Σ_{i≠k} e^{S_ki − S_kk}) and what wrong
    pairs add. A loss of 6e-7 keeps all its digits; as log Σ e^S − S it loses seven, and a search for its minimum stops there."""
    logits = x @ y.T / temperature
    others = 1.0 - jnp.eye(len(x))

    def one_side(logits, pairing):
        differences = (logits - jnp.diagonal(logits)[:, None]) * others
        partition = jnp.log1p(jnp.sum(jnp.exp(differences) * others, axis=1))
        return jnp.sum(pairing.sum(1) * partition) - jnp.sum(pairing * differences)

    return 0.5 * (one_side(logits, pairing) + one_side(logits.T, pairing.T)) / pairing.sum()


@jax.jit
def _objective(coordinates, mask, gap_norm, temperature, pairing, pull):
    """loss − pull · ‖g‖² and its gradient in the free coordinates."""

    def objective(coordinates):
        x, y = rows_with_gap(coordinates, mask, gap_norm)
        return contrasts_loss(x, y, temperature, pairing) - pull * jnp.sum(sim.gap_vector(x, y) ** 2)

    return jax.value_and_grad(objective)(coordinates)


@jax.jit
def _at(coordinates, mask, gap_norm, temperature, pairing):
    """(x, y, loss, gap norm) of free coordinates."""
    x, y = rows_with_gap(coordinates, mask, gap_norm)
    return x, y, sim.info_nce(x, y, temperature=temperature, pairing=pairing), jnp.linalg.norm(sim.gap_vector(x, y))


def optimum(
    start,
    *,
    temperature: float,
    dimensions: int | None = None,
    gap_norm: float = 0.0,
    wrong_share: float = 0.0,
    pull: float = 0.0,
):
    """Unit rows (x, y) that L-BFGS reaches from a start [2, n, d], with their loss and gap norm.

    `dimensions` of the d are used across the gap (None: all); modalities are parallel, `gap_norm` apart; the objective is the
    loss − pull · ‖g‖², which favours a gap without saying how the rows should make it.

    Raises RuntimeError where the gradient does not vanish: nothing may be judged there.
    """  # fmt: skip
    from scipy.optimize import minimize

    n, width = start.shape[1:]
    mask = (np.arange(width) < (width if dimensions is None else dimensions)).astype(float)
    pairing = (1 - wrong_share) * np.eye(n) + wrong_share / n
    constants = (mask, float(gap_norm), float(temperature), pairing, float(pull))
    unit = 1.0

    def evaluate(flat):
        value, gradient = _objective(flat.reshape(start.shape), *constants)
        return float(value) / unit, np.asarray(gradient, float).ravel() / unit

    coordinates = np.asarray(start, float)
    for _ in range(RESTARTS):
        # Losses span decades: the unit is the objective at the last stop, so that the stopping rule is relative.
        kept = coordinates.reshape(start.shape) * mask
        coordinates = (kept / np.linalg.norm(kept, axis=2, keepdims=True)).ravel()
        options = dict(maxiter=MAX_STEPS, maxfun=2 * MAX_STEPS, ftol=0.0, gtol=1e-12, maxcor=20)
        coordinates = minimize(evaluate, coordinates, jac=True, method="L-BFGS-B", options=options).x
        value, gradient = evaluate(coordinates)
        # Of rows of length one: coordinates grow on the way, and their gradient falls as their length.
        lengths = np.linalg.norm(coordinates.reshape(start.shape), axis=2, keepdims=True)
        size, unit = np.max(np.abs(gradient.reshape(start.shape) * lengths / value)), abs(value) * unit
        if size < STATIONARY:
            x, y, loss, gap = _at(coordinates.reshape(start.shape), *constants[:-1])
            return x, y, float(loss), float(gap)
    raise RuntimeError(f"no optimum at τ = {temperature}, G = {gap_norm}: the relative gradient is still {size:.1e}")


def smallest(start, **settings) -> tuple[float, float]:
    """(loss, gap norm) at the `optimum`."""
    return optimum(start, **settings)[2:]


def measure(config: Config, *, progress: bool = False):
    """Smallest losses without a gap, with a parallel gap, with only its norm held; gaps of free optima."""
    import xarray as xr

    from simulator.progress import tqdm

    values = {}
    with jax.enable_x64(True):
        for part in tqdm((_values, _gap_costs, _free_rows), disable=not progress, desc="optima", unit="part"):
            values |= part(config)
    return xr.Dataset(
        values,
        coords=dict(
            wrong_share=list(config.wrong_shares),
            gap=list(config.gaps),
            inverse_temperature=list(config.inverse_temperatures),
        ),
        attrs=dict(drawn=config.num_pairs[-1], gap_temperature=config.gap_temperature),
    )


def _starts(num_pairs: int, config: Config) -> list[np.ndarray]:
    """Random starts [2, n, d], every other one with the two modalities apart."""
    starts = []
    for i in range(config.starts):
        rng = np.random.default_rng([config.seed, num_pairs, i])
        start = rng.normal(size=(2, num_pairs, num_pairs - 1 + max(config.extra_dimensions)))
        if i % 2:
            start[0, :, 0] += config.start_separation
            start[1, :, 1] += config.start_separation
        starts.append(start)
    return starts


def _values(config: Config) -> dict:
    """Smallest and largest loss over starts, with prediction and near misses, [case]: every n, dimension across the
    gap, τ and two gaps; one dimension too few where case_extra is −1."""
    grid = itertools.product(config.num_pairs, (*config.extra_dimensions, -1), (0.0, 1.0), config.temperatures)
    cases = []
    for n, extra, gap, temperature in grid:
        settings = dict(dimensions=n - 1 + extra, gap_norm=gap, temperature=temperature)
        found = [smallest(start, **settings)[0] for start in _starts(n, config)]
        contrast = 1 - gap**2 / 4
        predicted = landscapes.smallest_loss(n, temperature, gap_norm=gap)
        orthonormal = np.log1p((n - 1) * np.exp(-contrast / temperature))
        one_sided = np.log1p((n - 1) * np.exp(-np.sqrt(contrast) * n / ((n - 1) * temperature)))
        cases.append((n, extra, gap, temperature, min(found), max(found), predicted, orthonormal, one_sided))
    names = ("case_n", "case_extra", "case_gap", "case_temperature", "smallest", "largest", "predicted")
    columns = zip(*cases, strict=True)
    return {
        name: (("case",), np.array(column))
        for name, column in zip((*names, "orthonormal", "one_sided"), columns, strict=True)
    }


def _gap_costs(config: Config) -> dict:
    """Smallest loss with parallel modalities a gap apart, [wrong_share, gap]; loss and gap of rows that are free but
    pulled apart, [wrong_share, pull]; with predictions and near misses."""
    n, temperature = config.num_pairs[-1], config.gap_temperature
    starts, shares = _starts(n, config), config.wrong_shares
    parallel = np.empty((3, len(shares), len(config.gaps)))
    for i, j in np.ndindex(parallel.shape[1:]):
        share, gap = shares[i], config.gaps[j]
        found = [smallest(s, gap_norm=gap, temperature=temperature, wrong_share=share)[0] for s in starts]
        weight, best = _plain_weight(n, share)
        contrast = min((1 - gap**2 / 4) * n / ((n - 1) * temperature), best)
        parallel[:, i, j] = (
            max(found),
            landscapes.smallest_loss(n, temperature, gap_norm=gap, wrong_share=share),
            np.log1p((n - 1) * np.exp(-contrast)) + (1 - weight) * contrast,
        )
    pulled = np.empty((4, len(shares), len(config.pulls)))
    for i, j in np.ndindex(pulled.shape[1:]):
        share = shares[i]
        found = (smallest(s, temperature=temperature, wrong_share=share, pull=config.pulls[j]) for s in starts)
        loss, gap = min(found, key=lambda f: f[0] - config.pulls[j] * f[1] ** 2)
        predicted, half = (
            landscapes.smallest_loss(n, temperature, gap_norm=min(g, 2.0), wrong_share=share)
            for g in (gap, 2**0.5 * gap)
        )
        pulled[:, i, j] = loss, gap, predicted, half
    names = ("parallel", "parallel_predicted", "parallel_plain_weight")
    values = {name: (("wrong_share", "gap"), v) for name, v in zip(names, parallel, strict=True)}
    names = ("pulled", "pulled_gap", "pulled_predicted", "pulled_half")
    values |= {name: (("wrong_share", "pull"), v) for name, v in zip(names, pulled, strict=True)}
    widest = [landscapes.free_gap_norm(n, temperature, wrong_share=share) for share in shares]
    plain = [
        2 * np.sqrt(max(0.0, 1 - temperature * _plain_weight(n, share)[1] * (n - 1) / n)) for share in shares
    ]  # fmt: skip
    return values | dict(widest=(("wrong_share",), np.array(widest)), widest_plain=(("wrong_share",), np.array(plain)))


def _plain_weight(num_pairs: int, wrong_share: float) -> tuple[float, float]:
    """(w, v*) of a near miss: the own pair's weight as 1 − p in place of 1 − p + p/n."""
    weight = 1 - wrong_share
    return weight, np.log((num_pairs - 1) * weight / (1 - weight)) if wrong_share else np.inf


def _free_rows(config: Config) -> dict:
    """Gap norm at the optimum of free rows from separated starts, [wrong_share, inverse_temperature, start]."""
    n = config.num_pairs[-1]
    shape = (len(config.wrong_shares), len(config.inverse_temperatures), config.starts)
    gaps, widest = np.empty(shape), np.empty(shape[:2])
    for i, j in np.ndindex(shape[:2]):
        settings = dict(temperature=1 / config.inverse_temperatures[j], wrong_share=config.wrong_shares[i])
        widest[i, j] = landscapes.free_gap_norm(n, **settings)
        for k, start in enumerate(_starts(n, config)):
            start[0, :, 2] += config.start_separation  # all of them apart
            gaps[i, j, k] = smallest(start, **settings)[1]
    dims = ("wrong_share", "inverse_temperature")
    return dict(free_gap=((*dims, "start"), gaps), widest_free_gap=(dims, widest))


def judge(data) -> list[sim.Row]:
    """Values without and with a gap, gaps that only have a norm, wrong pairs, and the gap of the optimum."""

    def value(cases, predicted="predicted"):
        # Each case in units of its own prediction: the losses span many decades.
        here = data.isel(case=np.flatnonzero(cases))
        found = np.concatenate([here.smallest, here.largest]) if not (here.case_extra < 0).any() else here.smallest
        unit = np.resize(here.predicted.values, len(found))
        return sim.Check("identity", np.resize(here[predicted].values, len(found)) / unit, found / unit, 1e-8)

    def with_gap(predicted, measured):
        unit = data[f"{measured}_predicted"].values
        return equal(data[predicted].values / unit, data[measured].values / unit, 1e-8)

    gap, extra = data.case_gap.values > 0, data.case_extra.values
    enough = extra >= 0
    noisy = data.isel(pull=0).sel(wrong_share=data.wrong_share > 0)

    def edge(predicted):
        # To first order a pull widens the gap by 8 pull ((n−1)τ/n)²/(G w(1−w)): by less than 1e-4 here.
        return equal(noisy[predicted], noisy.pulled_gap, 1e-3)

    def excess(short, exact):
        """Smallest loss over the predicted one, with one dimension too few, at its extremes; ± the largest relative error
        where there are enough."""
        ratio = (data.smallest / data.predicted).values[short]
        error = value(exact).error()
        return " to ".join(stated(r, error * r) for r in (ratio.min(), ratio.max()))

    exact, widest = data.sel(wrong_share=0.0), data.widest_free_gap.values
    wrong = data.free_gap.values[widest > 0]
    return [
        sim.Row(
            "no gap",
            value(~gap & enough),
            value(~gap & enough, "orthonormal"),
            "an orthonormal frame, n/(n−1) → 1",
            label="smallest and largest loss found from random starts, relative",
            outside=value(~gap & ~enough),
            condition="d ≥ n − 1; with one dimension too few the smallest loss is higher",
            effect=f"with one too few {excess(~gap & ~enough, ~gap & enough)} times the predicted loss",
        ),
        sim.Row(
            "parallel gap",
            value(gap & enough),
            value(gap & enough, "one_sided"),
            "√(1 − γ²) for 1 − γ²: only one modality shrinks",
            label="the same with parallel modalities, G = 1 held",
            outside=value(gap & ~enough),
            condition="d ≥ n; with one dimension too few the smallest loss is higher",
            effect=f"with one too few {excess(gap & ~enough, gap & enough)} times the predicted loss",
        ),
        sim.Row(
            "pulled apart",
            with_gap("pulled_predicted", "pulled"),
            with_gap("pulled_half", "pulled"),
            "G²/2 for G²/4",
            label="smallest loss of free rows that are pulled apart, at the gap they take, relative",
        ),
        sim.Row(
            "wrong pairs",
            with_gap("parallel_predicted", "parallel"),
            with_gap("parallel_plain_weight", "parallel"),
            "weight 1 − p for 1 − p + p/n",
            label="smallest loss with a parallel gap and wrong pairs, relative",
        ),
        sim.Row(
            "free gap",
            edge("widest"),
            edge("widest_plain"),
            "weight 1 − p for 1 − p + p/n",
            label="widest gap that wrong pairs make free: gap of free rows under a vanishing pull",
        ),
        sim.Row(
            "optimum has no gap",
            never_above(exact.free_gap, 1e-4),
            never_above(wrong, 1e-4),
            "a share of wrong pairs and a temperature below the predicted one",
            label="gap norm of the optimum of free rows, started apart, no wrong pairs",
        ),
    ]


def draw(data):
    """Smallest losses, their rise with a gap, and the gaps of free optima."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.8), layout="constrained")
    grey, colors, n = plotting.CONTROL, plotting.COLORS, int(data.attrs["drawn"])
    inverse = np.geomspace(1, 10, 60)
    for i, gap in enumerate((0.0, 1.0)):
        line = [landscapes.smallest_loss(n, 1 / s, gap_norm=gap) for s in inverse]
        left.plot(inverse, line, color=colors[3 + i], linewidth=0.9)
        chosen = (data.case_n == n) & (data.case_gap == gap) & (data.case_extra >= 0)
        look = dict(linestyle="none", label=f"G = {gap:g}") | plotting.series(3 + i)
        left.plot(1 / data.case_temperature[chosen], data.smallest[chosen], **look)
        left.plot(inverse, np.log1p((n - 1) * np.exp(-(1 - gap**2 / 4) * inverse)), "--", color=grey, linewidth=0.8)
    few = (data.case_n == n) & (data.case_gap == 0) & (data.case_extra < 0)
    left.plot(1 / data.case_temperature[few], data.smallest[few], "x", color="black", label="d = n − 2")
    for style, color, label in (("-", "black", "predicted"), ("--", grey, "orthonormal frame")):
        left.plot([], [], style, color=color, linewidth=0.9, label=label)
    left.set(xscale="log", yscale="log", ylim=(5e-6, None), xlabel="1/τ", ylabel="smallest loss (nats)")
    left.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    left.legend(loc="lower left")

    fine, temperature = np.linspace(0, 1.75, 100), data.attrs["gap_temperature"]
    for i, share in enumerate(data.wrong_share.values):
        here, color = data.sel(wrong_share=share), colors[i]
        line = [landscapes.smallest_loss(n, temperature, gap_norm=g, wrong_share=share) for g in fine]
        middle.plot(fine, line, color=color, linewidth=0.9)
        look = dict(linestyle="none", label=f"p = {share:g}") | plotting.series(i)
        middle.plot(data.gap, here.parallel, **look)
        middle.plot(here.pulled_gap, here.pulled, "x", color=color, markersize=4)
        middle.axvline(
            landscapes.free_gap_norm(n, temperature, wrong_share=share), ymax=0.65, color=color, linestyle=":"
        )
        half = [landscapes.smallest_loss(n, temperature, gap_norm=min(g * 2**0.5, 2), wrong_share=share) for g in fine]
        middle.plot(fine, half, "--", color=grey, linewidth=0.8, zorder=0)
    for style, color, label in (
        ("-", "black", "predicted"),
        (":", "black", "widest free gap"),
        ("--", grey, "G²/2 for G²/4"),
    ):
        middle.plot([], [], style, color=color, linewidth=0.9, label=label)
    middle.plot([], [], "kx", markersize=4, label="pulled apart")
    middle.set(
        yscale="log",
        xlabel="gap norm G held",
        ylabel="smallest loss (nats)",
        ylim=(3e-5, 3e3),
        yticks=10.0 ** np.arange(-4, 1),
    )
    middle.legend(loc="upper center", ncols=2, columnspacing=0.6, handlelength=1.5, fontsize=plotting.SMALL)

    fine = np.linspace(1, 10.5, 300)
    for i, share in enumerate(data.wrong_share.values):
        here, color = data.sel(wrong_share=share), colors[i]
        widest = [landscapes.free_gap_norm(n, 1 / s, wrong_share=share) for s in fine]
        right.plot(fine, widest, color=color, linewidth=0.9)
        at = here.inverse_temperature.values[:, None] * np.ones((1, data.sizes["start"]))
        look = dict(linestyle="none", label=f"p = {share:g}", fillstyle="none") | plotting.series(i)
        right.plot(at.ravel() + 0.1 * i, here.free_gap.values.ravel(), **look)  # side by side
    right.plot([], [], "k-", linewidth=0.9, label="widest free gap")
    right.set(xlabel="1/τ", ylabel="gap norm at the optimum", ylim=(None, 2.4))
    right.legend(loc="upper left")
    return plotting.lettered(figure)
