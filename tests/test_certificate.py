"""Every number of a certificate against a loop, and its promises against what breaks them."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments.setups.galleries import nearest_rows, random_classes, unit_rows
from simulator import streaming
from simulator.closing.certificate import add_counts, certify_cosine, quantization_effects
from simulator.numerics.precision import equal_rows


@pytest.fixture
def arrays():
    gallery, queries, _ = random_classes(9, 14, 120, 4)
    return gallery, queries


@pytest.fixture
def full_rank():
    gallery, queries, _ = random_classes(30, 12, 200, 3)
    return gallery, queries


def margins(gallery, queries):
    """Second smallest minus smallest squared distance, by loops."""
    found = []
    for query in queries:
        squares = sorted(float(np.sum((query - row) ** 2)) for row in gallery)
        found.append(squares[1] - squares[0])
    return np.array(found)


def test_the_complement_is_certain(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    for alpha in (0.5, 1.0, 3.0):
        found = closer.certificate(gallery, queries, alpha, sigma=0.1)
        assert found.changed == found.changed_float32 == 0
        assert found.changed_at_most == np.sum(margins(gallery, queries) <= found.safe_margin) == 0
        assert found.safe_margin < 1e-9
        star = closer.alpha_star_
        assert found.rising == np.sum((alpha < 2 * star) & (star > 0)) > 0
    moved = closer.transform(gallery, 3.0)
    for name, rows in (("robustness", gallery), ("robustness_closed", moved)):
        assert getattr(found, name) == pytest.approx(sim.exact_robustness(rows, queries, sigma=0.1).mean(), rel=1e-12)
    assert found.gain_error == 0.0
    assert found.robustness_queries == 120
    assert found.gap_share == pytest.approx((closer.direction_ @ closer.direction_) / (closer.gap_ @ closer.gap_))
    for alpha, refused in ((star.min() - 1e-6, False), (star.min() + 1e-6, True)):
        assert ("only up to" in " ".join(closer.certificate(gallery, queries, alpha).refusals)) == refused


def test_rising_queries_rise_and_no_others(arrays):
    """The count is that of the exact values, query by query; control: α* of the mean query for all."""
    gallery, queries = arrays[0], arrays[1][:30]
    closer = sim.GapCloser().fit(gallery, queries)
    alpha = 1.7
    found = closer.certificate(gallery, queries, alpha)
    before, after = (sim.exact_robustness(closer.transform(gallery, a), queries, sigma=0.15) for a in (0.0, alpha))
    assert found.rising == np.sum(after > before)
    assert 0 < found.rising < 30
    centred = sim.GapCloser("centred").fit(gallery, queries)
    found = centred.certificate(gallery, queries, alpha)
    before, after = (centred.index(gallery, a).robustness(queries, sigma=0.15) for a in (0.0, alpha))
    assert found.rising == np.sum(after > before)


def test_a_margin_bounds_what_an_inexact_shift_changes(arrays):
    gallery, queries = arrays
    closer = sim.GapCloser(num_components=2, alpha=0.05).fit(gallery, queries)
    found = closer.certificate(gallery, queries)
    changed = nearest_rows(closer.transform(gallery), queries) != nearest_rows(gallery, queries)
    assert found.changed == changed.sum() > 0
    margin = margins(gallery, queries)
    assert found.changed_at_most == np.sum(margin <= found.safe_margin)
    assert found.changed <= found.changed_at_most < len(queries)
    assert margin[changed].max() <= found.safe_margin
    # The bound is sharp up to what queries there are, and half of it (the difference of inner products) is none.
    shift = 0.05 * closer.direction_
    along = gallery @ shift
    two = np.argmin(along), np.argmax(along)
    step = gallery[two[1]] - gallery[two[0]]
    asked = 0.5 * (gallery[two[0]] + gallery[two[1]]) + 0.499 * np.ptp(along) * 2 * step / (step @ step)
    pair = gallery[list(two)]
    assert nearest_rows(pair, asked[None, :]) == 1
    assert nearest_rows(pair + shift[None, :], asked[None, :]) == 0
    assert 0.5 * found.safe_margin < margins(pair, asked[None, :])[0] < found.safe_margin
    assert found.rising is None
    assert "not orthogonal" in found.refusals[0]


@pytest.mark.parametrize("rule", ["compensated", "centred", "optimal"])
def test_exact_scalars_change_nothing_at_full_rank(full_rank, rule):
    gallery, queries = full_rank
    found = sim.GapCloser(rule).fit(gallery, queries).certificate(gallery, queries, sigma=0.1)
    assert found.changed == found.changed_at_most == 0
    assert found.gap_share is None
    assert found.robustness_closed > found.robustness
    assert (found.rising is None) == (rule == "compensated")
    assert any("exact scalars" in reason for reason in found.refusals)
    assert "clean decisions changed: 0 of 200 queries" in str(found)


def test_what_does_not_hold_is_refused_with_the_reason(full_rank, arrays):
    found = sim.GapCloser().fit(*full_rank).certificate(*full_rank)
    assert found.refusals == (
        "nothing to move: the 30 gallery rows, centred, span 12 of 12 dimensions, all of the gap included, so no part of it "
        "can be closed by moving rows without changing decisions; rule compensated and rule centred keep every decision by "
        "one exact number per row (theory: N6)",
    )
    assert (found.rising, found.changed, found.gap_share) == (None, 0, 0.0)
    gallery, queries = arrays
    reasons = " ".join(sim.GapCloser().fit(gallery, queries).certificate(gallery, queries).refusals)
    for words in (
        "under cosine",
        "norms from",
        "over [min, max]",
        "under inner-product",
        "beyond it some queries lose",
    ):
        assert words in reasons
    unit = unit_rows(gallery)
    closer = sim.GapCloser(alpha="safe").fit(unit, queries)
    reasons = " ".join(closer.certificate(unit, queries).refusals)
    assert "under cosine" not in reasons
    assert "beyond it" not in reasons


def test_cosine_after_normalising_again(arrays):
    """Unit rows: no flip under the complement; flips under a shift that is not orthogonal, all within the bound, and
    more than the near miss without ‖y‖ allows."""
    gallery, queries = unit_rows(arrays[0]), 3.0 * unit_rows(arrays[1])
    found = sim.GapCloser().fit(gallery, queries).certificate(gallery, queries, 2.0)
    assert found.cosine_changed == found.cosine_changed_at_most == 0
    closer = sim.GapCloser(num_components=2).fit(gallery, queries)
    found = closer.certificate(gallery, queries)
    moved, flips, allowed, near_miss = closer.transform(gallery), 0, 0, 0
    norms = np.linalg.norm(moved, axis=1)
    for query in queries:
        s = moved @ query
        j, before, after = s.argmax(), (gallery @ query).argmax(), (s / norms).argmax()
        flips += before != after
        room = np.abs(norms[j] - norms)
        possible = [np.any((s[j] - s <= size * room)[np.arange(9) != j]) for size in (np.linalg.norm(query), 1.0)]
        allowed += possible[0]
        near_miss += before != after and not possible[1]
    assert found.cosine_changed == flips > 0
    assert flips <= found.cosine_changed_at_most == allowed
    assert near_miss > 0
    rescaled = gallery * np.linspace(0.5, 2, 9)[:, None]
    copies = equal_rows(rescaled)
    assert certify_cosine(rescaled, rescaled + 1.0, queries, copies)["cosine_changed_at_most"] is None


def test_equal_rows_are_one_answer(arrays):
    gallery, queries = arrays
    gallery = np.concatenate([gallery, gallery[::-1]])
    found = sim.GapCloser("compensated").fit(gallery, queries).certificate(gallery, queries)
    assert (found.changed, found.changed_float32, found.changed_at_most) == (0, 0, 0)


def test_blocks_of_queries_give_the_same_certificate(arrays):
    gallery, queries = arrays
    blocks = lambda: iter(np.array_split(queries, 7))
    for options in (dict(), dict(num_components=2), dict(rule="centred", num_components=2), dict(rule="optimal")):
        whole = sim.GapCloser(**options).fit(gallery, queries)
        parts = sim.GapCloser(**options).fit(gallery, blocks)
        np.testing.assert_allclose(parts.direction_, whole.direction_, atol=1e-14)
        np.testing.assert_allclose(parts.alpha_star_, whole.alpha_star_, atol=1e-12)
        expected, found = (
            dataclasses.asdict(c.certificate(gallery, q, sigma=0.1)) for c, q in ((whole, queries), (parts, blocks))
        )
        for name, value in expected.items():
            if isinstance(value, float):
                assert found[name] == pytest.approx(value, rel=1e-6), name
            elif name != "refusals":
                assert found[name] == value, name
    assert add_counts([dict(a=1, safe_margin=2.0, b=None), dict(a=3, safe_margin=1.0, b=None)]) == dict(
        a=4, safe_margin=2.0, b=None
    )


def test_quantisation_over_the_whole_range_is_explained():
    """A gap on one coordinate widens [min, max]: robustness falls, and with the old step it would not."""
    rng = np.random.default_rng(1)
    gallery = 0.1 * rng.normal(size=(10, 24))
    gallery[:, 3] = 0.0
    queries = np.repeat(gallery, 20, axis=0) + 0.1 * rng.normal(size=(200, 24))
    queries[:, 3] += 2.0
    closer = sim.GapCloser().fit(gallery, queries)
    moved = closer.transform(gallery)
    effects = quantization_effects(gallery, moved, iter(np.array_split(queries, 3)), bins=8)
    by_range = {effect.range: effect for effect in effects}
    wide = by_range["minmax"]
    assert wide.step_closed > 1.5 * wide.step
    assert wide.widest[1] == 3
    assert wide.robustness_closed < wide.robustness - 0.05
    assert wide.robustness_same_step > wide.robustness_closed + 0.05
    assert "coordinate 3" in str(wide)
    assert "use a range per dimension" in str(wide)
    for name in ("fixed", "per_dimension"):
        assert by_range[name].step == pytest.approx(by_range[name].step_closed)
        assert "not promised" not in str(by_range[name])
    for name, rows in (("robustness", gallery), ("robustness_closed", moved)):
        for effect in effects:
            stored = np.asarray(sim.Quantization(8, range=effect.range)(rows))
            kept = np.mean(nearest_rows(stored, queries) == nearest_rows(gallery, queries))
            assert getattr(effect, name) == pytest.approx(kept)


def test_alpha_star_belongs_to_the_gallery_that_is_passed(arrays):
    """A gallery that was closed already, asked to close again: every query that gains is counted, and no other."""
    gallery, queries = arrays[0], arrays[1][:40]
    closer = sim.GapCloser().fit(gallery, queries)
    closed = closer.transform(gallery, 1.0)
    for alpha in (1.0, -0.3):
        found = closer.certificate(closed, queries, alpha, sigma=0.15)
        ends = [sim.exact_robustness(rows, queries, sigma=0.15) for rows in (closed, closer.transform(closed, alpha))]
        assert found.rising == found.gaining == np.sum(ends[1] > ends[0])
        assert found.robustness_closed == pytest.approx(ends[1].mean())
    safe = closer.alpha_star_.min() - 1.0
    assert f"only up to α = {max(safe, 0.0):.4g}" in " ".join(found.refusals) or safe > alpha
    assert sim.GapCloser().fit(closed, queries + 9 * closer.direction_).certificate(closed, queries).rising == 0
    part = closer.certificate(gallery[:4] + 0.5 * closer.direction_, queries, 0.7)  # other rows, another mean
    ends = [closer.transform(gallery[:4], a) for a in (0.5, 1.2)]
    ends = [sim.exact_robustness(rows, queries, sigma=0.15) for rows in ends]
    assert part.rising == np.sum(ends[1] > ends[0] - 1e-12)


def test_closing_by_nothing_raises_nothing(full_rank, arrays):
    """α = 0 leaves every robustness as it is: no query rises, none gains."""
    for rule, (gallery, queries) in (("complement", arrays), ("centred", full_rank), ("optimal", full_rank)):
        closer = sim.GapCloser(rule).fit(gallery, queries)
        assert closer.certificate(gallery, queries[:20], 0.0).rising == 0
    closer = sim.GapCloser().fit(*arrays)
    assert closer.certificate(*arrays, 0.0, sigma=0.2).gaining == 0
    assert closer.certificate(*arrays, 1.0, sigma=1e-3).gaining < 120  # many keep their answer in any case


def test_the_error_of_the_gain_is_that_of_the_differences(arrays, monkeypatch):
    monkeypatch.setattr("simulator.closing.closer.ROBUSTNESS_QUERIES", 25)
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    found = closer.certificate(gallery, queries, sigma=0.1)
    some = streaming.random_rows(lambda: iter([queries]), 120, 25)
    before, after = (sim.exact_robustness(closer.transform(gallery, a), some, sigma=0.1) for a in (0.0, 1.0))
    left = 1 - 25 / 120
    wanted, *one_side = (np.std(v, ddof=1) * np.sqrt(left / 25) for v in (after - before, before, after))
    assert found.gain_error == pytest.approx(max(wanted, left / 25), rel=1e-9)
    assert min(one_side) > 1.05 * max(wanted, left / 25)


def test_a_shift_is_orthogonal_only_up_to_rounding(arrays):
    """One row that a ten-millionth of the shift moves out of its place: no promise any more."""
    gallery, queries = arrays
    closer = sim.GapCloser().fit(gallery, queries)
    assert closer.certificate(gallery, queries).rising is not None
    tilted = gallery.copy()
    tilted[2] += 1e-7 * closer.direction_
    found = closer.certificate(tilted, queries)
    assert found.rising is None
    assert "not orthogonal" in found.refusals[0]


def test_the_bound_on_cosine_flips_counts_the_norms_of_the_gallery_itself():
    """Norms 5e-7 apart, as in float32 files, decide a close answer before; after the shift they are equal."""
    d = 5e-7
    gallery = np.array(
        [[0.5 + d / 4, np.sqrt((1 + d) ** 2 - (0.5 + d / 4) ** 2 - d**2), -d], [0.5, np.sqrt(0.75), 0.0]]
    )
    moved = gallery + np.array([0.0, 0.0, 1.0])
    query = np.array([[1.0, 0.0, 0.0]])
    found = certify_cosine(gallery, moved, query, np.arange(2))
    assert found == dict(cosine_changed=1, cosine_changed_at_most=1)
    apart = gallery * np.array([[1.0], [1.00001]])  # not the noise of float32
    assert certify_cosine(apart, apart, query, np.arange(2))["cosine_changed_at_most"] is None


def test_norms_that_differ_are_no_unit_rows(arrays):
    gallery, queries = unit_rows(arrays[0]), arrays[1]
    for factor, said in ((1 + 1e-7, False), (1.001, True)):
        rows = gallery * np.where(np.arange(9) == 4, factor, 1.0)[:, None]
        reasons = " ".join(sim.GapCloser().fit(rows, queries).certificate(rows, queries).refusals)
        assert ("nothing holds under cosine" in reasons) == said


def test_decisions_within_rounding_are_within_the_bound(rng):
    """Queries halfway between two rows: what rounding decides is counted among what may change."""
    gallery = rng.normal(size=(12, 5)) + 30.0
    queries = 0.5 * (gallery[:, None] + gallery[None, :])[np.triu_indices(12, 1)]
    squares = np.sort(((queries[:, None] - gallery[None]) ** 2).sum(-1), axis=1)
    queries = queries[squares[:, 1] - squares[:, 0] < 1e-9]
    assert len(queries) > 10
    for rule in ("compensated", "centred"):
        found = sim.GapCloser(rule).fit(gallery, queries + 1.0).certificate(gallery, queries)
        assert found.changed > 0
        assert found.changed_at_most == len(queries)
        assert found.safe_margin < 1e-9


def test_euclidean_answers_are_told_from_those_by_cosine(full_rank, rng):
    """Three rows of unequal norms by hand, and averaged unit rows; equal norms say nothing."""
    x, q = np.array([[0.6, 0], [0.75, 0.66], [-1, 0]]), np.array([[0.95, 0.31]] * 2 + [[-1, 0.0]])
    for rule in ("centred", "compensated", "optimal"):
        found = sim.GapCloser(rule).fit(x, q).certificate(x, q)
        assert (found.changed, found.cosine_differs) == (0, 2)
        assert "by cosine 2 of 3 queries get another answer" in str(found)
        assert "by Euclidean distance" in str(found).splitlines()[1]
    gallery, queries = full_rank
    norms = np.linalg.norm(gallery, axis=1)
    wanted = np.sum((queries @ (gallery / norms[:, None]).T).argmax(axis=1) != nearest_rows(gallery, queries))
    found = sim.GapCloser("centred").fit(gallery, queries).certificate(gallery, lambda: iter(np.split(queries, 4)))
    assert found.cosine_differs == wanted > 0
    unit = unit_rows(gallery)
    found = sim.GapCloser("centred").fit(unit, queries).certificate(unit, queries)
    assert found.cosine_differs == 0
    assert "by cosine" not in str(found)
    unit[3] = 0.0
    assert sim.GapCloser("centred").fit(unit, queries).certificate(unit, queries).cosine_differs is None


def test_rows_within_rounding_are_one_answer(arrays, rng):
    """The same rows embedded twice: which of two copies answers is no change."""
    gallery, queries = arrays
    twice = np.concatenate([gallery, gallery + 1e-8 * rng.normal(size=gallery.shape)]).astype("f4").astype(float)
    closer = sim.GapCloser("compensated").fit(twice, queries)
    found = closer.certificate(twice, queries.astype("f4"))
    assert (found.changed, found.changed_float32, found.changed_at_most) == (0, 0, 0)


@pytest.mark.parametrize("bins", [3, 8])
def test_the_same_step_after_closing_is_counted_by_the_middle_of_each_bin(bins):
    rng = np.random.default_rng(2)
    gallery = 0.3 * rng.normal(size=(12, 9))
    queries = np.repeat(gallery, 20, axis=0) + 0.3 * rng.normal(size=(240, 9))
    moved = gallery + 2.0 * np.eye(9)[1]
    found = {e.range: e for e in quantization_effects(gallery, moved, iter([queries]), bins=bins)}["minmax"]
    step, stored = np.ptp(gallery) / bins, np.empty_like(moved)
    for k in range(12):
        for j in range(9):
            stored[k, j] = moved.min() + (int((moved[k, j] - moved.min()) / step) + 0.5) * step
    kept = np.mean(nearest_rows(stored, queries) == nearest_rows(gallery, queries))
    assert found.robustness_same_step == pytest.approx(kept)
    edge = np.mean(nearest_rows(stored - 0.5 * step, queries) == nearest_rows(gallery, queries))
    assert abs(edge - kept) > 0.01
