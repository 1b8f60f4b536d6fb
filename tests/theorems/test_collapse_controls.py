"""C7, and how its starts and amplitudes are made."""

import numpy as np
import pytest

from experiments import collapse_controls
from simulator.theory.towers import great_circle_frames
from tests.theorems.common import check_claim


def test_claim(tmp_path):
    check_claim("collapse_controls", tmp_path)


@pytest.mark.parametrize(("shape", "rank"), [("isotropic", 16), ("collapsed", 2)])
def test_shape_of_the_tight_start(shape, rank):
    config = collapse_controls.Config(law_pairs=400)
    x, y, share = collapse_controls._tight_clusters(config, shape)
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
    control = abs(share - 1.0)  # an isotropic start has its share of 1, a collapsed one another
    assert control < 0.2 if shape == "isotropic" else control > 0.2


def test_mode_amplitudes_by_a_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 4)) + np.array([[[3.0, 0, 0, 0]], [[0, 3.0, 0, 0]]])
    frame_x, frame_y = great_circle_frames(x.mean(axis=0), y.mean(axis=0))
    common = opposite = 0.0
    for row_x, row_y in zip(x, y, strict=True):
        along_x, along_y = (row_x - x.mean(axis=0)) @ frame_x[:, 0], (row_y - y.mean(axis=0)) @ frame_y[:, 0]
        common += (along_x + along_y) ** 2 / 9
        opposite += (along_x - along_y) ** 2 / 9
    np.testing.assert_allclose(collapse_controls._mode_amplitudes(x, y), np.sqrt([common, opposite]), rtol=1e-12)
