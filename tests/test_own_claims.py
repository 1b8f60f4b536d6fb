"""Claims of one's own, in any folder: judged, drawn, listed and shown like the shipped ones, or refused in one line."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments import catalogue
from experiments.__main__ import main
from experiments.report import figures, pages, stories
from simulator.storage.identity import describe_config, require_identified
from simulator.storage.results import load_dataset, save_dataset

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "write-a-claim.md").read_text()
(NAMED, CODE), *_ = re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
STEM, ID = Path(NAMED).stem, "X1"
SHIPPED = catalogue.stems()


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr("simulator.training.devices.use_all_cores", lambda: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the claim of the page; the current folder is the one around it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{STEM}.py").write_text(CODE)
    return tmp_path / "mine"


@pytest.fixture
def refusal(capsys):
    """(words of a command) -> the one line that refuses it."""

    def said(*words):
        modules, path = set(sys.modules), list(sys.path)
        assert main(list(map(str, words))) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("gapsim: ")
        assert error.count("\n") == 1
        left = [
            name for name in set(sys.modules) - modules if "mine" in str(getattr(sys.modules[name], "__file__", ""))
        ]
        assert (left, sys.path) == ([], path)
        return error

    return said


def other(path: Path, claim_id: str, **changes: str) -> Path:
    """A claim file like that of the page, with another id and other words."""
    code = CODE.replace(f'"{ID}"', f'"{claim_id}"')
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    return path


def test_the_claim_of_the_page_is_short():
    assert len([line for line in CODE.splitlines() if line.strip() and not line.startswith("import")]) <= 20


def test_a_claim_anywhere_is_verified_drawn_listed_and_shown(folder, capsys):
    name = f"mine/{STEM}.py"
    assert main(["verify", name, "--quick", "--out", "kept", "--json", "ledger.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("every verdict is as expected")
    (row,) = json.loads(Path("ledger.json").read_text())
    assert (row["claim"], row["stem"], row["verdict"], row["control_rejected"]) == (ID, STEM, "holds", True)
    assert (
        row.keys()
        == catalogue.judge(
            "clean_invariance", load_dataset(Path(__file__).parents[1] / "figures" / "clean_invariance.nc"), 0.0
        )[0].keys()
    )
    kept = {suffix: Path("kept") / f"{STEM}.{suffix}" for suffix in ("nc", "png", "pdf")}
    drawn = {suffix: kept[suffix].read_bytes() for suffix in ("png", "pdf")}
    assert min(map(len, drawn.values())) > 5_000
    assert load_dataset(kept["nc"]).attrs["claim_file"] == str(folder / f"{STEM}.py")

    for suffix in drawn:
        kept[suffix].unlink()
    assert main(["figures", name, "--out", "kept"]) == 0
    assert drawn == {suffix: kept[suffix].read_bytes() for suffix in drawn}
    with catalogue.including(place=Path("mine")):
        assert figures.find((), Path("kept")) == [STEM]

    capsys.readouterr()
    assert main(["list", "--claims", "mine"]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == [*SHIPPED, STEM]

    assert main(["report", "--claims", "mine", "--results", "kept", "--out", "page"]) == 0
    html = Path("page", pages.PAGE).read_text(encoding="utf-8")
    section = html[html.index(f'<section class="entry claim" id="{ID}"') :].split("</section>")[0]
    assert "<svg" in section
    for words in (
        "What keeps pairs apart",
        f"gapsim verify {folder / STEM}.py",
        f"kept/{STEM}.pdf",
        "✓ rejected",
        "pairs = 100",
    ):
        assert words in section
    assert "edited since" not in section
    assert html.rindex('class="entry claim"') == html.index(f'class="entry claim" id="{ID}"')

    assert (catalogue.stems(), catalogue.own_files()) == (SHIPPED, ())
    assert main(["list"]) == 0
    assert STEM not in capsys.readouterr().out


def test_the_page_says_that_the_file_was_edited_since_it_was_measured(folder):
    """Also where a process of its own draws the section, which must be told of the claim."""
    with catalogue.including([f"mine/{STEM}.py"]):
        save_dataset(catalogue.run(STEM, quick=True, out=None)[0], Path("kept", f"{STEM}.nc"))
    for text, says in ((CODE + "\n# a word\n", True), (CODE, False)):
        (folder / f"{STEM}.py").write_text(text)
        with catalogue.including(place=folder):
            task = (catalogue.own_files(), pages.claim_section, STEM, Path("kept"))
        section = pages._call(task)
        assert ("edited since" in section["provenance"]["measured_by"]) == says
        assert section["rows"] and "<svg" in section["figure"]


def test_files_of_one_name_and_helpers_of_one_name_are_kept_apart(tmp_path, monkeypatch, capsys):
    """One after the other in one process: the second takes nothing of the first, nor of a helper that is loaded already."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("one", "two")):
        other(
            tmp_path / name / "simple.py", "my-law",
            **{"import xarray": "from _shared import OFFSET\nimport xarray", "y + np": "y + OFFSET + np"},
        )  # fmt: skip
        (tmp_path / name / "_shared.py").write_text(f"OFFSET = {100 * number}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "_shared.py").write_text("OFFSET = 7")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    here = __import__("_shared")
    gaps = []
    for name in ("one", "two"):
        with catalogue.including(place=Path(name)):
            gaps.append(catalogue.run("simple", quick=True, out=None)[0].gap_alone.values)
    assert gaps[0].max() < 10 < 9_000 < gaps[1].min()
    assert sys.modules["_shared"] is here
    assert here.OFFSET == 7
    assert main(["verify", "one/simple.py", "two/simple.py"]) == 2
    assert "both hold a module " in capsys.readouterr().err


def test_a_claim_has_a_module_of_its_own_while_it_is_judged(folder):
    import pickle

    other(folder / "second.py", "Second")
    with catalogue.including([str(folder / "second.py")], folder) as own:
        assert own == ("second", STEM)
        assert catalogue.find(("SECOND", ID.lower(), f"mine/{STEM}.py", "C5")) == ["second", STEM, "clean_invariance"]
        for stem in own:
            quick = catalogue.load(stem).QUICK
            assert pickle.loads(pickle.dumps(quick)) == quick
            assert type(quick) is sys.modules[type(quick).__module__].Config
            require_identified(
                describe_config(catalogue.load(stem).measure)
            )  # a store knows the user's code by its source
        assert type(catalogue.load("second").QUICK) is not type(catalogue.load(STEM).QUICK)
    assert not [name for name in sys.modules if name.startswith("claim_") and STEM in name]


def test_a_shipped_claim_may_be_named_by_its_file():
    for words in (dict(names=[catalogue.load("simplex").__file__]), dict(place=Path(catalogue.claims.__path__[0]))):
        with catalogue.including(**words) as own:
            assert own == ()
            assert catalogue.find(tuple(words.get("names", ["P8"]))) == ["simplex"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (("import numpy as np", "import numpi"), ["line 5, `import numpi`: ModuleNotFoundError: No module named 'numpi'; mend"]),
        (("pairs=100)", "pairs=100"), ["line 18, `QUICK = Config(pairs=100`: SyntaxError: '(' was never closed; mend"]),
        (("import numpy as np", "import _helper"), ["line 2 of ", "_helper.py, `1 / 0`: ZeroDivisionError: division by zero"]),
        (("QUICK = Config(", "raise SystemExit\nQUICK = Config("), ["line 18, `raise SystemExit`: SystemExit; mend"]),
        (('{"mean square": "holds"}', '("holds",)'), ["line 10, `CLAIM = sim.Claim(", "ValueError: Claim.expected of X1"]),
        (('"holds"}', '"Holds"}'), ["Claim.expected of X1 is 'Holds' for 'mean square'; it must be 'holds', 'holds if' or 'refuted'"]),
        (("import numpy as np", "import numpy as np\0"), ["cannot be imported: ", "null bytes"]),
        (("CLAIM =", "claim ="), ["has no CLAIM; a claim's file has CLAIM, Config, QUICK, measure, judge, draw"]),
        (("QUICK =", "FAST ="), ["has no QUICK; ", "a helper's name begins with _"]),
        (("def draw(", "def plot("), ["has no draw; "]),
        (("\n\n\n@dat", "\nCLAIM = dict()\n\n@dat"), ["CLAIM is of the type dict; write CLAIM = simulator.Claim("]),
        (('"X1"', '"my law"'), ["CLAIM.id is 'my law'; write letters"]),
        (("QUICK = Config(pairs=100)", "QUICK = dict()"), ["Config must be a frozen dataclass, and QUICK one of its"]),
        (("config, *, progress=False", "config"), ["measure cannot be called as measure(config, *, progress) ("]),
        (("int = 10_000", "int"), ["Config cannot be called as Config() (missing a required argument: 'pairs')"]),
        (('"X1"', '"c5"'), ["the shipped claim C5 (clean_invariance) has the name c5 already; give the CLAIM.id another"]),
        (('"X1"', '"Summary"'), ["the page or another figure has the name Summary already"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_claim_names_itself(folder, refusal, spoil, words):
    (folder / "_helper.py").write_text("# divides\n1 / 0\n")
    file = folder / f"{STEM}.py"
    assert CODE.count(spoil[0]) == 1
    file.write_text("# the first line, as on the page\n" + CODE.replace(*spoil))
    for arguments in ([f"mine/{STEM}.py"], ["--claims", "mine"]):
        error = refusal("verify", *arguments, "--out", "kept")
        for word in (f"mine/{STEM}.py", *words):
            assert word in error
    for command in ("list", "figures", "report"):
        assert words[0] in refusal(command, "--claims", "mine")
    assert not Path("kept").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine/gone.py"], "mine/gone.py does not exist; name the file of a claim"),
        (["--claims", "gone"], "gone does not exist; "),
        (["mine/"], "mine is a folder; to take the claims in it: --claims mine"),
        (["mine"], "there is no claim 'mine'; "),
        (["mine"], "for the claims in the folder of this name: --claims mine"),
        (["--claims", "empty"], "empty holds no claims; a claim is a file NAME.py in this folder, not below it"),
        (
            ["mine/my-law.py"],
            "mine/my-law.py cannot be the file of a claim, whose name is that of its results: rename it",
        ),
        (["mine/notes.txt"], "mine/notes.txt cannot be the file of a claim"),
        (
            ["mine/Simplex.py"],
            "mine/Simplex.py: the shipped claim P8 (simplex) has the name Simplex already; give the file",
        ),
        (["mine/performance.py"], "mine/performance.py: the page or another figure has the name performance already"),
        ([f"mine/{STEM}.py", f"also/{STEM}.py"], "both hold a module"),
        ([f"mine/{STEM}.py", "also/second.py"], f"also/second.py: mine/{STEM}.py has the name x1 already"),
    ],
)
def test_files_and_folders_that_cannot_be_meant(folder, refusal, arguments, words, request):
    for name in ("my-law.py", "notes.txt", "Simplex.py", "performance.py"):
        other(folder / name, "Y")
    (folder.parent / "empty" / "below").mkdir(parents=True)
    for name in ("_helper.py", "below/law.py", ".law.py"):
        (folder.parent / "empty" / name).write_text("")
    if "both" in words:
        other(folder.parent / "also" / f"{STEM}.py", "Z")
    else:
        other(folder.parent / "also" / "second.py", "x1")
    assert words in refusal("verify", *arguments)


def test_what_else_lies_beside_the_results_is_no_name_for_a_claim():
    anchors = re.findall(r' id="(\w+)"', Path(pages.__file__).with_name("report.html.jinja").read_text())
    taken = {*figures.OTHERS, *stories.STEMS, "story", Path(pages.PAGE).stem, *anchors} - {*SHIPPED}
    assert {*catalogue.OTHER_NAMES} == taken


def test_a_measurement_that_fails_fails_as_for_a_shipped_claim(folder):
    other(folder / f"{STEM}.py", ID, **{"    gap =": "    raise RuntimeError('mine')\n    gap ="})
    with pytest.raises(RuntimeError, match="mine"):
        main(["verify", f"mine/{STEM}.py", "--quick"])
    assert catalogue.stems() == SHIPPED
