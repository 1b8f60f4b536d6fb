"""An index answers as the gallery it was made from, in every form it is exported in."""

import dataclasses

import numpy as np
import pytest

import simulator as sim
from experiments.setups.galleries import nearest_rows, random_classes
from simulator.robustness import nearest

CASES = {
    "complement": {},
    "soft": dict(penalty=1e6),
    "compensated": {},
    "centred": {},
    "centred, r = 3": dict(num_components=3),
    "optimal": {},
}


@pytest.fixture
def arrays():
    gallery, queries, _ = random_classes(9, 14, 120, 4)
    return gallery, queries


def fitted(case, arrays, **options):
    return sim.GapCloser(case.split(",")[0], **CASES[case] | options).fit(*arrays)


@pytest.mark.parametrize("case", CASES)
def test_every_export_answers_like_the_gallery(case, arrays, tmp_path):
    gallery, queries = arrays
    clean = nearest_rows(gallery, queries)
    index = fitted(case, arrays).index(gallery)
    np.testing.assert_array_equal(index.search(queries), clean)
    np.testing.assert_array_equal(sim.Index.load(index.save(tmp_path / "i.npz")).search(queries), clean)
    plain = index.inner_product()
    np.testing.assert_array_equal((plain.map_queries(queries) @ plain.rows.T).argmax(axis=1), clean)
    weights, bias = plain.rows @ plain.matrix.T, plain.rows @ plain.offset  # a linear layer
    np.testing.assert_array_equal((queries @ weights.T + bias[None, :]).argmax(axis=1), clean)
    with np.load(plain.save(tmp_path / "plain.npz")) as stored:
        assert sorted(stored) == ["matrix", "offset", "rows"]
        np.testing.assert_array_equal(stored["rows"], plain.rows)
    # Control: without the exact scalar the answers are others.
    if index.bias.any():
        assert np.any(dataclasses.replace(index, bias=0 * index.bias).search(queries) != clean)
    assert np.any((queries @ weights.T).argmax(axis=1) != clean)


@pytest.mark.parametrize("case", ["compensated", "centred", "optimal"])
def test_the_scalars_follow_the_conventions_of_scores(case, arrays):
    """`simulator.robustness.nearest`, which measures robustness, answers the same from rows, bias and scoring."""
    gallery, queries = arrays
    index = fitted(case, arrays).index(gallery)
    found = nearest(index.rows, index.map_queries(queries), scoring=index.scoring, bias=index.bias)
    np.testing.assert_array_equal(found, nearest_rows(gallery, queries))


@pytest.mark.parametrize("case", CASES)
def test_exact_robustness_is_what_is_measured(case, arrays, key):
    gallery, queries = arrays[0], arrays[1][:40]
    index = fitted(case, arrays).index(gallery)
    plain, sigma = index.inner_product(), 0.1
    exact = index.robustness(queries, sigma=sigma).mean()
    options = dict(num_draws=3000, key=key)
    if index.scoring == "sqeuclidean":
        noise = sim.GaussianNoise(sigma)
        estimate = sim.measured_robustness(index.rows, queries, noise=noise, bias=index.bias, **options)
    else:  # noise on the d stored coordinates, none on the exact scalars
        noise = sim.GaussianNoise(sigma, within=np.eye(plain.rows.shape[1])[: gallery.shape[1]])
        asked = plain.map_queries(queries)
        estimate = sim.measured_robustness(plain.rows, asked, noise=noise, scoring="dot", **options)
    assert abs(estimate.mean - exact) < 4 * estimate.standard_error
    control = index.robustness(queries, sigma=sigma * 2**0.5).mean()
    assert abs(estimate.mean - control) > 4 * estimate.standard_error


@pytest.mark.parametrize("case", ["compensated", "centred, r = 3", "optimal"])
def test_faiss_takes_the_plain_export(case, arrays):
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is part of the extra `bench`")
    gallery, queries = arrays
    plain = fitted(case, arrays).index(gallery).inner_product()
    flat = faiss.IndexFlatIP(plain.rows.shape[1])
    flat.add(plain.rows.astype(np.float32))
    found = flat.search(plain.map_queries(queries).astype(np.float32), 1)[1][:, 0]
    np.testing.assert_array_equal(found, nearest_rows(gallery, queries))


def test_search_by_blocks(arrays, monkeypatch):
    gallery, queries = arrays
    monkeypatch.setattr("simulator.closing.index.LARGEST_BLOCK", 20)
    np.testing.assert_array_equal(fitted("centred", arrays).index(gallery).search(queries), nearest_rows(*arrays))


def test_a_file_that_is_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sim.Index.load(tmp_path / "i.npz")
    np.savez(tmp_path / "i.npz", rows=np.ones((3, 2)))
    (tmp_path / "j.npz").write_bytes(b"PK\x03\x04 cut short")
    np.savez(tmp_path / "k.npz", rows=np.ones((3, 2)), bias=np.ones(2), centre=np.ones(2), scoring=np.array("dot"))
    for name in "ijk":
        with pytest.raises(ValueError, match="is not an index that `gapsim close` or"):
            sim.Index.load(tmp_path / f"{name}.npz")


def test_fields_that_do_not_fit(arrays):
    gallery, queries = arrays
    index = fitted("centred, r = 3", arrays).index(gallery)
    for changes, words in (
        (dict(bias=np.ones(3)), r"bias has shape \(3,\)"),
        (dict(centre=np.full(14, np.nan)), "centre"),
        (dict(scoring="cosine"), "scoring"),
        (dict(exact=None), "belong together"),
        (dict(scoring="sqeuclidean"), "belong together"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(index, **changes)
    with pytest.raises(ValueError, match="queries have 5 dimensions and the index 14"):
        index.search(queries[:, :5])


@pytest.mark.parametrize("rule", ["compensated", "centred"])
def test_copies_of_the_answer_keep_it(rule, rng):
    """Rows three times, once with the noise of a second batch: as often as in draws that count by class."""
    gallery, queries = rng.normal(size=(4, 5)), 0.7 * rng.normal(size=(6, 5)) + 0.5
    thrice = np.concatenate([gallery, gallery + 1e-8 * rng.normal(size=gallery.shape), gallery])
    closer = sim.GapCloser(rule).fit(thrice, queries)
    index = closer.index(thrice, 0.5)
    found = index.robustness(queries, sigma=0.5)
    kept, draws = np.zeros(6), 4000
    for _ in range(draws):
        noisy = dataclasses.replace(index, rows=index.rows + 0.5 * rng.normal(size=thrice.shape))
        kept += noisy.search(queries) % 4 == index.search(queries) % 4
    np.testing.assert_allclose(found, kept / draws, atol=4 * 0.5 / draws**0.5)
    certificate = closer.certificate(thrice, queries, 0.5, sigma=0.5)
    assert certificate.robustness_closed == pytest.approx(found.mean())
    assert certificate.robustness > 0.4  # not a third of it


@pytest.mark.parametrize("scale", [1e-160, 1e-100, 1e100, 1e150])
def test_robustness_of_the_centred_rule_at_any_size(rng, scale):
    """Scores of 1e-320 keep three digits of float64, and the noise on them is no larger."""
    gallery = rng.normal(size=(10, 16))
    queries = gallery + rng.normal(size=(10, 16))
    one, other = (
        sim.GapCloser("centred").fit(gallery * s, queries * s).index(gallery * s).robustness(queries * s, sigma=0.5 * s)
        for s in (1.0, scale)
    )
    assert 0.5 < one.mean() < 0.9
    np.testing.assert_allclose(other, one, atol=2e-3 if scale < 1e-150 else 1e-9)
