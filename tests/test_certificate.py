"""Every number of a certificate against a loop, and its promises against what breaks them."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments._galleries import nearest_rows, random_classes, unit_rows
from simulator.certificate import add_counts, certify_cosine, equal_rows, quantization_effects


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
    assert "no gap" in sim.GapCloser().fit(gallery, gallery).nothing_to_move()


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
    blocks = lambda: iter(np.array_split(queries, 7))  # noqa: E731
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
