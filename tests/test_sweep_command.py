"""`gapsim sweep`: what it refuses, what it prints, and what it says of jobs that ended early."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from experiments.__main__ import main
from experiments.commands import cluster, sweeping
from tests.processes import ENVIRONMENT, ROOT


@pytest.mark.parametrize("wrong", ["--minutes 0", "--minutes -3", "--cpus 0", "--gpus -1", "--workers -2"])
def test_jobs_that_could_not_run_are_refused_before_anything_is_submitted(tmp_path, wrong, capsys):
    (tmp_path / "grid.toml").write_text("steps = 2\n")
    store = ["--store", str(tmp_path / "s")]
    options = ["--workers", "1", "--executor", "local", *wrong.split()]
    assert main(["sweep", str(tmp_path / "grid.toml"), *store, *options]) == 2
    name, number = wrong.split()
    assert f"gapsim: {name} is {number}; it must be a whole number >= " in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_table_counts_and_leaves_out_what_diverged():
    bad_step = np.array([[-1, -1, -1], [-1, 3, -1], [0, 0, 0]])
    last = np.where(bad_step < 0, [1.0, 2.0, 3.0], np.nan)
    values = {name: (("rate", "seed", "step"), np.stack([last + 7, last], axis=-1)) for name in sweeping.NAMES}
    data = xr.Dataset(values | dict(bad_step=(("rate", "seed"), bad_step)), coords=dict(rate=[0.1, 1.0, 9.0]))
    header, *lines = sweeping.table(data).splitlines()
    assert header.endswith("finite seeds")
    assert [line.split("  ")[-1].strip() for line in lines] == ["3 of 3", "2 of 3", "0 of 3"]
    assert "2 ± 0.58" in lines[0]
    assert "2 ± 1 " in lines[1]
    assert "–" in lines[2]
    assert "finite" not in sweeping.table(data.isel(rate=[0]))


@pytest.mark.parametrize(
    ("log", "error", "says"),
    [
        ("gapsim: note: no locks\ngapsim: the disk is full\n", "died with <Signals.SIGKILL: 9>", "failed: the disk is full"),
        ("this job is timed-out.\n", "FailedJobError: Job got killed for an unknown reason.", "reached its limit of 2 minutes"),
        ("", "Command '[..]' died with <Signals.SIGKILL: 9>.", "was ended by SIGKILL (out of memory, or by hand)"),
        ("gapsim: note: no locks\n", "has not produced any output (state: FINISHED)", "was ended by a signal"),
        ("Traceback\n\nImportError: no module\n", "", "failed: ImportError: no module"),
        ("", "", "failed: it said nothing"),
    ],
)  # fmt: skip
def test_why_a_job_ended_is_one_line(log, error, says):
    assert cluster._reason(log, error, 2).startswith(says)


GRID = (
    "seeds = 8\nsteps = {steps}\nbatch_size = 16\neval_pairs = 16\neval_points = 3\n[data]\nnum_pairs = 64\n"
    '[over]\n"loss.temperature" = [0.05, 0.5]\n'
)


def begin(tmp_path, *more):
    command = [sys.executable, "-m", "experiments", "sweep", "grid.toml", "--store", "s", *more]
    return subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_of(store) -> list[int]:
    """Ids of the trainers that work on a store."""
    found = subprocess.run(
        ["pgrep", "-f", "--", f"-m experiments sweep .*--store {store}.* --quiet"], capture_output=True, text=True
    )
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", ["trainer", "job"])
def test_a_killed_job_is_one_line_and_leaves_nobody_behind(tmp_path, killed):
    (tmp_path / "grid.toml").write_text(GRID.format(steps=100_000_000))
    store = tmp_path / "s"
    process = begin(tmp_path, "--workers", "1", "--executor", "local", "--cpus", "1", "--minutes", "9")
    while process.poll() is None and not (store / "results.zarr").exists():
        time.sleep(0.1)
    (trainer,) = processes_of(store)
    job = int(re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{trainer}/status").read_text(), re.MULTILINE)[1])
    os.kill(trainer if killed == "trainer" else job, signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 2, error
    assert error.startswith("gapsim: job ")
    assert "was ended by " in error
    assert "0 of 2 chunks are stored; run the same command to continue (logs in s/.jobs)" in error
    assert error.count("\n") == 1
    while processes_of(store):  # or the time limit of this test
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_repeating_a_job_at_its_limit_makes_progress(tmp_path):
    """A chunk that needs several limits; on a busy machine starting and compiling may take all of one."""
    (tmp_path / "grid.toml").write_text(GRID.format(steps=100_000_000))
    state, steps = tmp_path / "s" / ".unfinished" / "0-0" / "run.json", []
    for _ in range(8):
        process = begin(tmp_path, "--workers", "1", "--executor", "local", "--cpus", "1", "--minutes", "1")
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2, error
        assert "reached its limit of 1 minute; 0 of 2 chunks are stored; run the same command to continue" in error
        assert error.count("\n") == 1
        if state.exists():
            steps.append(json.loads(state.read_text())["step"])
        if len(steps) > 1 and steps[-1] > steps[0]:
            break
    assert 0 < steps[0] < steps[-1]
