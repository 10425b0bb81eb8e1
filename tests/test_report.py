import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from fewshot.metrics import harmonic_mean
from fewshot.report.build import make
from fewshot.report.classes import confusions
from fewshot.report.content import Curves, Report, Scatter, Section
from fewshot.report.published import ELEVEN, load
from fewshot.results.log import Result
from fewshot.results.prediction_files import Predictions, write_predictions
from fewshot.tables import Number, Table
from tests.toy_results import FEW, RESULT, result, zero_shot


def section(report: Report, title: str) -> Section:
    [found] = [part for part in report.sections if part.title == title]
    return found


def table(report: Report, title: str, name: str) -> Table:
    block = section(report, title).blocks[name]
    assert isinstance(block, Table)
    return block


def cell(made: Table, column: str, **where: object) -> object:
    """The cell in the only row with these values."""
    [row] = [
        row
        for row in made.rows
        if all(row[made.header.index(k.replace("_", " "))] == v for k, v in where.items())
    ]
    return row[made.header.index(column)]


def test_each_task_has_its_section_and_the_published_its_own() -> None:
    results = [*FEW, zero_shot(), result(setting="imbalanced", imbalance="step:10",
               accuracies={"few": 0.5})]  # fmt: skip
    titles = [part.title for part in make(results).sections]
    assert titles == [
        "few-shot, tiny",
        "imbalanced, step:10, tiny",
        "zero-shot, tiny",
        "Ours beside published figures",
    ]
    assert len(make(results, with_published=False).sections) == 3


def test_the_average_is_over_all_datasets_of_the_task() -> None:
    made = table(make(FEW), "few-shot, tiny", "average")
    number = cell(made, "4 shots", method="gda")
    assert isinstance(number, Number)
    assert number.value == pytest.approx(34.2)
    assert number.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_mean_per_class_accuracy_stands_beside_where_it_is_asked_for() -> None:
    few = [replace(r, per_class_accuracy=r.accuracy / 2) for r in FEW]
    report = make(few, per_class=True)
    for name in ("accuracy", "average"):
        made = table(report, "few-shot, tiny", name)
        both = [made.rows[0][made.header.index(f"4 shots{end}")] for end in ("", ", per class")]
        assert all(isinstance(number, Number) for number in both)
        whole, half = (number.value for number in both if isinstance(number, Number))
        assert half == pytest.approx(whole / 2)
    assert "4 shots, per class" not in table(make(few), "few-shot, tiny", "accuracy").header


def test_an_average_that_lacks_a_dataset_is_not_made_and_says_why() -> None:
    lacking = [r for r in FEW if (r.dataset, r.shots) != ("ucf101", 4)]
    made = table(make(lacking), "few-shot, tiny", "average")
    assert cell(made, "4 shots", method="gda") == "1 of 2"
    assert isinstance(cell(made, "2 shots", method="gda"), Number)
    assert "Incomplete, so not averaged: gda (cv) has no ucf101 (4 shots)." in made.notes
    curves = section(make(lacking), "few-shot, tiny").blocks["curves-average of 2 datasets"]
    assert isinstance(curves, Curves)
    assert [shots for shots, _, _ in curves.series["gda"]] == [2]


def test_zero_shot_is_a_level_in_curves_and_in_no_average_of_few_shots() -> None:
    report = make([*FEW, zero_shot(accuracy=0.25), zero_shot(dataset="ucf101", accuracy=0.35)])
    blocks = section(report, "few-shot, tiny").blocks
    levels = {name: b.levels for name, b in blocks.items() if isinstance(b, Curves)}
    assert levels["curves-dtd"] == {"zero-shot": 0.25}
    assert levels["curves-average of 2 datasets"] == {"zero-shot": pytest.approx(0.3)}
    made = table(report, "few-shot, tiny", "average")
    assert {row[0] for row in made.rows} == {"gda"}


def base_new(dataset: str, base: float, new: float, seed: int = 1) -> Result:
    return result(
        dataset=dataset, seed=seed, setting="base-to-new", model="ViT-B-16/openai", shots=16,
        tune="full-val", n_views=10, accuracy=harmonic_mean(base, new),
        accuracies={"base": base, "new": new},
    )  # fmt: skip


def test_both_conventions_of_the_average_harmonic_mean_are_shown() -> None:
    figures = load()
    key = ("gda", "ViT-B/16", "base-to-new", 16)
    results = [
        base_new(name, figures[*key, name, "base"].accuracy, figures[*key, name, "new"].accuracy, s)
        for name in ELEVEN
        for s in (1, 2, 3)
    ]
    report = make(results)
    made = table(report, "base-to-new, ViT-B-16/openai", "average")
    names = ("base", "new", "H of the averages", "average of H")
    assert [str(cell(made, name, method="gda")) for name in names] == [
        "84.0", "74.5", "79.0", "78.7",
    ]  # fmt: skip
    beside = table(report, "Ours beside published figures", "published")
    for name in ("average", "mean of harmonic means"):
        ours = cell(beside, "difference", dataset=name, classes="H")
        assert isinstance(ours, Number)
        assert abs(ours.value) < 0.01
    assert cell(beside, "where protocols differ", dataset="dtd", classes="base") == ""


def test_h_of_a_dataset_is_of_its_mean_accuracies() -> None:
    report = make([base_new("dtd", 0.8, 0.2), base_new("dtd", 0.2, 0.8, seed=2)])
    made = table(report, "base-to-new, ViT-B-16/openai", "accuracy")
    assert str(cell(made, "H", dataset="dtd")).startswith("50.0 ±")


def test_classes_of_many_medium_and_few_images_have_columns() -> None:
    parts = {"many": 0.9, "medium": 0.6, "few": 0.3}
    few = {"setting": "imbalanced", "imbalance": "long-tail:100"}
    results = [
        result(**few, accuracies=parts),
        result(**few, dataset="ucf101", accuracies={"many": 0.7, "few": 0.1}),
    ]
    report = make(results)
    made = table(report, "imbalanced, long-tail:100, tiny", "accuracy")
    assert [str(cell(made, name, dataset="dtd")) for name in parts] == ["90.0", "60.0", "30.0"]
    assert cell(made, "medium", dataset="ucf101") == ""
    average = table(report, "imbalanced, long-tail:100, tiny", "average")
    columns = ("all", "many", "medium", "few")
    assert [str(cell(average, name, method="gda")) for name in columns] == [
        "50.0", "80.0", "not on all", "20.0",
    ]  # fmt: skip


def test_chosen_hyper_parameters_are_told_seed_by_seed() -> None:
    values = {1: 2.0, 2: 0.5, 3: 16.0}
    results = [
        result(seed=s, hyperparameters={"alpha": a, "logit_scale": 100.0})
        for s, a in values.items()
    ]
    made = table(make(results), "few-shot, tiny", "hyper-parameters")
    assert [row[-2:] for row in made.rows] == [("alpha", "2, 0.5, 16")]
    untuned = make([result(tune="none", fixed={"alpha": 2.0})])
    assert "hyper-parameters" not in section(untuned, "few-shot, tiny").blocks


def test_time_and_parameters_are_drawn_against_accuracy() -> None:
    trained = {"method": "taskres", "measures": {"trained_parameters": 2048.0}}
    report = make([*FEW, result(**trained, fit_seconds=4.0), result(**trained, seed=2)])
    made = table(report, "few-shot, tiny", "cost")
    assert cell(made, "trained parameters", method="taskres") == 2048
    assert str(cell(made, "fit, s", method="taskres")) == "2.050"
    scatter = section(report, "few-shot, tiny").blocks["parameters-dtd"]
    assert isinstance(scatter, Scatter)
    assert {(name, x) for name, x, _, _ in scatter.points} == {("gda", 0.0), ("taskres", 2048.0)}


def test_residuals_stand_beside_relative_transfer_difficulty() -> None:
    size = {"residual_size": 0.125}
    results = [
        result(method="taskres", measures=size),
        result(method="taskres", dataset="ucf101", measures={"residual_size": 0.5}),
        zero_shot(accuracy=0.5),
        zero_shot(dataset="ucf101", accuracy=0.8),
    ]
    report = make(results)
    title = "Residual size and transfer difficulty"
    made = table(report, title, "residuals")
    difficulty = cell(made, "relative difficulty", dataset="dtd")
    assert isinstance(difficulty, Number)
    assert difficulty.value == pytest.approx((1 / 4) / 0.5)
    [scatter] = [b for b in section(report, title).blocks.values() if isinstance(b, Scatter)]
    assert [(x, y, name) for _, x, y, name in scatter.points] == [
        (0.5, 0.125, "dtd"),
        (pytest.approx(0.3125), 0.5, "ucf101"),
    ]
    lonely = make(results[:2])
    assert "No zero-shot result here for" in section(lonely, title).notes[-1]


@pytest.fixture
def saved(tmp_path: Path) -> list[Result]:
    """Two seeds with predictions of 60 images of 4 classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3  # none of the last class
    results = []
    for seed in (1, 2):
        predicted = np.where(rng.random(60) < 0.5, labels, rng.integers(0, 4, 60))
        path = tmp_path / f"{seed}.npz"
        names = ("cat", "dog", "owl", "yak")
        write_predictions(path, Predictions(predicted, labels, names, "same"))
        results.append(result(seed=seed).saved_as(str(path)))
    return results


def test_classes_and_confusions_are_counted_over_seeds(saved: list[Result]) -> None:
    report = make(saved)
    pairs: Counter[tuple[str, str]] = Counter()
    right: Counter[str] = Counter()
    names = ("cat", "dog", "owl", "yak")
    for one in saved:
        assert one.predictions is not None
        with np.load(one.predictions) as arrays:
            for p, t in zip(arrays["predicted"], arrays["labels"], strict=True):
                if p == t:
                    right[names[t]] += 1
                else:
                    pairs[names[t], names[p]] += 1
    taken = Counter({name: right[name] for name in names})
    for (_, other), n in pairs.items():
        taken[other] += n
    precision = table(report, "few-shot, tiny", "precision-dtd")
    for row, f1 in zip(precision.rows, table(report, "few-shot, tiny", "f1-dtd").rows, strict=True):
        of = str(row[0])
        assert isinstance(row[2], Number)
        assert row[2].value == pytest.approx(100 * right[of] / taken[of])
        assert isinstance(f1[2], Number)
        assert f1[2].value == pytest.approx(200 * right[of] / (taken[of] + 40))
    classes = table(report, "few-shot, tiny", "classes-dtd")
    assert [row[0] for row in classes.rows] == ["cat", "dog", "owl"]
    for row in classes.rows:
        number = row[2]
        assert isinstance(number, Number)
        assert number.value == pytest.approx(100 * right[str(row[0])] / 40)
        assert row[1] == 20
    confused = table(report, "few-shot, tiny", "confusions-dtd")
    shown = {(row[1], row[2]): float(str(row[3])) for row in confused.rows}
    assert list(shown.values()) == [count / 2 for _, count in pairs.most_common(8)]
    for (true, predicted), images in shown.items():
        assert pairs[str(true), str(predicted)] / 2 == images


def test_figures_of_each_class_of_several_labels_are_means_over_seeds() -> None:
    both = {
        "setting": "multi-label",
        "accuracies": {"mAP": 0.5},
        "classnames": ["cat", "dog", "owl"],
    }
    images = [5.0, 4.0, 0.0]
    results = [
        result(
            seed=seed,
            by_class={
                "test images": images,
                "average precision": [low, 0.5, None],
                "F1": [0.2, low, None],
            },
            **both,
        )
        for seed, low in ((1, 0.3), (2, 0.5))
    ]
    ranked = {"test images": images, "average precision": [0.9, 0.8, None]}
    results.append(
        result(method="zero-shot", shots=0, seed=0, tune="none", by_class=ranked, **both)
    )
    [part] = [one for one in make(results).sections if one.title.startswith("multi-label")]
    made = part.blocks["average-precision-dtd"]
    assert isinstance(made, Table)
    assert made.header == ("class", "test images", "gda, 4 shots", "zero-shot")
    assert made.rows == [
        ("cat", 5, Number(40.0), Number(90.0)), ("dog", 4, Number(50.0), Number(80.0)),
    ]  # fmt: skip
    f1 = part.blocks["f1-dtd"]
    assert isinstance(f1, Table)
    assert f1.rows == [("cat", 5, Number(20.0)), ("dog", 4, Number(40.0))]


def test_missing_predictions_are_told_and_those_of_other_images_not_mixed(
    saved: list[Result],
) -> None:
    gone = result(seed=3).saved_as("nowhere.npz")
    assert "1 file of predictions left out" in make([*saved, gone]).sections[0].notes[0]
    one, other = (
        Predictions(np.zeros(2, np.int64), np.zeros(2, np.int64), ("a", "b"), images)
        for images in "xy"
    )
    with pytest.raises(UserError, match="different test images"):
        confusions([one, other])


def openai(**changes: object) -> Result:
    values = {"dataset": "dtd", "model": "RN50/openai", "shots": 16, "accuracy": 0.67}
    return result(**(values | changes))


def test_ours_stand_beside_published_figures_with_the_difference() -> None:
    results = [openai(seed=s) for s in (1, 2, 3)] + [openai(method="tip-adapter-f", n_views=10)]
    made = table(make(results), "Ours beside published figures", "published")
    assert str(cell(made, "published", method="gda, cv")) == "66.51"
    assert str(cell(made, "difference", method="gda, cv")) == "+0.5"
    assert cell(made, "where protocols differ", method="gda, cv") == (
        "tuned by full-val, ours by cv; 10 views, ours 1"
    )
    assert "tuned by the test split, ours by cv" in str(
        cell(made, "where protocols differ", method="tip-adapter-f, cv")
    )
    assert "by the method's authors; confidence: high" in made.notes[0]
    assert "the better of two test accuracies" in made.notes[1]


def test_no_published_average_stands_beside_ours_of_fewer_datasets() -> None:
    results = [openai(dataset=name) for name in ELEVEN]
    made = table(make(results), "Ours beside published figures", "published")
    assert str(cell(made, "published", dataset="average")) == "76.05"
    fewer = table(make(results[1:]), "Ours beside published figures", "published")
    assert "average" not in {row[0] for row in fewer.rows}


def test_what_nobody_published_is_named_and_not_compared() -> None:
    part = make([openai(), openai(shots=5), openai(method="ridge"), openai(imbalance="step:10",
                setting="imbalanced")]).sections[-1]  # fmt: skip
    assert "ridge on dtd" in part.notes[-1]
    assert "gda on dtd, RN50/openai, few-shot" not in part.notes[-1]
    alone = make([RESULT]).sections[-1]
    assert "No published figure here" in alone.notes[-1]
    assert not alone.blocks
