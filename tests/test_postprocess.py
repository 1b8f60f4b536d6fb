import numpy as np
import pytest

import simulator as sim
from experiments.setups.galleries import nearest_rows


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


@pytest.mark.parametrize("unit", [2.0**-43, 2.0**-400, 2.0**400])
def test_alpha_star_knows_no_unit_of_length(arrays, unit):
    gallery, queries = arrays
    for rule in ("complement", "centred"):
        expected = sim.GapCloser(rule).fit(gallery, queries).alpha_star_
        found = sim.GapCloser(rule).fit(unit * gallery, unit * queries).alpha_star_
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


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


def test_parameters_by_name(arrays):
    closer = sim.GapCloser("centred", num_components=2, alpha=0.5)
    assert closer.get_params()["alpha"] == 0.5
    assert sim.GapCloser(**closer.get_params()).get_params() == closer.get_params()
    assert closer.set_params(rule="complement", num_components=None) is closer
    assert (closer.rule, closer.num_components) == ("complement", None)
    assert "rule='complement'" in repr(closer)
    with pytest.raises(ValueError, match="no parameter 'speed'; it has rule"):
        closer.set_params(speed=3)
    with pytest.raises(ValueError, match="num_components"):
        closer.set_params(rule="soft", num_components=3)
    assert closer.rule == "complement"  # nothing is set unless all of it is valid
    gallery, _ = arrays
    np.testing.assert_allclose(closer.fit(*arrays).transform(gallery), gallery + 0.5 * closer.direction_)


def test_the_soft_rule_lies_between_the_gap_and_the_complement(arrays):
    gallery, queries = arrays
    directions = [sim.GapCloser("soft", penalty=p).fit(gallery, queries).direction_ for p in (0.0, 3.0, 1e6)]
    np.testing.assert_allclose(directions[0], queries.mean(0) - gallery.mean(0))
    np.testing.assert_allclose(directions[2], sim.GapCloser().fit(gallery, queries).direction_, atol=1e-4)
    covariance = np.cov(gallery.T, bias=True)
    system = np.eye(10) + 3.0 * covariance / (np.trace(covariance) / 10)
    np.testing.assert_allclose(system @ directions[1], directions[0])


def test_the_safe_alpha_is_where_the_first_query_stops_gaining(rng):
    gallery, queries = rng.normal(size=(6, 10)), 0.3 * rng.normal(size=(40, 10)) + 1.0
    for rule in ("complement", "centred"):
        closer = sim.GapCloser(rule, alpha="safe").fit(gallery, queries)
        assert 0 < closer.alpha_ == closer.alpha_star_.min() < 1
        rising = [closer.certificate(gallery, queries, a).rising for a in (closer.alpha_, 2.01 * closer.alpha_)]
        assert rising[0] == 40 > rising[1]
    # Queries on the far side leave nothing that is safe for all.
    assert sim.GapCloser(alpha="safe").fit(gallery, np.concatenate([queries, -queries[:2]])).alpha_ == 0.0
    with pytest.raises(ValueError, match="num_components=2 keeps only the leading ones of its 5"):
        sim.GapCloser(num_components=2, alpha="safe").fit(gallery, queries)


@pytest.mark.parametrize("options", [{}, dict(rule="centred"), dict(rule="compensated"), dict(num_components=2)])
def test_the_best_alpha_beats_a_fine_grid(rng, options):
    gallery, queries = rng.normal(size=(6, 10)), rng.normal(size=(15, 10)) + 0.7
    closer = sim.GapCloser(**options, alpha="best", sigma=0.4).fit(gallery, queries)
    value = lambda a: closer.index(gallery, a).robustness(queries, sigma=0.4).mean()
    fine = np.linspace(closer.curve_.alpha[0], closer.curve_.alpha[-1], 60)
    assert value(closer.alpha_) >= max(map(value, fine)) - 1e-9
    assert value(closer.alpha_) == pytest.approx(closer.curve_.robustness.max())
    assert 0.0 in closer.curve_.alpha
    assert closer.certificate(gallery, queries).robustness_closed == pytest.approx(value(closer.alpha_))


def test_a_rule_with_scalars_has_no_transform(arrays):
    gallery, queries = arrays
    for rule in ("compensated", "centred", "optimal"):
        with pytest.raises(ValueError, match="use index"):
            sim.GapCloser(rule).fit(gallery, queries).transform(gallery)


def test_the_optimal_rule_solves_its_equation_at_equal_power(arrays):
    """B C_y B = C_x for the shrunk moments; the rows keep the power that they had, whatever α."""
    gallery, queries = arrays
    closer = sim.GapCloser("optimal", shrinkage=0.3).fit(gallery, queries)
    moments = [np.cov(rows.T, bias=True) for rows in (gallery, queries)]
    x, y = (0.7 * m + 0.3 * np.trace(m) / 10 * np.eye(10) for m in moments)
    np.testing.assert_allclose(closer.metric_ @ y @ closer.metric_, x, atol=1e-12)
    for alpha in (0.0, 0.5, 1.0):
        rows = closer.index(gallery, alpha).rows
        assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(np.mean(np.sum(gallery**2, axis=1)))
    start = closer.index(gallery, 0.0)  # the gallery as it was
    np.testing.assert_allclose(start.rows, gallery, atol=1e-12)
    np.testing.assert_allclose(start.map_queries(queries), queries, atol=1e-12)


def test_nothing_moves_where_the_exact_axes_hold_the_whole_centre(rng):
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    queries = (3 + rng.normal(size=(50, 1))) * axes[:1]
    closer = sim.GapCloser("centred", 1).fit(rng.normal(size=(4, 6)), queries)
    assert np.isnan(closer.alpha_star_).all()


def test_bad_options():
    for options, words in (
        (dict(alpha="most"), "a number, 'best' or 'safe'"),
        (dict(alpha="best"), "give sigma"),
        (dict(rule="soft", alpha="safe"), "needs a theorem"),
        (dict(rule="optimal", num_components=2), "num_components=2 belongs to rule='complement' and rule='centred'"),
        (dict(centre="best", sigma=0.1), "belongs to rule='centred'"),
        (dict(rule="soft", penalty=-1), "penalty"),
        (dict(rule="optimal", shrinkage=0), "shrinkage"),
        (dict(rule="optimal", shrinkage=1.01), "shrinkage"),
        (dict(sigma=0), "sigma"),
    ):
        with pytest.raises(ValueError, match=words):
            sim.GapCloser(**options)


def test_queries_by_blocks_are_checked(arrays):
    gallery, queries = arrays
    with pytest.raises(ValueError, match="dimensions"):
        sim.GapCloser().fit(gallery, lambda: iter([queries[:, :4]]))
    with pytest.raises(ValueError, match="NaN"):
        sim.GapCloser().fit(gallery, lambda: iter([queries, np.nan * queries]))


@pytest.mark.parametrize(
    "options", [{}, dict(rule="centred"), dict(rule="compensated"), dict(rule="soft", penalty=1e3)]
)
def test_the_best_alpha_may_lie_beyond_closing(rng, options):
    """Easy queries at the gallery pull the mean back: those that can lose their answer are closest at α = 2."""
    gallery = np.pad(rng.normal(size=(6, 5)), ((0, 0), (0, 5)))
    far = np.pad(0.3 * rng.normal(size=(20, 5)), ((0, 0), (0, 5))) + np.repeat([0.0, 2.0], 5)
    easy = np.pad(3.0 * gallery[:, :5], ((0, 0), (0, 5))).repeat(4, axis=0)[:20]
    queries = np.concatenate([far, easy])
    closer = sim.GapCloser(**options, alpha="best", sigma=0.4).fit(gallery, queries)
    value = lambda a: closer.index(gallery, a).robustness(queries, sigma=0.4).mean()
    tried = {a: value(a) for a in np.linspace(-3.0, 4.0, 57)}
    assert max(tried, key=tried.get) > 1.1
    assert value(closer.alpha_) >= max(tried.values()) - 1e-9
    assert closer.alpha_ > 1.1


def test_alpha_star_of_the_centred_rule_is_where_each_query_is_most_robust(rng):
    """With exact directions too: a line search on the exact robustness of each query; ‖m‖² in place of ‖Pm‖² is too low."""
    from scipy.optimize import minimize_scalar

    gallery = rng.normal(size=(8, 10))
    queries = rng.normal(size=(6, 10)) * np.linspace(2.0, 0.5, 10) + 1.0
    for kept in (None, 1, 4):
        closer = sim.GapCloser("centred", kept, alpha="safe").fit(gallery, queries)
        peaks = []
        for query in queries:
            lost = lambda a, c=closer, q=query: -c.index(gallery, a).robustness(q[None, :], sigma=20.0)[0]
            peaks.append(minimize_scalar(lost, bounds=(-8, 10), method="bounded", options=dict(xatol=1e-9)).x)
        np.testing.assert_allclose(peaks, closer.alpha_star_, atol=2e-5)
        assert closer.alpha_ == max(closer.alpha_star_.min(), 0.0)
        if kept:
            m = closer.direction_
            rest = m - m @ closer.index(gallery).axes.T @ closer.index(gallery).axes
            assert np.abs(closer.alpha_star_ * (rest @ rest / (m @ m)) / peaks - 1).max() > 0.01
