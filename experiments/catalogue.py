"""From claims to verdicts: find the experiments, run them, judge them, print the ledger."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import time
from collections.abc import Generator, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from experiments import claim_files, claims
from experiments.claim_files import OwnClaim

MAIN_JOB = ("gap_emergence", "robustness_monotone", "clean_invariance")  # the claims that `gapsim run` judges
# What else has a file of its name beside the results, or a place of its name on the page.
OTHER_NAMES = (
    "emergence", "real_embeddings", "performance", "cost_model", "story", "index", "top", "summary", "disputes", "claims",
    "reading", "beyond", "again",
)  # fmt: skip
_own: ContextVar[Mapping[str, OwnClaim]] = ContextVar("own claims by stem", default=MappingProxyType({}))


def stems() -> list[str]:
    """Names of all experiments, in order of their claims' ids; the user's own come last, as they were named."""
    return [*_shipped(), *_own.get()]


def _shipped() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(claims.__path__)]
    return sorted(names, key=lambda name: _order(load(name).CLAIM.id))


def _order(claim_id: str):
    """The core claims, then our predictions, then the published ones."""
    return "CNP".find(claim_id[0]), int("".join(c for c in claim_id if c.isdigit()) or 0)


def load(stem: str) -> ModuleType:
    """The module of an experiment."""
    own = _own.get().get(stem)
    return importlib.import_module(f"experiments.claims.{stem}") if own is None else own.module


@contextlib.contextmanager
def including(names: Iterable[str] = (), place: Path | None = None) -> Generator[tuple[str, ...], None, None]:
    """The user's own claims beside the shipped ones, inside of the block: those of the files among `names`, and of `place`.

    Args:
      names: of claims; what ends in .py or has a folder is a file, the others are left to `find`.
      place: a folder of claims, or one file.

    Returns:
      The stems of the own claims.

    Raises:
      ValueError: a file that is not there, cannot be imported, is no claim, or has the name of another.
    """
    named = [Path(name) for name in names if claim_files.is_path(name)]
    places = {os.path.realpath(path): path for path in [*named, *(claim_files.within(place) if place else [])]}
    here = [os.path.realpath(folder) for folder in claims.__path__]
    files = [path for real, path in places.items() if os.path.dirname(real) not in here]
    if not files:
        yield ()
        return
    taken = dict.fromkeys(OTHER_NAMES, "the page or another figure")
    for stem in _shipped():
        claim_id = load(stem).CLAIM.id
        taken |= dict.fromkeys((stem, claim_id.lower()), f"the shipped claim {claim_id} ({stem})")
    found: dict[str, OwnClaim] = {}
    with claim_files.importable(files):
        for path in files:
            found[path.stem] = own = claim_files.load(path)
            claim_id = own.module.CLAIM.id
            for what, name in (("file", path.stem), ("CLAIM.id", claim_id)):
                if owner := taken.get(name.lower()):
                    raise ValueError(f"{path}: {owner} has the name {name} already; give the {what} another")
            taken |= dict.fromkeys((path.stem.lower(), claim_id.lower()), str(path))
        token = _own.set(found)
        try:
            yield tuple(found)
        finally:
            _own.reset(token)


def own(stem: str) -> OwnClaim | None:
    """The file of a claim of the user's own; None for a shipped one."""
    return _own.get().get(stem)


def own_files() -> tuple[str, ...]:
    """What another process must be `including` to know the same claims."""
    return tuple(str(each.path) for each in _own.get().values())


def _file(module: ModuleType) -> str:
    assert module.__file__ is not None
    return module.__file__


def find(names: tuple[str, ...]) -> list[str]:
    """Stems for claims named by id, stem or file; all of them for none. Raises ValueError for an unknown name."""
    by_name, by_file = {}, {}
    for stem in stems():
        by_name[stem.lower()] = by_name[load(stem).CLAIM.id.lower()] = by_file[os.path.realpath(_file(load(stem)))] = (
            stem
        )
    found = [
        by_file.get(os.path.realpath(name)) if claim_files.is_path(name) else by_name.get(name.lower())
        for name in names
    ]
    if None in found:
        unknown, known = names[found.index(None)], ", ".join(f"{load(s).CLAIM.id} ({s})" for s in stems())
        folder = f"; for the claims in the folder of this name: --claims {unknown}" if Path(unknown).is_dir() else ""
        raise ValueError(f"there is no claim {unknown!r}; the claims are {known}{folder}")
    return [stem for stem in dict.fromkeys(found) if stem is not None] or stems()


def run(stem: str, *, quick: bool, out: Path | None, config: Any = None, progress: bool = True):
    """Measure one claim; store the dataset and the figure under `out` unless it is None. Returns (dataset, seconds)."""
    from experiments.plotting import save_figure
    from simulator.storage.identity import describe_config
    from simulator.storage.results import provenance, save_dataset
    from simulator.training.engine import release_programs

    release_programs()
    module = load(stem)
    config = config or (module.QUICK if quick else module.Config())
    started = time.monotonic()
    data = module.measure(config, progress=progress)
    seconds = time.monotonic() - started
    data.attrs |= provenance() | dict(
        claim=module.CLAIM.id,
        config=json.dumps(describe_config(config)),
        precision=getattr(module, "PRECISION", "float64"),
    )
    if (file := own(stem)) is not None:
        data.attrs |= dict(claim_file=os.fsencode(file.path).decode(errors="replace"), claim_sha256=file.sha256)
    if out is not None:
        save_dataset(data, out / f"{stem}.nc")
        save_figure(module.draw, data, out / stem)
    return data, seconds


def judge(stem: str, data, seconds: float) -> list[dict[str, Any]]:
    """The ledger rows of one claim, as plain values for JSON. Raises ValueError where `CLAIM.expected` names other rows."""
    module = load(stem)
    claim, rows = module.CLAIM, module.judge(data)
    expected = module.expected(data) if hasattr(module, "expected") else claim.expected
    names = [row.name for row in rows]
    wrong = [f"{name!r} is no row" for name in claim.expected if name not in names]
    wrong += [f"{name!r} has no verdict" for name in names if name not in claim.expected]
    wrong += [f"{name!r} names {names.count(name)} rows" for name in dict.fromkeys(names) if names.count(name) > 1]
    if wrong:
        raise ValueError(f"CLAIM.expected of {stem} must name every row of its judge once: {'; '.join(wrong)}")
    ledger = []
    for row in rows:
        predicted, measured = _at_worst(row.test)
        ledger.append(
            dict(
                claim=claim.id,
                stem=stem,
                source=claim.source,
                row=row.name,
                check=f"{row.label} [{row.test.kind}]",
                predicted=predicted,
                measured=measured,
                error=_finite(row.test.error()),
                tolerance=float(row.test.tolerance),
                verdict=row.verdict(),
                assumed=claim.assumes,
                condition=row.condition,
                effect=row.effect,
                five_percent_off=row.five_percent_off(),
                expected=expected[row.name],
                control=row.control_name,
                control_error=_finite(row.control.error()),
                control_rejected=row.control_rejected(),
                seconds=round(seconds, 1),
            )
        )
    return ledger


def _at_worst(check) -> tuple[float, float]:
    """Predicted and measured value where they differ most (a slope: its two exponents)."""
    predicted, measured = np.atleast_1d(check.predicted).astype(float), np.atleast_1d(check.measured).astype(float)
    if check.kind == "slope":
        return float(predicted[0]), float(np.polyfit(np.log(check.at), np.log(measured), 1)[0])
    if check.kind == "monotone":
        ends = measured[..., np.argsort(check.at, kind="stable")[[0, -1]]].reshape(-1, 2).mean(axis=0)
        return float(predicted[0]), float(ends[1] - ends[0])
    difference = np.abs(measured - predicted)
    if check.kind == "monte_carlo":
        difference = difference / np.asarray(check.standard_error)
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    return float(np.broadcast_to(predicted, difference.shape)[worst]), float(measured[worst])


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def as_expected(row: dict[str, Any]) -> bool:
    """Whether a ledger row says what its claim expects, with its control rejected."""
    return row["verdict"] == row["expected"] and row["control_rejected"]


def table(header: list[str], lines: list[list[str]]) -> str:
    """Columns aligned for a terminal."""
    widths = [max(len(str(line[i])) for line in [header, *lines]) for i in range(len(header))]
    return "\n".join(
        "  ".join(str(c).ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [header, *lines]
    )


def ledger_table(rows: list[dict[str, Any]]) -> str:
    """The ledger as text."""
    number = lambda v: "inf" if v is None else f"{v:.4g}"
    lines = [
        [
            row["claim"],
            row["stem"],
            row["check"],
            number(row["predicted"]),
            number(row["measured"]),
            number(row["error"]),
            number(row["tolerance"]),
            row["verdict"] + ("" if row["verdict"] == row["expected"] else f" (expected {row['expected']})"),
            "yes" if row["control_rejected"] else "NO",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    header = [
        "claim",
        "name",
        "check",
        "predicted",
        "measured",
        "error",
        "tolerance",
        "verdict",
        "control rejected",
        "s",
    ]
    return "\n".join([table(header, lines), *map(reason, filter(needs_reason, rows))])


def needs_reason(row: dict[str, Any]) -> bool:
    """Whether a row says more than that its statement holds as it stands."""
    return row["verdict"] != "holds" or bool(row["effect"]) or row["five_percent_off"].startswith("passes")


def reason(row: dict[str, Any]) -> str:
    """Why a row does not simply hold: its condition, what was measured and how large the effect is, what was assumed."""
    verdict = {"holds": "holds:", "holds if": "holds if", "refuted": "is refuted:"}[row["verdict"]]
    parts = [f"{verdict} {row['condition']}".rstrip(" :"), f"measured: {row['effect']}"][: 1 + bool(row["effect"])]
    if row["five_percent_off"].startswith("passes"):
        parts.append(f"a prediction 5 % off {row['five_percent_off']}")
    parts.append(f"assumed: {row['assumed']}")
    return f"{row['claim']} {row['stem']}: {row['check']} {'; '.join(parts)}"
