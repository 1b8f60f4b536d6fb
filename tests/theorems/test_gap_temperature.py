"""P3; the negative control of each row is judged in test_every_claim."""

import dataclasses

import numpy as np
import pytest

from experiments.claims import gap_temperature
from experiments.setups.trends import trend
from simulator.storage.results import load_dataset
from tests.theorems.common import FIGURES, quick_measurement


@pytest.mark.slow
def test_phases_start_where_they_should():
    """Scratch: the towers' own gap, the same at every temperature; cones: 90° apart; fine-tuning: where the coldest
    run from the cones ended."""
    data = quick_measurement("gap_temperature")[0].transpose("phase", "temperature", "seed", "step", ...)
    scratch, cones, tuned = (data.gap.sel(phase=phase) for phase in gap_temperature.PHASES)
    np.testing.assert_allclose(scratch[:, :, 0], np.tile(scratch[0, :, 0], (data.sizes["temperature"], 1)), rtol=1e-5)
    np.testing.assert_allclose(cones[:, :, 0], 2**0.5, rtol=0.02)
    assert float(abs(scratch[0, :, 0] - 2**0.5).min()) > 0.05
    coldest = int(np.argmin(data.temperature.values))
    for i in range(data.sizes["temperature"]):
        np.testing.assert_allclose(tuned[i, :, 0], cones[coldest, :, -1], rtol=1e-3)


def test_the_trend_is_not_one_of_a_single_seed():
    """It is shown without any one of them; the control is one seed's fall among seeds without one."""
    data = load_dataset(FIGURES / "gap_temperature.nc").isel(step=-1).transpose("phase", "seed", "temperature", ...)
    for phase in gap_temperature.PHASES:
        gap = data.gap.sel(phase=phase).values
        for seed in range(len(gap)):
            assert trend(np.delete(gap, seed, axis=0), data.temperature.values, -1).passes()
            alone = np.where(np.arange(len(gap))[:, None] == seed, gap, gap[:, -1:])
            assert not trend(alone, data.temperature.values, -1).passes()


def test_full_settings_are_larger():
    quick, full = gap_temperature.QUICK, gap_temperature.Config()
    assert full.seeds > quick.seeds
    assert full.steps > quick.steps
    assert set(quick.temperatures) <= set(full.temperatures)
    shared = {name: getattr(full, name) for name in ("temperatures", "seeds", "peak_seeds", "steps", "eval_points")}
    assert dataclasses.replace(quick, **shared) == full
