"""C6; the negative control of each row is judged in check_claim."""

import numpy as np
import pytest

import simulator as sim
from experiments._galleries import nearest_rows, random_classes
from experiments.gap_closing import UNTOUCHED, random_basis
from tests.theorems.common import check_claim, quick_measurement


def test_claim(tmp_path):
    check_claim("gap_closing", tmp_path)


def test_noise_that_closing_cannot_touch_keeps_its_robustness():
    data = quick_measurement("gap_closing")[0]
    for kind in UNTOUCHED:
        assert float(np.ptp(data.by_kind.sel(kind=kind).values, axis=1).max()) == 0.0
    control = data.by_kind.sel(kind="gallery")
    assert float((control.sel(alpha=1.0) - control.sel(alpha=0.0)).min()) > 0.05


def test_the_top_directions_suffice_once_they_span_the_gallery():
    data = quick_measurement("gap_closing")[0].sel(gallery="MLP towers, K = 10")
    assert int(data.changed.sel(components="16").max()) == 0  # rank 9
    control = data.changed.sel(components=["1", "4", "8"])
    assert int(control.max()) > 0


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
    along = errors[0] @ closer.direction_ / np.linalg.norm(closer.direction_)
    ahead = closer.direction_ / np.linalg.norm(closer.direction_)
    cleaned = errors[0] - along[:, None] * ahead[None, :]
    answers = [nearest_rows(closer.transform(gallery, a) + cleaned, queries) for a in (0.0, 1.0)]
    np.testing.assert_array_equal(*answers)
    control = [nearest_rows(closer.transform(gallery, a) + errors[0], queries) for a in (0.0, 1.0)]
    assert not np.array_equal(*control)
