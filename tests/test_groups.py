import math

import pytest

from cache.errors import UserError
from fewshot.results.groups import by_dataset, cells, labels, over_datasets, tasks
from tests.toy_results import RESULT, result, zero_shot


def test_an_average_is_of_the_datasets_means_each_with_the_same_weight() -> None:
    a = [result(seed=s, accuracy=x) for s, x in enumerate((0.2, 0.4, 0.9), start=1)]
    b = [result(dataset="ucf101", seed=s, accuracy=x) for s, x in enumerate((0.6, 0.7, 0.5), 1)]
    shots, mean, half = over_datasets([a, b], ["ucf101", "dtd"])
    seeds = [(0.2 + 0.6) / 2, (0.4 + 0.7) / 2, (0.9 + 0.5) / 2]
    deviation = math.sqrt(sum((x - mean) ** 2 for x in seeds) / 2)
    assert shots == 4
    assert mean == pytest.approx((0.5 + 0.6) / 2)
    assert half == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)


def test_an_average_over_other_seeds_on_each_dataset_has_no_interval() -> None:
    a = [result(seed=1, accuracy=0.2), result(seed=2, accuracy=0.4)]
    _, mean, half = over_datasets([a, [result(dataset="ucf101", accuracy=0.9)]], ["dtd", "ucf101"])
    assert mean == pytest.approx((0.3 + 0.9) / 2)
    assert math.isnan(half)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "imbalanced"}, "over few-shot and imbalanced means nothing"),
        ({"setting": "transductive few-shot"}, "few-shot and transductive few-shot means nothing"),
        ({"tune": "full-val"}, "also differ in method, model, shots, tuning"),
        ({"shots": 8}, "also differ in method"),
        ({"method": "ridge"}, "also differ in method"),
        ({"model": "other"}, "also differ in method, model"),
        ({"prompt_set": "cupl"}, "or its settings"),
        ({"fixed": {"alpha": 2.0}}, "or its settings"),
        ({"n_views": 10}, "or its settings"),
        ({"dataset": "food101"}, "over dtd, food101 cannot stand for one over dtd, ucf101"),
        ({"dataset": "dtd"}, "cannot stand for one over dtd, ucf101"),
    ],
)
def test_what_must_not_be_averaged_is_refused(changes: dict[str, object], message: str) -> None:
    other = result(**({"dataset": "ucf101"} | changes))
    with pytest.raises(UserError, match=message):
        over_datasets([[RESULT], [other]], ["dtd", "ucf101"])


def test_of_two_runs_of_the_same_thing_the_last_counts() -> None:
    again = result(accuracy=0.75, hyperparameters={"alpha": 4.0}, fit_seconds=9.0)
    [by_shots] = cells([RESULT, result(seed=2), again]).values()
    assert [(r.seed, r.accuracy) for r in by_shots[4]] == [(1, 0.75), (2, 0.5)]


def test_tasks_are_settings_models_imbalances_and_sources() -> None:
    rows = cells(
        [
            RESULT,
            result(dataset="ucf101"),
            result(model="other"),
            result(setting="base-to-new"),
            result(setting="imbalanced", imbalance="step:10"),
            result(setting="imbalanced", imbalance="step:100"),
            result(setting="cross-dataset", fitted_on="imagenet"),
            result(setting="cross-dataset", fitted_on="caltech101"),
            zero_shot(),
        ]
    )
    sizes = {str(task): len(found) for task, found in tasks(rows).items()}
    assert sizes == {
        "few-shot, tiny": 2,
        "few-shot, other": 1,
        "base-to-new, tiny": 1,
        "imbalanced, step:10, tiny": 1,
        "imbalanced, step:100, tiny": 1,
        "cross-dataset from imagenet, tiny": 1,
        "cross-dataset from caltech101, tiny": 1,
        "zero-shot, tiny": 1,
    }


def test_what_was_set_by_hand_is_another_row_and_says_so() -> None:
    rows = cells(
        [RESULT, result(fixed={"alpha": 2.0}), result(prompt_set="cupl"), result(n_views=10)]
    )
    assert list(labels(rows).values()) == [
        "gda (1 view)",
        "gda (alpha=2.0, 1 view)",
        "gda (prompts cupl, 1 view)",
        "gda (10 views)",
    ]
    assert set(labels(cells([RESULT, result(dataset="ucf101")])).values()) == {"gda"}


def test_of_two_stores_of_a_dataset_an_average_takes_the_later() -> None:
    rows = cells([RESULT, result(fingerprint="g", accuracy=0.9), result(dataset="ucf101")])
    [found] = by_dataset(rows).values()
    assert {name: group[0].accuracy for name, group in found[4].items()} == {
        "dtd": 0.9,
        "ucf101": 0.5,
    }
