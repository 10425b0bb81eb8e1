import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot.model_selection.calibration import expected_calibration_error, log_loss, temperature


def drawn(n: int = 20_000, sharpness: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(sharpness * logits): the true T is 1 / sharpness."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(torch.softmax(sharpness * logits, 1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_by_is_found(sharpness: float) -> None:
    logits, labels = drawn(sharpness=sharpness)
    assert temperature(logits, labels) == pytest.approx(1 / sharpness, rel=0.15)


def test_no_temperature_of_a_fine_grid_has_less_log_loss() -> None:
    logits, labels = drawn(n=200)
    found = temperature(logits, labels)

    def loss(t: float) -> float:  # with one image more, of every class in equal parts
        p = torch.log_softmax(logits.double() / t, dim=1)
        seen = -sum(float(p[i, y]) for i, y in enumerate(labels.tolist())) / len(labels)
        return seen - float(p.mean()) / len(labels)

    assert loss(found) <= min(loss(t) for t in np.geomspace(0.1, 10, 400)) + 1e-9


def test_right_predictions_alone_are_no_certainty() -> None:
    labels = torch.arange(10) % 2
    logits = torch.nn.functional.one_hot(labels).float()
    surest = [float(torch.softmax(logits / temperature(logits, labels), 1).max())]
    many = labels.repeat(50)
    right = torch.nn.functional.one_hot(many).float()
    surest.append(float(torch.softmax(right / temperature(right, many), 1).max()))
    assert 0.9 < surest[0] < 0.99 < surest[1] < 0.9999


def test_wrong_predictions_alone_leave_hardly_a_preference() -> None:
    labels = torch.arange(10) % 2
    logits = 20 * torch.nn.functional.one_hot(1 - labels).float()
    assert float(torch.softmax(logits / temperature(logits, labels), 1).max()) < 0.55


def test_without_images_the_temperature_is_one() -> None:
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert temperature(*nothing) == 1.0
    assert expected_calibration_error(*nothing) == 0.0


def test_the_calibration_error_is_the_weighted_gap_of_its_bins() -> None:
    # Two bins: ten images at 0.65 of which eight are right, thirty at 0.95 of which all are.
    sure = torch.tensor([[0.65, 0.35]] * 10 + [[0.95, 0.05]] * 30)
    labels = torch.tensor([0] * 8 + [1] * 2 + [0] * 30)
    expected = (10 * abs(0.8 - 0.65) + 30 * abs(1 - 0.95)) / 40
    assert expected_calibration_error(sure, labels) == pytest.approx(expected)


def test_a_confidence_of_one_has_a_bin() -> None:
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert expected_calibration_error(certain, torch.tensor([0, 1])) == pytest.approx(0.5)


def test_log_loss_is_the_mean_surprise() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert log_loss(logits, torch.tensor([0, 1])) == pytest.approx(expected)
    assert log_loss(2 * logits, torch.tensor([0, 1]), t=2.0) == pytest.approx(expected)
