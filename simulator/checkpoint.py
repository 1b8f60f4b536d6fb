"""What a long run survives by: its state in a folder (orbax), from which the same call continues to the bit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from simulator.identity import digest
from simulator.store import differences, identify, read_json, said_where, whole_file

FORMAT = 2  # raised when the layout changes: what is older is then refused with a word


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
          ValueError: the folder holds another run, or was damaged.
        """
        path = Path(self.path)
        if path.is_file():
            raise ValueError(f"{path} is a file; a checkpoint is stored in a folder")
        if not (path / "run.json").exists():
            return None
        made = read_json(path / "run.json", "identity", "config", "step", "state", "checksum")
        if made["identity"] != identify(FORMAT, self.config):
            differing = sorted(differences(made["config"], self.config)) or ["the format of the checkpoint"]
            raise ValueError(
                f"{path} holds a checkpoint of another run; it differs in {', '.join(differing)}. Give another folder"
            )
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

        path, name = Path(self.path), f"step_{step}"
        with said_where(path):
            path.mkdir(parents=True, exist_ok=True)
            # orbax takes no array of size 0
            numbered = lambda leaves: {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves) if leaf.size}  # noqa: E731
            tree = dict(state=numbered(state), history=numbered(history))
            orbax.checkpoint.PyTreeCheckpointer().save((path / name).absolute(), tree, force=True)
            made = dict(
                identity=identify(FORMAT, self.config), config=self.config, step=step, state=name, checksum=digest(tree)
            )  # fmt: skip
            with whole_file(path / "run.json") as draft:
                draft.write_text(json.dumps(made, indent=1) + "\n")
            for old in path.iterdir():
                if re.fullmatch(r"step_\d+(\.orbax.*)?", old.name) and old.name != name:
                    shutil.rmtree(old)
