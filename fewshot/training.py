"""The one loop that trains: mini-batches of the support set, a fresh view in every epoch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot.support import SupportSet

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, D) features and (B,) labels -> a scalar
Schedule = Callable[[int, float], float]  # epoch, and share of all steps done -> learning rate


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
) -> None:
    """Move the optimizer's parameters down the loss, in place.

    Every epoch is a new permutation of the images, each by one of its views: in epoch e all
    by view e mod V, or by the center crop where there are no views. All randomness is the
    seed's, so on one machine a run repeats bit for bit.

    Args:
        loss: Mean loss of a batch; gradients are taken of whatever the optimizer holds.
        optimizer: Its learning rate is overwritten before every step.
        schedule: That learning rate.
        support: The images.
        epochs: Passes over the images.
        batch_size: Images per step; fewer images than that are one batch.
        seed: Of the permutations.
        drop_last: Leave an epoch's last batch out where it is not full, as Dassl does, unless
            it is the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    views = support.features[None] if support.views is None else support.views
    n = len(support.labels)
    steps = max(1, n // batch_size) if drop_last else math.ceil(n / batch_size)
    for epoch in range(epochs):
        features = views[epoch % len(views)]
        order = torch.randperm(n, generator=generator).to(support.labels.device)
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            rate = schedule(epoch, (epoch * steps + step) / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss(features[rows], support.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def published_epochs(shots: float) -> int:
    """CoOp's passes over the images, by which later papers train too: 50 at 1 shot, 100, 200."""
    return 50 if shots <= 1 else 100 if shots <= 4 else 200


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
