"""Which commit a result names: that of the repository that tracks the code, whoever's folder it lies in."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from simulator.storage import results


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A user's repository that ignores its .venv, with one commit; returns (folder, git)."""
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "somebody")
    folder = tmp_path / "thesis"
    folder.mkdir()

    def git(*arguments, at=folder):
        command = ["git", "-C", str(at), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (folder / ".gitignore").write_text(".venv\n")
    git("add", ".")
    git("commit", "-qm", "Begin")
    return folder, git


def copy_of_store(folder):
    """The module `simulator.storage.results` from a copy in a folder."""
    (folder / "storage").mkdir(parents=True)
    shutil.copy(results.__file__, folder / "storage")
    spec = importlib.util.spec_from_file_location("copied", folder / "storage" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_package_in_an_ignored_folder_has_no_commit(repository):
    folder, _ = repository
    assert copy_of_store(folder / ".venv" / "site-packages" / "simulator").provenance()["commit"] == "unknown"


def test_a_tracked_package_has_the_commit_of_its_repository(repository, tmp_path, monkeypatch):
    folder, git = repository
    module = copy_of_store(folder / "simulator")
    assert module.provenance()["commit"] == "unknown"
    git("add", ".")
    git("commit", "-qm", "Take the simulator in")
    assert module.provenance()["commit"] == git("rev-parse", "HEAD")
    (folder / "results.csv").write_text("1\n")  # no code
    assert module.provenance()["commit"] == git("rev-parse", "HEAD")
    (folder / "simulator" / "more.py").write_text("1\n")
    assert module.provenance()["commit"] == git("rev-parse", "HEAD") + "+"
    # In a hook git names its own repository in the environment.
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    found = module.provenance()["commit"]
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert found == git("rev-parse", "HEAD") + "+"
    # A worktree is a checkout like any other.
    git("worktree", "add", "-q", str(tmp_path / "beside"), "-b", "beside")
    spec = importlib.util.spec_from_file_location(
        "beside", tmp_path / "beside" / "simulator" / "storage" / "results.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.provenance()["commit"] == git("rev-parse", "HEAD")


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert results.provenance()["commit"] == "unknown"
    assert Path(results.__file__).exists()
