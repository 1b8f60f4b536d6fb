"""How far a gap closes while the scale of the logits is learned."""

from __future__ import annotations

import numpy as np

from simulator.validation import require_number


def predicted_log_closing(scale, *, initial_scale: float, rate: float) -> np.ndarray:
    """Logarithm of a height along a constant direction over its start, from the scale of the logits alone.

    (a) ln( h(t)/h(0) ) = −(1/κ) ln( s(t)/s(0) ): a direction along which both modalities are constant shrinks as the
    scale grows, κ times less on a logarithmic axis.

    For rows on the unit sphere, h = v·y_i or v·x_k along a unit v, P = Q^x + Q^y and s = 1/τ the scale (theory.md C3):
        ḣ_i = (s/2)(1 − S^y_i) h^x − (s/2)[2 s_ii − Σ_k P_ki s_ki] h_i.
    Averaged over equal heights the first term is 0, since S^y has mean 1, and the bracket is −2n times row i's part of
    ∂L/∂s. So d ln h/dt = s ∂L/∂s = ∂L/∂ν with s = e^ν; and ν̇ = −κ ∂L/∂ν. The same holds for x with its own height.
    Gradient descent with one learning rate η for rows and scale is this flow with κ = n: it moves rows by
    η ∂L/∂y_i = (η/n) · (n ∂L/∂y_i), so that a step is a time of η/n, and ν by n ∂L/∂ν per time.

    Args:
      scale: s at the times asked for.
      initial_scale: s at the start.
      rate: κ > 0, how fast ν is learned in units of the flow; n for one learning rate for everything.

    Returns:
      ln(h/h(0)), like `scale`.

    Raises:
      ValueError: a rate or scale that is not positive.

    Assumes: unit rows, cosine logits; heights that stay equal within each modality.
    Error: of the order of the spread of the heights, and first order in the step of a descent.
    Source: derived here (theory.md C3, P4).
    """
    require_number("rate", rate, above=0.0)
    require_number("initial_scale", initial_scale, above=0.0)
    return -np.log(np.asarray(scale, float) / initial_scale) / rate
