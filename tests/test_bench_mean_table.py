from dataclasses import replace
from typing import Any

import pytest

from fewshot.bench.mean_table import mean_table
from fewshot.results.log import Result
from fewshot.tables import text

RESULT = Result(
    method="gda", dataset="dtd", model="tiny", setting="few-shot", fitted_on="dtd", shots=4,
    seed=1, tune="cv", imbalance=None, accuracy=0.5, per_class_accuracy=0.5, accuracies={},
    hyperparameters={"alpha": 2.0}, fixed={}, measures={}, text_recipe="unit-mean",
    prompt_set=None, n_classes=3, n_support=4, blend="auto", n_views=1, n_validation=0, n_test=10,
    fit_seconds=0.1, predict_seconds=0.1, predictions=None, fingerprint="f", version="0",
)  # fmt: skip


def result(dataset: str, seed: int, accuracy: float, **changes: Any) -> Result:
    return replace(
        RESULT, dataset=dataset, fitted_on=dataset, seed=seed, accuracy=accuracy, **changes
    )


def lines(*results: Result, missing: tuple[Result, ...] = ()) -> list[str]:
    return text(mean_table([*results, *(r.run for r in missing)])).splitlines()


def test_datasets_are_averaged_and_the_interval_is_over_the_seeds_averages() -> None:
    a, b, c = result("a", 1, 0.10), result("a", 2, 0.20), result("a", 3, 0.60)
    d, e, f = result("b", 1, 0.90), result("b", 2, 0.90), result("b", 3, 0.60)
    # By seed 0.50, 0.55 and 0.60: deviation 0.05, and t of two degrees of freedom 4.303.
    assert lines(a, b, c, d, e, f) == [
        "method  tuned by  4 shots",
        "gda     cv        55.0 ± 12.4",
        "tiny, few-shot: accuracy on the test split in %, mean over 2 datasets (a, b).",
        "±: 95 % interval over seeds (Student's t), of the mean over datasets.",
    ]


def test_mean_per_class_accuracy_is_averaged_in_columns_of_its_own() -> None:
    two = [result("a", 1, 0.5, per_class_accuracy=0.2), result("b", 1, 0.7, per_class_accuracy=0.4)]
    made = mean_table(two, per_class=True)
    assert made.header[-2:] == ("4 shots", "4 shots, per class")
    assert made.rows[0][-2:] == ["60.0", "30.0"]
    assert mean_table([result("zsl_cub", 1, 0.5)]).header[-1] == "4 shots, per class"
    assert mean_table(two).header[-1] == "4 shots"
    halves = {"setting": "base-to-new", "accuracies": {"base": 0.6, "new": 0.4}}
    rows = mean_table([result("a", 1, 0.48, per_class_accuracy=0.3, **halves)], per_class=True).rows
    assert [row[-2:] for row in rows] == [["60.0", ""], ["40.0", ""], ["48.0", "30.0"]]


def test_one_seed_has_no_interval_and_one_dataset_is_named() -> None:
    assert lines(result("a", 1, 0.5)) == [
        "method  tuned by  4 shots",
        "gda     cv        50.0",
        "tiny, few-shot: accuracy on the test split of a in %, mean over seeds.",
    ]


def test_a_mean_that_lacks_a_dataset_or_a_run_says_so() -> None:
    done = [result(name, seed, 0.5) for name in "abc" for seed in (1, 2)]
    assert lines(*done[:4], missing=tuple(done[4:]))[1].endswith("50.0 ± 0.0 (2 of 3 datasets)")
    assert lines(*done[:5], missing=(done[5],))[1].endswith("50.0 (5 of 6 runs)")
    assert lines(*done[2:], missing=tuple(done[:2]))[1].endswith("50.0 ± 0.0 (2 of 3 datasets)")
    assert lines(missing=tuple(done))[1] == "gda     cv        failed"


def test_a_dataset_that_another_line_has_is_missed() -> None:
    other = [result(name, 1, 0.6, method="ridge") for name in "ab"]
    assert lines(result("a", 1, 0.5), *other)[1:3] == [
        "gda     cv        50.0 (1 of 2 datasets)",
        "ridge   cv        60.0",
    ]


def test_the_mean_of_unequal_seeds_weighs_datasets_alike() -> None:
    done = [result("a", 1, 0.2), result("b", 1, 0.6), result("b", 2, 0.8)]
    assert lines(*done, missing=(result("a", 2, 0),))[1].endswith("45.0 (3 of 4 runs)")


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"setting": "transductive few-shot"}, "setting"),
    ({"model": "RN50/openai"}, "model"),
    ({"prompt_set": "cupl"}, "method"),
    ({"n_views": 10}, "method"),
    ({"imbalance": "natural", "setting": "imbalanced"}, "setting"),
    ({"fixed": {"alpha": 2.0}}, "method"),
]


@pytest.mark.parametrize(("changes", "first"), SETTINGS)
def test_different_settings_are_never_averaged(changes: dict[str, Any], first: str) -> None:
    table = mean_table([RESULT, replace(RESULT, **changes, accuracy=0.9)])
    assert [row[-1] for row in table.rows] == ["50.0", "90.0"]
    assert first in table.header
    names = [row[table.header.index(first)] for row in table.rows]
    assert len(set(map(str, names))) == 2 or changes.keys() & {"prompt_set", "n_views"}


def test_what_sets_a_line_apart_is_in_it_and_what_all_share_is_below() -> None:
    zero = result("dtd", 0, 0.4, method="zero-shot", setting="zero-shot", shots=0, tune="none")
    fixed = replace(RESULT, fixed={"alpha": 2.0}, prompt_set="cupl", tune="none", shots=1)
    assert lines(zero, fixed) == [
        "method         setting    tuned by  no shots  1 shot",
        "zero-shot      zero-shot  none      40.0",
        "gda alpha=2.0  few-shot   none                50.0",
        "tiny, cupl: accuracy on the test split of dtd in %, mean over seeds.",
    ]


def test_one_shot_defaults_begin_the_line_of_cv() -> None:
    shown = lines(replace(RESULT, shots=1, tune="none"), RESULT)
    assert shown[:2] == ["method  tuned by  1 shot  4 shots", "gda     cv        50.0    50.0"]
    assert shown[-1] == "Where a class has one image there is no tuning: the defaults."


def test_from_base_to_new_the_mean_is_that_of_the_means() -> None:
    def halves(dataset: str, base: float, new: float) -> Result:
        harmonic = 2 * base * new / (base + new)
        parts = {"base": base, "new": new}
        return result(dataset, 1, harmonic, setting="base-to-new", accuracies=parts)

    shown = lines(halves("a", 0.9, 0.3), halves("b", 0.5, 0.5))
    # 2 x 0.7 x 0.4 / 1.1, not the mean of the two harmonic means, 0.475.
    assert [line.split() for line in shown[1:4]] == [
        ["gda", "cv", "base", "70.0"],
        ["gda", "cv", "new", "40.0"],
        ["gda", "cv", "H", "50.9"],
    ]
    assert shown[-1].startswith("H: harmonic mean of the mean base and the mean new accuracy")


def test_the_source_of_a_transfer_is_named() -> None:
    transferred = replace(RESULT, setting="cross-dataset", fitted_on="imagenet")
    assert lines(transferred)[-1].startswith("tiny, cross-dataset, imagenet: accuracy")


def test_datasets_without_text_are_named() -> None:
    shown = lines(result("a", 1, 0.5), result("b", 1, 0.5, text_recipe=None))
    assert shown[-1] == "There is no text of b: learned from images alone there."
