"""More than two modalities: losses over chosen pairs, the gap between all of them, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from flax import nnx

import simulator as sim
from experiments.commands.sweep_file import read_sweep
from simulator.encoders import place_in_cones
from simulator.theory import modalities as theory
from simulator.training.runs import initial_params

TOWER = sim.Linear(6)
DATA = sim.LatentPairs(24, latent_dim=3, dim_x=5, dim_y=7, dim_others=(4,))
SMALL = dict(
    data=DATA, encoder_x=TOWER, encoder_y=TOWER, encoder_others=(TOWER,), batch_size=12, steps=3, eval_pairs=16, eval_points=2,
)  # fmt: skip


def small(**changes) -> sim.Experiment:
    return sim.Experiment(**(SMALL | changes))


def one_step(experiment, params, pairs):
    """Rows of free embeddings after a step of gradient descent on the losses of these pairs of places, by hand."""
    rows = [params[name]["rows"][...][0] for name in experiment.encoders]
    loss = lambda rows: sum(experiment.loss(rows[a], rows[b]) for a, b in pairs)
    return [row - experiment.learning_rate * slope for row, slope in zip(rows, jax.grad(loss)(rows), strict=True)]


@pytest.mark.parametrize("between", [None, ("xy", "xz", "ux")])
def test_the_losses_of_the_chosen_pairs_are_added_up(key, between):
    table = sim.Table(5)
    with jax.enable_x64(True):
        experiment = sim.Experiment(
            data=sim.LatentPairs(8, dim_others=(3, 4)), encoder_x=table, encoder_y=table, encoder_others=(table, table),
            losses_between=between, start=None, normalize=False, dtype="float64", optimizer=optax.sgd, learning_rate=0.3,
            loss=sim.InfoNCE(0.7, similarity="sqeuclidean"), batch_size=8, steps=1, eval_pairs=8, eval_points=2,
        )  # fmt: skip
        params = initial_params(experiment, key[None])
        run = sim.train(experiment, key=key)
        found = run.x, run.y, *run.others
        every = [(a, b) for a in range(4) for b in range(a + 1, 4)]
        star = [(0, 1), (0, 2), (3, 0)]
        wanted, other = (
            one_step(experiment, params, pairs) for pairs in ((every, star) if between is None else (star, every))
        )
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        assert np.abs(np.stack(found) - np.stack(other)).max() > 1e-3
        gaps = [np.linalg.norm(np.mean(found[b] - found[a], axis=0)) for a, b in every]
        np.testing.assert_allclose(run.history.gap_norm[-1], gaps, rtol=1e-10)
        assert min(gaps) > 1e-3  # no two tables start alike
        assert run.history.between.values.tolist() == ["xy", "xz", "xu", "yz", "yu", "zu"]


@pytest.mark.parametrize(
    ("count", "angle"), [(2, 1e-3), (3, 1e-3), (3, 0.9), (3, math.acos(-1 / 2)), (5, 1.1), (5, math.acos(-1 / 4))]
)
def test_any_two_cones_are_at_the_given_angle(key, count, angle):
    inputs = [jax.random.normal(jax.random.fold_in(key, m), (20, 4)) for m in range(count)]
    towers = [TOWER(4, rngs=nnx.Rngs(params=m), dtype=jnp.float32) for m in range(count)]
    place_in_cones(sim.Cones(angle), towers, inputs, key=key)
    means = np.stack([np.asarray(tower(rows), float).mean(axis=0) for tower, rows in zip(towers, inputs, strict=True)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    sines = np.sqrt(np.sum((means[:, None] - means[None]) ** 2, axis=-1))[np.triu_indices(count, 1)] / 2
    np.testing.assert_allclose(sines, math.sin(angle / 2), rtol=2e-4)


def test_arrays_of_three_modalities_are_trained_swept_and_stored(key, tmp_path):
    rng = np.random.default_rng(0)
    x, y, z = (rng.normal(size=(40, dim)) for dim in (5, 7, 4))
    data = sim.Pairs(x, y, np.arange(40), others=(z,))
    experiment = small(data=data, losses_between=("xy", "zy"))
    run = sim.train(experiment, key=key)
    for tower, rows, found in zip(
        (run.encoder_x, run.encoder_y, *run.encoder_others), (x, y, z), (run.x, run.y, *run.others), strict=True
    ):
        rows = tower(jnp.asarray(rows, jnp.float32)[np.asarray(run.labels)])
        np.testing.assert_allclose(rows / jnp.linalg.norm(rows, axis=1, keepdims=True), found, atol=1e-5)
    over = {"loss.temperature": [0.01, 0.1]}
    found = sim.sweep(
        experiment, over=over, seeds=2, key=key, store=tmp_path / "s", metrics={"z_norm": norm_of_z}, keep_params=True
    )
    one = found.isel({"loss.temperature": 1, "seed": 0})
    towers, rows = sim.towers(experiment, one), (x, y, z)
    for tower, inputs, name in zip(towers, rows, "xyz", strict=True):
        outputs = np.asarray(tower(jnp.asarray(inputs, jnp.float32)[one.labels.values]))
        np.testing.assert_allclose(outputs / np.linalg.norm(outputs, axis=1, keepdims=True), one[name], atol=1e-5)
    assert found.gap.dims == ("loss.temperature", "seed", "step", "between", "embed")
    assert found.gap_norm.sel(between="yz").sizes == {"loss.temperature": 2, "seed": 2, "step": 2}
    assert found.z.dims == ("loss.temperature", "seed", "pair", "embed")
    np.testing.assert_allclose(found.z_norm, 4.0, rtol=1e-5)
    gaps = np.linalg.norm((found.z - found.y).mean("pair"), axis=-1)
    np.testing.assert_allclose(found.gap_norm.sel(between="yz").isel(step=-1), gaps, rtol=1e-5)
    assert xr.open_zarr(tmp_path / "s" / "results.zarr").between.values.tolist() == ["xy", "xz", "yz"]


def norm_of_z(snapshot):
    return jnp.sqrt(jnp.sum(snapshot.others[0] ** 2))


def test_a_third_modality_leaves_the_pairs_and_the_towers_of_two_as_they_are(key):
    three, two = small(start=None), small(start=None, data=dataclasses.replace(DATA, dim_others=()), encoder_others=())
    batch, fewer = sim.sample(three.data, 9, key=key), sim.sample(two.data, 9, key=key)
    assert [rows.shape for rows in batch.others] == [(9, 4)]
    np.testing.assert_array_equal(batch.x, fewer.x)
    np.testing.assert_array_equal(batch.y, fewer.y)
    params = initial_params(three, key[None]), initial_params(two, key[None])
    for name in "xy":
        jax.tree.map(np.testing.assert_array_equal, *(found[name] for found in params))


def test_every_modality_sees_the_same_latent(key):
    """Without noise three linear modalities lie on one subspace of the latent's dimension."""
    batch = sim.sample(dataclasses.replace(DATA, noise=0.0), 200, key=key)
    together = np.concatenate([batch.x, batch.y, *batch.others], axis=1)
    assert np.linalg.matrix_rank(together, tol=1e-3) == 3
    shuffled = np.concatenate([batch.x, batch.y, batch.others[0][::-1]], axis=1)
    assert np.linalg.matrix_rank(shuffled, tol=1e-3) == 6


class Narrow(sim.LatentPairs):
    def draw_pairs(self, world, n, key):
        return dataclasses.replace(super().draw_pairs(world, n, key), others=())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: small(encoder_others=()), r"encoder_others is \(\) and LatentPairs has 3 modalities; .* 1 towers"),
        (lambda: small(encoder_others=[TOWER]), "must be a tuple of 1 towers"),
        (lambda: small(encoder_others=(4,)), "encoder_z is 4; it must be callable"),
        (lambda: sim.Experiment(encoder_others=(TOWER,)), "has 2 modalities"),
        (lambda: small(losses_between=("xy", "xq")), "different pairs among xy, xz, yz, yx, zx, zy"),
        (lambda: small(losses_between=("xy", "xy", "xz")), "different pairs"),
        (lambda: small(losses_between=("xy",)), "leaves out z"),
        (lambda: small(start=sim.Cones(2.2)), "at most 2.0944"),
        (lambda: small(swap_probability=0.1), "swap_probability is 0.1 and there are 3 modalities"),
        (lambda: small(batch_shards=2), "batch_shards is 2 and there are 3 modalities"),
        (lambda: sim.LatentPairs(dim_others=4), "must be a tuple of at most 4 dimensions"),
        (lambda: sim.LatentPairs(dim_others=(2,) * 5), "must be a tuple of at most 4 dimensions"),
        (lambda: sim.LatentPairs(dim_others=(0,)), "dim_others"),
        (lambda: sim.Pairs(np.eye(4), np.eye(4), others=(np.eye(3),)), r"Pairs.others\[0\] has 3"),
        (lambda: sim.Pairs(np.eye(4), np.eye(4), others=[np.eye(4)]), "must be a tuple of arrays"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_towers_and_sources_are_checked_before_training(key):
    wide = small(encoder_others=(sim.Linear(7),), start=None)
    with pytest.raises(ValueError, match="encoder_z in 7; give both the same embed_dim"):
        sim.train(wide, key=key)
    narrow = sim.register(dataclasses.dataclass(frozen=True)(Narrow))(24, dim_others=(4,))
    with pytest.raises(ValueError, match="gives 2 modalities and Narrow has 3"):
        sim.train(small(data=narrow), key=key)


def test_a_file_names_further_towers_and_pairs(tmp_path):
    path = tmp_path / "three.toml"
    path.write_text(
        'losses_between = ["xy", "xz"]\n[data]\ndim_others = [6]\n[[encoder_others]]\ntype = "Linear"\nembed_dim = 32\n'
    )
    experiment = read_sweep(path)["experiment"]
    assert experiment.losses_between == ("xy", "xz")
    assert experiment.encoder_others == (sim.Linear(32),)
    assert experiment.data.dim_others == (6,)


def simplex(count: int, side: float, d: int) -> np.ndarray:
    """Vertices of a regular simplex about 0, [count, d], turned at random."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0]
    return side / 2**0.5 * (np.eye(count) - 1 / count) @ turn[:count]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_the_last_mode_stops_growing_at_the_critical_ratio(count):
    """The control is (M − 1)τ, which is right for two modalities alone."""
    top = lambda ratio: theory.mode_rates(simplex(count, (0.1 * ratio) ** 0.5, 8), 0.1).rates[-1]
    critical = theory.critical_ratio(count)
    assert abs(top(critical)) < 1e-9
    assert top(0.999 * critical) > 1e-3 and top(1.001 * critical) < -1e-3
    assert abs(top(count - 1)) < 1e-9 if count == 2 else abs(top(count - 1)) > 1


@pytest.mark.parametrize("between", [None, [(0, 1), (0, 2), (0, 3)], [(0, 1), (1, 2), (2, 3), (3, 0)]])
def test_modes_are_those_of_the_exact_flow(rng, between):
    """At zero size; control: a gap counted once instead of twice."""
    means, tau, n = rng.normal(size=(4, 5)), 0.7, 6
    pairs = between or [(a, b) for a in range(4) for b in range(a + 1, 4)]
    loss = lambda rows: sum(sim.info_nce(rows[a], rows[b], temperature=tau, similarity="sqeuclidean") for a, b in pairs)
    rows = jnp.repeat(means[:, None, :], n, axis=1)
    pattern = rng.normal(size=n)
    pattern -= pattern.mean()
    found = theory.mode_rates(means, tau, between)
    for rate, mode in zip(found.rates, found.modes, strict=True):
        change = jnp.asarray(mode[:, None, :] * pattern[None, :, None])
        response = jax.jvp(jax.grad(loss), (rows,), (change,))[1]
        np.testing.assert_allclose(-n * response, rate * change, atol=1e-10)
    wrong = theory.mode_rates(means / 2**0.5, tau, between).rates
    assert np.abs(wrong - found.rates).max() > 0.1


@pytest.mark.parametrize("count", [3, 4])
def test_a_star_never_compresses(count):
    star = [(0, leaf) for leaf in range(1, count)]
    for ratio in (1.0, 30.0, 1e3, 1e5):
        assert theory.mode_rates(simplex(count, ratio**0.5, 6), 1.0, star).rates[-1] > 0
        assert (
            ratio < theory.critical_ratio(count) or theory.mode_rates(simplex(count, ratio**0.5, 6), 1.0).rates[-1] < 0
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(means=np.ones((3, 2))), "no gap"),
        (dict(temperature=0.0), "temperature"),
        (dict(between=[(0, 3)]), "different pairs"),
        (dict(between=[(0, 1), (1, 0)]), "different pairs"),
        (dict(between=[]), "different pairs"),
    ],
)
def test_bad_input_of_the_modes(change, words):
    with pytest.raises(ValueError, match=words):
        theory.mode_rates(**(dict(means=np.eye(3), temperature=1.0) | change))
