"""`gapsim close`: what it writes, what it says, what it refuses, and what is left after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simulator as sim
from experiments.__main__ import main
from experiments.commands import closing
from experiments.setups.galleries import nearest_rows, unit_rows
from tests.test_diagnose import pair, save
from tests.test_diagnose_input import NPZ, PARQUET, SAFE, X, damaged_member, parquet_with, put, store, truncated, write

ROOT = Path(__file__).parents[1]
RULES = ("complement", "soft", "compensated", "centred", "optimal")


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """Five classes and 64 queries, and the arrays behind them."""
    monkeypatch.chdir(tmp_path)
    x, y = pair(rng)
    save(tmp_path, x=x[::13], y=y)
    return x[::13], y


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written_answers_like_the_gallery(files, rule, capsys):
    gallery, queries = files
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz", "--rule", rule, "--json", "c.json"]) == 0
    said, found = capsys.readouterr().out, json.loads(Path("c.json").read_text())
    answers = sim.Index.load("o.npz").search(queries)
    assert found["changed"] == np.sum(answers != nearest_rows(gallery, queries))
    assert found["changed"] == 0 or rule == "soft"
    assert f"clean decisions changed: {found['changed']} of 64" in said
    assert said.endswith("written: o.npz\n")
    assert found["num_queries"] == 64


def test_rows_alone_and_plain_inner_products(files):
    gallery, queries = files
    assert main(["close", "x.npy", "y.npy", "--out", "o.npy", "--alpha", "0.5"]) == 0
    closer = sim.GapCloser().fit(gallery, queries)
    np.testing.assert_allclose(np.load("o.npy"), closer.transform(gallery, 0.5), atol=1e-13)
    assert main(["close", "x.npy", "y.npy", "--out", "p.npz", "--rule", "centred", "--inner-product"]) == 0
    with np.load("p.npz") as plain:
        answers = ((queries @ plain["matrix"] + plain["offset"]) @ plain["rows"].T).argmax(axis=1)
    np.testing.assert_array_equal(answers, nearest_rows(gallery, queries))


def test_blocks_normalisation_and_named_arrays(files, monkeypatch):
    """The certificate of a file read by blocks is that of the arrays."""
    from simulator.storage import embeddings

    monkeypatch.setattr(embeddings, "BLOCK_VALUES", 60)
    monkeypatch.setattr(closing, "TILE", 7)
    gallery, queries = map(unit_rows, files)
    np.savez("both.npz", x=files[0], y=files[1])
    options = dict(rule="centred", num_components=2, sigma=0.1, normalize=True)
    found = closing.close("both.npz:x", "both.npz:y", out=Path("o.npz"), **options)
    expected = sim.GapCloser("centred", 2, sigma=0.1).fit(gallery, queries).certificate(gallery, queries)
    for name in ("changed", "rising", "num_queries", "gaining", "robustness_queries"):
        assert found[name] == getattr(expected, name)
    assert found["robustness_closed"] == pytest.approx(expected.robustness_closed, rel=1e-9)


def test_more_queries_than_exact_robustness_takes(files, monkeypatch, capsys):
    monkeypatch.setattr("simulator.closing.closer.ROBUSTNESS_QUERIES", 20)
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz", "--sigma", "0.3", "--json", "c.json"]) == 0
    found = json.loads(Path("c.json").read_text())
    assert "20 random queries" in capsys.readouterr().out
    gallery, queries = files
    closer = sim.GapCloser().fit(gallery, queries)
    ends = [sim.exact_robustness(closer.transform(gallery, a), queries, sigma=0.3).mean() for a in (0.0, 1.0)]
    gain = found["robustness_closed"] - found["robustness"]
    assert 0 < abs(gain - (ends[1] - ends[0])) < 4 * found["gain_error"] < 0.2


def test_the_best_alpha_comes_with_its_curve(files, capsys):
    options = ["--alpha", "best", "--sigma", "0.5", "--json", "c.json"]
    assert main(["close", "x.npy", "y.npy", "--out", "o.npy", *options]) == 0
    found = json.loads(Path("c.json").read_text())
    assert found["curve"]["alpha"][int(np.argmax(found["curve"]["robustness"]))] == found["alpha"]
    assert "exact robustness tried at α: " in capsys.readouterr().out


def test_repeated_rows_are_a_warning_and_one_answer(files, capsys):
    gallery, _ = files
    np.save("x.npy", np.concatenate([gallery, gallery[:2]]))
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz", "--json", "c.json"]) == 0
    error = capsys.readouterr().err
    assert "gapsim: warning: x.npy: 2 of 7 rows repeat an earlier row; equal rows count as one answer" in error
    assert json.loads(Path("c.json").read_text())["changed"] == 0


def test_copies_up_to_rounding_are_named(files, capsys):
    gallery, _ = files
    np.save("x.npy", np.concatenate([gallery, gallery[:2] + 1e-8]))
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz", "--rule", "compensated", "--json", "c.json"]) == 0
    assert "x.npy: 2 of 7 rows repeat an earlier row (2 of them only up to rounding)" in capsys.readouterr().err
    assert json.loads(Path("c.json").read_text())["changed"] == 0


def test_answers_by_cosine_that_differ_are_a_warning(files, capsys):
    """Three rows of unequal norms: Euclidean answers 1 1 2, by cosine 0 0 2; scaled to unit length both agree."""
    np.save("x.npy", np.array([[0.6, 0], [0.75, 0.66], [-1, 0]]))
    np.save("y.npy", np.array([[0.95, 0.31]] * 2 + [[-1, 0.0]]))
    for rule in ("centred", "compensated", "optimal"):
        for options, said in (([], True), (["--normalize"], False)):
            assert (
                main(["close", "x.npy", "y.npy", "--out", "o.npz", "--rule", rule, *options, "--json", "c.json"]) == 0
            )
            error = capsys.readouterr().err
            assert ("gapsim: warning: by cosine 2 of 3 queries get another answer" in error) == said
            assert json.loads(Path("c.json").read_text())["cosine_differs"] == (2 if said else 0)


def test_quantisation_is_shown_for_every_range(files, capsys):
    assert main(["close", "x.npy", "y.npy", "--out", "o.npy", "--quantize-bins", "8"]) == 0
    said = capsys.readouterr().out
    for words in ("quantised to 8 bins, range fixed", "range minmax", "range per dimension", "not promised: "):
        assert words in said


def test_nothing_to_move_is_refused_and_points_to_other_rules(files, rng, capsys):
    np.save("x.npy", rng.normal(size=(30, 6)))
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz"]) == 2
    error = capsys.readouterr().err
    assert "nothing to move: the 30 gallery rows, centred, span 6 of 6 dimensions" in error
    assert "rule compensated and rule centred" in error
    assert "N6" in error
    assert not Path("o.npz").exists()
    assert main(["close", "x.npy", "y.npy", "--out", "o.npz", "--rule", "compensated"]) == 0


CLOSE = ["--out", "o.npz"]
BAD = [
    ("missing file", X, lambda f: (f / X).unlink(), "x.npy does not exist", CLOSE),
    ("missing queries", X, lambda f: (f / "y.npy").unlink(), "y.npy does not exist", CLOSE),
    ("directory", X, lambda f: (f / X).unlink() or (f / X).mkdir(), "is a directory; name one file", CLOSE),
    ("unknown suffix", "x.pt", write("x.pt", b"PK"), "suffix '.pt'; expected .npy, .npz, .safetensors", CLOSE),
    ("header cut", X, write(X, b"\x93NUMPY\x01"), "x.npy is not a readable array", CLOSE),
    ("npy cut", X, truncated(X, 0.7), "bytes early", CLOSE),
    ("queries cut", X, lambda f: (f / "y.npy").write_bytes((f / "y.npy").read_bytes()[:-9]), "bytes early", CLOSE),
    ("npz cut", NPZ, truncated(NPZ, 0.7), "x.npz is not a readable array", CLOSE),
    ("npz damaged", NPZ, damaged_member, "x.npz:clip is not a readable array", CLOSE),
    ("safetensors cut", SAFE, truncated(SAFE, 0.7), "x.safetensors is not a readable array", CLOSE),
    ("parquet cut", PARQUET, truncated(PARQUET, 0.7), "x.parquet is not a readable array", CLOSE),
    ("null row", PARQUET, parquet_with(lambda a: a.array([[1.0] * 6] * 3 + [None])), "row 3 has a null", CLOSE),
    ("objects", X, store(by=lambda x: np.array([{}], object)), "it holds Python objects", CLOSE),
    ("integers", X, store(by=lambda x: x.astype(int)), "dtype int64; embeddings are float16", CLOSE),
    ("1-d", X, store(by=lambda x: x[0]), "has shape (6,); it must be [rows, dimensions]", CLOSE),
    ("empty gallery", X, store(by=lambda x: x[:0]), "has shape (0, 6)", CLOSE),
    ("NaN", X, store(by=lambda x: put(x, 2, np.nan)), "x.npy: row 2 has NaN, infinity or", CLOSE),
    ("infinite query", X, store("y", by=lambda y: put(y, 7, -np.inf)), "y.npy: row 7 has NaN, infinity or", CLOSE),
    ("overflow", X, store(by=lambda x: put(x, 2, 1e200)), "a value beyond 1e+150", CLOSE),
    ("zero row to scale", X, store(by=lambda x: put(x, 4, 0)), "x.npy: row 4 is zero", [*CLOSE, "--normalize"]),
    ("dimensions", X, store(by=lambda x: x[:, :5]), "x.npy has 5 dimensions and y.npy has 6", CLOSE),
    ("one query", X, store("y", by=lambda y: y[:1]), "y.npy has 1 row", CLOSE),
    ("one class", X, store(by=lambda x: x[:1]), "x.npy has 1 row", CLOSE),
    ("only repeated rows", X, store("y", by=lambda y: np.load("x.npy")), "no gap to close", CLOSE),
    ("full rank", X, store(by=lambda x: np.eye(6)[[0, 1, 2, 3, 4, 5, 0]] * 1.5 - 0.2 * np.eye(7, 6)),
     "nothing to move", CLOSE),
    ("several arrays", NPZ, lambda f: np.savez(f / NPZ, a=np.ones((3, 6)), b=np.ones(2)), "name one of", CLOSE),
    ("alpha word", X, None, "--alpha is 'most'; it must be a number, 'best' or 'safe'", [*CLOSE, "--alpha", "most"]),
    ("alpha nan", X, None, "alpha is nan", [*CLOSE, "--alpha", "nan"]),
    ("best without sigma", X, None, "'best' depends on the noise; give sigma", [*CLOSE, "--alpha", "best"]),
    ("safe without a theorem", X, None, "needs a theorem", [*CLOSE, "--alpha", "safe", "--rule", "compensated"]),
    ("safe, top r", X, None, "alpha='safe' needs a shift", [*CLOSE, "--alpha", "safe", "--num-components", "2"]),
    ("sigma", X, None, "sigma is -1", [*CLOSE, "--sigma", "-1"]),
    ("components", X, None, "num_components is -1", [*CLOSE, "--num-components", "-1"]),
    ("components of another rule", X, None, "belongs to rule='complement' and rule='centred'",
     [*CLOSE, "--num-components", "2", "--rule", "soft"]),
    ("centre of another rule", X, None, "belongs to rule='centred'", [*CLOSE, "--centre", "best", "--sigma", "1"]),
    ("one bin", X, None, "quantize_bins is 1", [*CLOSE, "--quantize-bins", "1"]),
    ("bins and scalars", X, None, "leave it out", [*CLOSE, "--quantize-bins", "8", "--rule", "centred"]),
    ("out suffix", X, None, "must end in .npz, or in .npy", ["--out", "o.txt"]),
    ("scalars in npy", X, None, "give it a name that ends in .npz", ["--out", "o.npy", "--rule", "centred"]),
    ("out is input", X, None, "y.npy is an input", ["--out", "y.npy"]),
    ("out is the file of a named input", "x.npz:clip", lambda f: np.savez(f / NPZ, clip=np.ones((3, 6))),
     "x.npz is an input", ["--out", "x.npz"]),
    ("two outputs, one file", X, None, "named for two outputs", [*CLOSE, "--json", "o.npz"]),
    ("output folder", X, write("file", b""), "cannot write file/a.npz", ["--out", "file/a.npz"]),
]  # fmt: skip


@pytest.mark.parametrize(("gallery", "spoil", "words", "options"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_clear_line_and_nothing_is_written(files, tmp_path, gallery, spoil, words, options, capsys):
    if spoil is not None:
        spoil(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main(["close", gallery, "y.npy", *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("gapsim: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 400
    assert captured.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("target", ["npz", "json"])
def test_a_killed_run_leaves_no_half_file(files, tmp_path, target):
    """SIGKILL at the last moment before each output takes its place: the old files stay whole."""
    for name in ("o.npz", "c.json"):
        Path(name).write_text("old")
    script = (
        "import os, signal; from experiments.__main__ import main\n"
        "rename = os.replace\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"os.replace = lambda draft, path: kill() if str(path).endswith({target!r}) else rename(draft, path)\n"
        "main(['close', 'x.npy', 'y.npy', '--out', 'o.npz', '--json', 'c.json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("c.json").read_text() == "old"
    if target == "npz":
        assert Path("o.npz").read_text() == "old"
    else:
        assert sim.Index.load("o.npz").rows.shape == (5, 6)
