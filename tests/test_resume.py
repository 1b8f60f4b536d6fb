"""Sweeps on disk: the same numbers as in memory, whatever was lost or damaged."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import optax
import pytest

import simulator as sim
from simulator.storage import sweeps
from simulator.training.sweep import sweep


@pytest.fixture
def experiment():
    return sim.Experiment(
        data=sim.LatentPairs(64, latent_dim=4, dim_x=8, dim_y=8), encoder_x=sim.MLP(8, embed_dim=8),
        encoder_y=sim.MLP(8, embed_dim=8), batch_size=16, steps=20, eval_pairs=32, eval_points=3,
    )  # fmt: skip


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_store_holds_what_memory_would_and_is_read_again(tmp_path, experiment, monkeypatch):
    arguments = dict(over={"loss.temperature": [0.05, 0.5]}, seeds=3, key=jax.random.key(0))
    stored = sweep(experiment, store=tmp_path / "s", **arguments)
    for name, value in sweep(experiment, **arguments).items():
        np.testing.assert_array_equal(value, stored[name])
    monkeypatch.setattr(sys.modules["simulator.training.sweep"], "train_replicas", None)  # nothing is trained again
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


def test_schedules_with_other_numbers_are_other_sweeps(tmp_path, experiment):
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    with_schedule = lambda *numbers: sim.Experiment(
        **vars(experiment) | dict(learning_rate=optax.linear_schedule(*numbers, 20))
    )
    first = sweep(with_schedule(1e-3, 1e-4), **arguments)
    assert sweep(with_schedule(1e-3, 1e-4), **arguments).identical(first)
    with pytest.raises(
        ValueError, match=r"it differs in experiment.learning_rate.of.init_value \(0.001 there, 0.1 here\)"
    ):
        sweep(with_schedule(1e-1, 1e-4), **arguments)


def test_what_diverges_takes_nothing_with_it_and_is_trained_once(tmp_path, experiment, monkeypatch):
    arguments = dict(over={"learning_rate": [1e-3, 1e30, 2e-3]}, seeds=2, key=jax.random.key(0))
    says = r"at step \d+ in learning_rate = 1e\+30, seed 0 \(2 of 6 replicas\).*the others are stored in"
    with pytest.raises(FloatingPointError, match=says):
        sweep(experiment, store=tmp_path / "s", **arguments)
    stored = sim.load_sweep(tmp_path / "s")
    assert (stored.bad_step.values >= 0).tolist() == [[False, False], [True, True], [False, False]]
    after = stored.step.values >= stored.bad_step.values[1, :, None]
    for name in stored.data_vars.keys() - {"x", "y", "labels", "bad_step"}:
        bad = np.isnan(stored[name].values).reshape(3, 2, len(after[0]), -1)
        assert not bad[[0, 2]].any(), name
        assert bad[1][after].all(), name
        assert not bad[1][~after].any(), name
    assert np.isnan(stored.x.values[1]).all()
    tame = sweep(experiment, **arguments | dict(over={"learning_rate": [1e-3, 3e-3, 2e-3]}))
    np.testing.assert_allclose(stored.loss.values[[0, 2]], tame.loss.values[[0, 2]], rtol=1e-6)
    assert sweep(experiment, keep_diverged=True, **arguments).equals(stored)
    with pytest.raises(FloatingPointError, match=r"learning_rate = 1e\+30"):
        sweep(experiment, **arguments)
    monkeypatch.setattr(sys.modules["simulator.training.sweep"], "train_replicas", None)  # nothing is trained again
    with pytest.raises(FloatingPointError, match=says):
        sweep(experiment, store=tmp_path / "s", **arguments)
    assert sweep(experiment, store=tmp_path / "s", keep_diverged=True, **arguments).identical(stored)


@pytest.mark.parametrize("lose", [lambda mark: mark.unlink(), lambda mark: os.truncate(mark, 0), flip_a_bit])
def test_what_says_that_a_chunk_is_done_may_be_lost_as_well(tmp_path, experiment, lose):
    arguments = dict(over={"eval_pairs": [16, 32]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    whole = sweep(experiment, **arguments)
    lose(mark := tmp_path / "s" / "done" / "1-0")
    with pytest.warns(UserWarning, match="trained again") if mark.exists() else contextlib.nullcontext():
        assert sweep(experiment, **arguments).identical(whole)


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.unlink(), lambda file: os.truncate(file, file.stat().st_size // 2), flip_a_bit],
    ids=["deleted", "cut off", "a bit flipped"],
)
def test_a_chunk_that_was_damaged_is_trained_again_and_no_other(tmp_path, experiment, monkeypatch, damage):
    arguments = dict(over={"eval_pairs": [16, 32]}, seeds=2, key=jax.random.key(0), store=tmp_path / "s")
    whole = sweep(experiment, **arguments)
    damage(next(p for p in (tmp_path / "s" / sweeps.RESULTS / "x" / "c" / "1").rglob("*") if p.is_file()))
    with pytest.raises(ValueError, match="1 of 2 finished chunks no longer hold what was written; run the same sweep"):
        sim.load_sweep(tmp_path / "s")
    module, trained = sys.modules["simulator.training.sweep"], []
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
        (f"{sweeps.RESULTS}/zarr.json", "is not a whole store"),
        (f"{sweeps.RESULTS}/loss/zarr.json", "is not a whole store"),
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
    with pytest.raises(ValueError, match=r"is not a whole store.*move it away and run again"):
        sweep(experiment, **arguments)


def test_processes_that_run_one_program_are_refused(tmp_path, experiment, monkeypatch, key):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"sweep\(store=\) is for a single process and jax.distributed runs 2; start proc"
    ):
        sweep(experiment, over={"loss.temperature": [0.05]}, seeds=1, key=key, store=tmp_path / "s")
    with pytest.raises(ValueError, match=r"train\(checkpoint=\) is for a single process"):
        sim.train(experiment, key=key, checkpoint=tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_functions_whose_source_is_unknown_are_refused(tmp_path, experiment):
    changed = sim.Experiment(
        **{**vars(experiment), "optimizer": eval("lambda rate: optax.sgd(rate)", dict(optax=optax))}
    )
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"experiment.optimizer holds the function <lambda>, which has no source"):
        sweep(changed, store=tmp_path / "s", **arguments)
    with pytest.raises(ValueError, match=r"experiment.optimizer holds the function <lambda>, which has no source"):
        sim.train(changed, key=jax.random.key(0), checkpoint=tmp_path / "c")
    assert not list(tmp_path.iterdir())


DECAY = """
import optax
def decay(lr): return optax.chain(optax.set_to_zero(), optax.add_decayed_weights(.1), optax.scale(-lr))
"""


def test_an_optimizer_that_was_edited_is_another_sweep(tmp_path, experiment, monkeypatch):
    """Its name and its settings stay: the old numbers must not come back."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def trained(text, **where):
        (tmp_path / "optimizers.py").write_text(text)
        sys.modules.pop("optimizers", None)
        importlib.invalidate_caches()
        edited = sim.Experiment(
            **vars(experiment)
            | dict(optimizer=importlib.import_module("optimizers").decay, learning_rate=0.01, steps=3)
        )
        return sweep(edited, over={"start.angle": [0.0]}, seeds=1, key=jax.random.key(0), **where)

    stored = trained(DECAY, store=tmp_path / "s")
    assert trained(DECAY + "\n# a remark", store=tmp_path / "s").identical(stored)
    with pytest.raises(
        ValueError, match=r"another sweep; it differs in experiment.optimizer \(the source of decay was edit"
    ):
        trained(DECAY.replace(".1", ".5"), store=tmp_path / "s")


def test_a_store_is_continued_in_the_environment_that_it_was_begun_in(tmp_path, experiment):
    arguments = dict(over={"eval_pairs": [16, 32]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    whole = sweep(experiment, **arguments)
    with jax.threefry_partitionable(False):
        assert sweep(experiment, **arguments).identical(whole)  # nothing is left to train
    (tmp_path / "s" / "done" / "1-0").unlink()
    said = r"s is not finished and was begun with other versions or settings: jax_threefry_partitionable \('True' there, 'False'"
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match=said):
        sweep(experiment, **arguments)
    with jax.default_matmul_precision("float32"), pytest.raises(ValueError, match="jax_default_matmul_precision"):
        sweep(experiment, **arguments)
    assert sweep(experiment, **arguments).identical(whole)


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


@pytest.mark.parametrize("own_store", [False, True])
def test_a_swept_field_that_is_called_like_a_result_keeps_both(tmp_path, experiment, own_store):
    losses = [sim.InfoNCE(0.1), sim.Sigmoid(0.5)]
    data = sweep(
        experiment, over={"loss": losses, "start.angle": [0.5]}, seeds=1, key=jax.random.key(0),
        store=tmp_path / "s" if own_store else None,
    )  # fmt: skip
    assert data.loss.dims == ("experiment.loss", "start.angle", "seed", "step")
    assert json.loads(data["experiment.loss"].values[1])["type"] == "Sigmoid"
    np.testing.assert_array_equal(np.isfinite(data.bias.values).all(axis=(1, 2, 3)), [False, True])
    for number, loss in enumerate(losses):
        alone = sweep(
            sim.Experiment(**vars(experiment) | dict(loss=loss)),
            over={"start.angle": [0.5]},
            seeds=1,
            key=jax.random.key(0),
        )
        np.testing.assert_array_equal(data.loss.values[number], alone.loss.values)
