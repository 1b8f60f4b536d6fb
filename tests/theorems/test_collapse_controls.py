"""C7, and how its starts and its trends are made."""

import numpy as np
import pytest

from experiments.claims import collapse_controls
from experiments.setups.trends import trend
from simulator.theory.towers import great_circle_frames
from tests.theorems.common import quick_measurement


def test_no_angle_turns_the_gap_back():
    data = quick_measurement("collapse_controls")[0]
    for encoder in data.encoder.values:
        gaps = data.gap_norm.isel(step=-1).sel(encoder=encoder, shape="isotropic").transpose("seed", "angle").values
        check = trend(gaps, data.angle.values, +1)
        assert check.passes()
        assert not check.perturbed().passes()


def test_starts_differ_in_their_rank_and_angle_alone():
    start = quick_measurement("collapse_controls")[0].isel(step=0)
    apart, together = (start.sel(angle=a) for a in (collapse_controls.APART, collapse_controls.TOGETHER))
    np.testing.assert_allclose(apart.gap_norm, 2**0.5, atol=1e-2)  # unit means at 90°; tightness 40 shortens them
    assert float(together.gap_norm.max()) < 2e-2
    # A collapsed start has all its variance in two directions of 32, so a random gap sees it unevenly from seed to seed.
    scatter = np.log(apart.defect_ratio_x / apart.null_defect_ratio_x).std("seed").min("encoder")
    assert float(scatter.sel(shape="collapsed")) > 2 * float(scatter.sel(shape="isotropic"))


def test_chance_is_the_gap_of_exchanged_labels(rng):
    """E G² = alignment/n when the two members of every pair are swapped by a coin; control: alignment/(n − 1)."""
    differences = rng.normal(size=(7, 3)) + 2.0
    signs = np.array(np.meshgrid(*[(-1, 1)] * 7)).reshape(7, -1)  # all 128 ways
    squared = np.mean(np.sum((signs.T @ differences / 7) ** 2, axis=1))
    alignment = np.mean(np.sum(differences**2, axis=1))
    np.testing.assert_allclose(squared, alignment / 7, rtol=1e-12)
    assert abs(squared - alignment / 6) > 0.1 * squared


@pytest.mark.parametrize(("shape", "rank"), [("isotropic", 16), ("collapsed", 2)])
def test_shape_of_the_tight_start(shape, rank):
    config = collapse_controls.Config(law_pairs=400, law_size=1e-5)
    x, y, share = collapse_controls.tight_clusters(config, shape)
    np.testing.assert_allclose([np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)], 1.0, atol=1e-14)
    means = x.mean(axis=0), y.mean(axis=0)
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    np.testing.assert_allclose(np.arccos(cosine), config.law_angle, atol=1e-4)
    spectrum = np.linalg.svd(x - means[0][None, :], compute_uv=False)
    assert np.sum(spectrum > 1e-3 * spectrum[0]) == min(rank, 15)  # unit rows have no spread towards their mean
    frames = great_circle_frames(*means)
    variances = [np.var(rows @ f, axis=0) for rows, f in zip((x, y), frames, strict=True)]
    by_hand = sum(v[0] for v in variances) / sum(v.mean() for v in variances)
    np.testing.assert_allclose(share, by_hand, rtol=1e-3)
