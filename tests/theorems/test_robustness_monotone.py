"""C4 with N4 on top; the negative control of each row is judged in check_claim."""

import numpy as np

from experiments.robustness_monotone import peaks_at_closure
from tests.theorems.common import check_claim, quick_measurement


def test_claim(tmp_path):
    check_claim("robustness_monotone", tmp_path)


def test_standard_errors_are_small_enough_for_the_figure():
    assert float(quick_measurement("robustness_monotone")[0].standard_error.max()) < 0.01


def test_a_curve_that_is_highest_short_of_closure_fails():
    """Eight towers of different heights and rises: a peak at 1 passes; at 0.9, a flat curve and noise do not."""
    rng, alpha = np.random.default_rng(0), np.array([0.0, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0])
    height, rise = rng.uniform(0.5, 0.7, size=(8, 1)), rng.uniform(0.1, 0.3, size=(8, 1))

    def curves(peak, size=1.0):
        return height - size * rise * (alpha[None, :] - peak) ** 2

    assert peaks_at_closure(curves(1.0), alpha).passes()
    assert not peaks_at_closure(curves(0.9), alpha).passes()
    assert not peaks_at_closure(curves(1.1), alpha).passes()
    noise = 1e-3 * rng.normal(size=(8, 7))
    assert not peaks_at_closure(curves(1.0, 0.0) + noise, alpha).passes()


def test_the_gap_is_not_that_of_the_queries_asked():
    data = quick_measurement("robustness_monotone")[0]
    assert data.sizes["tower"] >= 8
    assert (
        float(abs(data.exact.sel(exact_alpha=0.9) - data.exact.sel(exact_alpha=1.1)).max()) > 1e-6
    )  # centred on others
