import math

import pytest
import torch

from fewshot.metrics import accuracy, harmonic_mean, mean_interval, per_class_accuracy

LABELS = torch.tensor([0, 0, 0, 0, 1, 3])
PREDICTED = torch.tensor([0, 0, 0, 1, 0, 3])


def test_accuracy_is_the_share_of_right_predictions() -> None:
    assert accuracy(PREDICTED, LABELS) == pytest.approx(4 / 6)


def test_per_class_accuracy_weighs_every_class_that_occurs_alike() -> None:
    assert per_class_accuracy(PREDICTED, LABELS) == pytest.approx((3 / 4 + 0 + 1) / 3)


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
