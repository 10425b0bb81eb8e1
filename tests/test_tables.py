from dataclasses import replace

from fewshot.results import Result
from fewshot.tables import accuracy_table, curves

RESULT = Result(
    method="gda",
    dataset="dtd",
    model="tiny",
    setting="few-shot",
    shots=4,
    seed=1,
    tune="cv",
    accuracy=0.5,
    per_class_accuracy=0.5,
    hyperparameters={},
    text_recipe="unit-mean",
    prompt_set=None,
    n_support=4,
    n_views=1,
    n_validation=0,
    n_test=10,
    fit_seconds=0.1,
    predict_seconds=0.1,
    fingerprint="f",
    version="0",
)


def test_seeds_are_averaged_and_nothing_else_is() -> None:
    results = [replace(RESULT, seed=s, accuracy=a) for s, a in enumerate((0.5, 0.6, 0.7), start=1)]
    results += [replace(RESULT, tune="val", accuracy=0.9), replace(RESULT, model="other")]
    rows = curves(results)
    assert [(row[1], row[3]) for row in rows] == [("tiny", "cv"), ("tiny", "val"), ("other", "cv")]
    [(shots, mean, half)] = rows["dtd", "tiny", "gda", "cv"]
    assert (shots, round(mean, 6)) == (4, 0.6)
    assert round(half, 4) == 0.2484  # 4.303 x 0.1 / sqrt(3)


def test_one_shot_defaults_begin_the_row_of_cv() -> None:
    one = replace(RESULT, shots=1, tune="none", accuracy=0.25)
    assert [len(points) for points in curves([one, RESULT]).values()] == [2]
    assert [row[3] for row in curves([one])] == ["none"]
    untuned = replace(RESULT, tune="none")
    assert [row[3] for row in curves([untuned, RESULT])] == ["none", "cv"]


def test_the_table_has_a_column_per_number_of_shots_in_percent() -> None:
    zero = replace(RESULT, method="zero-shot", shots=0, seed=0, tune="none", accuracy=0.4)
    results = [zero, replace(RESULT, shots=1, seed=2), RESULT, replace(RESULT, seed=2)]
    assert accuracy_table(results).splitlines() == [
        "dataset  model  method     tuned by  no shots  1 shot  4 shots",
        "dtd      tiny   zero-shot  none      40.0",
        "dtd      tiny   gda        cv                  50.0    50.0 ± 0.0",
    ]
