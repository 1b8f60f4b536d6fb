"""Directives that show stored results: `claim`, a claim judged by its own `judge`, and `bench`, the table of rates."""

from pathlib import Path

from docstrings import CITED, STATEMENT, theory_targets
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

from experiments import catalogue
from experiments.bench import tables as bench
from simulator.store import load_dataset

FIGURES = Path(__file__).parents[2] / "figures"
HEADER = ("check", "predicted", "measured", "error", "tolerance", "verdict", "near miss, which must fail")


class ClaimDirective(SphinxDirective):
    """`{claim} C4`: statement, assumptions, source, figure, prediction beside measurement, near misses, command."""

    required_arguments = 1

    def run(self):
        (stem,) = catalogue.find((self.arguments[0],))
        module, numbers = catalogue.load(stem), FIGURES / f"{stem}.nc"
        for path in (module.__file__, numbers, FIGURES / f"{stem}.png"):
            self.env.note_dependency(str(path))
        rows = catalogue.judge(stem, load_dataset(numbers), 0.0)
        claim, targets = module.CLAIM, theory_targets(Path(self.env.srcdir))
        facts = [("Statement", claim.statement), ("Assumes", claim.assumes), ("Source", claim.source)]
        figure = nodes.figure("", nodes.image(uri=self._image(stem), alt=claim.title))
        figure += nodes.caption("", "", *inline(module.CAPTION, targets, self.env.docname))
        figure += nodes.legend("", self._paragraph(f"Redraw from stored numbers: `gapsim figures {stem}`."))
        command = (
            f"gapsim verify {claim.id} --quick    # small settings\ngapsim verify {claim.id}            # as above"
        )
        return [
            definitions(facts, targets, self.env.docname),
            figure,
            self._paragraph(f"Prediction beside measurement, from `figures/{stem}.nc`:"),
            table(rows),
            *self._reasons(rows),
            nodes.literal_block(command, command, language="bash"),
        ]

    def _image(self, stem: str) -> str:
        up = "../" * (self.env.docname.count("/") + 1)
        return f"{up}figures/{stem}.png"

    def _paragraph(self, text: str):
        return nodes.paragraph("", "", *inline(text, set(), self.env.docname))

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
            items.append(nodes.list_item("", self._paragraph(f"{name}: {'; '.join(parts)}.")))
        return [self._paragraph("Conditions and sizes:"), nodes.bullet_list("", *items)] if items else []


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
    number = lambda value: "∞" if value is None else f"{value:.4g}"  # noqa: E731
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
    app.add_directive("bench", BenchDirective)
    return dict(parallel_read_safe=True)
