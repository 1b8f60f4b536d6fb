"""What users bring: arrays, data sources, losses, metrics; and what is refused before anything is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import simulator as sim
from simulator.data import draw
from simulator.settings import numbers, split
from simulator.training.runs import train_replicas

COMMON = dict(
    encoder_x=sim.MLP(12, embed_dim=6), encoder_y=sim.MLP(12, embed_dim=6), batch_size=16, steps=12, eval_pairs=16,
    eval_points=3,
)  # fmt: skip
DATA = sim.LatentPairs(48, latent_dim=3, dim_x=5, dim_y=7)


def small(**changes) -> sim.Experiment:
    return sim.Experiment(**(COMMON | dict(data=DATA) | changes))


@sim.register
class Penalised:
    """InfoNCE and a weight on the squared gap."""

    temperature: float
    weight: float

    def __call__(self, x, y, batch):
        return sim.info_nce(x, y, temperature=self.temperature) + self.weight * jnp.sum(sim.gap_vector(x, y) ** 2)


@sim.register
class Rotated:
    """y is x turned by an angle, in the plane."""

    angle: float
    num_pairs: int | None = 40
    dim_x: int = 2
    dim_y: int = 2

    def draw_world(self, key, dtype):
        return dict(scale=jax.random.uniform(key, (), dtype, 1.0, 2.0))

    def draw_pairs(self, world, n, key):
        x = world["scale"] * jax.random.normal(key, (n, 2), world["scale"].dtype)
        c, s = jnp.cos(self.angle), jnp.sin(self.angle)
        return x, x @ jnp.array([[c, s], [-s, c]])


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)), rng.normal(size=(60, 7)), np.arange(60)


def test_a_registered_class_is_a_pytree_of_its_numbers():
    loss = Penalised(0.1, weight=2)
    assert jax.tree.leaves(loss) == [0.1, 2]
    doubled = jax.tree.map(lambda number: 2 * number, loss)
    assert (type(doubled), doubled.temperature, doubled.weight) == (Penalised, 0.2, 4)
    assert list(numbers(small(loss=loss)))[-4:] == [
        "loss.temperature",
        "loss.weight",
        "swap_probability",
        "learning_rate",
    ]


def test_a_number_that_is_off_is_in_the_template_and_words_decide_the_program():
    template, given, _ = split(small(loss=Penalised(0.1, 0.0)))
    assert "loss.weight" not in given
    assert template.join(given).loss.weight == 0
    assert template == split(small(loss=Penalised(0.2, 0.0)))[0]
    assert template != split(small(loss=Penalised(0.2, 1.0)))[0]
    assert template != split(small(loss=Penalised(0.1, 0.0), batch_size=8))[0]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (dataclasses.make_dataclass("Loose", ["a"]), "not frozen"),
        (
            dataclasses.make_dataclass("Derived", [("a", float, dataclasses.field(init=False))], frozen=True),
            "init=False and would not follow",
        ),
    ],
)
def test_classes_that_cannot_be_registered(cls, words):
    with pytest.raises(TypeError, match=words):
        sim.register(cls)


def test_own_loss_is_the_built_in_one_at_weight_0_and_differs_at_another(key):
    """Swept as traced numbers in one program; the near miss is the other weight."""
    own = sim.sweep(small(loss=Penalised(0.1, 0.0)), over={"loss.weight": [0.0, 3.0]}, seeds=2, key=key)
    built_in = sim.sweep(small(loss=sim.InfoNCE(0.1)), over={}, seeds=2, key=key)
    np.testing.assert_allclose(own.x.sel({"loss.weight": 0.0}), built_in.x, atol=2e-5)
    assert np.abs(own.x.sel({"loss.weight": 3.0}) - built_in.x).max() > 1e-3
    np.testing.assert_array_equal(own.weight.isel(seed=0, step=0), np.float32([0.0, 3.0]))
    gap = own.gap_norm.isel(step=-1)
    assert (gap.sel({"loss.weight": 3.0}) < gap.sel({"loss.weight": 0.0})).all()


def test_a_schedule_and_a_learned_number_of_an_own_loss(key):
    weight = optax.linear_schedule(1.0, 0.0, 12)
    run = sim.train(small(loss=Penalised(sim.Learned(0.2), weight)), key=key)
    np.testing.assert_allclose(run.history.weight, [1.0, 1.0 - 1 / 12, 0.0], atol=1e-6)
    np.testing.assert_allclose(np.exp(-run.params["log_scale"]), run.history.temperature[-1], rtol=1e-6)
    assert run.history.temperature[0] != run.history.temperature[-1]
    learned = sim.train(small(loss=Penalised(0.2, sim.Learned(-0.5, positive=False))), key=key)
    np.testing.assert_allclose(learned.params["weight"], learned.history.weight[-1])


def test_a_function_is_a_loss_and_leaves_what_needs_a_temperature_out(key):
    def spectral(x, y, batch):
        products = x @ y.T
        return -2 * jnp.mean(jnp.sum(x * y, axis=1)) + jnp.mean(products**2)

    run = sim.train(small(loss=spectral), key=key)
    assert "temperature" not in run.history
    assert np.isnan(run.history.marginal_error_x).all()
    assert run.history.loss[-1] < run.history.loss[0]


@pytest.mark.parametrize(("decays", "moves"), [(True, False), (False, True)])
def test_a_learned_number_knows_no_weight_decay(key, decays, moves):
    """A gradient of 0 leaves it where it is, whatever the decay; the control is a loss that it enters."""

    @sim.register
    class Idle:
        weight: float | sim.Learned

        def __call__(self, x, y, batch):
            return sim.info_nce(x, y, temperature=0.2) + (0 if decays else 1) * self.weight

    def decayed(rate):
        return optax.chain(optax.add_decayed_weights(0.5), optax.sgd(rate))

    loss = Idle(sim.Learned(0.7, positive=False))
    run = sim.train(small(loss=loss, optimizer=decayed, learning_rate=0.01), key=key)
    assert (abs(float(run.params["weight"]) - 0.7) > 1e-6) == moves


def test_own_learning_rate_and_bounds_of_a_learned_number(key):
    """Under SGD the first step of the parameter is its rate times the gradient."""
    one = dict(steps=1, optimizer=optax.sgd, learning_rate=0.1, eval_points=2)
    start = -np.log(0.2)
    ends = [
        float(
            sim.train(small(loss=sim.InfoNCE(sim.Learned(0.2, learning_rate=rate)), **one), key=key).params["log_scale"]
        )
        for rate in (None, 0.2)
    ]
    np.testing.assert_allclose((ends[1] - start) / (ends[0] - start), 2.0, rtol=1e-3)
    for bounds, end in ((dict(least=0.195), 0.195), (dict(most=0.205), 0.205)):
        sign = 1 if "most" in bounds else -1  # a constant gradient pushes to the bound

        @sim.register
        class Pushed:
            number: float | sim.Learned

            def __call__(self, x, y, batch, sign=sign):
                return sim.info_nce(x, y, temperature=0.2) - sign * jnp.log(self.number)

        run = sim.train(small(loss=Pushed(sim.Learned(0.2, learning_rate=1.0, **bounds))), key=key)
        np.testing.assert_allclose(run.history.number[-1], end, rtol=1e-6)


def test_own_arrays_are_trained_and_held_out_as_pairs(key, rows):
    """Every held-out row is a row that was given, beside its partner and its label, and no row is in both sets."""
    x, y, labels = rows
    experiment = small(data=sim.Pairs(x, y, labels), eval_pairs=20)
    assert experiment.num_pairs == 40
    seen = {}

    def spy(snapshot):
        return snapshot.labels

    run = sim.train(experiment, key=key, metrics={"which": spy})
    seen = run.history.which.values
    assert seen.shape == (3, 20)
    held_out = set(seen[0].tolist())
    assert len(held_out) == 20
    np.testing.assert_array_equal(run.labels, seen[-1])
    found = run.encoder_x(jnp.asarray(x, jnp.float32)[np.asarray(run.labels)])
    np.testing.assert_allclose(found / jnp.linalg.norm(found, axis=1, keepdims=True), run.x, atol=1e-5)
    found = run.encoder_y(jnp.asarray(y, jnp.float32)[np.asarray(run.labels)])
    np.testing.assert_allclose(found / jnp.linalg.norm(found, axis=1, keepdims=True), run.y, atol=1e-5)
    other = sim.train(experiment, key=jax.random.key(7)).labels
    assert set(np.asarray(other).tolist()) != held_out  # every seed splits anew


def test_arrays_are_shared_by_all_replicas(rows):
    x, y, _ = rows
    keys = jax.random.split(jax.random.key(0), 3)
    together = train_replicas(small(data=sim.Pairs(x, y)), {}, keys).rows["x"]
    alone = train_replicas(small(data=sim.Pairs(x, y)), {}, keys[2:]).rows["x"]
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)


def test_an_own_source_is_trained_and_its_numbers_are_swept(key):
    experiment = small(
        data=Rotated(0.0), encoder_x=sim.Linear(2, bias=False), encoder_y=sim.Linear(2, bias=False), start=None
    )
    swept = sim.sweep(experiment, over={"data.angle": [0.0, 1.0]}, seeds=1, key=key)
    single = sim.train(dataclasses.replace(experiment, data=Rotated(1.0)), key=jax.random.fold_in(key, 0))
    np.testing.assert_allclose(swept.y[1, 0], single.y, atol=1e-5)
    assert np.abs(swept.y[1, 0] - swept.y[0, 0]).max() > 0.1
    batch = sim.sample(Rotated(np.pi / 2), 4, key=key)
    np.testing.assert_allclose(batch.y, np.stack([-batch.x[:, 1], batch.x[:, 0]], axis=1), atol=1e-5)
    assert batch.labels.tolist() == [-1] * 4
    assert sim.train(small(data=Rotated(0.3, num_pairs=None)), key=key).x.shape == (16, 6)  # a stream


def test_metrics_of_any_shape_in_train_and_sweep_and_store(key, tmp_path):
    metrics = {
        "top": lambda s: jnp.linalg.norm(s.x.T @ s.y, 2),
        "cross": lambda s: s.x.T @ s.y / len(s.x),
        "bias": lambda s: s.params["x"]["out"]["bias"][...],
        "at": lambda s: s.step,
    }
    run = sim.train(small(), key=jax.random.fold_in(key, 0), metrics=metrics)
    assert run.history.cross.dims == ("step", "cross_0", "cross_1")
    np.testing.assert_array_equal(run.history["at"], run.history.step)
    np.testing.assert_allclose(run.history.cross[-1], run.x.T @ run.y / 16, atol=1e-6)
    np.testing.assert_allclose(run.history.top[-1], np.linalg.norm(run.x.T @ run.y, 2), rtol=1e-5)
    stored = sim.sweep(small(), over={"start.angle": [1.57]}, seeds=1, key=key, metrics=metrics, store=tmp_path / "s")
    assert stored.cross.dims == ("start.angle", "seed", "step", "cross_0", "cross_1")
    np.testing.assert_allclose(stored["bias"][0, 0, -1], run.params["x"]["out"]["bias"][...], atol=1e-5)
    with pytest.raises(ValueError, match="metrics"):
        sim.sweep(small(), over={"start.angle": [1.57]}, seeds=1, key=key, store=tmp_path / "s")


@sim.register
@dataclasses.dataclass(frozen=True)
class WithMargin(sim.InfoNCE):
    """A field that nothing reads."""

    margin: float = 0.1


@dataclasses.dataclass(frozen=True)
class Unregistered:
    weight: float = 1.0

    def __call__(self, x, y, batch):
        return jnp.sum(x * y)


@sim.register
@dataclasses.dataclass(frozen=True)
class Steeper(sim.InfoNCE):
    """Another loss, whose sharded form would still be InfoNCE."""

    def __call__(self, x, y, batch=None):
        return 2.0 * super().__call__(x, y, batch)


@sim.register
class Worded:
    words: tuple[str, ...]

    def __call__(self, x, y, batch):
        return jnp.sum(x * y)


class Lacking:
    dim_x = dim_y = 3
    num_pairs = 20


def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)


GENERATOR = np.random.default_rng(0)


@sim.register
class Asking:
    """Python can ask for its number only where that is off, and so no part of the traced ones."""

    weight: float

    def __call__(self, x, y, batch):
        loss = sim.info_nce(x, y, temperature=0.1)
        return loss + self.weight if self.weight > 0 else loss


@sim.register
class Twice:
    temperature: float | sim.Learned
    log_scale: float | sim.Learned

    def __call__(self, x, y, batch):
        return self.log_scale * sim.info_nce(x, y, temperature=self.temperature)


def numpy_tower(dim_in, *, rngs, dtype):
    tower = sim.Linear(6)(dim_in, rngs=rngs, dtype=dtype)
    tower.out.kernel[...] = jnp.asarray(GENERATOR.normal(size=(dim_in, 6)), dtype)
    return tower


def drawing(x, y, world=lambda: 1.0):
    return type("Source", (), dict(
        dim_x=3, dim_y=4, num_pairs=20, draw_world=lambda self, key, dtype: world() * jnp.ones(2, dtype),
        draw_pairs=lambda self, world, n, key: (x(n), y(n)),
    ))()  # fmt: skip


BAD = {
    "a field that nothing reads": (lambda: small(loss=WithMargin(0.1)), "adds margin to InfoNCE"),
    "not registered": (lambda: small(loss=Unregistered()), "write @sim.register above it"),
    "a class": (lambda: small(loss=Penalised), "is called as loss"),
    "no function": (lambda: small(loss=3), "loss is 3"),
    "unhashable": (lambda: small(loss=Worded(["a"])), "not hashable"),
    "no scalar": (lambda: small(loss=lambda x, y, batch: x[:, 0]), "shape \\(16,\\).*a scalar"),
    "two values": (lambda: small(loss=lambda x, y, batch: (x.sum(), y.sum())), "tuple; it must give one real"),
    "whole number": (lambda: small(loss=lambda x, y, batch: jnp.argmax(x)), "one real number"),
    "fails": (lambda: small(loss=lambda x, y: x.sum()), "fails while it is traced: TypeError"),
    "not differentiable": (
        lambda: small(loss=lambda x, y, batch: jax.lax.while_loop(lambda v: v < 1.0, lambda v: v + 1.0, jnp.sum(x))),
        "the gradient of the loss .* fails while it is traced: ValueError",
    ),
    "draws": (lambda: small(loss=lambda x, y, batch: np.random.default_rng().random() * jnp.sum(x * y)), "another program each time"),
    "another size": (
        lambda: small(eval_pairs=17, loss=lambda x, y, batch: jnp.sum(x * y * jnp.ones((16, 1)))),
        "of 17 pairs fails while it is traced: TypeError",
    ),
    "asks a traced number": (
        lambda: small(loss=Asking(0.5)),
        "of 16 pairs fails while it is traced: TracerBoolConversionError",
    ),
    "one parameter twice": (
        lambda: small(loss=Twice(sim.Learned(0.1), sim.Learned(0.1))), "parameter is called log_scale, as another one is",
    ),
    "world by NumPy": (
        lambda: small(data=drawing(lambda n: zeros(n, 3), lambda n: zeros(n, 4), lambda: GENERATOR.random())),
        "draw_world.* is another program each time it is traced",
    ),
    "pairs by NumPy": (
        lambda: small(data=drawing(lambda n: zeros(n, 3) + GENERATOR.random(), lambda n: zeros(n, 4))),
        "draw_pairs is another program each time it is traced",
    ),
    "tower by NumPy": (lambda: small(encoder_x=numpy_tower, start=None), "encoder_x is another program each time"),
    "a name of ours": (
        lambda: small(loss=sim.register(type("L", (), dict(
            __annotations__=dict(gap=float), __call__=lambda self, x, y, batch: self.gap * jnp.sum(x * y))))(1.0)),
        "a number called gap",
    ),
    "sharded form of another": (lambda: small(loss=Steeper(0.1), batch_shards=2), "spreads InfoNCE only; train Steeper"),
    "lacks": (lambda: small(data=Lacking()), "lacks draw_world, draw_pairs"),
    "arrays": (lambda: small(data=np.zeros((3, 3))), "for arrays use Pairs"),
    "width": (lambda: small(data=drawing(lambda n: zeros(n, 3), lambda n: zeros(n, 3))), "y of shape \\(3, 3\\)"),
    "rows": (lambda: small(data=drawing(lambda n: zeros(5, 3), lambda n: zeros(n, 4))), "x of shape \\(5, 3\\)"),
    "type": (lambda: small(data=drawing(lambda n: jnp.zeros((n, 3), complex), lambda n: zeros(n, 4))), "dtype complex"),
    "too few": (lambda: small(data=sim.Pairs(np.eye(20), np.eye(20)), eval_pairs=19), "more than the 20 of Pairs"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_before_training(key, case, monkeypatch):
    build, words = BAD[case]
    monkeypatch.setattr("simulator.training.replica.initialise", lambda *_, **__: pytest.fail("began to train"))
    with pytest.raises(ValueError, match=words) as found:
        sim.train(build(), key=key)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"gap_norm": lambda s: s.step}, "'gap_norm', which is taken"),
        ({"step": lambda s: s.step}, "taken"),
        ({"m": 3}, "must be a function"),
        ({"m": lambda s: s.z}, "the metric 'm' fails while it is traced: AttributeError"),
        ({"m": lambda s: "word"}, "the metric 'm' fails while it is traced: TypeError"),
        ({"m": lambda s: s.x[0] * GENERATOR.random()}, "the metric 'm' is another program each time"),
        ({"a/b": lambda s: s.step}, "no name in Python"),
        ({"temperature": lambda s: s.step}, "like a number of the loss"),
    ],
)
def test_metrics_that_are_refused(key, metrics, words):
    with pytest.raises(ValueError, match=words):
        sim.train(small(), key=key, metrics=metrics)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: sim.Pairs(np.zeros((3, 2)), np.zeros((4, 2))), "3 rows and Pairs.y has 4"),
        (lambda: sim.Pairs(np.zeros(3), np.zeros((3, 2))), "Pairs.x has shape"),
        (lambda: sim.Pairs(np.full((3, 2), np.nan), np.zeros((3, 2))), "Pairs.x has 3 row"),
        (lambda: sim.Pairs(np.zeros((3, 2)), np.zeros((3, 2)), [0.5, 1, 2]), "labels have shape"),
        (lambda: sim.Pairs(np.zeros((3, 2)), np.zeros((3, 2)), [2**40, 1, 2]), "below 2³¹"),
        (lambda: sim.Pairs(np.zeros((3, 2)), np.zeros((3, 2)), num_pairs=3), "some must be held out"),
        (lambda: sim.Learned(0.5, most=0.4), "Learned.initial is 0.5"),
        (lambda: sim.Learned(0.5, learning_rate=0.0), "learning_rate"),
        (lambda: sim.InfoNCE(sim.Learned(0.5, positive=False)), "positive=True"),
        (lambda: sim.Spectral(sim.Learned(0.5, positive=False)), "positive=True"),
    ],
)
def test_bad_parts(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("loss", [sim.LabeledInfoNCE(0.1, same_label="ignored"), sim.Spectral(sim.Learned(2.0))])
def test_shipped_losses_train_as_their_functions(key, loss):
    """One step of SGD from the same start: the towers move by the gradient of the function; labels are those of the batch."""
    data = sim.LatentPairs(16, latent_dim=3, dim_x=5, dim_y=7, latent="clusters", num_clusters=4)
    one = dict(data=data, steps=1, eval_points=2, optimizer=optax.sgd, learning_rate=0.1, dtype="float64", start=None)
    run = sim.train(small(loss=loss, **one), key=key)
    seen = {}

    def by_hand(x, y, batch):
        seen["labels"] = batch.labels
        if isinstance(loss, sim.Spectral):
            return sim.spectral_loss(2.0 * x, y)
        return sim.labeled_info_nce(x, y, batch.labels, temperature=0.1, same_label="ignored")

    other = sim.train(small(loss=by_hand, **one), key=key)
    assert seen["labels"].shape == (16,)
    for a, b in zip(jax.tree.leaves(run.params["x"]), jax.tree.leaves(other.params["x"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.history.loss[0], other.history.loss[0], rtol=1e-12)


@sim.register
class ByMatrix:
    """Positives of a batch from a matrix of all pairs, whose rows are looked up in a field of the batch."""

    positives: jax.Array
    field: str = "labels"

    def __call__(self, x, y, batch):
        rows = getattr(batch, self.field)
        return sim.paired_info_nce(x, y, self.positives[rows[:, None], rows[None, :]], temperature=0.1)


def test_numbers_of_rows_find_a_shuffled_pair_in_a_matrix_and_its_place_does_not(key, rows):
    x, y, numbers_of_rows = rows
    classes = numbers_of_rows % 5
    same = jnp.asarray(classes[:, None] == classes)
    drawn = lambda labels: sim.sample(sim.Pairs(x, y[:, :5], labels), 12, key=key, dtype=jnp.float64)
    batch, labeled = drawn(numbers_of_rows), drawn(classes)
    wanted = sim.LabeledInfoNCE(0.1)(labeled.x, labeled.y, labeled)
    np.testing.assert_allclose(ByMatrix(same)(batch.x, batch.y, batch), wanted, rtol=1e-12)
    assert abs(ByMatrix(same, "index")(batch.x, batch.y, batch) - wanted) > 0.01


@pytest.mark.slow
def test_a_matrix_of_positives_trains_as_the_labels_that_it_stands_for(key, rows):
    x, y, numbers_of_rows = rows
    classes = numbers_of_rows % 5
    data = sim.Pairs(x, y, numbers_of_rows)
    run = sim.train(small(data=data, loss=ByMatrix(classes[:, None] == classes), dtype="float64"), key=key)
    other = sim.train(small(data=sim.Pairs(x, y, classes), loss=sim.LabeledInfoNCE(0.1), dtype="float64"), key=key)
    np.testing.assert_allclose(run.history.loss, other.history.loss, rtol=1e-9)
    np.testing.assert_allclose(run.x, other.x, rtol=1e-6, atol=1e-9)


def test_a_schedule_is_held_to_what_its_class_asks_of_a_number(key):
    """Spectral's scale must be > 0, at every step; up to the step before it is not, it may be trained."""
    falling = sim.Spectral(optax.linear_schedule(1.0, -1.0, 12))
    with pytest.raises(ValueError, match=r"loss.scale gives -1 at step 12: Spectral.scale is -1.0"):
        sim.train(small(loss=falling), key=key)
    assert sim.train(small(loss=falling, steps=5), key=key).history.scale[-1] > 0


def test_a_number_that_is_off_may_be_asked_for(key):
    """As the shipped data sources do; swept from 0 it is traced, and refused."""
    assert sim.train(small(loss=Asking(0.0)), key=key).history.loss.size == 3
    with pytest.raises(ValueError, match="TracerBoolConversionError"):
        sim.sweep(small(loss=Asking(0.0)), over={"loss.weight": [0.0, 1.0]}, seeds=1, key=key)


class Shifted(sim.LatentPairs):
    """Other pairs; the stream and the sharded forms of what it inherits from are not its own."""

    def draw_pairs(self, world, n, key):
        batch = super().draw_pairs(world, n, key)
        return dataclasses.replace(batch, x=batch.x + 100.0)


def test_a_stream_is_drawn_as_the_class_itself_draws(key):
    data = sim.register(dataclasses.dataclass(frozen=True)(Shifted))(None, latent_dim=3, dim_x=5, dim_y=7)
    world = data.draw_world(key=key)
    for stream in (True, False):
        assert draw(data, world, 8, key, jnp.float32, stream=stream).x.min() > 50
    plain = sim.LatentPairs(None, latent_dim=3, dim_x=5, dim_y=7)
    assert not np.array_equal(*(draw(plain, world, 8, key, jnp.float32, stream=s).x for s in (True, False)))


def test_two_learned_numbers_of_which_one_has_its_own_rate(key):
    """Under SGD each moves by its own rate times its gradient, whatever it is called."""

    @sim.register
    class Sum:
        rest: float | sim.Learned
        other: float | sim.Learned

        def __call__(self, x, y, batch):
            return sim.info_nce(x, y, temperature=0.2) + self.rest + self.other

    loss = Sum(sim.Learned(1.0, learning_rate=0.3, positive=False), sim.Learned(1.0, positive=False))
    run = sim.train(small(loss=loss, steps=1, eval_points=2, optimizer=optax.sgd, learning_rate=0.01), key=key)
    np.testing.assert_allclose([run.params["rest"], run.params["other"]], [0.7, 0.99], rtol=1e-6)
