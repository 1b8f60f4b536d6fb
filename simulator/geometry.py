"""What the embeddings of two modalities look like: the gap vector, and what varies along and across it.

Every measure is a function of the rows as they are given (nothing is re-normalised unless its own
definition says so), works under jit and vmap, and returns NaN where it is not defined.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from simulator.losses import Similarity, logits, normalize_rows, similarity_matrix
from simulator.numerics.precision import mean_floor
from simulator.numerics.scaling import exponents, times_power, widened
from simulator.validation import require_boolean, require_number, require_paired, require_same_width


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "gap_norm",
        "variance_along_gap_x",
        "variance_along_gap_y",
        "defect_ratio_x",
        "defect_ratio_y",
        "null_defect_ratio_x",
        "null_defect_ratio_y",
        "span_fraction_x",
        "span_fraction_y",
        "marginal_error_x",
        "marginal_error_y",
        "alignment",
        "uniformity_x",
        "uniformity_y",
        "recall_at_1_xy",
        "recall_at_1_yx",
        "effective_rank_x",
        "effective_rank_y",
        "separability",
        "rmg",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class GapMeasures:
    """The scalars of `measure_gap`; NaN where one is not defined, as is all that lies along a gap of rounding size
    (`precision.gap_floor`). x is the gallery, y the queries.

    Attributes:
      gap_norm: G = ‖μ_y − μ_x‖ (called L2M by Schrodi et al. 2025).
      variance_along_gap_x, _y: v = mean of (ĝ·deviation)².
      defect_ratio_x, _y: v over the mean variance per direction, trace(C)/d; 1 is isotropic, 0 orthogonal.
      null_defect_ratio_x, _y: expected defect ratio when the other modality's mean is replaced by a random
        vector of the same length (exact, no sampling): what "orthogonal" must be compared with.
      span_fraction_x, _y: share of G² inside the span of the modality's top principal components, the
        fewest that hold 90 % of its variance.
      marginal_error_x, _y: mean |S/S̄ − 1| of the free marginals of the two softmaxes, S^x_k = Σ_i Q^x(k,i) and
        S^y_i = Σ_k Q^y(k,i), S̄ their mean (1 for equal row counts); both 0 means doubly stochastic. Needs a temperature.
      alignment: mean ‖x_i − y_i‖² over pairs.
      uniformity_x, _y: log of the mean of exp(−2‖·−·‖²) over distinct rows.
      recall_at_1_xy, _yx: share of rows of the first modality whose most similar row of the other is their
        partner (xy: x asks, y answers; yx: y asks, the gallery answers).
      effective_rank_x, _y: exp of the entropy of the normalised singular values of the centred rows.
      separability: accuracy of the midpoint rule along ĝ, fitted on one half of the rows and judged on
        the other, averaged over both ways.
      rmg: relative modality gap, d⁺/(d⁺ + ½(d̄_xx + d̄_yy)) with d = (1 − cos)/2, pairs over off-diagonal means.
    """

    gap_norm: jax.Array
    variance_along_gap_x: jax.Array
    variance_along_gap_y: jax.Array
    defect_ratio_x: jax.Array
    defect_ratio_y: jax.Array
    null_defect_ratio_x: jax.Array
    null_defect_ratio_y: jax.Array
    span_fraction_x: jax.Array
    span_fraction_y: jax.Array
    marginal_error_x: jax.Array
    marginal_error_y: jax.Array
    alignment: jax.Array
    uniformity_x: jax.Array
    uniformity_y: jax.Array
    recall_at_1_xy: jax.Array
    recall_at_1_yx: jax.Array
    effective_rank_x: jax.Array
    effective_rank_y: jax.Array
    separability: jax.Array
    rmg: jax.Array


def gap_vector(x: jax.Array, y: jax.Array) -> jax.Array:
    """The gap vector g = mean(y) − mean(x), from gallery to queries, [d].

    Args:
      x: gallery embeddings [n_x, d].
      y: query embeddings [n_y, d].

    Returns:
      g, [d], in the units of the embeddings.

    Raises:
      ValueError: arrays that are not [rows, d] in one space, or hold NaN.

    Example:
      >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([[-1.0, 0.0], [-1.0, 2.0]])
      >>> sim.gap_vector(x, y).tolist()
      [-2.0, 0.0]

    Source: Liang et al. 2022; Chowers et al. 2026.
    """
    require_same_width(x, y, ("x", "y"))
    x, y, unit = _in_one_unit(widened(x, "x"), widened(y, "y"))
    return times_power(_gap(x, y), unit)


def _in_one_unit(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x/2^e, y/2^e, e) with the largest entry between 1 and 2, so that squares and sums stay in range."""
    unit = jnp.maximum(exponents(x)[0, 0], exponents(y)[0, 0])
    return times_power(x, -unit), times_power(y, -unit), unit


def _mean(rows: jax.Array) -> jax.Array:
    """The mean row [d], exact for equal rows: the mean that is rounded is that of deviations from a first one."""
    rough = jnp.mean(rows, axis=0)
    return rough + jnp.mean(rows - rough[None, :], axis=0)


def _gap(x: jax.Array, y: jax.Array) -> jax.Array:
    """mean(y) − mean(x), with the digits that the means share taken off first."""
    rough_x, rough_y = (jnp.mean(rows, axis=0) for rows in (x, y))
    rest_x, rest_y = (jnp.mean(r - m[None, :], axis=0) for r, m in ((x, rough_x), (y, rough_y)))
    return (rough_y - rough_x) + (rest_y - rest_x)


def measure_gap(
    x: jax.Array, y: jax.Array, *, temperature=None, paired: bool = True, similarity: Similarity = "cosine"
) -> GapMeasures:
    """All measures of the gap and of the two modalities around it; `GapMeasures` defines each.

    Args:
      x: gallery embeddings [n_x, d].
      y: query embeddings [n_y, d].
      temperature: τ > 0 for the marginal errors; None leaves those NaN.
      paired: row i of x pairs with row i of y. False leaves alignment, recall and rmg NaN; equal row
        counts alone never imply a pairing.
      similarity: how the model scores a pair, for the marginals and for retrieval.

    Returns:
      GapMeasures: scalars in the units of the embeddings (squared for variances and alignment), in float32 or wider.

    Raises:
      ValueError: arrays that are not [rows, d] in one space, NaN rows, unequal row counts with paired=True.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(200, 4))
      >>> found = sim.measure_gap(x, x + np.array([3.0, 0.0, 0.0, 0.0]), temperature=0.1)
      >>> round(float(found.gap_norm), 4)
      3.0

    Source: definitions per field in `GapMeasures`; the null is derived here.
    """
    (require_paired if paired else require_same_width)(x, y, ("x", "y"))
    if temperature is not None:
        require_number("temperature", temperature, above=0.0)
    require_boolean("paired", paired)
    roundoffs = _roundoff(x), _roundoff(y)
    x, y = widened(x, "x"), widened(y, "y")
    common_x, common_y, unit = _in_one_unit(x, y)
    gap = _gap(common_x, common_y)
    gap_norm = jnp.linalg.norm(gap)
    direction = jnp.where(gap_norm > _gap_floor(common_x, common_y, roundoffs), gap / gap_norm, jnp.nan)
    mean_x, mean_y = _mean(common_x), _mean(common_y)
    nan = jnp.full((), jnp.nan, gap.dtype)
    values = dict(gap_norm=times_power(gap_norm, unit), separability=separability(common_x, common_y))
    scaled = {}
    for name, rows, mean, other in (("x", x, mean_x, mean_y), ("y", y, mean_y, mean_x)):
        own = exponents(rows)[0, 0]  # beside much larger rows of the other modality, these would be nothing
        scaled[name] = rows = times_power(rows, -own)
        centred = rows - _mean(rows)[None, :]
        spread = spread_measures(
            mean,
            other,
            principal_axes(centred.T @ centred / centred.shape[0]),
            direction,
            jnp.mean((centred @ direction) ** 2),
        )
        spread["variance_along_gap"] = times_power(spread["variance_along_gap"], 2 * own)
        values |= {f"{measure}_{name}": value for measure, value in spread.items()}
        values[f"uniformity_{name}"] = _uniformity(rows, own)
    values |= dict.fromkeys(("alignment", "recall_at_1_xy", "recall_at_1_yx", "rmg"), nan)
    values |= dict.fromkeys(("marginal_error_x", "marginal_error_y"), nan)
    if temperature is not None:
        free_x, free_y = marginals(x, y, temperature=temperature, similarity=similarity)
        values |= {
            "marginal_error_x": jnp.mean(jnp.abs(free_x * (x.shape[0] / y.shape[0]) - 1.0)),
            "marginal_error_y": jnp.mean(jnp.abs(free_y * (y.shape[0] / x.shape[0]) - 1.0)),
        }
    if paired:
        # The best match is that of rows in any unit; a distance needs the same one.
        rows = (common_x, common_y) if similarity == "sqeuclidean" else (scaled["x"], scaled["y"])
        scores = similarity_matrix(*rows, similarity)
        partner = jnp.arange(x.shape[0])
        values |= {
            "alignment": times_power(jnp.mean(jnp.sum((common_x - common_y) ** 2, axis=1)), 2 * unit),
            "recall_at_1_xy": jnp.mean(jnp.argmax(scores, axis=1) == partner, dtype=gap.dtype),
            "recall_at_1_yx": jnp.mean(jnp.argmax(scores, axis=0) == partner, dtype=gap.dtype),
            "rmg": _relative_gap(x, y),
        }
    return GapMeasures(**values)


def _roundoff(rows) -> float:
    """Unit roundoff of the rows as they are given; 0 for whole numbers."""
    dtype = jnp.asarray(rows).dtype
    return float(jnp.finfo(dtype).eps) / 2 if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _gap_floor(x, y, roundoffs):
    """`precision.gap_floor` for rows that were given with these roundoffs."""
    powers = [jnp.mean(jnp.sum(rows * rows, axis=1)) for rows in (x, y)]
    counts = (x.shape[0], y.shape[0])
    return jnp.hypot(*(mean_floor(*each) for each in zip(counts, powers, roundoffs, strict=True)))


def marginals(x, y, *, temperature, similarity: Similarity = "cosine") -> tuple[jax.Array, jax.Array]:
    """The free marginals of the two softmax matrices: S^x_k = Σ_i Q^x(k,i) [n_x] and S^y_i = Σ_k Q^y(k,i) [n_y]."""
    scores = logits(x, y, temperature=temperature, similarity=similarity)
    return jax.nn.softmax(scores, axis=0).sum(axis=1), jax.nn.softmax(scores, axis=1).sum(axis=0)


def separability(x: jax.Array, y: jax.Array) -> jax.Array:
    """Accuracy of the midpoint rule along the gap on held-out rows: fitted on the even rows and judged
    on the odd ones, and the other way round. NaN when a modality has a single row, or a half no gap."""
    x, y = widened(x, "x"), widened(y, "y")
    if min(x.shape[0], y.shape[0]) < 2:
        return jnp.full((), jnp.nan, jnp.result_type(x, y))
    accuracies = []
    for fit, judge in ((0, 1), (1, 0)):
        direction = _gap(x[fit::2], y[fit::2])
        midpoint = 0.5 * (_mean(x[fit::2]) + _mean(y[fit::2]))
        right_x = (x[judge::2] - midpoint[None, :]) @ direction < 0
        right_y = (y[judge::2] - midpoint[None, :]) @ direction > 0
        accuracy = 0.5 * (jnp.mean(right_x, dtype=direction.dtype) + jnp.mean(right_y, dtype=direction.dtype))
        accuracies.append(jnp.where(jnp.any(direction != 0), accuracy, jnp.nan))
    return 0.5 * (accuracies[0] + accuracies[1])


def spread_measures(mean, other_mean, axes: tuple[jax.Array, jax.Array], direction, along) -> dict[str, jax.Array]:
    """The measures of one modality that its mean and covariance determine, by their names in `GapMeasures`.

    Args:
      mean, other_mean: means of this and of the other modality [d].
      axes: `principal_axes` of this modality's covariance.
      direction: ĝ [d].
      along: variance along it. ĝᵀCĝ would lose it to rounding where the gap is orthogonal, so the caller projects.
    """
    variances, vectors = axes
    mean_variance = jnp.mean(variances)
    null = _null_variance(mean, jnp.linalg.norm(other_mean), variances, vectors)
    return dict(
        variance_along_gap=along,
        defect_ratio=along / mean_variance,
        null_defect_ratio=null / mean_variance,
        span_fraction=_span_fraction(direction, variances, vectors),
        effective_rank=_effective_rank(variances),
    )


def principal_axes(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Variances in decreasing order [d] (rounding noise set to 0) and the matching axes as columns [d, d]."""
    variances, axes = jnp.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    floor = variances[0] * variances.shape[0] * jnp.finfo(variances.dtype).eps
    return jnp.where(variances > floor, variances, 0.0), axes


def _span_fraction(direction, variances, axes, share: float = 0.9):
    """Σ over the leading axes of (ĝ·axis)²; an axis belongs while those before it hold less than `share`."""
    total = jnp.sum(variances)
    before = (jnp.cumsum(variances) - variances) / total
    fraction = jnp.sum(jnp.where(before < share, (direction @ axes) ** 2, 0.0))
    return jnp.where(total > 0, fraction, jnp.nan)


def _effective_rank(variances):
    """Roy & Vetterli 2007: exp(−Σ p log p) with p the singular values of the centred rows over their sum."""
    singular = jnp.sqrt(variances)
    total = jnp.sum(singular)
    p = singular / total
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return jnp.where(total > 0, jnp.exp(entropy), jnp.nan)


def _uniformity(rows, unit=0):
    """log E exp(−2‖r_i − r_j‖²) over i ≠ j (Wang & Isola 2020), of rows in units of 2^−unit."""
    n = rows.shape[0]
    if n < 2:
        return jnp.full((), jnp.nan, rows.dtype)
    logs = times_power(2.0 * jnp.minimum(similarity_matrix(rows, rows, "sqeuclidean"), 0.0), 2 * unit)
    # In log space and without the diagonal: far-apart rows would leave 0 after subtracting n ones.
    return logsumexp(jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, logs)) - jnp.log(n * (n - 1.0))


def _relative_gap(x, y):
    """Schrodi et al. 2025: cosine distance of pairs against that within the modalities, off-diagonal means.

    From differences, as 1 − cos would leave rounding noise of equal rows: for unit rows Σ_{i≠j} (1 − u_i·u_j) = n Σ ‖u_i − ū‖².
    A zero row has the cosine 0 with all others, which adds n − 1."""
    n = x.shape[0]
    if n < 2:
        return jnp.full((), jnp.nan, x.dtype)
    x, y = normalize_rows(x), normalize_rows(y)
    is_zero = [jnp.all(rows == 0, axis=1) for rows in (x, y)]
    # Unit rows of one direction differ by some ε, as each is rounded on its own.
    noise = (4.0 * float(jnp.finfo(x.dtype).eps)) ** 2
    above = lambda squares, floor: jnp.where(squares > floor, squares, 0.0)
    between = jnp.mean(above(jnp.sum((x - y) ** 2, axis=1), noise) / 2.0 + 0.5 * is_zero[0] + 0.5 * is_zero[1]) / 2.0
    inside = [
        (n * above(jnp.sum((rows - _mean(rows)[None, :]) ** 2), n * noise) + (n - 1) * jnp.sum(zero))
        / (2.0 * n * (n - 1))
        for rows, zero in zip((x, y), is_zero, strict=True)
    ]
    return between / (between + 0.5 * (inside[0] + inside[1]))


def _null_variance(mean, other_norm, variances, axes):
    """E[ v̂ᵀ C v̂ ] for v = R u − m, with u uniform on the sphere, m the modality's own mean, R the other's norm.

    Split u = t m̂ + √(1−t²) w with w uniform across m̂. Then ‖v‖² = R² − 2R t m + m² depends on t alone,
    the cross term averages to 0, and wᵀCw averages to (tr C − m̂ᵀCm̂)/(d−1): one Gauss quadrature over t is
    exact up to the smoothness of 1/‖v‖².
    """
    dimensions = mean.shape[0]
    nodes, weights = (jnp.asarray(a, mean.dtype) for a in _sphere_coordinate_quadrature(dimensions))
    norm = jnp.linalg.norm(mean)
    axis = jnp.where(norm > 0, mean / jnp.where(norm > 0, norm, 1.0), jnp.zeros_like(mean).at[0].set(1.0))
    along = jnp.sum(variances * (axis @ axes) ** 2)
    across = (jnp.sum(variances) - along) / max(dimensions - 1, 1)
    radial = (other_norm * nodes - norm) ** 2
    tangential = other_norm**2 * (1.0 - nodes**2)
    return jnp.sum(weights * (radial * along + tangential * across) / (radial + tangential))


@functools.lru_cache(maxsize=32)
def _sphere_coordinate_quadrature(dimensions: int, num_nodes: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights for one coordinate of a uniform point on the sphere of R^d, whose density is
    ∝ (1−t²)^((d−3)/2) (Golub–Welsch for the Gegenbauer weight; d = 1 is the two points ±1)."""
    if dimensions == 1:
        return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    alpha = (dimensions - 2) / 2
    k = np.arange(1, num_nodes)
    with np.errstate(invalid="ignore"):
        squared = k * (k + 2 * alpha - 1) / (4 * (k + alpha) * (k + alpha - 1))
    if dimensions == 2:
        squared[0] = 0.5  # the limit of 0/0: Chebyshev's first coefficient
    off_diagonal = np.sqrt(squared)
    nodes, vectors = np.linalg.eigh(np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    return nodes, vectors[0] ** 2
