"""C2T, and the predictors of `simulator.theory.towers` against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from scipy.linalg import subspace_angles

import simulator as sim
from experiments.claims import tower_compression
from experiments.claims.tower_compression import DATA
from experiments.setups import trained_towers
from experiments.setups.tower_discrepancies import STEPS, from_orbit
from simulator.theory import towers
from simulator.theory.flows import critical_angle, mode_rates_sphere
from simulator.training.flow import velocity


def in_frames(rows, frames):
    return np.stack([(r - r.mean(axis=0)[None, :]) @ f for r, f in zip(rows, frames, strict=True)])


@pytest.mark.parametrize("angle", [0.4, 2.5])
def test_tight_velocity_is_the_velocity_of_tight_clusters(rng, angle):
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    means = axes[0], np.cos(angle) * axes[0] + np.sin(angle) * axes[1]
    rows = [m[None, :] + 1e-6 * rng.normal(size=(7, 5)) for m in means]
    rows = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    frames = towers.great_circle_frames(*(r.mean(axis=0) for r in rows))
    z = in_frames(rows, frames)
    speed = in_frames(velocity(*rows, temperature=0.3, similarity="cosine", sphere=True), frames)
    predicted = towers.tight_velocity(z, angle=angle, temperature=0.3)
    assert np.abs(speed - predicted).max() < 1e-4 * np.abs(predicted).max()
    control = towers.tight_velocity(z, angle=np.pi - angle, temperature=0.3)  # cos θ with the other sign
    assert np.abs(speed - control)[..., 0].max() > 1e-2 * np.abs(predicted).max()


def test_frames_are_orthonormal_and_turn_the_same_way(rng):
    mean_x, mean_y = rng.normal(size=(2, 6))
    frame_x, frame_y = towers.great_circle_frames(mean_x, mean_y)
    for frame, mean in ((frame_x, mean_x), (frame_y, mean_y)):
        np.testing.assert_allclose(frame.T @ frame, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(mean @ frame, 0, atol=1e-12)
    np.testing.assert_allclose(frame_x[:, 1:], frame_y[:, 1:])
    assert frame_x[:, 0] @ mean_y > 0 > frame_y[:, 0] @ mean_x  # towards y; away from x


@pytest.fixture(scope="module")
def linear():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        return trained_towers.start(
            sim.Linear(4), sim.LatentPairs(latent_dim=2, dim_x=3, dim_y=4), 6, rng, angle=1.1, tightness=1e7
        )


@pytest.mark.parametrize("epsilon", [None, 1e-30])
def test_linearized_training_is_the_training_of_linear_towers(linear, epsilon):
    """By hand: gradients of the loss, and the optimiser written out."""
    tau, steps, parts = 0.2, 3, [*zip(linear.inputs, linear.params, strict=True)]

    def outputs(flat):
        return tuple(u @ w + b[None, :] for (u, _), (w, b) in zip(parts, flat, strict=True))

    flat = [(p["out"]["kernel"], jnp.asarray(p["out"]["bias"])) for _, p in parts]
    rate = linear.fast_rate(tau) / 2 if epsilon is None else 1e-2
    optimizer = optax.sgd(rate) if epsilon is None else optax.adam(rate, eps=epsilon)
    state = optimizer.init(flat)
    gradient = jax.jit(jax.grad(lambda w: sim.info_nce(*outputs(w), temperature=tau)))
    for _ in range(steps):
        updates, state = optimizer.update(gradient(flat), state)
        flat = optax.apply_updates(flat, updates)
    measured, jacobians = linear.in_frames(outputs(flat)), linear.jacobians()
    predicted = linear.predict(jacobians, tau, rate, steps, epsilon)
    change = np.linalg.norm(predicted - linear.deviations)
    assert change > 1e-2 * np.linalg.norm(linear.deviations)
    assert np.linalg.norm(measured - predicted) < 1e-4 * change
    halved = linear.predict([0.5**0.5 * j for j in jacobians], tau, rate, steps, epsilon)  # control: half the kernel
    assert np.linalg.norm(measured - halved) > 0.1 * change


def test_a_tight_start_is_what_its_parameters_give(rng):
    begin = trained_towers.start(sim.MLP(5, depth=2, embed_dim=4), DATA, 6, rng, angle=0.8, tightness=50.0)
    raw = [np.asarray(rows) for rows in trained_towers.outputs(begin.graphs, begin.params, begin.inputs)]
    np.testing.assert_allclose(begin.deviations, begin.in_frames(raw), rtol=1e-9, atol=1e-15)
    means = [rows.mean(axis=0) for rows in raw]
    np.testing.assert_allclose([np.linalg.norm(m) for m in means], begin.norms, rtol=1e-12)
    np.testing.assert_allclose(means[0] @ means[1] / np.prod(begin.norms), np.cos(0.8), rtol=1e-12)
    looser = begin.at(5.0)
    np.testing.assert_allclose(looser.norms, np.array(begin.norms) / 10)
    kernel = looser.params[0]["out"]["kernel"]
    np.testing.assert_allclose(kernel, begin.params[0]["out"]["kernel"])


def test_distance_from_a_path_on_it_and_off_it(rng):
    z, rates = rng.normal(size=(2, 5, 4)), np.array(mode_rates_sphere(1.0, 0.3))
    common, opposite = (z[0] + z[1]) / 2, (z[1] - z[0]) / 2
    grown = [(1 + 0.02 * rates) ** STEPS]
    along = np.array([grown[0][0], *[grown[0][2]] * 3]), np.array([grown[0][1], *[grown[0][3]] * 3])
    on_it = np.stack([common * along[0] - opposite * along[1], common * along[0] + opposite * along[1]])
    assert from_orbit(z, on_it, rates) < 1e-6
    assert from_orbit(z, on_it, 3 * rates) < 0.5 and from_orbit(z, z + rng.normal(size=z.shape), rates) > 0.5


def test_sign_of_every_mode_for_kernels_without_full_rank(rng):
    n, tau = 40, 0.3
    features = [rng.normal(size=(n, k)) @ np.diag(np.geomspace(0.1, 3, k)) for k in (4, 5)]
    u, w, correlation = towers.first_canonical_pair(*features)
    centred = [f - f.mean(axis=0)[None, :] for f in features]
    np.testing.assert_allclose(correlation, np.cos(subspace_angles(*centred).min()), rtol=1e-12)
    np.testing.assert_allclose([u @ u, w @ w, u @ w], [1, 1, correlation], rtol=1e-12)
    threshold, control = (float(critical_angle(t)) for t in (correlation * tau, tau))
    zero, (k_x, k_y) = np.zeros((n, n)), (c @ c.T for c in centred)

    def growth(angle):
        own, other = np.sin(angle) ** 2 / (2 * tau), np.cos(angle)
        coupling = np.kron([[-own, other], [other, -own]], np.eye(n))
        return np.linalg.eigvals(np.block([[k_x, zero], [zero, k_y]]) @ coupling).real.max()

    assert growth(0.99 * threshold) > 1e-4
    assert growth(1.01 * threshold) < 1e-9  # 0 outside the reach
    assert control > 1.01 * threshold and growth(0.99 * control) < 1e-9  # the free threshold is too high


def test_alignment_of_kernels_against_draws_and_its_mean_over_worlds(rng):
    n, r, k_x, k_y = 12, 3, 6, 9
    ratios = []
    for _ in range(400):
        latent = rng.normal(size=(n, r))
        latent = np.linalg.qr(latent - latent.mean(axis=0)[None, :])[0]  # centred and white
        kernels = [latent @ (m @ m.T) @ latent.T / k for k, m in ((k, rng.normal(size=(r, k))) for k in (k_x, k_y))]
        cross, own = np.sum(kernels[0] * kernels[1]), [np.sum(k**2) for k in kernels]
        ratios.append([2 * cross, sum(own)])
        np.testing.assert_allclose(towers.kernel_alignment(*kernels, *kernels), 2 * cross / sum(own), rtol=1e-10)
    cross, own = np.mean(ratios, axis=0)
    error = np.std([a - cross / own * b for a, b in ratios]) / own / len(ratios) ** 0.5
    total = 2 / (2 + (r + 1) * (1 / k_x + 1 / k_y))
    assert abs(cross / own - total) < 4 * error
    assert abs(cross / own - 2 / (2 + r * (1 / k_x + 1 / k_y))) > 4 * error  # control: r for r + 1


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_apparent_critical_angle_starts_and_ends_at_its_two_couplings(rng, temperature):
    shared = rng.normal(size=(20, 2))
    features = [np.hstack([shared + 0.3 * rng.normal(size=(20, 2)), rng.normal(size=(20, k))]) for k in (1, 2)]
    kernels = [f @ f.T for f in features]
    settings = dict(temperature=temperature, learning_rate=1e-3)
    first, last = (
        towers.apparent_critical_angle(*kernels, *kernels, steps=steps, **settings)
        for steps in ((0, 1), (int(15_000 * temperature), int(30_000 * temperature)))
    )
    alignment = towers.kernel_alignment(*kernels, *kernels)
    np.testing.assert_allclose(first, critical_angle(temperature * alignment), rtol=1e-2)
    coupling = towers.first_canonical_pair(*features)[2]
    np.testing.assert_allclose(last, critical_angle(temperature * coupling), rtol=2e-2)


@pytest.mark.parametrize("depth", [1, 2])
def test_kernel_without_the_jacobian(depth, rng):
    """The sum over layers is J Jᵀ; that of the same samples in another order is not."""
    inputs = jnp.asarray(rng.normal(size=(3, 5)))
    tower = trained_towers.random_tower(sim.MLP(7, depth=depth, embed_dim=2), 5, rng)
    rows = np.asarray(trained_towers.jacobian(*tower, inputs)).reshape(6, -1)
    found = np.asarray(trained_towers.tangent_kernel(*tower, inputs))
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-12, atol=1e-12)
    other = np.asarray(trained_towers.tangent_kernel(*tower, inputs[::-1]))
    assert np.abs(other - rows @ rows.T).max() > 0.1


def test_mixing_of_outputs(rng):
    n, d = 6, 3
    per_output = np.einsum("ap,ij->aipj", rng.normal(size=(n, 4)), np.eye(d)).reshape(n, d, -1)
    assert towers.output_mixing(per_output) < 1e-14
    jacobian = rng.normal(size=(n, d, 11))
    centred = jacobian - jacobian.mean(axis=0)[None]
    blocks = {(i, j): centred[:, i] @ centred[:, j].T for i in range(d) for j in range(d)}
    mean = sum(blocks[i, i] for i in range(d)) / d
    rest = sum(np.sum((block - (i == j) * mean) ** 2) for (i, j), block in blocks.items())
    np.testing.assert_allclose(towers.output_mixing(jacobian), np.sqrt(rest / (d * np.sum(mean**2))), rtol=1e-12)
    assert [towers.mixing_exponent(depth) for depth in (1, 2, 5)] == [-1.5, -0.5, -0.5]


def test_exponents_without_the_next_order():
    """A power with c/w in its logarithm: exact with the next order, wrong without it."""
    width = np.array([32, 64, 128, 256])
    mixing = np.stack([np.exp(e * np.log(width) + c / width)[None, :] for e, c in ((-1.5, -12.0), (-0.5, 4.0))])
    data = xr.Dataset(dict(mixing=(("depth", "seed", "level"), mixing), mixing_width=(("depth", "level"), [width] * 2)))
    np.testing.assert_allclose(tower_compression.mixing_exponents(data)[:, 0], [-1.5, -0.5], atol=1e-12)
    assert np.all(abs(tower_compression.mixing_exponents(data, False)[:, 0] - [-1.5, -0.5]) > 0.03)


def trained(jacobians=None, norms=(1.0, 1.0), **changes):
    settings = dict(angle=1.0, temperature=0.1, learning_rate=0.1, steps=1) | changes
    frames = towers.great_circle_frames(*np.eye(3)[:2])
    jacobians = jacobians or [np.ones((4, 3, 2))] * 2
    return towers.linearized_training(jacobians, np.zeros((2, 4, 2)), norms=norms, frames=frames, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trained(angle=4.0), "angle"),
        (lambda: trained(temperature=0.0), "temperature"),
        (lambda: trained(norms=(0.0, 1.0)), "norm_x"),
        (lambda: trained(learning_rate=0.0), "learning_rate"),
        (lambda: trained(steps=0), "steps"),
        (lambda: trained(adam_epsilon=-1.0), "adam_epsilon"),
        (lambda: trained([np.ones((4, 3, 2)), np.ones((5, 3, 2))]), "jacobian_y has shape"),
        (lambda: towers.great_circle_frames(np.ones(3), -np.ones(3)), "one line"),
        (lambda: towers.great_circle_frames(np.ones(3), np.ones(2)), "shapes"),
        (lambda: towers.kernel_alignment(*[np.eye(2)] * 3, np.eye(3)), "must be"),
        (lambda: towers.first_canonical_pair(np.ones((3, 2)), np.eye(3)), "do not vary"),
        (lambda: towers.first_canonical_pair(np.eye(3), np.eye(4)), "samples"),
        (lambda: towers.output_mixing(np.eye(3)), "shape"),
        (lambda: towers.mixing_exponent(0), "depth"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
