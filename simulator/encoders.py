"""The two towers, and control over where they start.

A tower configuration is a callable (dim_in, *, rngs, dtype) -> flax.nnx module that maps [n, dim_in] to
[n, embed_dim]; any function with that signature works as well. Only `nnx.Param` state is trained, so
modules with other state (batch statistics, dropout) are refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from simulator.settings import register
from simulator.validation import require_boolean, require_integer, require_number, require_one_of

Activation = Literal["relu", "gelu", "tanh"]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear tower x W + b.

    Args:
      embed_dim: dimension of the embedding.
      bias: whether the output has a bias; `Cones` needs one.
    """

    embed_dim: int = 32
    _: dataclasses.KW_ONLY
    bias: bool = True

    def __post_init__(self):
        require_integer("Linear.embed_dim", self.embed_dim)
        require_boolean("Linear.bias", self.bias)

    def __call__(self, dim_in: int, *, rngs: nnx.Rngs, dtype: Any) -> nnx.Module:
        return _Perceptron((dim_in, self.embed_dim), "relu", True, self.bias, rngs, dtype)


@dataclasses.dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron: `depth` hidden layers of `width` units, then a linear output.

    Args:
      width: hidden units per layer.
      depth: number of hidden layers, >= 1.
      embed_dim: dimension of the embedding.
      activation: "relu", "gelu" or "tanh".
      bias: whether hidden layers and the output have biases; `Cones` needs the output's.
    """

    width: int = 128
    _: dataclasses.KW_ONLY
    depth: int = 1
    embed_dim: int = 32
    activation: Activation = "relu"
    bias: bool = True

    def __post_init__(self):
        for field in ("width", "depth", "embed_dim"):
            require_integer(f"MLP.{field}", getattr(self, field))
        require_one_of("MLP.activation", self.activation, get_args(Activation))
        require_boolean("MLP.bias", self.bias)

    def __call__(self, dim_in: int, *, rngs: nnx.Rngs, dtype: Any) -> nnx.Module:
        widths = (dim_in, *(self.width,) * self.depth, self.embed_dim)
        return _Perceptron(widths, self.activation, self.bias, self.bias, rngs, dtype)


@dataclasses.dataclass(frozen=True)
class Table:
    """Free embeddings: one trainable row per pair of a fixed data set, started as N(0, 1/embed_dim).

    Args:
      embed_dim: dimension of the embedding.
    """

    embed_dim: int = 32

    def __post_init__(self):
        require_integer("Table.embed_dim", self.embed_dim)

    def __call__(self, num_rows: int, *, rngs: nnx.Rngs, dtype: Any) -> nnx.Module:
        return FreeEmbeddings(num_rows, self.embed_dim, rngs, dtype)


@register
@dataclasses.dataclass(frozen=True)
class Cones:
    """Where the towers start: each modality in a cone of its own.

    The output bias of a tower (all rows, for a Table) is set so that the mean of its raw outputs on the
    training data points along a chosen unit vector, at `tightness` times the root-mean-square distance of the
    outputs from their mean. The unit vectors are random, any two at the given angle: with M modalities the vertices of a
    regular simplex, which needs cos(angle) >= −1/(M − 1).

    Args:
      angle: between two cluster means, in radians, 0 to π.
      tightness: norm of the mean over the root-mean-square deviation, > 0; 20 is a narrow cone.
      shape: of the deviations. "network" leaves what the random tower gives; "isotropic" whitens the output
        layer (equal variance in every direction the tower can reach); "collapsed" projects it onto a random
        subspace of `rank` dimensions, the same for all towers.
      rank: dimension of that subspace, for shape="collapsed".
    """

    angle: float = 1.57
    _: dataclasses.KW_ONLY
    tightness: float = 20.0
    shape: Literal["network", "isotropic", "collapsed"] = "network"
    rank: int = 2

    def __post_init__(self):
        require_number("Cones.angle", self.angle, least=0.0, most=3.141592653589794)
        require_number("Cones.tightness", self.tightness, above=0.0)
        require_one_of("Cones.shape", self.shape, ("network", "isotropic", "collapsed"))
        require_integer("Cones.rank", self.rank)


def _dot_general(rows, kernel, dimension_numbers, **settings):
    """rows [n, i] @ kernel [i, o], as `nnx.Linear` asks for it, with a gradient by the kernel that CPUs multiply fast."""
    if kernel.shape[1] >= kernel.shape[0]:
        return jax.lax.dot_general(rows, kernel, dimension_numbers, **settings)
    return _narrowing_product(rows, kernel)


@jax.custom_jvp
def _narrowing_product(rows, kernel):
    """rows [n, i] @ kernel [i, o] for o < i: the usual order of its gradient by the kernel, rowsᵀ @ cotangent, runs at half
    the speed of (cotangentᵀ @ rows)ᵀ. So what is differentiated is the transposed kernel, behind a barrier that keeps XLA
    from turning the product round again."""
    return rows @ kernel


@_narrowing_product.defjvp
def _narrowing_product_jvp(primals, tangents):
    (rows, kernel), (rows_dot, kernel_dot) = primals, tangents
    return rows @ kernel, rows_dot @ kernel + rows @ jax.lax.optimization_barrier(kernel_dot.T).T


@jax.custom_jvp
def _relu(rows):
    """max(0, rows), with the derivative as a product: XLA selects entries by a condition at a fifth of that speed."""
    return jnp.maximum(rows, 0.0)


_relu.defjvps(lambda tangent, active, rows: tangent * jnp.sign(active))
_ACTIVATIONS = dict(relu=_relu, gelu=nnx.gelu, tanh=nnx.tanh)


class _Perceptron(nnx.Module):
    """Linear layers with an activation between them; `out` is the last one."""

    def __init__(self, widths, activation, hidden_bias, output_bias, rngs, dtype):
        make = lambda fan_in, fan_out, bias: nnx.Linear(
            fan_in, fan_out, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs, dot_general=_dot_general
        )
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.hidden = nnx.List([make(a, b, hidden_bias) for a, b in pairs[:-1]])
        self.out = make(*pairs[-1], output_bias)
        self.activation = activation

    def __call__(self, rows):
        for layer in self.hidden:
            rows = _ACTIVATIONS[self.activation](layer(rows))
        return self.out(rows)


class FreeEmbeddings(nnx.Module):
    """A table of embeddings; called with row numbers instead of observations."""

    def __init__(self, num_rows, embed_dim, rngs, dtype):
        self.rows = nnx.Param(jax.random.normal(rngs.params(), (num_rows, embed_dim), dtype) / embed_dim**0.5)

    def __call__(self, index):
        return self.rows[index]


def place_in_cones(cones: Cones, towers, inputs, *, key: jax.Array):
    """Set the start of freshly built towers in place, as `Cones` describes; inputs are the training data, one for each tower."""
    direction_key, plane_key = jax.random.split(key)
    outputs = towers[0](inputs[0])
    embed_dim, dtype = outputs.shape[1], outputs.dtype
    if embed_dim < len(towers):
        raise ValueError(
            f"embed_dim is {embed_dim}; Cones need embed_dim >= {len(towers)}: an angle between all {len(towers)} modalities"
        )
    basis = jnp.linalg.qr(jax.random.normal(direction_key, (embed_dim, len(towers)), dtype))[0].T
    if cones.shape == "collapsed" and cones.rank > embed_dim:
        raise ValueError(f"Cones.rank is {cones.rank}; it cannot exceed embed_dim = {embed_dim}")
    plane = jnp.linalg.qr(jax.random.normal(plane_key, (embed_dim, min(cones.rank, embed_dim)), dtype))[0]
    for tower, rows, axis in zip(towers, inputs, _equiangular(basis, cones.angle), strict=True):
        if cones.shape != "network":
            outputs = tower(rows)
            change = plane @ plane.T if cones.shape == "collapsed" else _whitener(outputs)
            _change_outputs(tower, change)
        outputs = tower(rows)
        mean = jnp.mean(outputs, axis=0)
        spread = jnp.sqrt(jnp.mean(jnp.sum((outputs - mean[None, :]) ** 2, axis=1)))
        _shift_outputs(tower, cones.tightness * spread * axis - mean)


def _equiangular(basis, angle) -> list[jax.Array]:
    """Unit vectors with any two at this angle, from as many orthonormal ones [m, d]: the rows of the Cholesky factor of their
    cosines c, which are c√((1−c)/((1+(j−1)c)(1+jc))) in column j and √((1−c)(1+jc)/(1+(j−1)c)) on the diagonal."""
    c = jnp.cos(angle)
    axes, shared = [basis[0]], c * basis[0]
    for j, direction in enumerate(basis[1:], start=1):
        # 1 − c = 2 sin²(angle/2), which keeps its digits at a small angle; 1 + jc is 0 at the widest, or less by rounding.
        wide = 2**0.5 * jnp.sin(angle / 2) * jnp.sqrt(jnp.maximum(1 + j * c, 0.0) / (1 + (j - 1) * c))
        height = jnp.sin(angle) if j == 1 else wide
        axes.append(shared + height * direction)
        shared = shared + c * height / (1 + j * c) * direction
    return axes


def _whitener(outputs):
    """C^(−1/2) on the range of the outputs' covariance C, scaled to keep the total variance."""
    centred = outputs - jnp.mean(outputs, axis=0)[None, :]
    variances, axes = jnp.linalg.eigh(centred.T @ centred / outputs.shape[0])
    reached = variances > 1e-4 * variances[-1]  # directions that only observation noise reaches stay as they are
    target = jnp.sum(jnp.where(reached, variances, 0.0)) / jnp.sum(reached)
    scale = jnp.where(reached, jnp.sqrt(target / jnp.where(reached, variances, 1.0)), 1.0)
    return (axes * scale[None, :]) @ axes.T


def _output_layer(tower):
    layer = getattr(tower, "out", None)
    if not isinstance(layer, nnx.Linear) or layer.bias is None:
        raise ValueError(
            f"Cones place a tower through its output bias, and {type(tower).__name__} has no nnx.Linear called "
            "`out` with a bias; add one, or start without Cones (start=None)"
        )
    return layer


def _change_outputs(tower, matrix):
    if isinstance(tower, FreeEmbeddings):
        tower.rows[...] = tower.rows[...] @ matrix
    else:
        layer = _output_layer(tower)
        layer.kernel[...] = layer.kernel[...] @ matrix


def _shift_outputs(tower, vector):
    if isinstance(tower, FreeEmbeddings):
        tower.rows[...] = tower.rows[...] + vector[None, :]
    else:
        layer = _output_layer(tower)
        layer.bias[...] = layer.bias[...] + vector
