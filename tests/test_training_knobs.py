"""Knobs of the training itself: swapped modalities, the sigmoid loss, a start from given parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import simulator as sim
from simulator.encoders import _relu
from simulator.settings import split
from simulator.training import replica
from simulator.training.runs import initial_params, train_replicas

SMALL = sim.Experiment(
    data=sim.LatentPairs(64, latent_dim=4, dim_x=6, dim_y=6),
    encoder_x=sim.MLP(16, embed_dim=8),
    encoder_y=sim.MLP(16, embed_dim=8),
    loss=sim.InfoNCE(0.1),
    batch_size=16,
    steps=30,
    eval_pairs=32,
    eval_points=4,
)
TABLE = dataclasses.replace(
    SMALL, encoder_x=sim.Table(5), encoder_y=sim.Table(5), start=None, optimizer=optax.sgd, learning_rate=0.5,
    batch_size=64, eval_pairs=64, steps=1, eval_points=2, dtype="float64",
)  # fmt: skip


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def rows_of(params):
    return jnp.asarray(params["x"]["rows"][...]), jnp.asarray(params["y"]["rows"][...])


@pytest.mark.slow
def test_swapping_every_pair_changes_nothing_and_half_of_them_closes_the_gap(key):
    """The loss is the mean of both directions, so exchanging the sides altogether is a symmetry of it."""
    experiment = small(steps=300, dtype="float64")
    data = sim.sweep(experiment, over={"swap_probability": [0.0, 0.5, 1.0]}, seeds=1, key=key)
    none, half, all_of_them = (data.isel(swap_probability=i, seed=0) for i in range(3))
    np.testing.assert_allclose(all_of_them.loss, none.loss, rtol=1e-10)
    assert float(half.gap_norm[-1]) < 0.8 * float(none.gap_norm[-1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_relu_and_its_derivative(dtype):
    """By a product instead of a selection; 0 at 0, as everywhere in JAX."""
    limits = jnp.finfo(dtype)
    rows = jnp.asarray([-jnp.inf, limits.min, -1, -limits.tiny, -0.0, 0.0, limits.tiny, 1, limits.max, jnp.inf], dtype)
    for function in (_relu, jax.vmap(_relu), jax.jit(_relu)):
        np.testing.assert_array_equal(function(rows), jax.nn.relu(rows))
    slope = lambda f: jax.vmap(jax.grad(lambda r: 3.0 * f(r)))(rows)
    np.testing.assert_array_equal(slope(_relu), slope(jax.nn.relu))
    assert np.isnan(_relu(jnp.asarray(jnp.nan, dtype)))
    # Near miss: one whose derivative at 0 is 1/2.
    assert not np.array_equal(slope(_relu), slope(lambda r: jnp.maximum(r, 0.0)))


def test_swapped_step_by_hand(key):
    """One step of SGD on free rows is the gradient of the loss with some rows exchanged, and with no others."""
    experiment = dataclasses.replace(TABLE, swap_probability=0.5)
    x, y = rows_of(initial_params(experiment, key[None]))
    x, y = x[0], y[0]
    moved_x, moved_y = rows_of(sim.train(experiment, key=key).params)

    def step(swapped):
        def loss(x, y):
            return sim.info_nce(jnp.where(swapped, y, x), jnp.where(swapped, x, y), temperature=0.1)

        return [-0.5 * g for g in jax.grad(loss, argnums=(0, 1))(x, y)]

    step_key = replica.keys_of(key).steps
    swapped = jax.random.bernoulli(replica.swap_key(step_key, 0), 0.5, (64, 1))
    assert 15 < int(swapped.sum()) < 49
    for moved, start, change, unswapped in zip((moved_x, moved_y), (x, y), step(swapped), step(False), strict=True):
        np.testing.assert_allclose(moved - start, change, atol=1e-12)
        assert np.abs(moved - start - unswapped).max() > 1e-3


def test_sigmoid_step_by_hand(key):
    """One step of SGD moves rows, scale and bias along the gradient of the sigmoid loss."""
    experiment = dataclasses.replace(TABLE, loss=sim.Sigmoid(sim.Learned(0.2), bias=-1.0, train_bias=True))
    start = jax.tree.map(lambda leaf: leaf[0], initial_params(experiment, key[None]))
    run = sim.train(experiment, key=key)

    def loss(x, y, log_scale, bias):
        return sim.sigmoid_loss(x, y, temperature=jnp.exp(-log_scale), bias=bias)

    x, y = rows_of(start)
    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))(x, y, start["log_scale"], start["bias"])
    moved = (*rows_of(run.params), run.params["log_scale"], run.params["bias"])
    for after, before, slope in zip(moved, (x, y, start["log_scale"], start["bias"]), gradient, strict=True):
        np.testing.assert_allclose(after, before - 0.5 * slope, atol=1e-12)
    np.testing.assert_allclose(run.history.bias, [-1.0, run.params["bias"]], rtol=1e-12)
    np.testing.assert_allclose(run.history.temperature[0], 0.2, rtol=1e-12)
    assert float(run.history.loss[1]) < float(run.history.loss[0])


@pytest.mark.slow
def test_a_fixed_bias_stays_and_can_be_swept(key):
    data = sim.sweep(small(loss=sim.Sigmoid(0.2)), over={"loss.bias": [-10.0, 0.0]}, seeds=1, key=key)
    np.testing.assert_allclose(data.bias.isel(seed=0), np.repeat([[-10.0], [0.0]], data.sizes["step"], axis=1))
    assert "bias" not in sim.train(SMALL, key=key).history


def test_start_from_given_parameters(key):
    """A run that starts where another ended begins with its measures; none of the first start is left."""
    first = sim.train(SMALL, key=key)
    second = sim.train(small(loss=sim.InfoNCE(0.5)), key=key, params=first.params)
    for name in ("gap_norm", "alignment", "recall_at_1_xy"):
        np.testing.assert_allclose(second.history[name][0], first.history[name][-1], rtol=1e-5)
    assert float(abs(second.history.gap_norm[-1] - second.history.gap_norm[0])) > 1e-3


@pytest.mark.slow
def test_start_of_a_sweep_from_given_parameters(key):
    keys = jnp.stack([jax.random.fold_in(key, s) for s in range(2)])
    history, state, *_ = train_replicas(SMALL, {}, keys)
    data = sim.sweep(SMALL, over={"loss.temperature": [0.1, 0.5, 1.0]}, seeds=2, key=key, params=state["params"])
    for i in range(3):
        np.testing.assert_allclose(data.gap_norm[i, :, 0], history["gap_norm"][:, -1], rtol=1e-5)


def test_initial_parameters_are_those_of_start_none(key):
    run = sim.train(small(start=None, steps=1, learning_rate=1e-30), key=key)
    found = jax.tree.map(lambda leaf: leaf[0], initial_params(SMALL, key[None]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    "other", [small(encoder_x=sim.MLP(17, embed_dim=8)), small(loss=sim.InfoNCE(sim.Learned(0.1)))]
)
def test_parameters_of_another_experiment(key, other):
    params = jax.tree.map(lambda leaf: leaf[0], initial_params(other, key[None]))
    with pytest.raises(ValueError, match="params have shapes"):
        sim.train(SMALL, key=key, params=params)


@pytest.mark.slow
def test_held_out_pairs_are_right_pairs(key):
    """Wrong partners are for training: before the first step the measures do not know of them."""
    data = sim.sweep(small(steps=300), over={"data.mismatched": [0.0, 1.0]}, seeds=1, key=key)
    np.testing.assert_allclose(data.alignment[0, 0, 0], data.alignment[1, 0, 0], rtol=1e-5)
    assert float(data.alignment[1, 0, -1]) > 1.03 * float(data.alignment[0, 0, -1])


def test_what_is_off_is_not_traced():
    template, numbers, arrays = split(SMALL)
    assert "data.mismatched" not in numbers
    assert not arrays
    assert template.join(dict.fromkeys(numbers, 1.0)).data.mismatched == 0
    assert split(small(swap_probability=0.1))[1]["swap_probability"] == 0.1
    assert split(SMALL, varied={"data.mismatched": [0.0, 0.1]})[1]["data.mismatched"] == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: small(swap_probability=1.5), "swap_probability"),
        (lambda: sim.Sigmoid(0.0), "temperature"),
        (lambda: sim.Sigmoid(0.1, bias=float("inf")), "bias"),
        (lambda: sim.Sigmoid(0.1, train_bias="yes"), "train_bias"),
        (lambda: sim.Sigmoid(0.1, similarity="euclid"), "similarity"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(ValueError, match=words):
        build()
