"""SHIP's published decoder: the frozen text tower reads a class's prompt whose context is shifted.

Wang et al., ICCV 2023, https://arxiv.org/abs/2307.07397. The prompt is [start] context name "."
[end]; the context is four vectors that all prompts share and that learn with the generator, and
each of them is shifted alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.text_tower import encode_with_prefix

N_CTX = 4  # as published
AT_A_TIME = 256  # prompts through the tower


class PromptDecoder(nn.Module):
    """A decoder, as `synthesis.ship.FeatureDecoder` says, of prompts.

    Args:
        clip: The model; left as it is.
        classnames: C names, the base classes first.
        seed: Random seed for the context before training.

    Raises:
        UserError: The text tower takes no embeddings.
    """

    reads = "prompts"

    def __init__(self, clip: Clip, classnames: Sequence[str], seed: int) -> None:
        super().__init__()
        self._clip = clip
        self._prompts = LearnedPrompts.of(clip, classnames, n_ctx=N_CTX, ctx_init="", seed=seed)
        self.context = self._prompts.context
        self.width = self.context.shape[1]

    def forward(self, labels: Tensor, shifts: Tensor) -> Tensor:
        """(B, D) features at unit norm of (B,) class ids and (B, W) shifts, on the CPU."""
        prompts = self._prompts
        context = self.context + shifts.to(self.context)[:, None]
        rows = labels.to(context.device)
        with self._clip.autocast():
            made = encode_with_prefix(
                prompts.model,
                prompts.start,
                torch.cat([context, prompts.rest[rows]], dim=1),
                prompts.end[rows] + N_CTX,
                chunk=AT_A_TIME,
            )
        return normalize(made.float().cpu(), dim=1)
