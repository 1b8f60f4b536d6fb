"""Sweeps on disk: the same numbers as in memory, whatever interrupts them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import simulator as sim
from simulator import resume
from simulator.checkpoint import Checkpoint
from simulator.sweep import sweep

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
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(resume.Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def start(tmp_path, store, *, steps=200, seeds=2, name="out"):
    code = SCRIPT.format(store=None if store is None else str(store), steps=steps, seeds=seeds)
    command = [sys.executable, "-c", code, str(tmp_path / f"{name}.npz")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(process):
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out


def load(tmp_path, name="out"):
    with np.load(tmp_path / f"{name}.npz") as file:
        return dict(file)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def chunks_done(store) -> int:
    """Counted from the files, as a killed process left them."""
    return len([p for p in store.glob("results.zarr/done/c/**/*") if p.is_file()])


@pytest.fixture
def experiment():
    return sim.Experiment(
        data=sim.LatentPairs(64, latent_dim=4, dim_x=8, dim_y=8), encoder_x=sim.MLP(8, embed_dim=8),
        encoder_y=sim.MLP(8, embed_dim=8), batch_size=16, steps=20, eval_pairs=32, eval_points=3,
    )  # fmt: skip


def test_a_store_holds_what_memory_would_and_is_read_again(tmp_path, experiment, monkeypatch):
    arguments = dict(over={"loss.temperature": [0.05, 0.5]}, seeds=3, key=jax.random.key(0))
    stored = sweep(experiment, store=tmp_path / "s", **arguments)
    for name, value in sweep(experiment, **arguments).items():
        np.testing.assert_array_equal(value, stored[name])
    monkeypatch.setattr(sys.modules["simulator.sweep"], "train_replicas", None)  # nothing is trained again
    again = sweep(experiment, store=tmp_path / "s", **arguments)
    assert again.identical(stored)
    assert json.loads(again.attrs["config"])["seeds"] == 3


def test_another_sweep_is_refused_and_says_what_differs(tmp_path, experiment):
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, store=tmp_path / "s")
    sweep(experiment, key=jax.random.key(0), **arguments)
    with pytest.raises(ValueError, match=r"another sweep; it differs in key"):
        sweep(experiment, key=jax.random.key(1), **arguments)
    with pytest.raises(ValueError, match=r"experiment.steps \(20 there, 21 here\)"):
        sweep(sim.Experiment(**{**vars(experiment), "steps": 21}), key=jax.random.key(0), **arguments)


def test_what_is_no_store_is_left_alone(tmp_path, experiment):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("dear reader")
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"holds no sweep \(it has thesis.tex\)"):
        sweep(experiment, store=tmp_path / "s", **arguments)
    with pytest.raises(ValueError, match="is a file"):
        sweep(experiment, store=tmp_path / "s" / "thesis.tex", **arguments)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "dear reader"


def test_a_store_that_was_never_finished_making_is_made_again(tmp_path, experiment):
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    first = sweep(experiment, **arguments)
    (tmp_path / "s" / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"holds results and has lost its sweep.json; move it away"):
        sweep(experiment, **arguments)
    shutil.rmtree(tmp_path / "s" / resume.RESULTS / "done" / "c")
    assert sweep(experiment, **arguments).equals(first)


def test_schedules_with_other_numbers_are_other_sweeps(tmp_path, experiment):
    import optax

    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    with_schedule = lambda *numbers: sim.Experiment(  # noqa: E731
        **vars(experiment) | dict(learning_rate=optax.linear_schedule(*numbers, 20))
    )
    first = sweep(with_schedule(1e-3, 1e-4), **arguments)
    assert sweep(with_schedule(1e-3, 1e-4), **arguments).identical(first)
    with pytest.raises(
        ValueError, match=r"it differs in experiment.learning_rate.of.init_value \(0.001 there, 0.1 here\)"
    ):
        sweep(with_schedule(1e-1, 1e-4), **arguments)


def test_one_point_that_diverges_keeps_no_other_from_being_trained(tmp_path, experiment):
    arguments = dict(over={"learning_rate": [1e30, 1e-3]}, seeds=8, key=jax.random.key(0), store=tmp_path / "s")
    for _ in range(2):
        with pytest.raises(
            FloatingPointError, match=r"learning_rate = 1e\+30, seed 0.*the other 1 of 2 chunks are stored"
        ):
            sweep(experiment, **arguments)
    assert np.isfinite(sim.load_sweep(tmp_path / "s").loss.values).all(axis=(1, 2)).tolist() == [False, True]


@pytest.mark.parametrize("name", ["done", "checksum"])
def test_what_says_that_a_chunk_is_done_may_be_lost_as_well(tmp_path, experiment, name):
    arguments = dict(over={"eval_pairs": [16, 32]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    whole = sweep(experiment, **arguments)
    os.truncate(next(p for p in (tmp_path / "s" / resume.RESULTS / name / "c" / "1").rglob("*") if p.is_file()), 0)
    with pytest.warns(UserWarning, match="trained again") if name == "checksum" else contextlib.nullcontext():
        assert sweep(experiment, **arguments).identical(whole)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.unlink(), lambda file: os.truncate(file, file.stat().st_size // 2), flip_a_bit],
    ids=["deleted", "cut off", "a bit flipped"],
)
def test_a_chunk_that_was_damaged_is_trained_again_and_no_other(tmp_path, experiment, monkeypatch, damage):
    arguments = dict(over={"eval_pairs": [16, 32]}, seeds=2, key=jax.random.key(0), store=tmp_path / "s")
    whole = sweep(experiment, **arguments)
    damage(next(p for p in (tmp_path / "s" / resume.RESULTS / "x" / "c" / "1").rglob("*") if p.is_file()))
    with pytest.raises(ValueError, match="1 of 2 finished chunks no longer hold what was written; run the same sweep"):
        sim.load_sweep(tmp_path / "s")
    module, trained = sys.modules["simulator.sweep"], []
    train = module.train_replicas
    monkeypatch.setattr(module, "train_replicas", lambda e, *a, **k: trained.append(e.eval_pairs) or train(e, *a, **k))
    with pytest.warns(UserWarning, match="1 finished chunks no longer hold what was written.*trained again"):
        mended = sweep(experiment, **arguments)
    assert trained == [32]
    assert mended.identical(whole)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("sweep.json", "sweep.json was damaged"),
        (f"{resume.RESULTS}/zarr.json", "is not a whole store"),
        (f"{resume.RESULTS}/loss/zarr.json", "is not a whole store"),
    ],
)
def test_a_store_whose_description_is_damaged_is_refused(tmp_path, experiment, file, says):
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    sweep(experiment, **arguments)
    os.truncate(tmp_path / "s" / file, 10)
    for call in (lambda: sweep(experiment, **arguments), lambda: sim.load_sweep(tmp_path / "s")):
        with pytest.raises(ValueError, match=f"{says}.*move"):
            call()
    (tmp_path / "s" / file).unlink()
    if file != "sweep.json":  # without it the store was never finished making
        with pytest.raises(ValueError, match=r"is not a whole store.*move it away and run again"):
            sweep(experiment, **arguments)


def test_a_store_of_an_earlier_version_is_refused(tmp_path, experiment):
    import zarr

    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    sweep(experiment, **arguments)
    group = zarr.open_group(tmp_path / "s" / resume.RESULTS)
    del group.attrs["arrays"]
    with pytest.raises(ValueError, match="an earlier version of this program; load it with that one"):
        sim.load_sweep(tmp_path / "s")


def test_processes_that_run_one_program_are_refused(tmp_path, experiment, monkeypatch, key):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"sweep\(store=\) is for a single process and jax.distributed runs 2; start proc"
    ):
        sweep(experiment, over={"loss.temperature": [0.05]}, seeds=1, key=key, store=tmp_path / "s")
    with pytest.raises(ValueError, match=r"train\(checkpoint=\) is for a single process"):
        sim.train(experiment, key=key, checkpoint=tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_functions_without_a_name_are_refused(tmp_path, experiment):
    changed = sim.Experiment(**{**vars(experiment), "optimizer": lambda rate: __import__("optax").sgd(rate)})
    with pytest.raises(ValueError, match="does not identify"):
        sweep(changed, over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")


def test_a_full_disk_ends_in_one_line_and_is_continued(tmp_path, experiment, monkeypatch):
    arguments = dict(over={"loss.temperature": [0.05, 0.5]}, seeds=2, key=jax.random.key(0))
    import zarr

    write, calls = zarr.Array.__setitem__, []

    def full(self, *rest):
        calls.append(self.name)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        return write(self, *rest)

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OSError, match=r"the disk is full.*What is stored there is safe; run again"):
        sweep(experiment, store=tmp_path / "s", **arguments)
    monkeypatch.undo()
    stored = sweep(experiment, store=tmp_path / "s", **arguments)
    for name, value in sweep(experiment, **arguments).items():
        np.testing.assert_array_equal(value, stored[name])


def test_ctrl_c_waits_until_a_chunk_is_written(tmp_path, experiment, monkeypatch):
    import zarr

    write, interrupted = zarr.Array.__setitem__, []

    def interrupt(self, *rest):
        if self.name == "/loss":
            interrupted.append(self.name)
            signal.raise_signal(signal.SIGINT)
        return write(self, *rest)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(zarr.Array, "__setitem__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, over={"batch_size": [16, 32]}, seeds=2, key=jax.random.key(0), store=tmp_path / "s")
    assert len(interrupted) == 1  # heard before the second chunk
    assert np.isfinite(sim.load_sweep(tmp_path / "s").loss.values).all(axis=(1, 2)).tolist() == [True, False]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_a_size_that_is_swept_is_padded(experiment):
    data = sweep(experiment, over={"eval_pairs": [16, 32]}, seeds=1, key=jax.random.key(0))
    assert data.sizes["pair"] == 32
    assert np.isnan(data.x.sel(eval_pairs=16)[..., 16:, :]).all()
    assert np.isfinite(data.x.sel(eval_pairs=32)).all()
    with pytest.raises(ValueError, match="cannot be swept"):
        sweep(experiment, over={"steps": [16, 32]}, seeds=1, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.timeout(900)
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
    environment = ENVIRONMENT | {"PYTHONPATH": str(resume.Path(__file__).parents[1])}

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
@pytest.mark.timeout(600)
def test_two_processes_share_a_store(tmp_path):
    processes = [start(tmp_path, tmp_path / "s", steps=400, seeds=6, name=f"p{i}") for i in range(2)]
    for process in processes:
        finish(process)
    finish(start(tmp_path, None, steps=400, seeds=6, name="whole"))
    for name in ("p0", "p1"):
        assert_equal(load(tmp_path, name), load(tmp_path, "whole"))


@pytest.mark.slow
@pytest.mark.timeout(600)
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
        _, error = (process := start(tmp_path, disk / "s", seeds=4)).communicate(timeout=240)
        assert process.returncode != 0
        assert re.search(r"OSError: .*the disk is full; free some space.*run again to continue", error)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        finish(start(tmp_path, disk / "s", seeds=4))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _, error = (process := start(tmp_path, disk / "other", seeds=4)).communicate(timeout=240)
        assert process.returncode != 0
        assert "the file system is read-only; give a folder that can be written" in error
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    finish(start(tmp_path, None, seeds=4, name="whole"))
    assert_equal(load(tmp_path), load(tmp_path, "whole"))


LONG_RUN = """
import sys, jax, numpy as np, simulator as sim
from simulator.checkpoint import Checkpoint
experiment = sim.Experiment(
    data=sim.LatentPairs(None, latent_dim=4, dim_x=8, dim_y=8), encoder_x=sim.MLP(8, embed_dim=8),
    encoder_y=sim.MLP(8, embed_dim=8), batch_size=16, steps=20_000, eval_pairs=32, eval_points=6,
)
Checkpoint.__init__.__defaults__ = (0.2,)
run = sim.train(experiment, key=jax.random.key(0), checkpoint=None if sys.argv[2] == "none" else sys.argv[2])
leaves = jax.tree.leaves(run.params)
np.savez(sys.argv[1], x=run.x, loss=run.history.loss.values, **{str(i): leaf for i, leaf in enumerate(leaves)})
"""


@pytest.mark.slow
def test_a_long_run_that_is_killed_continues_to_the_bit(tmp_path):
    def begin(name, folder):
        command = [sys.executable, "-c", LONG_RUN, str(tmp_path / name), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    finish(begin("whole.npz", "none"))
    folder = tmp_path / "checkpoint"
    process = begin("killed.npz", folder)
    while process.poll() is None and not (folder / "run.json").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    step = json.loads((folder / "run.json").read_text())["step"]
    assert 0 < step < 20_000
    finish(begin("resumed.npz", folder))
    assert_equal(load(tmp_path, "resumed"), load(tmp_path, "whole"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    saved = Checkpoint(tmp_path / "c", dict(steps=1))
    saved.save(1, [np.arange(3)], [np.zeros((2, 1))])
    (tmp_path / "c" / "step_notes").mkdir()
    saved.save(2, [np.arange(3)], [np.zeros((2, 1))])
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"run.json", "step_2", "step_notes"}
    saved.save(1, [np.arange(3)], [np.zeros((2, 1))])
    step, state, history = saved.restore([np.arange(3)])
    assert (step, state[0].tolist(), history[0].shape) == (1, [0, 1, 2], (2, 1))
    with pytest.raises(ValueError, match=r"another run; it differs in steps \(1 there, 2 here\)"):
        Checkpoint(tmp_path / "c", dict(steps=2)).restore([np.arange(3)])


def test_a_checkpoint_that_was_damaged_says_so(tmp_path):
    saved = Checkpoint(tmp_path / "c", dict(steps=1))
    saved.save(1, [np.arange(3)], [np.zeros((2, 1))])
    made = json.loads((tmp_path / "c" / "run.json").read_text())
    (tmp_path / "c" / "run.json").write_text(json.dumps(made | dict(checksum="of other numbers")))
    with pytest.raises(ValueError, match="its numbers are not those that were written"):
        saved.restore([np.arange(3)])
    shutil.rmtree(
        tmp_path / "c" / "step_1"
    )  # its parts are orbax's, which notices (and leaves threads behind in a test)
    with pytest.raises(ValueError, match=r"step_1 was damaged and cannot be read.*remove .* to start anew"):
        saved.restore([np.arange(3)])
    os.truncate(tmp_path / "c" / "run.json", 10)
    with pytest.raises(ValueError, match=r"run.json was damaged.*move its folder away"):
        saved.restore([np.arange(3)])
    with pytest.raises(ValueError, match="is a file; a checkpoint is stored in a folder"):
        Checkpoint(tmp_path / "c" / "run.json", dict(steps=1)).restore([np.arange(3)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_share_a_store_through_submitit(tmp_path):
    """Submitit's local executor stands for Slurm's."""
    (tmp_path / "grid.toml").write_text(
        "seeds = 6\nsteps = 100\nbatch_size = 16\neval_pairs = 16\neval_points = 3\n[data]\nnum_pairs = 64\n"
        '[over]\n"loss.temperature" = [0.05, 0.5]\n'
    )
    command = [sys.executable, "-m", "experiments", "sweep", "grid.toml", "--store", "s", "--steps", "120"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(resume.Path(__file__).parents[1])}
    run = lambda *more: subprocess.run(  # noqa: E731
        [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    done = run("--workers", "2", "--executor", "local", "--cpus", "1")
    assert done.returncode == 0, done.stderr
    assert "submitted 2 jobs" in done.stdout
    data = sim.load_sweep(tmp_path / "s")
    assert data.sizes["seed"] == 6
    assert np.isfinite(data.loss.values).all()
    assert "0.05" in run().stdout  # nothing is left to train: the table appears at once
