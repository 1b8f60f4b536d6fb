"""python -m experiments.real_embeddings FOLDER [OUT [PART ...]]"""

import sys
from pathlib import Path

from experiments.plotting import save_figure
from experiments.real_embeddings import study
from experiments.real_embeddings.study_page import draw, table
from simulator.storage.results import load_dataset, provenance, save_dataset


def main(folder: str, out: str = "results", *parts: str):
    """Measure, store and draw; what is stored already keeps its place beside the named parts, on the same points alone."""
    path, data = Path(out) / "real_embeddings.nc", study.measure(folder, study.Config(), parts)
    if parts:
        new, data = data, study.named(load_dataset(path))
        for name, points in new.coords.items():
            if not points.equals(data.coords[name]):
                raise ValueError(f"{path} holds another {name} than is measured now; measure every part anew")
        data = data.assign({name: new[name] for name in new.data_vars})
        data.attrs |= {f"commit of {part}": provenance()["commit"] for part in parts}
    else:
        data.attrs |= provenance()
    save_dataset(data, path)
    save_figure(draw, data, Path(out) / "real_embeddings")
    print(table(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
