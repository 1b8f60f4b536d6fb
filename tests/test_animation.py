"""The animation: what is stored, what is drawn, and that it can be drawn again without training."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageSequence

import simulator as sim
from experiments import plotting
from experiments.report import animations, stories
from simulator.storage.results import load_dataset
from tests import style_rules

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Folder of the quick form."""
    folder = tmp_path_factory.mktemp("animation")
    animations.main(folder, animations.QUICK)
    return folder


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(image)]


def test_the_quick_form_writes_frames_that_differ_and_loop(quick):
    pictures = frames(quick / "emergence.gif")
    assert len(pictures) == load_dataset(quick / "emergence.nc").sizes["step"]  # those held at the end are one
    assert all(np.abs(a - b).max() > 50 for a, b in zip(pictures[1:], pictures[:-1], strict=True))
    with Image.open(quick / "emergence.gif") as image:
        assert image.info["loop"] == 0
        assert image.width == 700


def expected(x, y, temperature: float) -> dict[str, float]:
    """Gap norm, compression and loss, written out in NumPy."""
    gap = y.mean(axis=0) - x.mean(axis=0)
    along = [np.var(rows @ gap) / (gap @ gap) / np.var(rows, axis=0).mean() for rows in (x, y)]
    logits = x @ y.T / temperature
    log_sums = np.log(np.exp(logits).sum(axis=0)), np.log(np.exp(logits).sum(axis=1))
    loss = 0.5 * (np.mean(log_sums[0]) + np.mean(log_sums[1])) - np.mean(np.diag(logits))
    gap_norm = float(np.linalg.norm(sim.gap_vector(x, y)))
    return dict(gap_norm=gap_norm, compression=float(np.mean(along)), loss=float(loss))


def near_misses(x, y, temperature: float) -> dict[str, float]:
    """Mean distance within pairs; variance along the gap over the total; one direction of the loss."""
    right, logits = expected(x, y, temperature), x @ y.T / temperature
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    distance = np.linalg.norm(y - x, axis=1).mean()
    return dict(gap_norm=float(distance), compression=right["compression"] / 3, loss=float(loss))


@pytest.mark.parametrize("folder", [None, FIGURES], ids=["quick", "stored"])
def test_the_numbers_are_those_of_the_stored_rows(folder, quick):
    data = load_dataset((folder or quick) / "emergence.nc")
    assert {"config", "commit", "versions", "precision"} <= set(data.attrs)
    for i, tau in enumerate(data.temperature.values):
        for k in (0, data.sizes["step"] // 2, -1):
            x, y = (data[m][i, k].values.astype(float) for m in "xy")
            np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
            agrees = lambda values: {n: float(data[n][i, k]) == pytest.approx(v, rel=1e-6) for n, v in values.items()}  # noqa: B023
            assert all(agrees(expected(x, y, tau)).values()), (tau, k)
            assert not any(agrees(near_misses(x, y, tau)).values()), (tau, k)


def test_the_stored_training_is_what_the_caption_says():
    data = load_dataset(FIGURES / "emergence.nc")
    steps, gap, compression = data.step.values, data.gap_norm.values, data.compression.values
    np.testing.assert_allclose(gap[:, 0], 2**0.5, rtol=0.03)  # two cones at a right angle
    at = lambda step: int(np.searchsorted(steps, step))
    assert (compression[:, at(60)] < 0.1).all()
    assert (compression[:, 0] > 0.5).all()
    assert gap[0, at(800)] > 1.0 > 0.05 > gap[1, at(800)]
    assert (gap[:, -1] < 0.1).all()
    assert (FIGURES / "emergence.gif").stat().st_size < 1_500_000
    assert len(frames(FIGURES / "emergence.gif")) == len(steps)


def test_redrawn_without_training(quick, tmp_path, monkeypatch):
    (tmp_path / "emergence.nc").write_bytes((quick / "emergence.nc").read_bytes())
    monkeypatch.setattr(animations, "train", None)
    (written,) = animations.main(tmp_path, redraw=True)
    assert written.read_bytes() == (quick / "emergence.gif").read_bytes()
    with pytest.raises(FileNotFoundError):
        animations.main(tmp_path / "empty", redraw=True)


def test_the_view_shows_the_gap_from_left_to_right(rng):
    """The axes are orthonormal; the gap points to the right and both means lie on the side that is seen."""
    for _ in range(20):
        rows = rng.normal(size=(2, 1, 3)) + 0.1 * rng.normal(size=(2, 30, 3))
        x, y = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        view = animations.view_of(x, y)
        np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
        right, up, depth = view @ (y.mean(axis=0) - x.mean(axis=0))
        assert right > 3 * abs(up)
        assert right > 2 * abs(depth)
        assert (view @ (x.mean(axis=0) + y.mean(axis=0)))[2] > 0


def test_the_story_shows_what_it_names(tmp_path):
    """Its four spheres: two cones; compressed; the gap still there at the small temperature, and closed at the large one."""
    data = load_dataset(FIGURES / "emergence.nc")
    start, flat, cold, hot = ((i, k) for i, k, _ in stories.snapshots(data))
    gap, compression = data.gap_norm.values, data.compression.values
    assert compression[flat] < 0.1 * compression[start]
    assert gap[cold] > 1.0
    assert gap[hot] < 0.02
    assert cold[1] == hot[1]
    results = {stem: load_dataset(FIGURES / f"{stem}.nc") for stem in stories.STEMS}
    with plt.style.context(plotting.STYLE):
        figure = stories.draw(results)
        assert not style_rules.complaints(figure, stories.CAPTION, xr.Dataset())
    plt.close(figure)
    written = stories.draw_all(tmp_path, FIGURES)
    assert [path.name for path in written] == ["story.pdf", "story.png"]
    with Image.open(tmp_path / "story.png") as image:
        assert image.width == 1400
    assert stories.draw_all(tmp_path, tmp_path) == []
