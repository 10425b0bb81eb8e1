"""The kernel of ProKeR, and classifiers that are a sum of kernels about samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import linear

from fewshot.classifier import BlockedClassifier, LinearClassifier, require_width
from fewshot.parts.whitening import Whitening

BLOCK = 2**24  # kernel values of queries at a time, 64 MiB of them, or 128 in double precision


def kernel_of(cosines: Tensor, beta: float) -> Tensor:
    """exp(-beta (1 - cosine)), in place."""
    return cosines.sub_(1).mul_(beta).exp_()


@dataclass(frozen=True, eq=False)
class KernelClassifier(BlockedClassifier):
    """Zero-shot logits and a sum of kernels about the samples.

    Attributes:
        samples: (N, D) of the type in which it computes.
        coefficients: (N, C) of the same type.
        beta: The kernel's.
        anchor: (C, D) weights of the same type, zero-shot's as ProKeR has it, or None.
        stats: See `Classifier`.
        bias: (C,) of the same type that goes with the anchor, or None.
    """

    samples: Tensor
    coefficients: Tensor
    beta: float
    anchor: Tensor | None
    stats: Mapping[str, float] = field(default_factory=dict)
    bias: Tensor | None = None

    kind: ClassVar[str] = "kernel"

    @property
    def block(self) -> int:
        """Queries whose kernel values number `BLOCK`."""
        return max(1, BLOCK // len(self.samples))

    def block_logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.samples.shape[1])
        x = features.to(self.samples)
        logits = kernel_of(x @ self.samples.T, self.beta) @ self.coefficients
        if self.anchor is not None:
            logits = logits + linear(x, self.anchor, self.bias)
        return logits.to(features)


@dataclass(frozen=True, eq=False)
class WhitenedKernel(BlockedClassifier):
    """The logits of a kernel about whitened samples, and those of another classifier.

    Attributes:
        kernel: Of whitened features.
        whitening: What whitens them.
        other: The classifier of the features as they are, or None.
        stats: See `Classifier`.
    """

    kernel: KernelClassifier
    whitening: Whitening
    other: LinearClassifier | KernelClassifier | None = None
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "whitened kernel"

    @property
    def block(self) -> int:
        """Queries whose kernel values are as many as one kernel takes at a time."""
        return self.kernel.block

    def block_logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.whitening.matrix.shape[1])
        logits = self.kernel.block_logits(self.whitening(features))
        if isinstance(self.other, KernelClassifier):
            return logits + self.other.block_logits(features)
        return logits if self.other is None else logits + self.other.logits(features)
