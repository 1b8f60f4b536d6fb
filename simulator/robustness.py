"""Measured robustness: how often the answer to a query survives noise on the embeddings.

An answer is the best-scoring gallery row. "Stays wrong" counts as robust, so accuracy is reported beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from simulator.losses import SIMILARITIES, Similarity, similarity_matrix
from simulator.numerics.units import Problem, in_own_units, require_bias
from simulator.tracing import named, require_one_program
from simulator.validation import (
    require_integer,
    require_labels,
    require_number,
    require_one_of,
    require_rows,
    require_same_width,
)

Target = Literal["gallery", "queries", "both", "shared"]
Range = Literal["fixed", "minmax", "per_dimension"]
Noise = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Independent N(0, sigma²) noise on every coordinate.

    Args:
      sigma: standard deviation per coordinate, >= 0.
      on: "gallery" (an independent draw per gallery row), "queries" (per query), "both", or "shared" (one draw,
        the same for all gallery rows).
      orthogonal_to: direction [d] or rows [m, d] whose span is projected out of the noise.
      within: rows [m, d]; the noise is projected onto their span.
    """

    sigma: float
    _: dataclasses.KW_ONLY
    on: Target = "gallery"
    orthogonal_to: Any = None
    within: Any = None

    def __post_init__(self):
        require_number("GaussianNoise.sigma", self.sigma, least=0.0)
        require_one_of("GaussianNoise.on", self.on, get_args(Target))
        for name in ("orthogonal_to", "within"):
            if getattr(self, name) is not None:
                require_rows(f"GaussianNoise.{name}", np.atleast_2d(getattr(self, name)))

    def estimate(self, gallery, queries, asked: Asked) -> Estimate:
        """Robustness under this noise, with rows and noise in units of their own."""
        problem = in_own_units(gallery, queries, sigma=float(self.sigma), scoring=asked.scoring, bias=asked.bias)
        projection = _noise_projection(self, np.shape(gallery)[1])
        with jax.enable_x64(True):
            clean = _answers(problem, asked.scoring)
            counted = _count(
                problem, clean, asked.target(len(clean)), projection, asked.key,
                on=self.on, num_draws=asked.num_draws, scoring=asked.scoring, dtype=asked.dtype,
            )  # fmt: skip
            return asked.over_draws(clean, *counted)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Uniform quantisation of the gallery rows: every coordinate becomes the centre of its bin.

    Q(x) = low + (i + ½) step, i = min(max(⌊(x − low)/step⌋, 0), bins − 1), step = (high − low)/bins: what lies outside
    the range is clipped to the outermost centre, inside it the error is at most step/2. The rounding is deterministic
    and the queries are left as they are.

    Args:
      bins: number of bins per coordinate, >= 2.
      range: where low and high come from. "fixed": −1 and 1, whatever the gallery; "minmax": the smallest and largest
        coordinate of the whole gallery, so that one outlier coordinate sets everybody's step; "per_dimension": the
        smallest and largest value in each dimension, so that a shift of all rows changes no error. A range of length
        0 is exact.
    """

    bins: int
    _: dataclasses.KW_ONLY
    range: Range = "fixed"

    def __post_init__(self):
        require_integer("Quantization.bins", self.bins, least=2)
        require_one_of("Quantization.range", self.range, get_args(Range))

    def __call__(self, rows) -> jax.Array:
        """The quantised rows [K, d], in the precision of `rows`."""
        require_rows("rows", rows)
        rows = jnp.asarray(rows, jnp.result_type(rows, jnp.float32))
        return _quantize(rows, jnp.asarray(self.bins, rows.dtype), range=self.range)

    def estimate(self, gallery, queries, asked: Asked) -> Estimate:
        """Robustness to the one change that rounding makes, whatever the draws that are asked for."""
        stored = np.asarray(self(jnp.asarray(gallery, asked.dtype)), float)
        centre = np.asarray(gallery, float).mean(axis=0)
        units = functools.partial(in_own_units, sigma=0.0, scoring=asked.scoring, bias=asked.bias, centre=centre)
        with jax.enable_x64(True):
            clean, answer = (_answers(units(rows, queries), asked.scoring) for rows in (gallery, stored))
        kept = (answer == clean).astype(float)
        return Estimate(
            float(kept.mean()), 0.0, kept, asked.accuracy(answer == asked.labels), asked.clean_accuracy(clean)
        )


@functools.partial(jax.jit, static_argnames=("range",))
def _quantize(rows, bins, *, range):
    low, high = -jnp.ones_like(rows), jnp.ones_like(rows)
    if range != "fixed":
        axis = None if range == "minmax" else 0
        low = jnp.broadcast_to(rows.min(axis=axis, keepdims=True), rows.shape)
        high = jnp.broadcast_to(rows.max(axis=axis, keepdims=True), rows.shape)
    step = (high - low) / bins
    index = jnp.clip(jnp.floor((rows - low) / jnp.where(step > 0, step, 1.0)), 0, bins - 1)
    return jnp.where(step > 0, low + (index + 0.5) * step, rows)


class Estimate(NamedTuple):
    """A Monte-Carlo estimate over draws of the noise, with the queries fixed.

    Attributes:
      mean: share of queries whose answer is the one without noise.
      standard_error: of `mean`, over the independent draws (one draw = one noisy gallery shared by all queries), and
        at least one decision in all draws; NaN for a single draw, 0 for quantisation, which draws nothing.
      per_query: share of draws in which each query keeps its answer [n_queries].
      accuracy: mean over draws of the share of queries answered with their label; NaN without labels.
      clean_accuracy: the same without noise.
    """

    mean: float
    standard_error: float
    per_query: np.ndarray
    accuracy: float
    clean_accuracy: float


class Asked(NamedTuple):
    """What is asked of a noise, beside the rows: arguments of `measured_robustness`, checked."""

    num_draws: int
    key: jax.Array
    scoring: Similarity
    bias: np.ndarray | None
    labels: np.ndarray | None
    dtype: Any

    def target(self, num_queries: int) -> np.ndarray:
        """The right answers [n]; −1, which none is, without labels."""
        return np.full(num_queries, -1) if self.labels is None else self.labels

    def accuracy(self, right) -> float:
        return np.nan if self.labels is None else float(np.mean(right))

    def clean_accuracy(self, clean) -> float:
        return self.accuracy(clean == self.labels)

    def over_draws(self, clean, kept_by_query, per_draw) -> Estimate:
        """The estimate from draws kept by each query [n], and per draw the shares of kept and of right answers [num_draws]."""
        # Arrays of NumPy: outside of 64-bit mode JAX would cut its own down to 32 bits.
        kept, right, kept_by_query = (np.asarray(values, float) for values in (*per_draw, kept_by_query))
        # Where no draw changes anything the spread 0 is no error.
        resolution = 1.0 / (self.num_draws * len(kept_by_query))
        error = max(kept.std(ddof=1) / self.num_draws**0.5, resolution) if self.num_draws > 1 else np.nan
        per_query = kept_by_query / self.num_draws
        return Estimate(float(kept.mean()), float(error), per_query, self.accuracy(right), self.clean_accuracy(clean))


def scores(gallery, queries, *, scoring: Similarity = "sqeuclidean", bias=None) -> jax.Array:
    """Score of every gallery row for every query, [K, n]; the largest wins.

    "sqeuclidean": −(‖y − x_k‖² + b_k); "dot": ⟨y, x_k⟩ + b_k; "cosine": cos(y, x_k) + b_k. So a bias is added to
    the squared distance for "sqeuclidean" and to the similarity otherwise.
    """
    values = similarity_matrix(gallery, queries, scoring)
    if bias is None:
        return values
    return values - bias[:, None] if scoring == "sqeuclidean" else values + bias[:, None]


def nearest(gallery, queries, *, scoring: Similarity = "sqeuclidean", bias=None) -> jax.Array:
    """Index of the best gallery row for every query, [n]; the first one in a tie."""
    return jnp.argmax(scores(gallery, queries, scoring=scoring, bias=bias), axis=0)


def measured_robustness(
    gallery, queries, *, noise: GaussianNoise | Quantization | Noise, num_draws: int, key: jax.Array,
    scoring: Similarity = "sqeuclidean", bias=None, labels=None,
) -> Estimate:  # fmt: skip
    """Share of queries whose answer survives noise on the embeddings, by Monte Carlo.

    Rob = P[ answer(y, X + E) = answer(y, X) ], averaged over the queries. Draws depend on the key and on the shapes
    alone: the same key pairs the draws across galleries of one shape (across α, for instance).

    Args:
      gallery: [K, d] rows that are searched.
      queries: [n, d].
      noise: GaussianNoise; Quantization: deterministic, so it is evaluated once, whatever num_draws and key; or a function of
        one's own (gallery, queries, key) -> (gallery, queries), called with float64 rows in JAX's 64-bit mode and a key for each
        draw, which jax.random draws with.
      num_draws: independent draws of the noise, >= 1.
      key: JAX random key.
      scoring: "sqeuclidean" (nearest row), "dot" or "cosine" (most similar row).
      bias: [K] exact scalar per gallery row, see `scores`; it carries no noise.
      labels: [n] gallery row that is right for each query; None leaves the accuracies NaN.

    Returns:
      Estimate, all shares between 0 and 1. The draws have the precision of the wider input (float32 unless JAX runs in
      64-bit mode); scores are float64, of rows in units of their own (`simulator.numerics.units`).

    Raises:
      ValueError: shapes that do not fit, NaN rows, labels that are not gallery rows, noise directions of another
        dimension, or a noise subspace with nothing left in it.

    Example:
      >>> gallery, queries = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.5, 0.0]])
      >>> found = sim.measured_robustness(
      ...     gallery, queries, noise=sim.GaussianNoise(1.0), num_draws=20_000, key=jax.random.key(0)
      ... )
      >>> bool(abs(found.mean - 0.6878) < 4 * found.standard_error)
      True

    Source: Chowers et al. 2026, Thm 3.4 (definition of robustness).
    """
    require_same_width(gallery, queries)
    require_integer("num_draws", num_draws)
    require_one_of("scoring", scoring, SIMILARITIES)
    if labels is not None:
        labels = require_labels(labels, num_queries=np.shape(queries)[0], num_classes=np.shape(gallery)[0])
    dtype = jnp.result_type(gallery, queries, jnp.float32)
    bias = require_bias(bias, np.shape(gallery)[0])
    asked = Asked(num_draws, key, scoring, bias, labels, dtype)
    own: Any = noise  # of the user's, or with the form of the shipped ones
    is_shipped = hasattr(noise, "estimate") and not isinstance(noise, type)
    return own.estimate(gallery, queries, asked) if is_shipped else _under(own, gallery, queries, asked)


def _answers(problem: Problem, scoring) -> np.ndarray:
    return np.asarray(nearest(problem.gallery, problem.queries, scoring=scoring, bias=problem.bias))


def _under(noise: Noise, gallery, queries, asked: Asked) -> Estimate:
    """The estimate under a noise of the user's own, on rows as they are given."""
    if isinstance(noise, type) or not callable(noise):
        raise ValueError(
            f"noise is {noise!r}; it must be GaussianNoise(...), Quantization(...) or a function (gallery, queries, key) -> "
            "(gallery, queries)"
        )
    with jax.enable_x64(True):
        rows, questions = jnp.asarray(gallery, float), jnp.asarray(queries, float)
        with named("the noise"):
            found = jax.eval_shape(noise, rows, questions, asked.key)
        wanted = [rows.shape, questions.shape]
        parts = list(found) if isinstance(found, tuple) else [found]
        if [np.shape(part) for part in parts] != wanted or any(part.dtype.kind not in "fiu" for part in parts):
            raise ValueError(
                f"the noise gives {found}; it must give (gallery, queries), real numbers of shapes {wanted}"
            )
        require_one_program("the noise", noise, rows, questions, asked.key)
        clean, kept_by_query, (kept, right, finite) = _count_under(noise, rows, questions, asked)
        if not np.all(finite):
            raise ValueError(f"the noise gives NaN or infinity in draw {int(np.argmin(finite))} of {asked.num_draws}")
        return asked.over_draws(np.asarray(clean), kept_by_query, (kept, right))


def _count_under(noise: Noise, gallery, queries, asked: Asked):
    """Clean answers [n], draws kept by each query [n], and per draw the shares of kept and of right answers and whether all is finite."""
    target, answer_of = asked.target(len(queries)), functools.partial(nearest, scoring=asked.scoring, bias=asked.bias)

    @jax.jit
    def count(gallery, queries, key):
        clean = answer_of(gallery, queries)

        def one_draw(draw):
            rows, questions = (jnp.asarray(p, float) for p in noise(gallery, queries, jax.random.fold_in(key, draw)))
            answer = answer_of(rows, questions)
            share = lambda are: jnp.mean(are, dtype=float)
            finite = jnp.isfinite(rows).all() & jnp.isfinite(questions).all()
            return answer == clean, (share(answer == clean), share(answer == target), finite)

        return clean, *_over_draws(one_draw, asked.num_draws)

    return count(gallery, queries, asked.key)


def changed_decisions(gallery, moved, queries, *, noise: GaussianNoise, num_draws: int, key: jax.Array) -> int:
    """How many noisy answers differ between a gallery and the same gallery moved, under the same draws.

    Counts over num_draws × n queries, Euclidean nearest neighbour, in float64: an invariance is a statement about exact
    arithmetic.

    Args:
      gallery, moved: [K, d], before and after.
      queries: [n, d].
      noise, num_draws, key: as in `measured_robustness`.

    Returns:
      A count between 0 and num_draws × n.
    """
    require_same_width(gallery, queries)
    require_same_width(gallery, moved, ("gallery", "moved"))
    dtype = jnp.result_type(gallery, queries, jnp.float32)
    centre = np.asarray(gallery, float).mean(axis=0)
    problems = [
        in_own_units(rows, queries, sigma=float(noise.sigma), scoring="sqeuclidean", centre=centre)
        for rows in (gallery, moved)
    ]
    projection = _noise_projection(noise, np.shape(gallery)[1])
    with jax.enable_x64(True):
        return int(_count_changes(problems, projection, key, on=noise.on, num_draws=num_draws, dtype=dtype))


def _noise_projection(noise: GaussianNoise, dimensions: int) -> np.ndarray | None:
    """The projector [d, d] applied to isotropic draws, or None for none."""
    if noise.orthogonal_to is None and noise.within is None:
        return None
    projection = np.eye(dimensions)
    for rows, keep in ((noise.within, True), (noise.orthogonal_to, False)):
        if rows is None:
            continue
        rows = np.atleast_2d(np.asarray(rows, float))
        if rows.shape[1] != dimensions:
            raise ValueError(f"the noise directions have {rows.shape[1]} dimensions and the embeddings {dimensions}")
        # `orthogonal_to` is taken out of what `within` left, so that both conditions hold exactly.
        basis = orthonormal_basis(rows @ projection)
        onto = basis.T @ basis
        projection = projection @ onto if keep else projection - onto
    if np.trace(projection) < 0.5:
        raise ValueError("nothing is left of the noise: `within` and `orthogonal_to` leave no direction")
    return projection


def orthonormal_basis(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows [r, d] that span the given rows [m, d], by SVD with NumPy's rank tolerance."""
    _, singular, basis = np.linalg.svd(np.asarray(rows, float), full_matrices=False)
    tolerance = max(rows.shape) * np.finfo(float).eps * (singular[0] if singular.size else 0.0)
    return basis[singular > tolerance]


def _draw(key, problem: Problem, projection, on, dtype):
    """One noisy (gallery, queries); the normal numbers are drawn in `dtype`."""
    gallery, queries = problem.gallery, problem.queries
    gallery_key, query_key = jax.random.split(key)

    def noisy(rows, key, shape, sigma):
        noise = jax.random.normal(key, shape, dtype).astype(rows.dtype)
        return rows + sigma * (noise if projection is None else noise @ projection)

    if on == "shared":
        return noisy(gallery, gallery_key, (1, gallery.shape[1]), problem.sigma_gallery), queries
    if on in ("gallery", "both"):
        gallery = noisy(gallery, gallery_key, gallery.shape, problem.sigma_gallery)
    if on in ("queries", "both"):
        queries = noisy(queries, query_key, queries.shape, problem.sigma_queries)
    return gallery, queries


DRAWS_AT_ONCE = 16  # enough to keep the cores busy; memory is 16 score matrices


def _over_draws(one_draw, num_draws: int):
    """Sum one_draw(i) over the draws and stack its scalars: (per-query sums, per-draw values [num_draws])."""
    chunks = -(-num_draws // DRAWS_AT_ONCE)
    draws = jnp.arange(chunks * DRAWS_AT_ONCE).reshape(chunks, DRAWS_AT_ONCE)
    shape = jax.eval_shape(one_draw, draws[0, 0])[0]

    def one_chunk(total, chunk):
        per_query, per_draw = jax.vmap(one_draw)(chunk)
        # The last chunk may be longer than needed.
        counted = per_query * (chunk < num_draws).reshape(-1, *(1,) * len(shape.shape))
        return total + counted.sum(axis=0, dtype=total.dtype), per_draw

    total, per_draw = jax.lax.scan(one_chunk, jnp.zeros(shape.shape, int), draws)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1)[:num_draws], per_draw)


@functools.partial(jax.jit, static_argnames=("on", "num_draws", "scoring", "dtype"))
def _count(problem, clean, target, projection, key, *, on, num_draws, scoring, dtype):
    """Draws kept by each query [n], and per draw the shares of kept and of right answers [num_draws]."""

    def one_draw(draw):
        rows, asked = _draw(jax.random.fold_in(key, draw), problem, projection, on, dtype)
        answer = nearest(rows, asked, scoring=scoring, bias=problem.bias)
        kept = answer == clean
        return kept, (jnp.mean(kept, dtype=rows.dtype), jnp.mean(answer == target, dtype=rows.dtype))

    return _over_draws(one_draw, num_draws)


@functools.partial(jax.jit, static_argnames=("on", "num_draws", "dtype"))
def _count_changes(problems, projection, key, *, on, num_draws, dtype):
    def one_draw(draw):
        key_of_draw = jax.random.fold_in(key, draw)
        answers = [nearest(*_draw(key_of_draw, problem, projection, on, dtype)) for problem in problems]
        return jnp.sum(answers[0] != answers[1]), ()

    return _over_draws(one_draw, num_draws)[0]
