"""`gapsim close`: close the gap of somebody's own embeddings, store the result, print what is certain about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import simulator as sim
from experiments._diagnose import _unit_rows
from simulator.certificate import quantization_effects
from simulator.index import write_whole
from simulator.postprocess import ALPHA_WORDS, SHIFTS
from simulator.store import load_embeddings
from simulator.validation import require_same_width


def close(
    gallery: Path, queries: Path, *, out: Path, rule: str, alpha: str, sigma: float | None, num_components: int | None,
    normalize: bool, quantize_bins: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Fit, store, certify. Returns what is printed and written as JSON: the certificate's fields, the file, and the
    effects of quantisation if asked for."""
    if out.suffix not in (".npy", ".npz"):
        raise ValueError(f"--out is {out}; its name must end in .npz, or in .npy for a rule that only shifts the rows")
    if out.suffix == ".npy" and rule not in SHIFTS:
        raise ValueError(f"rule {rule!r} stores exact scalars beside the rows; give --out a name that ends in .npz")
    if quantize_bins is not None and rule not in SHIFTS:
        raise ValueError(f"--quantize-bins compares rows before and after a shift; rule {rule!r} is more than a shift")
    x, y = load_embeddings(gallery), load_embeddings(queries)
    require_same_width(x, y, (str(gallery), str(queries)))
    if normalize:
        x, y = (_unit_rows(rows, path) for rows, path in ((x, gallery), (y, queries)))
    closer = sim.GapCloser(rule, num_components, _number_or_word(alpha), sigma=sigma).fit(x, y)
    index = closer.index(x)
    if out.suffix == ".npy":
        write_whole(out, lambda file: np.save(file, index.rows))
    else:
        index.save(out)
    result = dataclasses.asdict(closer.certificate(x, y)) | dict(out=str(out))
    if quantize_bins is not None:
        effects = quantization_effects(x, index.rows, y, bins=quantize_bins)
        result["quantization"] = [dataclasses.asdict(effect) for effect in effects]
    return result


def render(result: dict[str, Any]) -> str:
    """The certificate and the effects of quantisation in sentences."""
    from simulator.certificate import QuantizationEffect

    fields = {f.name: result[f.name] for f in dataclasses.fields(sim.Certificate)}
    lines = [str(sim.Certificate(**fields))]
    lines += [str(QuantizationEffect(**effect)) for effect in result.get("quantization", ())]
    return "\n".join([*lines, f"written: {result['out']}"])


def _number_or_word(alpha: str) -> float | str:
    if alpha in ALPHA_WORDS:
        return alpha
    try:
        return float(alpha)
    except ValueError:
        raise ValueError(f"--alpha is {alpha!r}; it must be a number, 'best' or 'safe'") from None
