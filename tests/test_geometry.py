import numpy as np
import pytest

import simulator as sim
from simulator import geometry
from simulator.geometry import marginals


def oracle(x, y, temperature):
    """Loops and NumPy, straight from the definitions of GapMeasures."""
    n, d = x.shape
    gap = y.mean(0) - x.mean(0)
    unit = gap / np.linalg.norm(gap)
    found = dict(gap_norm=np.linalg.norm(gap))
    for name, r in (("x", x), ("y", y)):
        c = r - r.mean(0)
        found[f"variance_along_gap_{name}"] = np.mean([(row @ unit) ** 2 for row in c])
        found[f"defect_ratio_{name}"] = found[f"variance_along_gap_{name}"] / (np.mean(np.sum(c**2, 1)) / d)
        _, s, axes = np.linalg.svd(c, full_matrices=False)
        share, fraction = 0.0, 0.0
        for value, axis in zip(s**2 / np.sum(s**2), axes, strict=True):
            if share < 0.9:
                fraction += (unit @ axis) ** 2
            share += value
        found[f"span_fraction_{name}"] = fraction
        p = s[s > 1e-9] / s[s > 1e-9].sum()
        found[f"effective_rank_{name}"] = np.exp(-np.sum(p * np.log(p)))
        pairs = [np.exp(-2 * np.sum((r[i] - r[j]) ** 2)) for i in range(n) for j in range(n) if i != j]
        found[f"uniformity_{name}"] = np.log(np.mean(pairs))
    ux, uy = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y))
    s = np.exp(ux @ uy.T / temperature)
    found["marginal_error_x"] = np.mean([abs(sum(s[k, i] / s[:, i].sum() for i in range(n)) - 1) for k in range(n)])
    found["marginal_error_y"] = np.mean([abs(sum(s[k, i] / s[k, :].sum() for k in range(n)) - 1) for i in range(n)])
    found["alignment"] = np.mean([np.sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    found["recall_at_1_xy"] = np.mean([np.argmax(s[k, :]) == k for k in range(n)])
    found["recall_at_1_yx"] = np.mean([np.argmax(s[:, i]) == i for i in range(n)])
    inside = [np.mean([(1 - u[i] @ u[j]) / 2 for i in range(n) for j in range(n) if i != j]) for u in (ux, uy)]
    between = np.mean([(1 - a @ b) / 2 for a, b in zip(ux, uy, strict=True)])
    found["rmg"] = between / (between + np.mean(inside))
    return found


@pytest.mark.parametrize("shape", [(12, 5), (6, 9)])
def test_every_measure_equals_loops(rng, shape):
    x, y = rng.normal(size=shape), rng.normal(size=shape) @ np.diag(np.arange(1, shape[1] + 1)) * 0.3 + 0.7
    found = sim.measure_gap(x, y, temperature=0.2)
    for name, value in oracle(x, y, 0.2).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8, 100])
def test_null_is_the_mean_over_random_directions(rng, dimensions):
    x = rng.normal(size=(40, dimensions)) * np.linspace(0.2, 2.0, dimensions) + 0.5
    y = rng.normal(size=(30, dimensions)) + 1.0
    directions = rng.normal(size=(5_000, dimensions))
    directions *= np.linalg.norm(y.mean(0)) / np.linalg.norm(directions, axis=1, keepdims=True)
    found = sim.measure_gap(x, y, paired=False)
    for own, null, away in ((x, found.null_defect_ratio_x, directions),):
        gaps = away - own.mean(0)
        gaps /= np.linalg.norm(gaps, axis=1, keepdims=True)
        covariance = np.cov(own.T, bias=True).reshape(dimensions, dimensions)
        ratios = np.einsum("nd,de,ne->n", gaps, covariance, gaps) / (np.trace(covariance) / dimensions)
        assert abs(ratios.mean() - float(null)) <= 5 * ratios.std() / len(ratios) ** 0.5 + 1e-9
        # Near miss: a random gap, rather than a random mean of the other modality.
        if dimensions == 8:
            assert abs(1.0 - float(null)) > 5 * ratios.std() / len(ratios) ** 0.5


def test_swap_exchanges_the_modalities(rng):
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 4)) + 1
    one, other = sim.measure_gap(x, y, temperature=0.1), sim.measure_gap(y, x, temperature=0.1)
    for name in ("variance_along_gap", "null_defect_ratio", "span_fraction", "marginal_error", "uniformity"):
        np.testing.assert_allclose(getattr(one, f"{name}_x"), getattr(other, f"{name}_y"), rtol=1e-10)
    np.testing.assert_allclose(one.recall_at_1_xy, other.recall_at_1_yx)
    np.testing.assert_allclose(sim.gap_vector(x, y), -np.asarray(sim.gap_vector(y, x)))


def test_rotation_changes_nothing(rng):
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 4)) + 1
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    one, other = sim.measure_gap(x, y, temperature=0.1), sim.measure_gap(x @ rotation, y @ rotation, temperature=0.1)
    for name, value in vars(one).items():
        np.testing.assert_allclose(value, getattr(other, name), rtol=1e-9, err_msg=name)


def test_orthogonal_gap_has_no_defect(rng):
    x, y = rng.normal(size=(2, 50, 6))
    x[:, 0], y[:, 0] = 0.0, 5.0
    y[:, 1:] += x[:, 1:].mean(0) - y[:, 1:].mean(0)
    found = sim.measure_gap(x, y)
    assert float(found.defect_ratio_x) < 1e-20
    assert float(found.separability) == 1.0
    assert float(found.span_fraction_x) < 1e-20


def test_marginals_sum_to_n(rng):
    x, y = rng.normal(size=(2, 9, 4))
    for free in marginals(x, y, temperature=0.3):
        np.testing.assert_allclose(free.sum(), 9.0, rtol=1e-12)


def test_what_is_not_defined_is_nan(rng):
    one = sim.measure_gap(np.ones((1, 3)), np.zeros((1, 3)))
    assert float(one.gap_norm) == pytest.approx(3**0.5)
    for name in ("separability", "uniformity_x", "rmg", "marginal_error_x", "defect_ratio_x"):
        assert np.isnan(getattr(one, name)), name
    unpaired = sim.measure_gap(rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), paired=False)
    for name in ("alignment", "recall_at_1_xy", "recall_at_1_yx", "rmg"):
        assert np.isnan(getattr(unpaired, name)), name
    identical = sim.measure_gap(np.ones((5, 3)), np.ones((5, 3)))
    assert float(identical.gap_norm) == 0.0
    assert np.isnan(identical.defect_ratio_x)


def test_bad_input():
    with pytest.raises(ValueError, match="paired"):
        sim.measure_gap(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="dimensions"):
        sim.gap_vector(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="first is row 1"):
        sim.measure_gap(np.array([[1.0, 2], [np.nan, 1]]), np.ones((2, 2)))


def test_real_clip_embeddings(real_data):
    x, y = np.load(real_data / "clip_gallery.npy"), np.load(real_data / "clip_queries.npy")
    found = sim.measure_gap(x.astype(float), y.astype(float))
    assert float(found.gap_norm) == pytest.approx(0.851, abs=5e-4)
    assert float(found.recall_at_1_yx) == pytest.approx(0.55, abs=5e-3)
    assert float(found.defect_ratio_x) == pytest.approx(3.4, abs=0.05)
    assert float(found.defect_ratio_y) == pytest.approx(2.5, abs=0.05)


def test_the_span_is_the_fewest_components_with_nine_tenths_of_the_variance():
    """Variances .92, .05, .03 and .88, .045, .075 of the whole, exactly: one axis holds enough, then two."""
    for shares, kept in (((0.92, 0.05, 0.03), (0,)), ((0.88, 0.045, 0.075), (0, 2)), ((0.85, 0.08, 0.07), (0, 1))):
        x = np.concatenate([np.diag(np.sqrt(shares)), -np.diag(np.sqrt(shares))])
        gap = np.array([1.0, 2.0, 3.0])
        found = sim.measure_gap(x, x[::-1] + gap, paired=False)
        wanted = np.sum(gap[list(kept)] ** 2) / 14
        assert float(found.span_fraction_x) == pytest.approx(wanted, rel=1e-6)
        assert float(found.span_fraction_y) == pytest.approx(wanted, rel=1e-6)


def test_nothing_lies_along_a_gap_of_rounding_size(rng):
    rows = rng.normal(size=(2, 30, 8)).astype("f4") + np.float32(1)
    x, y = (r - r.mean(0) for r in rows)
    found = sim.measure_gap(x, y)
    for name in ("variance_along_gap", "defect_ratio", "span_fraction"):
        assert np.isnan(float(getattr(found, f"{name}_x")))
        assert np.isnan(float(getattr(found, f"{name}_y")))
    assert 0 < float(found.gap_norm) < 1e-5
    assert np.isfinite(float(found.null_defect_ratio_x))
    assert np.isfinite(float(sim.measure_gap(x, y + np.float32(1e-4)).defect_ratio_x))


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_quadrature_of_one_coordinate_on_the_sphere(d):
    nodes, weights = geometry._sphere_coordinate_quadrature(d)
    moments = [weights @ nodes**k for k in (0, 1, 2, 4, 6)]
    expected = [1, 0, 1 / d, 3 / (d * (d + 2)), 15 / (d * (d + 2) * (d + 4))]
    np.testing.assert_allclose(moments, expected, rtol=1e-12, atol=1e-14)
