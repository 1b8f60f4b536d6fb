"""The law of one noisy distance, for any dimension and any distance, and the quadrature that belongs to it.

Let u = ‖x + e − y‖/σ with e ~ N(0, σ²) on each of d coordinates, and v = ‖x − y‖/σ: u² is noncentral χ²_d(v²). With
ν = d/2 − 1, z = uv its density is
    g(u; v) = u^{ν+1} v^{−ν} e^{−(u²+v²)/2} I_ν(z).
u is a 1-Lipschitz function of Gaussians, so it leaves its mean, which lies between √(v² + d − 1) and √(v² + d), by more
than 8.5 with probability below 2e-16.

**Without overflow or cancellation.** With R = √(ν² + z²), Debye's expansion (DLMF 10.41.3, written in R instead of ν so
that it holds for every ν >= −½) is
    log I_ν(z) = R + ν log(z/(ν + R)) − ½ log(2πR) + log(1 + Σ_k c_k(ν²/R²)/R^k).
Put in, every large term cancels on paper: with w = u − v
    log g = log u + ν log(1 + x) + ν²/(R + z) − ½w² − ½ log(2πR) + log(1 + Σ …),
    x = (u²  − ν − R)/(ν + R) = (uw − ν − ν²/(R + z))/(ν + R).
Given w, nothing is lost however large v is; beyond v = 1e8 the law depends on w alone, up to 1e-16 d per unit of w.

Float64 NumPy and SciPy.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

REACH = 8.5
FAR = 1e8
NODES = 16  # per panel of unit length: an error below 1e-15 for a normal density
DEBYE_FROM = 60.0  # R from which at most 10 terms of Debye's expansion leave less than 1e-15


class Rule(NamedTuple):
    """Gauss–Legendre on [−1, 1]: nodes [M]; weights [M]; cumulative [M, M], ∫_{−1}^{nodes[m]} g ≈ (cumulative @ g)[m]."""

    nodes: np.ndarray
    weights: np.ndarray
    cumulative: np.ndarray


@functools.lru_cache(maxsize=8)
def legendre_rule(num_nodes: int) -> Rule:
    """The rule with its spectral integration matrix, which integrates the interpolant through the nodes:
    ℓ_i = Σ_n ½(2n+1) w_i P_n(t_i) P_n and ∫_{−1}^t P_n = (P_{n+1} − P_{n−1})/(2n+1)."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    values = np.polynomial.legendre.legvander(nodes, num_nodes)  # P_n(t_m), n = 0 … M
    integrals = np.empty((num_nodes, num_nodes))
    integrals[:, 0] = nodes + 1.0
    order = np.arange(1, num_nodes)
    integrals[:, 1:] = (values[:, 2:] - values[:, :-2]) / (2 * order + 1)[None, :]
    scale = 0.5 * (2 * np.arange(num_nodes) + 1)
    return Rule(nodes, weights, (integrals * scale[None, :]) @ (values[:, :-1].T * weights[None, :]))


@functools.lru_cache(maxsize=1)
def _debye_coefficients() -> list[np.ndarray]:
    """Coefficients of c_1 … c_10 in powers of ν²/R². U_k(p) = p^k c_k(p²) obeys U_{k+1} = ½p²(1 − p²)U_k' +
    ⅛ ∫_0^p (1 − 5t²)U_k dt (DLMF 10.41.9)."""
    from numpy.polynomial import Polynomial

    p, u, found = Polynomial([0.0, 1.0]), Polynomial([1.0]), []
    for k in range(1, 11):
        u = 0.5 * p**2 * (1 - p**2) * u.deriv() + ((1 - 5 * p**2) * u).integ() / 8
        found.append(u.coef[k::2])
    return found


def log_density(w, v, dimensions: int) -> np.ndarray:
    """Logarithm of the density of a noisy distance u = v + w, in units of the noise.

    Args:
      w: u − v >= −v, broadcasts against v; −inf is returned where u <= 0.
      v: clean distance/σ, >= 0.
      dimensions: d >= 1.

    Returns:
      log g, of the broadcast shape.

    Error: below 1e-13 (1 + w²) for v² + d <= 1e5; rounding of order 1e-16 d beyond.
    Source: derived here (module docstring).
    """
    w, v = np.broadcast_arrays(np.asarray(w, float), np.minimum(v, FAR))
    u, order = v + w, dimensions / 2 - 1
    result = np.full(u.shape, -np.inf)
    size = np.hypot(order, u * v)
    for near in (False, True):
        part = (u > 0) & ((size < DEBYE_FROM) == near)
        if part.all():
            return _near(w, v, u, order) if near else _debye(w, v, u, size, order)
        if part.any():
            result[part] = (
                _near(w[part], v[part], u[part], order)
                if near
                else _debye(w[part], v[part], u[part], size[part], order)
            )
    return result


def _debye(w, v, u, size, order):
    """log g where R is large."""
    small = order**2 / (size + u * v)
    x = (u * w - order - small) / (order + size)
    inverse = 1 / size
    square, total = (order * inverse) ** 2, 0.0
    terms = min(10, int(np.ceil(37 / np.log(size.min()))))
    for c in _debye_coefficients()[:terms][::-1]:
        total = (np.polynomial.polynomial.polyval(square, c) + total) * inverse
    return np.log(u) + order * np.log1p(x) + small - 0.5 * w**2 - 0.5 * np.log(2 * np.pi * size) + np.log1p(total)


def _near(w, v, u, order):
    """log g where R is small: I_ν itself, as ₀F₁ near 0."""
    from scipy.special import gammaln, hyp0f1, ive

    z = u * v
    with np.errstate(divide="ignore", invalid="ignore"):
        bessel = np.log(ive(order, z)) - order * np.log(z)
    close = np.minimum(z, 1.0)
    series = np.log(hyp0f1(order + 1, 0.25 * close**2)) - gammaln(order + 1) - order * np.log(2) - close
    bessel = np.where(z < 1.0, series, bessel)
    return (2 * order + 1) * np.log(u) - 0.5 * w**2 + bessel


def distribution(densities: np.ndarray) -> np.ndarray:
    """∫ from the left end of the panels to every node: densities [panels, NODES, …], times du/dξ, ξ in [−1, 1]."""
    rule = legendre_rule(NODES)
    inside = np.tensordot(rule.cumulative, densities, (1, 1)).swapaxes(0, 1)
    whole = np.tensordot(rule.weights, densities, (0, 1))
    before = np.cumsum(whole, axis=0) - whole
    return np.maximum(before[:, None] + inside, 0.0)
