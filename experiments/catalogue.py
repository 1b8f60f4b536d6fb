"""From claims to verdicts: find the experiments, run them, judge them, print the ledger."""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments import claims

MAIN_JOB = ("gap_emergence", "robustness_monotone", "clean_invariance")  # the claims that `gapsim run` judges


def stems() -> list[str]:
    """Names of all experiments, in order of their claims' ids."""
    names = [module.name for module in pkgutil.iter_modules(claims.__path__)]
    return sorted(names, key=lambda name: _order(load(name).CLAIM.id))


def _order(claim_id: str):
    """The core claims, then our predictions, then the published ones."""
    return "CNP".find(claim_id[0]), int("".join(c for c in claim_id if c.isdigit()) or 0)


def load(stem: str) -> ModuleType:
    """The module of an experiment."""
    return importlib.import_module(f"experiments.claims.{stem}")


def find(names: tuple[str, ...]) -> list[str]:
    """Stems for claims named by id or stem; all of them for none. Raises ValueError for an unknown name."""
    by_name = {}
    for stem in stems():
        by_name[stem] = by_name[load(stem).CLAIM.id.lower()] = stem
    unknown = [name for name in names if name.lower() not in by_name]
    if unknown:
        known = ", ".join(f"{load(s).CLAIM.id} ({s})" for s in stems())
        raise ValueError(f"there is no claim {unknown[0]!r}; the claims are {known}")
    return [by_name[name.lower()] for name in names] or stems()


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
