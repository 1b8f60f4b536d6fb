"""Losses and measures on rows of every type and size, against loops over pairs in NumPy float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import simulator as sim
from simulator.losses import SIMILARITIES, sharded_info_nce
from tests.test_losses import oracle_info_nce

TEMPERATURE = 0.5
measured = jax.jit(sim.measure_gap)  # one program rather than hundreds


def on_a_ring(x, y, **settings):
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    local = functools.partial(sharded_info_nce, axis_name="batch", **settings)
    specs = dict(in_specs=(PartitionSpec("batch"),) * 2, out_specs=PartitionSpec())
    return jax.shard_map(local, mesh=mesh, check_vma=False, **specs)(x, y)


PATHS = dict(dense=sim.info_nce, blocks=functools.partial(sim.info_nce, block_size=3), ring=on_a_ring)


def rows(similarity, dtype, size):
    """Two sets of rows of a size; for "dot" the product of sizes stays, for distances a common offset is added."""
    x, y = np.random.default_rng(0).normal(size=(2, 4, 3))
    if similarity == "sqeuclidean":
        return (x + size).astype(dtype), (y + size).astype(dtype)
    return (x * size).astype(dtype), (y / size if similarity == "dot" else y).astype(dtype)


def wanted(x, y, similarity):
    x, y = (np.asarray(r, np.float64) for r in (x, y))
    if similarity == "cosine":  # the oracle's own squares would leave float64's range less early, but leave it
        x = x / np.abs(x).max(axis=1, keepdims=True)
    return oracle_info_nce(x, y, TEMPERATURE, similarity, np.eye(len(x)) / len(x))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("path", "dtype", "sizes"),
    [
        (
            "dense",
            np.float32,
            dict(cosine=(1e-44, 1e-40, 1e-25, 1e20, 1e38), dot=(1e-37, 1e37), sqeuclidean=(3e3, -1e4)),
        ),
        ("dense", np.float16, dict(cosine=(1e-6, 1e-3, 300, 1e4), dot=(1e-3, 300), sqeuclidean=(200, -500))),
        ("dense", jnp.bfloat16, dict(cosine=(1e-39, 300, 1e38), dot=(1e-30, 300), sqeuclidean=(10, -50))),
        ("blocks", np.float32, dict(cosine=(1e-25, 1e20), dot=(1e37,), sqeuclidean=(3e3,))),
        ("ring", np.float32, dict(cosine=(1e-25, 1e20), dot=(1e37,), sqeuclidean=(3e3,))),
    ],
)
def test_info_nce_is_right_for_every_value_that_a_type_holds(path, dtype, sizes, similarity):
    loss = jax.jit(functools.partial(PATHS[path], temperature=TEMPERATURE, similarity=similarity))
    for size in sizes[similarity]:
        x, y = rows(similarity, dtype, size)
        found = loss(x, y)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted(x, y, similarity), rtol=5e-6, err_msg=str(size))


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (np.float32, (1e-30, 1e-25, 1e20, 1e30)),
        (np.float16, (1e-3, 300)),
        (jnp.bfloat16, (1e-30, 300)),
        (np.float64, (1e-200, 1e200)),
    ],
)
def test_gradient_of_rows_of_any_size(dtype, sizes):
    """That of unit rows over the size."""
    eye = jnp.eye(4, dtype=dtype)
    both = jax.jit(jax.value_and_grad(lambda x: sim.info_nce(x, eye, temperature=TEMPERATURE)))
    unit = both(eye)[1].astype(float)
    assert float(jnp.abs(unit).max()) > 0.04
    for size in sizes:
        value, slope = both(eye * jnp.asarray(size, dtype))
        np.testing.assert_allclose(value, np.log1p(3 * np.exp(-2)), rtol=1e-15 if dtype == np.float64 else 5e-7)
        atol = {16: 1e-2, 32: 2e-6, 64: 1e-14}[jnp.finfo(dtype).bits]
        np.testing.assert_allclose(slope.astype(float) * size, unit, atol=atol * float(jnp.abs(unit).max()))


@pytest.mark.parametrize("pairs", [64, 1024])
def test_many_half_precision_rows_have_the_loss_of_their_float64_copy(rng, pairs):
    """τ = .05: sums of a thousand terms far below 1, which float16 drops."""
    x = rng.normal(size=(pairs, 64))
    y = x + 0.9 * rng.normal(size=x.shape)
    x, y = ((r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float16) for r in (x, y))
    found = float(sim.info_nce(x, y, temperature=0.05))
    x, y = (r.astype(float) / np.linalg.norm(r.astype(float), axis=1, keepdims=True) for r in (x, y))
    logits = x @ y.T / 0.05

    def loss(dtype):
        """log of the partner's 1 and the others' terms, added up in a type."""
        both = [np.exp(s - np.diag(s)[:, None]).astype(dtype) for s in (logits, logits.T)]
        return np.mean([np.log(np.cumsum(np.sort(r)[:, ::-1], axis=1, dtype=dtype)[:, -1].astype(float)) for r in both])

    assert abs(found - loss(float)) < 2e-6 + 1e-5 * loss(float)  # logits of 20 in float32
    assert loss(np.float16) < 0.9 * loss(float)


def test_zero_rows_of_any_type_have_no_similarity_and_no_gradient():
    x = jnp.asarray([[0, 0], [3, 0]], jnp.float16)
    value, slope = jax.jit(jax.value_and_grad(lambda x: sim.info_nce(x, x[::-1], temperature=1.0)))(x)
    np.testing.assert_allclose(value, 0.5 * (np.log(2) + np.log1p(np.e)), rtol=1e-6)
    assert np.isfinite(slope).all() and not slope[0].any()


@pytest.fixture
def whole(rng):
    """Pairs of 50 × unit rows, as whole numbers."""
    x = rng.normal(size=(24, 6))
    x, y = (50 * r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, x + 0.3 * rng.normal(size=x.shape)))
    return np.round(x), np.round(y)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_whole_numbers_are_converted(whole, dtype):
    x, y = (r + 128 * (dtype == np.uint8) for r in whole)
    for loss in (
        *(functools.partial(sim.info_nce, temperature=0.1, similarity=s) for s in SIMILARITIES),
        functools.partial(sim.sigmoid_loss, temperature=0.1, bias=-2.0),
    ):
        loss = jax.jit(loss)
        np.testing.assert_allclose(loss(x.astype(dtype), y.astype(dtype)), loss(x, y), rtol=1e-14)


def test_whole_numbers_of_64_bits_are_not_cut_down(whole):
    x, y = (r.astype(np.int64) << 33 for r in whole)
    with jax.enable_x64(False):
        np.testing.assert_allclose(
            sim.info_nce(x, y, temperature=0.1), sim.info_nce(*whole, temperature=0.1), rtol=1e-6
        )


def test_what_the_widest_type_cannot_hold_is_refused(rng):
    x = rng.normal(size=(4, 3))
    with jax.enable_x64(False):
        for size in (1e200, 1e-200):
            for function in (functools.partial(sim.info_nce, temperature=0.1), sim.measure_gap, sim.gap_vector):
                with pytest.raises(ValueError, match=r"outside the range of float32.*enable_x64"):
                    function(x * size, x)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float16, jnp.bfloat16, bool])
def test_measures_of_every_type_are_those_of_its_float64_copy(whole, dtype):
    x, y = (r.astype(dtype) for r in (whole if dtype is not bool else (r > 10 for r in whole)))
    found = measured(x, y, temperature=10.0)
    copy = measured(x.astype(np.float64), y.astype(np.float64), temperature=10.0)
    for name, value in vars(copy).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-3 if name == "gap_norm" else 2e-4, err_msg=name)


@pytest.mark.parametrize("size", [2.0**100, 2.0**-90])
def test_measures_without_units_do_not_depend_on_the_size(whole, size):
    x, y = (r.astype(np.float32) for r in whole)
    for factor in (1.0, 2.0**-40):  # of one modality alone
        one, other = measured(x, y * factor), measured(x * size, y * factor * size)
        for name in ("separability", "rmg", "recall_at_1_xy", "recall_at_1_yx"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("defect_ratio", "null_defect_ratio", "span_fraction", "effective_rank"):
            for side in "xy":
                assert getattr(one, f"{name}_{side}") == getattr(other, f"{name}_{side}"), name
        assert float(other.gap_norm) == float(one.gap_norm) * size
        np.testing.assert_array_equal(sim.gap_vector(x * size, y * size), sim.gap_vector(x, y) * size)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_rows_leave_nan_and_no_rounding_noise(dtype):
    x, y = (np.tile(np.array(row, dtype), (7, 1)) for row in ((0.1, 0.3, 0.7), (0.7, 0.3, 0.1)))
    same, apart = measured(x, x), measured(x, y)
    assert np.isnan(measured(x, 2 * x).rmg)  # one direction
    for measures, undefined in ((same, ("variance_along_gap_x", "separability", "rmg")), (apart, ())):
        names = ("defect_ratio", "null_defect_ratio", "span_fraction", "effective_rank")
        for name in (*undefined, *(f"{n}_{side}" for n in names for side in "xy")):
            assert np.isnan(getattr(measures, name)), name
    assert same.alignment == 0 and same.gap_norm < 1e-7
    assert apart.variance_along_gap_x == 0 and apart.separability == apart.rmg == 1


def test_means_far_from_the_origin(rng):
    """Rows at 3,000 ± 1 in float32: the gap of the rows as stored, not of sums that have lost their digits."""
    x, y = ((3000 + rng.normal(size=(500, 3)) + shift).astype(np.float32) for shift in (0.0, 0.01))
    exact = y.astype(float).mean(0) - x.astype(float).mean(0)
    np.testing.assert_allclose(sim.gap_vector(x, y), exact, atol=1e-7)


@dataclasses.dataclass(frozen=True)
class Heavier(sim.InfoNCE):
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Noisier(sim.LatentPairs):
    more: float = 1.0


@dataclasses.dataclass(frozen=True)
class Warmer(sim.Learned):
    more: float = 1.0


@dataclasses.dataclass(frozen=True)
class Wider(sim.MLP):
    more: int = 1


@dataclasses.dataclass(frozen=True)
class Narrower(sim.Cones):
    more: float = 1.0


@sim.register
class RegisteredHeavier(Heavier):
    pass


@sim.register
class RegisteredNoisier(Noisier):
    pass


@sim.register
class RegisteredWarmer(Warmer):
    pass


class OwnTower(Wider):
    def __call__(self, dim_in, *, rngs, dtype):
        return super().__call__(dim_in + self.more, rngs=rngs, dtype=dtype)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: sim.Experiment(loss=Heavier(0.1)), "loss is of the dataclass Heavier, which is not registered"),
        (lambda: sim.Experiment(data=Noisier()), "data is of the dataclass Noisier, which is not registered"),
        (lambda: sim.InfoNCE(Warmer(0.1)), "learned number is of the dataclass Warmer, which is not registered"),
        (lambda: sim.Experiment(loss=RegisteredHeavier(0.1)), "adds weight to InfoNCE .* ignore"),
        (lambda: sim.Experiment(data=RegisteredNoisier()), "adds more to LatentPairs .* ignore"),
        (lambda: sim.InfoNCE(RegisteredWarmer(0.1)), "adds more to Learned .* ignore"),
        (lambda: sim.Experiment(encoder_y=Wider()), "encoder_y is of class Wider"),
        (lambda: sim.Experiment(start=Narrower()), "start is of class Narrower"),
        (lambda: sim.Experiment(encoder_x="MLP"), "encoder_x is 'MLP'; it must be callable"),
        (lambda: sim.Experiment(normalize="no"), "normalize is 'no'; it must be True or False"),
        (lambda: sim.MLP(bias="no"), "bias is 'no'"),
        (lambda: sim.Linear(bias=0), "bias is 0"),
        (lambda: sim.LatentPairs(same_observation="False"), "same_observation is 'False'"),
        (lambda: sim.Sigmoid(0.1, train_bias=1), "train_bias is 1"),
        (lambda: sim.InfoNCE("0.1"), "temperature is '0.1'"),
        (lambda: sim.Sigmoid(True), "temperature is True"),
    ],
)
def test_settings_that_would_be_ignored_or_misread(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_subclass_with_a_call_of_its_own_is_an_own_tower():
    assert sim.Experiment(encoder_x=OwnTower()).encoder_x.more == 1


def falling(step):
    return 0.01 * (3.0 - step)


def dying(step):
    return jnp.where(step < 2, 0.1, jnp.nan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(learning_rate=falling), "learning_rate gives -0.01 at step 4; .* >= 0 at all 5 steps"),
        (dict(learning_rate=dying), "learning_rate gives nan at step 2"),
        (dict(loss=sim.InfoNCE(falling)), "loss.temperature gives 0 at step 3; .* > 0 at all 6 steps"),
        (dict(loss=sim.Sigmoid(falling), steps=3), "loss.temperature gives 0 at step 3"),  # of the last measure
    ],
)
def test_schedules_that_leave_their_range_are_refused_before_training(change, words, key):
    experiment = dataclasses.replace(sim.Experiment(steps=5), **change)
    with pytest.raises(ValueError, match=words):
        sim.train(experiment, key=key)
    (field,) = change.keys() - {"steps"}
    with pytest.raises(ValueError, match=words):
        sim.sweep(
            dataclasses.replace(sim.Experiment(), steps=experiment.steps),
            over={field: [change[field]]},
            seeds=1,
            key=key,
        )
