"""The command `gapsim`. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Run:
    """Main job: train the default sweep and the digits, check the gap-robustness relation, draw the figures.

    Example: gapsim run --data digits
    """

    data: Literal["both", "synthetic", "digits"] = "both"
    """Synthetic pairs, the two halves of real digits, or both."""
    out: Path = Path("figures")
    """Folder for figures (.pdf, .png) and the numbers behind them (.nc)."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Judge claims: print the ledger; exit 0 if every verdict is the expected one and every control is rejected.

    Example: gapsim verify C4 --quick
    """

    claims: Positional[tuple[str, ...]] = ()
    """Claims by id or name; none for all."""
    quick: bool = False
    """Small settings."""
    json: Path | None = None
    """Write the ledger to this file."""
    out: Path | None = None
    """Also store figures and results here."""


@dataclasses.dataclass(frozen=True)
class List:
    """List the claims: id, name, title and source.

    Example: gapsim list
    """


@dataclasses.dataclass(frozen=True)
class Figures:
    """Redraw figures from stored results, without computing anything again.

    Example: gapsim figures C1
    """

    claims: Positional[tuple[str, ...]] = ()
    """Claims by id or name; none for all that are stored."""
    out: Path = Path("figures")
    """Folder that holds the results and receives the figures."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Measure the gap between two arrays of embeddings.

    Example: gapsim diagnose texts.npy images.npy --paired --normalize
    """

    gallery: Positional[Path]
    """Gallery embeddings, .npy [K, d] (texts, class prompts)."""
    queries: Positional[Path]
    """Query embeddings, .npy [n, d] (images)."""
    paired: bool = False
    """Row i of the gallery pairs with row i of the queries (equal row counts never imply it)."""
    labels: Path | None = None
    """Right gallery row of each query: .npy of whole numbers, or a text file with one per line."""
    normalize: bool = False
    """Scale all rows to unit length first."""
    temperature: float | None = None
    """Temperature of the model, for the marginal errors."""
    sigma: float | None = None
    """Noise per coordinate on the gallery rows: predict robustness with the gap open and closed."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclasses.dataclass(frozen=True)
class Close:
    """Close the gap of stored embeddings without changing decisions; print what is certain about the result.

    Example: gapsim close texts.npy images.npy --out closed.npz --rule centred --normalize
    """

    gallery: Positional[Path]
    """Gallery embeddings, .npy [K, d]."""
    queries: Positional[Path]
    """Query embeddings, .npy [n, d]: a sample of what will be asked."""
    out: Path
    """Where to: .npy for the rows of a rule that only shifts them, .npz for rows, scalars, centre and scoring."""
    rule: Literal["complement", "compensated", "centred", "soft", "optimal"] = "complement"
    """complement: shift along what the gallery cannot see; soft: nearly so; compensated, centred, optimal: with exact
    scalars, for any gallery."""
    alpha: str = "1"
    """How far: a number (1 closes), best (for the mean robustness at --sigma), or safe (every query gains)."""
    sigma: float | None = None
    """Noise per coordinate on the stored rows: compare the exact robustness before and after."""
    num_components: int | None = None
    """complement: principal directions kept still (all); centred: further exact scalars per class (none)."""
    normalize: bool = False
    """Scale all rows to unit length first."""
    quantize_bins: int | None = None
    """Also show what quantising the rows to this many bins per coordinate does before and after, and why."""
    json: Path | None = None
    """Also write the certificate to this file."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Close, tyro.conf.subcommand("close")]
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn what a user can mend into one line on standard error."""
    command = tyro.cli(Command, prog="gapsim", description="Theory simulator for contrastive training.", args=arguments)
    try:
        return _COMMANDS[type(command)](command)
    except KeyboardInterrupt:
        print("gapsim: stopped; what was finished is stored", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"gapsim: {error}", file=sys.stderr)
        return 2


def _use_all_cores():
    """One XLA device per core; only possible before JAX computes anything in this process."""
    import contextlib

    import jax

    with contextlib.suppress(RuntimeError):  # JAX is in use already: keep the devices it has
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def _run(command: Run) -> int:
    _use_all_cores()
    from experiments import _ledger, gap_emergence

    config = gap_emergence.Config(data=command.data)
    data, seconds = _ledger.run("gap_emergence", quick=False, out=command.out, config=config)
    print("\n" + _ledger.table(gap_emergence.SUMMARY_HEADER, gap_emergence.summary(data)) + "\n")
    rows = _ledger.judge("gap_emergence", data, seconds)
    for stem in ("robustness_monotone", "clean_invariance"):
        config = _ledger.load(stem).Config(data=command.data)
        data, seconds = _ledger.run(stem, quick=False, out=command.out, config=config)
        rows += _ledger.judge(stem, data, seconds)
    print(_ledger.ledger_table(rows))
    print(f"\nfigures and results: {command.out.resolve()}")
    return 0 if all(map(_ledger.as_expected, rows)) else 1


def _verify(command: Verify) -> int:
    _use_all_cores()
    from experiments import _ledger

    rows = []
    for stem in _ledger.find(command.claims):
        data, seconds = _ledger.run(stem, quick=command.quick, out=command.out)
        rows += _ledger.judge(stem, data, seconds)
    print(_ledger.ledger_table(rows))
    if command.json is not None:
        _write_json(command.json, rows)
    good = all(map(_ledger.as_expected, rows))
    print("every verdict is as expected and every control is rejected" if good else "NOT as expected")
    return 0 if good else 1


def _list(command: List) -> int:
    from experiments import _ledger

    claims = [(stem, _ledger.load(stem).CLAIM) for stem in _ledger.stems()]
    print(_ledger.table(["claim", "name", "title", "source"], [[c.id, s, c.title, c.source] for s, c in claims]))
    return 0


def _figures(command: Figures) -> int:
    from experiments import _ledger
    from experiments._figures import save_figure
    from simulator.store import load_dataset

    found = _ledger.find(command.claims)
    if not command.claims:
        found = [stem for stem in found if (command.out / f"{stem}.nc").exists()]
        if not found:
            raise ValueError(f"{command.out} holds no stored results; run `gapsim run` or `gapsim verify --out` first")
    for stem in found:
        data = load_dataset(command.out / f"{stem}.nc")
        for path in save_figure(_ledger.load(stem).draw, data, command.out / stem):
            print(path)
    return 0


def _diagnose(command: Diagnose) -> int:
    from experiments import _diagnose

    result = _diagnose.diagnose(
        command.gallery, command.queries, paired=command.paired, labels=command.labels,
        normalize=command.normalize, temperature=command.temperature, sigma=command.sigma,
    )  # fmt: skip
    print(_diagnose.render(result))
    if command.json is not None:
        _write_json(command.json, result)
    return 0


def _close(command: Close) -> int:
    from experiments import _close

    options = {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "json"}
    result = _close.close(**options)
    print(_close.render(result))
    if command.json is not None:
        _write_json(command.json, result)
    return 0


def _write_json(path: Path, value) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


_COMMANDS = {Run: _run, Verify: _verify, List: _list, Figures: _figures, Diagnose: _diagnose, Close: _close}

if __name__ == "__main__":
    sys.exit(main())
