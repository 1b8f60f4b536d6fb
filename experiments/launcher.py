"""The installed command `gapsim`, under a name of its own beside the packages: `modality_gap_command`.

PYTHONPATH stands before what is installed, and `experiments` and `simulator` are names that others use too. So this file
looks for the folder with ours, puts it first, and passes the way on to the processes that a command starts.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

OURS = {"simulator": "streaming.py", "experiments": "catalogue.py"}  # package -> a file that tells it from another's


def home() -> Path | None:
    """The first folder on the path that holds both of our packages."""
    folders = (Path(entry or ".").absolute() for entry in sys.path)
    return next((f for f in folders if all((f / name / file).is_file() for name, file in OURS.items())), None)


def lead(folder: Path) -> None:
    """Make a folder the first to be looked in for both packages, here and in processes started later; imports neither."""
    found = [PathFinder.find_spec(name) for name in OURS]
    if any(spec is None or not spec.origin or Path(spec.origin).absolute().parents[1] != folder for spec in found):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        sys.path.insert(0, str(folder))
    os.environ["PYTHONSAFEPATH"] = "1"  # `python -m experiments`: not from the current folder
    for name in OURS:
        file = getattr(sys.modules[name], "__file__", None) if name in sys.modules else folder / name / "__init__.py"
        if file is None or Path(file).absolute().parent != folder / name:
            sys.exit(f"gapsim: another package named {name!r} is loaded already, from {file}; start gapsim without it")


def main() -> int:
    """Run the command."""
    from experiments.__main__ import main

    return main()


# Also where a process that a command starts imports its script again.
if (_home := home()) is None:
    sys.exit(
        "gapsim: simulator/ and experiments/ are not where they were installed; pip install modality-gap-simulator again"
    )
lead(_home)

if __name__ == "__main__":
    sys.exit(main())
