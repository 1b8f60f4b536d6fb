"""What `gapsim diagnose` says to input that it cannot use: one line, exit code 2."""

import numpy as np
import pytest

from experiments.__main__ import main
from tests.test_diagnose import pair, save


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def store(name="x", **changes):
    """Replace an array by one made from the good one."""
    return lambda folder: np.save(
        folder / f"{name}.npy", changes["by"](np.load(folder / f"{name}.npy")), allow_pickle=True
    )


def put(rows, at, value):
    rows[at] = value
    return rows


def parquet_with(column):
    def spoil(folder):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"clip": column(pyarrow)}), folder / "x.parquet")

    return spoil


def truncated(name, share):
    def spoil(folder):
        from tests.test_embeddings import safetensors, write_parquet

        rows = np.load(folder / "x.npy")
        np.savez(folder / "x.npz", clip=rows)
        safetensors.save_file({"clip": rows}, folder / "x.safetensors")
        write_parquet(folder / "x.parquet", rows)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def damaged_member(folder):
    """A byte of the array changed inside the archive: its checksum no longer fits."""
    np.savez(folder / "x.npz", clip=np.load(folder / "x.npy"))
    data = bytearray((folder / "x.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "x.npz").write_bytes(bytes(data))


X, NPZ, SAFE, PARQUET = ("x.npy", "x.npz", "x.safetensors", "x.parquet")
BAD = [
    ("missing file", X, lambda f: (f / X).unlink(), "x.npy does not exist", []),
    ("directory", X, lambda f: (f / X).unlink() or (f / X).mkdir(), "is a directory; name one file", []),
    ("unknown suffix", "x.pt", write("x.pt", b"PK"), "suffix '.pt'; expected .npy, .npz, .safetensors, .parquet", []),
    ("header cut", X, write(X, b"\x93NUMPY\x01"), "x.npy is not a readable array", []),
    ("not npy", X, write(X, b"hello"), "x.npy is not a readable array", []),
    ("npy cut", X, truncated(X, 0.7), "bytes early", []),
    ("npz cut", NPZ, truncated(NPZ, 0.7), "x.npz is not a readable array", []),
    ("npz damaged", NPZ, damaged_member, "x.npz:clip is not a readable array", []),
    ("safetensors cut", SAFE, truncated(SAFE, 0.7), "x.safetensors is not a readable array", []),
    ("parquet cut", PARQUET, truncated(PARQUET, 0.7), "x.parquet is not a readable array", []),
    ("objects", X, store(by=lambda x: np.array([{}], object)), "not a readable array of numbers: it holds Python", []),
    ("integers", X, store(by=lambda x: x.astype(int)), "dtype int64; embeddings are float16", []),
    ("complex", X, store(by=lambda x: x + 0j), "dtype complex128; embeddings are float16", []),
    ("text", X, store(by=lambda x: x.astype(str)), "embeddings are float16", []),
    ("1-d", X, store(by=lambda x: x[0]), "has shape (6,); it must be [rows, dimensions]", []),
    ("3-d", X, store(by=lambda x: x[None]), "has shape (1, 20, 6); it must be [rows, dimensions]", []),
    ("empty", X, store(by=lambda x: x[:0]), "has shape (0, 6)", []),
    ("no dimensions", X, store(by=lambda x: x[:, :0]), "has shape (20, 0)", []),
    ("NaN", X, store(by=lambda x: put(x, 13, np.nan)), "x.npy: row 13 has NaN, infinity or", []),
    ("infinite query", X, store("y", by=lambda y: put(y, 7, -np.inf)), "y.npy: row 7 has NaN, infinity or", []),
    (
        "overflow",
        X,
        store(by=lambda x: put(x, 2, 1e200)),
        "x.npy: row 2 has NaN, infinity or a value beyond 1e+150",
        [],
    ),
    ("zero row to scale", X, store(by=lambda x: put(x, 4, 0)), "x.npy: row 4 is zero", ["--normalize"]),
    ("zero row, cosine", X, store(by=lambda x: put(x, 4, 0)), "row 4 is zero", ["--paired"]),
    ("zero query, softmax", X, store("y", by=lambda y: put(y, 19, 0)), "y.npy: row 19 is zero", ["--temperature", "1"]),
    ("dimensions", X, store(by=lambda x: x[:, :5]), "x.npy has 5 dimensions and y.npy has 6", []),
    ("pairs", X, store(by=lambda x: x[:9]), "x.npy has 9 rows and y.npy has 20; with --paired", ["--paired"]),
    ("one query", X, store("y", by=lambda y: y[:1]), "y.npy has 1 row", []),
    ("one class", X, store(by=lambda x: x[:1]), "x.npy has 1 row", []),
    (
        "several arrays",
        NPZ,
        lambda f: np.savez(f / NPZ, a=np.ones((3, 6)), b=np.ones(2)),
        "its arrays are a, b; name one",
        [],
    ),
    (
        "unknown array",
        "x.npz:c",
        lambda f: np.savez(f / NPZ, a=np.ones((3, 6))),
        "no array 'c': its arrays are a",
        [],
    ),
    ("no arrays", NPZ, lambda f: np.savez(f / NPZ), "it holds no array", []),
    ("name in npy", "x.npy:a", lambda f: None, "holds one array without a name", []),
    ("columns in npz", NPZ, lambda f: np.savez(f / NPZ, a=np.ones((6, 3)).T), "stored column by column", []),
    ("ragged", PARQUET, parquet_with(lambda a: a.array([[1.0] * 6, [1.0]])), "row 1 has 1 values and row 0 has 6", []),
    ("null row", PARQUET, parquet_with(lambda a: a.array([[1.0] * 6] * 3 + [None])), "row 3 has a null", []),
    ("null value", PARQUET, parquet_with(lambda a: a.array([[1.0] * 6, [1.0, None] * 3])), "row 1 has a null", []),
    ("null first", PARQUET, parquet_with(lambda a: a.array([None, [1.0] * 6])), "row 0 has a null", []),
    ("numbers column", "x.parquet:clip", parquet_with(lambda a: a.array([1.0, 2])), "dtype double, not vectors", []),
    ("whole vectors", PARQUET, parquet_with(lambda a: a.array([[1, 2], [3, 4]])), "dtype int64; embeddings are", []),
    (
        "unknown column",
        "x.parquet:a",
        parquet_with(lambda a: a.array([[1.0]])),
        "no vector column 'a': its vector columns are clip",
        [],
    ),
    ("label outside", X, write("l.txt", b"99 " * 20), "label 99 of query 0", ["--labels", "l.txt"]),
    ("label count", X, write("l.txt", b"1 2"), "labels have shape (2,)", ["--labels", "l.txt"]),
    ("label words", X, write("l.txt", b"cat dog"), "not a list of whole numbers", ["--labels", "l.txt"]),
    ("label dtype", X, store("y2", by=lambda y: y), "labels have shape (20, 6)", ["--labels", "y2.npy"]),
    ("no labels", X, lambda f: None, "l.txt does not exist", ["--labels", "l.txt"]),
    ("temperature", X, lambda f: None, "temperature is -1", ["--temperature", "-1"]),
    ("sigma", X, lambda f: None, "sigma is nan", ["--sigma", "nan"]),
    ("subset", X, lambda f: None, "subset is 1", ["--subset", "1"]),
    ("page name", X, lambda f: None, "ends in .pdf", ["--page", "page.png"]),
    ("output folder", X, write("file", b""), "cannot write file/a.json", ["--json", "file/a.json"]),
    ("output directory", X, lambda f: None, "is a directory; name a file in it", ["--json", "."]),
    ("output is input", X, lambda f: None, "y.npy is an input", ["--json", "y.npy"]),
]


@pytest.mark.parametrize(("gallery", "spoil", "words", "options"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_clear_line_and_exit_code_2(
    tmp_path, rng, gallery, spoil, words, options, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    x, y = pair(rng, n=20)
    save(tmp_path, x=x, y=y, y2=y)
    spoil(tmp_path)
    assert main(["diagnose", gallery, "y.npy", *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("gapsim: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 300
    assert captured.out == ""
