import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support, recall_score

from fewshot.metrics import (
    accuracy,
    class_metrics,
    harmonic_mean,
    macro,
    mean_interval,
    per_class_accuracy,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 3])
PREDICTED = torch.tensor([0, 0, 0, 1, 0, 3])


def test_accuracy_is_the_share_of_right_predictions() -> None:
    assert accuracy(PREDICTED, LABELS) == pytest.approx(4 / 6)


def test_per_class_accuracy_weighs_every_class_that_occurs_alike() -> None:
    assert per_class_accuracy(PREDICTED, LABELS) == pytest.approx((3 / 4 + 0 + 1) / 3)


def test_recall_precision_and_f1_of_each_class_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    predicted[:80] = labels[:80]
    predicted[predicted == 4] = 3  # class 4 is never predicted, and class 5 has no image
    wanted = precision_recall_fscore_support(
        labels, predicted, labels=range(6), average=None, zero_division=np.nan
    )
    found = class_metrics(torch.from_numpy(predicted), torch.from_numpy(labels), 6)
    for attribute, values in zip(("precision", "recall", "f1", "images"), wanted, strict=True):
        mine = [getattr(one, attribute) for one in found]
        if attribute == "f1":  # of no image scikit-learn has 0 where there are predictions
            assert mine.pop() is None
            values = values[:-1]
        assert mine == [None if np.isnan(value) else pytest.approx(value) for value in values]
    mean = recall_score(labels, predicted, labels=range(5), average="macro")
    assert per_class_accuracy(predicted, labels) == pytest.approx(mean)


def test_a_mean_over_classes_leaves_out_the_unknown() -> None:
    assert macro([0.5, None, 1.0]) == pytest.approx(0.75)


def test_a_prediction_beyond_the_last_label_is_simply_wrong() -> None:
    assert per_class_accuracy(torch.tensor([0, 9]), torch.tensor([0, 1])) == pytest.approx(0.5)


def test_the_interval_of_three_seeds_is_students() -> None:
    mean, half = mean_interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)  # t table, 2 degrees


def test_another_confidence_takes_another_quantile() -> None:
    _, half = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.90)
    assert half == pytest.approx(2.1318 * math.sqrt(2.5 / 5), rel=1e-4)  # t table, 4 degrees


def test_one_seed_has_a_mean_and_no_interval() -> None:
    mean, half = mean_interval([0.5])
    assert mean == pytest.approx(0.5)
    assert math.isnan(half)


def test_the_harmonic_mean_leans_to_the_smaller() -> None:
    assert harmonic_mean(0.8, 0.4) == pytest.approx(1 / ((1 / 0.8 + 1 / 0.4) / 2))
    assert harmonic_mean(0.8, 0.0) == 0
    assert harmonic_mean(0.0, 0.0) == 0
