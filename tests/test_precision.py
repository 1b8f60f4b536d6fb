"""What rounding alone makes of a gap and of equal rows, and what is said and refused then."""

import ml_dtypes
import numpy as np
import pytest

import simulator as sim
from simulator import streaming
from simulator.numerics import precision
from simulator.numerics.precision import copies, equal_rows, roundoff_of, significant_bits

DTYPES = dict(bfloat16=ml_dtypes.bfloat16, float16=np.float16, float32=np.float32, float64=np.float64)


def centred(rng, n, d, dtype):
    """Rows off 0 whose mean was taken off at the precision they are stored in, as float64."""
    rows = (rng.normal(size=(n, d)) + 1.0).astype(DTYPES[dtype])
    wide = np.float32 if rows.dtype.itemsize == 2 else None  # as libraries sum halves
    return np.asarray(rows - rows.mean(axis=0, dtype=wide).astype(rows.dtype), float)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_is_the_size_of_rounding(rng, dtype):
    """Centred rows lie below it in every draw, and not ten times below; three floors are a gap."""
    u = precision.ROUNDOFF[dtype]
    for n_x, n_y in ((5, 200), (200, 200), (3000, 50)):
        for _ in range(12):
            x, y = centred(rng, n_x, 16, dtype), centred(rng, n_y, 16, dtype)
            about = precision.stored(x, u), precision.stored(y, u)
            floor, gap = precision.gap_floor(*about), np.linalg.norm(y.mean(0) - x.mean(0))
            assert 0.1 * floor < gap < floor
            with pytest.raises(ValueError, match="there is no gap to close: the two means lie"):
                sim.GapCloser().fit(x, y, roundoff=u)
        shift = 3 * floor * np.eye(16)[3]
        assert np.linalg.norm(sim.GapCloser("compensated").fit(x, y + shift, roundoff=u).gap_) > 2 * floor


def test_the_floor_takes_each_of_its_three_roundings_once():
    """By hand at R = 2: of the stored rows, of their mean, of the sum; two modalities add in squares."""
    for u, n in ((2.0**-8, 1), (2.0**-24, 900), (2.0**-53, 10**6)):
        parts = [u * 2 / np.sqrt(3 * n), u * 2 / np.sqrt(3), min(u, 2.0**-24) * 2 * np.sqrt(n / 9)]
        one = precision.Stored(n, 4.0, u)
        assert precision.gap_floor(one, precision.Stored(n, 0.0, u)) == pytest.approx(4 * np.linalg.norm(parts))
        assert precision.gap_floor(one, one) == pytest.approx(4 * np.linalg.norm(parts) * 2**0.5)


def test_the_precision_of_numbers_shows(rng):
    rows = rng.normal(size=(50, 7))
    for name, dtype in DTYPES.items():
        assert roundoff_of(significant_bits(np.asarray(rows.astype(dtype), float))) == precision.ROUNDOFF[name]
    assert significant_bits(np.zeros((2, 2))) == significant_bits(np.array([[4.0, -0.5]])) == 1
    assert significant_bits(np.array([[5.0, 2.0]])) == 3
    assert precision.stored(rows).roundoff == 2.0**-53
    about = streaming.moments(iter([np.eye(2), rows[:, :2].astype(np.float16).astype(float)]))
    assert about.roundoff == 2.0**-11
    assert about.power == pytest.approx(np.mean([1, 1, *np.sum(rows[:, :2].astype(np.float16).astype(float) ** 2, 1)]))
    # Scaled to unit length in float64, the rows of a float16 file are still of float16.
    assert streaming.moments(iter([rows]), 2.0**-11).roundoff == 2.0**-11


def test_rules_that_need_no_gap_work_without_one(rng):
    gallery, queries = centred(rng, 20, 24, "float32"), centred(rng, 60, 24, "float32")
    for rule in ("complement", "soft", "compensated"):
        with pytest.raises(ValueError, match="rule centred and rule optimal need no gap"):
            sim.GapCloser(rule).fit(gallery, queries)
    for rule in ("centred", "optimal"):
        closer = sim.GapCloser(rule, alpha="best", sigma=0.3).fit(gallery, queries)
        assert np.isnan(closer.alpha_star_).all()
        assert 0 <= closer.alpha_ <= 2
        assert closer.certificate(gallery, queries, 1.0).changed == 0
    assert sim.GapCloser("centred", alpha="safe").fit(gallery, queries).alpha_ == 0.0


def test_a_complement_of_rounding_size_moves_nothing(rng):
    """The gap lies in the span of the gallery up to the rounding of float32, and is large; so does a closed gallery."""
    gallery = rng.normal(size=(6, 40)).astype("f4").astype(float)
    queries = (rng.dirichlet(0.5 + np.arange(6), size=300) @ gallery).astype("f4").astype(float)
    closer = sim.GapCloser(alpha="best", sigma=0.1).fit(gallery, queries)
    assert np.linalg.norm(closer.gap_) > 0.1
    assert not closer.direction_.any()
    assert closer.alpha_ == 0.0
    assert "nothing to move" in closer.nothing_to_move()
    asked = queries + 0.2 * rng.normal(size=40)
    closed = sim.GapCloser().fit(gallery, asked).transform(gallery, 1.0).astype("f4").astype(float)
    assert sim.GapCloser().fit(closed, asked.astype("f4").astype(float)).nothing_to_move() is not None


def test_copies_are_rows_within_rounding(rng):
    """Batches of float32 differ by rounding; rows 1 % apart do not, however far from 0 they all lie."""
    for d in (4, 300):
        rows = rng.normal(size=(60, d)) / d**0.5
        twice = np.repeat(rows, 3, axis=0)
        noisy = twice + 1e-7 * rng.normal(size=twice.shape) / d**0.5
        wanted = np.repeat(np.arange(60), 3)
        for stored in (twice, noisy, noisy.astype("f4").astype(float), twice.astype("f2").astype(float)):
            found = equal_rows(stored)
            assert len(np.unique(found)) == len(np.unique(found + 1000 * wanted)) == 60
        apart = twice + 0.01 * rng.normal(size=twice.shape) / d**0.5
        for shift in (0.0, 1e6):
            assert len(np.unique(equal_rows(apart + shift))) == 180
    both = np.repeat(rng.normal(size=(5, 20)), 2, axis=0)
    both[1::2] += np.spacing(both[1::2].astype(np.float16)).astype(float)  # one unit in the last place of float16
    assert len(np.unique(equal_rows(both, 2.0**-11))) == 5
    assert len(np.unique(equal_rows(both))) == 10


def test_the_step_between_copies_is_the_formula(rng):
    """Below one step rows are copies; from three on (cells are 2.8 wide) they are not."""
    rows = rng.normal(size=(400, 8)) + 50.0
    rows[1] = rows[0]
    length, spread = (np.median(np.linalg.norm(rows - c, axis=1)) for c in (0.0, np.median(rows, axis=0)))
    for roundoff in (2.0**-53, 2.0**-24):
        step = 2 * roundoff * length + 4 * 8**0.5 * 2.0**-24 * spread
        for steps, count in ((0.95, 399), (3.0, 400)):
            rows[1, 0] = rows[0, 0] + steps * step
            assert len(np.unique(equal_rows(rows, roundoff))) == count


def test_copies_of_degenerate_rows():
    for rows, count in (
        (np.zeros((4, 3)), 1),
        (np.array([[0.0, -0.0], [-0.0, 0.0], [1e-300, 0.0]]), 2),
        (np.array([[0.0], [0.0], [0.0], [5.0], [7.0]]), 3),
        (np.full((9, 2), 1e149) * np.arange(9)[:, None], 9),
        (1e-7 * np.random.default_rng(0).normal(size=(3000, 12)) + 1.0, 3000),
    ):
        assert len(np.unique(copies(precision.sketch(rows), rows.shape[1], 2.0**-53))) == count


def test_partners_are_found_among_copies():
    """Two images, each five times, and ten captions; the seventh caption is a copy of the first."""
    image, caption = np.repeat([0, 1], 5), np.array([0, 1, 2, 3, 4, 5, 0, 7, 8, 9])
    rows = np.arange(10)
    assert streaming.are_partners(np.where(rows < 5, 0, 5), rows, image, caption).all()
    # Image 0 is answered by any of captions 0 to 4, image 1 by 5 to 9 and by the copy of caption 6.
    for found in range(10):
        right = streaming.are_partners(np.full(10, found), rows, caption, image)
        np.testing.assert_array_equal(right, np.isin(caption[found], [0, 1, 2, 3, 4]) & (rows < 5) | (
            np.isin(caption[found], [5, 0, 7, 8, 9]) & (rows >= 5)))  # fmt: skip
