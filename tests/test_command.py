"""The command `gapsim`, run as a user runs it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from simulator.storage.results import load_dataset, save_dataset


@pytest.fixture
def files(tmp_path, rng):
    x = rng.normal(size=(20, 6))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x + 0.1 * rng.normal(size=(20, 6)) + 1.0)
    return tmp_path


def test_diagnose_prints_and_writes(files, capsys):
    np.save(files / "labels.npy", np.arange(20))
    assert main([
        "diagnose", str(files / "x.npy"), str(files / "y.npy"), "--paired", "--labels", str(files / "labels.npy"),
        "--temperature", "0.1", "--sigma", "0.1", "--json", str(files / "out.json"),
    ]) == 0  # fmt: skip
    assert "gap_norm" in capsys.readouterr().out
    result = json.loads((files / "out.json").read_text())
    assert result["gap_norm"] == pytest.approx(6**0.5, rel=0.05)
    assert 0 < result["robustness_open"] <= 1


def test_equal_row_counts_do_not_imply_a_pairing(files, capsys):
    assert main(["diagnose", str(files / "x.npy"), str(files / "y.npy"), "--json", str(files / "out.json")]) == 0
    assert json.loads((files / "out.json").read_text())["recall_at_1_yx"] is None


def test_diagnose_clip(real_data, capsys, tmp_path):
    arguments = ["diagnose", str(real_data / "clip_gallery.npy"), str(real_data / "clip_queries.npy"), "--paired"]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert round(result["gap_norm"], 3) == 0.851
    assert round(result["recall_at_1_yx"], 2) == 0.55
    assert round(result["defect_ratio_x"], 1) == 3.4
    assert round(result["defect_ratio_y"], 1) == 2.5


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda f: (f / "x.npy").unlink(), [], "does not exist"),
        (lambda f: (f / "x.npy").write_bytes(b"\x93NUMPY\x01"), [], "not a readable"),
        (lambda f: np.save(f / "x.npy", np.array([{}], object), allow_pickle=True), [], "not a readable"),
        (lambda f: np.save(f / "x.npy", np.ones(6)), [], "shape"),
        (lambda f: np.save(f / "x.npy", np.ones((0, 6))), [], "shape"),
        (lambda f: np.save(f / "x.npy", np.ones((4, 5))), [], "dimensions"),
        (lambda f: np.save(f / "x.npy", np.full((4, 6), np.nan)), [], "NaN"),
        (lambda f: np.save(f / "x.npy", np.ones((4, 6))), ["--paired"], "pair"),
        (lambda f: np.save(f / "x.npy", np.zeros((4, 6))), ["--normalize"], "no direction"),
        (lambda f: None, ["--temperature", "-1"], "temperature is -1"),
        (lambda f: None, ["--sigma", "0"], "sigma"),
        (lambda f: (f / "l.txt").write_text("99 " * 20), ["--labels", "l.txt"], "label 99"),
        (lambda f: (f / "l.txt").write_text("1 2"), ["--labels", "l.txt"], "labels have shape"),
    ],
)
def test_bad_input_gives_one_clear_line(files, spoil, options, words, capsys, monkeypatch):
    monkeypatch.chdir(files)
    spoil(files)
    assert main(["diagnose", "x.npy", "y.npy", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("gapsim: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "-1"], "--workers is -1; it must be a whole number >= 0"),
        (["--workers", "2"], "there is no Slurm here; --executor local runs the jobs on this machine"),
    ],
)
def test_jobs_that_cannot_be_submitted(tmp_path, options, words):
    (tmp_path / "grid.toml").write_text("steps = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "sweep", str(tmp_path / "grid.toml"), "--store", str(tmp_path / "s"), *options],
        capture_output=True, text=True, env=os.environ | {"PATH": str(tmp_path)},  # no srun
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("gapsim: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_claim_field_and_empty_folder(tmp_path, capsys):
    assert main(["verify", "C99"]) == 2
    assert "there is no claim 'C99'" in capsys.readouterr().err
    assert main(["figures", "--out", str(tmp_path)]) == 2
    assert "no stored results" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["run", "--colour", "red"])
    assert stop.value.code != 0


def test_list_names_every_claim(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for words in ("C1", "gap_emergence", "C4", "robustness_monotone", "C5", "clean_invariance"):
        assert words in out


def test_figures_redraws_the_same_bytes(tmp_path):
    shutil.copy(Path(__file__).parents[1] / "figures" / "clean_invariance.nc", tmp_path)
    assert main(["figures", "C5", "--out", str(tmp_path)]) == 0
    first = [(tmp_path / f"clean_invariance.{s}").read_bytes() for s in ("pdf", "png")]
    assert main(["figures", "C5", "--out", str(tmp_path)]) == 0
    assert first == [(tmp_path / f"clean_invariance.{s}").read_bytes() for s in ("pdf", "png")]


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["verify"], ["list"], ["figures"], ["report"], ["diagnose"], ["close"], ["sweep"], ["bench"]],
)
def test_help_imports_nothing_heavy(command):
    """Neither JAX nor flax nor xarray: --help answers at once."""
    script = (
        "import sys; from experiments.__main__ import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'flax', 'xarray', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout or not command


@pytest.mark.parametrize("command", ["--help", "run --help", "list"])
def test_a_reader_that_stops_early_is_no_error(command):
    """`gapsim --help | head -1`: not a word on standard error, whenever the pipe closes."""
    program = f"{sys.executable} -m experiments {command}"
    done = subprocess.run(
        ["bash", "-c", f"{program} | head -c 1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert len(done.stdout) == 1
    closed = subprocess.run(
        ["bash", "-c", f"{program} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=120
    )
    assert closed.stderr == ""
    assert {done.returncode, closed.returncode} <= {0, 141}


STORED = Path(__file__).parents[1] / "figures"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A current folder with published results, as in a clone, and a listing of what lies in it."""
    (tmp_path / "figures").mkdir()
    shutil.copy(STORED / "clean_invariance.nc", tmp_path / "figures")
    monkeypatch.chdir(tmp_path)
    return lambda: {str(p.relative_to(tmp_path)): p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("figures C5", "results"), ("figures", "results"), ("report", "results"), ("report --results figures", "results"),
        ("figures C5 --out figures", "figures"), ("report --out other", "other"),
    ],
)  # fmt: skip
def test_published_figures_change_only_where_that_is_said(clone, words, folder):
    before = clone()
    assert main(words.split()) == 0
    new = {name for name in clone() if name not in before}
    assert new and {Path(name).parts[0] for name in new} == {folder}
    assert {name: time for name, time in clone().items() if name in before} == before


def test_what_a_run_has_left_is_drawn_rather_than_what_is_published(clone, capsys):
    data = load_dataset(Path("figures") / "clean_invariance.nc")
    save_dataset(data, Path("results") / "clean_invariance.nc")
    Path("figures/clean_invariance.nc").write_bytes(b"not to be read")
    assert main(["figures", "C5"]) == main(["report"]) == 0
    for words in ("figures C5 --results figures", "figures C1"):  # damaged; not there
        assert main(words.split()) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("good", [True, False])
def test_the_main_job_writes_to_results_and_ends_with_its_verdict(clone, good, monkeypatch, capsys):
    """With stored measurements in place of the training; a claim whose control is not rejected is named."""
    from experiments import catalogue
    from experiments.report import pages

    asked = []

    def measured(stem, *, quick, out, config, progress=True):
        asked.append((stem, quick, out, config.data))
        data = load_dataset(STORED / f"{stem}.nc")
        save_dataset(data, out / f"{stem}.nc")
        return data, 1.0

    judge = catalogue.judge
    monkeypatch.setattr(catalogue, "run", measured)
    monkeypatch.setattr(pages, "build", lambda results, out: out / "index.html")
    if not good:
        monkeypatch.setattr(
            catalogue,
            "judge",
            lambda *a: [r | dict(control_rejected=r["stem"] != "clean_invariance") for r in judge(*a)],
        )
    before = clone()
    assert main(["run"]) == (0 if good else 1)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        "every verdict is as expected and every control is rejected" if good else "NOT as expected: C5 clean_invariance"
    )
    assert asked == [(stem, False, Path("results"), "both") for stem in catalogue.MAIN_JOB]
    assert {name: time for name, time in clone().items() if name.startswith("figures")} == before


def test_a_quick_main_job_has_small_settings(monkeypatch, clone, capsys):
    from experiments import catalogue

    asked = []

    def measured(stem, *, quick, out, config, progress=True):
        asked.append((catalogue.load(stem).QUICK, config))
        raise ValueError("enough")

    monkeypatch.setattr(catalogue, "run", measured)
    assert main(["run", "--quick"]) == main(["run", "--quick", "--data", "digits"]) == 2
    assert len(asked) == 1  # few steps do not show on digits what C1 says of them
    assert asked[0][0] == asked[0][1]
    assert "--quick trains too few steps" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_bench_leaves_the_figures_alone(quick, monkeypatch, tmp_path):
    from experiments.bench import tables, turns

    stored = []
    monkeypatch.setattr(turns, "run", lambda **_: "rates")
    monkeypatch.setattr(tables, "render", lambda data: data)
    monkeypatch.setattr(tables, "store", lambda data, out: stored.append((data, out)))
    assert main(["bench", "--out", str(tmp_path), *(["--quick"] if quick else [])]) == 0
    assert stored == ([] if quick else [("rates", tmp_path)])
