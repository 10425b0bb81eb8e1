"""The live text tower: class features with gradients, at the price of the tokens that matter.

CLIP's text tower is causal and its feature is taken at the end-of-text token. Three things follow,
all exact, gradients included:

- what comes after a prompt's end-of-text token is left out (open_clip computes all 77 positions);
- tokens with which all prompts begin, such as CoOp's context or "a photo of a", have the same
  activations in every prompt and are computed once;
- prompts of different lengths lie end to end in one row, without padding; see `Prompts`.

The model has to be unfused. Its own blocks do the work, so whatever was put into them takes effect
as long as it treats tokens one by one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache.errors import UserError
from fewshot.endtoend.packing import Prompts


def encode(
    model: Any,
    tokens: Tensor,
    *,
    share_prefix: bool = True,
    chunk: int | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Unnormalized text features (C, D) of tokens (C, L).

    Args:
        model: An unfused open_clip CLIP.
        tokens: What its tokenizer makes of the prompts.
        share_prefix: Compute the tokens with which all prompts begin once. With dropout in the
            tower they then share its draw too; without sharing every prompt has its own.
        chunk: See `encode_with_prefix`.
        checkpointing: See `encode_with_prefix`.

    Raises:
        UserError: See `encode_with_prefix`.
    """
    _refuse_other_towers(model)
    end = _ends(model, tokens)
    shared = _common(tokens, end) if share_prefix else 0
    embeddings = model.token_embedding(tokens[:, : int(end.max()) + 1])
    return encode_with_prefix(
        model,
        embeddings[0, :shared],
        embeddings[:, shared:],
        end - shared,
        chunk=chunk,
        checkpointing=checkpointing,
    )


def encode_with_prefix(
    model: Any,
    prefix: Tensor,
    suffix: Tensor,
    end: Tensor,
    *,
    chunk: int | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Unnormalized text features (C, D) of prompts that begin alike.

    Args:
        model: An unfused open_clip CLIP.
        prefix: (P, W) embeddings of the shared tokens, the start token first; P may be 0.
        suffix: (C, S, W) embeddings of each prompt's further tokens.
        end: (C,) position in the suffix of its end-of-text token; what follows it is ignored.
        chunk: How many prompts go through the tower at a time; None is all. The prefix is computed
            once per chunk.
        checkpointing: Keep none of a chunk's activations but compute them again for the gradient:
            memory for one chunk only, a third more work.

    Raises:
        UserError: The tower is not causal or pools elsewhere than at the end of text, the model
            was not unfused, a prompt is too long, or the chunk is no positive number.
    """
    _refuse_other_towers(model)
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk must be 1 or more prompts at a time; got {chunk}")
    length, most = len(prefix) + int(end.max()) + 1, len(model.positional_embedding)
    if length > most:
        raise UserError(
            f"prompts must fit into {most} tokens; the longest has {length}; "
            "use fewer context tokens or a shorter template or class name"
        )
    size = chunk or len(suffix)
    features = []
    for own, last in zip(torch.split(suffix, size), torch.split(end, size), strict=True):
        if checkpointing:
            features.append(checkpoint(_features, model, prefix, own, last, use_reentrant=False))
        else:
            features.append(_features(model, prefix, own, last))
    return torch.cat(features)


def _features(model: Any, prefix: Tensor, suffix: Tensor, end: Tensor) -> Tensor:
    """(C, D) from one pass over one row of tokens."""
    mask = Prompts.of(len(prefix), end + 1)
    position = model.positional_embedding[: mask.shared + mask.shape[1]]
    own = suffix[:, : mask.shape[1]] + position[mask.shared :]
    row = torch.cat([prefix + position[: mask.shared], own.flatten(0, 1)[mask.places]])
    tokens = model.transformer(row[None], attn_mask=mask)[0]
    pooled: Tensor = model.ln_final(tokens[mask.shared + (end + 1).cumsum(0) - 1])
    projection = model.text_projection
    if projection is None:
        return pooled
    features: Tensor = (
        projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
    )
    return features


def _ends(model: Any, tokens: Tensor) -> Tensor:
    """(C,) position of the end-of-text token, found as open_clip finds it."""
    if model.text_pool_type == "eos":
        tokens = (tokens == model.text_eos_id).int()
    return tokens.argmax(dim=1)  # elsewhere, end-of-text is the highest id


def _common(tokens: Tensor, end: Tensor) -> int:
    """How many tokens all prompts begin with, none of them an end of text."""
    alike = (tokens == tokens[0]).all(dim=0)
    return min(int(alike.int().cumprod(dim=0).sum()), int(end.min()))


def _refuse_other_towers(model: Any) -> None:
    name = type(model).__name__
    if getattr(model, "attn_mask", None) is None:
        raise UserError(
            f"prompts can be learned with a causal text tower; that of this {name} is not one, or "
            "not open_clip's own; use a model such as ViT-B-16/openai"
        )
    pooling = model.text_pool_type
    if pooling not in ("argmax", "eos"):
        raise UserError(
            f"the text feature must be taken at the end-of-text token; this {name} takes "
            f"{pooling!r}; use a model such as ViT-B-16/openai"
        )
    if any(isinstance(module, nn.MultiheadAttention) for module in model.transformer.modules()):
        raise UserError("the text tower must be unfused; got open_clip's own; call unfuse first")
