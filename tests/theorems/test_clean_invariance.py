"""C5 and the exact controls of C6; the negative control of each row is judged in test_every_claim."""

from tests.theorems.common import quick_measurement


def test_controls_change_decisions_and_exact_noises_none():
    data = quick_measurement("clean_invariance")[0]
    moved = data.where(data.alpha != 0, drop=True).sel(gallery="random")
    for control in ("independent", "orthogonal to g", "uncentred span"):
        assert int(moved.changed.sel(noise=control).min()) > 0
    for exact in ("queries", "shared", "orthogonal to g'", "centred span"):
        assert int(data.changed.sel(noise=exact).max()) == 0
