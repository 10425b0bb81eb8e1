"""The live text tower: class features with gradients, at the price of the tokens that matter.

CLIP's text tower is causal and its feature is taken at the end-of-text token. Three things follow,
all exact, gradients included:

- what comes after a prompt's end-of-text token is left out (open_clip computes all 77 positions);
- tokens with which all prompts begin, such as CoOp's context or "a photo of a", have the same
  activations in every prompt and are computed once;
- prompts of different lengths lie end to end in one row, without padding; see `Prompts`.

The model has to be unfused. Its own blocks do the work, so whatever was put into them takes effect
as long as it treats tokens one by one.

Of a tower that is not causal, such as SigLIP's, every position counts, so it runs on the whole
context. CoCa's has a class token behind the padding, which sees the prompt but not the padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache.errors import UserError
from fewshot.endtoend.last_block import pooled
from fewshot.endtoend.packing import LastTokens, Prompts


@dataclass(frozen=True, eq=False)
class TextTower:
    """open_clip's text transformer, wherever a model keeps its parts.

    Attributes:
        embedding: Token ids to (..., W).
        positions: (L, W), one for each place of the context.
        transformer: The blocks.
        norm: Behind them.
        projection: W -> D, a module or (W, D); None for none.
        mask: (L, L) causal; None for a tower in which all tokens see each other.
        pooling: Where the feature is taken: "first", "last", or the end of text, "argmax" or "eos".
        eos: The end-of-text token's id, for "eos".
        class_token: (W,) behind the context, from which the feature is taken; None for none.
    """

    embedding: nn.Module
    positions: Tensor
    transformer: Any
    norm: nn.Module
    projection: Any
    mask: Tensor | None
    pooling: str
    eos: int | None
    class_token: Tensor | None = None

    @classmethod
    def of(cls, model: Any) -> "TextTower | None":
        """That of an open_clip model; None for a text tower of another kind."""
        from open_clip.model import CLIP
        from open_clip.transformer import TextTransformer

        if isinstance(model, CLIP):
            tower: Any = model
            pooling, eos = model.text_pool_type, model.text_eos_id
        else:
            tower = getattr(model, "text", None)
            if not isinstance(tower, TextTransformer):
                return None
            if tower.use_pad_mask or tower.correct_cls_mask:  # in no model that open_clip names
                return None
            pooling, eos = tower.pool_type, tower.eos_id
        class_token = getattr(tower, "cls_emb", None)
        if class_token is not None:
            pooling = "last"
        if pooling == "none":
            return None
        return cls(
            tower.token_embedding,
            tower.positional_embedding,
            tower.transformer,
            tower.ln_final,
            tower.text_projection,
            tower.attn_mask,
            pooling,
            eos,
            class_token,
        )

    @property
    def packs(self) -> bool:
        """True if what follows the end of text changes nothing."""
        return self.mask is not None and self.pooling in ("argmax", "eos")

    def ends(self, tokens: Tensor) -> Tensor:
        """(C,) position of the end-of-text token of (C, L), found as open_clip finds it."""
        if self.pooling == "eos":
            tokens = tokens.eq(int(self.eos or 0)).int()
        return tokens.argmax(dim=1)  # elsewhere, end-of-text is the highest id

    def project(self, pooled: Tensor) -> Tensor:
        """(C, D) of (C, W)."""
        last = self.projection
        if last is None:
            return pooled
        features: Tensor = last(pooled) if isinstance(last, nn.Module) else pooled @ last
        return features

    def places(self, end: Tensor, size: int) -> Tensor:
        """(C,) where the feature is taken, of prompts with that end of text, padded to a size."""
        at = {"first": torch.zeros_like(end), "last": torch.full_like(end, size - 1)}
        return at.get(self.pooling, end)

    @property
    def length(self) -> int:
        """L, the maximum number of a prompt's tokens."""
        return len(self.positions) - (self.class_token is not None)

    def whole(self, rows: Tensor, end: Tensor) -> Tensor:
        """Features (C, D) of embedded rows (C, S, W) of one length, padding included.

        Args:
            rows: Without positions; before a class token each ends in padding or fills the context.
            end: (C,) place of the end of text.
        """
        size = rows.shape[1]
        positions, mask = self.positions[:size], self.mask
        if self.class_token is not None:
            rows = torch.cat([rows, self.class_token.expand(len(rows), 1, -1)], dim=1)
            positions, mask = torch.cat([positions, self.positions[-1:]]), self._mask(size, end)
        elif mask is not None:
            mask = mask[:size, :size]
        tokens = self.transformer(rows + positions, attn_mask=mask)
        at = self.places(end, tokens.shape[1])[:, None, None].expand(-1, 1, tokens.shape[2])
        return self.project(self.norm(tokens.gather(1, at)[:, 0]))

    def _mask(self, size: int, end: Tensor) -> Tensor:
        """(C, 1, S + 1, S + 1) of C prompts of S tokens with a class token behind them.

        Every place sees what precedes it, up to one place behind the end of text: CoCa was trained
        with the mask of the padding, and so of the class token itself, one place too late.
        """
        place = torch.arange(size + 1, device=end.device)
        hidden = (place > end[:, None] + 1)[:, None, None] | (place > place[:, None])
        return torch.zeros(hidden.shape, device=end.device).masked_fill(hidden, -torch.inf)


def require_open_clips(model: Any) -> TextTower:
    """Return the model's text tower, one that takes embeddings.

    Raises:
        UserError: It has none, or one of another kind.
    """
    name = type(model).__name__
    if not hasattr(model, "encode_text"):
        raise UserError(
            "prompts can be learned with a text tower, and this model encodes images alone; use a "
            "model such as ViT-B-16/openai"
        )
    tower = TextTower.of(model)
    if tower is None:
        kind = type(getattr(model, "text", model)).__name__
        raise UserError(
            f"prompts cannot be learned here: the text tower of this {name}, {kind}, is not "
            "open_clip's own, which takes embeddings in place of tokens; use a model such as "
            "ViT-B-16/openai"
        )
    if any(isinstance(module, nn.MultiheadAttention) for module in tower.transformer.modules()):
        raise UserError("the text tower must be unfused; got open_clip's own; call unfuse first")
    return tower


def encode(
    model: Any,
    tokens: Tensor,
    *,
    share_prefix: bool = True,
    chunk: int | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Unnormalized text features (C, D) of tokens (C, L).

    A tower that is not causal, or not open_clip's own, runs as the model itself has it.

    Args:
        model: An unfused open_clip model.
        tokens: What its tokenizer makes of the prompts.
        share_prefix: Compute the tokens with which all prompts begin once. With dropout in the
            tower they then share its draw too; without sharing every prompt has its own.
        chunk: See `encode_with_prefix`.
        checkpointing: See `encode_with_prefix`.

    Raises:
        UserError: The chunk is no positive number, or the model was not unfused.
    """
    tower = TextTower.of(model)
    if tower is None or not tower.packs:
        return _in_chunks(model.encode_text, (tokens,), chunk, checkpointing)
    end = tower.ends(tokens)
    shared = _common(tokens, end) if share_prefix else 0
    embeddings = tower.embedding(tokens[:, : int(end.max()) + 1])
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
        model: An unfused open_clip model.
        prefix: (P, W) embeddings of the shared tokens, the start token first; P may be 0.
        suffix: (C, S, W) embeddings of each prompt's further tokens; for a tower that is not
            causal, or has a class token, with padding behind them, to the end of the context.
        end: (C,) position in the suffix of its end-of-text token; what follows it is padding,
            which a causal tower ignores.
        chunk: How many prompts go through the tower at a time; None is all. The prefix is computed
            once per chunk.
        checkpointing: Keep none of a chunk's activations but compute them again for the gradient:
            memory for one chunk only, a third more work.

    Raises:
        UserError: The text tower is not open_clip's own, or was not unfused, a prompt is too long,
            or the chunk is no positive number.
    """
    tower = require_open_clips(model)
    length, most = len(prefix) + int(end.max()) + 1, tower.length
    if length > most:
        raise UserError(
            f"prompts must fit into {most} tokens; the longest has {length}; "
            "use fewer context tokens or a shorter template or class name"
        )

    def packed(own: Tensor, last: Tensor) -> Tensor:
        return _features(tower, prefix, own, last)

    def whole(own: Tensor, last: Tensor) -> Tensor:
        rows = torch.cat([prefix.expand(len(own), -1, -1), own], dim=1)
        # A class token sees one token of padding and what precedes it.
        size = most if tower.class_token is None else min(most, length + 1)
        return tower.whole(rows[:, :size], len(prefix) + last)

    return _in_chunks(packed if tower.packs else whole, (suffix, end), chunk, checkpointing)


def _in_chunks(
    encoded: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    chunk: int | None,
    checkpointing: bool,
) -> Tensor:
    """`encoded` of so many prompts at a time, side by side again."""
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk must be 1 or more prompts at a time; got {chunk}")
    features = []
    size = chunk or len(given[0])
    for part in zip(*(torch.split(x, size) for x in given), strict=True):
        if checkpointing:
            features.append(checkpoint(encoded, *part, use_reentrant=False))
        else:
            features.append(encoded(*part))
    return torch.cat(features)


def _features(tower: TextTower, prefix: Tensor, suffix: Tensor, end: Tensor) -> Tensor:
    """(C, D) from one pass over one row of tokens."""
    mask = Prompts.of(len(prefix), end + 1)
    position = tower.positions[: mask.shared + mask.shape[1]]
    own = suffix[:, : mask.shape[1]] + position[mask.shared :]
    row = torch.cat([prefix + position[: mask.shared], own.flatten(0, 1)[mask.places]])
    ends = mask.shared + (end + 1).cumsum(0) - 1
    tokens = pooled(tower.transformer, row[None], ends, mask, LastTokens(mask))[0]
    return tower.project(tower.norm(tokens))


def _common(tokens: Tensor, end: Tensor) -> int:
    """How many tokens all prompts begin with, none of them an end of text."""
    alike = (tokens == tokens[0]).all(dim=0)
    return min(int(alike.int().cumprod(dim=0).sum()), int(end.min()))
