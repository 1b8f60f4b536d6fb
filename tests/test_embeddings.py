import importlib

import numpy as np
import pytest

from simulator.storage import embeddings
from simulator.storage.embeddings import Embeddings, load_embeddings, load_labels

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
safetensors = pytest.importorskip("safetensors.numpy")


def vectors(rows, kind="list"):
    """The rows as an arrow column of vectors."""
    values = arrow.array(rows.ravel())
    if kind == "fixed":
        return arrow.FixedSizeListArray.from_arrays(values, rows.shape[1])
    offsets = np.arange(len(rows) + 1) * rows.shape[1]
    if kind == "large":
        return arrow.LargeListArray.from_arrays(arrow.array(offsets, arrow.int64()), values)
    return arrow.ListArray.from_arrays(arrow.array(offsets, arrow.int32()), values)


def write_parquet(path, rows, kind="list", row_group_size=7):
    columns = {"id": arrow.array(np.arange(len(rows))), "clip": vectors(rows, kind)}
    parquet.write_table(arrow.table(columns), path, row_group_size=row_group_size)


WRITERS = {
    "rows.npy": lambda path, rows: np.save(path, rows),
    "columns.npy": lambda path, rows: np.save(path, np.asfortranarray(rows)),
    "swapped.npy": lambda path, rows: np.save(path, rows.astype(rows.dtype.newbyteorder())),
    "one.npz": lambda path, rows: np.savez(path, clip=rows),
    "packed.npz": lambda path, rows: np.savez_compressed(path, clip=rows),
    "one.safetensors": lambda path, rows: safetensors.save_file({"clip": rows}, path),
    "list.parquet": write_parquet,
    "large.parquet": lambda path, rows: write_parquet(path, rows, "large", 50),
    "fixed.parquet": lambda path, rows: write_parquet(path, rows, "fixed"),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("file", WRITERS)
def test_every_format_gives_the_rows_in_blocks_of_any_size(tmp_path, rng, file, dtype):
    rows = rng.normal(size=(50, 6)).astype(dtype)
    WRITERS[file](tmp_path / file, rows)
    found = Embeddings(tmp_path / file)
    assert found.shape == (50, 6)
    assert found.dtype == dtype
    for size in (1, 8, 50, 1000):
        blocks = list(found.blocks(size))
        assert [len(block) for block in blocks] == [min(size, 50 - first) for first in range(0, 50, size)]
        assert all(block.dtype == np.float64 for block in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), rows)
    np.testing.assert_array_equal(load_embeddings(tmp_path / file), rows)


def test_bfloat16(tmp_path, rng):
    import ml_dtypes

    rows = rng.normal(size=(20, 4)).astype(ml_dtypes.bfloat16)
    safetensors.save_file({"clip": rows}, tmp_path / "a.safetensors")
    found = Embeddings(tmp_path / "a.safetensors")
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(found.read(), rows.astype(float))


def test_an_array_inside_a_file_is_named_after_a_colon(tmp_path, rng):
    a, b = rng.normal(size=(2, 5, 3))
    np.savez(tmp_path / "two.npz", a=a, b=b)
    np.testing.assert_array_equal(load_embeddings(f"{tmp_path}/two.npz:b"), b)
    np.testing.assert_array_equal(Embeddings(tmp_path / "two.npz", "a").read(), a)
    assert str(Embeddings(f"{tmp_path}/two.npz:b")) == f"{tmp_path}/two.npz:b"
    with pytest.raises(ValueError, match="does not say which array to read: its arrays are a, b"):
        Embeddings(tmp_path / "two.npz")
    # A file that has the colon in its name is that file.
    np.save(tmp_path / "odd.npz:a.npy", a)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "odd.npz:a.npy"), a)


def test_unit_rows_and_the_row_that_has_no_direction(tmp_path, rng):
    rows = rng.normal(size=(12, 3))
    np.save(tmp_path / "a.npy", rows)
    unit = np.concatenate(list(Embeddings(tmp_path / "a.npy").blocks(5, unit=True)))
    np.testing.assert_allclose(unit, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-14)
    rows[7] = 0
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(ValueError, match=r"a.npy: row 7 is zero"):
        list(Embeddings(tmp_path / "a.npy").blocks(5, unit=True))


def test_rows_that_are_not_finite_are_named_by_file_and_number(tmp_path, rng):
    rows = rng.normal(size=(12, 3))
    rows[8, 1] = np.inf
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(ValueError, match=r"a.npy: row 8 has NaN, infinity or"):
        list(Embeddings(tmp_path / "a.npy").blocks(5))


def test_a_block_is_bounded_by_its_values_not_by_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK_VALUES", 30)
    np.save(tmp_path / "a.npy", np.ones((22, 6)))
    assert [len(block) for block in Embeddings(tmp_path / "a.npy").blocks()] == [5, 5, 5, 5, 2]
    np.save(tmp_path / "a.npy", np.ones((2, 40)))
    assert [len(block) for block in Embeddings(tmp_path / "a.npy").blocks()] == [1, 1]


def test_nothing_is_mapped(tmp_path, monkeypatch):
    """Mapped pages count as resident: neither numpy.memmap nor mmap is asked for, but by safetensors itself, whose
    handle is closed after every block."""
    import mmap

    def refuse(*arguments, **options):
        raise AssertionError("mapped")

    monkeypatch.setattr(np, "memmap", refuse)
    monkeypatch.setattr(mmap, "mmap", refuse)
    for file in WRITERS:
        WRITERS[file](tmp_path / file, np.ones((9, 2), np.float32))
        assert load_embeddings(tmp_path / file).sum() == 18


@pytest.mark.parametrize(("file", "package"), [("fixed.parquet", "pyarrow"), ("one.safetensors", "safetensors")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, file, package):
    WRITERS[file](tmp_path / file, np.ones((3, 2), np.float32))

    def missing(name, *arguments):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}.*extra `io`"):
        Embeddings(tmp_path / file)


def test_labels_of_every_format(tmp_path):
    labels = np.array([3, 1, 2], np.uint8)
    np.save(tmp_path / "a.npy", labels)
    np.savez(tmp_path / "a.npz", label=labels)
    safetensors.save_file({"label": labels}, tmp_path / "a.safetensors")
    table = arrow.table({"label": labels, "clip": vectors(np.ones((3, 2), np.float32))})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("3\n1\n2\n")
    for file in ("a.npy", "a.npz", "a.npz:label", "a.safetensors", "a.parquet", "a.parquet:label", "a.txt"):
        found = load_labels(tmp_path / file)
        np.testing.assert_array_equal(found, labels)
        assert found.dtype.kind == "i"
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(ValueError, match="whole numbers"):
        load_labels(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="not whole numbers; the columns of whole numbers are: label"):
        load_labels(f"{tmp_path}/a.parquet:clip")
    np.save(tmp_path / "a.npy", np.ones((3, 1), int))
    with pytest.raises(ValueError, match=r"labels have shape \(3, 1\)"):
        load_labels(tmp_path / "a.npy")
