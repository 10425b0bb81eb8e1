import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from fewshot import SupportSet
from fewshot.training import Schedule, cosine_by_epoch, cosine_by_step, minimize
from tests.toys import vectors

N, DIM, N_CLASSES = 10, 6, 3


def support(n_views: int = 0) -> SupportSet:
    labels = torch.arange(N) % N_CLASSES
    views = vectors(1, n_views, N, DIM) if n_views else None
    return SupportSet(vectors(0, N, DIM), labels, N_CLASSES, views)


def constant(epoch: int, done: float) -> float:
    return 0.1


class Watched:
    """A loss that remembers the batches it was given, and at which rate."""

    def __init__(self) -> None:
        self.weight = torch.zeros(N_CLASSES, DIM, requires_grad=True)
        self.optimizer = SGD([self.weight], lr=99.0)
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.rates: list[float] = []

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        self.batches.append((features.clone(), labels.clone()))
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return cross_entropy(10 * features @ self.weight.T, labels)

    def run(self, given: SupportSet, **asked: object) -> None:
        settings = {"epochs": 4, "batch_size": 4, "seed": 1, **asked}
        schedule = settings.pop("schedule", constant)
        minimize(self, self.optimizer, schedule, given, **settings)  # type: ignore[arg-type]


def rows_of(batch: Tensor, features: Tensor) -> list[int]:
    """Which rows of the features the batch holds."""
    return [int((features == one).all(dim=1).nonzero().item()) for one in batch]


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (4, False, [4, 4, 2]),
        (4, True, [4, 4]),
        (5, False, [5, 5]),
        (5, True, [5, 5]),
        (32, False, [10]),
        (32, True, [10]),
        (1, True, [1] * 10),
    ],
)
def test_an_epoch_is_every_image_once_in_batches(
    batch_size: int, drop_last: bool, sizes: list[int]
) -> None:
    given, loss = support(), Watched()
    loss.run(given, batch_size=batch_size, drop_last=drop_last)
    assert [len(labels) for _, labels in loss.batches] == sizes * 4
    orders = []
    for epoch in range(4):
        batches = loss.batches[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        rows = [row for features, _ in batches for row in rows_of(features, given.features)]
        assert len(set(rows)) == len(rows) == sum(sizes)
        labels = torch.cat([labels for _, labels in batches])
        assert labels.tolist() == given.labels[rows].tolist()
        orders.append(tuple(rows))
    assert len(set(orders)) == 4


def test_every_epoch_sees_the_next_view_of_all_images() -> None:
    given, loss = support(n_views=3), Watched()
    loss.run(given, epochs=5)
    assert given.views is not None
    for epoch in range(5):
        batches = loss.batches[3 * epoch : 3 * epoch + 3]
        rows = [r for features, _ in batches for r in rows_of(features, given.views[epoch % 3])]
        assert sorted(rows) == list(range(N))
        labels = torch.cat([labels for _, labels in batches])
        assert labels.tolist() == given.labels[rows].tolist()


def by_hand(
    given: SupportSet, optimizer: Callable[[list[Tensor]], Optimizer], scheduled: bool
) -> Tensor:
    """The same training with nothing of `minimize`: a plain loop with torch's own schedule."""
    weight = torch.zeros(N_CLASSES, DIM, requires_grad=True)
    steps = optimizer([weight])
    scheduler = CosineAnnealingLR(steps, T_max=4 * 3)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(4):
        crops = given.features if given.views is None else given.views[epoch % len(given.views)]
        order = torch.randperm(N, generator=generator).tolist()
        for batch in (order[:4], order[4:8], order[8:]):
            steps.zero_grad()
            logits = 10 * crops[batch] @ weight.T
            loss = -torch.log_softmax(logits, dim=1)[range(len(batch)), given.labels[batch]].mean()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            if scheduled:
                scheduler.step()
    return weight.detach()


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize(
    "optimizer",
    [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1, weight_decay=0.3)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("schedule", [cosine_by_step(0.1), constant], ids=["cosine", "constant"])
def test_training_ends_where_a_plain_loop_ends(
    n_views: int, optimizer: Callable[[list[Tensor]], Optimizer], schedule: Schedule
) -> None:
    given, loss = support(n_views), Watched()
    loss.optimizer = optimizer([loss.weight])  # type: ignore[assignment]
    loss.run(given, seed=7, schedule=schedule)
    expected = by_hand(given, optimizer, scheduled=schedule is not constant)
    torch.testing.assert_close(loss.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert expected.norm() > 0.1


def test_the_cosine_by_step_is_torchs() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = SGD([parameter], lr=0.3)
    scheduler = CosineAnnealingLR(optimizer, T_max=12, eta_min=0.02)
    expected = []
    for _ in range(12):
        expected.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    loss = Watched()
    loss.run(support(), schedule=cosine_by_step(0.3, least=0.02))
    assert loss.rates == pytest.approx(expected)


def test_the_cosine_by_epoch_is_dassls() -> None:
    # Dassl holds its scheduler at a constant for the first epoch and only then starts torch's,
    # which it steps once per epoch after that: epoch 1 has the full rate.
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = SGD([parameter], lr=2e-3)
    successor = CosineAnnealingLR(optimizer, T_max=5)
    expected = [1e-5]
    for _ in range(1, 5):
        expected.append(float(successor.get_last_lr()[0]))
        optimizer.step()
        successor.step()
    loss = Watched()
    loss.run(support(), epochs=5, schedule=cosine_by_epoch(2e-3, 5))
    assert loss.rates == pytest.approx([rate for rate in expected for _ in range(3)])
    assert loss.rates[3] == pytest.approx(2e-3)
    assert loss.rates[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 3 / 5)))


def test_the_rate_is_that_of_the_share_of_all_steps_done() -> None:
    asked: list[tuple[int, float]] = []

    def schedule(epoch: int, done: float) -> float:
        asked.append((epoch, done))
        return 0.0

    Watched().run(support(), epochs=2, drop_last=True, schedule=schedule)
    assert asked == [(0, 0.0), (0, 0.25), (1, 0.5), (1, 0.75)]


def test_every_group_of_parameters_gets_the_rate() -> None:
    one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = SGD([{"params": [one], "lr": 7.0}, {"params": [other], "lr": 9.0}])
    minimize(
        lambda features, labels: one.sum() + other.sum(),
        optimizer,
        constant,
        support(),
        epochs=1,
        batch_size=10,
        seed=1,
    )
    for parameter in (one, other):
        torch.testing.assert_close(parameter.detach(), torch.full((2,), 0.9))


def test_a_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    runs = [Watched() for _ in range(3)]
    for loss, seed in zip(runs, (1, 1, 2), strict=True):
        loss.run(support(n_views=2), seed=seed)
    first, again, other = (loss.weight.detach() for loss in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_numbers_are_neither_used_nor_drawn() -> None:
    torch.manual_seed(1)
    first, again = Watched(), Watched()
    first.run(support())
    torch.manual_seed(2)
    states = torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()  # noqa: NPY002
    again.run(support())
    after = torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(first.weight, again.weight)
    np.testing.assert_equal(after, states)


def test_no_epochs_move_nothing() -> None:
    loss = Watched()
    loss.run(support(), epochs=0)
    assert not loss.batches
    assert not loss.weight.detach().any()
