"""Tables in the README and the site that are written from stored numbers: python -m experiments.report.tables [--ledger]

Between two markers, `<!-- NAME -->` and `<!-- /NAME -->`, a page belongs to this file; the rest is written by hand. `--ledger`
also judges the first hour's example claim anew.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from experiments import catalogue
from experiments.claims import gap_emergence
from simulator.storage.results import load_dataset

ROOT = Path(__file__).parents[2]
README, MAIN_JOB, FIRST_HOUR = ROOT / "README.md", ROOT / "docs" / "main-job.md", ROOT / "docs" / "first-hour.md"
CLAIMS = ROOT / "docs" / "claims" / "index.md"
NUMBER = re.compile(r"(?<![\w.])([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?: ?± ?(\d[\d.]*(?:e[+-]?\d+)?))?")
VERDICT = re.compile(r"\*(holds if|holds|if|refuted)\*", re.IGNORECASE)
EXAMPLE = "robustness_monotone"  # the claim whose ledger the first hour explains


def main(arguments: list[str]) -> None:
    """Renew what stands between the markers."""
    renew(README, "claims", claims_table())
    renew(MAIN_JOB, "main job", main_job_table())
    renew(MAIN_JOB, "main ledger", main_job_ledger())
    if "--ledger" in arguments:
        renew(FIRST_HOUR, "ledger", ledger_excerpt())


def between(text: str, name: str) -> str:
    """What stands between a pair of markers."""
    return text.split(f"<!-- {name} -->\n", 1)[1].split(f"<!-- /{name} -->", 1)[0].strip("\n")


def renew(page: Path, name: str, new: str) -> None:
    """Replace what stands between a pair of markers of a page."""
    before, rest = page.read_text().split(f"<!-- {name} -->\n", 1)
    after = rest.split(f"<!-- /{name} -->", 1)[1]
    page.write_text(f"{before}<!-- {name} -->\n\n{new}\n\n<!-- /{name} -->{after}")


def claims_table() -> str:
    """The README's table: from the index of the claims, each group's title, and each claim's sentence and verdict in a word."""
    lines = []
    for line in CLAIMS.read_text().splitlines():
        if claim := re.match(r"\| \[(\w+)\]\((\w+\.md)\) \| (.*) \| (.*) \|$", line):
            name, page, sentence, verdict = claim.groups()
            lines.append(f"| [{name}](docs/claims/{page}) | {sentence} | {in_short(verdict)} |")
        elif line.startswith("## "):
            lines += [
                "",
                f"**{line.removeprefix('## ')}**",
                "",
                "| claim | in one sentence | verdict |",
                "|---|---|---|",
            ]
    return "\n".join(lines).strip("\n")


def in_short(verdict: str) -> str:
    """The verdicts that a sentence emphasizes: the first is that of the statement, the others those of a part of it."""
    first, *others = (found.lower() for found in VERDICT.findall(verdict))
    return ", ".join([first, *(f"partly {other}" for other in dict.fromkeys(others) if other != first)])


def main_job_table() -> str:
    """The table that `gapsim run` prints, from the stored numbers."""
    lines = gap_emergence.summary(load_dataset(ROOT / "figures" / "gap_emergence.nc"))
    header = gap_emergence.SUMMARY_HEADER
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def main_job_ledger() -> str:
    """The ledger that `gapsim run` prints, from the stored numbers, without the seconds."""
    rows = [row for stem in catalogue.MAIN_JOB for row in stored_rows(stem)]
    lines, said = catalogue.ledger_table(rows).splitlines(), sum(map(catalogue.needs_reason, rows))
    table = [re.sub(r" +\S+$", "", line) for line in lines[: len(rows) + 1]]
    reasons = "\n\n".join(textwrap.fill(line, 112) for line in lines[-said:])
    return "```text\n" + "\n".join(table) + "\n```\n\n```text\n" + reasons + "\n```"


def stored_rows(stem: str) -> list[dict[str, Any]]:
    """The ledger of a claim from the stored numbers."""
    return catalogue.judge(stem, load_dataset(ROOT / "figures" / f"{stem}.nc"), 0.0)


def ledger_excerpt() -> str:
    """The lines that `gapsim verify` prints for the example claim with small settings."""
    data, seconds = catalogue.run(EXAMPLE, quick=True, out=None)
    return f"```text\n{catalogue.ledger_table(catalogue.judge(EXAMPLE, data, seconds))}\n```"


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


if __name__ == "__main__":
    main(sys.argv[1:])
