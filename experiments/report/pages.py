"""One page from stored results: the ledger, what holds and what does not, and one section per claim.

Everything is judged and drawn from what is stored; nothing is measured again. The page needs no other file and no network;
its script only filters and unfolds, and without it everything can be read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments import catalogue
from experiments.claim_files import OwnClaim
from experiments.report import figures
from experiments.report.inline_svg import draw_svg
from experiments.report.prose import set_number, set_text

# Figures that belong to no claim: title and command.
EXTRAS = dict(
    real_embeddings=("Closing the gap of real embeddings", "python -m experiments.real_embeddings FOLDER"),
    performance=("Speed of the engine", "gapsim bench"),
    cost_model=("What a step costs, and on other machines", "gapsim bench"),
)
VERDICTS = {"holds": "●", "holds if": "◐", "refuted": "✕"}  # a shape for each, for those who do not see colours
PAGE = "index.html"
# What the error of each kind of check is measured in, and what its tolerance means.
KINDS = {
    "identity": ("relative", "largest difference over the largest prediction"),
    "absolute": ("absolute", "largest difference, in the unit of what is measured; counts must be exact"),
    "monte_carlo": ("standard errors", "largest difference over its own standard error"),
    "slope": ("in the exponent", "difference between the measured and the predicted exponent of a power law"),
    "monotone": ("standard errors", "largest step against the predicted direction; 0 or less: none"),
}


def build(results: Path, out: Path) -> Path:
    """Write the page `out/index.html` from the results (.nc) in the folder `results`; returns its path.

    Raises:
        ValueError: no result is stored, or one cannot be read, judged or drawn; says how to make it again.
        OSError: `out` cannot be written.
    """
    from simulator.storage.files import require_outputs, whole_file

    require_outputs([out / PAGE], results.glob("*.nc"))
    stems = catalogue.stems()
    if not any((results / f"{stem}.nc").exists() for stem in stems):
        raise ValueError(
            f"{results} holds no stored results; run `gapsim run` or `gapsim verify --out {results}` first, or name the "
            "folder that holds them with --results"
        )
    page = render(*_sections(stems, results))
    with whole_file(out / PAGE) as draft:
        draft.write_text(page, encoding="utf-8")
    return out / PAGE


def _sections(stems: list[str], results: Path) -> list[list[dict[str, Any]]]:
    """Claims, disputes, what is beside them and the figure at the top, drawn on all cores where much is stored."""
    from experiments.report import stories
    from experiments.report.disputes import DISPUTES

    is_told = all((results / f"{stem}.nc").exists() for stem in stories.STEMS)
    groups = (
        [(claim_section, stem, results) for stem in stems],
        [(dispute_section, dispute.name, results) for dispute in DISPUTES],
        [(extra_section, name, results) for name in EXTRAS if _extra_is_stored(name, results)],
        [(story_section, "story", results)] * is_told,
    )
    own = catalogue.own_files()
    tasks = [(own, *task) for group in groups for task in group]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or sum((results / f"{stem}.nc").exists() for stem in stems) < 8:  # starting a process takes seconds
        done = iter([_call(task) for task in tasks])
    else:
        # Not forked: JAX may be in use.
        with ProcessPoolExecutor(min(cores, 8), get_context("spawn")) as pool:
            try:
                done = iter(list(pool.map(_call, tasks)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [[next(done) for _ in group] for group in groups]


def _call(task):
    own, function, name, results = task
    with catalogue.including(own):
        return function(name, results)


def claim_section(stem: str, results: Path) -> dict[str, Any]:
    """What the page says about one claim; without rows and figure where nothing is stored."""
    from simulator.storage.results import load_dataset

    module = catalogue.load(stem)
    claim, path, own = module.CLAIM, results / f"{stem}.nc", catalogue.own(stem)
    section = dict(
        id=claim.id, stem=stem, title=claim.title, summary=claim.summary, statement=claim.statement, source=claim.source, assumes=claim.assumes,
        caption=getattr(module, "CAPTION", ""), rows=[], figure=None, provenance={}, **_places(stem, claim.id, own, results),
    )  # fmt: skip
    if not path.exists():
        return section

    def read():
        data = load_dataset(path)
        rows = [_describe(row) for row in catalogue.judge(stem, data, 0.0)]
        figure = draw_svg(module.draw, data, claim.id, f"Figure of {claim.id}: {claim.title}")
        return dict(rows=rows, figure=figure, provenance=_provenance(data.attrs) | _origin(data.attrs, own))

    return section | _from(path, read, f"{section['command']} --out {results}")


def _places(stem: str, claim_id: str, own: OwnClaim | None, results: Path) -> dict[str, Any]:
    """How a claim is verified and stored, and where its code, its figure and its test are."""
    if own is None:
        files = (f"experiments/claims/{stem}.py", f"figures/{stem}.pdf", f"tests/theorems/test_{stem}.py")
        return dict(command=f"gapsim verify {claim_id}", folder="figures", again="gapsim report", files=files)
    file, folder = shlex.quote(str(own.path)), shlex.quote(str(results))
    again = f"gapsim report --claims {shlex.quote(str(own.path.parent))} --results {folder}"
    return dict(
        command=f"gapsim verify {file}", folder=folder, again=again, files=(str(own.path), f"{results / stem}.pdf")
    )


def _origin(attributes: dict[str, Any], own: OwnClaim | None) -> dict[str, str]:
    """Which content of an own claim's file measured a result, and whether it is the present one."""
    if own is None:
        return {}
    measured = str(attributes.get("claim_sha256", "unknown"))
    now = "" if measured == own.sha256 else f"; edited since, now {own.sha256[:16]}"
    return dict(measured_by=f"{attributes.get('claim_file')}, SHA-256 {measured[:16]}{now}")


def extra_section(name: str, results: Path) -> dict[str, Any]:
    """What the page says of something that is stored beside the claims."""
    from simulator.storage.results import load_dataset

    (title, command), (module, stem) = EXTRAS[name], figures.source(name)
    about: dict[str, Any] = dict(id=f"beside-{name}", stem=stem, title=title, caption=module.CAPTION, command=command)

    def read():
        data = load_dataset(results / f"{stem}.nc")
        figure = draw_svg(module.draw, data, about["id"], f"Figure: {title}")
        return dict(figure=figure, provenance=_provenance(data.attrs))

    return about | _from(results / f"{stem}.nc", read, command)


def _extra_is_stored(name: str, results: Path) -> bool:
    return (results / f"{figures.source(name)[1]}.nc").exists()


def dispute_section(name: str, results: Path) -> dict[str, Any]:
    """A question of the field, answered from the stored results that it rests on."""
    from experiments.report.disputes import DISPUTES

    (dispute,) = (dispute for dispute in DISPUTES if dispute.name == name)
    missing = [stem for stem in dispute.stems if not (results / f"{stem}.nc").exists()]
    about: dict[str, Any] = dict(
        id=f"dispute-{name}", question=dispute.question, claims=dispute.claims, missing=missing, caption=dispute.caption
    )
    if missing:
        return about

    def read():
        figure = draw_svg(dispute.draw, results, about["id"], f"Figure: {dispute.question}")
        return dict(answer=dispute.answer(results), figure=figure)

    return about | _from(results, read, f"gapsim verify {' '.join(dispute.claims)} --out {results}")


def story_section(name: str, results: Path) -> dict[str, Any]:
    """The figure at the top: the whole story."""
    from experiments.report import stories
    from simulator.storage.results import load_dataset

    def read():
        data = {stem: load_dataset(results / f"{stem}.nc") for stem in stories.STEMS}
        return dict(figure=draw_svg(stories.draw, data, name, "Figure: the whole story"), caption=stories.CAPTION)

    return _from(
        results, read, f"gapsim verify C1 C4 --out {results}` and `python -m experiments.report.animations {results}"
    )


def _from(path: Path, read: Callable[[], dict[str, Any]], command: str) -> dict[str, Any]:
    try:
        return read()
    except Exception as error:  # whatever is wrong with a file: the user needs its name and how to make it again
        raise ValueError(
            f"{path} cannot be read, judged and drawn ({type(error).__name__}: {error}); it is damaged, or older than this "
            f"code: write it again with `{command}`"
        ) from error


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the ledger with its name and kind apart, and what it says of itself."""
    name, _, kind = row["check"].removesuffix("]").rpartition(" [")
    unit = KINDS[kind][0]
    if kind == "monotone":
        predicted = Markup({1: "rises", -1: "falls"}.get(int(row["predicted"]), "any"))
        measured = Markup('{} <span class="unit">from first to last</span>').format(_signed(row["measured"]))
    else:
        predicted, measured = set_number(row["predicted"], 5), set_number(row["measured"], 5)
    error = Markup("no trend") if kind == "monotone" and row["error"] is None else set_number(row["error"], 2)
    return dict(effect="") | row | dict(
        name=name, kind=kind, unit=unit, predicted=predicted, measured=measured, error=error,
        tolerance=set_number(row["tolerance"], 2), control_error=set_number(row["control_error"], 3),
        good=catalogue.as_expected(row),
    )  # fmt: skip


def _signed(value: float) -> Markup:
    return Markup("{}{}").format("+" if value > 0 else "", set_number(value, 3))


def _provenance(attributes: dict[str, Any]) -> dict[str, str]:
    """What made a stored result: commit, versions, precision, platform, and its configuration as indented JSON."""
    kept = {
        name: str(attributes[name]) for name in ("commit", "versions", "precision", "platform") if name in attributes
    }
    if "python" in attributes:
        kept["versions"] = f"Python {attributes['python']}, {kept.get('versions', '')}"
    if "config" in attributes:
        config = json.loads(attributes["config"])
        shown = {name: value for name, value in config.items() if name not in ("type", "of_class")}
        kept["config"] = "\n".join(f"{name} = {json.dumps(value)}" for name, value in shown.items())
    return kept


def _without_asides(text: str) -> str:
    """Text without the measured numbers in brackets; (E φ ≠ 0) stays."""
    return re.sub(r" \([^()]*[:,%][^()]*\)", "", text)


def _gist(text: str) -> str:
    """The first clause, for a summary; the whole stands below it."""
    return re.split(r"[:;] ", _without_asides(text))[0]


def render(sections, arguments=(), more=(), story=()) -> str:
    """The page as HTML."""
    import jinja2

    from simulator.storage.results import provenance

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    ids = {section["id"] for section in sections}
    environment.filters |= dict(
        formulas=lambda text, claims=ids: set_text(text, claims), gist=_gist, aside=_without_asides
    )
    rows = [row for section in sections for row in section["rows"]]
    here = provenance()
    return environment.get_template("report.html.jinja").render(
        sections=sections, disputes=arguments, extras=more, story=story, rows=rows, verdicts=VERDICTS, kinds=KINDS,
        counts={verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS},
        of=lambda section: Counter(row["verdict"] for row in section["rows"]),
        measured=[section for section in sections if section["rows"]],
        has_own=any(catalogue.own(section["stem"]) for section in sections),
        judged=dict(commit=here["commit"], versions=here["versions"]),
    )  # fmt: skip
