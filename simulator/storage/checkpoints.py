"""What a long run survives by: its state in a folder (orbax), from which the same call continues to the bit.

`run.json` names the state that counts and everything that was made in the folder. A state is entered there before it is
written and counts once it is whole; only what is entered is ever removed, and a folder with anything else in it is
refused. (Orbax's own CheckpointManager keeps and removes by the names of folders alone, numbers that others use as well.)
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from simulator.storage.identity import digest, require_same_environment
from simulator.storage.results import differences, identify, read_json, said_where, whole_file

FORMAT = 3  # raised when the layout changes: what is older is then refused with a word


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a long run leaves its state, and for which configuration.

    path: folder; config: what the run depends on, as JSON values; seconds: at least so long between two states.
    """

    path: Path
    config: dict[str, Any]
    seconds: float = 30.0

    def check(self) -> None:
        """Raise ValueError where the folder holds another run or something else, was damaged, or was begun in another
        environment."""
        made = self._entered()["made"]
        for found in sorted(self.path.iterdir()) if self.path.exists() else ():
            of_ours = found.name == "run.json" or found.name.startswith((".run.", ".nfs")) or _is_of(found.name, made)
            if not of_ours:
                raise ValueError(
                    f"{self.path} holds {found.name}, which no checkpoint of this run made; give a folder of its own"
                )

    def _entered(self) -> dict[str, Any]:
        """What run.json says; in a new folder, that nothing was made."""
        path = self.path
        if path.is_file():
            raise ValueError(f"{path} is a file; a checkpoint is stored in a folder")
        if not (path / "run.json").exists():
            return dict(made=[], state=None, step=None, checksum=None)
        made = read_json(path / "run.json", "identity", "config", "step", "state", "checksum")
        if made["identity"] != identify(FORMAT, self.config):
            differing = sorted(differences(made["config"], self.config)) or ["the format of the checkpoint"]
            raise ValueError(
                f"{path} holds a checkpoint of another run; it differs in {', '.join(differing)}. Give another folder"
            )
        require_same_environment(path, made["config"], self.config)
        return made

    def restore(self, like: list[np.ndarray]) -> tuple[int, list[np.ndarray], list[np.ndarray]] | None:
        """(step, leaves of the state, columns of the history) as last saved, or None; `like` gives the leaves' types.

        Raises:
          ValueError: as of `check`; or the state was damaged.
        """
        self.check()
        path, made = self.path, self._entered()
        if made["state"] is None:
            return None
        import orbax.checkpoint

        try:
            saved = orbax.checkpoint.PyTreeCheckpointer().restore((path / made["state"]).absolute())
            if digest(saved) != made["checksum"]:
                raise ValueError("its numbers are not those that were written")
        except Exception as error:  # of many kinds, from the libraries below orbax
            raise ValueError(
                f"the checkpoint {path / made['state']} was damaged and cannot be read ({str(error)[:200]}); "
                f"remove {path} to start anew"
            ) from error
        state = [
            np.asarray(saved["state"][str(i)]).astype(leaf.dtype) if leaf.size else leaf for i, leaf in enumerate(like)
        ]
        history = [np.asarray(saved["history"][str(i)]) for i in range(len(saved["history"]))]
        return int(made["step"]), state, history

    def save(self, step: int, state: list[np.ndarray], history: list[np.ndarray]) -> None:
        """Write a state; the one before it goes only when this one is whole."""
        import orbax.checkpoint

        path, name = self.path, f"step_{step}"
        with said_where(path):
            path.mkdir(parents=True, exist_ok=True)
            before = self._entered()
            name += "_again" * (name == before["state"])  # that one counts until this one is whole
            if (path / name).exists() and name not in before["made"]:
                raise ValueError(
                    f"{path} holds {name}, which no checkpoint of this run made; move it away and run again"
                )
            # orbax takes no array of size 0
            numbered = lambda leaves: {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves) if leaf.size}
            tree = dict(state=numbered(state), history=numbered(history))
            made: dict[str, Any] = dict(identity=identify(FORMAT, self.config), config=self.config)
            self._enter(before | made | dict(made=sorted({*before["made"], name})))
            orbax.checkpoint.PyTreeCheckpointer().save((path / name).absolute(), tree, force=True)
            made |= dict(step=step, state=name, checksum=digest(tree))
            self._enter(made | dict(made=sorted({*before["made"], name})))
            for old in path.iterdir():
                if _is_of(old.name, before["made"]) and old.name != name:
                    shutil.rmtree(old)
            self._enter(made | dict(made=[name]))

    def _enter(self, made: dict[str, Any]) -> None:
        with whole_file(self.path / "run.json") as draft:
            draft.write_text(json.dumps(made, indent=1) + "\n")


def _is_of(name: str, made: list[str]) -> bool:
    """Whether a folder is one of those made, or the beginning of one that orbax left behind when it was killed."""
    return name.partition(".orbax")[0] in made
