"""Directives that show stored results: `claim`, a claim judged by its own `judge`; `dispute`, a question with its answer;
`shown`, a figure with the caption of the module that draws it; `bench`, the table of rates."""

import importlib
from pathlib import Path
from typing import ClassVar

from docstrings import CITED, STATEMENT, theory_targets
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

from experiments import catalogue
from experiments.bench import tables as bench
from experiments.report.disputes import DISPUTES
from simulator.storage.results import load_dataset

FIGURES = Path(__file__).parents[2] / "figures"
HEADER = ("check", "predicted", "measured", "error", "tolerance", "verdict", "near miss, which must fail")


class StoredResult(SphinxDirective):
    """What all of them need: paragraphs and published figures."""

    def paragraph(self, text: str):
        return nodes.paragraph("", "", *inline(text, set(), self.env.docname))

    def figure(self, file: str, alt: str, caption: str, targets: set[str]):
        """A published figure with its caption."""
        self.env.note_dependency(str(FIGURES / file))
        up = "../" * (self.env.docname.count("/") + 1)
        figure = nodes.figure("", nodes.image(uri=f"{up}figures/{file}", alt=alt))
        figure += nodes.caption("", "", *inline(caption, targets, self.env.docname))
        return figure


class ClaimDirective(StoredResult):
    """`{claim} C4`: statement, assumptions, source, figure, prediction beside measurement, near misses."""

    required_arguments = 1

    def run(self):
        (stem,) = catalogue.find((self.arguments[0],))
        module, numbers = catalogue.load(stem), FIGURES / f"{stem}.nc"
        for path in (module.__file__, numbers):
            self.env.note_dependency(str(path))
        rows = catalogue.judge(stem, load_dataset(numbers), 0.0)
        claim, targets = module.CLAIM, theory_targets(Path(self.env.srcdir))
        facts = [("Statement", claim.statement), ("Assumes", claim.assumes), ("Source", claim.source)]
        figure = self.figure(f"{stem}.png", claim.title, module.CAPTION, targets)
        figure += nodes.legend("", self.paragraph(f"Redraw from stored numbers: `gapsim figures {stem}`."))
        return [
            definitions(facts, targets, self.env.docname),
            figure,
            self.paragraph(f"Prediction beside measurement, from `figures/{stem}.nc`:"),
            table(rows),
            *self._reasons(rows),
        ]

    def _reasons(self, rows):
        """What stands beside a row that does not simply hold: its condition and the size of the effect."""
        items = []
        for row in filter(catalogue.needs_reason, rows):
            says = {"holds": "holds", "holds if": "holds if", "refuted": "is refuted:"}[row["verdict"]]
            parts = [f"{says} {row['condition']}".rstrip(" :")]
            parts += [f"measured: {row['effect']}"] if row["effect"] else []
            if row["five_percent_off"].startswith("passes"):
                parts.append(f"a prediction 5 % off {row['five_percent_off']}")
            name = row["check"].rsplit(" [", 1)[0]
            items.append(nodes.list_item("", self.paragraph(f"{name}: {'; '.join(parts)}.")))
        return [self.paragraph("Conditions and sizes:"), nodes.bullet_list("", *items)] if items else []


class DisputeDirective(StoredResult):
    """`{dispute} flat`: the answer in one line, computed from stored numbers, its figure, and the claims that speak to it."""

    required_arguments = 1

    def run(self):
        (dispute,) = (each for each in DISPUTES if each.name == self.arguments[0])
        for stem in dispute.stems:
            self.env.note_dependency(str(FIGURES / f"{stem}.nc"))
        pages = {catalogue.load(stem).CLAIM.id: f"/claims/{stem}.md" for stem in catalogue.stems()}
        claims = ", ".join(f"[{name}]({pages[name]})" for name in dispute.claims)
        return [
            self.paragraph(dispute.answer(FIGURES)),
            self.figure(f"dispute_{dispute.name}.png", dispute.question, dispute.caption, set()),
            *self.parse_text_to_nodes(f"The claims: {claims}."),
        ]


class ShownDirective(StoredResult):
    """`{shown} figure.png` with the options `module`, whose CAPTION is shown under it, and `alt`."""

    required_arguments = 1
    option_spec: ClassVar = dict(module=directives.unchanged_required, alt=directives.unchanged_required)

    def run(self):
        module = importlib.import_module(self.options["module"])
        self.env.note_dependency(module.__file__)
        return [self.figure(self.arguments[0], self.options["alt"], module.CAPTION, set())]


class BenchDirective(SphinxDirective):
    """`{bench}`: the table of the stored bench."""

    def run(self):
        numbers = FIGURES / "performance.nc"
        self.env.note_dependency(str(numbers))
        return self.parse_text_to_nodes(bench.markdown(load_dataset(numbers)))


def inline(text: str, targets: set[str], docname: str):
    """Plain text as nodes: backticks are code, "theory.md N4" is a link where the derivation exists."""
    for i, part in enumerate(text.split("`")):
        if i % 2:
            yield nodes.literal(part, part)
            continue
        last = 0
        for cited in CITED.finditer(part):
            yield nodes.Text(part[last : cited.start()] + "theory ")
            for found in STATEMENT.finditer(part, *cited.span(1)):
                name = found[0]
                yield nodes.Text(part[max(last, cited.start(1)) : found.start()])
                yield reference(name, docname) if name in targets else nodes.Text(name)
                last = found.end()
            yield nodes.Text(part[last : cited.end()])
            last = cited.end()
        yield nodes.Text(part[last:])


def reference(name: str, docname: str):
    """A link to the derivation of a statement."""
    link = pending_xref(
        "", reftype="ref", refdomain="std", refexplicit=True, refwarn=True, refdoc=docname,
        reftarget=f"theory-{name.lower()}",
    )  # fmt: skip
    link += nodes.inline("", name, classes=["xref", "std", "std-ref"])
    return link


def definitions(facts, targets, docname):
    """Names and what they are, as a field list."""
    fields = [
        nodes.field("", nodes.field_name("", name), nodes.field_body("", nodes.paragraph("", "", *body)))
        for name, body in ((name, list(inline(text, targets, docname))) for name, text in facts)
    ]
    return nodes.field_list("", *fields)


def table(rows):
    """One line per row of the claim's ledger, with the near miss that the same check rejects."""
    number = lambda value: "∞" if value is None else f"{value:.4g}"
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in HEADER), cols=len(HEADER))
    lines = []
    for row in rows:
        rejected = "rejected" if row["control_rejected"] else "NOT rejected"
        miss = f"{row['control']}: error {number(row['control_error'])}, {rejected}"
        sizes = [number(row[name]) for name in ("predicted", "measured", "error", "tolerance")]
        lines.append([row["check"], *sizes, row["verdict"], miss])
    group += nodes.thead("", line_of(HEADER))
    group += nodes.tbody("", *map(line_of, lines))
    return nodes.table("", group, classes=["claim"])


def line_of(cells):
    """One line of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def setup(app):
    """Register the directives."""
    app.add_directive("claim", ClaimDirective)
    app.add_directive("dispute", DisputeDirective)
    app.add_directive("shown", ShownDirective)
    app.add_directive("bench", BenchDirective)
    return dict(parallel_read_safe=True)
