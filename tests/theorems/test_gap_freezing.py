"""C3; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

from simulator.theory import freezing
from tests.theorems.common import quick_measurement

TEMPERATURE = 0.3


def test_the_sphere_law_was_judged_on_badly_matched_pairs_too():
    bracket = quick_measurement("gap_freezing")[0].bracket.values
    assert (bracket < 0).any() and (bracket > 0).any()


def loss(x, y, similarity="sqeuclidean"):
    """The mean of the two directions, by loops."""
    n = len(x)
    score = np.empty((n, n))
    for k in range(n):
        for i in range(n):
            cosine = x[k] @ y[i] / np.sqrt((x[k] @ x[k]) * (y[i] @ y[i]))
            score[k, i] = cosine if similarity == "cosine" else -np.sum((x[k] - y[i]) ** 2)
    weight = np.exp(score / TEMPERATURE)
    total = 0.0
    for i in range(n):
        total -= np.log(weight[i, i] / sum(weight[i, j] for j in range(n)))
        total -= np.log(weight[i, i] / sum(weight[k, i] for k in range(n)))
    return total / (2 * n)


def slopes(function, rows, step=1e-5):
    """Central differences of fourth order with respect to every entry."""
    result = np.empty_like(rows)
    for index in np.ndindex(*rows.shape):
        moved = [function(rows + h * step * unit(rows.shape, index)) for h in (-2, -1, 1, 2)]
        result[index] = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step)
    return result


def unit(shape, index):
    entry = np.zeros(shape)
    entry[index] = 1.0
    return entry


@pytest.fixture
def pairs(rng):
    x, y = 0.4 * rng.normal(size=(2, 5, 3))
    return x, y + 0.5


def test_softmaxes_by_loops(pairs):
    x, y = pairs
    weight = np.array([[np.exp(-np.sum((a - b) ** 2) / TEMPERATURE) for b in y] for a in x])
    found = freezing.softmaxes(x, y, temperature=TEMPERATURE)
    np.testing.assert_allclose(found.over_queries, weight / weight.sum(1)[:, None], rtol=1e-13)
    np.testing.assert_allclose(found.over_gallery, weight / weight.sum(0)[None, :], rtol=1e-13)
    np.testing.assert_allclose(found.marginal_x, found.over_gallery.sum(1), rtol=1e-13)
    np.testing.assert_allclose(found.marginal_y, found.over_queries.sum(0), rtol=1e-13)
    assert found.marginal_x.sum() == pytest.approx(5) and found.marginal_y.sum() == pytest.approx(5)
    shifted = freezing.softmaxes(x + 1e3, y + 1e3, temperature=TEMPERATURE)
    np.testing.assert_allclose(shifted.over_gallery, found.over_gallery, rtol=1e-10)


def test_gradient_by_differences(pairs):
    x, y = pairs
    predicted = freezing.predicted_gradient(x, y, temperature=TEMPERATURE)
    measured = slopes(lambda rows: loss(rows, y), x), slopes(lambda rows: loss(x, rows), y)
    for p, m in zip(predicted, measured, strict=True):
        np.testing.assert_allclose(p, m, atol=1e-9)
    control = freezing.predicted_gradient(x, y, temperature=2 * TEMPERATURE)
    assert np.abs(control[0] - measured[0]).max() > 1e-2


def test_exchanging_the_modalities_exchanges_the_gradients(pairs):
    x, y = pairs
    there, back = (freezing.predicted_gradient(*p, temperature=TEMPERATURE) for p in ((x, y), (y, x)))
    np.testing.assert_allclose(there[0], back[1], rtol=1e-12)
    np.testing.assert_allclose(
        freezing.predicted_gap_velocity(x, y, temperature=TEMPERATURE),
        -freezing.predicted_gap_velocity(y, x, temperature=TEMPERATURE),
        rtol=1e-12,
    )


def test_gap_velocity_is_minus_n_times_the_mean_gradients(pairs):
    x, y = pairs
    gradient_x, gradient_y = slopes(lambda rows: loss(rows, y), x), slopes(lambda rows: loss(x, rows), y)
    measured = -(gradient_y.sum(axis=0) - gradient_x.sum(axis=0))
    predicted = freezing.predicted_gap_velocity(x, y, temperature=TEMPERATURE)
    np.testing.assert_allclose(predicted, measured, atol=1e-8)
    control = -gradient_y.sum(axis=0)
    assert np.abs(predicted - control).max() > 0.1 * np.abs(predicted).max()


def test_slope_along_a_constant_direction(pairs):
    x, y = pairs
    axis = np.array([0.0, 0.6, 0.8])
    x, y = (rows - (rows @ axis - height)[:, None] * axis[None, :] for rows, height in ((x, -0.4), (y, 0.7)))
    slope_x, slope_y = freezing.predicted_slope_along(x, y, axis, temperature=TEMPERATURE)
    gradient_x, gradient_y = freezing.predicted_gradient(x, y, temperature=TEMPERATURE)
    np.testing.assert_allclose(slope_x, gradient_x @ axis, atol=1e-14)
    np.testing.assert_allclose(slope_y, gradient_y @ axis, atol=1e-14)
    assert abs(slope_x.sum()) < 1e-14 and abs(slope_y.sum()) < 1e-14  # the loss is flat in the gap
    assert np.abs(slope_y).max() > 1e-3
    with pytest.raises(ValueError, match="varies along"):
        freezing.predicted_slope_along(x, y, np.eye(3)[0], temperature=TEMPERATURE)


def test_sphere_heights_by_differences(rng):
    axis = np.eye(4)[-1]
    y = rng.normal(size=(5, 4))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    x = rng.normal(size=(5, 3))
    x = np.hstack([0.8 * x / np.linalg.norm(x, axis=1, keepdims=True), np.full((5, 1), -0.6)])
    law = freezing.predicted_height_velocity(x, y, axis, temperature=TEMPERATURE)
    # The cosine does not see the length of a row, so its gradient at unit rows is tangential by itself.
    measured = -5 * slopes(lambda rows: loss(x, rows, "cosine"), y) @ axis
    np.testing.assert_allclose(law.velocity, measured, atol=1e-8)
    control = law.marginal  # without the normalisation
    assert np.abs(control - measured).max() > 0.1
    with pytest.raises(ValueError, match="constant"):
        freezing.predicted_height_velocity(y, x, axis, temperature=TEMPERATURE)
    with pytest.raises(ValueError, match="normalise"):
        freezing.predicted_height_velocity(x, 2 * y, axis, temperature=TEMPERATURE)


def test_balance_rate_from_the_gradient(pairs):
    x, y = pairs
    axis = np.array([0.6, 0.0, -0.8])
    gradient_x, gradient_y = freezing.predicted_gradient(x, y, temperature=TEMPERATURE)
    p, q = y @ axis, x @ axis
    p_dot, q_dot = -5 * gradient_y @ axis, -5 * gradient_x @ axis
    gap, gap_dot = p.mean() - q.mean(), p_dot.mean() - q_dot.mean()
    variance_dot = 2 * np.mean((p - p.mean()) * p_dot) + 2 * np.mean((q - q.mean()) * q_dot)
    predicted = freezing.predicted_balance_rate(x, y, axis, temperature=TEMPERATURE)
    assert predicted == pytest.approx(2 * gap * gap_dot - 2 * variance_dot, rel=1e-11)
    control = 2 * gap * gap_dot - variance_dot
    assert abs(predicted - control) > 1e-2 * abs(predicted)


def test_simplex_pairs_are_doubly_stochastic_and_unit():
    x, y = freezing.simplex_pairs(6, 0.4)
    for rows in (x, y):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(y.mean(axis=0) - x.mean(axis=0), 0.8 * np.eye(7)[-1], atol=1e-15)
    for similarity in ("cosine", "sqeuclidean"):
        q = freezing.softmaxes(x, y, temperature=TEMPERATURE, similarity=similarity)
        np.testing.assert_allclose(q.marginal_x, 1.0, rtol=1e-13)
        np.testing.assert_allclose(q.marginal_y, 1.0, rtol=1e-13)


@pytest.mark.parametrize(("num_pairs", "height", "temperature"), [(2, 0.9, 0.5), (8, 0.5, 0.1), (40, 0.7, 1.0)])
def test_simplex_height_solves_its_equation(num_pairs, height, temperature):
    from scipy.integrate import solve_ivp

    a = num_pairs / ((num_pairs - 1) * temperature)

    def speed(_, gamma):
        z = a * (1 - gamma**2)
        off = (num_pairs - 1) * np.exp(-z)
        return -gamma * z * off / (1 + off)

    times = np.linspace(0.0, 3.0, 7)
    solved = solve_ivp(speed, (0.0, 3.0), [height], t_eval=times, rtol=1e-12, atol=1e-14, method="DOP853").y[0]
    setting = dict(num_pairs=num_pairs, height=height)
    np.testing.assert_allclose(
        freezing.predicted_simplex_height(times, temperature=temperature, **setting), solved, rtol=1e-9
    )
    control = freezing.predicted_simplex_height(times, temperature=temperature / 2, **setting)
    assert np.abs(control - solved).max() > 1e-2


def caps(rng, mismatch, n=5):
    """Unit rows on two caps, constant along the last axis; the more mismatched, the worse the pairs."""
    shared = rng.normal(size=(n, 3))
    rows = []
    for height in (-0.3, 0.6):
        across = shared + mismatch * rng.normal(size=(n, 3))
        across *= (1 - height**2) ** 0.5 / np.linalg.norm(across, axis=1, keepdims=True)
        rows.append(np.hstack([across, np.full((n, 1), height)]))
    return rows


@pytest.mark.parametrize("mismatch", [0.1, 0.5, 5.0])
def test_closing_rate_is_the_mean_height_law_and_the_slope_in_log_temperature(rng, mismatch):
    x, y = caps(rng, mismatch)
    axis, laws = np.eye(4)[-1], []
    for pair in ((x, y), (y, x)):
        laws.append(freezing.predicted_height_velocity(*pair, axis, temperature=TEMPERATURE).velocity.mean())
    law = freezing.predicted_closing_rate(x, y, axis, temperature=TEMPERATURE)
    assert law.rate == pytest.approx(-(laws[0] - laws[1]) / 0.9, rel=1e-11)
    assert law.loss == pytest.approx(loss(x, y, "cosine"), rel=1e-12)
    values = []
    for h in (-2, -1, 1, 2):
        values.append(freezing.predicted_closing_rate(x, y, axis, temperature=TEMPERATURE * np.exp(1e-3 * h)).loss)
    assert law.rate == pytest.approx((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-3, rel=1e-8)
    assert (law.rate < 0) == (mismatch == 5.0)  # badly matched pairs open the gap


def fastest(loss, num_pairs):
    return -np.expm1(-loss) * np.log((num_pairs - 1) / np.expm1(loss))


def test_simplices_close_fastest_at_their_loss(rng):
    for height in (0.2, 0.6):
        law = freezing.predicted_closing_rate(*freezing.simplex_pairs(7, height), np.eye(8)[-1], temperature=0.3)
        assert law.rate == pytest.approx(fastest(law.loss, 7), rel=1e-11)
    judged = 0
    for _ in range(200):
        x, y = caps(rng, rng.uniform(0.05, 1.0))
        q = freezing.softmaxes(x, y, temperature=TEMPERATURE, similarity="cosine")
        partners = np.stack([np.diagonal(q.over_gallery), np.diagonal(q.over_queries)])
        if partners.min() >= 1 / 5:
            law = freezing.predicted_closing_rate(x, y, np.eye(4)[-1], temperature=TEMPERATURE)
            assert law.rate < fastest(law.loss, 5)
            judged += 1
    assert judged > 50


def test_closing_rate_needs_both_constant(rng):
    x, y = caps(rng, 0.2)
    turned = y @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    for pair in ((x, turned), (turned, y)):
        with pytest.raises(ValueError, match="varies along"):
            freezing.predicted_closing_rate(*pair, np.eye(4)[-1], temperature=TEMPERATURE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: freezing.softmaxes(np.ones((2, 3)), np.ones((3, 3)), temperature=1.0), "rows"),
        (lambda: freezing.softmaxes(np.ones((2, 3)), np.ones((2, 3)), temperature=0.0), "temperature"),
        (lambda: freezing.softmaxes(np.ones((2, 3)), np.ones((2, 3)), temperature=1.0, similarity="dot"), "similarity"),
        (lambda: freezing.predicted_balance_rate(np.eye(2), np.eye(2), np.ones(2), temperature=1.0), "unit vector"),
        (lambda: freezing.simplex_pairs(1, 0.5), "num_pairs"),
        (lambda: freezing.simplex_pairs(4, 1.0), "height"),
        (lambda: freezing.predicted_simplex_height([-1.0], num_pairs=4, height=0.5, temperature=1.0), "times"),
        (lambda: freezing.predicted_simplex_height([1.0], num_pairs=4, height=0.5, temperature=1e-4), "temperature"),
        (
            lambda: freezing.predicted_closing_rate(2 * np.eye(2), np.eye(2), np.eye(2)[0], temperature=1.0),
            "normalise",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
