"""Prompts of classes around a learned context, for CoOp and the methods that build on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshot.endtoend import text_tower
from fewshot.endtoend.clip import Clip

ClassPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """The prompts of C classes around a learned context.

    Attributes:
        model: The unfused CLIP.
        context: (M, W) or, of each class its own, (C, M, W).
        start: (1, W) embedding of the start token; (0, W) where prompts have none.
        rest: (C, S, W) embeddings of each class's name, period and end of text, then padding.
        n_name: (C,) tokens of each name.
        end: (C,) place in `rest` of the last token before the padding, the end of text.
        position: Where the name stands.
        chunk: Prompts at a time, or None.
    """

    model: Any
    context: nn.Parameter
    start: Tensor
    rest: Tensor
    n_name: Tensor
    end: Tensor
    position: ClassPosition
    chunk: int | None

    @classmethod
    def of(
        cls,
        clip: Clip,
        classnames: Sequence[str],
        *,
        n_ctx: int,
        ctx_init: str,
        seed: int,
        class_specific: bool = False,
        position: ClassPosition = "end",
        chunk: int = 0,
    ) -> "LearnedPrompts":
        """With the context as it is before training.

        Args:
            clip: The model.
            classnames: C names.
            n_ctx: M.
            ctx_init: Words that the context starts from and which say what M is; empty for normal
                vectors of deviation 0.02.
            seed: Of these vectors.
            class_specific: A context for every class, instead of one for all; ignored with words.
            position: Where the name stands.
            chunk: Prompts that go through the tower at a time, 0 for all.

        Raises:
            UserError: The text tower takes no embeddings.
        """
        tower = text_tower.require_open_clips(clip.model)
        words = ctx_init.replace("_", " ")
        with torch.no_grad():
            tokens = clip.tokens([f"{name.replace('_', ' ')}." for name in classnames])
            empty, period, own = clip.tokens(["", ".", words])
            # The padding is what an empty prompt ends with, and the start what it begins with.
            lengths = [_length(row, empty[-1]) for row in (*tokens, empty, period, own)]
            *n_tokens, n_empty, n_period, n_own = lengths
            start = int((tokens == empty).all(dim=0).int().cumprod(dim=0).sum())
            start = min(start, n_empty)
            most = max(n_tokens) if tower.packs else tokens.shape[1]
            rest = tower.embedding(tokens[:, start:most])
            if words:
                context = tower.embedding(own[start : n_own - (n_empty - start)])
            else:
                shape = (len(classnames),) if class_specific else ()
                generator = torch.Generator().manual_seed(seed)
                context = torch.empty(*shape, n_ctx, rest.shape[-1])
                context.normal_(std=0.02, generator=generator)
            first = tower.embedding(tokens[0, :start])
        n = torch.tensor(n_tokens, device=tokens.device)
        return cls(
            clip.model,
            nn.Parameter(context.to(rest)),
            first,
            rest,
            n - n_period,  # neither start and end of text are counted, nor the period
            n - start - 1,
            position,
            chunk or None,
        )

    def features(self, context: Tensor | None = None) -> Tensor:
        """(C, D) unnormalized text features, of another context if one is given."""
        context = self.context if context is None else context
        n_ctx, end = context.shape[-2], self.end
        if self.position == "end" and context.ndim == 2:
            prefix = torch.cat([self.start, context])
            return self._encode(prefix, self.rest, end)
        every = context.expand(len(self.rest), -1, -1)
        if self.position == "end":
            return self._encode(self.start, torch.cat([every, self.rest], dim=1), end + n_ctx)
        # Before the name stand none of the context's tokens, or half of them; the others follow it.
        before = n_ctx // 2 if self.position == "middle" else 0
        follow = every[:, before:]
        columns = torch.arange(self.rest.shape[1] + follow.shape[1], device=end.device)
        at = columns - self.n_name[:, None]  # (C, S'), 0 where the context goes on
        inside = (at >= 0) & (at < follow.shape[1])
        source = torch.where(at < 0, columns, at - follow.shape[1] + self.n_name[:, None])
        rows = torch.arange(len(end), device=end.device)[:, None]
        names = self.rest[rows, source.clamp(0, self.rest.shape[1] - 1)]
        learned = follow[rows, at.clamp(0, follow.shape[1] - 1)]
        suffix = torch.where(inside[..., None], learned, names)
        prefix, length = self.start, end + follow.shape[1]
        if context.ndim == 2:
            return self._encode(torch.cat([prefix, context[:before]]), suffix, length)
        suffix = torch.cat([every[:, :before], suffix], dim=1)
        return self._encode(prefix, suffix, length + before)

    def _encode(self, prefix: Tensor, suffix: Tensor, end: Tensor) -> Tensor:
        return text_tower.encode_with_prefix(
            self.model, prefix, suffix, end, chunk=self.chunk, checkpointing=self.chunk is not None
        )


def _length(tokens: Tensor, padding: Tensor) -> int:
    """How many of (L,) tokens come before the padding."""
    places = (tokens != padding).nonzero()
    return int(places[-1]) + 1 if len(places) else 0
