"""The page of `gapsim report`: one file, whole, honest about what is missing or damaged, and safe to open."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import simulator as sim
from experiments import catalogue
from experiments.__main__ import main
from experiments.claims import clean_invariance
from experiments.report import disputes, pages
from experiments.report.inline_svg import draw_svg
from experiments.report.prose import set_number, set_text

FIGURES = Path(__file__).parents[1] / "figures"
MEASURED = ("clean_invariance", "constant_gap")  # quick to draw; every kind of verdict is among their checks
LARGEST = 3_000_000  # bytes


class _Page(HTMLParser):
    """Tags with their attributes, and the text outside <style> and <script>."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.styles, self.scripts, self._inside = "", "", [], ""
        self.feed(str(page))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "style":
            self.styles += data
        elif self._inside == "script":
            self.scripts.append(data)
        else:
            self.text += data


TEMPLATE = Path(pages.__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
(SCRIPT,) = _Page(TEMPLATE).scripts  # the only one that the page may hold


def faults(page: str) -> list[str]:
    """What keeps a page from standing alone: names used twice, links to nothing, scripts but its own, what it would have to
    fetch, figures without a name, and its size."""
    read = _Page(page)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    found = [f"id {name} twice" for name in set(ids) if ids.count(name) > 1]
    for tag, attributes in read.tags:
        found += [f"script {tag} {name}" for name in attributes if name.startswith("on")]
        if tag in ("iframe", "object", "embed"):
            found.append(f"frame: {tag}")
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            target = attributes.get(name)
            if target is None or target.startswith("data:"):
                continue
            if target.startswith("#"):
                found += [] if target[1:] in ids else [f"link to nothing: {target}"]
            elif not (tag == "a" and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", target)):
                found.append(f"fetches {target}")
        for target in re.findall(r"url\(([^)]*)\)", " ".join(attributes.values())):
            found += [] if target[1:] in ids else [f"link to nothing: {target}"]
        if tag in ("svg", "img") and not (attributes.get("aria-label") or attributes.get("alt")):
            found.append(f"{tag} without a name")
    found += [f"script: {script}" for script in read.scripts if script != SCRIPT]
    found += [f"fetches {word}" for word in re.findall(r"@import|url\((?!data:|#)", read.styles)]
    if len(page.encode()) >= LARGEST:
        found.append("too large")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("results")
    for stem in MEASURED:
        shutil.copy(FIGURES / f"{stem}.nc", folder)
    assert main(["report", "--results", str(folder), "--out", str(folder / "page")]) == 0
    return (folder / "page" / "index.html").read_text(encoding="utf-8")


def test_the_page_stands_alone(page):
    assert faults(page) == []
    assert page.count("<svg") == len(MEASURED)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("</main>", '<p id="C5"></p></main>', "id C5 twice"),
        ("</main>", '<a href="#C99">C99</a></main>', "link to nothing: #C99"),
        ("</main>", "<script>alert(1)</script></main>", "script: alert(1)"),
        ("</main>", '<script src="a.js"></script></main>', "fetches a.js"),
        ("</main>", "<iframe></iframe></main>", "frame: iframe"),
        ("</main>", '<p onclick="alert(1)"></p></main>', "script p onclick"),
        ("</main>", '<img alt="a" src="https://example.org/a.png"></main>', "fetches https://example.org/a.png"),
        ("</main>", '<img alt="a" src="a.png"></main>', "fetches a.png"),
        ("</main>", '<a href="compression.pdf">a file beside</a></main>', "fetches compression.pdf"),
        ("<style>", "<style>@import 'a.css';", "fetches @import"),
        ("<style>", "<style>p { background: url(a.png) }", "fetches url("),
        ("</main>", "<svg></svg></main>", "svg without a name"),
        ("</main>", f"{'x' * LARGEST}</main>", "too large"),
    ],
)
def test_the_check_catches_what_would_not_stand_alone(page, old, new, fault):
    assert fault in faults(page.replace(old, new, 1))


def test_the_browser_is_told_to_fetch_nothing_and_the_script_does_not_ask(page):
    (policy,) = (at["content"] for tag, at in _Page(page).tags if at.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy + SCRIPT
    assert not re.search(r"fetch|XMLHttpRequest|import|innerHTML", SCRIPT)


def test_every_claim_is_folded_under_a_sentence_and_its_verdicts(page):
    for stem in catalogue.stems():
        claim = catalogue.load(stem).CLAIM
        section = page[page.index(f'id="{claim.id}"') :].split("</section>")[0]
        assert section.split("<details", 1)[1].startswith(">")  # closed
        folded = section[: section.index("</summary>")]
        shown = " ".join(_Page(folded).text.split())
        assert set_text(claim.summary) in folded
        assert claim.summary.endswith((".", ".”"))
        assert len(claim.summary.split()) <= 20
        assert "<a " not in folded  # a link inside what a click unfolds cannot be followed
        rows = catalogue.judge(stem, _stored(stem), 0.0) if stem in MEASURED else []
        conditional = sum(row["verdict"] == "holds if" for row in rows)
        assert (f"{conditional} check" in shown) == (conditional > 0)
        assert shown.count("Refuted: ") == sum(row["verdict"] == "refuted" for row in rows)


def test_every_claim_has_its_section_with_all_that_was_promised(page):
    text = " ".join(_Page(page).text.split())
    for stem in catalogue.stems():
        claim = catalogue.load(stem).CLAIM
        section = page[page.index(f'<section class="entry claim" id="{claim.id}"') :].split("</section>")[0]
        shown = " ".join(_Page(section).text.split())
        for words in (f"{claim.id} · {claim.title}", f"gapsim verify {claim.id}"):
            assert words in shown
        for path in (f"experiments/claims/{stem}.py", f"figures/{stem}.pdf", f"tests/theorems/test_{stem}.py"):
            assert path in shown
            assert (FIGURES.parent / path).exists()
        assert ("<svg" in section) == (stem in MEASURED)
        assert ("Not measured yet" in shown) == (stem not in MEASURED)
        for name in ("Commit", "Versions", "Precision", "Configuration", "✓ rejected", "Predicted"):
            assert (name in shown) == (stem in MEASURED), (stem, name)
    rows = [row for stem in MEASURED for row in catalogue.judge(stem, _stored(stem), 0.0)]
    for verdict, shape in pages.VERDICTS.items():
        number = sum(row["verdict"] == verdict for row in rows)
        assert number > 0
        assert text.count(f"{shape} {verdict}") >= number  # in words and in shape, whatever the colour
    assert f"{len(rows)} checks" in text
    assert "controls are rejected" in text
    assert "NOT" not in text.split("The claims, one by one")[0].replace("NOT measured", "")


def _stored(stem):
    from simulator.storage.results import load_dataset

    return load_dataset(FIGURES / f"{stem}.nc")


def test_a_verdict_that_was_not_expected_and_a_control_that_passes_are_said_at_the_top():
    section = pages.claim_section("clean_invariance", FIGURES)
    section["rows"][0] |= dict(verdict="refuted", good=False)
    section["rows"][1] |= dict(control_rejected=False, good=False)
    top, rest = pages.render([section]).split('id="claims"')
    assert "1 controls NOT rejected" in _Page(top).text.replace("\xa0", " ")
    assert "2 checks are NOT as expected" in _Page(top).text.replace("\xa0", " ")
    assert "expected: holds" in rest
    assert "NOT rejected" in rest


def test_what_claims_say_is_escaped(monkeypatch):
    bad = '<script>alert("1")</script> & <img src=x onerror=alert(1)> x_k'
    claim = clean_invariance.CLAIM
    changed = {f.name: bad for f in dataclasses.fields(claim) if f.name not in ("id", "expected")}
    monkeypatch.setattr(clean_invariance, "CLAIM", dataclasses.replace(claim, **changed))
    monkeypatch.setattr(clean_invariance, "CAPTION", bad)
    page = pages.render([pages.claim_section("clean_invariance", FIGURES)])
    assert faults(page) == []
    assert "<img" not in page
    assert (
        page.count("&lt;script&gt;") == 7
    )  # title, summary, statement, source, assumption, caption and the figure's name
    assert page.count("x<sub>k</sub>") == 5  # the title is plain


def _cut(path: Path):
    path.write_bytes(path.read_bytes()[:3000])


def _other_results(path: Path):
    shutil.copy(FIGURES / "constant_gap.nc", path)


@pytest.mark.parametrize("spoil", [_cut, lambda path: path.write_text("no netCDF"), _other_results])
def test_a_damaged_result_is_named_with_the_command_that_mends_it(spoil, tmp_path, capsys):
    shutil.copy(FIGURES / "clean_invariance.nc", tmp_path)
    spoil(tmp_path / "clean_invariance.nc")
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'clean_invariance.nc'} cannot be read, judged and drawn" in error
    assert f"gapsim verify C5 --out {tmp_path}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index.html").exists()


def test_no_results_or_nowhere_to_write(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "holds no stored results" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["report", "--results", str(FIGURES), "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_run_names_the_page_to_open(tmp_path, monkeypatch, capsys):
    for stem in ("gap_emergence", "robustness_monotone", "clean_invariance"):
        shutil.copy(FIGURES / f"{stem}.nc", tmp_path)
    monkeypatch.setattr("simulator.training.devices.use_all_cores", lambda: None)
    monkeypatch.setattr(catalogue, "run", lambda stem, **_: (_stored(stem), 0.0))
    assert main(["run", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == f"open {tmp_path / 'index.html'}"
    assert faults((tmp_path / "index.html").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("x_k and e^{−C}", "x<sub>k</sub> and e<sup>−C</sup>"),
        ("h ∝ s^(−1/κ), 2Gβ_i", "h ∝ s<sup>−1/κ</sup>, 2Gβ<sub>i</sub>"),
        ("w^-3/2, 1e-05, 3e4", "w<sup>−3/2</sup>, 10<sup>−5</sup>, 3 × 10<sup>4</sup>"),
        ("e^{x_k}, e^{1e-2}", "e<sup>x<sub>k</sub></sup>, e<sup>10<sup>−2</sup></sup>"),
        ("Fig. 2b, ViT-B/32, C2T", "Fig. 2b, ViT-B/32, C2T"),
        ("as N2 (not N3)", 'as <a href="#N2">N2</a> (not N3)'),
        ("(arXiv 2203.02053)", '(<a href="https://arxiv.org/abs/2203.02053">arXiv 2203.02053</a>)'),
        ("Chowers et al. 2026", '<a href="https://arxiv.org/abs/2603.29080">Chowers et al. 2026</a>'),
        ("`gapsim run`; simulator/theory/gap_law.py.", "<code>gapsim run</code>; simulator/theory/gap_law.py."),
        ("a < b & c, `x < y`", "a &lt; b &amp; c, <code>x &lt; y</code>"),
    ],
)
def test_formulas_are_set(text, html):
    assert set_text(text, {"N2"}) == html


@pytest.mark.parametrize("stem", catalogue.stems())
def test_setting_loses_no_letter_of_a_claim(stem):
    module = catalogue.load(stem)
    claim = module.CLAIM
    for text in (claim.statement, claim.source, claim.assumes, module.CAPTION):
        shown = _Page(set_text(text, {"N2"})).text
        plain = lambda words: re.sub(r"[\W_]+", "", re.sub(r"\b1e-0*(\d)", r"10\1", words))
        assert plain(shown) == plain(text)
        assert not re.search(r"[\w)]_\{|\^[{(\w−]", shown), shown
        assert text.count("'") == shown.count("'")


@pytest.mark.parametrize(
    ("value", "html"),
    [
        (0.0, "0"),
        (1.00045, "1.0005"),
        (-0.25, "−0.25"),
        (20639.0, "20,639"),
        (396.3, "396.3"),
        (2.2034e-15, "2.2034 × 10<sup>−15</sup>"),
        (-3e8, "−3 × 10<sup>8</sup>"),
        (1e-5, "10<sup>−5</sup>"),
        (None, "∞"),
    ],
)
def test_numbers_are_set(value, html):
    assert set_number(value, 5) == html


def test_a_large_number_with_few_digits_is_whole():
    assert set_number(396.3, 2) == "396"


def test_figures_keep_their_marks_and_lose_their_weight():
    import matplotlib.pyplot as plt

    def draw(count):
        figure, axis = plt.subplots()
        axis.plot(np.arange(5), marker="o", label="measured")
        axis.scatter(*np.random.default_rng(0).normal(size=(2, count)))
        axis.set(xlabel="r = G$_0^2$/t", title="a < b")
        axis.legend(loc="upper left")
        return figure

    few, again, many = draw_svg(draw, 50, "A", "t"), draw_svg(draw, 50, "A", "t"), draw_svg(draw, 20_000, "B", "t")
    assert few == again  # the same numbers give the same bytes
    assert few.count("<use") >= 55
    assert "<image" not in few
    assert many.count("<image") == 1  # thousands of points become an image
    assert len(many) < 400_000
    for name in re.findall(r' id="([^"]+)"', few):
        assert name.startswith("A-")
        assert f"#{name}" in few
    assert not re.search(r"\d\.\d{3,}[ \"L]", re.sub(r'transform="[^"]*"', "", few))
    assert "measured</text>" in few
    assert "a &lt; b</text>" in few
    letters = re.findall(r'<tspan x="([^"]+)" y="[^"]+" class="[^"]+">([^<]+)<', few)
    assert "r\xa0=\xa0G/t" in {text for _, text in letters}  # searched and read as one, and each letter in its place
    assert all(len(places.split()) == len(text) for places, text in letters)
    assert faults(few + many) == []


def test_what_is_measured_beside_the_claims():
    page = pages.render([], more=[pages.extra_section("real_embeddings", FIGURES)])
    assert faults(page) == []
    assert "Closing the gap of real embeddings" in page


def test_disputes_are_answered_from_what_they_rest_on(tmp_path, monkeypatch):
    def draw(folder):
        assert folder == tmp_path
        return clean_invariance.draw(_stored("clean_invariance"))

    about = dict(name="cost", question="Does closing cost x_k?", claims=("C5",), caption="c", draw=draw)
    answered = SimpleNamespace(**about, stems=("clean_invariance",), answer=lambda folder: "No: 0 < 1 decisions.")
    waiting = SimpleNamespace(**about | dict(name="open"), stems=("clean_invariance", "simplex"), answer=None)
    monkeypatch.setattr(disputes, "DISPUTES", (answered, waiting))
    shutil.copy(FIGURES / "clean_invariance.nc", tmp_path)
    sections = [pages.dispute_section(name, tmp_path) for name in ("cost", "open")]
    page = pages.render([pages.claim_section("clean_invariance", tmp_path)], sections, [])
    assert faults(page) == []
    assert page.count("<svg") == 2
    assert "No: 0 &lt; 1 decisions." in page
    assert page.count("closing cost x<sub>k</sub>?") == 2
    assert page.count('<span class="plain">No.</span>') == 1
    assert "no results of <code>simplex</code> are stored" in page
