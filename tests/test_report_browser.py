"""The report in a real browser: headless Chromium at the width of a phone and of a desk, and printed."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.report import pages
from tests.test_report import FIGURES, faults

pytestmark = pytest.mark.slow
WIDTHS = (360, 1280)  # CSS pixels
LEAST_SPREAD = 5.0  # standard deviation of an image's grey values, 0 to 255; an empty one has 0
# Runs in a copy of the page: everything that can be opened is, the layout is measured, and each picture is drawn on its own,
# to see whether anything is in it.
PROBE = """
<script>
addEventListener("load", async () => {
  document.querySelectorAll("details").forEach(part => part.open = true);
  const width = document.documentElement.clientWidth;
  const outside = [...document.body.querySelectorAll("*")].filter(part => !part.closest(".frame, thead") || part.matches(".frame"))
    .filter(part => part.getBoundingClientRect().right > width + .5).map(part => part.outerHTML.slice(0, 200));
  const images = [];
  for (const image of document.querySelectorAll("svg, img")) {
    const box = image.getBoundingClientRect(), copy = image.cloneNode(true);
    const found = {name: image.getAttribute("aria-label") || image.alt, width: box.width, height: box.height, spread: 0};
    images.push(found);
    let source = image.src;
    if (image.matches("svg")) {
      copy.setAttribute("width", 400); copy.setAttribute("height", 300);
      copy.removeAttribute("style");
      source = "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
    }
    const drawn = new Image();
    drawn.src = source;
    try { await drawn.decode(); } catch { continue; }
    const canvas = Object.assign(document.createElement("canvas"), {width: 400, height: 300}), pen = canvas.getContext("2d");
    pen.fillStyle = "white"; pen.fillRect(0, 0, 400, 300);
    pen.drawImage(drawn, 0, 0, 400, 300);
    const grey = pen.getImageData(0, 0, 400, 300).data.filter((_, i) => i % 4 == 1);
    const mean = grey.reduce((sum, v) => sum + v, 0) / grey.length;
    found.spread = Math.sqrt(grey.reduce((sum, v) => sum + (v - mean) ** 2, 0) / grey.length);
  }
  const text = Math.min(...[...document.querySelectorAll("p, li, td, th, dd, figcaption, code")].map(
    part => parseFloat(getComputedStyle(part).fontSize)));
  parent.postMessage({width, scroll: document.documentElement.scrollWidth, outside, images, text}, "*");
});
</script>
"""
# Uses the page as a reader does who comes by a link to C5; each line is one state of the page.
VISIT = """
<script>
addEventListener("load", async () => {
  const states = [], form = document.querySelector("form"), [words, verdict, all] = form.elements;
  const note = () => states.push([...document.querySelectorAll(".claim")].filter(part => part.getClientRects().length)
    .map(part => part.id + (part.querySelector("details").open ? "+" : "")).join(" "));
  const type = (field, value) => { field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
  note();
  all.click(); note();
  all.click(); note();
  type(words, "changes NO answer"); note();
  type(words, "no such words"); note();
  document.querySelector("a[href='#C5']").click();
  await new Promise(done => setTimeout(done, 100)); note();
  type(verdict, "refuted"); note();
  location.hash = "#summary";
  await new Promise(done => setTimeout(done, 100)); note();
  parent.postMessage({width: document.documentElement.clientWidth, states}, "*");
});
</script>
"""
# A window of Chromium is never narrower than 500 pixels, so the page lies in a frame of the width that is asked for.
FRAME = """<!doctype html><iframe src="page.html{fragment}" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>addEventListener("message", e => {{
  document.body.innerHTML = "<pre id=probe></pre>";
  document.getElementById("probe").textContent = JSON.stringify(e.data);
}});</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's package `chromium` to see the report in a real browser")
    return found


def run(browser: str, *arguments: str, folder: Path) -> str:
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def probe(browser: str, page: str, width: int, folder: Path, script: str = PROBE, fragment: str = "") -> dict:
    """What Chromium makes of a page at a width."""
    (folder / "page.html").write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width, fragment=fragment), encoding="utf-8")
    address = (folder / "frame.html").as_uri()
    shown = run(browser, "--virtual-time-budget=60000", "--dump-dom", address, folder=folder)
    answer = re.search(r'<pre id="probe">(.*?)</pre>', shown, re.DOTALL)
    assert answer is not None, shown[-2000:]
    found = json.loads(html.unescape(answer[1]))
    assert found["width"] == width
    return found


def shortcomings(found: dict) -> list[str]:
    """What is wrong with the layout: wider than the screen, pictures with nothing in them, text too small to read."""
    wrong = [f"outside: {part}" for part in found["outside"]]
    if found["scroll"] > found["width"]:
        wrong.append(f"overflow: {found['scroll']} pixels on a screen of {found['width']}")
    for image in found["images"]:
        if min(image["width"], image["height"]) < 100:
            wrong.append(f"no room: {image['name']}")
        if image["spread"] < LEAST_SPREAD:
            wrong.append(f"empty: {image['name']}")
    if found["text"] < 12:
        wrong.append(f"text of {found['text']} pixels")
    return wrong


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return pages.build(FIGURES, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_whole_page_fits_and_shows_its_figures(browser, page, width, tmp_path):
    assert faults(page) == []
    found = probe(browser, page, width, tmp_path)
    assert shortcomings(found) == []
    assert len(found["images"]) == page.count("<svg") >= 27


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("added", "words"),
    [
        ('<p style="min-width: 1400px">wide</p>', ["outside", "overflow"]),
        (f"<p style='overflow-wrap: normal'>{'unbreakable' * 40}</p>", ["overflow"]),
        ('<svg aria-label="blank" viewBox="0 0 9 9" style="width: 200px; height: 200px"></svg>', ["empty: blank"]),
        ('<svg aria-label="flat" viewBox="0 0 9 9" style="width: 20px"><path d="M0 0L9 9" stroke="red"/></svg>', ["no room: flat"]),
        ('<img alt="broken" src="data:image/png;base64,AAAA" style="width: 200px; height: 200px">', ["empty: broken"]),
        ('<p style="font-size: 7px">small</p>', ["text of 7 pixels"]),
    ],
)  # fmt: skip
def test_the_same_check_catches_what_would_not_show(browser, width, added, words, tmp_path):
    small = pages.render([pages.claim_section("clean_invariance", FIGURES)])
    assert shortcomings(probe(browser, small, width, tmp_path)) == []
    wrong = shortcomings(probe(browser, small.replace("</main>", f"{added}</main>"), width, tmp_path))
    for word in words:
        assert any(line.startswith(word) for line in wrong), (word, wrong)


@pytest.mark.parametrize(
    ("removed", "wrong"),
    [
        ("", []),
        ("follow();\n</script>", [0]),  # without what the script does, the states in which it is seen differ
        ("  for (const {fold} of entries) fold.open = open;", [1, 2, 3]),
        ("part.hidden =", [3, 4, 6]),
        ("form.reset(); filter();", [5, 6, 7]),
    ],
)
def test_claims_unfold_by_a_link_and_a_button_and_are_filtered_by_words_and_verdict(browser, removed, wrong, tmp_path):
    small = pages.render([pages.claim_section(stem, FIGURES) for stem in ("clean_invariance", "constant_gap")])
    assert removed in small
    small = small.replace("</main>", '<a href="#C5">C5</a></main>').replace(
        removed, "</script>" * removed.endswith(">")
    )
    states = probe(browser, small, WIDTHS[0], tmp_path, VISIT, "#C5")["states"]
    wanted = ["C5+ P11", "C5+ P11+", "C5 P11", "C5", "", "C5+ P11", "P11", "C5+ P11"]
    assert [i for i, (state, want) in enumerate(zip(states, wanted, strict=True)) if state != want] == wrong


def test_it_prints(browser, page, tmp_path):
    """Each claim begins a sheet of its own, and none is blank."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    target = tmp_path / "page.pdf"
    run(
        browser,
        "--no-pdf-header-footer",
        f"--print-to-pdf={target}",
        (tmp_path / "page.html").as_uri(),
        folder=tmp_path,
    )
    sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", target.read_bytes()))
    assert 27 <= sheets <= 4 * 27
