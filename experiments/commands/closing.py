"""`gapsim close`: close the gap of somebody's own embeddings, store the result, print what is certain about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import simulator as sim
from experiments.commands.diagnosis import TILE, Modality, repeats, require_match
from simulator.closing.certificate import Certificate, QuantizationEffect, cosine_warning, quantization_effects
from simulator.closing.closer import ALPHA_WORDS
from simulator.closing.rules import RULES, Centre
from simulator.numerics.precision import equal_rows
from simulator.storage.embeddings import Embeddings
from simulator.storage.files import whole_file
from simulator.validation import require_integer, require_memory

LARGEST_GALLERY = 1 << 28  # values of a gallery that is held in memory: 2 GiB


def close(
    gallery: Path, queries: Path, *, out: Path, rule: str = "complement", alpha: str = "1",
    num_components: int | None = None, sigma: float | None = None, normalize: bool = False, centre: Centre = "mean",
    inner_product: bool = False, quantize_bins: int | None = None, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Fit, certify, store; the gallery is held in memory, the queries are read by blocks.

    Args:
      gallery, queries: files of `Embeddings`.
      out: .npy for the rows of a rule that only shifts them, .npz for all that an index needs.
      rule, alpha, num_components, sigma, centre: of `GapCloser`; alpha as text.
      normalize: scale every row to unit length first.
      inner_product: store `Index.inner_product` in place of the index.
      quantize_bins: also compare quantisation to this many bins before and after.
      progress: show bars on standard error.

    Returns:
      The fields of the certificate, `out`, `warnings`, `curve` (alpha and robustness tried, for alpha "best") and `quantization`.

    Raises:
      ValueError, OSError: input that cannot be read, does not fit together, or leaves nothing to move. Nothing is written.
    """
    _require_name(out, rule, inner_product)
    if quantize_bins is not None:
        require_integer("quantize_bins", quantize_bins, least=2)
        if not RULES[rule].shifts:
            raise ValueError(
                f"--quantize-bins compares rows before and after a shift, and rule {rule!r} is more than a shift; leave it out"
            )
    x, y = (Modality(Embeddings(path), normalize, progress) for path in (gallery, queries))
    closer = sim.GapCloser(rule, num_components, _number_or_word(alpha), sigma=sigma, centre=centre)
    require_match(x.file, y.file, paired=False)
    if x.file.shape[0] * x.file.shape[1] > LARGEST_GALLERY:
        raise ValueError(
            f"{x.file} has {x.file.shape[0]:,} rows of {x.file.shape[1]}; a gallery is held in memory, up to "
            f"{LARGEST_GALLERY:,} values: close it in parts, fitted in Python on a sample"
        )
    if inner_product:
        require_memory("--inner-product", x.file.shape[1], squares=3)
    rows = np.concatenate(list(x()))
    blocks: Callable = lambda words="": y(words, rows=max(1, TILE * TILE // len(rows)))
    closer.fit(rows, lambda: blocks("queries: fit"), roundoff=max(x.roundoff, y.roundoff) if normalize else 0.0)
    if closer.nothing_to_move() is not None:
        raise ValueError(closer.nothing_to_move())
    index = closer.index(rows)
    certificate = closer.certificate(rows, lambda: blocks("queries: certificate"))
    result = dataclasses.asdict(certificate) | dict(out=str(out), normalized=normalize, curve=None, quantization=None)
    repeated = len(rows) - len(np.unique(rows, axis=0))
    result["warnings"] = repeats(str(x.file), len(rows), repeated, equal_rows(rows, x.roundoff))
    if certificate.cosine_differs:
        result["warnings"].append(cosine_warning(certificate.cosine_differs, certificate.num_queries))
    if closer.curve_ is not None:
        result["curve"] = {name: values.tolist() for name, values in closer.curve_._asdict().items()}
    if quantize_bins is not None:
        effects = quantization_effects(rows, index.rows, blocks("queries: quantisation"), bins=quantize_bins)
        result["quantization"] = [dataclasses.asdict(effect) for effect in effects]
    if out.suffix == ".npy":
        with whole_file(out) as draft:
            np.save(draft, index.rows)
    else:
        (index.inner_product() if inner_product else index).save(out)
    return result


def _require_name(out: Path, rule: str, inner_product: bool):
    if out.suffix not in (".npy", ".npz"):
        raise ValueError(f"--out is {out}; its name must end in .npz, or in .npy for a rule that only shifts the rows")
    if out.suffix == ".npy" and (not RULES[rule].shifts or inner_product):
        what = "an inner-product index" if inner_product else f"rule {rule!r}"
        raise ValueError(f"--out is {out}; {what} has exact scalars beside the rows: give it a name that ends in .npz")


def render(result: dict[str, Any]) -> str:
    """The certificate and the effects of quantisation in sentences."""
    lines = [str(Certificate(**{f.name: result[f.name] for f in dataclasses.fields(Certificate)}))]
    if result["curve"] is not None:
        curve = result["curve"]
        points = zip(curve["alpha"], curve["robustness"], strict=True)
        lines.append("exact robustness tried at α: " + ", ".join(f"{a:.3g}: {r:.4f}" for a, r in points))
    lines += [f"quantised to {QuantizationEffect(**effect)}" for effect in result["quantization"] or ()]
    return "\n".join([*lines, f"written: {result['out']}"])


def _number_or_word(alpha: str) -> float | str:
    if alpha in ALPHA_WORDS:
        return alpha
    try:
        return float(alpha)
    except ValueError:
        raise ValueError(f"--alpha is {alpha!r}; it must be a number, 'best' or 'safe'") from None
