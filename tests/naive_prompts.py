"""Class texts around a context, as the papers have them: one prompt at a time, 77 tokens each."""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.models.encoder import Encoder


def text_around(encoder: Encoder, context: Tensor, names: Sequence[str]) -> Tensor:
    """(C, D) unit norm, of [start] context name "." [end], through open_clip's own tower."""
    model: Any = encoder.model
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    rows = []
    for name in names:
        tokens = tokenizer([name.replace("_", " ") + "."])[0]
        embedded = model.token_embedding(tokens)
        x = torch.cat([embedded[:1], context, embedded[1:]])[:77] + model.positional_embedding
        x = model.ln_final(model.transformer(x[None], attn_mask=model.attn_mask))
        rows.append(x[0, int(tokens.argmax()) + len(context)] @ model.text_projection)
    return normalize(torch.stack(rows), dim=1)


def text_of(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D) unit norm, the mean over hand-crafted templates, without gradient."""
    total = torch.zeros(())
    for template in templates:
        prompts = [template.replace("{}", name.replace("_", " ")) for name in names]
        total = total + normalize(encoder.encode_text(prompts), dim=1)
    return normalize(total, dim=1).clone()
