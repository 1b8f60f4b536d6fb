"""N8; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

import simulator as sim
from experiments.claims.scoring_sides import moved
from experiments.setups.galleries import random_classes
from simulator.theory.scoring import cosine_robustness
from tests.theorems.common import quick_measurement


@pytest.mark.parametrize("dimensions", [3, 30])
def test_under_noise_alone_every_row_has_the_same_chance(rng, dimensions):
    for rows in (2, 3, 7):
        found = cosine_robustness(rng.normal(size=(rows, dimensions)), rng.normal(size=(2, dimensions)), sigma=1e7)
        np.testing.assert_allclose(found, 1 / rows, atol=5e-6)


@pytest.mark.parametrize("dimensions", [8, 40])
def test_cosine_robustness_against_draws(dimensions):
    """Independent draws in NumPy, unequal norms; control: √2 times the noise."""
    gallery, queries, _ = random_classes(6, dimensions, 8, 3)
    rng, sigma, draws = np.random.default_rng(8), 0.25 / dimensions**0.5 * 2, 20_000
    clean = (queries @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T).argmax(axis=1)
    kept = np.zeros(len(queries))
    for _ in range(draws):
        noisy = gallery + sigma * rng.normal(size=gallery.shape)
        kept += (queries @ (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).T).argmax(axis=1) == clean
    kept /= draws
    error = np.sqrt(np.maximum(kept * (1 - kept), 1 / draws) / draws)
    found = cosine_robustness(gallery, queries, sigma=sigma)
    assert np.all(np.abs(found - kept) < 4.5 * error)
    assert np.any(np.abs(cosine_robustness(gallery, queries, sigma=sigma * 2**0.5) - kept) > 4.5 * error)


def test_cosine_robustness_keeps_what_cosine_keeps(rng):
    """Invariant to the lengths of the queries, to a common scale of rows and noise, to rotations; 1 without noise."""
    gallery, queries, _ = random_classes(5, 9, 12, 4)
    found = cosine_robustness(gallery, queries, sigma=0.2)
    np.testing.assert_allclose(cosine_robustness(gallery, 7 * queries, sigma=0.2), found, atol=1e-12)
    np.testing.assert_allclose(cosine_robustness(3 * gallery, queries, sigma=0.6), found, atol=1e-12)
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    np.testing.assert_allclose(cosine_robustness(gallery @ basis, queries @ basis, sigma=0.2), found, atol=1e-9)
    np.testing.assert_allclose(cosine_robustness(gallery, queries, sigma=1e-9), 1.0, atol=1e-9)
    # Far rows: nothing but the angle matters to first order, so the noise is that of an inner product.
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    near_dot = sim.exact_robustness(unit, queries, sigma=0.2, scoring="dot")
    assert np.abs(near_dot - cosine_robustness(unit, queries, sigma=0.2)).max() > 1e-3


@pytest.mark.parametrize(("dimensions", "tolerance"), [(8, 1e-9), (40, 1e-9), (4, 2e-6)])
def test_more_nodes_change_nothing(monkeypatch, dimensions, tolerance):
    from simulator.theory import scoring

    gallery, queries, _ = random_classes(6, dimensions, 6, 5)
    found = cosine_robustness(gallery, queries, sigma=0.2)
    nodes = scoring.num_nodes_for
    monkeypatch.setattr(scoring, "RADIAL_NODES", 2 * scoring.RADIAL_NODES)
    monkeypatch.setattr(scoring, "num_nodes_for", lambda n: 2 * nodes(n))
    np.testing.assert_allclose(cosine_robustness(gallery, queries, sigma=0.2), found, atol=tolerance)


def test_what_cosine_robustness_refuses():
    gallery, queries, _ = random_classes(5, 9, 12, 4)
    with pytest.raises(ValueError, match="3 dimensions"):
        cosine_robustness(gallery[:, :2], queries[:, :2], sigma=0.1)
    with pytest.raises(ValueError, match="zero row"):
        cosine_robustness(0 * gallery, queries, sigma=0.1)
    with pytest.raises(ValueError, match="sigma"):
        cosine_robustness(gallery, queries, sigma=0.0)


def test_a_shift_is_given_once():
    x, y, shift = np.zeros((2, 3)), np.zeros((4, 3)), np.ones(3)
    for side in ("gallery", "queries", "both"):
        rows, asked = moved(x, y, shift, side)
        np.testing.assert_allclose(rows[0] - asked[0], shift)


def test_far_galleries_end_at_the_limit_under_cosine_and_lose_under_distance():
    data = quick_measurement("scoring_sides")[0].isel(gallery=0)
    assert float(data.far_differ[-1]) < 0.05
    assert float(data.far_whole[-1]) > 2 * float(data.far_differ[-1])
