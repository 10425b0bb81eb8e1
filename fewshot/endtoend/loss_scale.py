"""The factor on the loss that keeps the gradients of float16 from vanishing or overflowing."""

from typing import Any

import torch


class LossScale(torch.amp.GradScaler):
    """torch's scale of the loss, and a count of the steps that were skipped.

    A step whose gradients overflow is skipped and the scale is halved; the scale starts high, so
    that happens in the first steps of most runs.

    Attributes:
        skipped: Steps skipped so far.
    """

    skipped: int = 0

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """End a step, and count it if it was skipped."""
        before = self.get_scale()
        super().update(new_scale)
        self.skipped += self.get_scale() < before

    def state_dict(self) -> dict[str, Any]:
        """The scale and the count; empty where nothing is scaled."""
        state = super().state_dict()
        return state | {"skipped": self.skipped} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; earlier versions counted nothing."""
        super().load_state_dict(state_dict)
        self.skipped = int(state_dict.get("skipped", 0))
