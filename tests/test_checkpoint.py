"""A long run that is stopped continues to the bit; a checkpoint that is not its own, or damaged, is refused."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from simulator.checkpoint import Checkpoint
from tests.processes import ENVIRONMENT, assert_equal, finish, load

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
