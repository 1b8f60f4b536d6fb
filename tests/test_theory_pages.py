"""The theory pages of the site hold every statement that the code cites, and name only functions that exist."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "theory").glob("*.md"))
CITED = sorted({
    label
    for folder in ("simulator", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    for sentence in re.findall(r"theory\.md[^.;\n]*", path.read_text(encoding="utf-8"))
    for label in re.findall(r"\b[CNP]\d+T?\b|section 0", sentence)
})  # fmt: skip


@pytest.mark.parametrize("label", CITED)
def test_each_statement_that_the_code_cites_has_a_target(label):
    targets = {t for page in PAGES for t in re.findall(r"^\(([\w-]+)\)=$", page.read_text(encoding="utf-8"), re.M)}
    assert "theory-" + label.lower().replace(" ", "-") in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_function_that_a_page_names_exists(page):
    for name in re.findall(r"\{py:\w+\}`~?([\w.]+)`", page.read_text(encoding="utf-8")):
        assert pkgutil.resolve_name(name) is not None  # raises for one that is not there
