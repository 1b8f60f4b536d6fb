"""Every noise under `measured_robustness`: those that ship, and functions of the user's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim


def own_gaussian(gallery, queries, key):
    return gallery + 0.3 * jax.random.normal(key, gallery.shape), queries


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Every coordinate of the gallery is lost with some probability."""

    probability: float

    def __call__(self, gallery, queries, key):
        return jnp.where(jax.random.bernoulli(key, self.probability, gallery.shape), 0.0, gallery), queries


NOISES = {
    "gaussian": sim.GaussianNoise(0.3),
    "both": sim.GaussianNoise(0.3, on="both"),
    "bins": sim.Quantization(4, range="minmax"),
    "own": own_gaussian,
    "own class": Dropped(0.2),
}


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(5, 4)), rng.normal(size=(12, 4))


def measured(arrays, noise, **changes):
    return sim.measured_robustness(*arrays, noise=noise, **(dict(num_draws=400, key=jax.random.key(1)) | changes))


def assert_same(found, other):
    for one, two in zip(found, other, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NOISES)
def test_every_noise_gives_shares_with_their_errors(arrays, name):
    labels = np.arange(12) % 5
    found = measured(arrays, NOISES[name], labels=labels)
    assert found.per_query.shape == (12,)
    assert 0.2 < found.mean < 0.999
    np.testing.assert_allclose(found.mean, found.per_query.mean(), rtol=1e-12)
    assert_same(found, measured(arrays, NOISES[name], labels=labels))  # the key decides
    distances = np.sum((arrays[1][:, None] - arrays[0][None]) ** 2, axis=-1)
    assert found.clean_accuracy == np.mean(distances.argmin(axis=1) == labels)
    if name == "bins":
        assert found.standard_error == 0
    else:
        again = [measured(arrays, NOISES[name], key=jax.random.key(seed)).mean for seed in range(16)]
        assert 0.4 < np.std(again, ddof=1) / found.standard_error < 1.8  # chi-squared with 15 degrees of freedom
        assert np.isnan(measured(arrays, NOISES[name], num_draws=1).standard_error)


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot"])
def test_own_gaussian_noise_is_gaussian_noise(arrays, rng, scoring):
    """Within 4 standard errors of the exact value, with a bias; control: noise a tenth larger."""
    bias = rng.normal(size=5)
    found = measured(arrays, own_gaussian, num_draws=20_000, scoring=scoring, bias=bias)
    exact, other = (sim.exact_robustness(*arrays, sigma=s, scoring=scoring, bias=bias).mean() for s in (0.3, 0.33))
    assert abs(found.mean - exact) < 4 * found.standard_error < abs(found.mean - other)


def test_rows_arrive_in_float64_whatever_they_are(arrays):
    seen = []

    def spy(gallery, queries, key):
        seen.append((gallery.dtype, queries.dtype))
        return own_gaussian(gallery, queries, key)

    rows = [part.astype(np.float32) for part in arrays]
    found = measured(rows, spy)
    assert set(seen) == {(np.dtype(float), np.dtype(float))}
    with jax.enable_x64(False):
        assert_same(found, measured(rows, spy))


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (0.3, "noise is 0.3; it must be GaussianNoise"),
        (sim.GaussianNoise, "it must be GaussianNoise"),
        (lambda gallery, queries: (gallery, queries), "the noise fails while it is traced: TypeError"),
        (lambda gallery, queries, key: gallery, r"it must give \(gallery, queries\)"),
        (lambda gallery, queries, key: (gallery[:2], queries), r"real numbers of shapes \[\(5, 4\), \(12, 4\)\]"),
        (lambda gallery, queries, key: (gallery + 1j, queries), "real numbers"),
        (lambda gallery, queries, key: (gallery + RANDOM.normal(size=gallery.shape), queries), "another program each time"),
        (lambda gallery, queries, key: (jnp.log(gallery), queries), "NaN or infinity in draw 0 of 400"),
    ],
)  # fmt: skip
def test_what_is_no_noise_is_refused(arrays, noise, words):
    with pytest.raises(ValueError, match=words):
        measured(arrays, noise)
