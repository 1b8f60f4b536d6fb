"""The answers to the disputes: their numbers recomputed from the files, and taken back where the results say otherwise."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy.io import netcdf_file

from experiments import catalogue, plotting
from experiments.__main__ import main
from experiments.report import dispute_figures, disputes, stories
from simulator.storage.results import load_dataset
from tests import style_rules

FIGURES = Path(__file__).parents[1] / "figures"
DISPUTES = {dispute.name: dispute for dispute in disputes.DISPUTES}
ANSWERS = {name: dispute.answer(FIGURES) for name, dispute in DISPUTES.items()}


def stored(stem: str) -> dict[str, np.ndarray]:
    """The arrays of a stored result, read without the code that is tested."""
    with netcdf_file(FIGURES / f"{stem}.nc", mmap=False) as file:
        return {name: np.array(variable[...]) for name, variable in file.variables.items()}


def mean_and_error(values) -> tuple[float, float]:
    values = np.asarray(values, float).ravel()
    return sum(values) / len(values), (sum((values - values.mean()) ** 2) / (len(values) - 1) / len(values)) ** 0.5


NUMBER = re.compile(r"\s*([\d.,]+(?:e-\d+)?)(?: ± ([\d.]+))?")


def is_shown_as(text: str | None, value: float) -> bool:
    """Whether the value is what is written, to the digits shown; nothing is written for an error of 0."""
    if text is None:
        return value == 0
    text = text.rstrip(".,").replace(",", "")
    unit = 10.0 ** int(text.partition("e")[2]) if "e" in text else 10.0 ** -len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5001 * unit


def assert_says(answer: str, before: str, mean: float, error: float = 0.0):
    """The number that follows the words `before` is this mean, with this standard error."""
    said = NUMBER.match(answer.partition(before)[2])
    assert said, (before, answer)
    assert is_shown_as(said[1], mean), (before, said[0], mean)
    assert is_shown_as(said[2], error), (before, said[0], error)


def test_a_wrong_number_is_not_what_is_said():
    """Controls of the comparison above: the mean 1 % off, the error halved or left out, an exponent off by a third."""
    said = "keep 54.7 ± 0.2 % at G ≤ 2e-06"
    assert_says(said, "keep", 54.71, 0.2049)
    assert_says(said, "≤", 1.66e-6)
    wrong = [
        ("keep", 54.71 * 1.01, 0.2049),
        ("keep", 54.71, 0.2049 / 2),
        ("keep", 54.71, 0.0),
        ("≤", 2.66e-6),
        ("% at", 1.0),
    ]
    for place in wrong:
        with pytest.raises(AssertionError):
            assert_says(said, *place)


def test_every_dispute_names_known_claims_and_stored_results():
    known = {catalogue.load(stem).CLAIM.id for stem in catalogue.stems()}
    for dispute in disputes.DISPUTES:
        assert set(dispute.claims) <= known
        assert dispute.is_stored(FIGURES)
        assert dispute.question.endswith("?")
        assert dispute.caption
        assert "\n" not in ANSWERS[dispute.name]
        assert not ANSWERS[dispute.name].startswith("Not settled"), ANSWERS[dispute.name]


def test_numbers_of_flat():
    data, learned, said = stored("gap_freezing"), stored("learned_temperature"), ANSWERS["flat"]
    loss = data["loss_at_offset"]
    assert_says(said, "the Euclidean loss by", np.max(np.abs(loss[0] - loss[0, 0])))
    assert_says(said, "the cosine loss by", loss[2, -1] - loss[2, 0])
    assert_says(said, "of the same gap", *mean_and_error(100 * data["cones_euclid"][:, :, -1].mean(axis=0)))
    assert_says(said, "on the sphere ", *mean_and_error(100 * data["cones_sphere"][0, :, -1]))
    assert_says(said, f"at τ = {data['temperature'][0]:g} and", *mean_and_error(100 * data["cones_sphere"][-1, :, -1]))
    last = learned["shared_half_gap"][:, :, list(learned["rate"]).index(1.0), -1]
    assert_says(said, "(half gap 0.5 →", *mean_and_error(last[:, 0]))
    assert_says(said, "1/τ = e^ν,", *mean_and_error(last[:, -1]))


def test_numbers_of_optimum():
    said, simplex, towers = ANSWERS["optimum"], stored("simplex"), stored("gap_emergence")
    assert_says(said, "end at G ≤", np.max(simplex["free_gap"][0]))
    assert_says(said, "makes the smallest loss", simplex["parallel"][0, 2] / simplex["parallel"][0, 0])
    many = stored("alignment_uniformity")
    cost = many["flawed"][3] - many["flawed"][0]  # γ = 0.6 and 0
    error = (many["flawed_error"][3] ** 2 + many["flawed_error"][0] ** 2) ** 0.5
    assert_says(said, "a half gap of 0.6 costs", cost, error)
    gap = towers["gap_norm"][0, 0, 2]  # synthetic, smallest τ, widest start: [seed, step]
    steps = list(towers["step"])
    late = next(i for i, step in enumerate(steps) if step >= steps[-1] / 2)
    assert_says(said, "towers at τ = 0.01: G =", *mean_and_error(gap[:, late]))
    assert_says(said, f"at step {steps[late]:,},", *mean_and_error(gap[:, -1]))
    assert_says(said, "wrong pairs make gaps up to", simplex["widest"][1])
    sigmoid = stored("sigmoid_constellation")["gap"]
    assert_says(said, "its bias is held at 0 (", *mean_and_error(sigmoid[1]))
    assert_says(said, "trained:", *mean_and_error(sigmoid[0]))


def test_numbers_of_cone():
    said, shapes, same = ANSWERS["cone"], stored("collapse_controls"), stored("same_data_gap")
    gap = shapes["gap_norm"][0, :, :, :, -1]  # towers, at the end: [shape, angle, seed]
    places = [gap[0, -1], gap[1, -1], gap[0, 0], gap[1, 0], shapes["chance"][0, 0, 0, :, -1]]
    places += [same["widest_gap"][0, setting, :, step] for setting, step in ((0, 0), (0, -1), (1, -1))]
    means = [said for said in NUMBER.finditer(said) if said[2]]  # those with an error, in their order
    for number, place in zip(means, places, strict=True):
        mean, error = mean_and_error(place)
        assert is_shown_as(number[1], mean) and is_shown_as(number[2], error), (number[0], mean, error)


def binomial(changed: int, of: int) -> tuple[float, float]:
    part = changed / of
    return 100 * part, 100 * (part * (1 - part) / of) ** 0.5


def test_numbers_of_accuracy():
    said, closing, real = ANSWERS["accuracy"], stored("gap_closing"), stored("real_embeddings")
    assert_says(said, "g' changed", closing["changed"][:, -1].sum())
    assert_says(said, "0 of", 3 * 960)
    accuracy = stored("robustness_monotone")["clean_accuracy"][0]
    assert_says(said, "ten tower classes", accuracy[0])
    assert_says(said, "→", accuracy[4])
    assert_says(said, "any shift will do (", stored("compensated_closing")["changed"].sum())
    by_gap = closing["changed_by_gap"][:, 2]  # α = 1
    assert_says(said, "costs: it changed", *binomial(by_gap[0], 960))
    assert_says(said, "%, ", *binomial(by_gap[1], 960))
    assert_says(said, "galleries and", *binomial(real["trade_off_top r"][0, 0] * 500, 500))
    assert_says(said, "500 classes, and", *binomial(real["trade_off_top r"][4, 0] * 500, 500))


def test_numbers_of_robustness():
    said, data, real = ANSWERS["robustness"], stored("robustness_monotone"), stored("real_embeddings")
    kept, error = 100 * data["measured"][0, -1], 100 * data["standard_error"][0, -1]
    for before, i in (("towers keep", 0), ("gap open,", 4), ("closed,", 8)):
        assert_says(said, before, kept[i], error[i])
    gain, error = 100 * real["gain"][:, 0], 100 * real["gain_error"][:, 0]
    assert_says(said, "CLIP gains", gain[0], error[0])
    assert_says(said, "for 10 and", gain[1], error[1])
    closing = stored("gap_closing")
    assert_says(said, "exactly not:", closing["paired_changes"][0].sum())
    assert_says(said, "nothing to move (", 100 * closing["moved_share"][1])
    assert_says(said, "ImageNet:", 100 * real["robustness"][3, 0], 100 * real["error"][3, 0])


def test_what_the_file_on_clip_does_not_name():
    """500 queries; the first setting of the top-r rule is g itself; what names its settings is left alone."""
    from experiments.real_embeddings import study

    real, config = load_dataset(FIGURES / "real_embeddings.nc"), study.Config()
    changed = 500 * np.concatenate([real["trade_off_top r"][:, 0], real["trade_off_soft"][:, 0]])
    np.testing.assert_allclose(changed, np.round(changed), atol=1e-9)
    assert config.components[0] == 0
    assert config.components[4] == dispute_figures.SPARED == 300
    once = study.named(real)
    assert once.num_queries == 500 and "quantity" not in real.coords
    assert study.named(once) is once
    assert config.penalties[0] == 0.0
    np.testing.assert_array_equal(real["trade_off_top r"][0], real["trade_off_soft"][0])


def swapped(first, second):
    """Give each of two arrays the other's values."""
    values = first.values.copy()
    first.values[...] = second.values
    second.values[...] = values


def reverse(data, name, axis):
    data[name].values[...] = np.flip(data[name].values.copy(), data[name].get_axis_num(axis))


def roll(array, places):
    """Shift the values along the last axis."""
    array.values[...] = np.roll(array.values.copy(), places, axis=-1)


def _swap_rows(results, stem, name, axis, i, j):
    values = results[stem][name].values
    moved = np.moveaxis(values, results[stem][name].get_axis_num(axis), 0)
    moved[[i, j]] = moved[[j, i]]


BROKEN = {
    "flat: Euclid and cosine exchanged": ("flat", lambda r: _swap_rows(r, "gap_freezing", "loss_at_offset", "rows", 0, 2)),
    "flat: Euclid and sphere exchanged": ("flat", lambda r: swapped(*(r["gap_freezing"][f"cones_{n}"] for n in ("euclid", "sphere")))),
    "flat: temperatures reversed": ("flat", lambda r: reverse(r["gap_freezing"], "cones_sphere", "temperature")),
    "optimum: wrong pairs exchanged with true ones": ("optimum", lambda r: reverse(r["simplex"], "free_gap", "wrong_share")),
    "optimum: gaps reversed": ("optimum", lambda r: reverse(r["simplex"], "parallel", "gap")),
    "optimum: time reversed": ("optimum", lambda r: reverse(r["gap_emergence"], "gap_norm", "step")),
    "cone: angles reversed": ("cone", lambda r: reverse(r["collapse_controls"], "gap_norm", "angle")),
    "cone: small and large τ exchanged": ("cone", lambda r: _swap_rows(r, "same_data_gap", "widest_gap", "setting", 0, 1)),
    "accuracy: g and g' exchanged": ("accuracy", lambda r: _swap_rows(r, "gap_closing", "changed", "components", 0, -1)),
    "accuracy: scalars and near misses exchanged": ("accuracy", lambda r: swapped(*(r["compensated_closing"][n] for n in ("changed", "missed")))),
    "accuracy: a rule that changes one decision": ("accuracy", lambda r: r["real_embeddings"].rule_changed.values.__setitem__((0, 0), 1)),
    "robustness: gallery and queries exchanged": ("robustness", lambda r: _swap_rows(r, "gap_closing", "paired_changes", "noise", 0, -1)),
    "robustness: α permuted": ("robustness", lambda r: roll(r["robustness_monotone"].exact, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_is_taken_back_where_the_results_say_otherwise(name):
    """Negative controls: sides exchanged or labels permuted in one stored array."""
    dispute, change = DISPUTES[BROKEN[name][0]], BROKEN[name][1]
    results = dispute.read(FIGURES)
    assert dispute.answer_from(results) == ANSWERS[dispute.name]
    change(results)
    assert dispute.answer_from(results).startswith("Not settled by these results (")


def test_every_row_of_evidence_can_fail():
    """Each row is refuted, or its control passes, in at least one of the broken results."""
    failed = set()
    for name, change in BROKEN.values():
        results = DISPUTES[name].read(FIGURES)
        change(results)
        failed |= {row.name for row in DISPUTES[name].evidence(results) if row.verdict() == "refuted"}
    assert failed == {row.name for d in DISPUTES.values() for row in d.evidence(d.read(FIGURES))}


@pytest.mark.parametrize(
    ("mean", "error", "said"),
    [(0.9408, 0.032, "0.94 ± 0.03"), (1.29274, 0.00021, "1.2927 ± 0.0002"), (15.2, 1.2, "15 ± 1"), (0.36014, 0.0, "0.36")],
)  # fmt: skip
def test_numbers_show_the_digits_that_count(mean, error, said):
    assert disputes.with_error(mean, error) == said


@pytest.mark.parametrize("name", DISPUTES)
def test_figures_are_full_and_keep_the_style(name):
    with plt.style.context(plotting.STYLE):
        figure = DISPUTES[name].draw(FIGURES)
        found = style_rules.complaints(figure, DISPUTES[name].caption, xr.Dataset())
    assert figure.get_figwidth() == plotting.ONE_COLUMN
    assert all(axis.has_data() for axis in figure.axes)
    plt.close(figure)
    assert not found, "\n".join(found)


def test_other_settings_of_the_experiments_will_do():
    """Fewer kinds of gallery, of other sizes, as the quick experiments have them."""
    dispute = DISPUTES["accuracy"]
    results = dispute.read(FIGURES)
    closing = results["gap_closing"].isel(kind=slice(0, 2))
    results["gap_closing"] = closing.assign_coords(kind=["towers, K = 10", "towers, K = 72"])
    assert "0 of 1,920 decisions" in dispute.answer_from(results)
    figure = dispute.show(results)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    plt.close(figure)
    assert labels == ["towers, K = 10", "towers, K = 72", "CLIP, K = 500", "free embeddings", "random"]
    results = DISPUTES["robustness"].read(FIGURES) | {"gap_closing": results["gap_closing"]}
    assert "0.6 % of ‖g‖² for towers, K = 72" in DISPUTES["robustness"].answer_from(results)


@pytest.fixture
def partly_stored(tmp_path):
    """A folder with the results of one dispute."""
    for stem in DISPUTES["cone"].stems:
        (tmp_path / f"{stem}.nc").write_bytes((FIGURES / f"{stem}.nc").read_bytes())
    return tmp_path


def test_figures_are_drawn_where_their_results_are(partly_stored):
    written = disputes.draw_all(partly_stored)
    assert written == [partly_stored / f"dispute_cone.{suffix}" for suffix in ("pdf", "png")]
    assert all(path.stat().st_size > 5000 for path in written)
    with pytest.raises(FileNotFoundError, match="run the experiment"):
        DISPUTES["flat"].answer(partly_stored)


@pytest.mark.slow
def test_the_command_draws_them_with_all_figures_but_not_with_one_claim(partly_stored, capsys):
    assert main(["figures", "C7", "--out", str(partly_stored)]) == 0
    assert "dispute" not in capsys.readouterr().out
    assert main(["figures", "--out", str(partly_stored)]) == 0
    assert str(partly_stored / "dispute_cone.png") in capsys.readouterr().out


@pytest.mark.slow
def test_stored_figures_are_those_of_the_stored_results(pinned_drawing, tmp_path):
    """To the byte."""
    for path in [*disputes.draw_all(tmp_path, FIGURES), *stories.draw_all(tmp_path, FIGURES)]:
        assert path.read_bytes() == (FIGURES / path.name).read_bytes(), f"figures/{path.name}: run gapsim figures"
