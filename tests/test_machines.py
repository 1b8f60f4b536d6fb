"""The library and the command on machines that lack something."""

import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.__main__ import main
from simulator.training import engine


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = rng.normal(size=(5, 6))
    np.save("x.npy", x)
    np.save("y.npy", np.concatenate([x, x]) + 1.0)
    return tmp_path


def run(script: str, **environment: str):
    kept = {k: v for k, v in os.environ.items() if k != "HOME"} | dict(PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=900, env=kept | environment
    )


def test_no_git_no_home_no_name_and_jax_in_use(files):
    """A uid without an entry in passwd, as containers have; JAX has its devices before the command starts."""
    done = run(
        "import pwd, sys, jax\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "jax.devices()\n"
        "import simulator as sim; from experiments.__main__ import main\n"
        "from simulator.storage.results import provenance\n"
        "sim.use_all_cores()\n"
        "assert provenance()['commit'] == 'unknown'\n"
        "sys.exit(main(['diagnose', 'x.npy', 'y.npy']))",
        PATH="/nowhere", JAX_DEBUG_NANS="1", JAX_DEBUG_INFS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "gap_norm" in done.stdout


def test_a_home_that_cannot_be_written(files):
    done = run("import simulator; simulator.use_all_cores()\nimport jax; jax.jit(abs)(1.0)", HOME="/proc")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("same", [["y.npy", "y.npy", "--paired"], ["one.npy", "one.npy"], ["one.npy", "y.npy"]])
def test_measures_that_are_not_defined_are_no_error_while_nans_are_debugged(files, same):
    import jax

    np.save("one.npy", np.ones((5, 6)))
    with jax.debug_nans(True), jax.debug_infs(True):
        assert main(["diagnose", *same]) == 0


def test_an_absent_device_is_one_line(files):
    done = run(
        "import sys; from experiments.__main__ import main; sys.exit(main(['diagnose', 'x.npy', 'y.npy']))",
        JAX_PLATFORMS="cuda",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gapsim: JAX finds no device 'cuda' here")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'x'"), AssertionError()])
@pytest.mark.parametrize(
    "command", ["verify C4 --quick", "run", "report", "figures", "bench --quick", "sweep g.toml --store s"]
)
def test_no_command_starts_without_a_device(files, command, error, monkeypatch, capsys):
    import jax

    (files / "g.toml").write_text("steps = 2\n")

    def absent(*_):
        raise error

    monkeypatch.setattr(jax, "devices", absent)
    assert main(command.split()) == 2
    assert "JAX finds no device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "broken", ['{"s": "8"}', '{"s": -4}', '{"s": [2]}', '{"s": true}', '{"s": 3}', "[" * 100_000, '"', "\xff"]
)
def test_nonsense_in_the_cache_is_measured_again(broken, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "gapsim").mkdir()
    (tmp_path / "gapsim" / "block_sizes.json").write_text(broken, encoding="latin-1")
    assert engine.calibrated_block_size("s", None) is None
    assert engine.calibrated_block_size("s", float) == 2
    assert engine.calibrated_block_size("s", None) == 2
