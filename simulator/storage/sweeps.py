"""What survives Ctrl-C, a kill or a full disk: the chunks of a sweep, in a zarr group that xarray opens.

A sweep is a grid (one axis per swept field, then seeds), cut into chunks of replicas. A chunk of the grid is one file of
each array; after them its mark is written, `done/<chunk>`, with the files' checksums. A chunk without a mark, or whose files
are no longer those of the mark (a power cut may keep what was written last and lose what was written first), is trained
again. Everything appears whole: the empty store by one rename of a folder, and every file by one of its own. A chunk is a
function of the configuration alone (to the bit on two devices and more, see `engine`), so writing one twice changes
nothing, and no writer removes anything: locks, one per chunk, which the operating system drops when their holder dies,
only keep processes from doing the same work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import threading
import uuid
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simulator.storage.checkpoints import Checkpoint
from simulator.storage.files import whole_file
from simulator.storage.identity import require_same_environment
from simulator.storage.results import differences, identify, said_where

RESULTS = "results.zarr"
FORMAT = 3  # raised when the layout changes: what is older is then refused with a word
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
Chunk = tuple[int, ...]


@contextlib.contextmanager
def _unbroken() -> Generator[None, None, None]:
    """Hear a Ctrl-C only at the end: zarr's threads, left in the middle, would print tracebacks of their own."""
    heard: list[tuple] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *arguments: heard.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            before(*heard[0])


@dataclasses.dataclass(frozen=True)
class SweepStore:
    """A sweep on disk: where it is, and how its grid is cut.

    path: folder of the store. shape: of the grid, seeds last. cut: of a chunk of it. replicas_per_block: of the engine (results
    differ in their last bits between block sizes, so a resume keeps it). inner: array -> number of its axes after the grid's.
    """

    path: Path
    shape: tuple[int, ...]
    cut: tuple[int, ...]
    replicas_per_block: int
    inner: dict[str, int]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Number of chunks along every axis of the grid."""
        return tuple(-(-size // part) for size, part in zip(self.shape, self.cut, strict=True))

    def region(self, chunk: Chunk) -> tuple[slice, ...]:
        """The part of the grid that a chunk is."""
        return tuple(
            slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(chunk, self.cut, self.shape, strict=True)
        )

    def mark(self, chunk: Chunk) -> Path:
        """The file that says that a chunk is done, and its checksums."""
        return self.path / "done" / _name(chunk)

    def data(self, name: str, chunk: Chunk) -> Path:
        """The file of a chunk in an array; zarr leaves it out where the array holds nothing but its fill value."""
        return Path(self.path / RESULTS / name / "c", *map(str, (*chunk, *(0,) * self.inner[name])))


def _name(chunk: Chunk) -> str:
    return "-".join(map(str, chunk))


def open_store(
    path: Path,
    config: dict[str, Any],
    *,
    shape: tuple[int, ...],
    cut: tuple[int, ...],
    arrays: Mapping[str, tuple[tuple[int, ...], Any, tuple[str, ...]]],
    dims: tuple[str, ...],
    coordinates: Mapping[str, tuple[str, Any]],
    attributes: Mapping[str, str],
    choose_block: Callable[[], int],
) -> SweepStore:
    """Create a store, or open the one that holds the same sweep.

    Args:
      path: folder of the store; created with its parents.
      config: what the results depend on, as JSON values; its hash names the sweep.
      shape, cut: of the grid and of a chunk of it, one number per axis.
      arrays: name -> (shape of one replica, dtype, names of its axes).
      dims: names of the axes of the grid.
      coordinates: name -> (the axis that it lies along, its values).
      attributes: provenance, kept as it was when the store was made; `config` among them is the configuration as JSON text.
      choose_block: () -> replicas per block, asked for a new store only.

    Raises:
      ValueError: the store holds another sweep, or the folder holds anything else.
      OSError: it cannot be written.
    """
    path = Path(path)
    identity = identify(FORMAT, config)
    if path.is_file():
        raise ValueError(f"{path} is a file; a sweep is stored in a folder")
    with said_where(path):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / RESULTS).exists():
            inner = {name: len(found[0]) for name, found in arrays.items()}
            made = dict(format=FORMAT, identity=identity, shape=shape, cut=cut, replicas_per_block=choose_block())
            _create(path, made | dict(inner=inner), arrays, dims, coordinates, attributes)
    store, group = _open(path)
    begun = json.loads(group.attrs["config"])
    if group.attrs["sweep"]["identity"] != identity:
        differing = sorted(differences(begun, config)) or ["the format of the store"]
        raise ValueError(
            f"{path} holds another sweep; it differs in {', '.join(differing)}. Give another folder, or the settings that "
            "the store was made with"
        )
    _forget_damaged(store)
    if not finished(store).all():
        require_same_environment(path, begun, config)
    return store


@_unbroken()
def _open(path: Path, mode: Literal["r", "r+"] = "r") -> tuple[SweepStore, Any]:
    """The store that stands in a folder, and its zarr group."""
    import zarr

    if not (path / RESULTS).exists():
        raise ValueError(f"{path} holds no sweep; give the folder that `sweep` was called with")
    try:
        group: Any = zarr.open_group(path / RESULTS, mode=mode, use_consolidated=False)
        made, found = group.attrs.get("sweep"), {name for name, _ in group.arrays()}
    except (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} is not a whole store ({error}); move it away and run again") from error
    if made["format"] != FORMAT if made else "cut" in group.attrs:
        raise ValueError(
            f"{path} was made by another version of this program; load it with that one, or train it again"
        )
    if made is None:
        raise ValueError(f"{path / RESULTS} holds no sweep; it is left as it is: give another folder")
    if missing := made["inner"].keys() - found:
        raise ValueError(
            f"{path} is not a whole store (it lacks {', '.join(sorted(missing))}); move it away and run again"
        )
    cut = {name: tuple(made[name]) for name in ("shape", "cut")}
    return SweepStore(path, **cut, replicas_per_block=made["replicas_per_block"], inner=made["inner"]), group


@_unbroken()
def _create(path, made, arrays, dims, coordinates, attributes):
    """An empty store, built beside its place and put there whole; of several that are made at once, the first stays."""
    import zarr

    foreign = [p.name for p in path.iterdir() if p.name not in {".locks", ".jobs", RESULTS} and p.name[:7] != ".draft-"]
    if foreign:
        raise ValueError(f"{path} is not empty and holds no sweep (it has {foreign[0]}); give another folder")
    draft = path / f".draft-{uuid.uuid4().hex}"
    try:
        group = zarr.open_group(draft, mode="w-")
        for name, (shape, dtype, axes) in arrays.items():
            group.create_array(
                name,
                shape=(*made["shape"], *shape),
                chunks=(*made["cut"], *(max(n, 1) for n in shape)),
                dtype=dtype,
                fill_value=np.nan if np.dtype(dtype).kind == "f" else -1,
                dimension_names=(*dims, *axes),
            )
        for name, (axis, values) in coordinates.items():
            values = np.asarray(values)
            kind = str if values.dtype.kind == "U" else values.dtype
            group.create_array(name, shape=values.shape, dtype=kind, dimension_names=(axis,))[...] = values
        beside = " ".join(
            name for name, (axis, _) in coordinates.items() if name != axis
        )  # for xarray, by CF's convention
        group.attrs.update(dict(attributes) | dict(sweep=made) | (dict(coordinates=beside) if beside else {}))
        with warnings.catch_warnings():  # zarr says that others than xarray may not know how to read all at once
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(group.store)
        try:
            os.rename(draft, path / RESULTS)
        except OSError:
            if not (path / RESULTS).exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def stored(path: Path) -> SweepStore:
    """The store that stands in a folder, or ValueError."""
    return _open(Path(path))[0]


def finished(store: SweepStore) -> np.ndarray:
    """Which chunks are done, [chunks along every axis] of bool."""
    done = np.zeros(store.chunks, bool)
    names = os.listdir(store.path / "done") if (store.path / "done").exists() else []
    for name in names:
        if re.fullmatch(r"\d+(-\d+)*", name):
            done[tuple(map(int, name.split("-")))] = True
    return done


@contextlib.contextmanager
def claimed(store: SweepStore, chunks: Iterable[Chunk]) -> Generator[list[Chunk], None, None]:
    """Those of some chunks that this process holds: they are not done, and no other living process works on them."""
    with contextlib.ExitStack() as held:
        yield [c for c in chunks if held.enter_context(_locked(store, c)) and not store.mark(c).exists()]


@_unbroken()
def write_chunk(store: SweepStore, chunk: Chunk, values: Mapping[str, np.ndarray]) -> None:
    """Write every array of a chunk [*its part of the grid, ...], then its mark."""
    with said_where(store.path):
        _, arrays = _open(store.path, "r+")
        for name in store.inner:
            arrays[name][store.region(chunk)] = values[name]
        with whole_file(store.mark(chunk)) as draft:
            draft.write_text(json.dumps(_checksums(store, chunk, store.inner)))


@dataclasses.dataclass(frozen=True)
class _Unfinished(Checkpoint):
    """The state of chunks that are being trained, so that one that outlasts a time limit is finished by the next job. It may be
    lost, or belong to another cut or machine: that costs time alone."""

    def restore(self, like):
        try:
            return super().restore(like)
        except ValueError:
            shutil.rmtree(self.path, ignore_errors=True)
            return None

    def save(self, step, state, history):
        with contextlib.suppress(Exception):
            super().save(step, state, history)


SECONDS_BETWEEN_STATES = 10.0  # a third of what the shortest time limit of a job leaves


def unfinished(store: SweepStore, chunks: list[Chunk], devices: int) -> Checkpoint:
    """Where the state of chunks that are trained together is kept until they are done."""
    config = dict(chunks=[list(c) for c in chunks], devices=devices, block=store.replicas_per_block)
    return _Unfinished(store.path / ".unfinished" / _name(chunks[0]), config, SECONDS_BETWEEN_STATES)


def forget_unfinished(store: SweepStore, chunks: list[Chunk]) -> None:
    """Remove the states that chunks that are done have left."""
    for chunk in chunks:
        shutil.rmtree(store.path / ".unfinished" / _name(chunk), ignore_errors=True)


@_unbroken()
def read_store(path: Path, variables: Iterable[str] | None = None):
    """(some arrays by name (None for all), [*grid, ...], the provenance, the names of all); what is not done yet is NaN or −1.

    Raises:
      ValueError: an unknown name, or a chunk of these arrays that is done was damaged since.
    """
    store, group = _open(Path(path))
    names = sorted(store.inner) if variables is None else list(variables)
    if unknown := set(names) - store.inner.keys():
        raise ValueError(f"{path} holds no {', '.join(sorted(unknown))}; it holds {', '.join(sorted(store.inner))}")
    if damaged := _damaged(store, names):
        raise ValueError(
            f"{path}: {len(damaged)} of {finished(store).sum()} finished chunks no longer hold what was written; run the same "
            "sweep again, which trains them again and keeps the others"
        )
    arrays = {name: np.asarray(group[name][...]) for name in names}
    return (
        arrays,
        {name: value for name, value in group.attrs.items() if name not in ("sweep", "coordinates")},
        list(store.inner),
    )


def _checksums(store: SweepStore, chunk: Chunk, names: Iterable[str]) -> dict[str, int]:
    """CRC-32 of a chunk's files, by array; an array that holds nothing but its fill value has none."""
    files = {name: store.data(name, chunk) for name in names}
    return {name: zlib.crc32(file.read_bytes()) for name, file in files.items() if file.is_file()}


def _is_damaged(store: SweepStore, chunk: Chunk, names: Iterable[str]) -> bool:
    """Whether a chunk that is done no longer holds the files that were written."""
    try:
        written = json.loads(store.mark(chunk).read_text())
        return _checksums(store, chunk, names) != {name: written[name] for name in names if name in written}
    except (ValueError, TypeError):
        return True
    except FileNotFoundError:  # another process has found it, and trains it again
        return False


def _damaged(store: SweepStore, names: Iterable[str]) -> list[Chunk]:
    """The chunks that are done and whose files are not those that were written."""
    return [c for c in map(tuple, np.argwhere(finished(store)).tolist()) if _is_damaged(store, c, names)]


def _forget_damaged(store: SweepStore) -> None:
    """Take the mark from damaged chunks, with a warning, unless another process has them in hand."""
    damaged = _damaged(store, store.inner)
    for chunk in damaged:
        with said_where(store.path), _locked(store, chunk) as held:
            if held and _is_damaged(store, chunk, store.inner):  # still: another process may have mended it
                store.mark(chunk).unlink(missing_ok=True)
    if damaged:
        warnings.warn(
            f"{store.path}: {len(damaged)} finished chunks no longer hold what was written (a power cut, a damaged disk, a "
            "deleted file?); they are trained again",
            stacklevel=4,  # the call of `sweep`
        )


@contextlib.contextmanager
def _locked(store: SweepStore, chunk: Chunk) -> Generator[bool, None, None]:
    """Whether this process holds the lock of a chunk; where there are no locks, True and a warning."""
    import filelock

    # Without the fallback to a mere file: that would outlive a kill, and keep the chunk for ever.
    lock, works = filelock.FileLock(store.path / ".locks" / _name(chunk), fallback_to_soft=False), True
    with said_where(store.path):
        (store.path / ".locks").mkdir(exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            works = False
            warnings.warn(
                f"{store.path}: its file system has no locks ({error}). This process goes on alone; another one on the same "
                "store would only repeat its work: to share it, put the store on a file system with locks, such as a local disk",
                stacklevel=2,
            )
    try:
        yield lock.is_locked or not works
    finally:
        if lock.is_locked:
            lock.release()
