"""What the README and the site print runs as it stands; their tables are those of the stored numbers."""

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
from experiments.commands import sweeping
from experiments.report import tables
from simulator.storage.results import load_dataset
from tests.processes import run_and_count

ROOT = Path(__file__).parents[1]
README, FIRST_HOUR, MAIN_JOB = (page.read_text() for page in (tables.README, tables.FIRST_HOUR, tables.MAIN_JOB))
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = "my_claims/sample_gap.py"
COMMANDS = [typing.get_args(part)[1].name for part in typing.get_args(Command)]
# Pages whose blocks are typed in order, each group in a folder of its own.
PAGES = {
    "first hour": ("README.md", "docs/first-hour.md", "docs/howto/own-embeddings.md"),
    "sweep": ("docs/howto/sweep.md", "docs/howto/cluster.md"),
    "results": ("docs/howto/results.md",),
    "claim": ("docs/howto/write-a-claim.md",),
}

# Line of a page -> what runs in its place.
SUBSTITUTES = {
    # Minutes, in an environment that it makes itself: that the target calls the command, and the command at its small settings.
    "make run": "make --dry-run run | grep 'gapsim run' && gapsim run --quick",
    # What runs this test.
    "make test": "make --dry-run test | grep pytest",
    # The environment that the tests already run in.
    "source .venv/bin/activate": "true",
    "pip install '.[slurm]'": "true",
    # There is no Slurm here: the same grid, store and locks with processes of this machine.
    "gapsim sweep grid.toml --store results/grid --workers 8 --executor slurm": "gapsim sweep grid.toml --store results/grid "
    "--workers 2 --executor local --cpus 1",
    # The same file in one process, with a smaller batch and fewer steps; tests/test_sharding.py has several processes.
    "srun --ntasks=64 --gpus-per-task=1 python train.py": 'sed -i \'s/initialize()/initialize("127.0.0.1:45873", 1, 0)/; '
    "s/65_536/64/; s/steps=1000/steps=3/' train.py && python train.py",
    # A minute each; the first hour's run of the claim, and the tests of the ledger and of the report, have them.
    "gapsim verify C4 --quick --out results": "true",
    "gapsim verify C4 --quick --json ledger.json": "true",
    "gapsim report": "true",
}


def code_blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every block of a page that is meant to be typed, in order."""
    return BLOCK.findall((ROOT / page).read_text())


def tutorial() -> str:
    """The file of the tutorial as printed."""
    (page,) = PAGES["claim"]
    return next(text for _, text in code_blocks(page) if text.startswith(f"# {TUTORIAL}\n"))


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
    (tmp_path / "figures").symlink_to(ROOT / "figures")
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
@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_every_block_runs_as_printed(place, pages):
    """In order, in one folder, as a reader would type them; later blocks use what earlier ones wrote. No line runs twice."""
    folder, run = place
    used = set()
    for language, text in [block for page in pages for block in code_blocks(page)]:
        named = re.match(r"# (\S+\.(?:py|toml))\n", text)
        if named:
            (folder / named[1]).parent.mkdir(exist_ok=True)
            (folder / named[1]).write_text(text)
        elif language == "python":
            done = run([sys.executable, "-c", text])
            assert done.returncode == 0, f"{text}\n{done.stderr}"
        else:
            for line in [line for line in commands(text) if line not in used]:
                used.add(line)
                done = run(["bash", "-c", SUBSTITUTES.get(line, line)])
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                if line == "gapsim verify C4 --quick":
                    shown = tables.between(FIRST_HOUR, "ledger").removeprefix("```text\n").removesuffix("```")
                    assert skeleton(done.stdout).startswith(skeleton(shown))
    if "results/S1" in str(used):
        assert (folder / "results" / "S1" / "sample_gap.png").stat().st_size > 5_000


def test_what_runs_in_place_of_a_line_stands_for_one_that_is_there():
    printed = {
        line for pages in PAGES.values() for page in pages for _, text in code_blocks(page) for line in commands(text)
    }
    assert set(SUBSTITUTES) <= printed
    assert {"gapsim verify C4 --quick", "gapsim verify S1 --claims my_claims --quick --out results/S1"} <= printed


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
    (folder / TUTORIAL).parent.mkdir()
    (folder / TUTORIAL).write_text(tutorial().replace(correct, wrong))
    done = run(["gapsim", "verify", TUTORIAL, "--quick"])
    assert done.returncode == 1, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("S1"))
    assert words in row


def test_the_readme_and_the_tutorial_are_short():
    assert len(README.splitlines()) <= 200
    assert len(tutorial().splitlines()) < 60


def test_the_first_hour_explains_its_ledger():
    header = re.split(r" {2,}", tables.between(FIRST_HOUR, "ledger").splitlines()[1].strip())
    section = FIRST_HOUR.split("<!-- /ledger -->", 1)[1].split("\n## ", 1)[0]
    assert len(header) >= 8
    for column in header:
        assert f"`{column}`" in section, f"the column {column!r} is not explained"


def test_the_tables_are_those_of_the_stored_numbers():
    wanted = "run `python -m experiments.report.tables`"
    assert tables.between(README, "claims") == tables.claims_table(), wanted
    # What depends on the machine that made the stored numbers.
    assert tables.agree(tables.between(MAIN_JOB, "main job"), tables.main_job_table()), wanted
    assert tables.agree(tables.between(MAIN_JOB, "main ledger"), tables.main_job_ledger()), wanted
    moved = float(load_dataset(ROOT / "figures" / "gap_closing.nc").moved_share.sel(kind="towers, K = 100"))
    assert f"{100 * moved:.1f} % of ‖g‖²" in " ".join(MAIN_JOB.split())


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
    assert tables.agree(LINE, other) == tables.agree(other, LINE) == same


def test_a_ledger_of_another_machine_agrees_in_its_words():
    line = "C1     gap_emergence  gap norm at τ = 0.05 [absolute]  0  {}  0.2  holds  yes"
    assert tables.agree(line.format("0.01642  0.01642"), line.format("0.0171   0.0171 "))
    assert not tables.agree(line.format("0.5  0.5"), line.format("0.5  0.5").replace("holds", "refuted"))


def test_every_line_that_the_main_job_prints_is_shown():
    data = load_dataset(ROOT / "figures" / "gap_emergence.nc")
    shown = tables.between(MAIN_JOB, "main job").splitlines()[2:]
    assert len(shown) == data.sizes["data"] * data.sizes["temperature"] * data.sizes["angle"] == 18
    ledger = tables.between(MAIN_JOB, "main ledger")
    for stem in catalogue.MAIN_JOB:
        expected = catalogue.load(stem).CLAIM.expected
        assert len(re.findall(rf"^\w+ +{stem} .*\byes$", ledger, re.MULTILINE)) == len(expected)


def claims_of(text: str) -> dict[str, list[str]]:
    """Cells of every line of a page's tables of claims, by id: page, sentence, verdict."""
    lines = re.findall(r"^\| \[([CNP]\d+T?)\]\((\S+)\) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    return {name: cells for name, *cells in lines}


def test_every_claim_has_its_line():
    stems = {catalogue.load(stem).CLAIM.id: stem for stem in catalogue.stems()}
    for page, folder in ((README, "docs/claims/"), (tables.CLAIMS.read_text(), "")):
        assert {name: cells[0] for name, cells in claims_of(page).items()} == {
            name: f"{folder}{stem}.md" for name, stem in stems.items()
        }
        assert list(claims_of(page)) == list(stems)


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("*Holds*, for *small* ones.", "holds"),
        ("*Holds if* a; that b is *refuted*.", "holds if, partly refuted"),
        ("*Holds* at once; c *if* d, e *if* f.", "holds, partly if"),
        ("*Refuted*: it does not.", "refuted"),
    ],
)
def test_verdicts_in_short(sentence, short):
    assert tables.in_short(sentence) == short


@pytest.mark.slow
@pytest.mark.parametrize("name", [catalogue.load(stem).CLAIM.id for stem in catalogue.stems()])
def test_verdicts_of_the_tables_are_those_of_the_stored_numbers(name):
    (stem,) = catalogue.find((name,))
    found = {row["verdict"] for row in tables.stored_rows(stem)}
    for page in (README, tables.CLAIMS.read_text()):
        words = claims_of(page)[name][-1]
        assert ("refuted" in found) == ("refuted" in words.lower()), f"{found}, but the table says {words!r}"
        assert ("holds if" in found) == bool(re.search(r"\bif\b", words)), f"{found}, but the table says {words!r}"
        assert found != {"holds"} or words.lower().startswith(("holds", "*holds*")), words


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(page for pages in PAGES.values() for page in pages[1:])]
)
def test_the_goals_of_make_exist(page):
    for goal in re.findall(r"\bmake ([a-z-]+)`?", " ".join(text for _, text in code_blocks(page))):
        assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: make {goal}"


def test_every_command_is_listed_with_an_example_that_parses():
    listed = re.findall(r"^\| `gapsim (\w+)` \|", FIRST_HOUR, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    for part in typing.get_args(Command):
        kind, settings = typing.get_args(part)
        example = re.search(r"^\s*Example: gapsim (.*)$", kind.__doc__, re.MULTILINE)
        assert example, f"{kind.__name__} has no example"
        words = shlex.split(example[1])
        words = sweeping.gather_changes(words) if words[0] == "sweep" else words
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
