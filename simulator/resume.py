"""What survives Ctrl-C, a kill or a full disk: the chunks of a sweep (zarr).

A sweep is cut into chunks of replicas. The arrays of a chunk are one zarr chunk each; after them their checksum is
written, then `done[chunk]`. A chunk without `done`, or whose files are no longer those of the checksum (a power cut may
keep what was written last and lose what was written first), is trained again. A chunk is a function of the configuration
alone (to the bit on two devices and more, see `engine`), so writing one twice changes nothing; processes that share a store still keep out of each other's way through a
lock per chunk, which the operating system drops when its holder dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import signal
import threading
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simulator.identity import require_same_environment
from simulator.store import differences, identify, read_json, said_where, whole_file

RESULTS = "results.zarr"
FORMAT = 2  # raised when the layout changes: what is older is then refused with a word


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
    """A sweep on disk: where it is, and how its groups of `group_size` replicas are cut.

    path: folder of the store; the arrays of its results.zarr are [num_groups, group_size, ...]. replicas_per_chunk: of their second
    axis. replicas_per_block: of the engine (results differ in their last bits between block sizes, so a resume keeps it).
    """

    path: Path
    num_groups: int
    group_size: int
    replicas_per_chunk: int
    replicas_per_block: int

    def rows(self, chunk: int) -> slice:
        """The replicas of a chunk within its group."""
        return slice(chunk * self.replicas_per_chunk, min((chunk + 1) * self.replicas_per_chunk, self.group_size))


def open_store(
    path: Path,
    config: dict[str, Any],
    *,
    num_groups: int,
    group_size: int,
    arrays: Mapping[str, tuple[tuple[int, ...], Any]],
    attributes: Mapping[str, str],
    choose_cut: Callable[[], tuple[int, int]],
) -> SweepStore:
    """Create a store, or open the one that holds the same sweep.

    Args:
      path: folder of the store; created with its parents.
      config: what the results depend on, as JSON values; its hash names the sweep.
      num_groups, group_size: groups, and replicas in each.
      arrays: name -> (shape of one replica, dtype).
      attributes: provenance, kept as it was when the store was made.
      choose_cut: () -> (replicas per chunk, replicas per block), asked for a new store only.

    Raises:
      ValueError: the store holds another sweep, or is no store.
      OSError: it cannot be written.
    """
    path = Path(path)
    identity = identify(FORMAT, config)
    if path.is_file():
        raise ValueError(f"{path} is a file; a sweep is stored in a folder")
    with said_where(path):
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path / ".lock"):
            if not (path / "sweep.json").exists():
                _create(path, num_groups, group_size, *choose_cut(), arrays, attributes)
                # Last: a store without this file was never finished making, and is made again.
                with whole_file(path / "sweep.json") as draft:
                    draft.write_text(json.dumps(dict(identity=identity, config=config), indent=1) + "\n")
    made = read_json(path / "sweep.json", "identity", "config")
    if made["identity"] != identity:
        differing = sorted(differences(made["config"], config)) or ["the format of the store"]
        raise ValueError(
            f"{path} holds another sweep; it differs in {', '.join(differing)}. Give another folder, or the settings that "
            "the store was made with"
        )
    store, _ = _open(path)
    _forget_damaged(store)
    if not finished(store).all():
        require_same_environment(path, made["config"], config)
    return store


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the sweep in a store."""
    if not (Path(path) / "sweep.json").exists():
        raise ValueError(f"{path} holds no sweep; give the folder that `sweep` was called with")
    return read_json(Path(path) / "sweep.json", "identity", "config")["config"]


@_unbroken()
def _open(path: Path, mode: Literal["r", "r+"] = "r") -> tuple[SweepStore, Any]:
    """The store that stands in a folder, and its zarr group."""
    import zarr

    try:
        group: Any = zarr.open_group(path / RESULTS, mode=mode)
        store = SweepStore(path, **group.attrs["cut"])
        expected, found = group.attrs.get("arrays"), {name for name, _ in group.arrays()}
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not a whole store ({error}); move it away and run again") from error
    if expected is None:
        raise ValueError(
            f"{path} was made by an earlier version of this program; load it with that one, or train it again"
        )
    if missing := {*expected, "checksum", "done"} - found:
        raise ValueError(
            f"{path} is not a whole store (it lacks {', '.join(sorted(missing))}); move it away and run again"
        )
    return store, group


@_unbroken()
def _create(path, num_groups, group_size, replicas_per_chunk, replicas_per_block, arrays, attributes):
    """An empty store; whatever stands there of one that was never finished making is replaced."""
    import zarr

    foreign = [p.name for p in path.iterdir() if p.name not in {".lock", ".locks", ".jobs", RESULTS}]
    if foreign:
        raise ValueError(f"{path} is not empty and holds no sweep (it has {foreign[0]}); give another folder")
    if any(p.is_file() for p in (path / RESULTS / "done").glob("c/**/*")):
        raise ValueError(f"{path} holds results and has lost its sweep.json; move it away, or give another folder")
    group = zarr.open_group(path / RESULTS, mode="w")
    for name, (shape, dtype) in arrays.items():
        group.create_array(
            name,
            shape=(num_groups, group_size, *shape),
            chunks=(1, replicas_per_chunk, *(max(n, 1) for n in shape)),
            dtype=dtype,
            fill_value=np.nan if np.dtype(dtype).kind == "f" else -1,
        )
    chunks = -(-group_size // replicas_per_chunk)
    for name, dtype in (("checksum", "uint32"), ("done", bool)):
        group.create_array(name, shape=(num_groups, chunks), chunks=(1, 1), dtype=dtype, fill_value=0)
    cut = dict(num_groups=num_groups, group_size=group_size, replicas_per_chunk=replicas_per_chunk)
    cut["replicas_per_block"] = replicas_per_block
    group.attrs.update(dict(attributes) | dict(cut=cut, arrays=sorted(arrays)))


@_unbroken()
def finished(store: SweepStore) -> np.ndarray:
    """Which chunks are done, [num_groups, chunks] of bool."""
    return _flags(store, "done")


def _flags(store: SweepStore, name: str) -> np.ndarray:
    """`done` or `checksum`; 0 where it cannot be read, which a power cut may leave."""
    import zarr

    array: Any = zarr.open_array(store.path / RESULTS / name, mode="r")
    try:
        return np.asarray(array[...])
    except Exception:  # of many kinds, from the libraries below zarr
        flags = np.zeros(array.shape, array.dtype)
        for place in np.ndindex(*array.shape):
            with contextlib.suppress(Exception):
                flags[place] = array[place]
        return flags


@contextlib.contextmanager
def claimed(store: SweepStore, group: int, chunk: int) -> Generator[bool, None, None]:
    """Whether this process holds the chunk: False when it is done or another living process works on it."""
    with _locked(store.path / ".locks" / f"{group}.{chunk}", wait=False) as held:
        yield held and not _is_done(store, group, chunk)


@_unbroken()
def _is_done(store: SweepStore, group: int, chunk: int) -> bool:
    import zarr

    array: Any = zarr.open_array(store.path / RESULTS / "done", mode="r")
    try:
        return bool(array[group, chunk])
    except Exception:  # as in _flags
        return False


@_unbroken()
def write_chunk(store: SweepStore, group: int, chunk: int, values: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a chunk [replicas, ...], their checksum and then its `done`. Trailing axes shorter than the
    store's leave the rest at its fill value."""
    with said_where(store.path):
        _, arrays = _open(store.path, "r+")
        for folder in _data(store, group, chunk):  # of a writer that died; zarr would read it to fill it up
            shutil.rmtree(folder, ignore_errors=True)
        for name, value in values.items():
            arrays[name][(group, store.rows(chunk), *(slice(0, n) for n in value.shape[1:]))] = value
        arrays["checksum"][group, chunk] = _checksum(store, group, chunk)
        arrays["done"][group, chunk] = True


@_unbroken()
def read_store(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name, [num_groups, group_size, ...], and the provenance; what is not done yet is NaN or −1.

    Raises:
      ValueError: a chunk that is done was damaged since.
    """
    store, group = _open(Path(path))
    if damaged := _damaged(store):
        raise ValueError(
            f"{path}: {len(damaged)} of {finished(store).sum()} finished chunks no longer hold what was written; run the same "
            "sweep again, which trains them again and keeps the others"
        )
    arrays = {name: np.asarray(array[...]) for name, array in group.arrays() if name not in ("checksum", "done")}
    return arrays, {name: value for name, value in group.attrs.items() if name not in ("arrays", "cut")}


def _data(store: SweepStore, group: int, chunk: int) -> list[Path]:
    """The folders of a chunk's files: zarr keeps chunk (g, c, 0, …) of an array in <array>/c/g/c/0/…"""
    arrays = sorted(p for p in (store.path / RESULTS).iterdir() if p.is_dir() and p.name not in ("checksum", "done"))
    return [array / "c" / str(group) / str(chunk) for array in arrays]


def _checksum(store: SweepStore, group: int, chunk: int) -> int:
    """CRC-32 of a chunk's files, by name; an array that holds nothing but its fill value has none."""
    total = 0
    for folder in _data(store, group, chunk):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            total = zlib.crc32(file.read_bytes(), zlib.crc32(str(file.relative_to(store.path)).encode(), total))
    return total


@_unbroken()
def _damaged(store: SweepStore, among: list[tuple[int, int]] | None = None) -> list[tuple[int, int]]:
    """The chunks (of some, or of all) that are done and whose files are not those that were written."""
    done, written = _flags(store, "done"), _flags(store, "checksum")
    chunks = [tuple(c) for c in np.argwhere(done).tolist()] if among is None else among
    return [c for c in chunks if done[c] and _checksum(store, *c) != written[c]]


def _forget_damaged(store: SweepStore) -> None:
    """Take `done` from damaged chunks, with a warning, unless another process has them in hand."""
    damaged = _damaged(store)
    for group, chunk in damaged:
        with said_where(store.path), _locked(store.path / ".locks" / f"{group}.{chunk}", wait=False) as held:
            if held and _damaged(store, [(group, chunk)]):  # still: another process may have mended it
                _open(store.path, "r+")[1]["done"][group, chunk] = False
    if damaged:
        warnings.warn(
            f"{store.path}: {len(damaged)} finished chunks no longer hold what was written (a power cut, a damaged disk, a "
            "deleted file?); they are trained again",
            stacklevel=4,  # the call of `sweep`
        )


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Generator[bool, None, None]:
    """Hold an advisory lock on a file; wait=False yields False where somebody else holds it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
