"""What is installed: the command finds its own packages, and the wheel holds what a run needs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def foreign(tmp_path):
    """A folder with packages of our names by somebody else."""
    folder = tmp_path / "foreign"
    for name in ("experiments", "simulator"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is another project')\n")
    return folder


@pytest.fixture
def command(tmp_path, foreign):
    """(words, path) -> the finished command, called in the foreign folder by the file of its own name that a wheel holds."""
    script = tmp_path / "bin" / "modality_gap_command.py"
    script.parent.mkdir()
    shutil.copy(ROOT / "experiments" / "launcher.py", script)

    def call(*words, path, program=(str(script),)):
        environment = os.environ | dict(PYTHONPATH=os.pathsep.join(map(str, path)))
        return subprocess.run(
            [sys.executable, *program, *words],
            cwd=foreign,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return call


def test_another_package_of_our_name_is_passed_over(command, foreign, tmp_path):
    """On the path, and in the current folder with an empty entry; what the command starts finds ours, too."""
    done = command("list", path=[foreign, "", ROOT])
    assert done.returncode == 0, done.stderr
    assert "gap_emergence" in done.stdout
    script = (
        "import subprocess, sys; import modality_gap_command\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"  # --help answers at once
        "sys.exit(subprocess.run([sys.executable, '-m', 'experiments', 'run', '--help']).returncode)"
    )
    done = command(path=[foreign, tmp_path / "bin", ROOT], program=("-c", script))
    assert done.returncode == 0, done.stderr
    assert "Main job" in done.stdout
    # Control: without the command's care it is the other's package.
    done = command("list", path=[foreign, ROOT], program=("-m", "experiments"))
    assert "this is another project" in done.stderr


def test_one_line_where_our_packages_are_not_found_or_another_is_loaded(command, foreign):
    # -S: not even where an editable install points to
    done = command(
        "list", path=[foreign], program=("-S", str(Path(foreign).parent / "bin" / "modality_gap_command.py"))
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not where they were installed" in done.stderr
    (foreign / "sitecustomize.py").write_text(
        "import sys, types; sys.modules['simulator'] = types.ModuleType('simulator')"
    )
    done = command("list", path=[foreign, ROOT])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "another package named 'simulator' is loaded already" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wheel_runs_outside_the_repository(tmp_path, foreign):
    """Built, installed beside the dependencies of this environment, and run where others have packages of our names."""
    run = lambda *words, **options: subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path, ROOT]
    done = run(*build)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for package in ("simulator", "experiments"):
        files = [p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        names = {p.relative_to(ROOT).as_posix() for p in files} - {"experiments/launcher.py"}
        assert names <= packed
    assert "modality_gap_command.py" in packed  # experiments/launcher.py under a name that no other package has
    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # Dependencies from here; a .pth file in there, as of an editable installation, is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    gapsim = tmp_path / "venv" / "bin" / "gapsim"
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    for words in ("list", "verify C4 --quick", "run --quick", "figures", "report"):
        for path in (foreign, None) if words == "list" else (foreign,):
            variables = dict(PYTHONPATH=str(path)) if path else {}
            done = run(gapsim, *words.split(), cwd=foreign, env=environment | variables)
            assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith("open ")
    assert (foreign / "results" / "gap_emergence.png").stat().st_size > 5_000
