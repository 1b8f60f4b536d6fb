"""C2T, and the predictors of `simulator.theory.towers` against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, subspace_angles

import simulator as sim
from simulator.flow import velocity
from simulator.theory import towers
from simulator.theory.flows import critical_angle
from tests.theorems.common import check_claim


def test_claim(tmp_path):
    check_claim("tower_compression", tmp_path)


def tight_clusters(angle, n=7, d=5, size=1e-6, seed=0):
    """Unit rows around two means at an angle, with the frames of those means."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    means = axes[0], np.cos(angle) * axes[0] + np.sin(angle) * axes[1]
    rows = [m[None, :] + size * rng.normal(size=(n, d)) for m in means]
    rows = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    return rows, towers.great_circle_frames(*(r.mean(axis=0) for r in rows))


def in_frames(rows, frames):
    return np.stack([(r - r.mean(axis=0)[None, :]) @ f for r, f in zip(rows, frames, strict=True)])


@pytest.mark.parametrize("angle", [0.4, np.pi / 2, 2.5])
def test_coupling_is_the_velocity_of_tight_clusters(angle):
    tau = 0.3
    (x, y), frames = tight_clusters(angle)
    z = in_frames((x, y), frames)
    speed = in_frames(velocity(x, y, temperature=tau, similarity="cosine", sphere=True), frames)
    along, across = towers.sphere_coupling(angle, tau)
    predicted = np.concatenate([
        np.einsum("ab,bn->an", along, z[..., 0])[..., None], np.einsum("ab,bnm->anm", across, z[..., 1:])
    ], axis=2)  # fmt: skip
    scale = np.abs(predicted).max()
    assert np.abs(speed - predicted).max() < 1e-4 * scale
    control = np.einsum("ab,bn->an", along * np.array([[1, -1], [-1, 1]]), z[..., 0])  # cos θ with the other sign
    if abs(np.cos(angle)) > 0.1:
        assert np.abs(speed[..., 0] - control).max() > 1e-2 * scale


def test_frames_are_orthonormal_and_turn_the_same_way():
    rng = np.random.default_rng(0)
    mean_x, mean_y = rng.normal(size=(2, 6))
    frame_x, frame_y = towers.great_circle_frames(mean_x, mean_y)
    for frame, mean in ((frame_x, mean_x), (frame_y, mean_y)):
        np.testing.assert_allclose(frame.T @ frame, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(mean @ frame, 0, atol=1e-12)
    turn = lambda mean, frame: mean / np.linalg.norm(mean) + 1e-6 * frame[:, 0]  # noqa: E731
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert cosine(turn(mean_x, frame_x), mean_y) > cosine(mean_x, mean_y)  # towards y
    assert cosine(mean_x, turn(mean_y, frame_y)) < cosine(mean_x, mean_y)  # away from x


def linear_step(rows_x, rows_y, weights, temperature, rate):
    """Unit outputs of two linear towers before and after one step of gradient descent; weights (W, b) for each."""

    def outputs(weights):
        return tuple(u @ w + b[None, :] for u, (w, b) in zip((rows_x, rows_y), weights, strict=True))

    gradient = jax.grad(lambda w: sim.info_nce(*outputs(w), temperature=temperature))(weights)
    after = jax.tree.map(lambda w, g: w - rate * g, weights, gradient)
    return [np.asarray(o) for o in outputs(weights)], [np.asarray(o) for o in outputs(after)]


def test_generator_is_one_step_of_linear_towers():
    rng = np.random.default_rng(1)
    n, d, tau, angle, size = 6, 4, 0.2, 1.1, 1e-7
    inputs = [rng.normal(size=(n, 3)), rng.normal(size=(n, 4))]
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    means = 2.0 * axes[0], 3.0 * (np.cos(angle) * axes[0] + np.sin(angle) * axes[1])
    weights = []
    for u, mean in zip(inputs, means, strict=True):
        w = size * rng.normal(size=(u.shape[1], d))
        weights.append((jnp.asarray(w), jnp.asarray(mean - u.mean(axis=0) @ w)))
    frames = towers.great_circle_frames(*means)
    kernels = [u @ u.T + 1 for u in inputs]
    settings = dict(frames=frames, angle=angle, temperature=tau)
    generator = towers.tower_generator(*kernels, norms=(2.0, 3.0), **settings)
    rate = 0.1 / np.linalg.norm(generator, 2)
    before, after = (
        in_frames([o / np.linalg.norm(o, axis=1, keepdims=True) for o in outputs], frames)
        for outputs in linear_step(*inputs, weights, tau, rate)
    )
    predicted = rate * generator @ before.ravel()
    measured = (after - before).ravel()
    assert np.abs(measured - predicted).max() < 1e-5 * np.abs(predicted).max()
    control = (
        rate * towers.tower_generator(*kernels, norms=(2.0**0.5, 3.0**0.5), **settings) @ before.ravel()
    )  # ‖μ‖ for ‖μ‖²
    assert np.abs(measured - control).max() > 0.1 * np.abs(predicted).max()


def test_sample_kernel_is_a_tangent_kernel_times_identity():
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(2, 5, 5))
    kernels = [f @ f.T for f in factors]
    frames = towers.great_circle_frames(*rng.normal(size=(2, 4)))
    settings = dict(norms=(1.0, 2.0), frames=frames, angle=1.0, temperature=0.1)
    full = [np.einsum("ab,ij->aibj", k, np.eye(4)) for k in kernels]
    expected = towers.tower_generator(*kernels, **settings)
    np.testing.assert_allclose(towers.tower_generator(*full, **settings), expected, atol=1e-10)
    mixed = full[0] + 0.1 * np.einsum("ab,ij->aibj", kernels[0], np.ones((4, 4)))  # control: outputs mixed
    assert np.abs(towers.tower_generator(mixed, full[1], **settings) - expected).max() > 1e-3


def test_free_table_has_the_free_rates():
    frames = towers.great_circle_frames(*np.eye(3)[:2])
    generator = towers.tower_generator(
        np.eye(4), np.eye(4), norms=(1, 1), frames=frames, angle=np.pi / 2, temperature=0.1
    )
    rates = np.unique(np.round(4 * np.linalg.eigvalsh(0.5 * (generator + generator.T)), 8))
    np.testing.assert_allclose(rates, [-50.0, -10.0, 0.0, 10.0], atol=1e-6)  # 0: the means themselves


def test_steps_approach_the_exponential():
    rng = np.random.default_rng(3)
    generator, start = rng.normal(size=(5, 5)), rng.normal(size=5)
    z = start
    for _ in range(7):
        z = z + 0.1 * generator @ z
    np.testing.assert_allclose(towers.after_steps(generator, start, learning_rate=0.1, steps=7), z, rtol=1e-12)
    limit = expm(generator) @ start
    errors = [
        np.abs(towers.after_steps(generator, start, learning_rate=1 / k, steps=k) - limit).max() for k in (100, 1000)
    ]
    assert 8 < errors[0] / errors[1] < 12


def test_sign_of_every_mode_for_kernels_without_full_rank():
    rng = np.random.default_rng(4)
    n, tau = 40, 0.3
    features = [rng.normal(size=(n, k)) @ np.diag(np.geomspace(0.1, 3, k)) for k in (4, 5)]
    u, w, correlation = towers.least_stable_pair(*features)
    centred = [f - f.mean(axis=0)[None, :] for f in features]
    np.testing.assert_allclose(correlation, np.cos(subspace_angles(*centred).min()), rtol=1e-12)
    assert correlation < 0.9
    np.testing.assert_allclose([u @ u, w @ w, u @ w], [1, 1, correlation], rtol=1e-12)
    threshold = towers.reachable_critical_angle(tau, correlation)

    def growth(angle):
        along = towers.sphere_coupling(angle, tau)[0]
        kernel = np.block(
            [[centred[0] @ centred[0].T, np.zeros((n, n))], [np.zeros((n, n)), centred[1] @ centred[1].T]]
        )
        return np.linalg.eigvals(kernel @ np.kron(along, np.eye(n))).real.max()

    assert growth(0.99 * threshold) > 1e-4
    assert growth(1.01 * threshold) < 1e-9  # 0 outside the reach
    control = float(critical_angle(tau))  # the free threshold: between the two every reachable mode decays already
    assert control > 1.01 * threshold and growth(0.99 * control) < 1e-9
    np.testing.assert_allclose(towers.reachable_critical_angle(tau, 1.0), control)


def test_mixing_of_outputs():
    rng = np.random.default_rng(5)
    kernel, n, d = rng.normal(size=(6, 6)), 6, 3
    assert towers.output_mixing(np.einsum("ab,ij->aibj", kernel, np.eye(d))) < 1e-14
    full = rng.normal(size=(n, d, n, d))
    centred = np.empty_like(full)
    for i in range(d):
        for j in range(d):
            block = full[:, i, :, j]
            centred[:, i, :, j] = block - block.mean(0)[None, :] - block.mean(1)[:, None] + block.mean()
    diagonal = sum(centred[:, i, :, i] for i in range(d)) / d
    rest = sum(np.sum((centred[:, i, :, j] - (i == j) * diagonal) ** 2) for i in range(d) for j in range(d))
    np.testing.assert_allclose(towers.output_mixing(full), np.sqrt(rest / (d * np.sum(diagonal**2))), rtol=1e-12)
    assert [towers.mixing_exponent(depth) for depth in (1, 2, 5)] == [-1.5, -0.5, -0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: towers.sphere_coupling(4.0, 0.1), "angle"),
        (lambda: towers.sphere_coupling(1.0, 0.0), "temperature"),
        (lambda: towers.reachable_critical_angle(0.1, 0.0), "correlation"),
        (lambda: towers.reachable_critical_angle(0.1, 1.1), "correlation"),
        (lambda: towers.great_circle_frames(np.ones(3), -np.ones(3)), "one line"),
        (lambda: towers.great_circle_frames(np.ones(3), np.ones(2)), "shapes"),
        (lambda: generator_of(np.eye(4), np.eye(5)), "pair the samples"),
        (lambda: generator_of(np.ones((4, 2, 4, 2)), np.eye(4)), "kernel_x has shape"),
        (lambda: generator_of(np.eye(4), np.eye(4), norms=(0.0, 1.0)), "norms"),
        (lambda: towers.after_steps(np.eye(2), np.ones(2), learning_rate=0.0, steps=1), "learning_rate"),
        (lambda: towers.after_steps(np.eye(2), np.ones(2), learning_rate=1.0, steps=0), "steps"),
        (lambda: towers.least_stable_pair(np.ones((3, 2)), np.eye(3)), "do not vary"),
        (lambda: towers.least_stable_pair(np.eye(3), np.eye(4)), "samples"),
        (lambda: towers.output_mixing(np.eye(3)), "shape"),
        (lambda: towers.mixing_exponent(0), "depth"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def generator_of(kernel_x, kernel_y, norms=(1.0, 1.0)):
    frames = towers.great_circle_frames(*np.eye(3)[:2])
    return towers.tower_generator(kernel_x, kernel_y, norms=norms, frames=frames, angle=1.0, temperature=0.1)
