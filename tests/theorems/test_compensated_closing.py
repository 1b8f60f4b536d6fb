"""N6; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

import simulator as sim
from experiments.setups.galleries import nearest_rows, random_classes
from simulator.theory.storage import centred_robustness, clean_scores, margin_robustness, margin_slope, optimal_centre
from tests.theorems.common import quick_measurement


@pytest.fixture
def full_rank():
    gallery, queries, _ = random_classes(30, 12, 200, 3)
    return gallery, queries


@pytest.mark.parametrize("shift_by", ["the gap", "anything"])
def test_the_scalar_undoes_any_shift(full_rank, rng, shift_by):
    """‖y − x_k − v‖² + b_k − ‖y − x_k‖² is one constant per query; control: a scalar without the 2."""
    gallery, queries = full_rank
    v = queries.mean(0) - gallery.mean(0) if shift_by == "the gap" else 10 * rng.normal(size=12)
    squares = lambda rows: np.sum((queries[:, None, :] - rows[None, :, :]) ** 2, axis=2)
    spread = {
        factor: np.ptp(squares(gallery + v) + (factor * gallery @ v)[None, :] - squares(gallery), axis=1).max()
        for factor in (-2, -1)
    }
    assert spread[-2] < 1e-10 < 0.1 < spread[-1]


def test_margin_robustness_by_loops(rng):
    """Against adaptive quadrature for two rivals and unequal noise; control: the mean noise for all."""
    from scipy.integrate import quad
    from scipy.stats import norm

    scores, noise = rng.normal(size=(3, 3)), rng.uniform(0.3, 1.5, size=(3, 3))
    for s, n, found in zip(scores, noise, margin_robustness(scores, noise), strict=True):
        j = s.argmax()
        others = [k for k in range(3) if k != j]
        expected = quad(
            lambda t, s=s, n=n, j=j, others=others: norm.pdf(t, s[j], n[j])
            * norm.cdf(t, s[others[0]], n[others[0]])
            * norm.cdf(t, s[others[1]], n[others[1]]),
            -20, 20, points=[s[j]], epsabs=1e-13, epsrel=1e-12, limit=400,
        )[0]  # fmt: skip
        assert abs(found - expected) < 1e-9
    control = margin_robustness(scores, noise.mean(axis=1))
    assert np.abs(control - margin_robustness(scores, noise)).max() > 1e-3


def adaptive_margin(scores, noise):
    """One query by adaptive quadrature, told where each factor turns."""
    from scipy.integrate import quad
    from scipy.special import log_ndtr

    best = np.argmax(scores)
    margins, others = (scores[best] - np.delete(scores, best)) / noise[best], np.delete(noise, best) / noise[best]
    density = lambda z: np.exp(log_ndtr((margins + z) / others).sum() - 0.5 * z * z) / np.sqrt(2 * np.pi)
    edges = np.unique(np.clip([*np.ravel(-margins[:, None] + np.outer(others, (-6, 0, 6))), -9, -3, 0, 3, 9], -9, 9))
    return sum(
        quad(density, *pair, epsabs=1e-15, epsrel=1e-12, limit=200)[0] for pair in zip(edges, edges[1:], strict=False)
    )


@pytest.mark.parametrize(("ratio", "classes"), [(1, 2), (16, 2), (16, 10), (17, 10), (300, 10), (1e6, 3)])
def test_margin_robustness_keeps_its_error_at_every_ratio_of_noises(rng, ratio, classes):
    """The answer louder and quieter than its rivals, and noises in between."""
    for case in range(6):
        scores = rng.normal(size=classes) * 10 ** rng.uniform(-1.5, 0.5)
        noise = 10 ** rng.uniform(-1, 0) * float(ratio) ** rng.uniform(size=classes)
        if case % 3:
            noise[:] = 0.3
            noise[scores.argmax()] *= ratio if case % 3 == 1 else 1 / ratio
        assert abs(margin_robustness(scores[None], noise[None])[0] - adaptive_margin(scores, noise)) < 1e-11


@pytest.mark.parametrize("scalar_noise", [0.0, 0.4])
@pytest.mark.parametrize("unit", [1e-160, 1e-40, 1e140])
def test_the_centred_rule_knows_no_unit_of_length_and_no_origin(rng, unit, scalar_noise):
    gallery, queries, centre = rng.normal(size=(5, 6)), rng.normal(size=(4, 6)), rng.normal(size=6)
    expected = centred_robustness(gallery, queries, sigma=0.3, centre=centre, scalar_noise=scalar_noise)
    assert 0.3 < expected.min() < 0.9
    noise = dict(sigma=0.3 * unit, scalar_noise=scalar_noise * unit * unit)
    found = centred_robustness(gallery * unit, queries * unit, centre=centre * unit, **noise)
    # The square of a unit of 1e-160 has few digits left in float64.
    np.testing.assert_allclose(found, expected, rtol=1e-3 if unit * unit < 1e-310 else 1e-9)
    moved = [rows + 1e6 for rows in (gallery, queries, centre)]
    found = centred_robustness(*moved[:2], sigma=0.3, centre=moved[2], scalar_noise=scalar_noise)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_two_classes_have_the_textbook_value(rng):
    from scipy.special import ndtr

    gallery, queries = rng.normal(size=(2, 5)), rng.normal(size=(20, 5))
    centre = queries.mean(axis=0)
    gap = np.abs(np.diff(clean_scores(gallery, queries), axis=1))[:, 0]
    found = centred_robustness(gallery, queries, sigma=0.4, centre=centre)
    distance = np.linalg.norm(queries - centre, axis=1)
    np.testing.assert_allclose(found, ndtr(gap / (0.4 * 2**0.5 * distance)), atol=1e-10)
    control = ndtr(gap / (0.4 * distance))  # one noise instead of the difference of two
    assert np.abs(found - control).max() > 0.01


def test_the_slope_is_the_derivative(rng):
    scores, noise = rng.normal(size=(6, 9)), rng.uniform(0.2, 2.0, size=6)
    step = 1e-5
    by_difference = (
        margin_robustness(scores, noise * np.exp(step)) - margin_robustness(scores, noise * np.exp(-step))
    ) / (2 * step)
    found = margin_slope(scores, noise)
    np.testing.assert_allclose(found, by_difference, atol=1e-8)
    assert np.all(found < 0)


def test_every_query_gains_until_its_own_closure_under_the_centred_rule(full_rank):
    """Rises on [0, α*_y], symmetric about it; control: α* of the mean query, 1, is not everybody's."""
    gallery, queries = full_rank
    closer = sim.GapCloser("centred").fit(gallery, queries)
    at = lambda alpha, i: closer.index(gallery, alpha).robustness(queries[i : i + 1], sigma=0.1)[0]
    for i in range(5):
        star = closer.alpha_star_[i]
        values = [at(a, i) for a in np.linspace(0.0, star, 5)]
        assert np.all(np.diff(values) > 0)
        assert abs(at(star + 0.4, i) - at(star - 0.4, i)) < 1e-10
        assert abs(at(1.4, i) - at(0.6, i)) > 1e-6
    assert closer.alpha_star_.mean() == pytest.approx(1.0)


def test_no_such_theorem_for_the_compensated_shift():
    """A query nearly half-way between two rows can lose although the shift brings it nearer to both: less noise on the
    nearest row alone lowers the chance that it stays nearest. So the certificate promises nothing there."""
    gallery = np.array([[0.0, 1.0] + [0.0] * 6, [0.0, -1.0] + [0.0] * 6])
    queries = np.array([[2.0, 1e-3] + [0.0] * 6])
    # A shift along the rows' difference: the nearest row comes nearer by more.
    v = np.array([0.2, -0.9] + [0.0] * 6)
    before, after = (np.linalg.norm(queries[0] - gallery - t * v, axis=1) for t in (0.0, 1.0))
    chances = [
        sim.exact_robustness(gallery + t * v, queries, sigma=0.5, bias=-2 * t * gallery @ v)[0] for t in (0.0, 1.0)
    ]
    assert np.argmin(before) == 0
    assert after.sum() < before.sum()
    assert chances[1] < chances[0] - 1e-3


def test_the_best_centre_is_the_weighted_mean_of_its_equation(full_rank):
    gallery, queries = full_rank[0], full_rank[1][:60]
    best = optimal_centre(gallery, queries, sigma=0.1)
    distance = np.linalg.norm(queries - best, axis=1)
    weights = -margin_slope(clean_scores(gallery, queries), 0.1 * distance) / distance**2
    np.testing.assert_allclose(weights @ queries / weights.sum(), best, atol=1e-4)
    control = -margin_slope(clean_scores(gallery, queries), 0.1 * distance) / distance  # −P'·ρ/ρ: one ρ forgotten
    assert np.linalg.norm(control @ queries / control.sum() - best) > 1e-3


@pytest.mark.parametrize("unit", [1e-160, 1e-3, 1e3, 1e150])
def test_the_best_centre_knows_no_unit_of_length(full_rank, unit):
    gallery, queries = full_rank[0], full_rank[1][:60]
    best = optimal_centre(gallery, queries, sigma=0.1)
    np.testing.assert_allclose(optimal_centre(unit * gallery, unit * queries, sigma=0.1 * unit), unit * best, rtol=1e-4)


def test_exact_axes_take_their_share_of_the_noise_away(rng):
    gallery, queries, centre = rng.normal(size=(5, 6)), rng.normal(size=(4, 6)), rng.normal(size=6)
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    left = np.array([np.linalg.norm(np.linalg.svd(axes)[2][2:] @ (y - centre)) for y in queries])
    for s in (0.0, 0.4):
        found = centred_robustness(gallery, queries, sigma=0.3, centre=centre, axes=axes, scalar_noise=s)
        expected = margin_robustness(clean_scores(gallery, queries), np.hypot(0.3 * left, s))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_clean_scores_are_minus_half_the_squared_distances(rng):
    gallery, queries = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    squares = np.sum((queries[:, None] - gallery[None]) ** 2, axis=2)
    lengths = np.sum(queries**2, axis=1)
    np.testing.assert_allclose(clean_scores(gallery, queries), 0.5 * (lengths[:, None] - squares), atol=1e-13)


def test_noise_on_the_scalars_takes_the_gain_away():
    data = quick_measurement("compensated_closing")[0].sel(alpha=1.0)
    assert float((data.exact_centred - data.noisy).min()) > 0.05
    assert float((data.exact_noisy - data.noisy).max()) < 4 * float(data.noisy_error.max())


def test_centred_and_inner_product_decisions_without_the_scalar_are_others(full_rank):
    gallery, queries = full_rank
    index = sim.GapCloser("centred").fit(gallery, queries).index(gallery)
    np.testing.assert_array_equal(index.search(queries), nearest_rows(gallery, queries))
    assert np.any((index.map_queries(queries) @ gallery.T).argmax(axis=1) != nearest_rows(gallery, queries))
