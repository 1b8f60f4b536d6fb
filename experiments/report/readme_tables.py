"""The pages that are written from the code: API.md from the docstrings, and README's tables from stored numbers.

`python -m experiments.report.readme_tables` writes both; `--ledger` also judges the README's example claim anew. Between two markers,
`<!-- NAME -->` and `<!-- /NAME -->`, the README belongs to this file; the rest is written by hand.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import simulator as sim
import simulator.theory
from experiments import catalogue
from experiments.bench import tables
from experiments.claims import gap_emergence
from experiments.report import animations, stories
from simulator.store import load_dataset

ROOT = Path(__file__).parents[2]
GROUPS = {
    "Training": ("Experiment", "train", "Run", "sweep", "load_sweep"),
    "Data": ("LatentPairs", "Digits", "sample", "simulator.data.Batch"),
    "Towers and their start": ("MLP", "Linear", "Table", "Cones"),
    "Losses": ("InfoNCE", "Sigmoid", "Learned", "info_nce", "sharded_info_nce", "sigmoid_loss", "gradient_flow"),
    "The gap": ("gap_vector", "measure_gap", "GapMeasures"),
    "Robustness": ("GaussianNoise", "Quantization", "measured_robustness", "Estimate", "exact_robustness"),
    "Closing the gap": (
        "GapCloser", "simulator.certificate.Certificate", "Index", "simulator.index.InnerProduct",
        "simulator.embeddings.load_embeddings",
    ),
    "Claims": ("Claim", "Check", "Row"),
}  # fmt: skip
SECTION = re.compile(r"^(Args|Attributes|Attributes \(after `fit`\)|Returns|Raises|Assumes|Error|Source):(.*)$")
ENTRY = re.compile(r"^([\w ,*]+?): (.*)$")
MARKUP = re.compile(r"\*|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!])")
STORY = "The story in one figure: two modalities on spheres, the gap, and closing it"
ANIMATION = "Two modalities on spheres while they are trained, at a small and a large temperature"
NUMBER = re.compile(r"(?<![\w.])([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?: ?± ?(\d[\d.]*(?:e[+-]?\d+)?))?")
EXAMPLE = "robustness_monotone"  # the claim whose ledger the README explains
INTRODUCTION = """\
# API

Written by `python -m experiments.report.readme_tables` from the docstrings; edit those. `import simulator as sim` gives every name
below that has no dots. `x` is the gallery modality (what is retrieved), `y` the query modality; row i of one pairs with
row i of the other. A temperature always divides; losses are in nats, angles in radians, times in units of the flow. `Rows` is
an array of JAX or NumPy. A source such as "theory.md N4" is a number in the list of statements that the project checks;
the formula and what it assumes stand in the docstring itself.
"""


def api_page() -> str:
    """The whole page: every public name by group, then the predictions by topic."""
    parts = [INTRODUCTION]
    parts += [f"[{title}](#{anchor(title)})" for title in (*GROUPS, "Predictions")]
    parts[1:] = [" · ".join(parts[1:]) + "\n"]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += [*_entry(name, _find(name)), ""]
    parts.append("## Predictions\n")
    parts.append(
        "`simulator.theory` never calls, differentiates or simulates what it predicts. Each docstring there gives the "
        "formula, what it assumes, its error and its source.\n"
    )
    for info in pkgutil.iter_modules(simulator.theory.__path__, "simulator.theory."):
        parts += [*_predictions(info.name), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def anchor(title: str) -> str:
    """GitHub's name of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module) if module else sim, attribute)


def _entry(name: str, value: Any) -> Iterator[str]:
    """A function or a class with its public methods."""
    yield f"### {name}\n"
    yield f"```python\n{signature(name.rpartition('.')[2], value)}\n```\n"
    yield docstring(value)
    if not inspect.isclass(value):
        return
    for method, raw in vars(value).items():
        found = getattr(value, method, None)
        is_field = dataclasses.is_dataclass(value) and method in {f.name for f in dataclasses.fields(value)}
        if method.startswith("_") or is_field or not inspect.getdoc(found) or isinstance(raw, type):
            continue
        if isinstance(raw, property):
            yield f"\n**`.{method}`**\n"
        elif callable(found):
            yield f"\n**`{signature('.' + method, found, short=True)}`**\n"
        else:
            continue
        yield docstring(raw if isinstance(raw, property) else found)


def _predictions(module_name: str) -> Iterator[str]:
    """A topic of the theory: what it is about, and its functions with their first sentences."""
    module = importlib.import_module(module_name)
    yield f"**`{module_name}`** — {_escape(_first_sentence(module))}\n"
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module_name
        if is_own and inspect.isfunction(value) and not name.startswith("_"):
            yield f"- `{name}`: {_escape(_first_sentence(value))}"


def _first_sentence(value: Any) -> str:
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!])(?<!et al\.)\s", text)[0]


def signature(name: str, value: Any, *, short: bool = False) -> str:
    """A call as one would write it: annotations as in the source, defaults without the machine's addresses."""
    found = inspect.signature(value)
    shown, is_keyword = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            shown.append("*")
        is_keyword = is_keyword or parameter.kind is parameter.KEYWORD_ONLY
        text = ("**" if parameter.kind is parameter.VAR_KEYWORD else "") + parameter.name
        if parameter.annotation is not parameter.empty and not short:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += (" = " if ":" in text else "=") + _default(parameter.default)
        shown.append(text)
    returned = found.return_annotation
    end = "" if returned in (found.empty, "None", None) or short else f" -> {_annotation(returned)}"
    line = f"{name}({', '.join(shown)}){end}"
    if short or len(line) <= 110:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){end}"


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__forward_arg__", None)
    return text or getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = []
        for field in dataclasses.fields(value):
            if field.init and getattr(value, field.name) != field.default:
                changed.append(f"{field.name}={getattr(value, field.name)!r}")
        return f"{type(value).__name__}({', '.join(changed)})"
    if callable(value):
        package = value.__module__.split(".")[0]
        return f"{'jnp' if package == 'jax' else package}.{value.__name__}"
    return repr(value)


def docstring(value: Any) -> str:
    """A docstring as Markdown: paragraphs, formulas as blocks, and sections of entries as lists."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in (inspect.getdoc(value) or "").split("\n"):
        if found := SECTION.match(line):
            blocks.append((found[1], [found[2].strip()] if found[2].strip() else []))
        else:
            blocks[-1][1].append(line)
    return "\n\n".join(_section(title, lines) for title, lines in blocks if any(lines))


def _section(title: str, lines: list[str]) -> str:
    if not title:
        return _paragraphs(lines)
    if lines and not lines[0].startswith(" ") and title in ("Assumes", "Error", "Source"):
        return f"**{title}:** {_escape(' '.join(' '.join(lines).split()))}"
    body = textwrap.dedent("\n".join(lines)).strip("\n").split("\n")
    entries: list[tuple[str, list[str]]] = []
    for line in body:
        found = ENTRY.match(line) if title != "Returns" else None
        if found:
            entries.append((found[1], [found[2]]))
        elif not entries:
            entries.append(("", [line]))
        else:
            entries[-1][1].append(line[2:] if line.startswith("  ") else line)
    if not entries[0][0]:
        return f"**{title}:** " + _paragraphs([line for _, lines in entries for line in lines])
    listed = []
    for names, text in entries:
        named = ", ".join(f"`{name}`" for name in names.split(", "))
        listed.append("- " + textwrap.indent(f"{named}: {_paragraphs(text, block=2)}", "  ").strip())
    return f"**{title}**\n\n" + "\n".join(listed)


def _paragraphs(lines: list[str], block: int = 4) -> str:
    """Prose joined and escaped; lines set in by `block` spaces or more as they are."""
    done: list[str] = []
    prose: list[str] = []
    formula: list[str] = []

    def flush():
        if prose:
            done.append(_escape(" ".join(" ".join(prose).split())))
            prose.clear()
        if formula:
            done.append("```text\n" + textwrap.dedent("\n".join(formula)).rstrip() + "\n```")
            formula.clear()

    for line in lines:
        is_formula = line.startswith(" " * block)
        if not line.strip() or (is_formula and prose) or (formula and not is_formula):
            flush()
        if line.strip():
            (formula if is_formula else prose).append(line)
    flush()
    return "\n\n".join(done)


def _escape(text: str) -> str:
    """Characters that Markdown would take for markup, outside of backticks."""
    parts = text.split("`")
    return "`".join(p if i % 2 else MARKUP.sub(r"\\\g<0>", p) for i, p in enumerate(parts))


def main(arguments: list[str]) -> None:
    """Write API.md and the README's tables."""
    (ROOT / "API.md").write_text(api_page())
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(), "main job", main_job_table())
    text = replaced(text, "main ledger", main_job_ledger())
    text = replaced(with_verdicts(text), "reasons", reasons())
    text = replaced(text, "bench", tables.markdown(load_dataset(ROOT / "figures" / "performance.nc")))
    text = replaced(text, "story", shown(stories, "story.png", STORY))
    text = replaced(text, "animation", shown(animations, "emergence.gif", ANIMATION))
    if "--ledger" in arguments:
        text = replaced(text, "ledger", ledger_excerpt())
    readme.write_text(text)


def between(text: str, name: str) -> str:
    """What stands between a pair of markers."""
    return text.split(f"<!-- {name} -->\n", 1)[1].split(f"<!-- /{name} -->", 1)[0].strip("\n")


def replaced(text: str, name: str, new: str) -> str:
    """The text with what stands between a pair of markers replaced."""
    before, rest = text.split(f"<!-- {name} -->\n", 1)
    after = rest.split(f"<!-- /{name} -->", 1)[1]
    return f"{before}<!-- {name} -->\n\n{new}\n\n<!-- /{name} -->{after}"


def main_job_table() -> str:
    """The table that `gapsim run` prints, from the stored numbers."""
    lines = gap_emergence.summary(load_dataset(ROOT / "figures" / "gap_emergence.nc"))
    header = gap_emergence.SUMMARY_HEADER
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def main_job_ledger() -> str:
    """The ledger that `gapsim run` prints, from the stored numbers, without the seconds."""
    rows = [row for stem in catalogue.MAIN_JOB for row in _stored_rows(stem)]
    lines, said = catalogue.ledger_table(rows).splitlines(), sum(map(catalogue.needs_reason, rows))
    table = [re.sub(r" +\S+$", "", line) for line in lines[: len(rows) + 1]]
    return "```text\n" + "\n".join(table) + "\n```\n\n```text\n" + _wrapped(lines[-said:]) + "\n```"


def agree(one: str, other: str) -> bool:
    """Whether two tables say the same: the same words and lines, and numbers that differ by what another machine may.

    A number with its error, 1.45±0.19, is compared within that error (the larger one), and errors within a factor 2; in
    the same line, a number without one is compared within the last error before it. Lines of a ledger, which print no
    errors but verdicts, are compared by their words.
    """
    lines, others = one.splitlines(), other.splitlines()
    return len(lines) == len(others) and all(map(_lines_agree, lines, others))


def _lines_agree(one: str, other: str) -> bool:
    if re.sub(r"[ -]+", " ", NUMBER.sub("#", one)) != re.sub(r"[ -]+", " ", NUMBER.sub("#", other)):
        return False
    error = None
    for left, right in zip(NUMBER.finditer(one), NUMBER.finditer(other), strict=True):
        values, errors = zip(
            *[(float(m[1].replace(",", "")), m[2] and float(m[2])) for m in (left, right)], strict=True
        )
        if (errors[0] is None) != (errors[1] is None):
            return False
        if errors[0] is not None:
            error = max(errors)
            if min(errors) < 0.5 * error - 0.0011:
                return False
        elif error is None and one.startswith("|") and values[0] != values[1]:
            return False  # a setting, not a measurement
        if error is not None and abs(values[0] - values[1]) > error:
            return False
    return True


def count_of_verdicts(name: str) -> str:
    """The verdicts of a claim's stored measurement: "3 hold, 1 hold if, 1 refuted"."""
    found = [row["verdict"] for row in _stored_rows(name)]
    words = {"holds": "hold", "holds if": "hold if", "refuted": "refuted"}
    return ", ".join(f"{found.count(verdict)} {word}" for verdict, word in words.items() if verdict in found)


def shown(module: ModuleType, file: str, words: str) -> str:
    """A picture with the caption of the module that draws it."""
    return f"![{words}](figures/{file})\n\n*{_escape(module.CAPTION)}*"


def _stored_rows(name: str) -> list[dict[str, Any]]:
    """The ledger of a claim from the stored numbers."""
    (stem,) = catalogue.find((name,))
    return catalogue.judge(stem, load_dataset(ROOT / "figures" / f"{stem}.nc"), 0.0)


def with_verdicts(text: str) -> str:
    """The README with the counts of verdicts in its table of claims."""
    line = re.compile(r"^(\| (\w+) \|.*\| `gapsim verify \2` \| [^|]* \|)[^|]*(\|[^|]*\|)$", re.MULTILINE)
    return line.sub(lambda found: f"{found[1]} {count_of_verdicts(found[2])} {found[3]}", text)


def reasons() -> str:
    """What the ledger says under its table of a row that holds under a condition and of one that is refuted."""
    lines = []
    for name, verdict in (("C5", "holds if"), ("P11", "refuted")):
        lines += [catalogue.reason(row) for row in _stored_rows(name) if row["verdict"] == verdict][:1]
    return "```text\n" + _wrapped(lines) + "\n```"


def _wrapped(lines: list[str]) -> str:
    return "\n\n".join(textwrap.fill(line, 112) for line in lines)


def ledger_excerpt() -> str:
    """The lines that `gapsim verify` prints for the example claim with small settings."""
    data, seconds = catalogue.run(EXAMPLE, quick=True, out=None)
    return f"```text\n{catalogue.ledger_table(catalogue.judge(EXAMPLE, data, seconds))}\n```"


if __name__ == "__main__":
    main(sys.argv[1:])
