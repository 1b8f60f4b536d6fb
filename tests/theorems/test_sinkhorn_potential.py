"""N3; the negative control of each row is judged in test_every_claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from experiments.claims.sinkhorn_potential import soft_pairing
from simulator.theory.potentials import residuals_along_gap, second_order_residuals, sinkhorn_potentials

TEMPERATURE = 0.2


def test_scaling_has_the_form_and_the_marginals(rng):
    cost, pairing = rng.uniform(size=(7, 5)), rng.uniform(0.1, 1.0, size=(7, 5))
    pairing /= pairing.sum()
    phi, psi, coupling = sinkhorn_potentials(cost, pairing.sum(1), pairing.sum(0), temperature=TEMPERATURE)
    np.testing.assert_allclose(coupling.sum(1), pairing.sum(1), rtol=1e-11)
    np.testing.assert_allclose(coupling.sum(0), pairing.sum(0), rtol=1e-11)
    rest = np.log(coupling) - phi[:, None] - psi[None, :] + cost / TEMPERATURE
    np.testing.assert_allclose(rest, rest[0, 0], atol=1e-11)
    control = np.log(coupling) - phi[:, None] - psi[None, :] + cost / TEMPERATURE**2
    assert np.ptp(control) > 1


def test_two_by_two_against_its_quadratic_equation():
    """Scaling keeps the odds ratio, so P_11 solves P_11 (1 − r − c + P_11) = ω (r − P_11)(c − P_11)."""
    cost, row, column = np.array([[0.1, 0.5], [0.4, 0.3]]), 0.3, 0.45
    odds = np.exp(-(cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]) / TEMPERATURE)
    roots = np.roots([1 - odds, 1 - row - column + odds * (row + column), -odds * row * column])
    expected = [p for p in roots if 0 < p < min(row, column)]
    coupling = sinkhorn_potentials(cost, [row, 1 - row], [column, 1 - column], temperature=TEMPERATURE)[2]
    np.testing.assert_allclose(coupling[0, 0], expected, rtol=1e-11)


def test_a_flat_kernel_leaves_the_log_marginals():
    rows, columns = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.4])
    phi, psi, coupling = sinkhorn_potentials(np.ones((3, 2)), rows, columns, temperature=1.0)
    np.testing.assert_allclose(phi, np.log(rows) - np.log(rows).mean(), atol=1e-12)
    np.testing.assert_allclose(psi, np.log(columns) - np.log(columns).mean(), atol=1e-12)
    np.testing.assert_allclose(coupling, rows[:, None] * columns[None, :], atol=1e-12)


@jax.jit
def loss_gradient(along, x_across, y_across, pairing, gap):
    def loss(along):
        x = jnp.concatenate([along[0][:, None], x_across], axis=1)
        y = jnp.concatenate([gap + along[1][:, None], y_across], axis=1)
        return sim.info_nce(x, y, temperature=TEMPERATURE, similarity="sqeuclidean", pairing=pairing)

    return jax.grad(loss)(along)


def gradient_along_gap(alpha, beta, x_across, y_across, pairing, gap):
    """∂L/∂(α, β) under zero mean, in units of G/τ."""
    gradient = np.asarray(loss_gradient(np.stack([alpha, beta]), x_across, y_across, pairing, gap))
    return np.abs(gradient - gradient.mean(axis=1, keepdims=True)).max() * TEMPERATURE / gap


def test_predicted_residuals_are_stationary_to_their_order(rng):
    """No regulariser here: the relation holds for any orthogonal part that is held fixed."""
    x_across, y_across = 0.3 * rng.normal(size=(2, 9, 2))
    pairing = soft_pairing(9, 2, rng)
    cost = np.sum((x_across[:, None, :] - y_across[None, :, :]) ** 2, axis=2)
    phi, psi, coupling = sinkhorn_potentials(cost, pairing.sum(1), pairing.sum(0), temperature=TEMPERATURE)
    gaps = np.array([4.0, 8.0, 16.0])
    size = {name: [] for name in ("first", "second", "control")}
    for gap in gaps:
        scale = dict(gap_norm=gap, temperature=TEMPERATURE)
        residuals = dict(
            first=residuals_along_gap(phi, psi, **scale),
            second=second_order_residuals(phi, psi, coupling, pairing, **scale),
            control=second_order_residuals(phi, psi, coupling, pairing, lever=False, **scale),
        )
        for name, (alpha, beta) in residuals.items():
            assert abs(alpha.mean()) < 1e-15 and abs(beta.mean()) < 1e-15
            size[name].append(gradient_along_gap(alpha, beta, x_across, y_across, pairing, gap))
    slopes = {name: np.polyfit(np.log(gaps), np.log(values), 1)[0] for name, values in size.items()}
    assert slopes["first"] == pytest.approx(-2, abs=0.05)
    assert slopes["second"] == pytest.approx(-4, abs=0.1)
    assert slopes["control"] > -2.5
    alpha, beta = residuals_along_gap(phi, psi, gap_norm=16.0, temperature=TEMPERATURE)
    control = gradient_along_gap(-alpha, -beta, x_across, y_across, pairing, 16.0)
    assert control > 100 * size["first"][-1]


def test_the_relation_knows_no_unit_of_length(rng):
    """Lengths times s and τ times s²: the potentials stay, the residuals scale by s."""
    phi, psi = rng.normal(size=4), rng.normal(size=6)
    small = residuals_along_gap(phi, psi, gap_norm=2.0, temperature=0.1)
    large = residuals_along_gap(phi, psi, gap_norm=6.0, temperature=0.9)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(3 * a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(row_marginal=np.ones(3) / 3), "cost has shape"),
        (dict(row_marginal=np.array([0.0, 1.0])), "positive"),
        (dict(column_marginal=np.array([0.5, 0.6])), "equal sums"),
        (dict(temperature=0.0), "temperature"),
        (dict(max_iterations=1), "raise max_iterations"),
    ],
)
def test_bad_input(changes, message):
    arguments = dict(
        cost=np.array([[0.0, 1.0], [2.0, 0.5]]), row_marginal=np.array([0.3, 0.7]),
        column_marginal=np.array([0.5, 0.5]), temperature=0.1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        sinkhorn_potentials(**(arguments | changes))


def test_bad_gap_and_pairing():
    with pytest.raises(ValueError, match="gap_norm"):
        residuals_along_gap(np.ones(2), np.ones(2), gap_norm=0.0, temperature=1.0)
    with pytest.raises(ValueError, match="must agree"):
        second_order_residuals(np.ones(2), np.ones(2), np.ones((2, 2)), np.ones((3, 3)), gap_norm=1.0, temperature=1.0)
