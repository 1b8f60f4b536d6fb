import jax
import mpmath
import numpy as np
import pytest

import simulator as sim
from simulator.robustness import changed_decisions, nearest, orthonormal_basis, scores

NOISE = sim.GaussianNoise(0.3)


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(5, 4)), rng.normal(size=(12, 4))


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot", "cosine"])
def test_scores_equal_loops(arrays, rng, scoring):
    gallery, queries = arrays
    bias = rng.normal(size=5)
    found = scores(gallery, queries, scoring=scoring, bias=bias)
    for k, x in enumerate(gallery):
        for i, y in enumerate(queries):
            value = {
                "sqeuclidean": -np.sum((y - x) ** 2) - bias[k],
                "dot": x @ y + bias[k],
                "cosine": x @ y / np.linalg.norm(x) / np.linalg.norm(y) + bias[k],
            }[scoring]
            np.testing.assert_allclose(found[k, i], value, rtol=1e-10)


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_measured_agrees_with_exact_over_many_seeds(arrays, rng, scoring, with_bias):
    """Within 4 standard errors for 32 seeds; controls: noise counted twice, and the bias forgotten."""
    gallery, queries = arrays
    bias = rng.normal(size=5) if with_bias else None
    estimates = [
        sim.measured_robustness(
            gallery, queries, noise=NOISE, num_draws=2000, key=jax.random.key(seed), scoring=scoring, bias=bias
        )
        for seed in range(32)
    ]
    mean = np.mean([e.mean for e in estimates])
    error = np.mean([e.standard_error for e in estimates]) / 32**0.5
    exact = sim.exact_robustness(gallery, queries, sigma=0.3, scoring=scoring, bias=bias)
    assert abs(mean - exact.mean()) < 4 * error
    control = sim.exact_robustness(gallery, queries, sigma=0.3 * 2**0.5, scoring=scoring, bias=bias)
    assert abs(mean - control.mean()) > 4 * error
    if with_bias:
        forgotten = sim.exact_robustness(gallery, queries, sigma=0.3, scoring=scoring)
        assert abs(mean - forgotten.mean()) > 4 * error
    # The standard error is that of the scatter between seeds (chi-squared with 31 degrees of freedom).
    scatter = np.std([e.mean for e in estimates], ddof=1)
    assert 0.6 < scatter / (error * 32**0.5) < 1.5


@pytest.mark.parametrize(("dimensions", "num_classes"), [(1, 3), (3, 5), (16, 4), (64, 30)])
def test_exact_equals_high_precision_integral(rng, dimensions, num_classes):
    gallery, query = rng.normal(size=(num_classes, dimensions)), rng.normal(size=(1, dimensions))
    sigma = 0.7
    noncentral = np.sum((gallery - query) ** 2, axis=1) / sigma**2
    best = int(np.argmin(noncentral))

    def density(s, l):  # noqa: E741
        nu = mpmath.mpf(dimensions) / 2 - 1
        return mpmath.exp(-(s + l) / 2) * (s / l) ** (nu / 2) * mpmath.besseli(nu, mpmath.sqrt(l * s)) / 2

    def survival(s, l):  # noqa: E741
        half, total = mpmath.mpf(l) / 2, mpmath.mpf(0)
        for j in range(int(l + 12 * l**0.5) + 40):
            weight = mpmath.exp(-half + j * mpmath.log(half) - mpmath.loggamma(j + 1))
            total += weight * mpmath.gammainc(mpmath.mpf(dimensions) / 2 + j, s / 2, mpmath.inf, regularized=True)
        return total

    if num_classes * dimensions > 100:  # the loops above take minutes; SciPy's functions on a fine grid instead
        from scipy.stats import ncx2

        u = np.linspace(1e-6, np.sqrt(noncentral[best] + dimensions) + 12, 40_001)
        values = 2 * u * ncx2.pdf(u**2, dimensions, noncentral[best])
        for k in set(range(num_classes)) - {best}:
            values = values * ncx2.sf(u**2, dimensions, noncentral[k])
        expected = np.trapezoid(values, u)
    else:
        with mpmath.workdps(20):
            integrand = lambda u: (
                2
                * u
                * density(u * u, noncentral[best])
                * mpmath.fprod(
                    survival(u * u, noncentral[k]) for k in range(num_classes) if k != best
                )
            )
            top = float(np.sqrt(noncentral[best] + dimensions)) + 9
            expected = float(mpmath.quad(integrand, np.linspace(1e-9, top, 5).tolist(), maxdegree=4))
    found = sim.exact_robustness(gallery, query, sigma=sigma)[0]
    assert abs(found - expected) < 1e-8
    near_miss = sim.exact_robustness(np.pad(gallery, ((0, 0), (0, 1))), np.pad(query, ((0, 0), (0, 1))), sigma=sigma)[0]
    assert abs(near_miss - expected) > 1e-6  # one dimension too many


def test_exact_dot_is_invariant_to_moving_the_gallery(arrays):
    gallery, queries = arrays
    exact = sim.exact_robustness(gallery, queries, sigma=0.3, scoring="dot")
    moved = sim.exact_robustness(gallery + 2.0, queries, sigma=0.3, scoring="dot")
    np.testing.assert_allclose(moved, exact, rtol=1e-10)
    assert np.abs(sim.exact_robustness(gallery + 2.0, queries, sigma=0.3) - exact).max() > 1e-3


def test_exact_limits(arrays):
    gallery, queries = arrays
    np.testing.assert_allclose(sim.exact_robustness(gallery, queries, sigma=1e-6), 1.0)
    np.testing.assert_allclose(sim.exact_robustness(gallery, queries, sigma=1e4), 0.2, atol=2e-3)
    np.testing.assert_allclose(sim.exact_robustness(gallery[:1], queries, sigma=1.0), 1.0, rtol=1e-12)
    same = np.ones((4, 6))
    np.testing.assert_allclose(sim.exact_robustness(same, np.zeros((2, 6)), sigma=0.5), 0.25, rtol=1e-9)


def test_thousand_classes_in_many_dimensions(rng):
    """The regime where SciPy overflows and coarse quadrature fails."""
    from simulator.theory.robustness import _stays_nearest

    gallery = rng.normal(size=(1000, 512)) / 512**0.5
    query = gallery[:1] + 0.5 * rng.normal(size=(1, 512)) / 512**0.5
    for sigma in (0.022, 0.05, 0.5):
        found = sim.exact_robustness(gallery, query, sigma=sigma)[0]
        finer = _stays_nearest(np.sum((gallery - query) ** 2, axis=1) / sigma**2, np.zeros(1000), 512, 500)
        assert abs(found - finer) < 1e-9


def test_same_key_pairs_the_draws_across_alpha(arrays):
    gallery, queries = arrays
    common = dict(num_draws=50, key=jax.random.key(3))
    one = sim.measured_robustness(gallery, queries, noise=NOISE, **common)
    again = sim.measured_robustness(gallery, queries, noise=NOISE, **common)
    np.testing.assert_array_equal(one.per_query, again.per_query)
    # The number of draws does not change the earlier ones, so a longer run extends a shorter one.
    longer = sim.measured_robustness(gallery, queries, noise=NOISE, num_draws=51, key=jax.random.key(3))
    assert np.all(longer.per_query * 51 - one.per_query * 50 >= -1e-9)


@pytest.mark.parametrize("on", ["gallery", "queries", "both", "shared"])
def test_noise_targets(arrays, on):
    gallery, queries = arrays
    found = sim.measured_robustness(
        gallery, queries, noise=sim.GaussianNoise(0.5, on=on), num_draws=200, key=jax.random.key(0)
    )
    assert 0.2 < found.mean < 1.0
    assert np.isnan(found.accuracy)


def test_both_is_worse_than_either(arrays):
    gallery, queries = arrays
    rob = {
        on: sim.measured_robustness(
            gallery, queries, noise=sim.GaussianNoise(0.5, on=on), num_draws=2000, key=jax.random.key(0)
        ).mean
        for on in ("gallery", "queries", "both")
    }
    assert rob["both"] < min(rob["gallery"], rob["queries"])


def test_projected_noise(rng):
    """Noise within a subspace and orthogonal to a direction is exactly that."""
    gallery, direction = rng.normal(size=(6, 5)), rng.normal(size=5)
    noise = sim.GaussianNoise(1.0, within=gallery[:3], orthogonal_to=direction)
    from simulator.robustness import _noise_projection

    projection = _noise_projection(noise, 5)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-12)
    np.testing.assert_allclose(projection, projection.T, atol=1e-12)
    np.testing.assert_allclose(projection @ direction, 0.0, atol=1e-12)
    basis = orthonormal_basis(gallery[:3])
    np.testing.assert_allclose(basis.T @ basis @ projection, projection, atol=1e-12)
    assert round(np.trace(projection)) == 2


def test_accuracy_beside_robustness(arrays):
    gallery, queries = arrays
    labels = np.asarray(nearest(gallery, queries))
    found = sim.measured_robustness(gallery, queries, noise=NOISE, num_draws=100, key=jax.random.key(0), labels=labels)
    assert found.clean_accuracy == 1.0
    assert found.accuracy == pytest.approx(found.mean)
    wrong = sim.measured_robustness(
        gallery, queries, noise=NOISE, num_draws=100, key=jax.random.key(0), labels=(labels + 1) % 5
    )
    assert wrong.mean == found.mean  # stays wrong counts as robust
    assert wrong.clean_accuracy == 0.0


def test_no_noise_changes_nothing(arrays):
    gallery, queries = arrays
    found = sim.measured_robustness(gallery, queries, noise=sim.GaussianNoise(0.0), num_draws=3, key=jax.random.key(0))
    assert found.mean == 1.0
    assert changed_decisions(gallery, gallery, queries, noise=NOISE, num_draws=5, key=jax.random.key(0)) == 0


def test_real_clip_invariance(real_data):
    """K = 100: the near miss `orthogonal to g` changes decisions, `orthogonal to g'` none."""
    gallery = np.load(real_data / "clip_gallery.npy")[:100].astype(float)
    queries = np.load(real_data / "clip_queries.npy").astype(float)
    closer = sim.GapCloser().fit(gallery, queries)
    common = dict(num_draws=20, key=jax.random.key(0))
    counts = [
        changed_decisions(
            gallery,
            closer.transform(gallery),
            queries,
            noise=sim.GaussianNoise(0.03, orthogonal_to=direction),
            **common,
        )
        for direction in (closer.direction_, closer.gap_)
    ]
    assert counts[0] == 0 < 100 < counts[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(gallery=np.ones((3, 2))), "dimensions"),
        (dict(queries=np.full((4, 4), np.inf)), "infinity"),
        (dict(num_draws=0), "num_draws"),
        (dict(scoring="euclid"), "scoring"),
        (dict(bias=np.ones(3)), "bias"),
        (dict(labels=np.full(12, 7)), "label 7"),
        (dict(labels=np.ones(3, int)), "labels have shape"),
        (dict(noise=sim.GaussianNoise(0.1, orthogonal_to=np.ones(3))), "noise directions have 3"),
        (dict(noise=sim.GaussianNoise(0.1, within=np.ones((1, 4)), orthogonal_to=np.ones(4))), "nothing is left"),
    ],
)
def test_bad_input(arrays, change, words):
    arguments = dict(gallery=arrays[0], queries=arrays[1], noise=NOISE, num_draws=2, key=jax.random.key(0)) | change
    with pytest.raises(ValueError, match=words):
        sim.measured_robustness(arguments.pop("gallery"), arguments.pop("queries"), **arguments)


def test_bad_noise_and_bad_exact(arrays):
    with pytest.raises(ValueError, match="sigma is -1"):
        sim.GaussianNoise(-1)
    with pytest.raises(ValueError, match="one of"):
        sim.GaussianNoise(1.0, on="rows")
    with pytest.raises(ValueError, match="sigma"):
        sim.exact_robustness(*arrays, sigma=0.0)
    with pytest.raises(ValueError, match="scoring"):
        sim.exact_robustness(*arrays, sigma=0.1, scoring="cosine")
