"""The one loop that trains: mini-batches of the support set, a fresh view in every epoch.

A method whose gradients are known in closed form goes over `batches` itself and takes its steps by
an optimizer of `fewshot.parts.optimizers`; `minimize` is the same loop for a loss by autograd.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot.support import SupportSet
from fewshot.threads import few_threads

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, D) features and (B,) labels -> a scalar
Schedule = Callable[[int, float], float]  # epoch, and share of all steps done -> learning rate


class Batch(NamedTuple):
    """The images of one step.

    Attributes:
        features: (B, D). The next batch overwrites them.
        labels: (B,).
        rows: (B,) the images' rows in the support set.
        view: Which of the views the features are; 0 where there are none.
        lr: The step's learning rate.
    """

    features: Tensor
    labels: Tensor
    rows: Tensor
    view: int
    lr: float


def batches(
    support: SupportSet,
    schedule: Schedule,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yield every step's images and learning rate.

    Every epoch is a new permutation of the images, each by one of its views: in epoch e all
    by view e mod V, or by the center crop where there are no views. All randomness is the
    seed's, so on one machine a run repeats bit for bit.

    Args:
        support: The images.
        schedule: Of the learning rate.
        epochs: Passes over the images.
        batch_size: Images per step; fewer images than that are one batch.
        seed: Of the permutations.
        drop_last: Leave an epoch's last batch out where it is not full, as Dassl does, unless
            it is the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    views = views_of(support)
    n = len(support.labels)
    steps = max(1, n // batch_size) if drop_last else math.ceil(n / batch_size)
    # A copy into memory that is there already takes a seventh of the time of one into new memory.
    memory = views.new_empty(min(n, batch_size), views.shape[2])
    for epoch in range(epochs):
        view = epoch % len(views)
        order = torch.randperm(n, generator=generator).to(support.labels.device)
        labels = support.labels[order]
        for step in range(steps):
            part = slice(step * batch_size, (step + 1) * batch_size)
            rows = order[part]
            features = torch.index_select(views[view], 0, rows, out=memory[: len(rows)])
            lr = schedule(epoch, (epoch * steps + step) / (epochs * steps))
            yield Batch(features, labels[part], rows, view, lr)


def dassl_batches(
    support: SupportSet, *, lr: float, epochs: int, batch_size: int, seed: int
) -> Iterator[Batch]:
    """Yield `batches` as Dassl does, by which CoOp and those after it train.

    The learning rate is that of `cosine_by_epoch`, and an epoch's last batch is left out where it
    is not full.

    Args:
        support: The images.
        lr: The maximum learning rate.
        epochs: As in `batches`, like the rest.
        batch_size: Images per step.
        seed: Of the permutations.
    """
    schedule = cosine_by_epoch(lr, epochs)
    return batches(
        support, schedule, epochs=epochs, batch_size=batch_size, seed=seed, drop_last=True
    )


def views_of(support: SupportSet) -> Tensor:
    """(V, N, D) the views that are trained on: the center crop where there are no others."""
    return support.features[None] if support.views is None else support.views


def minimize(
    loss: Loss,
    optimizer: Optimizer,
    schedule: Schedule,
    support: SupportSet,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
    many_threads: bool = False,
) -> None:
    """Move the optimizer's parameters down the loss, in place, by autograd.

    Args:
        loss: Mean loss of a batch; gradients are taken of whatever the optimizer holds.
        optimizer: Its learning rate is overwritten before every step.
        schedule: That learning rate.
        support: The images.
        epochs: As in `batches`, like the rest.
        batch_size: Images per step.
        seed: Of the permutations.
        drop_last: Leave an epoch's last batch out where it is not full.
        many_threads: Compute on all threads however small the support set is, for a loss that
            takes a tower.
    """
    steps = batches(
        support, schedule, epochs=epochs, batch_size=batch_size, seed=seed, drop_last=drop_last
    )
    with contextlib.nullcontext() if many_threads else few_threads(support):
        for batch in steps:
            for group in optimizer.param_groups:
                group["lr"] = batch.lr
            optimizer.zero_grad()
            loss(batch.features, batch.labels).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()


def step_seed(seed: int, step: int) -> int:
    """The random seed of one step or epoch, of the 64 bits that torch takes, for any seed."""
    return (seed * 1_000_003 + step) % 2**64


def published_epochs(shots: float) -> int:
    """CoOp's passes over the images, by which later papers train too: 50 at 1 shot, 100, 200."""
    return 50 if shots <= 1 else 100 if shots <= 4 else 200


def passes(epochs: int | Literal["published"], support: SupportSet, minimum: int = 0) -> int:
    """The passes asked for; `published` are CoOp's at K, the mean number of images of a class.

    Args:
        epochs: A number, or the word.
        support: The images.
        minimum: Of the published passes.
    """
    if epochs == "published":
        return max(minimum, published_epochs(len(support.labels) / support.n_classes))
    return epochs


def cosine_by_epoch(lr: float, epochs: int, warm_up: float = 1e-5) -> Schedule:
    """Dassl's: `warm_up` in epoch 0, then lr (1 + cos(pi (e - 1) / epochs)) / 2 in epoch e."""

    def schedule(epoch: int, done: float) -> float:
        if epoch == 0:
            return warm_up
        return lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2

    return schedule


def cosine_by_step(lr: float, least: float = 0.0) -> Schedule:
    """From lr down to `least` along half a cosine, step by step, as torch's CosineAnnealingLR."""

    def schedule(epoch: int, done: float) -> float:
        return least + (lr - least) * (1 + math.cos(math.pi * done)) / 2

    return schedule
