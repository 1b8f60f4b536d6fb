"""What XLA is asked for: only what this version knows, and anything else is left out."""

import json
import os
import subprocess
import sys

import jax
import pytest

import simulator as sim
from simulator.training import compiler, engine, replica
from simulator.training.compiler import jit, known_flags, known_options, use_flags

KNOWN, BOGUS = "--xla_cpu_multi_thread_eigen=false", "--xla_no_such_flag=1"
VERSION = f"jaxlib {compiler.jaxlib.__version__}"


def test_an_unknown_option_is_left_out():
    options = dict(xla_backend_optimization_level=0, xla_no_such_option=True)
    assert known_options(options) == dict(xla_backend_optimization_level=0)
    assert jit(lambda a, by: a * by, options=options, static_argnames="by")(3, by=2) == 6
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):  # what `jit` protects from
        jax.jit(lambda a: a, compiler_options=options)(1)


def test_an_engine_with_unknown_options_starts_its_towers(monkeypatch, key):
    monkeypatch.setattr(engine, "LITTLE_EFFORT", engine.LITTLE_EFFORT | dict(xla_no_such_option=1))
    again = engine.over_replicas(replica.start, in_blocks=False, runs_once=True)
    monkeypatch.setattr(replica, "initialise", again)
    experiment = sim.Experiment(
        data=sim.LatentPairs(8, latent_dim=2, dim_x=3, dim_y=3), encoder_x=sim.Linear(3), encoder_y=sim.Linear(3),
        batch_size=8, steps=1, eval_pairs=8, eval_points=2,
    )  # fmt: skip
    assert sim.train(experiment, key=key).history.loss.size == 2


def test_unknown_flags_are_left_out_and_the_answers_kept(tmp_path, monkeypatch):
    """A flag that XLA does not know ends its process: JAX starts with what is left, and is asked once."""
    memory = tmp_path / "cache" / "flags.json"
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
    use_flags(KNOWN, BOGUS, memory=memory)
    assert os.environ["XLA_FLAGS"] == f"{KNOWN} --xla_backend_optimization_level=1"
    monkeypatch.setattr(compiler, "_starts", lambda flags: pytest.fail("asked again"))
    assert known_flags(BOGUS, KNOWN, memory=memory) == [KNOWN]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"jaxlib', "\x00", json.dumps({VERSION: [1]}), json.dumps({VERSION: {KNOWN: 2}})]
)
def test_a_damaged_memory_is_asked_again(tmp_path, monkeypatch, content):
    memory = tmp_path / "flags.json"
    memory.write_text(content)
    monkeypatch.setattr(compiler, "_starts", lambda flags: BOGUS not in flags)
    assert known_flags(KNOWN, BOGUS, memory=memory) == [KNOWN]
    assert json.loads(memory.read_text())


def test_what_fails_for_another_reason_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "_starts", lambda flags: False)
    assert known_flags(KNOWN, memory=tmp_path / "flags.json") == []
    assert not (tmp_path / "flags.json").exists()
    monkeypatch.setattr(compiler, "_starts", lambda flags: True)
    (tmp_path / "file").touch()
    assert known_flags(KNOWN, memory=tmp_path / "file" / "flags.json") == [KNOWN]  # cannot be remembered
