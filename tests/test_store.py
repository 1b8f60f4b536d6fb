import numpy as np
import pytest
import xarray as xr

import simulator as sim
from simulator.store import describe_config, load_dataset, load_embeddings, load_labels, provenance, save_dataset


def test_round_trip_and_no_half_written_file(tmp_path, monkeypatch):
    data = xr.Dataset({"a": (("step",), np.arange(3.0))}, coords={"step": [0, 1, 2]}, attrs=dict(config="{}"))
    path = save_dataset(data, tmp_path / "deep" / "a.nc")
    xr.testing.assert_identical(load_dataset(path), data)
    before = path.read_bytes()

    def fail(*arguments, **options):
        arguments[1].write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(OSError, match="disk full"):
        save_dataset(data, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.nc"]


def test_missing_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the experiment"):
        load_dataset(tmp_path / "none.nc")


def test_config_and_provenance_are_plain():
    described = describe_config(sim.Experiment())
    assert described["data"]["type"] == "LatentPairs"
    assert described["optimizer"] == "adam"
    assert "jax " in provenance()["versions"]


def test_embeddings_and_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float16))
    assert load_embeddings(tmp_path / "a.npy").dtype == float
    (tmp_path / "labels.txt").write_text("1\n0\n")
    np.testing.assert_array_equal(load_labels(tmp_path / "labels.txt"), [1, 0])
    (tmp_path / "labels.txt").write_text("one\n")
    with pytest.raises(ValueError, match="whole numbers"):
        load_labels(tmp_path / "labels.txt")
