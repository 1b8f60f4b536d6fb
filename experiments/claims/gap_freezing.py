"""C3: why a gap freezes: the exact gradient and what is left of it along the gap, in Euclid and on the sphere."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

import simulator as sim
from experiments import plotting
from experiments.setups.checks import equal, equals_one, moves, worst
from experiments.setups.trends import spread, stated
from simulator.losses import normalize_rows
from simulator.theory import freezing
from simulator.training.flow import velocity

CLAIM = sim.Claim(
    id="C3",
    title="The gap freezes once nothing varies along it",
    summary="Once nothing varies along the gap, nothing pushes along it; scaling rows to unit length still closes it.",
    statement=(
        "Where both modalities are constant along a direction, the loss does not depend on the gap there, and the "
        "gradient of a row along it is (1/nτ)(1 − S)(v·g): the gap is frozen when the softmaxes are doubly stochastic. "
        "On the sphere normalisation alone closes it, at the rate H − L (entropy of the softmaxes less loss), which dies "
        "with the loss: the smaller τ, the more of the gap is left."
    ),
    source="Chowers et al. 2026, Thm 3.2; velocities, sphere and balance derived here: theory.md C3, N2",
    assumes="Euclid: sqeuclidean similarity; sphere: cosine similarity of unit rows; gradient flow of free embeddings",
    expected=dict.fromkeys(
        ("gradient", "slope", "gap velocity", "height velocity", "closing rate", "balance", "simplices", "cones"),
        "holds",
    )
    | {"loss along the gap": "holds if", "frozen gap": "holds if"},
)
CAPTION = (
    "(a) The loss does not move with the gap if both modalities are constant along it (squared distances); it does "
    "if they vary, or for the cosine. (b) The gap in time: two simplices on the sphere, measured (open) and in "
    "closed form, nothing fitted; random cones on the sphere, and the same cones in Euclid at every τ (bands, "
    "mostly within the line: ± 2 standard errors over 32 seeds). (c) Closing rate on the sphere against the loss; H "
    "− L: of simplices, the fastest at a given loss; measured on simplices (open) and on one pair of random cones."
)
GRADIENT, IDENTITY = 1e-8, 1e-10  # tolerances, relative to the largest entry; float64 leaves about 1e-15
SIDES = ("x", "y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Random rows for the exact formulas; simplices, polygons and random cones for the flows.

    The temperature is that of the cosine; the sqeuclidean flows run at twice that, the same loss on the sphere.
    """

    num_pairs: int = 16
    dimensions: int = 17
    cases: int = 6
    temperatures: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    height: float = 0.7
    flow_time: float = 8.0
    flow_points: int = 33
    seeds: int = 32
    tightness: float = 0.02
    panels: int = 12
    seed: int = 7301


QUICK = Config(cases=3, temperatures=(0.05, 0.1, 0.5), seeds=8, flow_points=17)


def measure(config: Config, *, progress: bool = False):
    """Exact formulas on random rows, the loss against the gap, the balance along a run, and flows of the gap."""
    import xarray as xr

    from simulator.progress import tqdm

    parts, variables = (_formulas, _flatness, _balance, _frozen, _simplices, _cones), {}
    coords = dict(side=list(SIDES), temperature=list(config.temperatures), time=_times(config))
    with jax.enable_x64(True):
        for part in tqdm(parts, disable=not progress, desc="freezing", unit="part"):
            variables |= part(config, np.random.default_rng(config.seed))
    return xr.Dataset(variables, coords=coords, attrs=dict(num_pairs=config.num_pairs, flow_time=config.flow_time))


@jax.jit
def _euclidean_gradients(x, y, temperature):
    """(∂L/∂x, ∂L/∂y) of the sqeuclidean loss, by automatic differentiation."""
    loss = functools.partial(sim.info_nce, temperature=temperature, similarity="sqeuclidean")
    return jax.grad(loss, argnums=(0, 1))(x, y)


_velocity = jax.jit(velocity, static_argnames=("similarity", "sphere"))


def _on_sphere(temperature):
    return dict(temperature=temperature, similarity="cosine", sphere=True)


def _constant_rows(rng, n, d, height, spread):
    """Random rows that are constant along the last axis, at the given height."""
    return np.hstack([spread * rng.normal(size=(n, d - 1)), np.full((n, 1), height)])


def _formulas(config, rng):
    """Every exact formula against automatic differentiation, on random rows: arrays [case, ...]."""
    cases = [_one_case(rng, config.num_pairs, config.dimensions) for _ in range(config.cases)]
    dims = dict(gradient=("side", "pair", "coordinate"), gap=("coordinate",), closing=())
    return {
        name: (("case", *dims.get(name.split("_")[0], ("side", "pair"))), np.stack([case[name] for case in cases]))
        for name in cases[0]
    }


def _one_case(rng, n, d):
    """Measured and predicted arrays for random temperature, spread and offset.

    Pairs are only partly matched, so that softmaxes are far from doubly stochastic and some pairs on the sphere are
    worse matched than the average of their rivals.
    """
    axis = np.eye(d)[-1]
    temperature, spread = rng.uniform(0.05, 1.0), rng.uniform(0.1, 0.5)
    shared = rng.normal(size=(n, d))
    x, y = (spread * (shared + rng.normal(size=(n, d))) for _ in SIDES)
    y = y + rng.normal(size=(1, d)) / d**0.5
    q = freezing.softmaxes(x, y, temperature=temperature)
    predicted = np.stack(freezing.predicted_gradient(x, y, temperature=temperature))
    swap = (q.marginal_x - q.marginal_y)[:, None] / (n * temperature)
    speed_x, speed_y = (np.asarray(v) for v in _velocity(x, y, temperature=temperature))
    flat_x, flat_y = (_constant_rows(rng, n, d, height, spread) for height in rng.uniform(0.3, 1.0, 2) * (-1, 1))
    return dict(
        gradient_measured=np.stack(_euclidean_gradients(x, y, temperature)),
        gradient_predicted=predicted,
        gradient_swapped=predicted + np.stack([swap * x, -swap * y]),
        gap_velocity_measured=speed_y.mean(axis=0) - speed_x.mean(axis=0),
        gap_velocity_predicted=freezing.predicted_gap_velocity(x, y, temperature=temperature),
        slope_measured=np.stack(_euclidean_gradients(flat_x, flat_y, temperature)) @ axis,
        slope_predicted=np.stack(freezing.predicted_slope_along(flat_x, flat_y, axis, temperature=temperature)),
        **_sphere_law(rng, n, d, temperature, axis),
        **_closing_law(rng, n, d, temperature, axis),
    )


def _sphere_law(rng, n, d, temperature, axis):
    """Heights on the sphere: the velocity of one modality, x or y, while the other is constant along the axis."""
    cap = rng.uniform(0.2, 0.6)
    level = np.hstack([(1 - cap**2) ** 0.5 * normalize_rows(rng.normal(size=(n, d - 1))), np.full((n, 1), -cap)])
    other = np.asarray(normalize_rows(level + 0.15 * rng.normal(size=(n, d)) + 0.8 * axis[None, :]))
    other = np.vstack([other[1 : n // 2], other[:1], other[n // 2 :]])  # half of the pairs are mismatched
    both_ways = enumerate([(other, level), (level, other)])
    measured = [np.asarray(_velocity(*rows, **_on_sphere(temperature))[i]) for i, rows in both_ways]
    law = freezing.predicted_height_velocity(level, other, axis, temperature=temperature)
    always_pulls = law.marginal - np.abs(law.bracket) * (other @ axis) / (2 * temperature)
    both = dict(height_predicted=law.velocity, height_always_pulled=always_pulls, bracket=law.bracket)
    return {name: np.stack([value] * 2) for name, value in both.items()} | dict(
        height_measured=np.stack(measured) @ axis
    )


def _closing_law(rng, n, d, temperature, axis):
    """−d ln(v·g)/dt on the sphere, of partly matched random rows on two caps, whose softmaxes are not doubly stochastic."""
    shared, rows = rng.normal(size=(n, d - 1)), []
    for height in rng.uniform(0.1, 0.7, 2) * (-1, 1):
        across = normalize_rows(shared + rng.uniform(0.2, 1.5) * rng.normal(size=(n, d - 1)))
        rows.append(np.hstack([(1 - height**2) ** 0.5 * across, np.full((n, 1), height)]))
    gap, speed = sim.gap_vector(*rows), sim.gap_vector(*_velocity(*rows, **_on_sphere(temperature)))
    law = freezing.predicted_closing_rate(*rows, axis, temperature=temperature)
    measured = -float(speed @ axis / (gap @ axis))
    return dict(closing_measured=measured, closing_predicted=law.rate, closing_entropy=law.entropy)


def _flatness(config, rng):
    """The loss while one modality is moved along the axis: constant rows, rows that vary along it, cosine."""
    n, d = config.num_pairs, config.dimensions
    offsets = np.linspace(0.0, 2.0, 9)
    axis = np.eye(d)[-1]
    x, y = (_constant_rows(rng, n, d, 0.0, 0.3) for _ in SIDES)
    y = 0.5 * (x + y)
    varied = [rows + 0.1 * rng.normal(size=(n, 1)) * axis[None, :] for rows in (x, y)]
    kinds = dict(constant=(x, y, "sqeuclidean"), varying=(*varied, "sqeuclidean"), cosine=(x, y, "cosine"))
    moved = offsets[:, None, None] * axis[None, None, :]

    def loss(x, y, kind):
        return jax.vmap(lambda y: sim.info_nce(x, y, temperature=0.2, similarity=kind))(y[None] + moved)

    values = (("rows", "offset"), np.array([loss(*rows) for rows in kinds.values()]))
    return dict(loss_at_offset=values, rows=("rows", list(kinds)), offset=("offset", offsets))


def _balance(config, rng):
    """G² − 2(v_x + v_y) along a run, in the frame of the first gap, and its exact rate at Gauss nodes of each panel."""
    n, d, temperature = config.num_pairs, config.dimensions, 0.3
    x, y = (0.2 * rng.normal(size=(n, d)) for _ in SIDES)
    y = y + np.eye(d)[0][None, :]
    axis = np.asarray(normalize_rows(y.mean(axis=0) - x.mean(axis=0)))
    edges = 1.2 * np.linspace(0.0, 1.0, config.panels + 1) ** 2  # finer where the variance along the gap decays fast
    nodes, weights = np.polynomial.legendre.leggauss(8)
    inside = edges[:-1, None] + 0.5 * np.diff(edges)[:, None] * (nodes[None, :] + 1)
    times = np.unique(np.concatenate([edges, inside.ravel()]))
    path = sim.gradient_flow(x, y, times=times, temperature=temperature, max_step=0.0005 * temperature)
    path_x, path_y = (np.asarray(p) for p in path)
    rate = functools.partial(freezing.predicted_balance_rate, direction=axis, temperature=temperature)
    rates = np.array([rate(*rows) for rows in zip(path_x, path_y, strict=True)])
    along_x, along_y = path_x @ axis, path_y @ axis
    gap = along_y.mean(axis=1) - along_x.mean(axis=1)
    balance = gap**2 - 2 * (along_x.var(axis=1) + along_y.var(axis=1))
    once = rates - 4 / temperature * (along_y - along_x).var(axis=1)  # Σ h_ii² counted once in place of twice

    def integral(rates):
        return np.cumsum(0.5 * np.diff(edges) * (rates[np.searchsorted(times, inside)] @ weights))

    return dict(
        balance_measured=("edge", balance[np.searchsorted(times, edges[1:])] - balance[0]),
        balance_predicted=("edge", integral(rates)),
        balance_once=("edge", integral(once)),
    )


def _times(config):
    return np.linspace(0.0, config.flow_time, config.flow_points)


def _gap_shares(path_x, path_y):
    """G(t)/G(0) [..., T]."""
    norms = np.linalg.norm(np.asarray(path_y).mean(axis=-2) - np.asarray(path_x).mean(axis=-2), axis=-1)
    return norms / norms[..., :1]


def _frozen(config, rng):
    """G(t)/G(0) of starts without variance along the gap: two doubly stochastic ones in Euclid, one of them on the
    sphere, and random rows, whose softmaxes are not doubly stochastic."""
    n, times, temperature = config.num_pairs, _times(config), config.temperatures[-1]
    angle = 2 * np.pi * np.arange(n) / n
    # Turned and larger: pairs that do not coincide, and still one orbit of the rotation group.
    polygons = np.zeros((2, n, config.dimensions))
    for rows, scale, turn, height in zip(polygons, (1.0, 1.3), (0.0, 0.3), (-0.5, 0.5), strict=True):
        rows[:, :3] = np.stack([scale * np.cos(angle + turn), scale * np.sin(angle + turn), np.full(n, height)], axis=1)
    simplices, euclid = freezing.simplex_pairs(n, config.height), dict(temperature=2 * temperature)
    starts = {
        "simplices": (simplices, euclid),
        "polygons": (polygons, euclid),
        "random rows": ([_constant_rows(rng, n, config.dimensions, height, 0.3) for height in (-0.5, 0.5)], euclid),
        "simplices on the sphere": (simplices, _on_sphere(temperature)),
    }
    options = dict(times=times, max_step=0.05 * temperature)
    curves = [_gap_shares(*sim.gradient_flow(*rows, **options, **space)) for rows, space in starts.values()]
    return dict(frozen_gap=(("start", "time"), np.array(curves)), start=("start", list(starts)))


def _closing(path_x, path_y, temperature):
    """Loss [T] and −d ln G/dt [T] at every point of a path on the sphere."""

    def at(x, y):
        loss = sim.info_nce(x, y, temperature=temperature)
        gap, speed = sim.gap_vector(x, y), sim.gap_vector(*velocity(x, y, **_on_sphere(temperature)))
        return loss, -(gap @ speed) / (gap @ gap)

    return [np.asarray(value) for value in jax.jit(jax.vmap(at))(path_x, path_y)]


def _simplices(config, rng):
    """Two simplices on the sphere: height, loss and closing rate over (τ, time), against the closed form."""
    del rng
    n, times = config.num_pairs, _times(config)
    curves = []
    for temperature in config.temperatures:
        # A step at which the error of Runge–Kutta is below the tolerance of an identity; so in `_balance`.
        options = dict(times=times, max_step=0.01 * temperature, **_on_sphere(temperature))
        path = sim.gradient_flow(*freezing.simplex_pairs(n, config.height), **options)
        setting = dict(num_pairs=n, height=config.height, temperature=temperature)
        height = functools.partial(freezing.predicted_simplex_height, **setting)
        found = dict(zip(("loss", "rate"), _closing(*path, temperature), strict=True))
        found |= dict(
            height=config.height * _gap_shares(*path), predicted_height=height(times), height_late=height(2 * times)
        )
        curves.append(found)
    dims = ("temperature", "time")
    return {f"simplex_{name}": (dims, np.array([curve[name] for curve in curves])) for name in curves[0]}


def _cones(config, rng):
    """Random tight cones at a right angle, the same start on the sphere and in Euclid: G(t)/G(0) [τ, seed, time]; and
    loss and closing rate of the first seed on the sphere."""
    n, d = config.num_pairs, config.dimensions
    noise = config.tightness * rng.normal(size=(2, config.seeds, n, d))
    x, y = (normalize_rows(centre[None, None, :] + e) for centre, e in zip(np.eye(d)[:2], noise, strict=True))
    curves = dict(sphere=[], euclid=[], loss=[], rate=[])
    for temperature in config.temperatures:
        # The stiffest mode decays at about 1/2τ² on the sphere and 1/τ² in Euclid.
        max_step = min(0.5 * temperature**2, 0.05 * temperature)
        for name, options in (("euclid", dict(temperature=2 * temperature)), ("sphere", _on_sphere(temperature))):
            flow = functools.partial(sim.gradient_flow, times=_times(config), max_step=max_step, **options)
            path = [np.asarray(p) for p in jax.vmap(flow)(x, y)]
            curves[name].append(_gap_shares(*path))
        for name, values in zip(("loss", "rate"), _closing(path[0][0], path[1][0], temperature), strict=True):
            curves[name].append(values)
    dims = ("temperature", "seed", "time")
    return {f"cones_{name}": (dims if np.ndim(c) == 3 else dims[::2], np.array(c)) for name, c in curves.items()}


def judge(data) -> list[sim.Row]:
    """The exact formulas, the frozen gap in Euclid, the closing one on the sphere."""

    def worst_case(name, near_miss, tolerance):
        # Relative to the largest entry of its own case: the case with the largest error speaks for all.
        def check(predicted):
            pairs = zip(predicted.values, data[f"{name}_measured"].values, strict=True)
            return worst(equal(*pair, tolerance) for pair in pairs)

        return check(data[f"{name}_predicted"]), check(near_miss)

    def against(measured, predicted, near_miss):
        return [equal(data[name], data[measured], IDENTITY) for name in (predicted, near_miss)]

    def flat(rows):
        loss = data.loss_at_offset.sel(rows=rows).values
        return equal(loss[0], loss, IDENTITY)

    def still(starts):
        return equals_one(data.frozen_gap.sel(start=starts), IDENTITY)

    def rising(curves):
        # From Euclid, where any change counts, to the sphere, from the coldest to the hottest.
        lost = [1 - data[name].isel(time=-1) for name in ("cones_euclid", curves)]
        euclid, sphere = (values.mean("seed").values for values in lost)
        error, errors = (values.std("seed", ddof=1).values / values.sizes["seed"] ** 0.5 for values in lost)
        most = int(np.argmax(np.abs(euclid)))
        values, errors = np.append(np.abs(euclid[most]), sphere), np.append(error[most], errors)
        return moves(values, errors, np.append(0.0, data.temperature))

    gone = 1 - data.frozen_gap.isel(time=-1)
    lost = [spread(1 - data[f"cones_{space}"].isel(temperature=-1, time=-1)) for space in ("euclid", "sphere")]
    return [
        sim.Row("gradient", *worst_case("gradient", data.gradient_swapped, GRADIENT), "S^x and S^y exchanged",
                label="∂L of every row"),
        sim.Row(
            "slope", *worst_case("slope", 2 * data.slope_predicted, GRADIENT), "twice that (the sum of both directions)",
            label="v·∂L = ±(1/nτ)(1 − S)(v·g), both constant along v",
        ),
        sim.Row(
            "loss along the gap", flat("constant"), flat("cosine"), "cosine similarity",
            flat("varying"), "both modalities are constant along v",
            f"over v·g = 0–{float(data.offset[-1]):g} the loss changes by {np.ptp(flat('constant').measured):.0e} nats, with variance along v by "
            + stated(np.ptp(flat("varying").measured), np.finfo(float).eps),
            label="loss while the gap is moved along v",
        ),
        sim.Row("gap velocity", *worst_case("gap_velocity", data.gap_velocity_predicted / 2, IDENTITY), "half of it",
                label="velocity of the gap"),
        sim.Row(
            "height velocity", *worst_case("height", data.height_always_pulled, IDENTITY), "normalisation always pulls: |bracket|",
            label="velocity of heights on the sphere, badly matched pairs included",
        ),
        sim.Row("closing rate", *worst_case("closing", data.closing_entropy, IDENTITY), "H",
                label="closing rate H − L on the sphere, both constant along v"),
        sim.Row(
            "frozen gap", still(["simplices", "polygons"]),
            still(["simplices on the sphere"]), "the same start on the sphere",
            still(["random rows"]), "the softmaxes are doubly stochastic",
            f"share of G lost by t = {data.attrs['flow_time']:g}: {float(abs(gone[:2]).max()):.0e} from doubly stochastic "
            f"starts, {float(gone[2]):.3g} from random rows, {lost[0]} from random cones (on the sphere {lost[1]})",
            label="G(t)/G(0) in Euclid without variance along the gap",
        ),
        sim.Row(
            "balance", *against("balance_measured", "balance_predicted", "balance_once"), "Σ h_ii² once in place of twice",
            label="change of G² − 2(v_x + v_y) along a run, against the integral of its exact rate",
        ),
        sim.Row(
            "simplices", *against("simplex_height", "simplex_predicted_height", "simplex_height_late"), "twice the rate",
            label="γ(t) of two simplices on the sphere, every τ, against the closed form",
        ),
        sim.Row(
            "cones", rising("cones_sphere"), rising("cones_euclid"), "Euclid at every τ",
            label=f"random cones: share of G lost by t = {data.attrs['flow_time']:g}, rising from Euclid to the sphere, there "
            "with τ",
        ),
    ]  # fmt: skip


def draw(data):
    """Loss against the gap, the gap in time, and the closing rate against the loss."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plotting.TWO_COLUMNS, 2.5), layout="constrained")
    looks = [plotting.series(i, color=c) for i, c in enumerate(("black", plotting.COLORS[4], plotting.CONTROL))]
    for rows, label, look in zip(data.rows.values, ("constant along v", "varying", "cosine"), looks, strict=True):
        change = data.loss_at_offset.sel(rows=rows)
        left.plot(data.offset, change - change[0], label=label, **look)
    left.set(xlabel="gap along v, v·g", ylabel="change of the loss (nats)")
    left.legend(loc="upper left")
    above = plotting.legend_entries(left)

    n, times = int(data.attrs["num_pairs"]), data.time.values
    # Simplices of every height at one τ pass through every loss: γ² = 1 − zτ(n − 1)/n at the logit difference z.
    heights, axis = np.sqrt(1 - 0.05 * np.linspace(0.05, 12.5, 200) * (n - 1) / n), np.eye(n + 1)[-1]
    pairs = [freezing.simplex_pairs(n, height) for height in heights]
    laws = [freezing.predicted_closing_rate(*rows, axis, temperature=0.05) for rows in pairs]
    loss = [law.loss for law in laws]
    right.plot(loss, [law.entropy for law in laws], color=plotting.CONTROL, linestyle="--", label="near miss, H")
    right.plot(loss, [law.rate for law in laws], color="black", linewidth=0.8, label="H − L")
    for i, temperature in enumerate(data.temperature.values):
        here, color = data.sel(temperature=temperature), plotting.COLORS[i]
        look = dict(linestyle="none", fillstyle="none") | plotting.series(i)
        middle.plot(times, here.simplex_predicted_height / here.simplex_height[0], color=color)
        middle.plot(times[::2], (here.simplex_height / here.simplex_height[0])[::2], **look)
        for name, line in (("cones_sphere", ":"), ("cones_euclid", "--")):
            plotting.band(middle, times, here[name].values, color=color, linestyle=line, linewidth=1.0)
        right.plot(here.cones_loss[1:], here.cones_rate[1:], ".", color=color, markersize=2)
        right.plot(here.simplex_loss, here.simplex_rate, **look)
        left.plot([], [], label=f"τ = {temperature:g}", **look)
    for style, label in (("-", "simplices"), (":", "cones, sphere"), ("--", "cones, Euclid")):
        middle.plot([], [], style, color="black", linewidth=1.0, label=label)
    right.plot([], [], "k.", markersize=2, label="cones")
    middle.set(xlabel="time (units of the flow)", ylabel="G(t) / G(0)", ylim=(-0.03, 1.55), yticks=np.linspace(0, 1, 6))
    middle.legend(loc="upper right")
    right.set(xscale="log", yscale="log", xlabel="loss L (nats)", ylabel="closing rate −d ln G/dt", ylim=(1e-3, 4))
    right.legend(loc="upper left")
    times = {label: handle for label, handle in plotting.legend_entries(left).items() if label not in above}
    figure.legend(times.values(), times, loc="outside upper center", ncols=len(times))
    return plotting.lettered(figure)
