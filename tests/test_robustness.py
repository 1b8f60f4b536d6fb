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


def closed_form_integral(noncentral, dimensions):
    """The K-class integral in 30 digits, from the elementary densities of one and three dimensions:
    f_1(s; λ) = [φ(u − v) + φ(u + v)]/(2u), f_3 = [φ(u − v) − φ(u + v)]/(2v), F_3 = F_1 − 2 f_3, with u = √s, v = √λ."""
    best = int(np.argmin(noncentral))
    with mpmath.workdps(30):
        v = [mpmath.sqrt(mpmath.mpf(value)) for value in noncentral]

        def third(u, k):
            return (mpmath.npdf(u - v[k]) - mpmath.npdf(u + v[k])) / (2 * v[k])

        def integrand(u):
            first = mpmath.npdf(u - v[best]) + mpmath.npdf(u + v[best])
            value = first if dimensions == 1 else 2 * u * third(u, best)
            for k in set(range(len(v))) - {best}:
                below = mpmath.ncdf(u - v[k]) - mpmath.ncdf(-u - v[k])
                value *= 1 - (below if dimensions == 1 else below - 2 * third(u, k))
            return value

        return float(mpmath.quad(integrand, mpmath.linspace(0, v[best] + 12, 13)))


def mixture_integral(noncentral, dimensions):
    """The same from central chi-squared functions alone: a noncentral one is their Poisson mixture."""
    from scipy.stats import chi2, poisson

    best = int(np.argmin(noncentral))
    u = np.linspace(1e-6, np.sqrt(noncentral[best] + dimensions) + 10, 1001)[:, None]

    def mixed(function, value):
        j = np.arange(int(value / 2 + 12 * value**0.5) + 40)
        return function(u**2, dimensions + 2 * j[None, :]) @ poisson.pmf(j, value / 2)

    values = 2 * u[:, 0] * mixed(chi2.pdf, noncentral[best])
    for k in set(range(len(noncentral))) - {best}:
        values = values * mixed(chi2.sf, noncentral[k])
    return np.trapezoid(values, u[:, 0])


@pytest.mark.parametrize(
    ("dimensions", "num_classes", "integral"),
    [(1, 3, closed_form_integral), (3, 6, closed_form_integral), (16, 4, mixture_integral), (64, 12, mixture_integral)],
)
def test_exact_equals_an_independent_integral(rng, dimensions, num_classes, integral):
    gallery, query = rng.normal(size=(num_classes, dimensions)), rng.normal(size=(1, dimensions))
    expected = integral(np.sum((gallery - query) ** 2, axis=1) / 0.7**2, dimensions)
    found = sim.exact_robustness(gallery, query, sigma=0.7)[0]
    assert abs(found - expected) < 1e-8
    control = sim.exact_robustness(np.pad(gallery, ((0, 0), (0, 1))), np.pad(query, ((0, 0), (0, 1))), sigma=0.7)[0]
    assert abs(control - expected) > 1e-5  # one dimension too many


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


def fine_integral(noncentral, bias, dimensions):
    """The integral on 800 nodes with SciPy's own noncentral χ² functions, which hold for λ < 1e7 and moderate d."""
    from scipy.stats import ncx2

    best = int(np.argmin(noncentral + bias))
    others, shift = np.delete(noncentral, best), bias[best] - np.delete(bias, best)
    nodes, weights = np.polynomial.legendre.leggauss(800)
    centre = np.sqrt(noncentral[best] + dimensions)
    low, high = max(centre - 8.5, 0.0), centre + 8.5
    u = low + 0.5 * (high - low) * (1 + nodes)
    threshold = np.maximum(u[:, None] ** 2 + shift[None, :], 0.0)
    needed = np.sqrt(threshold) > np.sqrt(others + dimensions - 1)[None, :] - 8.0
    log_survival = np.zeros(threshold.shape)
    rows = np.broadcast_to(others, threshold.shape)
    log_survival[needed] = np.log(np.maximum(ncx2.sf(threshold[needed], dimensions, rows[needed]), 1e-300))
    density = 2 * u * ncx2.pdf(u**2, dimensions, noncentral[best])
    return 0.5 * (high - low) * (weights * density) @ np.exp(log_survival.sum(axis=1))


# d, K, λ of the nearest row, spread of the others in v, spread of the biases in units of √λ.
HARD = [
    (2, 40, 0.3, 3.0, 0.0),
    (2, 8, 400.0, 2.0, 0.5),
    (16, 300, 1e4, 1.0, 0.0),
    (512, 60, 900.0, 2.0, 3.0),
    (1024, 200, 30.0, 4.0, 0.0),
    (1024, 4, 9e6, 2.0, 1.0),
]


@pytest.mark.parametrize("case", HARD)
def test_rows_and_grid_against_800_nodes(rng, case):
    """Both ways to the integral, to 1e-9; control: a distance off by a thousandth of the noise is seen."""
    from simulator.theory import robustness

    dimensions, num_classes, nearest_row, spread, biases = case
    v = np.sqrt(nearest_row) + np.append(0.0, spread * rng.random(num_classes - 1))
    bias = biases * np.sqrt(nearest_row) * rng.random(num_classes)
    expected = fine_integral(v**2, bias, dimensions)
    assert 1e-4 < expected < 0.9999
    gallery = v[:, None] * np.eye(1, dimensions)
    found = sim.exact_robustness(gallery, np.zeros((1, dimensions)), sigma=1.0, bias=bias)[0]
    assert abs(found - expected) < 1e-9
    if not biases:
        origin = np.floor(v[0])
        many = int(2 * robustness.GRID * 40 / num_classes) + 1  # enough queries for the grid to be smaller
        assert robustness._nodes(origin, dimensions)[2] <= 40
        on_grid = robustness._many_queries(origin, np.tile(v - origin, (many, 1)), dimensions)
        assert np.abs(on_grid - expected).max() < 1e-9
        off = robustness._many_queries(origin, np.tile(v - origin + 1e-3 * (v > v[0]), (many, 1)), dimensions)
        assert np.abs(off - expected).min() > 1e-6


def test_thousands_of_rows_in_many_dimensions_share_the_chances():
    """P = 1/K at one distance, to a part in 10⁹ of 1, on the grid and row by row, up to d = 100,000."""
    from simulator.theory import robustness

    for dimensions, v in ((2, 0.7), (4096, 31.2), (100_000, 1000.4), (3, 1e12)):
        origin = min(np.floor(v), robustness.FAR)
        for offsets in (np.full((1, 3000), 0.4), np.full((8, 300), 0.4)):
            found = robustness._many_queries(origin, offsets, dimensions)
            np.testing.assert_allclose(found, 1 / offsets.shape[1], atol=1e-10)


def test_exact_at_any_size_place_and_type(arrays):
    """One number for one geometry, whatever the units; a query on a row, equal rows, one row, huge and tiny noise."""
    gallery, queries = (0.2 * a for a in arrays)
    exact = sim.exact_robustness
    for scoring in ("sqeuclidean", "dot"):
        bias = 0.02 * np.arange(5.0)
        plain = exact(gallery, queries, sigma=0.1, scoring=scoring)
        biased = exact(gallery, queries, sigma=0.1, scoring=scoring, bias=bias)
        for scale in (1e-160, 1e-30, 1e30, 1e150, 4e307):
            scaled = dict(sigma=0.1 * scale, scoring=scoring)
            np.testing.assert_allclose(exact(gallery * scale, queries * scale, **scaled), plain, atol=1e-12)
            if 1e-150 < scale < 1e153:
                found = exact(gallery * scale, queries * scale, bias=bias * scale * scale, **scaled)
                np.testing.assert_allclose(found, biased, atol=1e-12)
        halves = exact(gallery.astype("float16"), queries.astype("float16"), sigma=0.1, scoring=scoring)
        np.testing.assert_allclose(halves, plain, atol=2e-2)
        for sigma in (1e-300, 1e-155, 1e-20):
            np.testing.assert_allclose(exact(gallery, queries, sigma=sigma, scoring=scoring), 1.0)
            np.testing.assert_allclose(exact(gallery, queries, sigma=sigma, scoring=scoring, bias=bias), 1.0)
            twice = exact(np.repeat(gallery, 2, axis=0), queries, sigma=sigma, scoring=scoring)
            np.testing.assert_allclose(twice, 0.5)
        np.testing.assert_allclose(exact(gallery, queries, sigma=1e200, scoring=scoring), 0.2)
        for size in (1e30, 1e300):
            alone = exact(gallery, queries, sigma=0.1, scoring=scoring, bias=size * np.arange(5.0))
            np.testing.assert_allclose(alone, 1.0, rtol=1e-13)
            np.testing.assert_allclose(
                exact(gallery, queries, sigma=0.1, scoring=scoring, bias=np.full(5, size)), plain, atol=1e-12
            )
        for bad in (np.nan, np.inf, -np.inf):
            with pytest.raises(ValueError, match="finite number for each of 5"):
                exact(gallery, queries, sigma=0.1, scoring=scoring, bias=[0, 0, 0, 0, bad])
    np.testing.assert_allclose(
        exact(gallery + 1e6, queries + 1e6, sigma=0.1), exact(gallery, queries, sigma=0.1), atol=1e-8
    )
    np.testing.assert_allclose(exact(gallery, gallery, sigma=1e-9), 1.0)
    with pytest.raises(ValueError, match="sigma"):
        exact(gallery, queries, sigma=-0.1)


def test_a_bias_over_long_distances_is_a_number(rng):
    """Queries on shifted rows: the answer is far, the row that the query sits on is near but biased."""
    gallery = rng.normal(size=(10, 16))
    queries = gallery + 2 * rng.normal(size=16)
    certificate = sim.GapCloser("compensated").fit(gallery, queries).certificate(gallery, queries, sigma=1e-4)
    assert certificate.robustness_closed == pytest.approx(1.0)
    # λ = 1e8 against 0: the answer's noise is a normal one of 2 v, the other's a chi-squared one of order d.
    rows, bias, margin = 1e4 * np.eye(2, 16), np.array([0.0, 1e8]), 2e4
    rows[1] = 0.0
    from scipy.special import ndtr

    found = sim.exact_robustness(rows, np.zeros((1, 16)), sigma=1.0, bias=bias + margin * np.eye(2)[1])[0]
    assert found == pytest.approx(ndtr(1.0), abs=1e-4)


def test_same_key_pairs_the_draws_across_alpha(arrays):
    gallery, queries = arrays
    common = dict(num_draws=50, key=jax.random.key(3))
    one = sim.measured_robustness(gallery, queries, noise=NOISE, **common)
    again = sim.measured_robustness(gallery, queries, noise=NOISE, **common)
    np.testing.assert_array_equal(one.per_query, again.per_query)
    assert one.per_query.mean() == pytest.approx(one.mean, rel=1e-12)
    assert 0 < one.mean < 1
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


def test_rows_that_only_float64_tells_apart(key):
    gallery, queries = np.array([[0.0], [1e-6], [1.0]]), np.array([[4e-7], [6e-7], [0.9]])
    found = sim.measured_robustness(
        gallery, queries, noise=sim.GaussianNoise(1e-9), num_draws=2, key=key, labels=np.arange(3)
    )
    assert found.mean == found.accuracy == found.clean_accuracy == 1.0


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


@pytest.mark.filterwarnings("error")
def test_accuracy_is_a_count_in_32_bit_mode_too(arrays):
    gallery, queries = (rows.astype("float32") for rows in arrays)
    labels = np.asarray(nearest(gallery, queries))
    options = dict(noise=NOISE, num_draws=17, key=jax.random.key(0), labels=labels)
    with jax.enable_x64(False):
        found = sim.measured_robustness(gallery, queries, **options)
    decisions = found.accuracy * 17 * len(queries)
    assert 0 < decisions < 17 * len(queries)
    assert abs(decisions - round(decisions)) < 1e-9


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


def test_many_rows_at_one_distance(rng):
    """The interpolation over distances has nothing to interpolate there: 60 rivals at exactly the same distance."""
    query, unit = np.zeros((1, 30)), np.eye(30)
    gallery = np.concatenate([0.5 * unit[:1], unit, -unit])
    found = sim.exact_robustness(gallery, query, sigma=0.2)[0]
    slightly_apart = gallery * np.concatenate([[1.0], 1 + 1e-9 * rng.normal(size=60)])[:, None]
    assert abs(found - sim.exact_robustness(slightly_apart, query, sigma=0.2)[0]) < 1e-7
    control = sim.exact_robustness(gallery[:-1], query, sigma=0.2)[0]  # one rival fewer
    assert control - found > 1e-4
    assert 0.01 < found < 0.99


PLACES = {
    "far from the origin": (1.0, 3000.0, "float32"),
    "far, float64": (1.0, 1e12, "float64"),
    "float32 whose squares overflow": (1e25, 0.0, "float32"),
    "float32 whose squares vanish": (1e-25, 0.0, "float32"),
    "float64 whose squares overflow": (1e200, 0.0, "float64"),
    "float64 whose squares vanish": (1e-200, 0.0, "float64"),
    "largest float64": (4e307, 0.0, "float64"),
    "float16": (1000.0, 0.0, "float16"),
    "int8": (30.0, 0.0, "int8"),
}


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot", "cosine"])
@pytest.mark.parametrize("place", PLACES)
def test_size_place_and_type_of_the_rows(rng, place, scoring):
    """The same answers as for rows of order 1 at the origin with the same rounding, under the same draws."""
    scale, offset, dtype = PLACES[place]
    rows = [np.clip(rng.normal(size=(n, 8)), -4, 4) for n in (10, 50)]
    if offset and scoring != "sqeuclidean":
        offset = 0.0  # nothing but distances forgets an offset
    given = [np.asarray(scale * r + offset, dtype) for r in rows]
    plain = [((np.asarray(g, float) - offset) / scale).astype(np.promote_types(dtype, "float32")) for g in given]
    options = dict(num_draws=100, key=jax.random.key(0), scoring=scoring)
    bias = np.linspace(0.0, 1.0, 10)
    unit = {"sqeuclidean": scale * scale, "dot": scale * scale, "cosine": 1.0}[scoring]
    for b in (None, bias) if np.isfinite(unit) and unit > 0 else (None,):
        found, expected = (
            sim.measured_robustness(*r, noise=sim.GaussianNoise(s), bias=c, **options)
            for r, s, c in ((given, 0.5 * scale, None if b is None else b * unit), (plain, 0.5, b))
        )
        np.testing.assert_allclose(found.per_query, expected.per_query, atol=0.011)  # one draw in 100 may be a tie
        assert 0.1 < found.mean < 0.9


def test_biases_of_any_size_decide(arrays):
    """Huge ones alone, tiny ones not at all, and none that is not a number."""
    options = dict(noise=NOISE, num_draws=20, key=jax.random.key(0))
    for scoring in ("sqeuclidean", "dot", "cosine"):
        for size in (1e30, 1e300):
            assert sim.measured_robustness(*arrays, bias=size * np.arange(5.0), scoring=scoring, **options).mean == 1.0
        plain, tiny = (
            sim.measured_robustness(*arrays, bias=b, scoring=scoring, **options) for b in (None, np.full(5, 1e-300))
        )
        np.testing.assert_array_equal(plain.per_query, tiny.per_query)
        far = sim.measured_robustness(*arrays, bias=np.full(5, 1e300), scoring=scoring, **options)
        np.testing.assert_array_equal(plain.per_query, far.per_query)
    for bad in (np.nan, np.inf, -np.inf, 1j):
        with pytest.raises(ValueError, match="bias"):
            sim.measured_robustness(*arrays, bias=np.array([0, 0, 0, 0, bad]), **options)


def test_changed_decisions_are_counted_in_float64(arrays):
    """A long move orthogonal to everything changes no answer, in 32-bit mode either; one row moved does."""
    gallery, queries = (np.pad(rows, ((0, 0), (0, 1))).astype("float32") for rows in arrays)
    options = dict(noise=sim.GaussianNoise(0.3, orthogonal_to=np.eye(5)[4]), num_draws=20, key=jax.random.key(0))
    with jax.enable_x64(False):
        assert changed_decisions(gallery, gallery + 3000 * np.eye(5, dtype="float32")[4:], queries, **options) == 0
        assert changed_decisions(gallery, gallery + np.eye(5)[:, :5], queries, **options) > 0
