"""N7; the negative control of each row is judged in test_every_claim."""

import numpy as np
import pytest

from experiments.claims.linear_storage import STORAGES, storages
from experiments.setups.galleries import nearest_rows, random_classes
from experiments.setups.quantizers import (
    BITS,
    COLUMN_BITS,
    FORMATS,
    bytes_per_row,
    kept_by_columns,
    library_quantisers,
    random_rotation,
    stored,
)
from simulator.theory.storage import (
    optimal_metric,
    second_moment,
    shrunk_moment,
    smallest_storage_factor,
    storage_factor,
    symmetric_root,
)
from tests.theorems.common import quick_measurement


@pytest.fixture
def moments(rng):
    roots = rng.normal(size=(2, 6, 6)) * np.linspace(0.3, 2, 6)
    return tuple(root @ root.T for root in roots)


def test_the_optimum_solves_its_equation_and_has_its_value(moments):
    x, y = moments
    best = optimal_metric(x, y)
    np.testing.assert_allclose(best @ y @ best, x, atol=1e-11)
    assert storage_factor(best, x, y) == pytest.approx(smallest_storage_factor(x, y), rel=1e-11)
    swapped = optimal_metric(y, x)  # the near miss that takes one modality for the other
    assert storage_factor(swapped, x, y) > 1.5 * smallest_storage_factor(x, y)
    np.testing.assert_allclose(swapped, np.linalg.inv(best), rtol=1e-9)


def test_the_factor_is_the_mean_noise_of_a_score(rng):
    """tr(B C_y) tr(B⁻¹ C_x)/d against rows and queries by loops."""
    rows, queries, matrix = rng.normal(size=(7, 4)), rng.normal(size=(9, 4)), rng.normal(size=(4, 4))
    matrix = matrix + 3 * np.eye(4)
    inverse = np.linalg.inv(matrix)
    power = np.mean([np.sum((inverse.T @ row) ** 2) for row in rows])
    size = np.mean([np.sum((matrix @ query) ** 2) for query in queries])
    moments = [second_moment(r, np.zeros(4)) for r in (rows, queries)]
    assert storage_factor(matrix.T @ matrix, *moments) == pytest.approx(power * size, rel=1e-11)
    assert storage_factor(matrix @ matrix.T, *moments) != pytest.approx(power * size, rel=1e-3)  # A Aᵀ for AᵀA


def test_the_least_value_is_approached_where_no_metric_reaches_it(moments):
    """A gallery in a subspace: the value is an infimum, which shrinking reaches in the limit, from above."""
    x, y = moments
    flat = x @ np.diag([1, 1, 1, 0, 0, 0]) @ x
    least = smallest_storage_factor(flat, y)
    values = [storage_factor(optimal_metric(shrunk_moment(flat, s), y), flat, y) for s in (1e-3, 1e-5, 1e-7)]
    assert np.all(np.diff(values) < 0)
    assert 0 < values[-1] / least - 1 < 1e-3
    with pytest.raises(ValueError, match="singular"):
        optimal_metric(x, flat)


def test_whitening_is_the_optimum_for_inverse_moments_only(moments):
    _, y = moments
    inverse = np.linalg.inv(y)
    np.testing.assert_allclose(optimal_metric(inverse, y), inverse, atol=1e-9)
    assert storage_factor(inverse, np.eye(6), y) > 1.5 * smallest_storage_factor(np.eye(6), y)
    np.testing.assert_allclose(symmetric_root(y) @ symmetric_root(y), y, atol=1e-10)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_round_by_their_steps(rng, name):
    rows = rng.normal(size=(50, 64)) * 10 ** rng.uniform(-2, 2, size=(50, 1))
    values, step = stored(rows, name)
    error = values - rows
    assert np.all(np.abs(error) <= 0.5 * step * (1 + 1e-9) + 1e-12 * np.abs(rows))
    inexact = step > 0
    share = 12 * np.mean((error[inexact] / step[inexact]) ** 2)
    assert abs(share - 1) < 4 * 0.8**0.5 / np.sum(inexact) ** 0.5  # var of 12 u², u uniform on ±½, is 0.8
    if name.startswith("int"):
        levels = [len(np.unique(np.round(row, 12))) for row in values / np.abs(rows).max(axis=1, keepdims=True)]
        assert max(levels) <= 2 ** BITS[name] - 1
    assert bytes_per_row(64, name) == 64 * BITS[name] / 8 + (4 if name == "bf16" else 8)
    np.testing.assert_array_equal(stored(np.zeros((1, 3)), name)[0], 0.0)


def test_random_bases_are_orthogonal_and_differ():
    first, second = (random_rotation(5, seed) for seed in (1, 2))
    np.testing.assert_allclose(first @ first.T, np.eye(5), atol=1e-13)
    assert np.abs(first - second).max() > 0.1


def test_the_library_quantises_better_with_more_bits():
    pytest.importorskip("faiss", reason="faiss-cpu is part of the extra `bench`")
    gallery, queries, _ = random_classes(60, 16, 200, 2)
    found = library_quantisers(gallery, queries, nearest_rows(gallery, queries))
    assert found["SQ8"][0] == 16 == 2 * found["SQ4"][0]
    assert found["SQ8"][1] > 0.97 > found["PQ8x4"][1]
    assert found["SQ8"][1] > found["SQ4"][1]


def test_a_range_per_column_by_loops():
    """Every entry goes to the nearest of 2^B levels between its column's ends; moving the rows changes no rounding error."""
    gallery, queries, _ = random_classes(20, 8, 100, 6)
    answers, indices = nearest_rows(gallery, queries), storages(gallery, queries)
    found = kept_by_columns([indices[name] for name in STORAGES], queries, answers)
    assert np.all(found[:, -1] > 0.95)
    assert np.all(found[:, 0] < found[:, -1])
    np.testing.assert_array_equal(found[1], found[2])  # centring the gallery moves every column's range with it
    index, bits = indices["optimum"], COLUMN_BITS[0]
    rows = np.empty_like(index.rows)
    for (k, i), value in np.ndenumerate(index.rows):
        levels = np.linspace(index.rows[:, i].min(), index.rows[:, i].max(), 2**bits)
        rows[k, i] = levels[np.argmin(np.abs(levels - value))]
    scores = index.map_queries(queries) @ rows.T + index.bias[None, :]
    assert found[-1, 0] == np.mean(scores.argmax(axis=1) == answers)


def test_whitening_the_queries_is_worse_than_no_map():
    data = quick_measurement("linear_storage")[0]
    here = data.sel(gallery="two spectra")
    assert float(here.exact.sel(storage="queries whitened")) < float(here.exact.sel(storage="both centred"))
