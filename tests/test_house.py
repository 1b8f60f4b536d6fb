"""Rules that keep the project one house."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import simulator as sim
from experiments import catalogue

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_public_name_is_exported_and_explained():
    for name in sim.__all__:
        assert getattr(sim, name).__doc__, name


def test_predictions_never_call_what_they_predict():
    forbidden = ("losses", "training", "encoders", "geometry", "data")
    for path in ROOT.glob("simulator/theory/*.py"):
        used = imports(path)
        assert not [u for u in used if any(u.startswith(f"simulator.{f}") for f in forbidden)], path
        assert not any(word in path.read_text() for word in ("jax.grad", "value_and_grad", "jacfwd", "jacrev")), path


def private_names(path):
    """Names with a leading underscore that a file takes from another file of this project."""
    tree, modules, found = ast.parse(path.read_text()), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("simulator", "experiments"):
            modules |= {alias.asname or alias.name for alias in node.names}
            found += [alias.name for alias in node.names if alias.name.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found += [f"{node.value.id}.{node.attr}"] * (node.attr.startswith("_") and not node.attr.startswith("__"))
    return found


def test_nothing_takes_private_names_of_another_file(tmp_path):
    files = [*ROOT.glob("simulator/**/*.py"), *ROOT.glob("experiments/**/*.py"), *ROOT.glob("docs/_ext/*.py")]
    assert len(files) > 100
    assert {str(path): names for path in files if (names := private_names(path))} == {}
    near = tmp_path / "near.py"
    near.write_text("from simulator.training import engine\nfrom simulator.losses import _x\nengine._y()\n")
    assert private_names(near) == ["_x", "engine._y"]


def test_every_experiment_has_its_figure_test_and_verdicts():
    for stem in catalogue.stems():
        module = catalogue.load(stem)
        assert (ROOT / "tests" / "theorems" / f"test_{stem}.py").exists()
        for suffix in ("pdf", "png", "nc"):
            assert (ROOT / "figures" / f"{stem}.{suffix}").exists(), f"figures/{stem}.{suffix}"
        assert (ROOT / "figures" / f"{stem}.nc").stat().st_size < 1_000_000
        assert module.CAPTION
        assert isinstance(module.QUICK, module.Config)


def test_verdicts_come_from_seeds_on_which_nothing_was_chosen():
    for stem in catalogue.stems():
        module = catalogue.load(stem)
        for config in (module.Config(), module.QUICK):
            assert getattr(config, "seed", None) not in getattr(config, "design_seeds", ()), stem
        assert not re.search(r"\bseed: int = \d+ *#", (ROOT / "experiments" / "claims" / f"{stem}.py").read_text()), (
            stem
        )
