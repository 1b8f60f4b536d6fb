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


OWN = """
import jax.numpy as jnp
import optax
import simulator as sim


@sim.register
class Own:
    temperature: float | sim.Learned
    weight: float = 0.0

    def __call__(self, x, y, batch):
        return sim.info_nce(x, y, temperature=self.temperature) + self.weight * jnp.sum(x)


def slow(rate):
    return optax.sgd(rate / 2)
"""


def test_losses_by_their_type_and_classes_of_ones_own(tmp_path):
    (tmp_path / "own_parts_of_this_test.py").write_text(OWN)
    module = "own_parts_of_this_test"
    learned = "temperature = { learned = 0.2, least = 0.01, learning_rate = 0.1 }"
    text = f"optimizer = '{module}:slow'\n[loss]\ntype = '{module}:Own'\nweight = 0.5\n{learned}\n[over]\n'loss.weight' = [0, 1]\n"
    found = read(tmp_path, text)
    loss = found["experiment"].loss
    assert (type(loss).__name__, loss.weight) == ("Own", 0.5)
    assert loss.temperature == sim.Learned(0.2, least=0.01, learning_rate=0.1)
    assert found["experiment"].optimizer(1.0) is not None
    found = read(tmp_path, "[loss]\ntype = 'Sigmoid'\ntemperature = 0.1\nbias = -5\n")["experiment"].loss
    assert found == sim.Sigmoid(0.1, bias=-5)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own_parts_of_this_test.py").write_text(OWN)
    with pytest.raises(ValueError, match=r"already, not .*elsewhere"):  # the first one would be taken for it
        read(elsewhere, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[loss]\ntype = 'Triplet'",
            "loss.type is 'Triplet'; it must be one of InfoNCE, Sigmoid, LabeledInfoNCE, Spectral, or module:Class",
        ),
        ("[loss]\ntype = 'no_such_module:Own'", "cannot be imported: ModuleNotFoundError"),
        ("[loss]\ntype = 'math:Own'", "cannot be imported: AttributeError"),
        ("[loss]\ntype = 'Sigmoid'\nbias = -5", "loss, of type Sigmoid: .*temperature"),
        ("[loss]\ntype = 'Sigmoid'\ntemperature = 0.1\nweight = 1", "loss, of type Sigmoid: .*weight"),
        ("[loss]\ntemperature = { initial = 0.1 }", "write a number or { learned = 0.1 }"),
        ("[loss]\ntemperature = { learned = 0.1, lowest = 0.1 }", "loss.temperature: .*lowest"),
    ],
)
def test_bad_types(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, text)


def test_an_experiment_is_shown_by_what_differs_from_its_defaults():
    """As the call that makes it, where names are imported; what is left out is what the call gives."""
    assert repr(sim.Experiment()) == "Experiment()"
    changed = sim.Experiment(
        data=sim.LatentPairs(None, noise=0.1), encoder_x=sim.MLP(64), loss=sim.InfoNCE(sim.Learned(0.1)), start=None,
        optimizer=optax.sgd, steps=10,
    )  # fmt: skip
    assert repr(changed) == (
        "Experiment(data=LatentPairs(num_pairs=None, noise=0.1), encoder_x=MLP(width=64), start=None, "
        "loss=InfoNCE(temperature=Learned(initial=0.1)), optimizer=sgd, steps=10)"
    )
    assert eval(repr(changed), vars(sim) | dict(sgd=optax.sgd)) == changed
    rows = np.zeros((300, 4))
    assert "x=<float64 [300, 4]>" in repr(sim.Experiment(data=sim.Pairs(rows, rows), eval_pairs=20))
