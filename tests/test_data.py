import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from simulator.settings import replace_field
from simulator.training.replica import swap_key


@pytest.mark.parametrize("latent", ["gaussian", "sphere", "clusters"])
@pytest.mark.parametrize("mixing", ["linear", "mlp"])
def test_shapes_and_finiteness(key, latent, mixing):
    batch = sim.sample(sim.LatentPairs(20, latent=latent, mixing=mixing), 20, key=key)
    assert batch.x.shape == (20, 32)
    assert batch.y.shape == (20, 48)
    assert np.isfinite(batch.x).all()
    assert (np.asarray(batch.labels) >= 0).all() == (latent == "clusters")


def test_pairs_share_their_latent(key):
    """Without noise, y is a linear function of x; between independent samples it is not."""
    config = sim.LatentPairs(noise=0.0)
    batch = sim.sample(config, 200, key=key, dtype=jnp.float64)
    x, y = np.asarray(batch.x), np.asarray(batch.y)
    assert np.linalg.matrix_rank(np.hstack([x, y]), tol=1e-8) == config.latent_dim
    assert np.linalg.matrix_rank(np.hstack([x, np.roll(y, 1, axis=0)]), tol=1e-8) == 2 * config.latent_dim


def test_noise_has_its_standard_deviation(key):
    config = sim.LatentPairs(noise=0.3)
    world = config.draw_world(key=key, dtype=jnp.float64)
    noisy = config.draw_pairs(world, 4000, key=key)
    clean = sim.LatentPairs(noise=0.0).draw_pairs(world, 4000, key=key)
    assert float(jnp.std(noisy.x - clean.x)) == pytest.approx(0.3, rel=0.02)


def test_sphere_has_its_radius(key):
    config = sim.LatentPairs(noise=0.0, latent="sphere", latent_dim=3, dim_x=3)
    world = config.draw_world(key=key, dtype=jnp.float64)
    z = np.asarray(config.draw_pairs(world, 50, key=key).x) @ np.linalg.inv(np.asarray(world["mix_x"][0]))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3**0.5, rtol=1e-8)


def test_same_key_same_data_other_key_other_data(key):
    config = sim.LatentPairs()
    one, again = sim.sample(config, 5, key=key), sim.sample(config, 5, key=key)
    np.testing.assert_array_equal(one.x, again.x)
    assert np.abs(one.x - sim.sample(config, 5, key=jax.random.key(1)).x).max() > 0.1


def latents(config, world, rows, modality):
    """What a linear mixing without noise saw, [n, latent + private]."""
    return np.asarray(rows) @ np.linalg.pinv(np.asarray(world[f"mix_{modality}"][0]))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 10), (0.03, 0), (0.99, 40), (1.0, 40)])
def test_mismatched_pairs(key, share, count):
    """The stated share has another row's y, every y occurs once, and x stays."""
    config = sim.LatentPairs(noise=0.0, mismatched=share)
    world = config.draw_world(key=key, dtype=jnp.float64)
    batch = config.draw_pairs(world, 40, key=key)
    right = config.held_out().draw_pairs(world, 40, key=key)
    np.testing.assert_array_equal(batch.x, right.x)
    partner = [int(np.flatnonzero((np.asarray(right.y) == row).all(axis=1))[0]) for row in np.asarray(batch.y)]
    assert sorted(partner) == list(range(40))
    assert np.sum(np.array(partner) != np.arange(40)) == count
    traced = jax.jit(lambda p: replace_field(config, "mismatched", p).draw_pairs(world, 40, key=key).y)(share)
    np.testing.assert_allclose(traced, batch.y, atol=1e-12)


def test_private_latents(key):
    """Each modality sees the shared latent and its own, of the stated dimension and scale; the shared part of the world
    does not depend on them."""
    config = sim.LatentPairs(noise=0.0, latent_dim=3, private_dim_x=2, private_dim_y=4, private_scale_y=0.5)
    world = config.draw_world(key=key, dtype=jnp.float64)
    batch = config.draw_pairs(world, 4000, key=key)
    seen_x, seen_y = latents(config, world, batch.x, "x"), latents(config, world, batch.y, "y")
    assert (seen_x.shape, seen_y.shape) == ((4000, 5), (4000, 7))
    np.testing.assert_allclose(seen_x[:, :3], seen_y[:, :3], atol=1e-10)
    np.testing.assert_allclose(seen_x[:, 3:].std(axis=0), 1.0, rtol=0.05)
    np.testing.assert_allclose(seen_y[:, 3:].std(axis=0), 0.5, rtol=0.05)
    between = np.corrcoef(np.hstack([seen_x, seen_y[:, 3:]]).T) - np.eye(9)
    assert np.abs(between).max() < 0.07
    plain = sim.LatentPairs(noise=0.0, latent_dim=3)
    np.testing.assert_array_equal(plain.draw_world(key=key)["mix_y"][0], config.draw_world(key=key)["mix_y"][0][:3])


def test_several_queries_per_gallery_row(key):
    config = sim.LatentPairs(noise=0.1, queries_per_gallery=3, latent="clusters")
    batch = sim.sample(config, 10, key=key, dtype=jnp.float64)
    x, y = np.asarray(batch.x), np.asarray(batch.y)
    for first in (0, 3, 6, 9):
        group = slice(first, first + 3)
        assert (x[group] == x[first]).all()
        assert (np.asarray(batch.labels[group]) == int(batch.labels[first])).all()
    assert len(np.unique(x, axis=0)) == 4
    assert len(np.unique(y, axis=0)) == 10
    assert len(np.unique(sim.sample(config.held_out(), 10, key=key).x, axis=0)) == 10


def test_same_observation(key):
    batch = sim.sample(sim.LatentPairs(dim_x=9, dim_y=9, same_observation=True), 20, key=key)
    np.testing.assert_array_equal(batch.x, batch.y)
    wrong = sim.sample(sim.LatentPairs(dim_x=9, dim_y=9, same_observation=True, mismatched=1.0), 20, key=key)
    assert (np.asarray(wrong.x) != np.asarray(wrong.y)).any(axis=1).all()


def test_anisotropy(key):
    """Standard deviations fall as a power of the coordinate, with the total variance kept."""
    config = sim.LatentPairs(noise=0.0, latent_dim=4, anisotropy=1.5)
    world = config.draw_world(key=key, dtype=jnp.float64)
    spread = latents(config, world, config.draw_pairs(world, 20_000, key=key).x, "x").std(axis=0)
    np.testing.assert_allclose(spread / spread[0], np.arange(1, 5) ** -1.5, rtol=0.03)
    assert float((spread**2).sum()) == pytest.approx(4.0, rel=0.02)


def test_class_imbalance(key):
    config = sim.LatentPairs(latent="clusters", num_clusters=4, class_imbalance=1.0)
    labels = np.asarray(sim.sample(config, 20_000, key=key).labels)
    np.testing.assert_allclose(np.bincount(labels) / 20_000, np.array([12, 6, 4, 3]) / 25, atol=0.012)


def test_knobs_that_are_off_change_nothing(key):
    """The draws are those of the release before the knobs: stored results of other experiments stay what they are."""
    batch = sim.sample(sim.LatentPairs(8, latent_dim=2, dim_x=3, dim_y=4), 2, key=key)
    before = [[-0.6780884, -0.14214496, -0.0638158], [-2.125439, -0.70666856, -0.16687085]]
    np.testing.assert_allclose(batch.x, before, rtol=1e-6)
    np.testing.assert_allclose(batch.y[0], [-0.85235816, 0.4185157, -0.25499558, -0.8001228], rtol=1e-6)


def test_digits_are_halves_of_images(key):
    from sklearn.datasets import load_digits

    batch = sim.sample(sim.Digits(), 1797, key=key, dtype=jnp.float64)
    images, labels = load_digits(return_X_y=True)
    whole = np.concatenate([np.asarray(batch.x).reshape(-1, 8, 4), np.asarray(batch.y).reshape(-1, 8, 4)], axis=2)
    found = {(image.tobytes(), int(label)) for image, label in zip(whole * 16, batch.labels, strict=True)}
    assert found == {(i.reshape(8, 8).tobytes(), int(k)) for i, k in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(num_pairs=1), "num_pairs"),
        (dict(latent_dim=0), "latent_dim"),
        (dict(noise=-0.1), "noise"),
        (dict(latent="cube"), "one of"),
        (dict(mixing="cnn"), "one of"),
        (dict(num_pairs=5, latent="clusters", num_clusters=10), "10 clusters and only 5 pairs"),
        (dict(mismatched=1.1), "mismatched is 1.1"),
        (dict(anisotropy=-1.0), "anisotropy"),
        (dict(private_dim_x=-1), "private_dim_x"),
        (dict(private_scale_y=float("nan")), "private_scale_y"),
        (dict(queries_per_gallery=0), "queries_per_gallery"),
        (dict(class_imbalance=1.0), "has no classes"),
        (dict(same_observation=True), "needs dim_x = dim_y"),
        (dict(same_observation="yes"), "same_observation"),
    ],
)
def test_bad_settings(change, words):
    with pytest.raises(ValueError, match=words):
        sim.LatentPairs(**change)


def test_digits_need_held_out_pairs(key):
    with pytest.raises(ValueError, match="held out"):
        sim.Digits(1797)
    with pytest.raises(ValueError, match="1797"):
        sim.sample(sim.Digits(), 1798, key=key)


@pytest.fixture
def drawn_with(monkeypatch):
    """The keys that random numbers were drawn with so far."""
    used = []

    def spy(function):
        def called(key, *arguments, **keywords):
            used.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return function(key, *arguments, **keywords)

        return called

    for name in ("normal", "permutation", "randint", "categorical"):
        monkeypatch.setattr(jax.random, name, spy(getattr(jax.random, name)))
    return used


@pytest.mark.parametrize("mixing", ["linear", "mlp"])
@pytest.mark.parametrize("more", [dict(), dict(latent="clusters"), dict(latent="clusters", class_imbalance=1.0)])
def test_no_key_is_drawn_with_twice(key, drawn_with, mixing, more):
    """JAX's split(key, n)[i] is fold_in(key, i): a key that is split and folded may give one key twice."""
    config = sim.LatentPairs(
        20, dim_others=(3, 4), private_dim_x=2, private_dim_y=3, mismatched=0.5, mixing=mixing, **more
    )
    sim.sample(config, 20, key=key)
    assert len(drawn_with) == len(set(drawn_with)) >= 15


def test_swaps_have_a_key_of_their_own(key):
    of_batch = jax.random.fold_in(key, 7)
    below = [of_batch, *jax.random.split(of_batch, 8), *jax.random.split(jax.random.split(of_batch)[1], 8)]
    words = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in [*jax.random.split(key, 8), *below]}
    assert tuple(np.asarray(jax.random.key_data(swap_key(key, 7))).tolist()) not in words
    assert tuple(np.asarray(jax.random.key_data(jax.random.fold_in(of_batch, 1))).tolist()) in words  # the near miss
