"""C6; the negative control of each row is judged in test_every_claim."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import simulator as sim
from experiments.claims.gap_closing import QUICK
from experiments.setups.galleries import nearest_rows, random_classes
from experiments.setups.trained_galleries import (
    NEAR_MISSES,
    UNTOUCHED,
    choices,
    exact_mean,
    over_seeds,
    random_basis,
    smallest_difference,
    told,
    trend,
    untold,
)
from simulator.robustness import changed_decisions
from tests.theorems.common import quick_measurement


def test_every_near_miss_changes_decisions_and_nothing_else_does():
    data = quick_measurement("gap_closing")[0]
    moved = data.alpha.values[data.alpha.values != 0]
    assert int(data.paired_changes.sel(noise=list(UNTOUCHED)).max()) == 0
    assert int(data.paired_changes.sel(noise=list(NEAR_MISSES), alpha=moved).min()) > 0


def test_the_top_directions_suffice_once_they_span_the_gallery():
    gallery, queries, _ = random_classes(8, 24, 80, 3)
    counts = {}
    for r in (1, 3, 7):
        direction = sim.GapCloser(num_components=r).fit(gallery, queries).direction_
        counts[r] = np.sum(nearest_rows(gallery + direction[None, :], queries) != nearest_rows(gallery, queries))
    assert counts[7] == 0  # the rank of 8 centred rows
    assert counts[1] > 0 and counts[3] > 0


def test_noise_in_the_centred_span_is_not_noise_in_the_span(key):
    """The span of the rows holds their mean, which g' need not be orthogonal to; that of the centred rows is."""
    gallery, queries, _ = random_classes(8, 24, 80, 4)
    closer = sim.GapCloser().fit(gallery, queries)
    changes = [
        changed_decisions(
            gallery, closer.transform(gallery, 2.0), queries, noise=sim.GaussianNoise(0.2, within=rows), num_draws=8,
            key=key,
        )
        for rows in (gallery - gallery.mean(axis=0)[None, :], gallery)
    ]  # fmt: skip
    assert changes[0] == 0 and changes[1] > 0


def test_errors_over_seeds_by_hand(rng):
    values = rng.normal(size=(7, 3))
    mean, error = over_seeds(values, 10**9, paired=False)
    np.testing.assert_allclose([mean, error], [values.mean(axis=0), values.std(axis=0, ddof=1) / 7**0.5])
    level = rng.normal(size=(7, 1)) * 100  # what a seed adds to its whole curve is no uncertainty of the curve
    paired = [over_seeds(values + shift, 10**9)[1] for shift in (0.0, level)]
    np.testing.assert_allclose(*paired, rtol=1e-9)
    assert over_seeds(values + level, 10**9, paired=False)[1].min() > 10 * paired[0].max()
    # Morey's factor: with independent points the error is that of unpaired ones, on average over draws.
    many = rng.normal(size=(20_000, 3))
    np.testing.assert_allclose(over_seeds(many, 10**9)[1], 20_000**-0.5, rtol=0.03)
    np.testing.assert_array_equal(over_seeds(np.ones((7, 3)), 50)[1], 1 / 350)


def test_exact_mean_leaves_out_only_what_is_safe():
    gallery, queries, _ = random_classes(6, 24, 40, 5)
    for sigma in (0.02, 0.3):
        whole = sim.exact_robustness(gallery, queries, sigma=sigma).mean()
        assert abs(exact_mean(gallery, queries, sigma) - whole) < 1e-8
    assert exact_mean(gallery, queries, 1e-9) == 1.0


def test_trends_are_judged_where_the_exact_value_promises_enough():
    at = dict(kind=["a", "b"], alpha=[0.0, 1.0, 2.0])
    curves = lambda a, b: xr.DataArray([a, b], coords=at, dims=("kind", "alpha"))
    errors = curves([0.01, 0.01, 0.01], [0.01, 0.01, 0.02])
    which = told(curves([0.5, 0.6, 0.5], [0.5, 0.6, 0.5]), errors)  # 6 √2 · 0.01 = 0.085, 6 √2 · 0.02 = 0.17
    assert which.values.tolist() == [True, False] and untold(which) == "kind b"
    measured = curves([0.5, 0.6, 0.5], [0.6, 0.5, 0.6])
    assert trend(measured, errors, which).passes()
    assert not trend(measured, errors).passes()  # the other curve, the wrong way
    assert not trend(curves([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]), errors, which).passes()  # flat


def test_smallest_difference_by_a_loop():
    gallery = random_classes(6, 24, 2, 6)[0]
    pairs = [np.mean((gallery[i] - gallery[j]) ** 2) for i in range(6) for j in range(i)]
    np.testing.assert_allclose(smallest_difference(gallery), min(pairs) ** 0.5, rtol=1e-12)


@pytest.mark.parametrize("difference", [0.5, 0.2])
def test_variance_of_the_difference_of_two_roundings(rng, difference):
    """(q²/6)(1 − (6/π²) exp(−2π² D²/q²)): the condition of the row on quantisation. Control: independent errors."""
    x = rng.normal(size=400_000) * 3.0
    rows = np.stack([x, x + difference * rng.normal(size=x.size)])
    errors = np.asarray(sim.Quantization(24, range="fixed")(rows / 12.0)) * 12.0 - rows  # step 1
    inside = np.all(np.abs(rows) < 11.5, axis=0)
    variance = np.var((errors[0] - errors[1])[inside])
    predicted = (1 - sum(6 / (np.pi * m) ** 2 * np.exp(-2 * (np.pi * m * difference) ** 2) for m in (1, 2, 3, 4))) / 6
    np.testing.assert_allclose(variance, predicted, rtol=0.012)
    assert (abs(variance * 6 - 1) > 0.1) == (difference == 0.2)


def test_choice_of_four_against_its_exact_value():
    """The paired draws of a choice against the integral for four rows; query noise is left alone by closing."""
    galleries = [random_classes(8, 24, 12, seed) for seed in (7, 8)]
    found = choices(dataclasses.replace(QUICK, variances=(0.005, 0.022)), galleries)
    kept, error = found["choice_on_exact"][1], found["choice_draw_error"][1]
    exact = found["predicted_choice"][1]
    assert np.max(np.abs(kept - exact) / error) < 4.0
    assert np.max(np.abs(kept[:, ::-1] - exact[::-1]) / error) > 4.0  # control: the other variances
    assert np.ptp(found["choice"][1][1], axis=1).max() == 0.0


@pytest.mark.parametrize("on_one_coordinate", [False, True])
def test_random_bases_keep_every_distance(rng, on_one_coordinate):
    direction = rng.normal(size=6)
    basis = random_basis(rng, direction, on_one_coordinate=on_one_coordinate)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-13)
    image = basis @ direction
    first = [np.linalg.norm(direction), 0, 0, 0, 0, 0]
    assert np.allclose(image, first, atol=1e-12) == on_one_coordinate  # False is the control


@pytest.mark.parametrize("bounds", ["fixed", "per_dimension", "minmax"])
def test_a_gap_on_one_coordinate_leaves_quantised_decisions_alone(key, bounds):
    """The gallery is constant there, so its rounding error is the same for every row: closing gains nothing.
    Control: the [min, max] range, whose step grows with the shift."""
    gallery, queries, _ = random_classes(10, 24, 80, 5)
    closer = sim.GapCloser().fit(gallery, queries)
    basis = random_basis(np.random.default_rng(2), closer.direction_, on_one_coordinate=True)
    kept = []
    for alpha in (0.0, 1.0, 2.0):
        rows = 0.3 * closer.transform(gallery, alpha) @ basis.T
        noise = sim.Quantization(8, range=bounds)
        kept.append(sim.measured_robustness(rows, 0.3 * queries @ basis.T, noise=noise, num_draws=1, key=key).per_query)
    assert (np.array_equal(kept[0], kept[1]) and np.array_equal(kept[0], kept[2])) == (bounds != "minmax")
    assert 0.2 < kept[0].mean() < 1.0


def test_per_dimension_errors_do_not_move_with_the_gallery():
    """The errors are the same at every α, so robustness changes through their part along g' alone."""
    gallery, queries, _ = random_classes(10, 24, 80, 6)
    closer = sim.GapCloser().fit(gallery, queries)
    noise = sim.Quantization(4, range="per_dimension")
    errors = [np.asarray(noise(closer.transform(gallery, a))) - closer.transform(gallery, a) for a in (0.0, 1.0)]
    np.testing.assert_allclose(*errors, atol=1e-12)
    ahead = closer.direction_ / np.linalg.norm(closer.direction_)
    cleaned = errors[0] - (errors[0] @ ahead)[:, None] * ahead[None, :]
    answers = [nearest_rows(closer.transform(gallery, a) + cleaned, queries) for a in (0.0, 1.0)]
    np.testing.assert_array_equal(*answers)
    control = [nearest_rows(closer.transform(gallery, a) + errors[0], queries) for a in (0.0, 1.0)]
    assert not np.array_equal(*control)
