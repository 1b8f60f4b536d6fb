"""What a search engine needs to answer queries from a gallery that was closed after training.

Float64 NumPy: an invariance of decisions is a statement about exact arithmetic.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.numerics.precision import equal_rows
from simulator.numerics.units import resolved
from simulator.storage.files import whole_file
from simulator.theory.robustness import exact_robustness
from simulator.theory.storage import margin_robustness
from simulator.validation import require_number, require_one_of, require_rows

LARGEST_BLOCK = 1 << 22  # scores held at once while searching: 32 MB


class InnerProduct(NamedTuple):
    """An index as plain inner products: the answer to q is argmax_k ⟨q @ matrix + offset, rows_k⟩.

    For a search engine by inner product (FAISS: `IndexFlatIP`), or a linear layer with a bias: its weights are
    `rows @ matrix.T` [K, d], its bias is `rows @ offset` [K]. The last column of `rows` is the bias column.

    Attributes:
      rows: [K, D + 1], D = d plus the number of exact scalars.
      matrix: [d, D + 1].
      offset: [D + 1].
    """

    rows: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray

    def map_queries(self, queries: Any) -> np.ndarray:
        """q @ matrix + offset for queries [n, d]: [n, D + 1]."""
        return np.asarray(queries, float) @ self.matrix + self.offset[None, :]

    def save(self, path: Path | str) -> Path:
        """Write the three arrays as .npz, whole or not at all."""
        return _save_arrays(path, self._asdict())


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """A stored gallery with what is kept exactly beside it, and how a query is scored against it.

    The query becomes u = M (I − UᵀU)(q − centre), M the `query_map` and U the `axes` (each left out where it is None).
    The answer to q is the class with the largest score
        "sqeuclidean":  −(‖u − rows_k‖² + bias_k),      "dot":  ⟨u, rows_k⟩ + ⟨U(q − centre), exact_k⟩ + bias_k,
    the conventions of `simulator.robustness.scores`. The rows may be stored with noise or in low precision; `bias` and
    `exact` are the scalars per class that must stay exact.

    Attributes:
      rows: what is stored, [K, d].
      bias: exact scalar of each row, [K].
      centre: what is subtracted from a query, [d].
      scoring: "sqeuclidean" or "dot".
      query_map: M, [d, d], or None.
      axes: U, orthonormal rows [r, d], or None; for scoring "dot" alone.
      exact: further exact scalars of each row, along the axes, [K, r], or None.
    """

    rows: np.ndarray
    bias: np.ndarray
    centre: np.ndarray
    scoring: str
    query_map: np.ndarray | None = None
    axes: np.ndarray | None = None
    exact: np.ndarray | None = None

    def __post_init__(self):
        require_rows("Index.rows", self.rows)
        require_one_of("Index.scoring", self.scoring, ("sqeuclidean", "dot"))
        count, width = np.shape(self.rows)
        kept = None if self.axes is None else len(self.axes)
        wanted = dict(bias=(count,), centre=(width,), query_map=(width, width), axes=(kept, width), exact=(count, kept))
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and (np.shape(value) != shape or not np.isfinite(value).all()):
                raise ValueError(f"Index.{name} has shape {np.shape(value)}; expected finite numbers of shape {shape}")
        if (self.axes is None) != (self.exact is None) or (self.axes is not None and self.scoring != "dot"):
            raise ValueError("Index.axes and Index.exact belong together, and to scoring 'dot'")

    def map_queries(self, queries: Any) -> np.ndarray:
        """u [n, d], what is scored against `rows`. Raises ValueError for queries of another width."""
        require_rows("queries", queries)
        if np.shape(queries)[1] != len(self.centre):
            raise ValueError(f"queries have {np.shape(queries)[1]} dimensions and the index {len(self.centre)}")
        rest = np.asarray(queries, float) - self.centre[None, :]
        if self.axes is not None:
            rest = rest - (rest @ self.axes.T) @ self.axes
        return rest if self.query_map is None else rest @ self.query_map.T

    def scores(self, queries: Any) -> np.ndarray:
        """Score of every class for every query, [n, K]; the largest wins. Euclidean scores leave out the term ‖u‖²,
        which is the same for all classes."""
        mapped = self.map_queries(queries)
        if self.scoring == "sqeuclidean":
            return 2 * mapped @ self.rows.T - (np.sum(self.rows**2, axis=1) + self.bias)[None, :]
        values = mapped @ self.rows.T + self.bias[None, :]
        if self.axes is None or self.exact is None:
            return values
        return values + ((np.asarray(queries, float) - self.centre[None, :]) @ self.axes.T) @ self.exact.T

    def search(self, queries: Any) -> np.ndarray:
        """The answer to each query [n, d], as a row number of the gallery [n]; the first one in a tie."""
        require_rows("queries", queries)
        size = max(1, LARGEST_BLOCK // len(self.rows))
        blocks = [self.scores(queries[i : i + size]).argmax(axis=1) for i in range(0, len(queries), size)]
        return np.concatenate(blocks)

    def robustness(self, queries: Any, *, sigma: float) -> np.ndarray:
        """Exact probability that each query keeps its answer under N(0, σ²) noise on every coordinate of `rows`, [n].

        Rows that are copies (`precision.equal_rows`) are one answer: with independent noise each of the c copies of the
        answer is the best row with the same probability p, so one of them is with probability c p.

        Args:
          queries: [n, d].
          sigma: standard deviation per coordinate, > 0.

        Error: exact (quadrature below 1e-9).
        Source: derived here: theory.md N4, N6, N7.
        """
        require_number("sigma", sigma, above=0.0)
        mapped = self.map_queries(queries)
        if self.scoring == "sqeuclidean":
            sigma = resolved(sigma, self.rows, mapped)
            kept = exact_robustness(self.rows, mapped, sigma=sigma, bias=self.bias if self.bias.any() else None)
        else:
            scaled, asked, noise = self._in_own_units(queries, sigma)
            noise = noise * np.linalg.norm(scaled.map_queries(asked), axis=1)
            kept = margin_robustness(scaled.scores(asked), np.maximum(noise, 1e-150))
        copies = equal_rows(self.rows)
        return np.minimum(kept * np.bincount(copies)[copies[self.search(queries)]], 1.0)

    def _in_own_units(self, queries: Any, sigma: float) -> tuple[Index, np.ndarray, float]:
        """The index, queries and noise divided by powers of two, so that no product overflows or vanishes; the same
        answers, for scoring "dot"."""
        queries = np.asarray(queries, float)
        x, y = (int(np.frexp(max(np.abs(a).max() for a in pair))[1]) for pair in ((self.rows,), (queries, self.centre)))
        scaled = dataclasses.replace(
            self, rows=np.ldexp(self.rows, -x), bias=np.ldexp(self.bias, -(x + y)), centre=np.ldexp(self.centre, -y),
            exact=None if self.exact is None else np.ldexp(self.exact, -x),
        )  # fmt: skip
        return scaled, np.ldexp(queries, -y), float(np.ldexp(sigma, -x))

    def inner_product(self) -> InnerProduct:
        """The same decisions as plain inner products of D + 1 numbers.

        The clean norms become part of the exact scalar, so under noise on the stored rows this behaves as scoring
        "dot": for a pure shift of the rows it is then the position of the queries that counts.
        """
        identity = np.eye(len(self.centre))
        if self.scoring == "sqeuclidean":
            scalar = -0.5 * (np.sum(self.rows**2, axis=1) + self.bias)
            columns, parts = [identity], [self.rows]
        else:
            scalar, columns, parts = self.bias, [self.map_queries(identity + self.centre[None, :])], [self.rows]
            if self.axes is not None:
                columns, parts = [*columns, self.axes.T], [*parts, self.exact]
        matrix = np.concatenate([*columns, np.zeros((len(identity), 1))], axis=1)
        offset = -self.centre @ matrix
        offset[-1] = 1.0
        return InnerProduct(np.concatenate([*parts, scalar[:, None]], axis=1), matrix, offset)

    def save(self, path: Path | str) -> Path:
        """Write all fields as .npz, whole or not at all."""
        return _save_arrays(path, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path | str) -> Index:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for a file of another kind."""
        if not Path(path).is_file():  # a pipe would be waited for
            raise FileNotFoundError(f"{path} does not exist, or is no regular file")
        try:
            with np.load(path, allow_pickle=False) as stored:
                fields: dict[str, Any] = {f.name: stored[f.name] for f in dataclasses.fields(cls) if f.name in stored}
            fields["scoring"] = str(fields["scoring"])
            return cls(**fields)
        except Exception as error:  # damage reaches parsers, decompressors and checks of all kinds
            raise ValueError(f"{path} is not an index that `gapsim close` or Index.save wrote ({error})") from error


def _save_arrays(path: Path | str, arrays: dict[str, Any]) -> Path:
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    return Path(path)
