"""Stored figures: those of claims and the others, found by name and drawn again from their numbers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from experiments import catalogue, plotting
from experiments.bench import cost_model, tables
from experiments.real_embeddings import study_page
from simulator.storage.results import load_dataset

# Figures that belong to no claim: the module that draws them, and the stem of the numbers that they show.
OTHERS: dict[str, tuple[ModuleType, str]] = dict(
    real_embeddings=(study_page, "real_embeddings"),
    performance=(tables, "performance"),
    cost_model=(cost_model, "performance"),
)


def find(names: tuple[str, ...], folder: Path) -> list[str]:
    """Figures by id or name; for none, all whose numbers are in the folder: the claims in their order, then the others.

    Raises ValueError for an unknown name.
    """
    claims = tuple(name for name in names if name not in OTHERS)
    found = catalogue.find(claims) if claims or not names else []
    found += [name for name in OTHERS if name in names or not names]
    return found if names else [name for name in found if (folder / f"{OTHERS.get(name, (0, name))[1]}.nc").exists()]


def source(name: str) -> tuple[ModuleType, str]:
    """The module with `draw` and `CAPTION` of a figure, and the stem of its numbers."""
    return OTHERS[name] if name in OTHERS else (catalogue.load(name), name)


def redraw(name: str, folder: Path, out: Path | None = None) -> list[Path]:
    """Draw the stored numbers of a figure again, into the same folder or another; returns the two paths."""
    module, stem = source(name)
    path = folder / f"{stem}.nc"
    try:
        data = load_dataset(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; name the folder that holds it with --results") from error
    except Exception as error:  # whatever is wrong with a file
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); write it again") from error
    return plotting.save_figure(module.draw, data, (out or folder) / name)
