"""What the README prints runs as it stands; its tables and the API's page are those of the code and of the stored numbers."""

import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import tyro

from experiments import catalogue
from experiments.__main__ import Command
from experiments.bench import tables
from experiments.report import readme_tables
from simulator.store import load_dataset
from tests.processes import run_and_count

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = "experiments/claims/sample_gap.py"
COMMANDS = [typing.get_args(part)[1].name for part in typing.get_args(Command)]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "API.md")

# Command of the README -> what runs in its place.
SUBSTITUTES = {
    # Minutes, in an environment that it makes itself: that the target calls the command, and the command at its small settings.
    "make run": "make --dry-run run | grep 'gapsim run' && gapsim run --quick",
    # What runs this test.
    "make test": "make --dry-run test | grep pytest",
    # The environment that the tests already run in.
    "source .venv/bin/activate": "true",
    # There is no Slurm here: the same grid, store and locks with processes of this machine.
    "gapsim sweep grid.toml --store results/grid --workers 8 --executor slurm": "gapsim sweep grid.toml --store results/grid "
    "--workers 2 --executor local --cpus 1",
    # The same file in one process, with a smaller batch and fewer steps; tests/test_sharding.py has several processes.
    "srun --ntasks=64 --gpus-per-task=1 python train.py": 'sed -i \'s/initialize()/initialize("127.0.0.1:45873", 1, 0)/; '
    "s/65_536/64/; s/steps=1000/steps=3/' train.py && python train.py",
}


def code_blocks() -> list[tuple[str, str]]:
    """(language, text) of every block of the README that is meant to be typed, in order."""
    return BLOCK.findall(README)


def tutorial() -> str:
    """The file of the tutorial as printed."""
    return next(text for _, text in code_blocks() if text.startswith(f"# {TUTORIAL}\n"))


def commands(block: str) -> list[str]:
    """The lines of a bash block without their comments."""
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in block.splitlines()) if line]


@pytest.fixture
def place(tmp_path):
    """A copy of the project to work in, and (words, shell) -> the finished process."""
    for name in ("simulator", "experiments", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "gapsim"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m experiments "$@"\n')
    shim.chmod(0o755)
    path = os.pathsep.join([str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | dict(PATH=path, PYTHONPATH=str(tmp_path), MPLBACKEND="Agg")
    environment.pop("XLA_FLAGS", None)  # those of the tests are not a user's

    def run(words, **options):
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)

    return tmp_path, run


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_block_runs_as_printed(place):
    """In order, in one folder, as a reader would type them; later blocks use what earlier ones wrote."""
    folder, run = place
    used = set()
    for language, text in code_blocks():
        named = re.match(r"# (\S+\.(?:py|toml))\n", text)
        if named:
            (folder / named[1]).write_text(text)
        elif language == "python":
            done = run([sys.executable, "-c", text])
            assert done.returncode == 0, f"{text}\n{done.stderr}"
        else:
            for line in commands(text):
                used.add(line)
                done = run(["bash", "-c", SUBSTITUTES.get(line, line)])
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                if line == "gapsim verify C4 --quick":
                    assert skeleton(done.stdout).startswith(
                        skeleton(readme_tables.between(README, "ledger").removeprefix("```text\n").removesuffix("```"))
                    )
    assert set(SUBSTITUTES) <= used, "a substitute for what the README no longer says"
    assert (folder / "results" / "S1" / "sample_gap.png").stat().st_size > 5_000


def skeleton(ledger: str) -> str:
    """A ledger without its numbers, which differ a little between machines."""
    lines = [re.sub(r"(?<![\w.])-?(?:\d[\d.]*(?:e[+-]?\d+)?|inf|nan)\b", "#", line) for line in ledger.splitlines()]
    return "\n".join(re.sub(r" +", " ", line).strip() for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correct", "wrong", "words"),
    [
        ("check(data.independent)", "check(data.predicted)", "NO"),
        ("check(data.predicted),", "check(data.independent),", "refuted (expected holds)"),
    ],
    ids=["a control that is no near miss", "a wrong prediction"],
)
def test_the_tutorial_notices(place, correct, wrong, words):
    folder, run = place
    assert tutorial().count(correct) == 1
    (folder / TUTORIAL).write_text(tutorial().replace(correct, wrong))
    done = run(["gapsim", "verify", "S1", "--quick"])
    assert done.returncode == 1, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("S1"))
    assert words in row


def test_the_tutorial_is_short_and_explains_its_ledger():
    assert len(tutorial().splitlines()) < 60
    header = re.split(r" {2,}", readme_tables.between(README, "ledger").splitlines()[1].strip())
    section = README.split("### 2 Read", 1)[1].split("### 3 ", 1)[0]
    assert len(header) >= 8
    for column in header:
        assert column == "claim" or f"`{column}`" in section, f"the column {column!r} is not explained"


def test_the_pages_are_those_of_the_code():
    wanted = "run `python -m experiments.report.readme_tables`"
    assert (ROOT / "API.md").read_text() == readme_tables.api_page(), wanted
    # What depends on the machine that made the stored numbers.
    assert readme_tables.agree(readme_tables.between(README, "main job"), readme_tables.main_job_table()), wanted
    assert readme_tables.agree(readme_tables.between(README, "main ledger"), readme_tables.main_job_ledger()), wanted
    assert readme_tables.between(README, "story") == readme_tables.shown(
        readme_tables.stories, "story.png", readme_tables.STORY
    ), wanted
    assert readme_tables.between(README, "animation") == readme_tables.shown(
        readme_tables.animations, "emergence.gif", readme_tables.ANIMATION
    ), wanted
    assert readme_tables.between(README, "reasons") == readme_tables.reasons(), wanted
    assert readme_tables.between(README, "bench") == tables.markdown(
        load_dataset(ROOT / "figures" / "performance.nc")
    ), wanted
    assert {name for names in readme_tables.GROUPS.values() for name in names if "." not in name} == set(
        readme_tables.sim.__all__
    )
    moved = float(load_dataset(ROOT / "figures" / "gap_closing.nc").moved_share.sel(kind="towers, K = 100"))
    assert f"{100 * moved:.1f} % of ‖g‖²" in " ".join(README.split())


LINE = "| digits | 0.05 | 90° | 1.450±0.194 | 0.781±0.012 | 0.722 | agrees |"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("| digits | 0.05 | 90° | 1.448±0.192 | 0.779±0.011 | 0.725 | agrees |", True),
        ("| digits | 0.05 | 90° | 1.650±0.194 | 0.781±0.012 | 0.722 | agrees |", False),
        ("| digits | 0.05 | 90° | 1.450±0.080 | 0.781±0.012 | 0.722 | agrees |", False),
        ("| digits | 0.05 | 90° | 1.450±0.194 | 0.781±0.012 | 0.742 | agrees |", False),
        ("| digits | 0.05 | 90° | 1.450 | 0.781±0.012 | 0.722 | agrees |", False),
        ("| digits | 0.02 | 90° | 1.450±0.194 | 0.781±0.012 | 0.722 | agrees |", False),
        ("| digits | 0.05 | 90° | 1.450±0.194 | 0.781±0.012 | 0.722 | off by 5.0 SE |", False),
        (f"{LINE}\n{LINE}", False),
    ],
)
def test_a_table_of_another_machine_agrees_within_its_errors(other, same):
    assert readme_tables.agree(LINE, other) == readme_tables.agree(other, LINE) == same


def test_a_ledger_of_another_machine_agrees_in_its_words():
    line = "C1     gap_emergence  gap norm at τ = 0.05 [absolute]  0  {}  0.2  holds  yes"
    assert readme_tables.agree(line.format("0.01642  0.01642"), line.format("0.0171   0.0171 "))
    assert not readme_tables.agree(line.format("0.5  0.5"), line.format("0.5  0.5").replace("holds", "refuted"))


def test_every_line_that_the_main_job_prints_is_shown():
    data = load_dataset(ROOT / "figures" / "gap_emergence.nc")
    shown = readme_tables.between(README, "main job").splitlines()[2:]
    assert len(shown) == data.sizes["data"] * data.sizes["temperature"] * data.sizes["angle"] == 18
    ledger = readme_tables.between(README, "main ledger")
    for stem in catalogue.MAIN_JOB:
        expected = catalogue.load(stem).CLAIM.expected
        assert len(re.findall(rf"^\w+ +{stem} .*\byes$", ledger, re.MULTILINE)) == len(expected)


def claims_table() -> dict[str, list[str]]:
    """Cells of every line of the README's table of claims, by id."""
    lines = README.split("| claim | statement |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {cells[0]: cells for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


def test_every_claim_has_its_line():
    table, stems = claims_table(), {catalogue.load(stem).CLAIM.id: stem for stem in catalogue.stems()}
    assert list(table) == list(stems)
    for name, (_, _, command, figure, *_) in table.items():
        assert command == f"`gapsim verify {name}`"
        assert figure == f"[{stems[name]}](figures/{stems[name]}.png)"


@pytest.mark.slow
@pytest.mark.parametrize("name", [catalogue.load(stem).CLAIM.id for stem in catalogue.stems()])
def test_verdicts_of_the_table_are_those_of_the_stored_numbers(name):
    *_, rows, words = claims_table()[name]
    assert rows == readme_tables.count_of_verdicts(name), "run `python -m experiments.report.readme_tables`"
    found = set(re.findall(r"refuted|hold if|hold", rows))
    assert ("refuted" in found) == ("refuted" in words), f"{rows}, but the table says {words!r}"
    assert "hold if" not in found or re.search(r"\b(if|only|unless)\b", words), (
        f"{rows}, but the table names no condition"
    )
    assert found != {"hold"} or words.startswith("holds"), f"{rows}, but the table says {words!r}"


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = ROOT / (name or page)
        assert path.exists(), f"{page}: {target}"
        if anchor:
            body = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
            headings = re.findall(r"^#+ (.*)$", body, re.MULTILINE)
            assert anchor in [readme_tables.anchor(heading) for heading in headings], f"{page}: {target}"
    for goal in re.findall(r"\bmake ([a-z-]+)`?", " ".join(t for _, t in BLOCK.findall((ROOT / page).read_text()))):
        assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: make {goal}"


def test_every_command_is_listed_with_an_example_that_parses():
    listed = re.findall(r"^\| `gapsim (\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    for part in typing.get_args(Command):
        kind, settings = typing.get_args(part)
        example = re.search(r"^\s*Example: gapsim (.*)$", kind.__doc__, re.MULTILINE)
        assert example, f"{kind.__name__} has no example"
        from experiments.__main__ import _gather_changes

        words = shlex.split(example[1])
        words = _gather_changes(words) if words[0] == "sweep" else words
        assert words[0] == settings.name
        assert isinstance(tyro.cli(Command, args=words), kind)


@pytest.mark.slow
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_answers_at_once(command):
    words = [sys.executable, "-m", "experiments", *([command] if command else []), "--help"]
    seconds = []
    for _ in range(3):
        done, used = run_and_count(words, cwd=ROOT)
        seconds.append(used)
        assert done.returncode == 0 and "Example:" in done.stdout
    assert statistics.median(seconds) < 1.5, seconds
