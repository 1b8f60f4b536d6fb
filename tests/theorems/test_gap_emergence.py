"""C1; the negative control of each row is judged in check_claim."""

import pytest

from tests.theorems.common import check_claim, quick_measurement


@pytest.mark.timeout(600)
def test_claim(tmp_path):
    check_claim("gap_emergence", tmp_path)


def test_both_outcomes_show_with_eight_seeds():
    data = quick_measurement("gap_emergence")[0].sel(data="synthetic").isel(step=-1)
    assert data.sizes["seed"] >= 8
    wide = data.angle.max()
    cold, hot = (data.sel(temperature=t, angle=wide) for t in (data.temperature.min(), data.temperature.max()))
    assert float(cold.gap_norm.min()) > 0.5 > 0.1 > float(hot.gap_norm.max())
    assert float(cold.defect_ratio_x.mean()) < 0.1
    assert float(cold.separability.min()) > 0.99
