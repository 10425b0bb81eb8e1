"""How many threads to compute with: one where the task is small, whatever started the process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from fewshot.multi_label_support import MultiLabelSupport
from fewshot.support import SupportSet

# Multiply-adds of one product of all images with all classes, N C D. On two busy cores, a step of
# 256 images of 512 features took with two threads 2.1 times as long as with one at 10 classes, 1.6
# times at 101, and 1.0 to 1.1 times from 400 to 1,000. That is where waiting threads sleep. Where
# they spin, as in torch without OMP_WAIT_POLICY=PASSIVE, it was 5.6, 5.3, 4.2 and 2.5 times.
SMALL = 2**30

Given = ParamSpec("Given")
Made = TypeVar("Made")


@contextmanager
def few_threads(support: SupportSet | MultiLabelSupport) -> Iterator[None]:
    """Compute within on one thread where the support set is small, and as before afterwards.

    Small is N C D up to `SMALL`, on the CPU.
    """
    before = torch.get_num_threads()
    if before > 1 and _small(support):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def closed_form(train: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorate a training whose gradients are written down: no autograd, and few threads.

    One of its arguments is the support set.
    """

    @wraps(train)
    def quietly(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        given = (*args, *kwargs.values())
        (support,) = [x for x in given if isinstance(x, SupportSet | MultiLabelSupport)]
        with torch.no_grad(), few_threads(support):
            return train(*args, **kwargs)

    return quietly


def _small(support: SupportSet | MultiLabelSupport) -> bool:
    size = support.features.numel() * support.n_views * support.n_classes
    return support.features.device.type == "cpu" and size <= SMALL
