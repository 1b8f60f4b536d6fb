"""A run is known by what decides its numbers: the user's code by its source and what it refers to, not by its names."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from simulator.storage.identity import describe_config, label, require_identified
from tests.processes import ENVIRONMENT, ROOT

HELPERS = """
SCALE = 2.0
def double(x): return SCALE * x
def unused(x): return x
"""

MODULE = """
import dataclasses, functools, itertools, math
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
import simulator as sim
import helpers
from helpers import double

RATE = 0.1
GENERATOR = np.random.default_rng(0)

def decay(lr):
    return optax.chain(optax.set_to_zero(), optax.add_decayed_weights(RATE), optax.scale(-lr))

def schedule(step, start=1e-3): return start * 0.5 ** step
def by_helper(step): return double(step)
def by_module(step): return helpers.double(step)
def imported_inside(step):
    from helpers import double as twice
    return twice(step)

def closed(rate):
    def inner(step): return rate * step
    return inner
held = closed(0.5)
two = [lambda step: step, lambda step: 2 * step]

def scaled(factor):
    def wrap(function):
        @functools.wraps(function)
        def outer(*arguments): return factor * function(*arguments)
        return outer
    return wrap

@scaled(3.0)
def decorated(step): return step
jitted = jax.jit(schedule)
part = functools.partial(schedule, start=1e-2)

class Base(nnx.Module):
    gain = 1.0
    def shift(self, x): return x + 1.0

class Tower(Base):
    def __init__(self, dim_in, *, rngs, dtype):
        self.norm, self.out = nnx.LayerNorm(dim_in, rngs=rngs), nnx.Linear(dim_in, 8, rngs=rngs, dtype=dtype)
    def __call__(self, rows): return self.gain * self.out(self.shift(self.norm(rows)))

@dataclasses.dataclass(frozen=True)
class Make:
    width: int = 8
    def __call__(self, dim_in, *, rngs, dtype): return Tower(dim_in, rngs=rngs, dtype=dtype)
make, bound = Make(), Base.shift.__get__(Make())

@dataclasses.dataclass(frozen=True)
class Warm(sim.InfoNCE):
    weight: float = 1.0
    def extra(self): return self.weight * math.pi
warm = Warm(0.1)

class Rate:
    def __init__(self, start): self.start = start
    def __call__(self, step): return self.start * step
rate = Rate(0.1)

@jax.custom_jvp
def custom(x): return x
@custom.defjvp
def _(primals, tangents): return custom(*primals), 1.0 * tangents[0]

def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def random(step): return GENERATOR.normal()
def counted(step, numbers=itertools.count()): return next(numbers)
def evaluated(step): return eval("step")
def whole(step): return vars(helpers)["double"](step)
made = {}
exec("def typed(step): return step", made)
typed = made["typed"]
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Loads the user's two modules as he has edited them: user(old, new, ...) replaces text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(*edits):
        texts = dict(helpers=HELPERS, mine=MODULE)
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            assert sum(old in text for text in texts.values()) == 1
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("mine")

    yield load
    for name in ("mine", "helpers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("decay", "optax.set_to_zero()", "optax.identity()"),
        ("decay", "RATE = 0.1", "RATE = 0.5"),
        ("schedule", "start * 0.5 ** step", "start * 0.6 ** step"),
        ("schedule", "start=1e-3", "start=5e-2"),
        ("by_helper", "SCALE = 2.0", "SCALE = 3.0"),
        ("by_helper", "return SCALE * x", "return SCALE + x"),
        ("by_module", "return SCALE * x", "return SCALE + x"),
        ("imported_inside", "SCALE = 2.0", "SCALE = 3.0"),
        ("held", "closed(0.5)", "closed(0.6)"),
        ("held", "rate * step\n", "rate + step\n"),
        ("two", "lambda step: 2 * step", "lambda step: 3 * step"),
        ("decorated", "@scaled(3.0)", "@scaled(4.0)"),
        ("decorated", "factor * function", "factor + function"),
        ("decorated", "def decorated(step): return step", "def decorated(step): return -step"),
        ("jitted", "start * 0.5 ** step", "start * 0.6 ** step"),
        ("part", "start * 0.5 ** step", "start * 0.6 ** step"),
        ("part", "start=1e-2", "start=2e-2"),
        ("Tower", "nnx.LayerNorm", "nnx.RMSNorm"),
        ("Tower", "gain = 1.0", "gain = 2.0"),
        ("Tower", "x + 1.0", "x - 1.0"),
        ("make", "nnx.LayerNorm", "nnx.RMSNorm"),
        ("make", "x + 1.0", "x - 1.0"),
        ("bound", "x + 1.0", "x - 1.0"),
        ("warm", "self.weight * math.pi", "self.weight * math.e"),
        ("warm", "class Warm(sim.InfoNCE)", "class Warm(sim.Sigmoid)"),
        ("rate", "Rate(0.1)", "Rate(0.2)"),
        ("rate", "self.start * step", "self.start + step"),
        ("custom", "1.0 * tangents", "2.0 * tangents"),
        ("factorial", "1 if n < 2", "1 if n < 3"),
    ],
)
def test_an_edit_of_anything_that_decides_the_numbers_is_seen(user, name, old, new):
    before = describe_config(getattr(user(), name))
    require_identified(before)
    json.dumps(before)
    assert describe_config(getattr(user(), name)) == before
    cosmetic = (
        "def unused(x): return x",
        "def another(x): return 0",
        "import helpers\n",
        '# a remark\n"text"\nimport helpers\n',
    )
    assert describe_config(getattr(user(*cosmetic), name)) == before
    assert describe_config(getattr(user(old, new), name)) != before


def test_comments_layout_and_docstrings_do_not_matter(user):
    before = describe_config(user().decay)
    edited = 'def decay(lr):\n    """Weight decay."""\n    # of everything\n    return optax.chain(\n        optax'
    assert describe_config(user("def decay(lr):\n    return optax.chain(optax", edited).decay) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "random",
            r"f.uses.GENERATOR holds a numpy.random._generator.Generator, whose content cannot be read; pass plain",
        ),
        ("counted", r"f.defaults.numbers holds a itertools.count"),
        ("evaluated", "the function evaluated, which calls eval; write out"),
        ("whole", "uses the module helpers as a value; name what it needs, as helpers.f"),
        ("typed", "the function typed, which has no source.*write it in a file"),
    ],
)
def test_what_cannot_be_identified_is_refused(user, name, says):
    with pytest.raises(ValueError, match=says) as error:
        require_identified(dict(f=describe_config(getattr(user(), name))))
    assert "\n" not in str(error.value)


def test_a_file_that_was_edited_since_it_was_loaded_is_refused(user, tmp_path):
    loaded = user("0.5 ** step", "0.123 ** step")  # which no test has looked at before
    (tmp_path / "mine.py").write_text(MODULE.replace("0.5 ** step", "0.7 ** step"))
    with pytest.raises(
        ValueError, match=r"schedule, whose source in .*mine.py is no longer what was loaded; start Python"
    ):
        require_identified(describe_config(loaded.schedule))


def test_what_libraries_make_is_identified(user):
    made = [
        optax.adam, optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 3), optax.inject_hyperparams(optax.adamw)(1e-3),
        optax.MultiSteps(optax.lamb(0.1), 2), jax.nn.relu, jax.numpy.sum, np.exp, np.float32, jax.nn.initializers.lecun_normal(),
        np.random.default_rng, user().Tower(4, rngs=user().nnx.Rngs(0), dtype=np.float32), jax.random.key(0), [np.array(["a"], object)],
    ]  # fmt: skip
    described = describe_config(made)
    require_identified(described)
    assert label(described[0]) == "adam"
    assert label(describe_config(user().decay)) == "decay"
    assert described == json.loads(json.dumps(described))
    assert describe_config(optax.linear_schedule(1.0, 0.1, 3)) != describe_config(optax.linear_schedule(1.0, 0.2, 3))


SCRIPT = """
import json, sys, mine
from simulator.storage.identity import describe_config
names = [name for name in vars(mine) if not name.startswith("_") and not isinstance(vars(mine)[name], type(sys))]
print(json.dumps({name: describe_config(vars(mine)[name]) for name in names}))
"""


def test_what_an_interactive_session_showed_last_is_no_part_of_a_namespace(monkeypatch):
    namespace = {}
    exec("def f(step): return step", namespace)
    before, circle = describe_config(namespace), []
    circle.append(circle)
    monkeypatch.setattr("builtins._", circle, raising=False)
    assert describe_config(namespace) == before
    assert describe_config(circle) == {"unidentified": "holds a value that contains itself; break the circle"}


def test_other_processes_describe_it_alike(user, tmp_path):
    mine = user()
    command = [sys.executable, "-c", SCRIPT]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONHASHSEED": "7"}
    there = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    for name, described in there.items():
        assert describe_config(getattr(mine, name)) == described, name
