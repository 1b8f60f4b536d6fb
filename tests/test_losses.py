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


LABELS = np.array([3, 3, 0, -1, 0, 3, -1])


def oracle_labeled(x, y, labels, temperature, same_label, similarity):
    """Loops over pairs; a label < 0 is like no other."""
    n = len(x)
    same = [[k == i or (labels[k] == labels[i] >= 0) for i in range(n)] for k in range(n)]
    if same_label == "positive":
        weights = np.array([[same[k][i] / (n * sum(same[k])) for i in range(n)] for k in range(n)])
        return oracle_info_nce(x, y, temperature, similarity, weights)
    total = 0.0
    for i in range(n):
        others = [k for k in range(n) if k == i or not same[k][i]]
        place = others.index(i)
        total += oracle_row(x[others], y[i], place, temperature, similarity)
        total += oracle_row(y[others], x[i], place, temperature, similarity)
    return total / (2 * n)


def oracle_row(candidates, row, place, temperature, similarity):
    """−log of the softmax of one row over candidates, at one of them."""
    scores = []
    for candidate in candidates:
        if similarity == "cosine":
            scores.append(candidate @ row / (np.linalg.norm(candidate) * np.linalg.norm(row)))
        else:
            scores.append(candidate @ row if similarity == "dot" else -np.sum((candidate - row) ** 2))
    scores = np.array(scores) / temperature
    return np.log(np.sum(np.exp(scores))) - scores[place]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("same_label", ["positive", "ignored"])
def test_labeled_info_nce_equals_loops_and_the_other_kind_does_not(rng, similarity, same_label):
    x, y = rng.normal(size=(2, 7, 4))
    loss = lambda labels, kind: sim.labeled_info_nce(
        x, y, labels, temperature=0.3, same_label=kind, similarity=similarity
    )
    expected = oracle_labeled(x, y, LABELS, 0.3, same_label, similarity)
    np.testing.assert_allclose(loss(LABELS, same_label), expected, rtol=1e-12)
    other = dict(positive="ignored", ignored="positive")[same_label]
    assert abs(loss(LABELS, other) - expected) > 0.01
    plain = sim.info_nce(x, y, temperature=0.3, similarity=similarity)
    for alone in (np.arange(7), np.full(7, -1)):  # no two belong together
        np.testing.assert_allclose(loss(alone, same_label), plain, rtol=1e-12)
    gradient = lambda a, b: sim.labeled_info_nce(
        a, b, LABELS, temperature=0.3, same_label=same_label, similarity=similarity
    )
    check_grads(gradient, (x, y), order=1, modes=["rev"])


def test_all_pairs_of_one_label(rng):
    """All ignore each other: nothing is left to tell apart. All positive: the least loss is that of guessing, log n."""
    x, y = rng.normal(size=(2, 5, 3))
    ones = np.ones(5, int)
    np.testing.assert_allclose(sim.labeled_info_nce(x, y, ones, temperature=0.1, same_label="ignored"), 0.0, atol=1e-12)
    same = np.ones((5, 3))
    np.testing.assert_allclose(sim.labeled_info_nce(same, same, ones, temperature=0.1), np.log(5), rtol=1e-12)
    assert sim.labeled_info_nce(x, y, ones, temperature=0.1) > np.log(5)


def test_spectral_loss_is_a_distance_of_matrices(rng):
    """‖XYᵀ − nI‖²/n² − n; the near miss is I/n in place of nI."""
    x, y = rng.normal(size=(2, 6, 4))
    distance = lambda identity: np.sum((x @ y.T - identity) ** 2) / 36
    np.testing.assert_allclose(sim.spectral_loss(x, y), distance(6 * np.eye(6)) - 6, rtol=1e-12)
    assert abs(sim.spectral_loss(x, y) - (distance(np.eye(6) / 6) - 1 / 216)) > 0.1
    gradient = jax.grad(sim.spectral_loss)(x, y)
    np.testing.assert_allclose(gradient, -2 * y / 6 + 2 * x @ (y.T @ y) / 36, rtol=1e-10)
    best = np.sqrt(6) * np.eye(6)
    np.testing.assert_allclose(sim.spectral_loss(best, best), -6.0, rtol=1e-12)
    low = sim.spectral_loss(x.astype(np.float16), y.astype(np.float16))
    np.testing.assert_allclose(
        low, sim.spectral_loss(x.astype(np.float16).astype(float), y.astype(np.float16).astype(float)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=np.arange(4)), "labels have shape"),
        (dict(labels=np.arange(5.0)), "one whole number"),
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(same_label="negative"), "same_label is 'negative'"),
        (dict(similarity="euclid"), "similarity"),
        (dict(x=np.ones((4, 3))), "4 rows"),
    ],
)
def test_bad_input_of_the_labeled_loss(change, words):
    given = dict(x=np.ones((5, 3)), y=np.ones((5, 3)), labels=np.arange(5), temperature=0.1) | change
    with pytest.raises(ValueError, match=words):
        sim.labeled_info_nce(**given)


POSITIVES = np.array(
    [[1.0, 0.5, 0, 0, 0], [0, 2.0, 0, 0, 0], [0, 0, 0.1, 0, 3.0], [0, 1.0, 0, 1.0, 0]]
)  # [4, 5], uneven


def oracle_paired(x, y, positives, temperature, similarity):
    """(L, ∂L/∂s times τ) by loops over the rows of both sides, each from the definition."""
    loss, slopes = 0.0, []
    for rows, others, weights in ((x, y, positives), (y, x, positives.T)):
        slope = np.zeros(weights.shape)
        for k, row in enumerate(rows):
            costs = np.array([oracle_row(others, row, i, temperature, similarity) for i in range(len(others))])
            share = weights[k] / weights[k].sum()
            loss += 0.5 * share @ costs / len(rows)
            slope[k] = 0.5 * (np.exp(-costs) - share) / len(rows)  # exp(−cost) is the softmax
        slopes.append(slope)
    return loss, slopes[0] + slopes[1].T


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_paired_info_nce_equals_loops_and_near_misses_do_not(rng, similarity):
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    given = dict(temperature=0.3, similarity=similarity)
    wanted, slope = oracle_paired(x, y, POSITIVES, **given)
    loss = lambda a, b, positives=POSITIVES: sim.paired_info_nce(a, b, positives, **given)
    np.testing.assert_allclose(loss(x, y), wanted, rtol=1e-12)
    np.testing.assert_allclose(loss(y, x, POSITIVES.T), wanted, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(loss)(x, y, jnp.asarray(POSITIVES)), wanted, rtol=1e-12)
    np.testing.assert_allclose(loss(x, y, 5.9e307 * POSITIVES), wanted, rtol=1e-12)
    assert abs(sim.info_nce(x, y, pairing=POSITIVES, **given) - wanted) > 0.01  # every pair by its weight
    assert abs(loss(x, y, POSITIVES > 0) - wanted) > 0.01  # the weights left out
    if similarity == "cosine":
        check_grads(loss, (x, y), order=1, modes=["rev"])
    if similarity == "dot":
        gradient = jax.grad(loss, (0, 1))(x, y)
        np.testing.assert_allclose(gradient[0], slope @ y / 0.3, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient[1], slope.T @ x / 0.3, rtol=1e-9, atol=1e-12)
        assert np.abs(gradient[0] - slope @ y).max() > 0.01  # without τ


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_paired_info_nce_holds_the_other_losses(rng, similarity):
    x, y = rng.normal(size=(2, 7, 4))
    given = dict(temperature=0.3, similarity=similarity)
    plain = sim.info_nce(x, y, **given)
    for identity in (np.eye(7), np.eye(7, dtype=bool), np.diag(np.arange(1, 8))):  # weights of a row are shares
        np.testing.assert_allclose(sim.paired_info_nce(x, y, identity, **given), plain, rtol=1e-12)
    same = np.eye(7, dtype=bool) | ((LABELS[:, None] == LABELS) & (LABELS >= 0))
    labeled = sim.labeled_info_nce(x, y, LABELS, **given)
    np.testing.assert_allclose(sim.paired_info_nce(x, y, same, **given), labeled, rtol=1e-12)
    same[0, 1] = False
    assert abs(sim.paired_info_nce(x, y, same, **given) - labeled) > 1e-3
    circle = np.eye(7) + 0.4 * np.roll(np.eye(7), 1, axis=1)  # no symmetry is needed, equal sums are
    np.testing.assert_allclose(
        sim.paired_info_nce(x, y, circle, **given), sim.info_nce(x, y, pairing=circle, **given), rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_paired_info_nce_adds_up_half_precision_in_float32(rng, dtype):
    x, y = (jnp.asarray(rng.normal(size=(size, 3)), dtype) for size in (4, 5))
    found = sim.paired_info_nce(x, y, jnp.asarray(POSITIVES, dtype), temperature=0.05)
    wanted, _ = oracle_paired(
        np.asarray(x, float), np.asarray(y, float), np.asarray(jnp.asarray(POSITIVES, dtype), float), 0.05, "cosine"
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_a_traced_row_without_a_positive_gives_nan(rng):
    x, y = rng.normal(size=(2, 3, 2))
    loss = jax.jit(lambda positives: sim.paired_info_nce(x, y, positives, temperature=0.3))
    assert np.isfinite(loss(jnp.eye(3)))
    assert np.isnan(loss(jnp.diag(jnp.array([1.0, 0.0, 1.0]))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(positives=np.eye(4)), r"positives have shape \(4, 4\); expected \(4, 5\)"),
        (dict(positives=-POSITIVES), "negative, NaN or infinite"),
        (dict(positives=np.full((4, 5), np.nan)), "negative, NaN or infinite"),
        (dict(positives=np.eye(4, 5)), "no positive in column 4"),
        (dict(positives=np.vstack([POSITIVES[:2], np.zeros(5), POSITIVES[3]])), "no positive in row 2"),
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(similarity="euclid"), "similarity"),
        (dict(x=np.ones((4, 2))), "dimensions"),
    ],
)
def test_bad_input_of_the_paired_loss(change, words):
    given = dict(x=np.ones((4, 3)), y=np.ones((5, 3)), positives=POSITIVES, temperature=0.1) | change
    with pytest.raises(ValueError, match=words):
        sim.paired_info_nce(**given)
