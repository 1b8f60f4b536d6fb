"""C1; the negative control of each row is judged in test_every_claim."""

from pathlib import Path

from experiments import catalogue
from experiments.claims import gap_emergence
from simulator.storage.results import load_dataset
from tests.theorems.common import judged, quick_measurement


def test_both_outcomes_show_with_eight_seeds():
    data = quick_measurement("gap_emergence")[0].sel(data="synthetic").isel(step=-1)
    assert data.sizes["seed"] >= 8
    wide = data.angle.max()
    cold, hot = (data.sel(temperature=t, angle=wide) for t in (data.temperature.min(), data.temperature.max()))
    assert float(cold.gap_norm.min()) > 0.5 > 0.1 > float(hot.gap_norm.max())
    assert float(cold.defect_ratio_x.mean()) < 0.1
    assert float(cold.separability.min()) > 0.99


def test_every_data_set_is_judged_by_the_same_limits():
    """Digits that were not separable, or did not close, would refute; those that do not compress show the condition."""
    data = load_dataset(Path(__file__).parents[2] / "figures" / "gap_emergence.nc")
    rows = judged("gap_emergence", data)
    assert {name: row.verdict() for name, row in rows.items()} == gap_emergence.CLAIM.expected
    spoiling = {"separable": "separability", "lowest variance": "variance_along_gap_x", "closed when hot": "gap_norm"}
    for row, name in spoiling.items():
        spoilt = data.copy(deep=True)
        here = dict(data="digits", step=data.step[-1] if name == "gap_norm" else slice(1, None))
        spoilt[name].loc[here] = 0.5 if name == "separability" else 10.0
        assert judged("gap_emergence", spoilt)[row].verdict() == "refuted", name
    # At the small temperature alone: neither row's condition would show without digits.
    cold = data.sel(temperature=data.temperature[:1])
    for name in ("compressed", "global"):
        assert not rows[name].outside.passes()
        assert "digits" in rows[name].effect
        assert "digits" in rows[name].condition
        assert judged("gap_emergence", cold)[name].verdict() == "holds if"
        assert judged("gap_emergence", cold.sel(data=["synthetic"]))[name].verdict() == "holds"


def test_digits_alone_are_judged_by_what_they_can_show():
    """`gapsim run --data digits`: without pairs that can be matched the rows that assume them are refuted, and expected to be;
    synthetic pairs alone meet the claim's own verdicts."""
    data = load_dataset(Path(__file__).parents[2] / "figures" / "gap_emergence.nc")
    for name in ("digits", "synthetic"):
        lines = catalogue.judge("gap_emergence", data.sel(data=[name]), 0.0)
        assert all(map(catalogue.as_expected, lines)), name
        differ = {line["row"] for line in lines if line["verdict"] != gap_emergence.CLAIM.expected[line["row"]]}
        assert differ == ({"compressed", "global"} if name == "digits" else set())
        assert not any("synthetic" in line["condition"] + line["effect"] for line in lines if name == "digits")
