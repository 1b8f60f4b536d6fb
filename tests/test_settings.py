"""Sweeps written as TOML: what they may say, and one clear line for what they may not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import simulator as sim
from experiments.commands.sweep_file import read_sweep
from simulator.settings import split

BASE = "seeds = 2\nsteps = 4\nbatch_size = 8\n"


def read(tmp_path, text, *changes):
    (tmp_path / "grid.toml").write_text(BASE + text)
    return read_sweep(tmp_path / "grid.toml", changes)


def test_what_a_sweep_may_vary(tmp_path):
    text = """
optimizer = "sgd"
[over]
optimizer = ["adam", "sgd"]
encoder_x = [{ type = "MLP", width = 8 }, { type = "Linear" }]
start = ["none", { angle = 1.0 }]
"loss.temperature" = [0.1, 0.2]
"""
    found = read(tmp_path, text, "key=7", "loss.temperature=0.3")
    assert found["over"]["optimizer"] == [optax.adam, optax.sgd]
    assert found["over"]["encoder_x"] == [sim.MLP(8), sim.Linear()]
    assert found["over"]["start"] == [None, sim.Cones(1.0)]
    assert found["over"]["loss.temperature"] == [0.1, 0.2]
    assert found["experiment"].optimizer is optax.sgd
    assert found["experiment"].loss.temperature == 0.3
    assert jax.random.key_data(found["key"]).tolist() == [0, 7]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start = 'foo'", "start is 'foo'; it must be a table, with some of angle, tightness"),
        ("loss = 'clip'", "loss is 'clip'; it must be a table, with some of temperature"),
        ("encoder_x = 3", "encoder_x is 3; it must be a table"),
        ("[data]\ntype = ['MLP']", r"data.type is \['MLP'\]; it must be one of LatentPairs, Digits"),
        ("optimizer = 'apply_updates'", "it must be an optimizer of optax"),
        ("optimizer = 'global_norm'", "it must be an optimizer of optax"),
        ("optimizer = 3", "optimizer is 3"),
        ("[over]\noptimizer = ['adamm']", "optimizer is 'adamm'"),
        ("[over]\nstart = ['foo']", "start is 'foo'"),
        ("[over]\n'loss.temperature' = 0.1", "must map dotted fields to lists"),
        (f"key = {2**32}", "from 0 to 2³² − 1"),
        ("key = -1", "key is -1"),
    ],
)
def test_bad_settings(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize("word", ["False", "false"])
def test_false_is_false_in_either_spelling(tmp_path, word):
    found = read(tmp_path, "", f"normalize={word}", f"encoder_x.bias={word}")["experiment"]
    assert found.normalize is False
    assert found.encoder_x.bias is False
    with pytest.raises(ValueError, match="normalize is 'no'; it must be True or False"):
        read(tmp_path, "", "normalize=no")


def test_numbers_of_arrays_are_numbers():
    """A NumPy or JAX scalar is traced like a Python float, and does not end as a constant of its own program."""
    for number in (np.float32(0.25), jnp.float32(0.25), np.array(0.25)):
        template, values, _ = split(sim.Experiment(loss=sim.InfoNCE(number)))
        assert values["loss.temperature"] == 0.25
        assert template == split(sim.Experiment(loss=sim.InfoNCE(0.5)))[0]
        hash(template)


@pytest.mark.parametrize("values", [0.1, "0.1", None, np.float64(0.1)])
def test_a_swept_field_needs_a_list(values, key):
    with pytest.raises(ValueError, match=r"'loss.temperature' has .*; give a list of values"):
        sim.sweep(sim.Experiment(), over={"loss.temperature": values}, seeds=1, key=key)
