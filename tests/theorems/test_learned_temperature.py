"""P4: what a gap and a learned temperature conserve; the near misses of each row are judged in test_every_claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import simulator as sim
from experiments.claims.learned_temperature import (
    NAMES,
    decades,
    equivalent_rows,
    lift,
    parameter_of,
    random_rows,
    relative_change,
    row_velocity,
    scale_of,
    shared_velocity,
)
from simulator.theory import invariants
from tests.theorems.common import quick_measurement

SLOPES = dict(
    exponential=lambda s: s,
    softplus=lambda s: -np.expm1(-s),
    linear=lambda s: 1.0,
    temperature=lambda s: -(s**2),
)
SCALES = dict(
    exponential=np.exp, softplus=lambda v: np.log1p(np.exp(v)), linear=lambda v: v, temperature=lambda v: 1 / v
)
_shared_velocity, _row_velocity = jax.jit(shared_velocity), jax.jit(row_velocity)


@pytest.mark.parametrize("name", NAMES)
def test_potential_is_the_integral(name):
    for low, high in ((0.05, 0.3), (0.5, 2.0), (3.0, 30.0)):
        integral = quad(lambda s: s / SLOPES[name](s) ** 2, low, high, epsabs=0, epsrel=1e-12)[0]
        difference = np.diff(invariants.scale_potential([low, high], name))[0]
        np.testing.assert_allclose(difference, integral, rtol=1e-9)
    # Control: h' for h'².
    control = quad(lambda s: abs(s / SLOPES[name](s)), 0.5, 2.0)[0]
    right = np.diff(invariants.scale_potential([0.5, 2.0], name))[0]
    assert (abs(control / right - 1) > 0.01) == (name != "linear")


def test_softplus_joins_the_exponential_and_the_linear_scale():
    small, large = np.array([1e-4, 1e-3]), np.array([30.0, 40.0])
    soft = invariants.scale_potential(small, "softplus")
    np.testing.assert_allclose(np.diff(soft), np.diff(np.log(small)), rtol=1e-3)
    np.testing.assert_allclose(invariants.scale_potential(large, "softplus"), large**2 / 2, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_parametrisations_and_their_slopes(name):
    which, scale = NAMES.index(name), 2.3
    parameter = parameter_of(scale, which)
    np.testing.assert_allclose([scale_of(parameter, which), SCALES[name](parameter)], scale, rtol=1e-14)
    np.testing.assert_allclose(jax.grad(scale_of)(parameter, which), SLOPES[name](scale), rtol=1e-12)


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_invariants_are_stationary_at_once(name, rate):
    """d/dt of the predicted invariant along the exact velocities, for features that have nothing to do with each other."""
    which, half_gap, scale, step = NAMES.index(name), 0.6, 2.0, 1e-6
    parameter = parameter_of(scale, which)

    def change(law, gap_speed, parameter_speed):
        ends = [
            law(half_gap + sign * step * gap_speed, SCALES[name](parameter + sign * step * parameter_speed))
            for sign in (1, -1)
        ]
        return abs(ends[0] - ends[1]) / (2 * step)

    x, y = random_rows(3)
    speeds = _shared_velocity((x, y, np.log(half_gap), parameter), which, rate)
    law = lambda shared: lambda g, s: invariants.log_invariant(g, s, parametrisation=name, rate=rate, shared=shared)
    shared = [change(law(kind), half_gap * float(speeds[2]), float(speeds[3])) for kind in (True, False)]
    assert shared[0] < 1e-7 < 1e-2 < shared[1]

    x, y = equivalent_rows(3)
    speeds = _row_velocity((lift(x, half_gap, -1.0), lift(y, half_gap, 1.0), parameter), which, rate)
    along = np.asarray(speeds[1])[:, -1]
    np.testing.assert_allclose(along, along[0], rtol=1e-10)
    np.testing.assert_allclose(np.asarray(speeds[0])[:, -1], -along[0], rtol=1e-10)
    rows = [change(law(kind), float(along[0]), float(speeds[2])) for kind in (False, True)]
    assert rows[0] < 1e-7 < 1e-2 < rows[1]


def test_velocity_of_the_shared_gap_is_the_gradient_of_the_measured_loss():
    x, y = random_rows(1)
    half_gap, parameter = 0.4, np.log(3.0)

    def loss(half_gap, parameter):
        return sim.info_nce(lift(x, half_gap, -1.0), lift(y, half_gap, 1.0), temperature=jnp.exp(-parameter))

    gap_slope, parameter_slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(half_gap, parameter)
    speeds = _shared_velocity((x, y, np.log(half_gap), parameter), 0, 2.0)
    np.testing.assert_allclose([half_gap * speeds[2], speeds[3]], [-gap_slope, -2 * parameter_slope], rtol=1e-10)


def test_gap_at_scale_inverts_the_invariant():
    start = (0.7, 1.5)
    for name in NAMES:
        for shared in (True, False):
            settings = dict(parametrisation=name, rate=1.3, shared=shared)
            scale = np.array([1.5, 1.8, 2.5])
            half_gap = invariants.half_gap_at_scale(scale, start, **settings)
            np.testing.assert_allclose(half_gap[0], start[0], rtol=1e-8)
            values = invariants.log_invariant(half_gap, scale, **settings)
            np.testing.assert_allclose(values, values[0], atol=1e-8)
    # The published start: 0.5 · 9 · e^{−1/8}.
    np.testing.assert_allclose(np.exp(invariants.log_invariant(0.5, 3.0, parametrisation="exponential")), 3.97123606)


def test_a_scale_out_of_reach_has_no_gap():
    settings = dict(parametrisation="exponential", rate=1.0)
    assert np.isnan(invariants.half_gap_at_scale(0.5, (0.7, 1.5), **settings))
    assert np.isnan(invariants.half_gap_at_scale(0.5, (0.7, 1.5), shared=False, **settings))


@pytest.mark.slow
def test_a_lost_gap_is_not_judged_but_a_broken_flow_is():
    data = quick_measurement("learned_temperature")[0]
    change = relative_change(data, "shared", "softplus", 0.5)
    half_gap = data.shared_half_gap.sel(parametrisation="softplus", rate=0.5).values
    np.testing.assert_array_equal(change.mask, ~(half_gap > 1e-140))
    broken = data.copy(deep=True)
    broken.shared_half_gap.loc[dict(parametrisation="softplus", rate=0.5, time=data.time.values[3])] = np.nan
    with pytest.raises(ValueError, match="half_gap"):
        relative_change(broken, "shared", "softplus", 0.5)


def test_gap_closes_unless_the_temperature_itself_is_learned():
    limits = {
        name: [
            float(invariants.half_gap_at_scale(np.inf, (0.5, 3.0), parametrisation=name, shared=s))
            for s in (True, False)
        ]
        for name in NAMES
    }
    assert all(limits[name] == [0.0, 0.0] for name in NAMES[:3])
    np.testing.assert_allclose(limits["temperature"][1], 0.5 * np.exp(-1 / 18))
    assert 0.4 < limits["temperature"][0] < limits["temperature"][1]


@pytest.mark.slow
def test_the_measured_flow_covers_six_decades_and_ends_matched():
    data = quick_measurement("learned_temperature")[0]
    assert decades(data, "shared") > 6  # also where γ falls fastest
    last = data.isel(time=-1)
    assert float(last.shared_scale.min(skipna=True)) > 2 * data.attrs["scale"]  # nothing stopped on the way
    changes = np.abs(data.shared_half_gap / data.shared_half_gap.isel(time=0) - 1)
    assert float(changes.max("time").min()) > 0.05  # a gap that never moved would conserve anything


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: invariants.scale_potential(1.0, "log"), "parametrisation"),
        (lambda: invariants.scale_potential(0.0, "linear"), "scale"),
        (lambda: invariants.log_invariant(1.0, 1.0, parametrisation="linear"), "half_gap"),
        (lambda: invariants.log_invariant(0.5, 1.0, parametrisation="linear", rate=0.0), "rate"),
        (lambda: invariants.half_gap_at_scale(1.0, (0.0, 1.0), parametrisation="linear"), "half_gap"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
