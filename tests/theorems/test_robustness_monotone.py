"""C4 with N4 on top; the negative control of each row is judged in test_every_claim."""

from tests.theorems.common import quick_measurement


def test_standard_errors_are_small_enough_for_the_figure():
    assert float(quick_measurement("robustness_monotone")[0].standard_error.max()) < 0.01


def test_the_gap_is_not_that_of_the_queries_asked():
    data = quick_measurement("robustness_monotone")[0]
    assert data.sizes["tower"] >= 8
    either_side = [data.exact.sel(exact_alpha=alpha) for alpha in (0.9, 1.1)]
    assert (
        float(abs(either_side[0] - either_side[1]).max()) > 1e-6
    )  # with their own gap the curve is its own mirror image
