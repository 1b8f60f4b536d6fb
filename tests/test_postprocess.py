import numpy as np
import pytest

import simulator as sim
from experiments._galleries import nearest_rows


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(6, 10)), rng.normal(size=(40, 10)) + 0.5


def test_complement_is_orthogonal_to_the_gallery_and_changes_no_decision(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    centred = gallery - gallery.mean(0)
    assert np.abs(centred @ closer.direction_).max() < 1e-12 * np.linalg.norm(closer.gap_)
    before = nearest_rows(gallery, queries)
    for alpha in (-2.0, 0.5, 1.0, 7.0):
        np.testing.assert_array_equal(nearest_rows(closer.transform(gallery, alpha), queries), before)
    assert np.any(nearest_rows(gallery + 7.0 * closer.gap_, queries) != before)  # control: g in place of g'


def test_direction_is_the_projection_of_the_gap(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    np.testing.assert_allclose(closer.gap_, queries.mean(0) - gallery.mean(0))
    axes = np.linalg.svd(gallery - gallery.mean(0), full_matrices=False)[2][:5]
    np.testing.assert_allclose(closer.direction_, closer.gap_ - axes.T @ axes @ closer.gap_, atol=1e-12)
    two = sim.GapCloser(num_components=2).fit(gallery, queries)
    np.testing.assert_allclose(two.direction_, closer.gap_ - axes[:2].T @ axes[:2] @ closer.gap_, atol=1e-12)
    none = sim.GapCloser(num_components=0).fit(gallery, queries)
    np.testing.assert_allclose(none.direction_, none.gap_, atol=1e-12)


def test_alpha_star_averages_to_one_and_is_where_the_query_is_closest(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    assert closer.alpha_star_.mean() == pytest.approx(1.0)
    query, star = queries[3], closer.alpha_star_[3]
    distance = [np.sum((closer.transform(gallery, a) - query) ** 2) for a in (star - 0.1, star, star + 0.1)]
    assert distance[1] < min(distance[0], distance[2])


def test_full_rank_gallery_leaves_nothing_to_move(rng):
    gallery, queries = rng.normal(size=(30, 8)), rng.normal(size=(20, 8)) + 1
    closer = sim.GapCloser().fit(gallery, queries)
    np.testing.assert_array_equal(closer.direction_, 0.0)
    assert np.isnan(closer.alpha_star_).all()
    np.testing.assert_array_equal(closer.transform(gallery, 1.0), gallery)


def test_index_reproduces_the_transform(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    index = closer.index(gallery, 0.7)
    np.testing.assert_array_equal(index.rows, closer.transform(gallery, 0.7))
    assert index.scoring == "sqeuclidean"
    assert not index.bias.any()
    assert not index.centre.any()


def test_bad_input(arrays):
    gallery, queries = arrays
    with pytest.raises(ValueError, match="one of"):
        sim.GapCloser(rule="nearest")
    with pytest.raises(ValueError, match="num_components"):
        sim.GapCloser(num_components=-1)
    with pytest.raises(ValueError, match="fit"):
        sim.GapCloser().transform(gallery)
    with pytest.raises(ValueError, match="dimensions"):
        sim.GapCloser().fit(gallery, queries[:, :4])
    closer = sim.GapCloser().fit(gallery, queries)
    with pytest.raises(ValueError, match="fitted in 10"):
        closer.transform(gallery[:, :4])
    with pytest.raises(ValueError, match="alpha"):
        closer.transform(gallery, float("nan"))
