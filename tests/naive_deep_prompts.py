"""Deep prompts in both towers as MaPLe and PromptSRC have them: one prompt, one image at a time."""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor

from cache.models.encoder import Encoder
from tests.image_peft import attend, feed, naive_feature


def deep_text(
    encoder: Encoder, context: Tensor, deeper: Tensor, names: Sequence[str], words: str = ""
) -> Tensor:
    """(C, D) of all 77 tokens of [start] context words name "." [end], at its first blocks' inputs
    with the context replaced, through open_clip's own blocks; any norm."""
    model: Any = encoder.model
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    rows = []
    for name in names:
        tokens = tokenizer([f"{words} {name.replace('_', ' ')}."])[0]
        embedded = model.token_embedding(tokens)
        x = torch.cat([embedded[:1], context, embedded[1:]])[:77] + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if 1 <= i <= len(deeper):
                x = torch.cat([x[:1], deeper[i - 1], x[1 + len(context) :]])
            x = block(x[None], attn_mask=model.attn_mask)[0]
        end = int(tokens.argmax()) + len(context)
        rows.append(model.ln_final(x)[end] @ model.text_projection)
    return torch.stack(rows)


def deep_image(model: Any, prompts: Sequence[Tensor], image: Tensor) -> Tensor:
    """(D,) of one image with prompts at its end, replaced at the first blocks' inputs; any norm."""
    tower = model.visual
    x = tower.conv1(image[None]).flatten(2)[0].T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    own = len(x)
    x = tower.ln_pre(torch.cat([x, prompts[0]]))
    for i, block in enumerate(tower.transformer.resblocks):
        if 1 <= i < len(prompts):
            x = torch.cat([x[:own], prompts[i]])
        x = x + attend(block, block.ln_1(x))
        x = x + feed(block, x)
    return naive_feature(model, x)
