import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from simulator.data import draw_pairs, draw_world


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
    world = draw_world(config, key=key, dtype=jnp.float64)
    noisy = draw_pairs(config, world, 4000, key=key)
    clean = draw_pairs(sim.LatentPairs(noise=0.0), world, 4000, key=key)
    assert float(jnp.std(noisy.x - clean.x)) == pytest.approx(0.3, rel=0.02)


def test_sphere_has_its_radius(key):
    config = sim.LatentPairs(noise=0.0, latent="sphere", latent_dim=3, dim_x=3)
    world = draw_world(config, key=key, dtype=jnp.float64)
    z = np.asarray(draw_pairs(config, world, 50, key=key).x) @ np.linalg.inv(np.asarray(world["mix_x"][0]))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3**0.5, rtol=1e-8)


def test_same_key_same_data_other_key_other_data(key):
    config = sim.LatentPairs()
    one, again = sim.sample(config, 5, key=key), sim.sample(config, 5, key=key)
    np.testing.assert_array_equal(one.x, again.x)
    assert np.abs(one.x - sim.sample(config, 5, key=jax.random.key(1)).x).max() > 0.1


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
