"""Rows of embeddings in a file, read by blocks: a file larger than memory is never mapped and never held whole.

Mapped pages count as resident memory, so every format is read with plain reads of one block: `.npy` by offset, members
of `.npz` as a stream, `.safetensors` through a fresh handle per block (the library maps what it slices), `.parquet`
through a buffered reader. An array inside a file that holds several is named after a colon: `images.npz:clip`,
`data.parquet:embedding`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_VALUES = 2**21  # 16 MiB of float64
LARGEST_VALUE = 1e150  # its square is still finite
_HOW_TO_CONVERT = "convert it with .astype('float32')"


class Embeddings:
    """Rows of embeddings [n, d] in a file, checked and read by blocks.

    Args:
      path: .npy, .npz, .safetensors or .parquet (a column of vectors: list, large_list or fixed_size_list), of float16,
        float32, float64, or bfloat16 from safetensors. "file.npz:name" names an array inside the file.
      name: the same, apart from the path. A file that holds one array needs none; a parquet file needs none if it
        has one column of vectors.

    Attributes:
      path, name: as found; name is None for .npy.
      shape: (n, d).
      dtype: the stored type, as a word ("float16", "bfloat16").

    Raises:
      ValueError: another format, a damaged file, an array that is not [rows, dimensions] of floating-point numbers, an
        unknown name, or none where several are stored (the message lists them).
      FileNotFoundError, IsADirectoryError: no such file.
      ModuleNotFoundError: parquet and safetensors need the extra `io`.
    """

    def __init__(self, path: Path | str, name: str | None = None):
        stored = _open(path, name)
        self.path, self.name, self.shape, self.dtype = stored.path, stored.name, stored.shape, stored.dtype
        self._blocks = stored.blocks
        if len(self.shape) != 2 or 0 in self.shape:
            raise ValueError(f"{self} has shape {self.shape}; it must be [rows, dimensions] with at least one of each")
        if self.dtype not in ("float16", "float32", "float64", "bfloat16"):
            raise ValueError(
                f"{self} has dtype {self.dtype}; embeddings are float16, float32, float64 or bfloat16: {_HOW_TO_CONVERT}"
            )

    def __str__(self) -> str:
        return _label(self.path, self.name)

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self, rows: int | None = None, *, unit: bool = False) -> Iterator[np.ndarray]:
        """The rows in order, as float64 arrays [rows, d] (the last one shorter).

        Args:
          rows: per block; None for as many as fill 16 MiB.
          unit: scale every row to unit length.

        Raises:
          ValueError: a row with NaN, infinity or a value beyond 1e150, or with unit=True a zero row: the message names
            the file and the row.
        """
        first = 0
        for block in self._blocks(rows or rows_per_block(self.shape[1])):
            block = np.asarray(block, np.float64)
            bad = np.flatnonzero(~(np.abs(block).max(axis=1) < LARGEST_VALUE))
            if bad.size:
                raise ValueError(
                    f"{self}: row {first + bad[0]} has NaN, infinity or a value beyond {LARGEST_VALUE:g}; remove such rows "
                    "(and their partners) first"
                )
            if unit:
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                if not norms.all():
                    raise ValueError(
                        f"{self}: row {first + int(np.argmin(norms))} is zero and has no direction; remove it, or do not "
                        "scale the rows to unit length"
                    )
                block = block / norms
            yield block
            first += len(block)

    def read(self) -> np.ndarray:
        """All rows, [n, d] as float64."""
        whole = np.empty(self.shape)
        first = 0
        for block in self.blocks():
            whole[first : first + len(block)] = block
            first += len(block)
        return whole


def rows_per_block(dimensions: int) -> int:
    """Rows that fill a block of 16 MiB in float64, at least one."""
    return max(1, BLOCK_VALUES // dimensions)


def load_embeddings(path: Path | str) -> np.ndarray:
    """All rows of a file of embeddings, [n, d] as float64; formats and errors are those of `Embeddings`."""
    return Embeddings(path).read()


def load_labels(path: Path | str) -> np.ndarray:
    """Whole numbers, [n]: an array of any format of `Embeddings`, or text with one per line, also from a pipe
    (`--labels <(seq 0 9)`)."""
    if _split(path, None)[0].suffix in _READERS:
        stored = _open(path, None, vectors=False)
        if len(stored.shape) != 1 or not stored.dtype.startswith(("int", "uint")):
            raise ValueError(
                f"labels have shape {stored.shape} and dtype {stored.dtype} in {_label(stored.path, stored.name)}; "
                "expected whole numbers [queries]"
            )
        label = _label(stored.path, stored.name)
        return np.concatenate([np.empty(0, int), *(_as_labels(block, label) for block in stored.blocks(BLOCK_VALUES))])
    path = _require_file(Path(path), own_pipe=True)
    try:
        return np.array([int(line) for line in path.read_text().split()], int)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a list of whole numbers, one per line ({error})") from error


def _as_labels(block: np.ndarray, label: str) -> np.ndarray:
    if block.size and block.max() > np.iinfo(int).max:
        raise ValueError(f"{label} holds the label {block.max()}; labels are gallery rows, whole numbers from 0")
    return block.astype(int)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """An array in a file: what it is, and how to read its rows: blocks(n) yields n rows at a time."""

    path: Path
    name: str | None
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[int], Iterator[np.ndarray]]


def _open(path: Path | str, name: str | None, vectors: bool = True) -> _Stored:
    path, name = _split(path, name)
    _require_file(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; expected {', '.join(_READERS)}: save the rows with numpy.save"
        )
    return _READERS[path.suffix](path, name, vectors)


def _split(path: Path | str, name: str | None) -> tuple[Path, str | None]:
    """ "file.npz:name" in its two parts; a file of that very name comes first."""
    head, colon, tail = str(path).rpartition(":")
    if name is None and colon and Path(head).suffix in _READERS and not Path(path).exists():
        return Path(head), tail
    return Path(path), name


def _require_file(path: Path, own_pipe: bool = False) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name one file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not (path.is_file() or (own_pipe and path.is_fifo() and str(path).startswith(("/dev/", "/proc/self/")))):
        raise ValueError(
            f"{path} is no regular file (a pipe, a socket or a device); save what it gives in a file first"
        )
    return path


def _label(path: Path, name: str | None) -> str:
    return str(path) if name is None else f"{path}:{name}"


def _pick(path: Path, names: list[str], name: str | None, what: str = "array") -> str:
    """The one that was asked for, or the only one."""
    name = names[0] if name is None and len(set(names)) == 1 else name
    if name is not None and names.count(name) > 1:
        raise _SaysAll(f"{path} has {names.count(name)} {what}s of the name {name!r}; give each a name of its own")
    if name in names:
        return name
    held = f"its {what}s are {', '.join(names)}" if names else f"it holds no {what}"
    if name is None:
        raise _SaysAll(f"{path} does not say which {what} to read: {held}; name one of several as {path}:name")
    raise _SaysAll(f"{path} has no {what} {name!r}: {held}")


def _require_library(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{path} needs the package {package}: pip install {package}, or install this package with its extra `io`"
        ) from error


class _SaysAll(ValueError):
    """An error that names the file already."""


def _damaged(label: str, error: Any) -> ValueError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return _SaysAll(f"{label} is not a readable array ({words}); write the file again")


@contextlib.contextmanager
def _reading(label: str) -> Generator[None, None, None]:
    """Whatever a library says of bytes that it cannot read, as one error: damage reaches parsers and decompressors."""
    try:
        yield
    except (_SaysAll, MemoryError):
        raise
    except Exception as error:
        raise _damaged(label, error) from error


# .npy and .npz


def _open_npy(path: Path, name: str | None, vectors: bool) -> _Stored:
    if name is not None:
        raise ValueError(f"{path} holds one array without a name; leave out {name!r}")
    with path.open("rb") as file:
        shape, by_columns, dtype = _npy_header(file, str(path))
        start = file.tell()
    missing = start + int(np.prod(shape, dtype=object)) * dtype.itemsize - path.stat().st_size
    if missing > 0:
        raise _damaged(str(path), f"it ends {missing:,} bytes early")

    def blocks(rows: int) -> Iterator[np.ndarray]:
        with path.open("rb", buffering=0 if by_columns else -1) as file:
            file.seek(start)
            yield from (_column_blocks if by_columns else _row_blocks)(file, str(path), shape, dtype, rows)

    return _Stored(path, None, shape, dtype.name, blocks)


def _open_npz(path: Path, name: str | None, vectors: bool) -> _Stored:
    with _reading(_label(path, name)), zipfile.ZipFile(path) as archive:
        name = _pick(path, [member.removesuffix(".npy") for member in archive.namelist()], name)
        with archive.open(f"{name}.npy") as file:
            shape, by_columns, dtype = _npy_header(file, _label(path, name))
    if by_columns and len(shape) > 1:
        raise ValueError(
            f"{_label(path, name)} is stored column by column, which a compressed file cannot be read by; save "
            "numpy.ascontiguousarray of it"
        )

    def blocks(rows: int) -> Iterator[np.ndarray]:
        with _reading(_label(path, name)), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _npy_header(file, _label(path, name))
            yield from _row_blocks(file, _label(path, name), shape, dtype, rows)

    return _Stored(path, name, shape, dtype.name, blocks)


def _npy_header(file: Any, label: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns are contiguous, dtype) of the .npy stream, which is left at its first value."""
    with _reading(label):
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"format version {version}")
        if not all(0 <= length < 2**62 for length in shape):
            raise ValueError(f"its shape is {shape}")
    if dtype.hasobject:
        raise _SaysAll(f"{label} is not a readable array of numbers: it holds Python objects; {_HOW_TO_CONVERT}")
    return shape, by_columns and len(shape) > 1, dtype


def _row_blocks(file: Any, label: str, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> Iterator[np.ndarray]:
    width = int(np.prod(shape[1:]))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        data = file.read(count * width * dtype.itemsize)
        if len(data) < count * width * dtype.itemsize:
            raise _damaged(label, f"it ends in row {first + len(data) // (width * dtype.itemsize)} of {shape[0]}")
        yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _column_blocks(file: Any, label: str, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> Iterator[np.ndarray]:
    start = file.tell()
    for first in range(0, shape[0], rows):
        block = np.empty((min(rows, shape[0] - first), shape[1]), dtype)
        for column in range(shape[1]):
            file.seek(start + (column * shape[0] + first) * dtype.itemsize)
            block[:, column] = np.frombuffer(file.read(len(block) * dtype.itemsize), dtype)
        yield block


# .safetensors


def _open_safetensors(path: Path, name: str | None, vectors: bool) -> _Stored:
    safetensors = _require_library("safetensors", path)
    with _reading(str(path)), safetensors.safe_open(path, "np") as file:
        name = _pick(path, list(file.keys()), name, "tensor")
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()

    def blocks(rows: int) -> Iterator[np.ndarray]:
        for first in range(0, shape[0], rows):
            # A handle keeps every page that was read from it mapped: 794 MB for a file of 819 MB, against one block.
            with _reading(_label(path, name)), safetensors.safe_open(path, "np") as file:
                block = file.get_slice(name)[first : min(first + rows, shape[0])]
            yield block

    letters = dtype.rstrip("0123456789")  # F32, BF16, I64, …
    words = dict(F="float", BF="bfloat", I="int", U="uint").get(letters, letters.lower())
    return _Stored(path, name, shape, words + dtype[len(letters) :], blocks)


# .parquet


def _open_parquet(path: Path, name: str | None, vectors: bool) -> _Stored:
    arrow, parquet = _require_library("pyarrow", path), _require_library("pyarrow.parquet", path)
    with _reading(str(path)), parquet.ParquetFile(path) as file:
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    wanted = "vectors" if vectors else "whole numbers"
    kinds = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    is_wanted = (lambda kind: any(test(kind) for test in kinds)) if vectors else arrow.types.is_integer
    columns = [field.name for field in schema if is_wanted(field.type)]
    name = columns[0] if name is None and len(set(columns)) == 1 else name
    if name in schema.names:
        _pick(path, schema.names, name, "column")
    if name in schema.names and name not in columns:
        raise ValueError(
            f"{_label(path, name)} has dtype {schema.field(name).type}, not {wanted}; the columns of {wanted} are: "
            f"{', '.join(columns) or 'none'}"
        )
    name = _pick(path, columns, name, "vector column" if vectors else "integer column")
    label, value = _label(path, name), schema.field(name).type

    def batches(rows: int) -> Iterator[Any]:
        # Without pre-buffering and with a small buffer, a row group is decoded page by page instead of held whole.
        with _reading(label), parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            for batch in file.iter_batches(rows, columns=[name], use_threads=False):
                if batch.schema.names != [name]:  # a column "a.b" and a field b of a struct "a"
                    raise ValueError(f"it gives {', '.join(batch.schema.names)} for {name}")
                yield batch.column(0)

    width: tuple[int, ...] = ()
    if vectors:
        value = value.value_type
        first = next(batches(1), None)
        if first is not None and first.null_count:
            raise _null(label, 0)
        width = (0 if first is None else len(first[0]),)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        first = 0
        for column in batches(rows):  # of `rows` rows each, across the ends of row groups
            yield _parquet_rows(column, label, first, width)
            first += len(column)

    dtype = dict(halffloat="float16", float="float32", double="float64").get(str(value), str(value))
    return _Stored(path, name, (num_rows, *width), dtype, blocks)


def _null(label: str, row: int) -> ValueError:
    return ValueError(f"{label}: row {row} has a null; remove such rows (and their partners) first")


def _parquet_rows(column: Any, label: str, first: int, width: tuple[int, ...]) -> np.ndarray:
    """A batch of a column as an array [rows, *width]; `first` is the number of its first row."""
    row_with_null = None
    if column.null_count:
        row_with_null = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
    elif width:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != width).any():
            row = int(np.argmax(lengths != width))
            raise ValueError(
                f"{label}: row {first + row} has {lengths[row]} values and row 0 has {width[0]}; all vectors must be "
                "of one length"
            )
        column = column.flatten()
        if column.null_count:
            row_with_null = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // width[0]
    if row_with_null is not None:
        raise _null(label, first + row_with_null)
    return column.to_numpy(zero_copy_only=False).reshape(-1, *width)


_READERS = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors, ".parquet": _open_parquet}
