import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import simulator as sim
from simulator.losses import SIMILARITIES, sharded_info_nce


def oracle_info_nce(x, y, temperature, similarity, weights):
    """Loops over pairs, straight from the definition."""

    def score(a, b):
        if similarity == "cosine":
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return a @ b if similarity == "dot" else -np.sum((a - b) ** 2)

    s = np.array([[score(a, b) / temperature for b in y] for a in x])
    total = 0.0
    for k in range(len(x)):
        for i in range(len(y)):
            over_queries = s[k, i] - np.log(np.sum(np.exp(s[k, :])))
            over_gallery = s[k, i] - np.log(np.sum(np.exp(s[:, i])))
            total -= 0.5 * weights[k, i] * (over_queries + over_gallery)
    return total


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block_size", [None, 1, 3, 7, 50])
def test_info_nce_equals_loops(rng, similarity, block_size):
    x, y = rng.normal(size=(2, 7, 4))
    loss = sim.info_nce(x, y, temperature=0.3, similarity=similarity, block_size=block_size)
    np.testing.assert_allclose(loss, oracle_info_nce(x, y, 0.3, similarity, np.eye(7) / 7), rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 2])
def test_soft_pairing_of_unequal_sides(rng, block_size):
    x, y, pairing = rng.normal(size=(5, 3)), rng.normal(size=(8, 3)), rng.uniform(size=(5, 8))
    loss = sim.info_nce(x, y, temperature=0.5, pairing=pairing, block_size=block_size)
    np.testing.assert_allclose(loss, oracle_info_nce(x, y, 0.5, "cosine", pairing / pairing.sum()), rtol=1e-12)


def test_identity_pairing_is_the_default_and_a_wrong_one_is_not(rng):
    x, y = rng.normal(size=(2, 6, 4))
    plain = sim.info_nce(x, y, temperature=0.2)
    np.testing.assert_allclose(sim.info_nce(x, y, temperature=0.2, pairing=3 * np.eye(6)), plain, rtol=1e-13)
    np.testing.assert_allclose(sim.info_nce(x, y, temperature=0.2, pairing=1e308 * np.eye(6)), plain, rtol=1e-13)
    assert abs(sim.info_nce(x, y, temperature=0.2, pairing=np.eye(6)[::-1]) - plain) > 1e-3


def test_mean_of_directions_not_their_sum(rng):
    """Equation 6 of the paper is twice CLIP's convention."""
    x, y = rng.normal(size=(2, 6, 4))
    s = np.asarray(x @ y.T)
    directions = [-np.mean(np.diag(s) - np.log(np.exp(s).sum(axis=a))) for a in (0, 1)]
    loss = sim.info_nce(x, y, temperature=1.0, similarity="dot")
    np.testing.assert_allclose(loss, np.mean(directions), rtol=1e-12)
    assert abs(loss - np.sum(directions)) > 0.1


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block_size", [None, 2])
def test_gradients(rng, similarity, block_size):
    x, y = jnp.asarray(rng.normal(size=(2, 5, 3)))
    check_grads(
        lambda x, y, t: sim.info_nce(x, y, temperature=t, similarity=similarity, block_size=block_size),
        (x, y, 0.4), order=1, modes="rev", rtol=1e-6,
    )  # fmt: skip


def test_swap_and_rotation_invariance(rng):
    x, y = rng.normal(size=(2, 9, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for similarity in SIMILARITIES:
        loss = sim.info_nce(x, y, temperature=0.1, similarity=similarity)
        np.testing.assert_allclose(sim.info_nce(y, x, temperature=0.1, similarity=similarity), loss, rtol=1e-12)
        rotated = sim.info_nce(x @ rotation, y @ rotation, temperature=0.1, similarity=similarity)
        np.testing.assert_allclose(rotated, loss, rtol=1e-10)


def test_squared_distance_equals_cosine_at_half_the_temperature_on_the_sphere(rng):
    x, y = rng.normal(size=(2, 9, 5))
    x, y = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y))
    euclid = sim.info_nce(x, y, temperature=0.4, similarity="sqeuclidean")
    np.testing.assert_allclose(euclid, sim.info_nce(x, y, temperature=0.2), rtol=1e-12)
    assert abs(euclid - sim.info_nce(x, y, temperature=0.4)) > 1e-3


def test_edge_cases(rng):
    x, y = rng.normal(size=(2, 1, 3))
    np.testing.assert_allclose(sim.info_nce(x, y, temperature=0.1), 0.0, atol=1e-12)
    same = np.ones((4, 3))
    np.testing.assert_allclose(sim.info_nce(same, same, temperature=0.1), np.log(4), rtol=1e-12)
    x = np.array([[0.0, 0.0], [1.0, 0.0]])
    gradient = jax.grad(lambda x: sim.info_nce(x, x + 1, temperature=1.0))(jnp.asarray(x))
    assert np.isfinite(gradient).all()


def test_small_temperatures_do_not_overflow(rng):
    x, y = rng.normal(size=(2, 20, 4)).astype(np.float32)
    for block_size in (None, 6):
        assert np.isfinite(sim.info_nce(x, y, temperature=1e-3, block_size=block_size))


@pytest.mark.parametrize("block_size", [None, 3])
def test_rows_of_different_precision(rng, block_size):
    x, y = rng.normal(size=(2, 8, 4))
    wanted = sim.info_nce(x, y, temperature=0.1)
    for left, right in ((np.float32, np.float64), (np.float64, np.float32), (np.float16, np.float32)):
        found = sim.info_nce(x.astype(left), y.astype(right), temperature=0.1, block_size=block_size)
        np.testing.assert_allclose(found, wanted, rtol=1e-2 if left == np.float16 else 1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(similarity="euclid"), "must be one of"),
        (dict(temperature=-1.0), "> 0"),
        (dict(block_size=0), "block_size"),
    ],
)
def test_bad_input_of_the_sharded_loss(change, words):
    arguments = dict(temperature=0.1, axis_name="batch") | change
    with pytest.raises(ValueError, match=words):
        sharded_info_nce(np.ones((4, 2)), np.ones((4, 2)), **arguments)
    with pytest.raises(ValueError, match="4 rows and y has 3"):
        sharded_info_nce(np.ones((4, 2)), np.ones((3, 2)), temperature=0.1, axis_name="batch")


def test_sigmoid_loss_equals_loops(rng):
    x, y = rng.normal(size=(2, 4, 3))
    total = 0.0
    for k in range(4):
        for i in range(4):
            cosine = x[k] @ y[i] / np.linalg.norm(x[k]) / np.linalg.norm(y[i])
            sign = 1 if k == i else -1
            total += np.log1p(np.exp(-sign * (cosine / 0.1 - 2.0)))
    np.testing.assert_allclose(sim.sigmoid_loss(x, y, temperature=0.1, bias=-2.0), total / 4, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(temperature=0.0), "> 0"),
        (dict(temperature=float("nan")), "finite"),
        (dict(similarity="euclid"), "must be one of"),
        (dict(y=np.ones((3, 2))), "rows"),
        (dict(y=np.ones((4, 5))), "dimensions"),
        (dict(x=np.full((4, 2), np.nan)), "NaN"),
        (dict(x=np.ones(4)), "shape"),
        (dict(pairing=-np.eye(4)), "pairing"),
        (dict(pairing=np.zeros((4, 4))), "pairing"),
        (dict(pairing=np.eye(3)), "pairing has shape"),
        (dict(block_size=0), "block_size"),
    ],
)
def test_bad_input(change, words):
    arguments = dict(x=np.ones((4, 2)), y=np.ones((4, 2)), temperature=0.1) | change
    with pytest.raises(ValueError, match=words):
        sim.info_nce(arguments.pop("x"), arguments.pop("y"), **arguments)
