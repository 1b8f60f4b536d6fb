"""Mutation score of the science: of small wrong changes to the code, how many die in the fast tests that run the line.

`make mutants ARGS="--seed 1"` draws a random sample of the changes that cosmic-ray knows, every module in proportion to
its number of them, and judges each in a forked process: the module is imported with the change, from memory, and the fast
tests that run the changed line follow, quickest first, until one fails. No file is written in the work tree: everything
runs in a copy. A change is dead when a test fails, when the module cannot be imported, or when it takes too long.

No number and no refusal depends on annotations, on the text of errors and warnings and on decorators, so these are left as
they are. Changes that turn one kind of operator into another (`+` into `>>`, `<` into `is`) die by themselves and are not
drawn. What else changes nothing is listed in equivalent_mutants.tsv, each with its reason.
"""

import argparse
import ast
import contextlib
import csv
import functools
import importlib.machinery
import json
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from mutant_runs import CACHE, LOG, PYTEST, Chosen, forked, prepared, record

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.tsv")
MODULES = (
    *(
        "theory/robustness",
        "closing/certificate",
        "closing/closer",
        "closing/rules",
        "losses/contrastive",
        "losses/objectives",
        "theory/noisy_distance",
    ),
    *("numerics/units", "numerics/precision", "closing/index", "closing/directions", "theory/*", "robustness"),
    *("numerics/scaling", "streaming", "geometry"),
)
KINDS = (  # operators of one kind replace each other
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Pow"},
    {"BitAnd", "BitOr"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
)
LEAST = 5  # mutants of every module
ROOM, ASKED = 25.0, 4  # seconds: of the tests that run a line, the quickest that fit are asked, and so many in any case


class Mutant(NamedTuple):
    """One small change: `operator` of cosmic-ray at its `occurrence`-th place in `module`; `line` counts from 1."""

    module: str
    operator: str
    occurrence: int
    line: int


def modules() -> list[str]:
    """Names of the modules that are changed, as paths below `simulator` without their suffix."""
    found = (path for name in MODULES for path in sorted(Path("simulator").glob(f"{name}.py")))
    names = (str(path.relative_to("simulator").with_suffix("")) for path in found if path.stem != "__init__")
    return list(dict.fromkeys(names))


def source_of(module: str) -> str:
    return Path("simulator", f"{module}.py").read_text()


def operators() -> list[str]:
    """Operators of cosmic-ray whose changes do not die by themselves."""
    from cosmic_ray import plugins

    left_out = {"RemoveDecorator", "VariableReplacer", "VariableInserter", "ReplaceUnaryOperator_USub_Invert"}
    kept = []
    for name in sorted(plugins.operator_names()):
        pair = re.fullmatch(r"core/Replace(?:Binary|Comparison)Operator_(\w+)_(\w+)", name)
        if (pair and any(set(pair.groups()) <= kind for kind in KINDS)) or (
            not pair and name.removeprefix("core/") not in left_out
        ):
            kept.append(name)
    return kept


def mutants(module: str) -> list[Mutant]:
    """All changes of one module."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    text = source_of(module)
    silent, rows = silent_places(text), text.splitlines()
    nodes = list(ast_nodes(get_ast(text)))
    found = []
    for name in operators():
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            before = "".join([*rows[: start[0] - 1], rows[start[0] - 1][: start[1]]]).rstrip()
            star = "Binary" in name and before.endswith(("(", ","))  # of a signature or a call
            if not star and not any(first <= start < last for first, last in silent):
                found.append(Mutant(module, name, occurrence, start[0]))
    return found


def silent_places(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Places (line, column) that decide no number and no refusal: annotations, messages and decorators."""
    silent = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            silent += [node.returns, *node.decorator_list]
        if isinstance(node, ast.ClassDef):
            silent += node.decorator_list
        if isinstance(node, ast.arg | ast.AnnAssign):
            silent.append(node.annotation)
        if isinstance(node, ast.Raise):
            silent.append(node.exc)
        if isinstance(node, ast.JoinedStr):
            silent.append(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            silent.append(node)
    rows = text.splitlines()

    def place(line: int, column: int) -> tuple[int, int]:  # ast counts bytes, parso characters
        return line, len(rows[line - 1].encode()[:column].decode())

    return [
        (place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)) for node in silent if node
    ]


def sample(seed: int, size: int) -> list[Mutant]:
    """At least `size` changes: every module in proportion to its number of them, and LEAST of each."""
    every = {module: mutants(module) for module in modules()}
    total = sum(map(len, every.values()))
    drawn = []
    for module, found in every.items():
        share = max(LEAST, -(-size * len(found) // total))
        drawn += sorted(random.Random(f"{seed} {module}").sample(found, min(share, len(found))))
    return drawn


@functools.cache
def changed(mutant: Mutant) -> str:
    """Text of the module with the change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source_of(mutant.module), get_operator(mutant.operator)(), mutant.occurrence)


@functools.cache
def difference(mutant: Mutant) -> tuple[str, str]:
    """Lines before and after the change, as one line each."""
    old, new = (text.splitlines() for text in (source_of(mutant.module), changed(mutant)))
    first = next(i for i, rows in enumerate(zip(old, new, strict=False)) if rows[0] != rows[1])
    last = next(i for i, rows in enumerate(zip(old[::-1], new[::-1], strict=False)) if rows[0] != rows[1])
    return tuple(" ".join(" ".join(rows[first : len(rows) - last]).split()) for rows in (old, new))


def statement(text: str, line: int) -> range:
    """Lines of the smallest statement around a line; of a compound one, its head."""
    spans = [range(line, line + 1)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if node.lineno <= line <= last:
                spans.append(range(node.lineno, last + 1))
    return max(spans[1:], key=lambda span: span.start, default=spans[0])


def tests_of(mutant: Mutant, runs: dict) -> dict[str, float]:
    """Tests that run the line, and their seconds, quickest first; what runs only at import is judged by all of the module."""
    lines = runs["lines"].get(mutant.module, {})
    span = statement(source_of(mutant.module), mutant.line)
    touched = set().union(*(lines.get(str(line), ()) for line in span)) or set().union(*lines.values())
    chosen, total = {}, 0.0
    for seconds, test in sorted((runs["seconds"][test], test) for test in touched):
        if len(chosen) >= ASKED and total + seconds > ROOM:
            break
        chosen[test], total = seconds, total + seconds
    return chosen


def judge(mutant: Mutant, runs: dict) -> str:
    """The test that kills it, "too long", or "" when it survives."""
    import pytest

    tests = tests_of(mutant, runs)
    if not tests:
        return ""
    path, text = str(Path("simulator", f"{mutant.module}.py").resolve()), changed(mutant)
    read = importlib.machinery.SourceFileLoader.get_code

    def get_code(self, name):
        return compile(text, path, "exec") if self.path == path else read(self, name)

    def work() -> int:
        importlib.machinery.SourceFileLoader.get_code = get_code
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        return pytest.main([*PYTEST, "-x", *files], plugins=[Chosen(tests)])

    status = forked(work, 20 + 3 * sum(tests.values()))
    if status is None:
        return "too long"
    if status in (0, 5):
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", Path(LOG).read_text(errors="replace"), re.MULTILINE)
    return failed.group(1) if failed else "at import"


def wilson(part: int, whole: int) -> str:
    from scipy.stats import binomtest

    if not whole:
        return "none"
    low, high = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{part} of {whole} = {100 * part / whole:.1f} % (95 % Wilson interval {100 * low:.1f} to {100 * high:.1f})"


def equivalents() -> dict[tuple[str, str, str], str]:
    """Reason of every change that changes no number and no refusal, by module and lines before and after."""
    with EQUIVALENT.open(newline="") as file:
        return {
            (row[0], row[1], row[2]): row[3] for row in csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE) if row
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--size", type=int, default=400, help="least number of mutants")
    parser.add_argument("--only", default="", help="modules whose name starts like this")
    parser.add_argument("--again", action="store_true", help="judge again only what survived last time")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began, copy = time.monotonic(), prepared()
    report = CACHE / f"seed-{settings.seed}-{settings.size}.json"
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(shutil.rmtree, copy, ignore_errors=True)
        runs = record()
        drawn = [mutant for mutant in sample(settings.seed, settings.size) if mutant.module.startswith(settings.only)]
        before = json.loads(report.read_text()) if report.exists() else {}
        verdicts, reasons, judged = {}, equivalents(), 0
        for mutant in drawn:
            name = " | ".join((mutant.module, *difference(mutant)))
            if (mutant.module, *difference(mutant)) in reasons:
                verdicts[mutant] = "equivalent"
                continue
            judged += not (settings.again and before.get(name))
            verdicts[mutant] = before[name] if settings.again and before.get(name) else judge(mutant, runs)
            before[name] = verdicts[mutant]
            report.write_text(json.dumps(before, indent=1))
            print(f"{mutant.module}:{mutant.line} {verdicts[mutant] or 'SURVIVES'}", flush=True)
    for mutant, verdict in verdicts.items():
        if verdict in ("", "equivalent"):
            old, new = difference(mutant)
            reason = reasons.get((mutant.module, old, new), "SURVIVES")
            print(
                f"\n{mutant.module}:{mutant.line} {mutant.operator.removeprefix('core/')}: {reason}\n- {old}\n+ {new}"
            )
    print(f"\n{'module':24} mutants drawn equivalent killed survive")
    for module in sorted({mutant.module for mutant in drawn}):
        own = [verdicts[mutant] for mutant in drawn if mutant.module == module]
        same, alive = own.count("equivalent"), own.count("")
        print(f"{module:24} {len(mutants(module)):7} {len(own):5} {same:10} {len(own) - same - alive:6} {alive:7}")
    values = list(verdicts.values())
    killed = sum(verdict not in ("", "equivalent") for verdict in values)
    print(f"seed {settings.seed}: killed {wilson(killed, len(values) - values.count('equivalent'))};", end=" ")
    print(
        f"{values.count('too long')} of these took too long; {values.count('equivalent')} more change nothing;", end=" "
    )
    print(f"{(time.monotonic() - began) / max(judged, 1):.1f} s each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
