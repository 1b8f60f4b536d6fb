"""C2: the linear modes of two tight clusters; the near misses of each row are judged in test_every_claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims.compression import QUICK, WORKING_STEP, _fitted_rates, near_misses_sphere
from experiments.setups.clusters import clouds, clusters, mode_variances, time_scale
from simulator.losses import info_nce
from simulator.theory import flows
from simulator.training.flow import velocity


def response(x, y, change_x, change_y, **flow):
    """Exact derivative of the velocity at (x, y) along a change of the rows."""
    return jax.jvp(lambda x, y: velocity(x, y, **flow), (x, y), (change_x, change_y))[1]


def centred(rng, n=7):
    pattern = rng.normal(size=n)
    return pattern - pattern.mean()


@pytest.mark.parametrize(("gap_norm", "temperature"), [(0.3, 0.05), (1.2, 0.7), (0.5, 1.3)])
def test_modes_in_space_are_exact_eigenvectors_at_zero_size(rng, gap_norm, temperature):
    pattern, along, across = centred(rng), jnp.eye(4)[0], jnp.eye(4)[2]
    x, y = jnp.zeros((7, 4)), jnp.zeros((7, 4)) + gap_norm * along[None, :]
    rates = flows.mode_rates_euclidean(gap_norm, temperature)
    for direction, sign, rate in zip((along, along, across, across), (1, -1, 1, -1), rates, strict=True):
        change = jnp.asarray(pattern)[:, None] * direction[None, :]
        found = response(x, y, change, sign * change, temperature=temperature)
        np.testing.assert_allclose(
            np.stack(found), rate * np.stack([change, sign * change]), atol=1e-11 / temperature**2
        )


@pytest.mark.parametrize("angle", [0.2, 1.0, np.pi / 2, 2.0, 2.9])
@pytest.mark.parametrize("temperature", [0.05, 0.4])
def test_modes_on_the_sphere_are_exact_eigenvectors_at_zero_size(rng, angle, temperature):
    pattern, c, s = centred(rng), np.cos(angle), np.sin(angle)
    mean_x, mean_y = jnp.array([1.0, 0, 0, 0]), jnp.array([c, s, 0, 0])
    tangent_x, tangent_y, across = jnp.array([0.0, 1, 0, 0]), jnp.array([-s, c, 0, 0]), jnp.eye(4)[2]
    x, y = jnp.tile(mean_x, (7, 1)), jnp.tile(mean_y, (7, 1))
    directions = [(tangent_x, tangent_y), (tangent_x, tangent_y), (across, across), (across, across)]
    rates = flows.mode_rates_sphere(angle, temperature)
    for (on_x, on_y), sign, rate in zip(directions, (1, -1, 1, -1), rates, strict=True):
        change_x, change_y = (jnp.asarray(pattern)[:, None] * v[None, :] for v in (on_x, sign * on_y))
        found = response(x, y, change_x, change_y, temperature=temperature, similarity="cosine", sphere=True)
        np.testing.assert_allclose(np.stack(found), rate * np.stack([change_x, change_y]), atol=1e-11 / temperature**2)


def test_control_a_dropped_cosine_is_no_eigenvalue():
    angle, temperature = np.array([2.0]), np.array([0.4])
    right = np.stack(flows.mode_rates_sphere(angle, temperature), axis=1)
    for miss in near_misses_sphere(angle, temperature):
        assert np.max(np.abs(miss - right)) > 0.1 * np.max(np.abs(right))


def test_linearized_gradient_matches_finite_differences_of_the_loss(rng):
    gap_norm, temperature, n = 0.8, 0.3, 6
    a, b = (rng.normal(size=(n, 3)) * 1e-5 for _ in range(2))
    a, b = a - a.mean(axis=0)[None, :], b - b.mean(axis=0)[None, :]
    x, y = a, b + gap_norm * np.eye(3)[0][None, :]
    predicted = flows.linearized_gradient(x, y, temperature=temperature)[1]
    step = 1e-4

    def loss(i, k, change):
        moved = y.copy()
        moved[i, k] += change
        return float(info_nce(x, moved, temperature=temperature, similarity="sqeuclidean"))

    # Central differences, at the centre of the clusters subtracted: what remains is linear in the deviations.
    for i, k in ((0, 0), (2, 1), (5, 2)):
        found = (8 * (loss(i, k, step) - loss(i, k, -step)) - loss(i, k, 2 * step) + loss(i, k, -2 * step)) / (
            12 * step
        )
        assert abs(found - predicted[i, k]) < 0.02 * np.abs(predicted).max()
    printed = predicted - 2 * (predicted + 2 * a / (n * temperature))  # control: the first term with the other sign
    assert np.abs(printed - predicted).max() > 0.1 * np.abs(predicted).max()


def test_swapping_the_modalities_swaps_the_gradients(rng):
    x, y = rng.normal(size=(2, 5, 3))
    gradient_x, gradient_y = flows.linearized_gradient(x, y, temperature=0.5)
    swapped_x, swapped_y = flows.linearized_gradient(y, x, temperature=0.5)
    np.testing.assert_allclose(swapped_x, gradient_y, atol=1e-14)
    np.testing.assert_allclose(swapped_y, gradient_x, atol=1e-14)


def test_the_sphere_with_twice_the_temperature_tends_to_space_at_small_angles():
    # Cosine logits at τ are squared distances at 2τ; a small angle is a small gap.
    angle, temperature = 1e-3, 1e-5
    on_sphere = np.array(flows.mode_rates_sphere(angle, temperature))
    in_space = np.array(flows.mode_rates_euclidean(angle, 2 * temperature))
    np.testing.assert_allclose(on_sphere, in_space, rtol=1e-5)


@pytest.mark.parametrize("sphere", [False, True])
def test_mode_variances_by_loops(rng, sphere):
    a, b = rng.normal(size=(2, 6, 4)) * 1e-2
    x, y = clusters(a, b, 0.7, sphere)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    if sphere:
        mean_x, mean_y = mean_x / np.linalg.norm(mean_x), mean_y / np.linalg.norm(mean_y)
        angle = np.arccos(mean_x @ mean_y)
        along_x = (mean_y - np.cos(angle) * mean_x) / np.sin(angle)
        along_y = (np.cos(angle) * mean_y - mean_x) / np.sin(angle)
        plane = [mean_x, along_x]
    else:
        along_x = along_y = (mean_y - mean_x) / np.linalg.norm(mean_y - mean_x)
        plane = [along_x]
    sums = np.zeros(4)
    for x_row, y_row in zip(x - x.mean(axis=0)[None, :], y - y.mean(axis=0)[None, :], strict=True):
        alpha, beta = along_x @ x_row, along_y @ y_row
        for axis in plane:
            x_row, y_row = x_row - (axis @ x_row) * axis, y_row - (axis @ y_row) * axis
        sums += [(alpha + beta) ** 2, (beta - alpha) ** 2, np.mean((x_row + y_row) ** 2), np.mean((y_row - x_row) ** 2)]
    np.testing.assert_allclose(mode_variances(x, y, sphere), sums / 6, rtol=1e-9)
    stacked = mode_variances(np.stack([x, 2 * x]), np.stack([y, 2 * y]), sphere)
    np.testing.assert_allclose(stacked, np.outer([1, 4], sums / 6), rtol=1e-9)


@pytest.mark.parametrize(("where", "sphere"), [((1.2, 0.05), False), ((2.4, 0.05), True)])
def test_half_the_step_changes_no_rate(where, sphere):
    """The rates are judged at 1 %, and their own error is O(ε/τ) ≈ 1e-3."""
    fitted = [_fitted_rates(*clouds(QUICK, 0), *where, sphere, step) for step in (WORKING_STEP, WORKING_STEP / 2)]
    np.testing.assert_allclose(*fitted, rtol=1e-6)


def test_time_scale_resolves_the_stiffest_mode():
    for gap_norm, temperature in ((0.1, 1.0), (3.0, 0.01)):
        stiffest = np.abs(flows.mode_rates_euclidean(gap_norm, temperature)).max()
        assert 0.3 < stiffest * time_scale(gap_norm, temperature, False) <= 1.0 + 1e-12


def test_clouds_are_centred_and_of_the_size_asked_for():
    a, b = clouds(dataclasses.replace(QUICK, num_pairs=4000), 0)
    assert np.abs(a.mean(axis=0)).max() < 1e-18
    np.testing.assert_allclose([a.std(), b.std()], 1e-4, rtol=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: flows.mode_rates_euclidean(-0.1, 1.0),
        lambda: flows.mode_rates_euclidean(0.1, 0.0),
        lambda: flows.mode_rates_sphere(3.2, 1.0),
        lambda: flows.mode_rates_sphere(np.nan, 1.0),
        lambda: flows.linearized_gradient(np.zeros((3, 2)), np.zeros((4, 2)), temperature=1.0),
        lambda: flows.linearized_gradient(np.zeros((3, 2)), np.zeros((3, 2)), temperature=-1.0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
