"""How images look to the class texts: distributions over the classes, and their divergences."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax


@dataclass(frozen=True, eq=False)
class ClassDistributions:
    """A distribution p over the C classes for each of M images.

    Attributes:
        log: (M, C) log(C p), near 0 where p is nearly uniform: so small divergences survive single
            precision.
    """

    log: Tensor

    @classmethod
    def of(cls, features: Tensor, text: Tensor, temperature: float) -> Self:
        """The softmax of the (M, D) features' cosines to the (C, D) text over a temperature."""
        classes = torch.tensor(float(len(text)))
        return cls(
            log_softmax(linear(features, text) / temperature, dim=1) + classes.log().to(text)
        )

    @cached_property
    def p(self) -> Tensor:
        """(M, C) probabilities."""
        return self.log.exp() / self.log.shape[1]

    @cached_property
    def from_uniform(self) -> Tensor:
        """(M,) KL(p || uniform), in nats."""
        return (self.p * self.log).sum(dim=1)

    def divergences(self, log_q: Tensor, rows: slice) -> Tensor:
        """(m, N) KL(p || q) of some rows, with N others given as log(C q)."""
        return self.from_uniform[rows, None] - self.p[rows] @ log_q.T
