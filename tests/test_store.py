import numpy as np
import pytest
import xarray as xr

import simulator as sim
from simulator.storage.files import require_writable, whole_file
from simulator.storage.identity import describe_config
from simulator.storage.results import load_dataset, provenance, save_dataset


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
    assert described["optimizer"] == {"function": "optax._src.alias.adam"}
    assert "jax " in provenance()["versions"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_whole_file_or_the_old_one(tmp_path, fails):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as draft:
        draft.write_text("old")
    if fails:
        with pytest.raises(KeyboardInterrupt), whole_file(path) as draft:
            draft.write_text("ha")
            raise KeyboardInterrupt
    else:
        with whole_file(path) as draft:
            draft.write_text("new")
    assert path.read_text() == ("old" if fails else "new")
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*b\.json"):
        require_writable(tmp_path / "file" / "b.json")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        require_writable(tmp_path)
    require_writable(tmp_path / "new" / "b.json")
    assert not list((tmp_path / "new").iterdir())
