"""`gapsim diagnose`: its numbers against `measure_gap`, subsets against the whole, and what it says to bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import simulator as sim
from experiments.__main__ import main
from experiments.commands import diagnosis
from experiments.plotting import save_figure
from experiments.report import diagnosis_page
from simulator.storage import embeddings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_blocks(monkeypatch):
    """Sixty rows are several blocks of values and several tiles of scores."""
    monkeypatch.setattr(embeddings, "BLOCK_VALUES", 60)
    monkeypatch.setattr(diagnosis, "TILE", 11)


def pair(rng, n=64, d=6):
    x = rng.normal(size=(n, d)) * np.linspace(0.3, 1.5, d) + np.linspace(0, 2, n)[:, None]
    return x, x + 0.4 * rng.normal(size=(n, d)) + 1.0


def save(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in arrays]


def test_paired_rows_in_blocks_give_measure_gap(tmp_path, rng, small_blocks):
    x, y = pair(rng)
    found = diagnosis.diagnose(*save(tmp_path, x=x, y=y), paired=True, temperature=0.2)
    for name, value in dataclasses.asdict(sim.measure_gap(x, y, temperature=0.2)).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
    assert found["sampled"] == {}


def test_queries_in_blocks_without_pairs(tmp_path, rng, small_blocks):
    """Unequal counts, unit rows, labels, robustness and α* against the library on whole arrays."""
    x, y = pair(rng)
    x = x[:5]
    labels = np.arange(64) % 5
    files = save(tmp_path, x=x, y=y, labels=labels)
    found = diagnosis.diagnose(*files[:2], labels=files[2], normalize=True, temperature=0.2, sigma=0.1)
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    for name, value in dataclasses.asdict(sim.measure_gap(x, y, temperature=0.2, paired=False)).items():
        if np.isnan(value):
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
    nearest = np.argmin(((x[:, None] - y[None]) ** 2).sum(-1), axis=0)
    assert found["accuracy"] == np.mean(nearest == labels)
    closer = sim.GapCloser().fit(x, y)
    share = closer.direction_ @ closer.direction_ / (closer.gap_ @ closer.gap_)
    assert found["complement_share"] == pytest.approx(share, rel=1e-9)
    for name, q in (("min", 0), ("q25", 0.25), ("median", 0.5), ("max", 1)):
        assert found[f"alpha_star_{name}"] == pytest.approx(np.quantile(closer.alpha_star_, q), rel=1e-9)
    assert np.mean(closer.alpha_star_) == pytest.approx(1.0)  # near misses would be g for g', the midpoint for μ_x
    for name, alpha in (("open", 0.0), ("closed", 1.0)):
        exact = sim.exact_robustness(closer.transform(x, alpha), y, sigma=0.1)
        assert found[f"robustness_{name}"] == pytest.approx(exact.mean(), rel=1e-9)
    assert found["robustness_gain"] == pytest.approx(found["robustness_closed"] - found["robustness_open"])
    assert found["sampled"] == {}


@pytest.mark.parametrize("rank", [4, 6])
def test_a_gallery_with_more_rows_than_dimensions(tmp_path, rng, rank, small_blocks):
    """The complement through the triangular factor equals that of an SVD of all rows; at full rank nothing is left."""
    x, y = pair(rng)
    x = (x - x.mean(0)) @ np.diag([1, 1, 1, 1e-9, 0, 0] if rank == 4 else [1] * 6) + 0.5
    found = diagnosis.diagnose(*save(tmp_path, x=x, y=y), sigma=0.2)
    closer = sim.GapCloser().fit(x, y)
    assert found["gallery_rank"] == rank
    wanted = closer.direction_ @ closer.direction_ / (closer.gap_ @ closer.gap_)
    assert found["complement_share"] == pytest.approx(wanted, rel=1e-6)
    assert ("Nothing to move" in " ".join(found["summary"])) == (rank == 6)
    if rank == 6:
        assert found["complement_share"] == found["robustness_gain"] == 0.0
        assert "--rule compensated" in " ".join(found["summary"])
        assert "alpha_star_min" not in found


@pytest.mark.slow
def test_subsets_are_named_and_agree_with_the_whole_within_their_errors(tmp_path, rng, monkeypatch):
    x, y = pair(rng, n=600)
    x[::2] += rng.normal(size=(300, 6))
    files = save(tmp_path, x=x, y=y, labels=np.arange(600))
    options = dict(paired=True, labels=files[2], temperature=0.3)
    whole = diagnosis.diagnose(*files[:2], **options)
    assert whole["sampled"] == {}
    monkeypatch.setattr(diagnosis, "LARGEST_PRODUCT", 0)
    monkeypatch.setattr(diagnosis, "ROBUSTNESS_ROWS", 40)
    found = diagnosis.diagnose(*files[:2], **options, subset=240, sigma=0.3)
    names = ("uniformity_x", "uniformity_y", "recall_at_1_xy", "recall_at_1_yx", "accuracy")
    for name in names:
        assert found["sampled"][name]["rows"] == 240
        assert found["sampled"][name]["of"] == 600
        error = found["sampled"][name]["standard_error"]
        assert 0 < abs(found[name] - whole[name]) < 4 * error, name
        assert error < (0.2 if "uniformity" in name else 0.04)  # a share: below ½/√240
    # The softmax of a batch is not that of all rows: judged against batches drawn here.
    batches = [rng.choice(600, 30, replace=False) for _ in range(60)]
    for name in ("marginal_error_x", "marginal_error_y"):
        part = found["sampled"][name]
        assert (part["rows"], part["batches"]) == (30, 8)
        values = [float(getattr(sim.measure_gap(x[b], y[b], temperature=0.3), name)) for b in batches]
        error = np.hypot(part["standard_error"], np.std(values) / 60**0.5)
        assert abs(found[name] - np.mean(values)) < 4 * error
    assert found["sampled"]["robustness_open"]["rows"] == 40
    table = diagnosis_page.render(found)
    assert "240 of 600" in table
    assert "8 batches of 30 of 600" in table
    # Exact numbers stay exact, and another seed gives other rows.
    assert found["gap_norm"] == whole["gap_norm"]
    assert diagnosis.diagnose(*files[:2], subset=240, seed=1)["uniformity_y"] != found["uniformity_y"]


@pytest.mark.parametrize("name", ["x.npz:texts", "x.safetensors", "x.parquet:clip"])
def test_every_format_from_the_command_line(tmp_path, rng, name, capsys):
    from tests.test_embeddings import safetensors, write_parquet

    x, y = (rows.astype(np.float32) for rows in pair(rng))
    save(tmp_path, x=x, y=y)
    np.savez(tmp_path / "x.npz", texts=x, other=y)
    safetensors.save_file({"clip": x}, tmp_path / "x.safetensors")
    write_parquet(tmp_path / "x.parquet", x)
    found = []
    for file in ("x.npy", name):
        arguments = [f"{tmp_path}/{file}", f"{tmp_path}/y.npy", "--json", f"{tmp_path}/out.json"]
        assert main(["diagnose", *arguments]) == 0
        found.append(json.loads((tmp_path / "out.json").read_text()) | dict(gallery=None))
    assert found[0] == found[1]


def test_repeated_rows_are_a_warning_that_counts_them(tmp_path, rng, capsys):
    x, y = pair(rng, n=20)
    x[[3, 9, 17]] = x[0]
    assert main(["diagnose", *map(str, save(tmp_path, x=x, y=y)), "--normalize"]) == 0
    error = capsys.readouterr().err
    assert "warning:" in error
    assert "x.npy: 3 of 20 rows repeat an earlier row" in error
    assert error.count("\n") == 1


def test_lengths_that_differ_are_a_warning(tmp_path, rng):
    x, y = pair(rng, n=20)
    files = save(tmp_path, x=x, y=y)
    assert "--normalize" in diagnosis.diagnose(*files)["warnings"][0]
    assert diagnosis.diagnose(*files, normalize=True)["warnings"] == []


def test_a_gallery_too_large_for_the_exact_robustness_is_a_warning(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(diagnosis, "LARGEST_ROBUST_GALLERY", 19)
    found = diagnosis.diagnose(*save(tmp_path, **dict(zip("xy", pair(rng, n=20), strict=True))), sigma=0.1)
    assert "robustness_open" not in found
    assert "up to 19 rows and this one has 20" in found["warnings"][-1]


@pytest.mark.parametrize("case", ["full", "bare", "no gap"])
def test_the_page_shows_what_there_is(tmp_path, rng, case):
    x, y = pair(rng)
    files = save(tmp_path, x=x[:5], y=x[:5] if case == "no gap" else y, labels=np.arange(64) % 5)
    options = dict(labels=files[2], sigma=0.1, subset=30) if case == "full" else {}
    result = diagnosis.diagnose(*files[:2], **options)
    written = save_figure(diagnosis_page.draw, result, tmp_path / "page")
    assert [path.name for path in written] == ["page.pdf", "page.png"]
    assert b"/Count 1" in written[0].read_bytes()
    assert all(path.stat().st_size > 10_000 for path in written)
    shown = " ".join(result["summary"])
    assert ("there is no gap" in shown) == (case == "no gap")
    json.dumps(result, allow_nan=False)


def test_a_killed_run_leaves_the_old_file(tmp_path, rng):
    """SIGKILL at the last moment: the numbers are in place, the page is drawn but not yet."""
    save(tmp_path, **dict(zip("xy", pair(rng, n=20), strict=True)))
    for name in ("out.json", "page.pdf"):
        (tmp_path / name).write_text("old")
    script = (
        "import os, signal; from experiments.__main__ import main\n"
        "rename = os.replace\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = lambda draft, path: kill() if str(path).endswith('pdf') else rename(draft, path)\n"
        "main(['diagnose', 'x.npy', 'y.npy', '--json', 'out.json', '--page', 'page.pdf'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["gallery_rows"] == 20
    assert (tmp_path / "page.pdf").read_text() == "old"
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")] == [".pdf"]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_gap_of_rounding_size_is_no_gap(tmp_path, rng, normalize, capsys, monkeypatch):
    """Mean-centred float32 files: null, not α* of ± 10⁷, and said in words; also what `close` wrote, kept in float32."""
    monkeypatch.chdir(tmp_path)
    x, y = rng.normal(size=(20, 64)).astype("f4") + 1, rng.normal(size=(500, 64)).astype("f4") + 1
    if normalize:  # rows and their opposites: centred after scaling too
        x, y = (np.concatenate([r, -r]) for r in (x, y))
    save(tmp_path, x=x - x.mean(0), y=y - y.mean(0))
    found = diagnosis.diagnose("x.npy", "y.npy", normalize=normalize, sigma=0.2)
    assert 0 <= found["gap_norm"] < found["gap_floor"] < 1e-4 * (1 if normalize else 8)
    assert not any(name.startswith("alpha_star") for name in [*found, *found["curves"]])
    names = [
        "complement_share",
        *(f"{n}_{m}" for n in ("variance_along_gap", "defect_ratio", "span_fraction") for m in "xy"),
    ]
    assert [found[name] for name in names] == [None] * 7
    assert found["null_defect_ratio_x"] > 0
    assert found["robustness_closed"] == found["robustness_open"]
    said = " ".join(found["summary"])
    assert "there is no gap" in said
    assert "rounding of the stored rows alone makes up to" in said
    save_figure(diagnosis_page.draw, found, tmp_path / "page")
    options = ["--out", "o.npz"] + ["--normalize"] * normalize
    assert main(["close", "x.npy", "y.npy", *options]) == 2
    assert "there is no gap to close: the two means lie" in capsys.readouterr().err
    assert main(["close", "x.npy", "y.npy", *options, "--rule", "centred", "--alpha", "best", "--sigma", ".2"]) == 0


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_what_was_closed_and_stored_again_has_no_gap_left_to_close(tmp_path, rng, dtype):
    x, y = rng.normal(size=(12, 40)).astype(dtype), (rng.normal(size=(300, 40)) + 0.7).astype(dtype)
    closed = sim.GapCloser().fit(x, y).transform(x, 1.0).astype(dtype)
    open_, found = (diagnosis.diagnose(*save(tmp_path, x=rows, y=y)) for rows in (x, closed))
    assert open_["complement_share"] > 0.5
    assert found["gap_norm"] > found["gap_floor"]  # what lies in the span of the gallery
    assert found["complement_share"] == 0.0
    assert "alpha_star_min" not in found


def test_copies_are_one_answer(tmp_path, rng, monkeypatch):
    """COCO's files, every image once for each of its captions; the same caption embedded twice; subsets as the whole."""
    images = rng.normal(size=(20, 16))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    captions = np.repeat(images, 5, axis=0) + 0.02 * rng.normal(size=(100, 16))
    near = np.repeat(images, 5, axis=0) + 1e-7 * rng.normal(size=(100, 16))
    for case, gallery in (("images", np.repeat(images, 5, axis=0)), ("near", near)):
        for dtype in ("f8", "f4"):
            files = save(tmp_path, x=gallery.astype(dtype), y=captions.astype(dtype), labels=np.arange(100))
            for limit in (1e13, 0):
                monkeypatch.setattr(diagnosis, "LARGEST_PRODUCT", limit)
                found = diagnosis.diagnose(*files[:2], paired=True, labels=files[2], subset=60)
                assert [found[f"recall_at_1_{way}"] for way in ("xy", "yx")] == [1.0, 1.0]
                assert found["accuracy"] == 1.0
            up_to = " (80 of them only up to rounding)" if case == "near" else ""
            said = f"x.npy: 80 of 100 rows repeat an earlier row{up_to}; equal rows count as one answer"
            assert any(said in words for words in found["warnings"])
    options = dict(sigma=0.02)
    once, often = (diagnosis.diagnose(*save(tmp_path, x=rows, y=captions), **options) for rows in (images, near))
    assert once["robustness_open"] > 0.9  # that of the row, not a fifth of it
    assert abs(once["robustness_open"] - often["robustness_open"]) < 0.05
    wrong = save(tmp_path, x=np.roll(near, 5, axis=0), y=captions)  # another image's copies are no partner
    assert diagnosis.diagnose(*wrong, paired=True)["recall_at_1_yx"] == 0.0


# One million queries.

NUM_QUERIES, NUM_CLASSES, DIMENSIONS = 10**6, 1000, 512
WRONG = 7  # every seventh query looks like the next class
LIMIT = 2 * 2**30  # bytes

MEASURED = """
import resource, sys
from experiments.commands import diagnosis
from experiments.report import diagnosis_page
from experiments.__main__ import main
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
imported = status("VmHWM")
code = main(sys.argv[1:])
spent = resource.getrusage(resource.RUSAGE_SELF)
print("MEASURED", code, imported, status("VmHWM"), spent.ru_utime + spent.ru_stime)
"""


def write_million(folder, rng):
    """Unit-scale classes and queries = class + gap + noise, in float32; what is written is also summed, in float64.

    Returns the sums that the test compares with: mean of the queries and Σ (first coordinate)².
    """
    prototypes = (rng.normal(size=(NUM_CLASSES, DIMENSIONS)) / DIMENSIONS**0.5).astype(np.float32)
    labels = np.arange(NUM_QUERIES) % NUM_CLASSES
    save(folder, classes=prototypes, labels=labels)
    total, squares = np.zeros(DIMENSIONS), 0.0
    with (folder / "queries.npy").open("wb") as file:
        header = dict(descr="<f4", fortran_order=False, shape=(NUM_QUERIES, DIMENSIONS))
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, NUM_QUERIES, 20_000):
            row = np.arange(first, first + 20_000)
            rows = 0.01 * rng.standard_normal((20_000, DIMENSIONS), dtype=np.float32)
            rows += prototypes[(labels[row] + (row % WRONG == 0)) % NUM_CLASSES]
            rows[:, 0] += 0.8
            file.write(rows.tobytes())
            total += rows.sum(axis=0, dtype=float)
            squares += np.sum(rows[:, 0].astype(float) ** 2)
    return prototypes.astype(float), total / NUM_QUERIES, squares / NUM_QUERIES


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which Linux has")
def test_a_million_queries_in_bounded_memory(tmp_path, rng):
    """2 GB of queries: below 2 GiB of resident memory at its peak (mapped pages included), with progress, and right."""
    import shutil

    if shutil.disk_usage(tmp_path).free < 4 * 2**30:
        pytest.skip(f"{tmp_path} has less than 4 GiB free")
    prototypes, mean, square = write_million(tmp_path, rng)
    command = [
        sys.executable, "-c", MEASURED, "diagnose", "classes.npy", "queries.npy", "--labels", "labels.npy",
        "--temperature", "0.01", "--sigma", "0.01", "--json", "out.json", "--page", "page.pdf",
    ]  # fmt: skip
    place = dict(
        cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with subprocess.Popen(command, text=True, **place) as stopped:
        time.sleep(10)
        stopped.kill()
    assert not list(tmp_path.glob("out.json")) + list(tmp_path.glob("page.*")) + list(tmp_path.glob(".*"))

    done = subprocess.run(command, text=True, **place)
    assert done.returncode == 0, done.stderr
    code, imported, peak, seconds = done.stdout.split("MEASURED ")[1].split()
    print(f"peak {int(peak) / 2**20:.0f} MiB, of which imports {int(imported) / 2**20:.0f}; {float(seconds):.0f} CPU s")
    assert code == "0"
    assert int(peak) < LIMIT
    assert int(peak) - int(imported) < 500 * 2**20
    assert "queries: moments" in done.stderr

    result = json.loads((tmp_path / "out.json").read_text())
    gap = mean - prototypes.mean(axis=0)
    np.testing.assert_allclose(result["gap_norm"], np.linalg.norm(gap), rtol=1e-10)
    assert result["gap_norm"] == pytest.approx(0.8, abs=0.01)
    right = 1 - -(-NUM_QUERIES // WRONG) / NUM_QUERIES
    assert result["accuracy"] == right  # the noise is far too small to change an answer
    assert result["query_rows"] == NUM_QUERIES
    assert (result["gallery_rank"], result["complement_share"], result["robustness_gain"]) == (DIMENSIONS, 0.0, 0.0)
    direction = gap / np.linalg.norm(gap)
    along = np.mean(((prototypes - prototypes.mean(0)) @ direction) ** 2)
    np.testing.assert_allclose(result["variance_along_gap_x"], along, rtol=1e-9)
    # ĝ is within 1 % of the first axis, along which the variance was summed while writing.
    assert result["variance_along_gap_y"] == pytest.approx(square - mean[0] ** 2, rel=0.1)
    assert set(result["sampled"]) == {"uniformity_y", "robustness_open", "robustness_closed"}
    assert result["sampled"]["robustness_open"]["rows"] == 500
    assert (tmp_path / "page.png").stat().st_size > 10_000
