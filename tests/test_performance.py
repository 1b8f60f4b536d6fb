"""What the bench makes of its turns, on rates that are known; the measurement itself is `gapsim bench`."""

import numpy as np
import pytest
import xarray as xr

from experiments.bench import tables
from experiments.bench.cost_model import step_cost

TORCH = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])  # [round, turn]
TIMES = np.array([[10.0, 30.0, 10.0], [10.0, 30.0, 10.0]])  # the medians' ratio is 20, the ratios' median 10


@pytest.fixture
def data():
    columns = dict(
        engine=["torch_loop", "gapsim", "gapsim", "gapsim"], data=["fixed", "fixed", "fixed", "fresh"],
        replicas=[1.0, 64.0, 256.0, 64.0], n=[64.0] * 4, d=[32.0] * 4, group=[64.0] * 4, setting=[""] * 4, peak_bytes=[1.0] * 4,
    )  # fmt: skip
    own = TORCH * TIMES
    products = 4 * own * step_cost(64, 32).flops
    return xr.Dataset(
        dict(
            rates=(("row", "round", "turn"), np.array([TORCH, own, 0.8 * own, 0.9 * own])),
            machine=(("machine_group", "rate", "round", "turn"), products[None, None]),
            **{name: ("row", values) for name, values in columns.items()},
        ),
        coords=dict(machine_group=[64.0], rate=["matmul 2048"]),
    )


def test_ratios_are_taken_turn_by_turn(data):
    row = next(r for r in tables.rows(data) if (r["replicas"], r["data"]) == (64, "fixed"))
    assert [row[name] for name in ("ratio_torch", "ratio_torch_low", "ratio_torch_high")] == [10, 10, 10]
    assert np.median(TORCH * TIMES) / np.median(TORCH) == 20  # the near miss
    assert row["matmul_fraction"] == pytest.approx(0.25)


def test_costs_of_more_replicas_and_of_fresh_pairs(data):
    assert tables.costs_of_256(data)[64] == pytest.approx((1.25,) * 3)
    assert tables.stream_shares(data)[64] == pytest.approx((0.1,) * 3)


def test_spread_is_over_rounds():
    assert tables.spread([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]) == (3.5, 2.0, 4.0)
