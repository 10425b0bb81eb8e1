"""SGD and Adam for gradients that a method writes itself, in one call a step.

All parameters lie in one tensor and their gradients in another, which torch's fused functions walk
over once. `torch.optim`'s classes take the same steps; the first of them that a process makes
imports torch's compiler, a second of work.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class _Parameters:
    """The trained tensors and their gradients.

    Attributes:
        values: The trained tensors, in the order and the shapes of those that they started as.
        gradients: As many, where a step finds the gradients. They start at zero.
    """

    def __init__(self, starts: Sequence[Tensor]) -> None:
        self._all = torch.cat([start.flatten() for start in starts])
        self._gradient = torch.zeros_like(self._all)
        shapes = [start.shape for start in starts]
        self.values = _views(self._all, shapes)
        self.gradients = _views(self._gradient, shapes)

    @property
    def count(self) -> float:
        """Numbers that are trained."""
        return float(self._all.numel())


class SGD(_Parameters):
    """Stochastic gradient descent with momentum.

    Args:
        starts: What the parameters start as; copied.
        momentum: Share of the last step in the next.
        weight_decay: Times the parameters, added to their gradients.
    """

    def __init__(self, *starts: Tensor, momentum: float, weight_decay: float = 0.0) -> None:
        super().__init__(starts)
        self._steps: list[Tensor | None] = [torch.zeros_like(self._all)]
        self._momentum, self._weight_decay = momentum, weight_decay

    def step(self, lr: float) -> None:
        """Move the values against the gradients."""
        sgd(
            [self._all], [self._gradient], self._steps, fused=True, lr=lr,
            momentum=self._momentum, weight_decay=self._weight_decay,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip


class Adam(_Parameters):
    """Adam, or AdamW where the weight decay is decoupled from the gradient.

    Args:
        starts: What the parameters start as; copied.
        weight_decay: Times the parameters, added to their gradients; or, decoupled, times the
            learning rate, taken from the parameters.
        decoupled: See there.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self, *starts: Tensor, weight_decay: float, decoupled: bool, eps: float = 1e-8
    ) -> None:
        super().__init__(starts)
        self._first, self._second = torch.zeros_like(self._all), torch.zeros_like(self._all)
        self._count = torch.zeros((), device=self._all.device)
        self._weight_decay, self._decoupled, self._eps = weight_decay, decoupled, eps

    def step(self, lr: float) -> None:
        """Move the values against the gradients."""
        adam(
            [self._all], [self._gradient], [self._first], [self._second], [], [self._count],
            fused=True, lr=lr, beta1=0.9, beta2=0.999, eps=self._eps,
            weight_decay=self._weight_decay, decoupled_weight_decay=self._decoupled,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name; shares its memory."""
        return {
            "values": self._all, "first": self._first, "second": self._second, "count": self._count,
        }  # fmt: skip

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to where a state was saved.

        Raises:
            KeyError: A part of it is missing.
            RuntimeError: A part has another shape.
        """
        for name, tensor in self.state().items():
            tensor.copy_(saved[name])


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """The tensor cut into parts of these shapes."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
