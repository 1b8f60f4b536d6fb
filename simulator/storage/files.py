"""Files that are written whole or not at all, and outputs that never take the place of something else."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path | str) -> Generator[Path, None, None]:
    """A draft beside `path` that takes its place when the block ends without an error: whoever reads `path` finds the
    old file or all of the new one, also after a kill. Missing folders are made, symbolic links are followed, and a file
    keeps its owner and mode. What is no regular file (a device, a pipe, this process's own output) cannot be replaced:
    the draft is written into it."""
    path = Path(path)
    found = _status(path)
    if found is not None:
        _require_permission(path)
        if _descriptor(path, found) is not None or not stat.S_ISREG(found.st_mode):
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder) / f"draft{path.suffix}"
                yield draft
                _write_into(path, found, draft)
            return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{target.suffix}")
    mode = 0o666 if found is None else stat.S_IMODE(found.st_mode)
    try:
        # Made here, so that what only its owner may read is never open to others, half written or not.
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode | stat.S_IWUSR))
        yield draft
        if found is not None:
            with contextlib.suppress(OSError, AttributeError):  # only root gives files away; Windows has no owners
                os.chown(draft, found.st_uid, found.st_gid)
            os.chmod(draft, mode)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def require_writable(path: Path | str):
    """Raise OSError unless `whole_file` can write `path`, so that a long computation does not end on a wrong name."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file in it")
    try:
        found = _status(path)
        if found is not None:
            _require_permission(path)
            if stat.S_ISSOCK(found.st_mode):
                raise OSError(errno.ENXIO, "it is a socket")
            if not stat.S_ISREG(found.st_mode):
                return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}); name a file in a folder that you can write to"
        ) from error


def require_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()):
    """Raise ValueError or OSError unless every output can be written, none is an input, and no two are one file.

    Names do not tell: links, `..` and letters that a file system takes for the same lead to one file. So an output that
    does not exist yet is made, compared, and removed again. Inputs that do not exist are left to whoever reads them.
    """
    given = [(Path(each), found) for each in inputs if (found := _status(Path(each))) is not None]
    taken: list[tuple[Path, os.stat_result]] = []
    with contextlib.ExitStack() as made:
        for path in (Path(each) for each in outputs if each is not None):
            require_writable(path)
            if _status(path) is None:
                target = Path(os.path.realpath(path))
                try:
                    target.open("xb").close()
                except OSError as error:
                    raise OSError(f"cannot write {path} ({error.strerror}); name another file") from error
                made.callback(target.unlink, missing_ok=True)
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # two outputs may go into one pipe, one after the other
                continue
            if any(os.path.samestat(found, each) for _, each in given):
                raise ValueError(f"{path} is an input; name another file for the output")
            for other, each in taken:
                if os.path.samestat(found, each):
                    also = "" if str(other) == str(path) else f", also as {other}"
                    raise ValueError(f"{path} is named for two outputs{also}; name another file for one of them")
            taken.append((path, found))


def _status(path: Path) -> os.stat_result | None:
    """What the path leads to; None where there is nothing, yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except NotADirectoryError:  # on the way; whoever makes the folders says so
        return None


def _require_permission(path: Path):
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _descriptor(path: Path, found: os.stat_result) -> int | None:
    """The open descriptor that a path leads to, as /dev/stdout does, also where that is a file: replaced, what was
    printed before would be lost."""
    numbers = [1, 2]
    if path.name.isdecimal() and os.path.realpath(path.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
        numbers.append(int(path.name))
    for number in numbers:
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


def _write_into(path: Path, found: os.stat_result, draft: Path):
    number = _descriptor(path, found)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was printed before comes before
    with draft.open("rb") as written, path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as target:
        shutil.copyfileobj(written, target)
