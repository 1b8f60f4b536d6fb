"""N1: the critical gap; the near misses of each row are judged in check_claim."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments.compression import clouds
from experiments.critical_gap import QUICK, _isotropic, defect_ratio, fastest_rate, measured_boundary
from simulator.theory import flows
from tests.theorems.common import check_claim


def test_claim(tmp_path):
    check_claim("critical_gap", tmp_path)


def test_thresholds_are_the_zeros_of_the_rates():
    temperature = np.geomspace(1e-3, 5.0, 40)
    common = flows.mode_rates_euclidean(flows.critical_gap_norm(temperature), temperature).common_along
    np.testing.assert_allclose(common * temperature, 0, atol=1e-12)
    angle = flows.critical_angle(temperature)
    np.testing.assert_allclose(flows.mode_rates_sphere(angle, temperature).common_along * temperature, 0, atol=1e-9)
    # The upper threshold is the opposite mode's; control: the common mode (|·| dropped from |cos θ|) has none.
    obtuse = flows.mode_rates_sphere(np.pi - angle, temperature)
    np.testing.assert_allclose(obtuse.opposite_along * temperature, 0, atol=1e-9)
    assert np.all(obtuse.common_along < 0)


def test_critical_angle_values_and_limits():
    np.testing.assert_allclose(np.degrees(flows.critical_angle([0.07, 0.01])), [21.1805, 8.0893], atol=1e-4)
    np.testing.assert_allclose(flows.critical_angle(1e-8), np.sqrt(2e-8), rtol=1e-6)
    assert np.pi / 2 - flows.critical_angle(1e6) < 1e-5
    assert flows.critical_angle(0.1, mismatch=0.3) < flows.critical_angle(0.1)


@pytest.mark.parametrize(("symmetric", "order"), [(False, 1.0), (True, 2.0)])
def test_the_boundary_moves_with_the_third_moments_of_the_clusters(symmetric, order):
    predicted, sizes, errors = float(flows.critical_angle(0.1)), np.array([1e-3, 3e-3, 1e-2]), []
    for size in sizes:
        squares = []
        for seed in range(4):
            a, b = clouds(dataclasses.replace(QUICK, size=size), seed)
            if symmetric:  # every deviation with its opposite
                a, b = (np.concatenate([rows[:32], -rows[:32]]) for rows in (a, b))
            squares.append((measured_boundary(a, b, 0.1, np.pi / 2, 0.1, True) / predicted - 1) ** 2)
        errors.append(np.mean(squares) ** 0.5)
    assert abs(np.polyfit(np.log(sizes), np.log(errors), 1)[0] - order) < 0.1


def test_rates_change_sign_at_the_boundary():
    a, b = clouds(QUICK, 0)
    for sphere, where in ((False, flows.critical_gap_norm(0.2)), (True, flows.critical_angle(0.2))):
        assert (
            fastest_rate(a, b, 0.98 * float(where), 0.2, sphere)
            > 0
            > fastest_rate(a, b, 1.02 * float(where), 0.2, sphere)
        )


def test_defect_ratio_rate_is_the_difference_of_the_modes_rates():
    # Along the gap v = (V₊ + V₋)/4 in each modality, so its rate is the modes' weighted by their variances.
    gap_norm, temperature, d, rho = 0.4, 0.3, 8, 0.35
    rates = flows.mode_rates_euclidean(gap_norm, temperature)
    along = (1 + rho) * rates.common_along + (1 - rho) * rates.opposite_along
    across = (1 + rho) * rates.common_across + (1 - rho) * rates.opposite_across
    mean = (along + (d - 1) * across) / d
    np.testing.assert_allclose(along - mean, flows.defect_ratio_rate(gap_norm, temperature, d), rtol=1e-12)


def test_defect_ratio_is_the_one_of_measure_gap(rng):
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(9, 5)) + 0.7
    np.testing.assert_allclose(defect_ratio(x, y), sim.measure_gap(x, y).defect_ratio_x, rtol=1e-12)


def test_isotropic_deviations_are_exactly_so():
    a, b = (rows / QUICK.size for rows in _isotropic(QUICK, 0))
    for product, value in ((a.T @ a, 1.0), (b.T @ b, 1.0), (a.T @ b, 0.6)):
        np.testing.assert_allclose(product / QUICK.num_pairs, value * np.eye(8), atol=1e-12)


def simulated_mismatch(rng, r, dim_x, dim_y, worlds=10000, one_spread=False):
    """κ from the definition: kernels and outputs of drawn linear towers, in the latent's coordinates; one_spread scales
    the outputs of each modality, 16 of them, to the same mean square."""
    kernels, outputs = [], []
    for columns in (dim_x, dim_y):
        mixing = rng.normal(size=(worlds, r, columns)) / r**0.5
        values = mixing @ rng.normal(size=(worlds, columns, 16)) / columns**0.5
        square = np.mean(values**2, axis=(1, 2))[:, None, None] if one_spread else 1.0
        kernels.append(mixing @ mixing.transpose(0, 2, 1) / square)
        outputs.append(values / np.sqrt(square))
    (k_x, k_y), (p, q) = kernels, outputs
    form = lambda left, kernel, right: np.sum(left * (kernel @ right))  # noqa: E731
    return form(p + q, k_x - k_y, p - q) / form(p + q, k_x + k_y, p + q)


def test_one_spread_lowers_the_mismatch_by_a_few_percent(rng):
    ratio = simulated_mismatch(rng, 8, 8, 8, one_spread=True) / flows.kernel_mismatch(8, 8, 8)
    assert 0.92 < ratio < 0.99


@pytest.mark.parametrize("dims", [(8, 8, 8), (8, 12, 64), (3, 20, 5)])
def test_kernel_mismatch_against_drawn_towers(rng, dims):
    predicted, found = flows.kernel_mismatch(*dims), simulated_mismatch(rng, *dims)
    assert abs(found / predicted - 1) < 0.03
    r, dim_x, dim_y = dims
    control = r / (dim_x + dim_y + r)  # E‖W − I‖² = r²/N: the Wishart's diagonal counted like the rest
    assert abs(found / control - 1) > 0.05


def test_unlike_kernels_lower_the_apparent_threshold_and_keep_the_eigenvalue(rng):
    """Brute force on the linear system: the mean change of ‖m‖² at the start vanishes at the shifted angle, and the
    growing eigenvalue changes sign at the free one."""
    n, temperature, worlds = 6, 0.1, 20000
    mixing = [rng.normal(size=(worlds, n, columns)) for columns in (7, 20)]
    kernels = [m @ m.transpose(0, 2, 1) for m in mixing]
    covariances = [k / m.shape[2] for k, m in zip(kernels, mixing, strict=True)]
    trace = lambda p, q: np.einsum("wij,wji->", p, q)  # noqa: E731
    kappa = trace(kernels[0] - kernels[1], covariances[0] - covariances[1]) / trace(
        kernels[0] + kernels[1], covariances[0] + covariances[1]
    )
    p, q = (np.einsum("wij,wj->wi", m, rng.normal(size=m.shape[::2])) / m.shape[2] ** 0.5 for m in mixing)

    def change(angle):
        own, c = np.sin(angle) ** 2 / (2 * temperature), np.cos(angle)
        p_dot = np.einsum("wij,wj->wi", kernels[0], c * q - own * p)
        q_dot = np.einsum("wij,wj->wi", kernels[1], c * p - own * q)
        terms = np.sum((p + q) * (p_dot + q_dot), axis=1)
        return terms.mean() / (terms.std() / worlds**0.5)

    shifted = float(flows.critical_angle(temperature, mismatch=kappa))
    free = float(flows.critical_angle(temperature))
    assert abs(change(shifted)) < 4
    assert change(free) < -10  # control: κ = 0
    for angle, grows in ((0.99 * free, True), (1.01 * free, False)):
        own, c = np.sin(angle) ** 2 / (2 * temperature), np.cos(angle)
        system = np.kron(np.array([[-own, c], [c, -own]]), np.eye(n))
        kernel = np.zeros((2 * n, 2 * n))
        # Kernels of full rank: Sylvester's law is about definite ones.
        kernel[:n, :n], kernel[n:, n:] = kernels[0][0] + np.eye(n), kernels[1][0] + np.eye(n)
        assert (np.linalg.eigvals(kernel @ system).real.max() > 0) == grows


@pytest.mark.parametrize(
    "call",
    [
        lambda: flows.critical_angle(0.0),
        lambda: flows.critical_angle(0.1, mismatch=1.0),
        lambda: flows.critical_angle(0.1, mismatch=-0.1),
        lambda: flows.critical_gap_norm([0.1, -1.0]),
        lambda: flows.kernel_mismatch(0, 8, 8),
        lambda: flows.defect_ratio_rate(0.1, 0.1, 1),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
