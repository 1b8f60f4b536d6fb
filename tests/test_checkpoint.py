"""A long run that is stopped continues to the bit; a checkpoint that is not its own, or damaged, is refused."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import simulator as sim
from simulator.storage.checkpoints import Checkpoint
from tests.processes import ENVIRONMENT, assert_equal, finish, load

LONG_RUN = """
import sys, jax, numpy as np, simulator as sim
from simulator.storage.checkpoints import Checkpoint
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
    step = lambda: json.loads((folder / "run.json").read_text())["step"] if (folder / "run.json").exists() else None
    while process.poll() is None and step() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < step() < 20_000
    finish(begin("resumed.npz", folder))
    assert_equal(load(tmp_path, "resumed"), load(tmp_path, "whole"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    saved = Checkpoint(tmp_path / "c", dict(steps=1))
    saved.save(1, [np.arange(3)], [np.zeros((2, 1))])
    saved.save(2, [np.arange(3)], [np.zeros((2, 1))])
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"run.json", "step_2"}
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


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("own_too", [False, True])
@pytest.mark.parametrize("name", ["step_500/weights.bin", "step_7", "notes.txt", "500/default/x", ".hidden"])
def test_what_others_left_in_the_folder_is_never_removed(tmp_path, name, own_too):
    saved = Checkpoint(tmp_path / "c", dict(steps=1))
    if own_too:
        saved.save(1, [np.arange(3)], [np.zeros((2, 1))])
    foreign = tmp_path / "c" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("weeks of work")
    before, first = files(tmp_path), name.split("/")[0]
    for call in (
        lambda: sim.train(sim.Experiment(), key=jax.random.key(0), checkpoint=tmp_path / "c"),
        lambda: saved.restore([np.arange(3)]),
    ):
        with pytest.raises(ValueError, match=rf"holds {first}, which no.* made; give a folder of its own|another run"):
            call()
    assert files(tmp_path) == before
    if first == "step_500":
        with pytest.raises(ValueError, match="holds step_500, which no checkpoint of this run made; move it away"):
            saved.save(500, [np.arange(3)], [np.zeros((2, 1))])
    else:  # it came while the run was in hand
        saved.save(500, [np.arange(3)], [np.zeros((2, 1))])
    assert foreign.read_text() == "weeks of work"


def test_killed_while_a_state_is_written_it_keeps_the_one_before_and_clears_up(tmp_path, monkeypatch):
    import orbax.checkpoint

    def die(self, path, tree, **options):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise KeyboardInterrupt

    folder = tmp_path / "c"
    saved, history = Checkpoint(folder, dict(steps=1)), [np.zeros((2, 1))]
    for step in (1, 2):
        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            killed.setattr(orbax.checkpoint.PyTreeCheckpointer, "save", die)
            saved.save(step, [np.arange(3)], history)
        found = saved.restore([np.arange(3)])
        assert found is None if step == 1 else found[0] == 1
        saved.save(1, [np.arange(3)], history)
        assert {p.name for p in folder.iterdir()} == {"run.json", "step_1" if step == 1 else "step_1_again"}
    (folder / "step_1_again.orbax-checkpoint-tmp").mkdir()
    saved.save(3, [np.arange(3)], history)
    assert {p.name for p in folder.iterdir()} == {"run.json", "step_3"}


def test_a_checkpoint_is_continued_in_its_environment_and_with_its_code(tmp_path):
    begun = dict(environment=dict(jax="0.10.2"), experiment=dict(optimizer=dict(function="decay", source="1a")))
    Checkpoint(tmp_path, begun).save(1, [np.arange(3)], [np.zeros((2, 1))])
    with pytest.raises(
        ValueError, match=r"is not finished and was begun with other .*: jax \('0.10.2' there, '0.12' here\)"
    ):
        Checkpoint(tmp_path, begun | dict(environment=dict(jax="0.12"))).restore([np.arange(3)])
    edited = begun | dict(experiment=dict(optimizer=dict(function="decay", source="2b")))
    with pytest.raises(
        ValueError, match=r"of another run; it differs in experiment.optimizer \(the source of decay was"
    ):
        Checkpoint(tmp_path, edited).restore([np.arange(3)])
