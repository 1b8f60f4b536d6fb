"""What survives Ctrl-C, a kill or a full disk: the chunks of a sweep (zarr), and the state of a long run (orbax).

A sweep is cut into chunks of replicas. The arrays of a chunk are one zarr chunk each; `done[chunk]` is set after they
are written, and only `done` is trusted. A chunk is a function of the configuration alone, so writing one twice
changes nothing; processes that share a store still keep out of each other's way through a lock per chunk, which the
operating system drops when its holder dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simulator.store import whole_file

RESULTS = "results.zarr"
FORMAT = 1  # raised when the layout below changes: older stores are then refused with a word


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
    import zarr

    path = Path(path)
    identity = _identity(config)
    if path.is_file():
        raise ValueError(f"{path} is a file; a sweep is stored in a folder")
    with _said_where(path):
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path / ".lock"):
            if not (path / "sweep.json").exists():
                _create(path, num_groups, group_size, *choose_cut(), arrays, attributes)
                # Last: a store without this file was never finished making, and is made again.
                with whole_file(path / "sweep.json") as draft:
                    draft.write_text(json.dumps(dict(identity=identity, config=config), indent=1) + "\n")
        try:
            made = json.loads((path / "sweep.json").read_text())
            cut: Any = zarr.open_group(path / RESULTS, mode="r").attrs["cut"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(f"{path} is not a whole store ({error}); move it away") from error
    if made["identity"] != identity:
        differing = sorted(_differences(made.get("config"), config)) or ["the format of the store"]
        raise ValueError(
            f"{path} holds another sweep; it differs in {', '.join(differing)}. Give another folder, or the settings that "
            "the store was made with"
        )
    return SweepStore(path, **cut)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the sweep in a store."""
    try:
        return json.loads((Path(path) / "sweep.json").read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds no sweep ({error}); give the folder that `sweep` was called with") from error


def _identity(config) -> str:
    return hashlib.sha256(json.dumps([FORMAT, config], sort_keys=True).encode()).hexdigest()


def _create(path, num_groups, group_size, replicas_per_chunk, replicas_per_block, arrays, attributes):
    """An empty store; whatever stands there of one that was never finished making is replaced."""
    import zarr

    foreign = [p.name for p in path.iterdir() if p.name not in {".lock", ".locks", ".jobs", RESULTS}]
    if foreign:
        raise ValueError(f"{path} is not empty and holds no sweep (it has {foreign[0]}); give another folder")
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
    group.create_array("done", shape=(num_groups, chunks), chunks=(1, 1), dtype=bool, fill_value=False)
    cut = dict(num_groups=num_groups, group_size=group_size, replicas_per_chunk=replicas_per_chunk)
    group.attrs.update(dict(attributes) | dict(cut=cut | dict(replicas_per_block=replicas_per_block)))


def finished(store: SweepStore) -> np.ndarray:
    """Which chunks are done, [num_groups, chunks] of bool."""
    import zarr

    return np.asarray(zarr.open_array(store.path / RESULTS / "done", mode="r")[...])


@contextlib.contextmanager
def claimed(store: SweepStore, group: int, chunk: int) -> Generator[bool, None, None]:
    """Whether this process holds the chunk: False when it is done or another living process works on it."""
    with _locked(store.path / ".locks" / f"{group}.{chunk}", wait=False) as held:
        yield held and not finished(store)[group, chunk]


def write_chunk(store: SweepStore, group: int, chunk: int, values: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a chunk [replicas, ...] and then its `done`. Trailing axes shorter than the store's leave the
    rest at its fill value."""
    import zarr

    with _said_where(store.path):
        arrays: Any = zarr.open_group(store.path / RESULTS, mode="r+")
        for name, value in values.items():
            arrays[name][(group, store.rows(chunk), *(slice(0, n) for n in value.shape[1:]))] = value
        arrays["done"][group, chunk] = True


def read_store(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name, [num_groups, group_size, ...], and the provenance; what is not done yet is NaN or −1."""
    import zarr

    group = zarr.open_group(Path(path) / RESULTS, mode="r")
    arrays = {name: np.asarray(array[...]) for name, array in group.arrays() if name != "done"}
    return arrays, {name: value for name, value in group.attrs.items() if name != "cut"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a long run leaves its state, and for which configuration.

    path: folder; config: what the run depends on, as JSON values; seconds: at least so long between two states.
    """

    path: Path
    config: dict[str, Any]
    seconds: float = 30.0

    def restore(self, like: list[np.ndarray]) -> tuple[int, list[np.ndarray], list[np.ndarray]] | None:
        """(step, leaves of the state, columns of the history) as last saved, or None; `like` gives the leaves' types.

        Raises:
          ValueError: the folder holds another run.
        """
        path = Path(self.path)
        if not (path / "run.json").exists():
            return None
        made = json.loads((path / "run.json").read_text())
        if made["identity"] != _identity(self.config):
            differing = sorted(_differences(made["config"], self.config)) or ["the format of the checkpoint"]
            raise ValueError(
                f"{path} holds a checkpoint of another run; it differs in {', '.join(differing)}. Give another folder"
            )
        import orbax.checkpoint

        saved = orbax.checkpoint.PyTreeCheckpointer().restore((path / made["state"]).absolute())
        state = [
            np.asarray(saved["state"][str(i)]).astype(leaf.dtype) if leaf.size else leaf for i, leaf in enumerate(like)
        ]
        history = [np.asarray(saved["history"][str(i)]) for i in range(len(saved["history"]))]
        return int(made["step"]), state, history

    def save(self, step: int, state: list[np.ndarray], history: list[np.ndarray]) -> None:
        """Write a state; the one before it goes only when this one is whole."""
        import orbax.checkpoint

        path, name = Path(self.path), f"step_{step}"
        with _said_where(path):
            path.mkdir(parents=True, exist_ok=True)
            # orbax takes no array of size 0
            numbered = lambda leaves: {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves) if leaf.size}  # noqa: E731
            tree = dict(state=numbered(state), history=numbered(history))
            orbax.checkpoint.PyTreeCheckpointer().save((path / name).absolute(), tree, force=True)
            made = dict(identity=_identity(self.config), config=self.config, step=step, state=name)
            with whole_file(path / "run.json") as draft:
                draft.write_text(json.dumps(made, indent=1) + "\n")
            for old in path.glob("step_*"):
                if old.name != name:
                    shutil.rmtree(old)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted names of what two JSON values differ in."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
    elif old != new:
        yield f"{where} ({old!r} there, {new!r} here)"


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


@contextlib.contextmanager
def _said_where(path: Path) -> Generator[None, None, None]:
    """Say of which store an error of the disk is, and that what is done is safe."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the quota is used up; free some space",
            errno.EROFS: "the file system is read-only; give a folder that can be written",
            errno.EACCES: "permission is denied; give a folder that can be written",
            errno.EPERM: "permission is denied; give a folder that can be written",
        }
        reason = reasons.get(error.errno, str(error))
        raise OSError(
            error.errno,
            f"the store {path} cannot be written: {reason}. Chunks that are done are safe; run again to continue",
        ) from error
