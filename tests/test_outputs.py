"""Where the commands write: nothing but what was named is replaced, and nothing that was computed is lost."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from experiments.__main__ import main
from simulator.storage.files import require_outputs, whole_file


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = rng.normal(size=(5, 6))
    np.save("x.npy", x)
    np.save("y.npy", np.concatenate([x, x]) + 0.1 * rng.normal(size=(10, 6)) + 1.0)
    np.save("labels.npy", np.arange(10) % 5)
    (tmp_path / "e").mkdir()
    return tmp_path


DIAGNOSE, CLOSE = ["diagnose", "x.npy", "y.npy"], ["close", "x.npy", "y.npy"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([*DIAGNOSE, "--labels", "labels.npy", "--json", "labels.npy"], "labels.npy is an input"),
        ([*DIAGNOSE, "--labels", "labels.npy", "--json", "hard.npy"], "hard.npy is an input"),
        ([*DIAGNOSE, "--json", "soft"], "soft is an input"),
        ([*DIAGNOSE, "--page", "e/q.pdf", "--json", "e/../e/q.pdf"], "named for two outputs, also as e/../e/q.pdf"),
        ([*DIAGNOSE, "--page", "q.pdf", "--json", "q.png"], "named for two outputs"),
        ([*DIAGNOSE, "--page", "dangling.pdf", "--json", "new.pdf"], "named for two outputs"),
        ([*CLOSE, "--out", "old.npz", "--json", "also"], "named for two outputs"),
        (["verify", "C4", "--out", "e", "--json", "e/robustness_monotone.nc"], "named for two outputs"),
        (["bench", "--out", "e", "--json", "e/performance.pdf"], "named for two outputs"),
        (["verify", "C4", "--json", "x.npy/a.json"], "cannot write x.npy/a.json"),
        ([*DIAGNOSE, "--json", "j" * 300], "File name too long"),
        (["bench", "--quick", "--json", "e"], "e is a directory"),
    ],
)
def test_outputs_that_would_overwrite_are_refused_before_the_work(files, command, words, capsys, monkeypatch):
    from experiments import catalogue
    from experiments.bench import turns
    from experiments.commands import diagnosis

    os.link("labels.npy", "hard.npy")
    os.symlink("x.npy", "soft")
    os.symlink("new.pdf", "dangling.pdf")
    (files / "old.npz").write_text("old")
    os.link("old.npz", "also")
    for module, name in ((catalogue, "run"), (turns, "run"), (diagnosis, "diagnose")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work was begun"))
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert main(command) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_links_are_followed_and_modes_are_kept(files):
    (files / "e" / "secret.json").write_text("old")
    os.chmod("e/secret.json", 0o600)
    os.symlink("e/secret.json", "link.json")
    os.symlink("e/new.npz", "link.npz")
    old = os.umask(0o027)
    try:
        assert main([*CLOSE, "--out", "link.npz", "--json", "link.json"]) == 0
    finally:
        os.umask(old)
    assert os.path.islink("link.json")
    assert os.path.islink("link.npz")
    assert stat.S_IMODE(os.stat("e/secret.json").st_mode) == 0o600
    assert stat.S_IMODE(os.stat("e/new.npz").st_mode) == 0o640
    assert json.loads((files / "e" / "secret.json").read_text())["rule"] == "complement"
    assert sorted(path.name for path in (files / "e").iterdir()) == ["new.npz", "secret.json"]


def test_a_draft_is_as_closed_as_the_file_it_replaces(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)
    with whole_file(path) as draft:
        draft.write_text("new")
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "mknod") or os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_written_into_and_stays_one(files):
    for name in ("null.json", "null.npz"):
        os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # what /dev/null is
    try:
        assert main([*CLOSE, "--out", "null.npz", "--json", "null.json"]) == 0
        assert stat.S_ISCHR(os.stat("null.json").st_mode)
        assert stat.S_ISCHR(os.stat("null.npz").st_mode)
    except OSError as error:
        pytest.skip(f"this file system has no devices: {error}")


def test_a_pipe_receives_the_file(files):
    os.mkfifo("pipe.json")
    reader = subprocess.Popen(["cat", "pipe.json"], stdout=subprocess.PIPE, text=True)
    assert main([*CLOSE, "--out", "o.npz", "--json", "pipe.json"]) == 0
    assert json.loads(reader.communicate(timeout=30)[0])["rule"] == "complement"
    assert stat.S_ISFIFO(os.stat("pipe.json").st_mode)


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "all.txt"])
def test_standard_output_that_is_a_file_keeps_what_was_printed(tmp_path, target):
    """`--json /dev/stdout > all.txt`."""
    script = (
        "import sys; from pathlib import Path; from simulator.storage.files import require_outputs, whole_file\n"
        f"require_outputs([Path({target!r})]); print('before')\n"
        f"with whole_file({target!r}) as draft: draft.write_text('json')\n"
        "print('after')"
    )
    with (tmp_path / "all.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "all.txt").read_text() == "before\njsonafter\n"


def test_what_may_not_be_written_is_refused(tmp_path):
    import socket

    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError, match="Too many levels"):
        require_outputs([tmp_path / "loop"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="it is a socket"):
            require_outputs([tmp_path / "s"])


def test_letters_that_the_terminal_lacks_lose_nothing(files):
    """In ASCII: the same text with "?", and the file in UTF-8; a name that is no UTF-8 goes through as well."""
    odd = os.fsdecode(b"\xff$x^2$\xe9.npy")
    os.rename("x.npy", odd)
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "close", odd, "y.npy", "--out", "o.npz", "--json", "c.json"],
        capture_output=True, timeout=120,
        env=os.environ | dict(PYTHONIOENCODING="ascii:strict", PYTHONPATH=os.pathsep.join(sys.path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"rule complement, ? = 1" in done.stdout
    result = json.loads((files / "c.json").read_text(encoding="utf-8"))
    assert "‖" in str(result["refusals"]) or result["alpha"] == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_an_output_that_is_full_is_one_line_and_the_file_is_there(files):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments", *CLOSE, "--out", "o.npz"], stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=120, env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)),
        )  # fmt: skip
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "warning: " not in line] == [done.stderr.splitlines()[-1]]
    assert "No space left on device" in done.stderr
    assert os.path.exists("o.npz")
