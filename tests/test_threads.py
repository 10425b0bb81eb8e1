from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fewshot import METHODS, SupportSet, Text
from fewshot import threads as module
from fewshot.model_selection.tuning import fit_tuned
from fewshot.threads import closed_form, few_threads
from fewshot.training import minimize
from tests.toys import task

SUPPORT, TEXT, QUERY = task(3)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_task_has_one_thread_and_the_others_come_back() -> None:
    with few_threads(SUPPORT):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_exception() -> None:
    with pytest.raises(KeyError), few_threads(SUPPORT):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_large_task_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SUPPORT.features.numel() * SUPPORT.n_classes
    for border, threads in ((size, 1), (size - 1, 2)):
        monkeypatch.setattr(module, "SMALL", border)
        with few_threads(SUPPORT):
            assert torch.get_num_threads() == threads


def test_a_decorated_training_has_few_threads_and_no_autograd() -> None:
    @closed_form
    def train(support: SupportSet) -> tuple[int, bool]:
        return torch.get_num_threads(), torch.is_grad_enabled()

    assert train(SUPPORT) == train(support=SUPPORT) == (1, False)
    assert torch.is_grad_enabled()


def test_a_loss_by_autograd_is_minimized_on_few_threads() -> None:
    weight, found = torch.zeros(3, 12, requires_grad=True), []

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        found.append(torch.get_num_threads())
        return (features @ weight.T).square().sum()

    optimizer = torch.optim.SGD([weight])
    minimize(loss, optimizer, lambda e, done: 0.1, SUPPORT, epochs=1, batch_size=99, seed=1)
    assert found == [1]


@pytest.mark.parametrize("name", ["gda", "taskres", "linear-probe"])
def test_tuning_and_fitting_have_few_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    method = METHODS[name]()
    fit = type(method).fit

    def watched(self: object, support: SupportSet, text: Text | None) -> object:
        found.append(torch.get_num_threads())
        return fit(method, support, text)

    monkeypatch.setattr(type(method), "fit", watched)
    fit_tuned(method, SUPPORT, TEXT, protocol="none", logit_scale=100.0)
    assert found == [1]
    assert torch.get_num_threads() == 2
