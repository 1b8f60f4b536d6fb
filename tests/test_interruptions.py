"""Sweeps in processes that are killed, stopped, share a store or fill the disk: the same numbers in the end."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import simulator as sim
from tests.processes import ENVIRONMENT, ROOT, assert_equal, finish, load

# Two groups (batch sizes) of 3 temperatures times the seeds, on one device.
SCRIPT = """
import sys, jax, numpy as np, simulator as sim
experiment = sim.Experiment(
    data=sim.LatentPairs(64, latent_dim=4, dim_x=8, dim_y=8), encoder_x=sim.MLP(8, embed_dim=8),
    encoder_y=sim.MLP(8, embed_dim=8), batch_size=16, steps={steps}, eval_pairs=32, eval_points=4,
)
over = {{"loss.temperature": [0.05, 0.1, 0.5], "batch_size": [16, 32]}}
data = sim.sweep(experiment, over=over, seeds={seeds}, key=jax.random.key(0), store={store!r})
np.savez(sys.argv[1], **{{name: value.values for name, value in data.items()}})
"""


def start(tmp_path, store, *, steps=200, seeds=2, name="out"):
    code = SCRIPT.format(store=None if store is None else str(store), steps=steps, seeds=seeds)
    command = [sys.executable, "-c", code, str(tmp_path / f"{name}.npz")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def chunks_done(store) -> int:
    """Counted from the files, as a killed process left them."""
    return len([p for p in store.glob("done/*") if not p.name.startswith(".")])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    """SIGKILL between the making of the store and its end, at least 20 times and 10 of them between the first and the last
    `done`; prints how many chunks were done at each."""
    long = dict(seeds=40, steps=1000)
    finish(start(tmp_path, None, name="whole", **long))
    finish(start(tmp_path, tmp_path / "once", name="once", **long))
    whole, total = load(tmp_path, "whole"), chunks_done(tmp_path / "once")
    assert total >= 20
    assert_equal(load(tmp_path, "once"), whole)
    rng = np.random.default_rng()
    counts, rounds, store = [], 0, tmp_path / "s0"
    while len(counts) < 20 or sum(0 < c < total for c in counts) < 10:
        assert len(counts) < 120, counts
        before = chunks_done(store)
        process = start(tmp_path, store, name="killed", **long)
        # Wait until it works on the chunks, then a random moment of a few chunks' length.
        while process.poll() is None and chunks_done(store) == before and rng.random() > 0.003:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        process.communicate()
        counts.append(chunks_done(store))
        if counts[-1] == total:
            rounds += 1
            finish(start(tmp_path, store, name="resumed", **long))
            assert_equal(load(tmp_path, "resumed"), whole)
            store = tmp_path / f"s{rounds}"
    print(f"killed {len(counts)} times; chunks done of {total} at each: {counts}")
    finish(start(tmp_path, store, name="resumed", **long))
    assert_equal(load(tmp_path, "resumed"), whole)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_continue(tmp_path):
    """SIGINT to `gapsim sweep` while chunks are being trained; the same command then ends as if nothing had happened."""
    (tmp_path / "grid.toml").write_text(
        "seeds = 16\nsteps = 3000\nbatch_size = 16\neval_pairs = 16\neval_points = 3\n[data]\nnum_pairs = 64\n"
        '[over]\n"loss.temperature" = [0.05, 0.1, 0.5]\n'
    )
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}

    def begin(store):
        command = [sys.executable, "-m", "experiments", "sweep", "grid.toml", "--store", store]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    process = begin("s")
    while process.poll() is None and not chunks_done(tmp_path / "s"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "gapsim: stopped; run the same command to continue s" in error
    assert "Traceback" not in error
    missing = np.isnan(sim.load_sweep(tmp_path / "s").loss.values)
    assert missing.any()
    assert not missing.all()
    table = finish(begin("s"))
    assert table.replace("'s'", "") == finish(begin("whole")).replace("'whole'", "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_share_a_store(tmp_path):
    processes = [start(tmp_path, tmp_path / "s", steps=400, seeds=6, name=f"p{i}") for i in range(2)]
    for process in processes:
        finish(process)
    finish(start(tmp_path, None, steps=400, seeds=6, name="whole"))
    for name in ("p0", "p1"):
        assert_equal(load(tmp_path, name), load(tmp_path, "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_disk_fills_up_and_is_continued_elsewhere(tmp_path):
    """A real file system that is too small."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system of its own can be mounted here: {mounted.stderr.strip()}")
    try:
        _, error = (process := start(tmp_path, disk / "s", seeds=4)).communicate(timeout=900)
        assert process.returncode != 0
        assert re.search(r"OSError: .*the disk is full; free some space.*run again to continue", error)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        finish(start(tmp_path, disk / "s", seeds=4))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _, error = (process := start(tmp_path, disk / "other", seeds=4)).communicate(timeout=900)
        assert process.returncode != 0
        assert "the file system is read-only; give a folder that can be written" in error
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    finish(start(tmp_path, None, seeds=4, name="whole"))
    assert_equal(load(tmp_path), load(tmp_path, "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_jobs_share_a_store_through_submitit(tmp_path):
    """Submitit's local executor stands for Slurm's."""
    (tmp_path / "grid.toml").write_text(
        "seeds = 6\nsteps = 100\nbatch_size = 16\neval_pairs = 16\neval_points = 3\n[data]\nnum_pairs = 64\n"
        '[over]\n"loss.temperature" = [0.05, 0.5]\n'
    )
    command = [sys.executable, "-m", "experiments", "sweep", "grid.toml", "--store", "s", "--steps", "120"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    run = lambda *more: subprocess.run(
        [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    done = run("--workers", "2", "--executor", "local", "--cpus", "1")
    assert done.returncode == 0, done.stderr
    assert "submitted 2 jobs" in done.stdout
    data = sim.load_sweep(tmp_path / "s")
    assert data.sizes["seed"] == 6
    assert np.isfinite(data.loss.values).all()
    assert "0.05" in run().stdout  # nothing is left to train: the table appears at once
    failed = run("--store", "other", "--learning_rate", "1e30", "--workers", "1", "--executor", "local", "--cpus", "1")
    assert failed.returncode == 2
    assert re.search(r"^gapsim: the loss became NaN .* at step 1 .*; the others are stored$", failed.stderr.strip())
    assert "0 of 6" in failed.stdout
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_begun_on_two_cores_ends_on_one_with_the_same_bits(tmp_path):
    """Of `gapsim sweep`, which gives a single core two devices; in float64 too, which the command switches on itself."""
    (tmp_path / "grid.toml").write_text(
        "seeds = 8\nsteps = 500\nbatch_size = 16\neval_pairs = 16\neval_points = 3\n[data]\nnum_pairs = 64\n"
        '[over]\n"loss.temperature" = [0.05, 0.5]\n'
    )
    for dtype in ("float32", "float64"):
        for cores in ({0}, os.sched_getaffinity(0)):
            store = f"{dtype}.{len(cores)}"
            command = [sys.executable, "-m", "experiments", "sweep", "grid.toml", "--store", store, "--dtype", dtype]
            finish(
                subprocess.Popen(
                    command, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True, preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
                )
            )  # fmt: skip
        one, all_cores = (sim.load_sweep(tmp_path / f"{dtype}.{n}") for n in (1, len(os.sched_getaffinity(0))))
        assert one.equals(all_cores)
        assert one.loss.dtype == dtype
