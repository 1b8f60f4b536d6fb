"""Examples of the docstrings, run as they are printed."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim

NAMES = dict(jax=jax, jnp=jnp, np=np, sim=sim)  # as the site says above the list of names


def examples_of(name: str) -> doctest.DocTest | None:
    return doctest.DocTestParser().get_doctest(getattr(sim, name).__doc__, dict(NAMES), name, None, 0)


WITH_EXAMPLES = [name for name in sim.__all__ if examples_of(name).examples]


def test_what_people_call_first_has_an_example():
    wanted = {"info_nce", "gap_vector", "measure_gap", "exact_robustness", "measured_robustness", "GapCloser"}
    assert wanted | {"train", "sweep", "sample"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name):
    said = []
    assert doctest.DocTestRunner().run(examples_of(name), out=said.append).failed == 0, "".join(said)


def test_a_wrong_example_fails():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _: None).failed == 1
