"""The store of a sweep: how it is made, shared, cut, continued and opened by others."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import simulator as sim
from simulator.storage import sweeps
from simulator.training import replica
from simulator.training.sweep import _cut, sweep
from tests.processes import ENVIRONMENT, ROOT


@pytest.fixture
def experiment():
    return sim.Experiment(
        data=sim.LatentPairs(64, latent_dim=4, dim_x=8, dim_y=8), encoder_x=sim.MLP(8, embed_dim=8),
        encoder_y=sim.MLP(8, embed_dim=8), batch_size=16, steps=20, eval_pairs=32, eval_points=3,
    )  # fmt: skip


def test_what_others_keep_in_the_folder_is_never_removed(tmp_path, experiment):
    import zarr

    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    precious = zarr.open_group(tmp_path / "s" / sweeps.RESULTS, mode="w").create_array(
        "precious", shape=(9,), dtype="f8"
    )
    precious[:] = 1
    for call in (lambda: sweep(experiment, **arguments), lambda: sim.load_sweep(tmp_path / "s")):
        with pytest.raises(ValueError, match=r"results.zarr holds no sweep; it is left as it is: give another folder"):
            call()
    assert (precious[:] == 1).all()
    (tmp_path / "empty" / sweeps.RESULTS).mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a whole store"):
        sweep(experiment, **arguments | dict(store=tmp_path / "empty"))


def test_a_store_that_was_never_finished_making_is_made_again(tmp_path, experiment):
    arguments = dict(over={"loss.temperature": [0.05]}, seeds=1, key=jax.random.key(0), store=tmp_path / "s")
    (tmp_path / "s" / ".draft-of-a-process-that-was-killed" / "loss").mkdir(parents=True)
    sweep(experiment, **arguments)
    assert (tmp_path / "s" / ".draft-of-a-process-that-was-killed" / "loss").exists()  # it might be alive
    shutil.rmtree(tmp_path / "s" / sweeps.RESULTS)
    with pytest.raises(ValueError, match=r"is not empty and holds no sweep \(it has done\)"):
        sweep(experiment, **arguments)


def create(path, **changes):
    """An empty store of 6 replicas."""
    arguments = dict(
        shape=(3, 2), cut=(1, 2), arrays=dict(loss=((4,), "float32", ("step",))), dims=("rate", "seed"),
        coordinates=dict(rate=("rate", [1.0, 2.0, 3.0])), attributes=dict(config='{"a": 1}'), choose_block=lambda: 2,
    )  # fmt: skip
    return sweeps.open_store(path, dict(a=1), **arguments | changes)


def test_of_thirty_who_create_a_store_at_once_all_get_one_whole_store(tmp_path):
    together = threading.Barrier(30)
    with ThreadPoolExecutor(30) as pool:
        made = list(pool.map(lambda _: create(tmp_path / "s", choose_block=together.wait), range(30)))
    assert len({store.replicas_per_block for store in made}) == 1
    assert [p.name for p in (tmp_path / "s").iterdir()] == [sweeps.RESULTS]
    values = dict(loss=np.ones((1, 2, 4), "float32"))
    for chunk in np.ndindex(3, 1):
        sweeps.write_chunk(made[0], chunk, values)
    assert (sweeps.read_store(tmp_path / "s")[0]["loss"] == 1).all()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_one_process_goes_on_alone(tmp_path, monkeypatch, code):
    def no_lock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_lock)
    store = create(tmp_path / "s")
    says = r"has no locks .*goes on alone.*put the store on a file system with locks"
    with pytest.warns(UserWarning, match=says), sweeps.claimed(store, [(0, 0), (2, 0)]) as mine:
        assert mine == [(0, 0), (2, 0)]
    sweeps.write_chunk(store, (0, 0), dict(loss=np.ones((1, 2, 4), "float32")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sweeps.finished(create(tmp_path / "s")).sum() == 1


def test_locks_that_do_nothing_change_no_number(tmp_path, experiment, monkeypatch):
    """Another process trains and writes everything while this one works on its first chunk."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    arguments = dict(over={"batch_size": [8, 16]}, seeds=2, key=jax.random.key(0), store=tmp_path / "s")
    module, others = sys.modules["simulator.training.sweep"], []
    train = module.train_replicas

    def train_beside_another(*rest, **options):
        values = train(*rest, **options)
        if not others:
            others.append(None)
            others[0] = sweep(experiment, **arguments)
        return values

    monkeypatch.setattr(module, "train_replicas", train_beside_another)
    assert sweep(experiment, **arguments).identical(others[0])
    monkeypatch.undo()
    assert sweep(experiment, **arguments | dict(store=None)).equals(others[0])


def test_a_chunk_that_outlasts_a_time_limit_is_continued(tmp_path, experiment, monkeypatch):
    arguments = dict(over={"start.angle": [0.5]}, seeds=2, key=jax.random.key(0))
    monkeypatch.setattr(sweeps, "SECONDS_BETWEEN_STATES", 0.0)
    advance, begun, ends_at = replica.advance, [], 5  # the first cut after a measure, however fast the machine

    def limited(*rest, **options):
        begun.append(int(rest[3]))
        if rest[3] >= ends_at:
            raise KeyboardInterrupt
        return advance(*rest, **options)

    monkeypatch.setattr(replica, "advance", limited)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, store=tmp_path / "s", **arguments)
    assert np.isnan(sim.load_sweep(tmp_path / "s").loss.values).all()
    last, ends_at = begun[-1], 21
    begun.clear()
    shutil.copytree(tmp_path / "s", tmp_path / "damaged")
    continued = sweep(experiment, store=tmp_path / "s", **arguments)
    assert begun[0] >= last > 0
    assert not list((tmp_path / "s" / ".unfinished").iterdir())
    (tmp_path / "damaged" / ".unfinished" / "0-0" / "run.json").write_text("{}")
    assert sweep(experiment, store=tmp_path / "damaged", **arguments).identical(continued)
    assert sweep(experiment, **arguments).equals(continued)


@pytest.mark.parametrize(("shape", "static", "cut"), [
    ((24, 8), [False], (1, 8)), ((3, 40), [False], (1, 8)), ((2, 3, 2), [True, False], (1, 3, 2)),
    ((10_000, 8), [False], (16, 8)), ((10_000, 8), [True], (1, 8)), ((9,), [], (5,)), ((1,), [], (1,)),
])  # fmt: skip
def test_chunks_depend_on_the_sweep_alone_and_are_many(shape, static, cut, monkeypatch):
    monkeypatch.setattr(jax, "device_count", None)
    assert _cut(shape, static) == cut


def test_xarray_opens_a_store_labelled_and_lazy(tmp_path, experiment):
    import xarray as xr

    arguments = dict(over={"start.angle": [0.5, 1.0], "loss.similarity": ["dot"]}, seeds=2, key=jax.random.key(0))
    stored = sweep(experiment, store=tmp_path / "s", **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xr.open_zarr(tmp_path / "s" / sweeps.RESULTS, chunks=None)
    assert not any(value.variable._in_memory for value in opened.data_vars.values())
    assert opened.drop_attrs().identical(stored.drop_attrs())
    assert opened.attrs.keys() - stored.attrs.keys() == {"sweep"}
    np.testing.assert_array_equal(opened.start_angle, [0.5, 1.0])
    some = sim.load_sweep(tmp_path / "s", ["loss", "bad_step"])
    assert some.identical(stored[["loss", "bad_step"]])
    shutil.rmtree(tmp_path / "s" / sweeps.RESULTS / "x" / "c")
    assert sim.load_sweep(tmp_path / "s", ["loss"]).loss.equals(stored.loss)
    for names, says in ((["x"], "no longer hold"), (["los"], "holds no los; it holds .*loss")):
        with pytest.raises(ValueError, match=says):
            sim.load_sweep(tmp_path / "s", names)


def test_a_swept_field_is_reached_as_an_attribute(tmp_path, experiment):
    """By the name with underscores where nothing else has it; the dotted name stays the dimension's, also without the other."""
    import zarr

    over = {"loss.temperature": [0.05, 0.1], "data.noise": [0.0, 0.1], "start.angle": [1.0]}
    arguments = dict(over=over, seeds=1, key=jax.random.key(0), metrics={"data_noise": lambda s: s.step})
    data = sweep(experiment, store=tmp_path / "s", **arguments)
    assert data.loss_temperature.dims == ("loss.temperature",)
    assert data.loss_temperature.values.tolist() == over["loss.temperature"]
    assert data.data_noise.dims == (*over, "seed", "step")  # the metric
    one = data.gap_norm.sel({"loss.temperature": 0.1})
    assert one.equals(data.swap_dims({"loss.temperature": "loss_temperature"}).gap_norm.sel(loss_temperature=0.1))
    assert one.equals(data.gap_norm.where(data.loss_temperature == 0.1, drop=True).squeeze("loss.temperature"))
    assert data.stack(run=["loss.temperature", "seed"]).sizes["run"] == 2
    group = zarr.open_group(tmp_path / "s" / sweeps.RESULTS)  # a store of before these names
    for name in group.attrs["coordinates"].split():
        shutil.rmtree(tmp_path / "s" / sweeps.RESULTS / name)
    group.attrs.put({name: value for name, value in group.attrs.asdict().items() if name != "coordinates"})
    assert sim.load_sweep(tmp_path / "s").identical(data)
    assert sweep(experiment, store=tmp_path / "s", **arguments).identical(data)


@pytest.mark.parametrize(
    "change", [lambda a: a.update(cut={}) or a.pop("sweep"), lambda a: a["sweep"].update(format=2)]
)
def test_a_store_of_an_earlier_version_is_refused(tmp_path, change):
    import zarr

    create(tmp_path / "s")
    group = zarr.open_group(tmp_path / "s" / sweeps.RESULTS)
    attributes = group.attrs.asdict()
    change(attributes)
    group.attrs.put(attributes)
    with pytest.raises(ValueError, match="another version of this program; load it with that one"):
        sim.load_sweep(tmp_path / "s")


def test_nothing_needs_the_locks_of_one_system_to_be_imported():
    code = "import sys; sys.modules['fcntl'] = None; import simulator, experiments.__main__, simulator.storage.sweeps"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}).returncode == 0
