"""GapCloser as a step of scikit-learn's pipelines, held to scikit-learn's own checks, and without scikit-learn."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import sklearn
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import check_estimator

import simulator as sim

ROOT = Path(__file__).parents[1]

# Check of scikit-learn -> why it fails.
NOT_FOR_US = {
    "check_fit_score_takes_y": "the second argument of fit is called queries",
    "check_do_not_raise_errors_in_init_or_set_params": "a wrong setting is refused where it is written",
    "check_dtype_object": "numbers in an array of objects are refused",
    "check_transformer_data_not_an_array": "an object that forbids np.shape is refused",
    "check_complex_data": "refused, in other words",
    "check_estimators_empty_data_messages": "refused, in other words",
    "check_fit2d_predict1d": "refused, in other words",
}


class Asked(sim.GapCloser):
    """The checks bring labels as y: the queries are the gallery, moved."""

    def fit(self, gallery, queries, **options):
        moved = lambda: iter([np.asarray(gallery, float) + 1.0])
        return super().fit(gallery, None if queries is None else moved, **options)


class Centring(Asked):
    """What the checks must notice: a row that depends on the rows beside it."""

    def transform(self, gallery, alpha=None):
        return super().transform(gallery, alpha) - np.mean(gallery, axis=0)


def failed(estimator) -> dict[str, Exception]:
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(found) > 40
    return {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn.utils.estimator_checks")
@pytest.mark.parametrize("rule", ["complement", "soft"])
def test_the_checks_of_scikit_learn(rule):
    """Each that is listed above must fail, no other may."""
    found = failed(Asked(rule))
    assert set(found) == set(NOT_FOR_US), found


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn.utils.estimator_checks")
def test_the_checks_notice_a_control():
    assert set(failed(Centring("soft"))) == {*NOT_FOR_US, "check_methods_subset_invariance"}


@pytest.fixture
def rows(rng):
    """(gallery, queries), unlike in number, with a gap."""
    return rng.normal(size=(6, 10)), rng.normal(size=(30, 10)) + 0.5


def test_first_middle_and_last_step(rows):
    gallery, queries = rows
    unit, asked = Normalizer().transform(gallery), Normalizer().transform(queries)
    closed = sim.GapCloser().fit(unit, asked).transform(unit)
    assert np.abs(closed - unit).max() > 0.1
    last = make_pipeline(Normalizer(), sim.GapCloser())
    np.testing.assert_array_equal(last.fit_transform(gallery, asked), closed)
    np.testing.assert_array_equal(last.fit(gallery, asked).transform(gallery), closed)
    first = make_pipeline(sim.GapCloser(), PCA(2)).fit(unit, asked)
    np.testing.assert_allclose(first.transform(unit), PCA(2).fit_transform(closed), atol=1e-12)
    middle = make_pipeline(Normalizer(), sim.GapCloser(), NearestNeighbors(n_neighbors=2)).fit(gallery, asked)
    np.testing.assert_array_equal(
        middle[-1].kneighbors(asked)[1], NearestNeighbors(n_neighbors=2).fit(closed).kneighbors(asked)[1]
    )
    half = last.set_params(gapcloser__alpha=0.5).fit_transform(gallery, asked, gapcloser__roundoff=2.0**-11)
    np.testing.assert_allclose(half, (closed + unit) / 2, atol=1e-12)


def test_a_rule_that_is_more_than_a_shift_is_a_last_step(rows):
    gallery, queries = rows
    last = make_pipeline(Normalizer(), sim.GapCloser("centred")).fit(gallery, queries)
    unit = last[:-1].transform(gallery)
    direct = sim.GapCloser("centred").fit(unit, queries).index(unit)
    np.testing.assert_array_equal(last[-1].index(unit).scores(queries), direct.scores(queries))
    closer = sim.GapCloser("centred")
    with pytest.raises(ValueError, match="rule='centred' is more than a shift of the rows"):
        make_pipeline(closer, PCA(2)).fit(gallery, queries)
    with pytest.raises(NotFittedError):  # refused before the work
        closer.index(gallery)
    moved = sim.GapCloser("soft").fit(gallery, queries).set_params(rule="centred")
    with pytest.raises(ValueError, match="rule='centred' is more than a shift of the rows"):
        moved.fit_transform(gallery, queries)


def test_clones(rows):
    gallery, queries = rows
    closer = sim.GapCloser("soft", penalty=3.0).set_output(transform="pandas").fit(gallery, queries)
    copy = clone(closer)
    assert copy.get_params() == closer.get_params()
    assert not hasattr(copy, "gap_")
    assert isinstance(copy.fit_transform(gallery, queries), pandas.DataFrame)
    assert type(clone(Asked("soft"))) is Asked
    assert clone(Pipeline([("close", closer)])).get_params()["close__penalty"] == 3.0


def test_data_frames(rows):
    gallery, queries = rows
    names, index = [f"axis {i}" for i in range(10)], [f"row {k}" for k in range(6)]
    frame = pandas.DataFrame(gallery, columns=names, index=index)
    closed = sim.GapCloser().fit(gallery, queries).transform(gallery)
    closer = sim.GapCloser().set_output(transform="pandas")
    wanted = pandas.DataFrame(closed, columns=names, index=index)
    pandas.testing.assert_frame_equal(closer.fit_transform(frame, queries), wanted)
    assert closer.feature_names_in_.tolist() == closer.get_feature_names_out().tolist() == names
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
        closer.transform(frame[names[::-1]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert closer.transform(gallery).columns.tolist() == names
    with warnings.catch_warnings(action="error"):  # none about what the closer itself passes on
        best = sim.GapCloser("soft", alpha="best", sigma=0.3).fit(frame, queries)
        assert best.certificate(frame, queries).num_rows == 6
    pipeline = make_pipeline(Normalizer(), sim.GapCloser(), PCA(2)).set_output(transform="pandas")
    assert pipeline.fit_transform(frame, queries).columns.tolist() == ["pca0", "pca1"]
    assert pipeline[:-1].get_feature_names_out().tolist() == names
    assert isinstance(closer.set_output().transform(frame), pandas.DataFrame)  # None changes nothing
    np.testing.assert_array_equal(closer.set_output(transform="default").transform(frame), closed)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(closer.transform(frame), np.ndarray)
        again = sim.GapCloser().fit(gallery, queries).transform(gallery)
        assert again.columns.tolist() == [f"x{i}" for i in range(10)]
    assert not hasattr(closer.fit(gallery, queries), "feature_names_in_")
    with pytest.raises(ValueError, match="transform is 'excel'; it must be one of 'default', 'pandas', 'polars', None"):
        closer.set_output(transform="excel")


def test_pages_of_a_notebook(rows):
    pipeline = make_pipeline(Normalizer(), sim.GapCloser("soft", penalty=3.0))
    for page in (pipeline._repr_html_(), pipeline[-1]._repr_html_(), pipeline.fit(*rows)._repr_html_()):
        assert page.lstrip().startswith("<style>")
        assert "GapCloser(rule=&#x27;soft&#x27;" in page


def test_one_line_for_what_cannot_be_fitted(rows):
    gallery, queries = rows
    with pytest.raises(NotFittedError, match=re.escape("not fitted; call fit(gallery, queries) first")):
        sim.GapCloser().transform(gallery)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None; y are the queries"):
        make_pipeline(sim.GapCloser(), PCA(2)).fit(gallery)
    with pytest.raises(ValueError, match=r"queries has shape \(6,\)"):
        sim.GapCloser().fit(gallery, np.arange(6))
    closer = sim.GapCloser().fit(gallery, queries)
    with pytest.raises(ValueError, match="no gap to close"):
        closer.fit(gallery, np.concatenate([gallery, gallery]))
    with pytest.raises(NotFittedError):  # what was fitted before is gone
        closer.transform(gallery)


def test_without_scikit_learn(rows, monkeypatch):
    gallery, queries = rows
    wanted = sim.GapCloser().fit_transform(gallery, queries)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"] + ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        __import__("sklearn.utils")
    np.testing.assert_array_equal(sim.GapCloser().fit_transform(pandas.DataFrame(gallery), queries), wanted)
    closer = sim.GapCloser()
    assert closer._repr_html_() is None
    with pytest.raises(ValueError, match="not fitted"):
        closer.transform(gallery)


@pytest.mark.slow
def test_the_package_is_imported_without_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import simulator; simulator.GapCloser().fit([[1.0, 0.0]], [[0.0, 2.0]])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_page(tmp_path, monkeypatch, rng):
    """As printed, on files that are there in the first hour."""
    page = (ROOT / "docs" / "howto" / "own-embeddings.md").read_text()
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "make_pipeline" in code]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    texts, images = rng.normal(size=(40, 8)) + 0.5, rng.normal(size=(60, 8)) - 0.5
    np.save("texts.npy", texts)
    np.save("images.npy", images)
    names = {}
    exec(code, names)
    unit, asked = Normalizer().transform(texts), Normalizer().transform(images)
    closed = sim.GapCloser("soft").fit(unit, asked).transform(unit)
    np.testing.assert_allclose(names["closed"], closed, atol=1e-12)
    nearest = ((asked[:, None] - closed[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(names["answers"], nearest)
