import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from simulator.training.flow import velocity


def test_velocity_is_minus_n_times_the_gradient(rng):
    x, y = rng.normal(size=(2, 5, 3))
    step = 1e-6
    found = velocity(jnp.asarray(x), jnp.asarray(y), temperature=0.5)[1]
    moved = y.copy()
    moved[2, 1] += step
    loss = lambda y: float(sim.info_nce(x, y, temperature=0.5, similarity="sqeuclidean"))
    np.testing.assert_allclose(found[2, 1], -5 * (loss(moved) - loss(y)) / step, rtol=1e-4)


def test_order_four_in_the_step(rng):
    """Halving the step divides the error by 16: the slope of a log–log fit is 4."""
    x, y = rng.normal(size=(2, 6, 3)) * 0.3
    final = lambda step: np.asarray(sim.gradient_flow(x, y, times=[0.0, 0.4], temperature=0.5, max_step=step)[0][-1])
    best, steps = final(0.001), np.array([0.1, 0.05, 0.025])
    errors = [np.abs(final(s) - best).max() for s in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(4.0, abs=0.5)


def test_sphere_stays_a_sphere_and_the_loss_falls(rng):
    x, y = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in rng.normal(size=(2, 6, 3)))
    xs, ys = sim.gradient_flow(
        x, y, times=np.linspace(0, 1, 5), temperature=0.5, max_step=0.02, similarity="cosine", sphere=True
    )
    np.testing.assert_allclose(jnp.linalg.norm(xs, axis=2), 1.0, rtol=1e-12)
    losses = [float(sim.info_nce(a, b, temperature=0.5)) for a, b in zip(xs, ys, strict=True)]
    assert np.all(np.diff(losses) < 0)
    np.testing.assert_array_equal(xs[0], x)


def test_bad_input(rng):
    x = rng.normal(size=(4, 2))
    for change, words in (
        (dict(times=[0.0, 0.0]), "increase"),
        (dict(max_step=0.0), "max_step"),
        (dict(temperature=-1.0), "temperature"),
        (dict(similarity="l1"), "similarity"),
    ):
        with pytest.raises(ValueError, match=words):
            sim.gradient_flow(x, x, **(dict(times=[0.0, 1.0], temperature=1.0, max_step=0.1) | change))
    assert jax.config.jax_enable_x64
