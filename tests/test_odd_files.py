"""Damaged and odd files, and odd numbers: one line, always, or the right result."""

import os
import random
import shutil
import struct
import warnings
import zipfile

import numpy as np
import pytest

import simulator as sim
from experiments.__main__ import main
from simulator import streaming, validation
from simulator.storage.embeddings import load_embeddings, load_labels


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = rng.normal(size=(5, 6))
    np.save("x.npy", x)
    np.savez("x.npz", clip=x)
    np.save("y.npy", np.concatenate([x, x]) + 0.1 * rng.normal(size=(10, 6)) + 1.0)
    return tmp_path


def npy(text: str, data: bytes = b"\0" * 320) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode() + data


def spoilt_zip(method=zipfile.ZIP_STORED, spoil=lambda data: None):
    def make():
        with zipfile.ZipFile("x.npz", "w", method) as archive:
            archive.write("x.npy", "clip.npy")
        with open("x.npz", "r+b") as file:
            data = bytearray(file.read())
            spoil(data)
            file.seek(0)
            file.write(data)

    return make


def set_bytes(local: int, central: int, value: int):
    """The same field in the header of a member and in the directory at the end."""

    def spoil(data):
        data[local] = value
        data[data.rindex(b"PK\x01\x02") + central] = value

    return spoil


def damage(data):
    data[len(data) // 2] ^= 0xFF


def twice_in_npz():
    with warnings.catch_warnings(), zipfile.ZipFile("x.npz", "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.write("x.npy", "clip.npy")


def parquet(names, *columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(c) for c in columns], names=names), "x.parquet")


VECTORS, NUMBERS = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 3, [0, 1, 2]
HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }"
ODD = {
    "header cut in a bracket": ("x.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (5, "), "not a readable"),
    "header too deep": ("x.npy", npy("(" * 3000), "not a readable"),
    "negative shape": ("x.npy", npy(HEADER % "(-5, 6)"), "its shape is (-5, 6)"),
    "huge shape": ("x.npy", npy(HEADER % "(1000000000000000000000000000000, 6)"), "its shape is"),
    "more than there is": ("x.npy", npy(HEADER % "(5, 600000000000000)"), "bytes early"),
    "unknown method": ("x.npz", spoilt_zip(spoil=set_bytes(8, 10, 97)), "not a readable"),
    "encrypted": ("x.npz", spoilt_zip(spoil=set_bytes(6, 8, 1)), "encrypted"),
    "damaged deflate": ("x.npz", spoilt_zip(zipfile.ZIP_DEFLATED, damage), "not a readable"),
    "damaged LZMA": ("x.npz", spoilt_zip(zipfile.ZIP_LZMA, damage), "not a readable"),
    "damaged bzip2": ("x.npz", spoilt_zip(zipfile.ZIP_BZIP2, damage), "not a readable"),
    "damaged checksum": ("x.npz", spoilt_zip(spoil=damage), "not a readable"),
    "two arrays of one name": ("x.npz", twice_in_npz, "2 arrays of the name 'clip'"),
    "two columns of one name": ("x.parquet", lambda: parquet(["a", "a"], VECTORS, VECTORS), "2 columns of the name 'a'"),
    "two kinds of one name": ("x.parquet", lambda: parquet(["a", "a"], NUMBERS, VECTORS), "2 columns of the name 'a'"),
    "pipe": ("pipe.npy", lambda: os.mkfifo("pipe.npy"), "pipe.npy is no regular file"),
    "pipe of an archive": ("pipe.npz:a", lambda: os.mkfifo("pipe.npz"), "pipe.npz is no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_is_one_line(files, case, capsys):
    name, make, words = ODD[case]
    make() if callable(make) else (files / name).write_bytes(make)
    assert main(["close", name, "y.npy", "--out", "o.npz"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith(f"gapsim: {name.partition(':')[0]}")
    assert error.count("\n") == 1
    assert len(error) < 400


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "txt", "pipe"])
def test_labels_that_no_row_has(files, kind):
    """From 2⁶³ on they would wrap round to negative ones."""
    labels = np.array([0, 2**63 + 3], np.uint64)
    if kind == "npy":
        np.save("l.npy", labels)
    elif kind == "npz":
        np.savez("l.npz", labels=labels)
    elif kind == "parquet":
        parquet(["l"], labels)
        os.rename("x.parquet", "l.parquet")
    elif kind == "txt":
        (files / "l.txt").write_text(f"0\n{2**63 + 3}\n")
    else:
        os.mkfifo("l.pipe")
    with pytest.raises(ValueError, match="regular file" if kind == "pipe" else r"label 92233|whole numbers"):
        load_labels(f"l.{kind}")


def test_labels_from_a_pipe_of_the_shell(files):
    read, write = os.pipe()
    os.write(write, b"3\n1\n")
    os.close(write)
    assert load_labels(f"/dev/fd/{read}").tolist() == [3, 1]
    os.close(read)


def test_files_cut_and_changed_at_random_are_read_or_refused(files):
    """Right rows, or ValueError: never another error."""
    from safetensors.numpy import save_file

    x = np.load("x.npy")
    save_file({"clip": x}, "x.safetensors")
    parquet(["clip"], x.tolist())
    np.savez_compressed("packed.npz", clip=x)
    choose = random.Random(0)
    for name in ("x.npy", "x.npz", "packed.npz", "x.safetensors", "x.parquet"):
        good = (files / name).read_bytes()
        path = files / f"bad_{name}"
        for _ in range(60):
            data = bytearray(good)
            if choose.random() < 0.3:
                data = data[: choose.randrange(len(data))]
            else:
                for _ in range(choose.randint(1, 3)):
                    # Mostly in what describes the rows, where it can be noticed.
                    data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            path.write_bytes(data)
            try:
                rows = load_embeddings(path)
            except ValueError:
                continue
            assert rows.ndim == 2
            assert not name.endswith("npz") or np.array_equal(rows, x)  # its checksum tells


def test_an_index_of_damaged_bytes_is_no_index(files):
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.write("x.npy", "rows.npy")
    data = bytearray((files / "x.npz").read_bytes())
    damage(data)
    (files / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match="is not an index"):
        sim.Index.load("x.npz")
    os.mkfifo("pipe.npz")
    with pytest.raises(FileNotFoundError, match="no regular file"):
        sim.Index.load("pipe.npz")


@pytest.mark.parametrize("rule", ["complement", "compensated", "centred"])
def test_many_dimensions_need_no_covariance_where_the_rule_has_none(rule, rng, monkeypatch):
    """100,000 dimensions: a covariance takes 75 GiB."""
    x = rng.normal(size=(3, 100_000))
    closer = sim.GapCloser(rule).fit(x, x[:2] + 1.0)
    assert closer.index(x).search(x + 1.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", [["--rule", "soft"], ["--rule", "optimal"], ["--rule", "centred", "--num-components", "1"],
                                     ["--inner-product"], None])  # fmt: skip
def test_what_needs_too_much_memory_says_so_before_the_work(files, options, capsys):
    np.save("x.npy", np.random.default_rng(0).normal(size=(2, 1_000_000)).astype(np.float16))
    command = (
        ["diagnose", "x.npy", "x.npy"] if options is None else ["close", "x.npy", "x.npy", "--out", "o.npz", *options]
    )
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "GiB for matrices of 1,000,000 × 1,000,000, and this machine has" in error
    assert error.count("\n") == 1


def test_variances_alone_are_the_diagonal(rng):
    rows = rng.normal(size=(50, 4)) + 3
    whole, diagonal = (streaming.moments(iter([rows[:20], rows[20:]]), covariance=c) for c in (True, False))
    np.testing.assert_allclose(diagonal.covariance, np.diagonal(whole.covariance), rtol=1e-12)
    assert diagonal.power == pytest.approx(whole.power, rel=1e-12)


def test_memory_that_a_system_does_not_tell_is_not_asked_for(monkeypatch):
    monkeypatch.delattr(validation.os, "sysconf")
    validation.require_memory("x", 10**9, squares=1)


@pytest.mark.parametrize("scoring", ["sqeuclidean", "dot"])
def test_noise_of_any_size_leaves_its_limit(scoring, rng):
    """Noise alone decides among equals; none changes nothing."""
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(2, 3))
    for sigma, right in ((1e200, 0.2), (1e300, 0.2), (1e-200, 1.0), (5e-324, 1.0)):
        np.testing.assert_allclose(sim.exact_robustness(x, y, sigma=sigma, scoring=scoring), right, atol=1e-9)
        index = sim.GapCloser("complement" if scoring == "sqeuclidean" else "centred").fit(x[:2], y).index(x)
        np.testing.assert_allclose(index.robustness(y, sigma=sigma), right, atol=1e-9)
    tiny = 1e-140
    found = sim.exact_robustness(tiny * x, tiny * y, sigma=0.5 * tiny)
    np.testing.assert_allclose(found, sim.exact_robustness(x, y, sigma=0.5), atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [["--sigma", "1e200"], ["--sigma", "1e-310"], ["--sigma", "1e-310", "--rule", "centred", "--centre", "best"],
     ["--sigma", "1e200", "--rule", "optimal"], ["--alpha", "1e200"], ["--alpha", "1e6", "--rule", "optimal"],
     ["--sigma", "1e200", "--alpha", "best", "--rule", "centred"]],
)  # fmt: skip
def test_extreme_numbers_are_refused_or_right(files, options, capsys):
    code = main(["close", "x.npy", "y.npy", "--out", "o.npz", *options])
    captured = capsys.readouterr()
    assert code in (0, 2)
    assert "nan" not in captured.out
    assert "Traceback" not in captured.err
    if code == 2:
        assert captured.err.count("\n") == 1
    if "1e200" in options and "--sigma" in options:
        assert "0.2000 before, 0.2000 after" in captured.out


def test_names_reach_the_page_as_text(files):
    """As a formula, `$\\frac$` is an error, and `$x^2$` is drawn as one."""
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    from experiments.commands import diagnosis
    from experiments.report import diagnosis_page

    name = "a_$x^2$_$\\frac$%&#{}~.npy"
    shutil.copy("x.npy", name)
    figure = diagnosis_page.draw(diagnosis.diagnose(name, "y.npy"))
    texts = [text for text in figure.findobj(Text) if name in text.get_text()]
    assert texts
    assert not any(text.get_parse_math() for text in texts)
    figure.canvas.draw()
    plt.close(figure)
