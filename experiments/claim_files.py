"""Claims of one's own, anywhere on disk: which files they are, and their modules, or one line on what is wrong with a file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import re
import sys
import traceback
from collections.abc import Generator, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from simulator.claims import Claim
from simulator.storage.source import is_own

NAMES = ("CLAIM", "Config", "QUICK", "measure", "judge", "draw")
# How each is called: an example of the arguments, and as they are written.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = dict(
    Config=((), {}, "()"),
    measure=((None,), dict(progress=False), "(config, *, progress)"),
    judge=((None,), {}, "(data)"),
    draw=((None,), {}, "(data)"),
)


@dataclasses.dataclass(frozen=True)
class OwnClaim:
    """A loaded claim file. path: absolute; sha256: of its content."""

    path: Path
    module: ModuleType
    sha256: str


def is_path(name: str) -> bool:
    """Whether a name on the command line is that of a file: it ends in .py, or names a folder on the way."""
    return name.endswith(".py") or Path(name).name != name


def within(place: Path) -> list[Path]:
    """The claims of a folder by name: its .py files but for helpers, whose names begin with an underscore; a file is itself."""
    if not place.is_dir():
        return [place]
    files = sorted(path for path in place.glob("*.py") if not path.name.startswith(("_", ".")))
    if not files:
        raise ValueError(
            f"{place} holds no claims; a claim is a file NAME.py in this folder, not below it, whose name does not begin with _"
        )
    return files


@contextlib.contextmanager
def importable(files: Iterable[Path]) -> Generator[None, None, None]:
    """What lies beside these claims can be imported inside of the block, as beside a script, and is forgotten after it.

    Raises ValueError for a file that is not there or has no name for a claim, and where one name could mean a module beside
    either of two claims.
    """
    for path in files:
        _require_name(path)
    folders = list(dict.fromkeys(Path(os.path.abspath(path)).parent for path in files))
    owners: dict[str, Path] = {}
    for folder in folders:
        for name in _modules_in(folder):
            if name in owners:
                raise ValueError(
                    f"{owners[name]} and {folder} both hold a module {name}, and an import could mean either; name the "
                    "claims of one folder at a time"
                )
            owners[name] = folder
    # What is loaded already under such a name may be of another folder, or older than its file.
    aside = {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] in owners and _is_users(name)
    }
    for name in aside:
        del sys.modules[name]
    before = set(sys.modules)
    sys.path[:0] = [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _is_users(name) and any(_lies_in(sys.modules[name], folder) for folder in folders):
                del sys.modules[name]
        sys.modules.update(aside)


def _modules_in(folder: Path) -> set[str]:
    """Names under which what lies in a folder can be imported."""
    found = {path.stem for path in folder.glob("*.py")}
    found |= {path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    return {name for name in found if name.isidentifier() and not name.startswith("__")}


def _is_users(module: str) -> bool:
    """Whether a module is the user's; the folder of a claim may also hold an environment, or this project."""
    return module.partition(".")[0] != "experiments" and is_own(module)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(Path(place).is_relative_to(folder) for place in places if place)


def load(path: Path) -> OwnClaim:
    """The claim of a file, under a module name of its own; inside of `importable`.

    Raises ValueError for a file that cannot be imported or is no claim: its name, what was expected and how to mend it.
    """
    file, source = Path(os.path.abspath(path)), path.read_bytes()
    name = f"claim_{path.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        # Not by the loader, which may take the bytecode of a file that was edited within the same second.
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {_failure(error, file)}") from error
    _require_claim(path, module)
    return OwnClaim(file, module, hashlib.sha256(source).hexdigest())


def _require_name(path: Path):
    if path.is_dir():
        raise ValueError(f"{path} is a folder; to take the claims in it: --claims {path}")
    if not path.exists():
        raise ValueError(f"{path} does not exist; name the file of a claim, FOLDER/NAME.py, or a folder by --claims")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ValueError(
            f"{path} cannot be the file of a claim, whose name is that of its results: rename it to letters, digits and _, "
            "not beginning with a digit, and .py"
        )


def _failure(error: BaseException, file: Path) -> str:
    """The last line of the user's that an error went through, and the error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    places = [
        (str(f.f_globals.get("__file__")), line) for f, line in frames if _is_users(f.f_globals.get("__name__", ""))
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        places.append((error.filename, error.lineno))
    places = [(Path(place), line) for place, line in places if Path(place).is_relative_to(file.parent)]
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".removesuffix(": ")
    if not places:
        return f"{said}; mend it"
    place, line = places[-1]
    linecache.checkcache(str(place))
    text = linecache.getline(str(place), line).strip()
    return f"line {line}{'' if place == file else f' of {place}'}, `{text[:100]}`: {said}; mend that line"


def _require_claim(path: Path, module: ModuleType):
    """Raise ValueError unless the module has what a claim has."""
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; a claim's file has {', '.join(NAMES)} (documentation: write a claim), and "
            "a helper's name begins with _"
        )
    claim, config = module.CLAIM, module.Config
    if not isinstance(claim, Claim):
        raise ValueError(
            f"{path}: CLAIM is of the type {type(claim).__name__}; write CLAIM = simulator.Claim(id=..., ...)"
        )
    if not isinstance(claim.id, str) or not re.fullmatch(r"[^\W\d_][\w-]*", claim.id):
        raise ValueError(
            f"{path}: CLAIM.id is {claim.id!r}; write letters, digits, - and _, beginning with a letter, as 'X1'"
        )
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)) or not isinstance(module.QUICK, config):
        raise ValueError(
            f"{path}: Config must be a frozen dataclass, and QUICK one of its instances, as QUICK = Config(...)"
        )
    for name, (arguments, options, written) in CALLS.items():
        try:
            inspect.signature(getattr(module, name)).bind(*arguments, **options)
        except TypeError as error:  # also for what cannot be called
            raise ValueError(
                f"{path}: {name} cannot be called as {name}{written} ({error}); change its arguments"
            ) from error
