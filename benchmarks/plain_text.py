"""Class names, and text features as CLIP's own code computes them: at all 77 positions."""

from typing import Any

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor


def classnames(n: int) -> list[str]:
    """The first n of ImageNet's."""
    return [name.replace("_", " ") for name in IMAGENET_CLASSNAMES[:n]]


def with_context(model: Any, context: Tensor, rows: Tensor, end: Tensor) -> Tensor:
    """(C, D) features of prompts with learned tokens behind their start token.

    Args:
        model: open_clip's.
        context: (M, W) put in place of as many tokens.
        rows: (C, L, W) embedded prompts, without positions.
        end: (C,) place of the end of text.
    """
    behind = rows[:, 1 + len(context) :]
    x = torch.cat([rows[:, :1], context.expand(len(rows), -1, -1), behind], dim=1)
    length = x.shape[1]
    mask = model.attn_mask[:length, :length]
    x = model.transformer(x + model.positional_embedding[:length], attn_mask=mask)
    pooled = model.ln_final(x)[torch.arange(len(x), device=x.device), end]
    features: Tensor = pooled @ model.text_projection
    return features
