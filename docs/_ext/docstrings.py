"""Docstrings of this project as reStructuredText: prose is taken as it is, formulas stay in blocks, sources are links."""

import re
from pathlib import Path

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Assumes|Error|Source)(?: \(after `fit`\))?:(?: +(.*))?$")
ENTRY = re.compile(r"^( +[\w, ]+: )(.*)$")  # "  gallery, queries: [K, d]."
EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=[A-Z])([^*]+)\1(?![\w*])")  # **Theorem.**, *Proof.*
ITEM = re.compile(r"^(?:\d+\.|-) +")
SPECIAL = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")
CITED = re.compile(r"theory\.md (?=[CNP]\d)((?:[CNP]\d+T?(?:–|, | and )?)+)")
STATEMENT = re.compile(r"[CNP]\d+T?")
ADDRESS = re.compile(r"<(?:function|class|built-in function|PjitFunction of <function) '?([\w.<>]+?)'?(?: at 0x\w+)?>+")


def theory_targets(folder: Path) -> set[str]:
    """Statements that have a derivation: {"N4", …}, from the targets `(theory-n4)=` of the theory pages."""
    pages = sorted((folder / "theory").glob("*.md"))
    found = {name for page in pages for name in re.findall(r"^\(theory-([\w-]+)\)=$", page.read_text(), re.MULTILINE)}
    return {name.upper() for name in found}


def linked(text: str, targets: set[str]) -> str:
    """ "theory.md N4, N6" with a link for each statement that has a derivation."""

    def link(statement):
        name = statement[0]
        return f":ref:`{name} <theory-{name.lower()}>`" if name in targets else name

    text = CITED.sub(lambda cited: "theory " + STATEMENT.sub(link, cited[1]), text)
    return (
        text.replace("theory.md, section 0", ":ref:`notation <theory-section-0>`") if "SECTION-0" in targets else text
    )


def escaped(text: str, targets: set[str]) -> str:
    """One line of prose: characters that are markup elsewhere are text here, and what stands in backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = ["`".join(parts)]
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part}``"
            continue
        pieces, last = [], 0
        for found in EMPHASIS.finditer(part):
            pieces += [SPECIAL.sub(r"\\\g<0>", part[last : found.start()]), found[1], found[2], found[1]]
            last = found.end()
        parts[i] = linked("".join([*pieces, SPECIAL.sub(r"\\\g<0>", part[last:])]), targets)
    for i in range(1, len(parts), 2):  # code begins and ends at a space; one that is escaped shows nothing
        parts[i - 1] += "\\ " if parts[i - 1][-1:].isalnum() else ""
        parts[i + 1] = ("\\ " if parts[i + 1][:1].isalnum() else "") + parts[i + 1]
    return "".join(parts)


def as_rst(lines: list[str], targets: set[str]) -> list[str]:
    """A docstring that napoleon and docutils read as it is meant."""
    done, base, hanging, block, in_example = [], 0, 0, [], False

    def flush():
        if block:
            indent = min(len(line) - len(line.lstrip()) for line in block)
            room = " " * (base + 2 if base else hanging)
            done.extend(["", f"{room}::", "", *(f"{room}    {line[indent:]}" for line in block), ""])
            block.clear()

    for line in lines:
        indent = len(line) - len(line.lstrip())
        section = SECTION.match(line)
        if line == "Example:" or (in_example and (indent or not line)):
            flush()
            done += ["", line] if line == "Example:" else [line]
            in_example = True
            continue
        in_example = False
        if line.strip() and indent >= base + hanging + 4:
            block.append(line)
            continue
        if line.strip() or not block:
            flush()
        item = None if base else ITEM.match(line)
        if item and not hanging and done and done[-1].strip():
            done.append("")  # a list begins after a blank line
        if item or not indent:
            hanging = item.end() if item else 0
        if section:
            base = 2
            done += ["", f"{section[1]}:"]
            done += [f"  {escaped(section[2], targets)}"] if section[2] else []
            continue
        entry = ENTRY.match(line) if base and indent == base else None
        done.append(escaped(entry[1], targets) + escaped(entry[2], targets) if entry else escaped(line, targets))
    flush()
    return done


def setup(app):
    """Rewrite docstrings before napoleon, and defaults that would show an address."""
    targets = theory_targets(Path(app.srcdir))

    def docstring(app, kind, name, value, options, lines):
        lines[:] = as_rst(lines, targets)

    def signature(app, kind, name, value, options, arguments, returned):
        return (ADDRESS.sub(r"\1", arguments) if arguments else arguments), returned

    def skip(app, kind, name, value, skipped, options):
        if (getattr(value, "__doc__", None) or "").startswith("Alias for field number"):
            return True  # of a named tuple: its fields are explained in its docstring
        is_ours = getattr(value, "__module__", "simulator").startswith("simulator")
        return None if is_ours or not callable(value) else True  # a field whose default is a function of a library

    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", signature)
    return dict(parallel_read_safe=True)
