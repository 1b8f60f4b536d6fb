"""The commands on somebody's own embeddings, `gapsim diagnose` and `gapsim close`: their options and outputs.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from experiments.commands.outputs import write_json


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Measure the gap between two arrays of embeddings.

    Example: gapsim diagnose texts.npy images.npy --paired --normalize
    """

    gallery: Positional[Path]
    """Gallery embeddings [K, d] (texts, class prompts): .npy, .npz, .safetensors or .parquet; FILE:NAME for an array
    inside a file."""
    queries: Positional[Path]
    """Query embeddings [n, d] (images), likewise; read by blocks, so they may be larger than memory."""
    paired: bool = False
    """Row i of the gallery pairs with row i of the queries (equal row counts never imply it)."""
    labels: Path | None = None
    """Right gallery row of each query: whole numbers in one of these formats, or a text file with one per line."""
    normalize: bool = False
    """Scale all rows to unit length first."""
    temperature: float | None = None
    """Temperature of the model, for the marginal errors."""
    sigma: float | None = None
    """Noise per coordinate on the gallery rows: predict robustness with the gap open and closed."""
    subset: int = 5000
    """Random rows for what takes all pairs of rows; everything else is exact, and the output says which is which."""
    seed: int = 0
    """Of the random rows."""
    json: Path | None = None
    """Also write the numbers to this file."""
    page: Path | None = None
    """Also draw one page: FILE.pdf, and FILE.png beside it."""


@dataclasses.dataclass(frozen=True)
class Close:
    """Close the gap of stored embeddings and certify what that does to the decisions.

    Example: gapsim close texts.npy images.npy --out closed.npz --rule centred --normalize --sigma 0.02
    """

    gallery: Positional[Path]
    """Gallery embeddings [K, d] (texts, class prompts), as for diagnose; held in memory."""
    queries: Positional[Path]
    """Query embeddings [n, d] (images), a sample of what will be asked; read by blocks."""
    out: Path
    """Where to: .npy for the rows of a rule that only shifts them, .npz for rows, scalars, centre and scoring."""
    rule: Literal["complement", "compensated", "centred", "soft", "optimal"] = "complement"
    """complement: shift along what the gallery cannot see; soft: nearly so, a few decisions change; compensated,
    centred, optimal: exact scalars beside the rows, for any gallery."""
    alpha: str = "1"
    """How far: a number (0 leaves, 1 closes), best (for the mean robustness at --sigma), or safe (every query gains)."""
    num_components: int | None = None
    """complement: leading principal directions kept still (all of them); centred: further exact scalars per class (0)."""
    sigma: float | None = None
    """Noise per coordinate on the stored rows: compare the exact robustness before and after."""
    centre: Literal["mean", "best"] = "mean"
    """centred: score from the mean query, or from the centre that is best for the mean robustness at --sigma."""
    normalize: bool = False
    """Scale all rows to unit length first."""
    inner_product: bool = False
    """Store plain inner products instead (rows with a bias column, matrix and offset for the queries): what FAISS or a
    linear layer takes."""
    quantize_bins: int | None = None
    """complement, soft: also show what rounding the rows to this many bins per coordinate does before and after."""
    json: Path | None = None
    """Also write the certificate to this file."""


def run_diagnose(command: Diagnose) -> int:
    """Measure, write, print."""
    from experiments.commands import diagnosis
    from experiments.report import diagnosis_page
    from simulator.training.devices import require_device

    require_device()
    if command.page is not None and command.page.suffix != ".pdf":
        raise ValueError(f"--page is {command.page}; name a file that ends in .pdf (a .png appears beside it)")
    _require_outputs(command, command.json, command.page, command.page and command.page.with_suffix(".png"))
    result = diagnosis.diagnose(
        command.gallery, command.queries, paired=command.paired, labels=command.labels, normalize=command.normalize,
        temperature=command.temperature, sigma=command.sigma, subset=command.subset, seed=command.seed, progress=True,
    )  # fmt: skip
    if command.json is not None:
        write_json(command.json, result)
    if command.page is not None:
        from experiments.plotting import save_figure

        save_figure(diagnosis_page.draw, result, command.page.with_suffix(""))
    _say(result["warnings"], diagnosis_page.render(result))
    return 0


def run_close(command: Close) -> int:
    """Close, write, print the certificate."""
    from experiments.commands import closing

    _require_outputs(command, command.out, command.json)
    options = {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "json"}
    result = closing.close(**options, progress=True)
    if command.json is not None:
        write_json(command.json, result)
    _say(result["warnings"], closing.render(result))
    return 0


def _say(warnings: list[str], words: str):
    """Last, when all is written: a terminal or a pipe that fails loses nothing."""
    for warning in warnings:
        print(f"gapsim: warning: {warning}", file=sys.stderr)
    print(words)


def _require_outputs(command: Diagnose | Close, *paths: Path | None):
    """Every output can be written, none is an input, no two are one file."""
    from simulator.storage.files import require_outputs

    given = [command.gallery, command.queries, getattr(command, "labels", None)]
    inputs = [str(path) for path in given if path is not None]
    inputs += [path.rpartition(":")[0] for path in inputs]  # FILE:NAME
    require_outputs(paths, map(Path, filter(None, inputs)))
