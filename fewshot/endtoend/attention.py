"""CLIP's attention taken apart: one `nn.Linear` each for queries, keys, values and the output.

open_clip packs the first three into one matrix and never calls the module of the fourth, so there
is nothing to hang a low-rank update or its input dropout on. `unfuse` puts modules of the same
function in place, `fuse` puts open_clip's back for export. Nothing else in this project looks
inside attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cache.errors import UserError
from fewshot.endtoend.packing import Prompts


class Attention(nn.Module):
    """Multi-head attention, called as open_clip's blocks call `nn.MultiheadAttention`.

    Attributes:
        q_proj: Queries; any module W -> W, and so the next three.
        k_proj: Keys.
        v_proj: Values.
        out_proj: Of the heads side by side.
        heads: H.
        batch_first: Tokens come as (B, L, W), else as (L, B, W).
    """

    def __init__(
        self,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        out_proj: nn.Module,
        heads: int,
        *,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.heads = heads
        self.batch_first = batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights: bool = False,
        attn_mask: Tensor | Prompts | None = None,
    ) -> tuple[Tensor, None]:
        """The attended tokens, shaped as `query`; and None, whether weights are wanted or not.

        Args:
            query: The tokens that look.
            key: The tokens they look at.
            value: What they see of those.
            need_weights: Not heeded; open_clip never asks for them.
            attn_mask: (L, L') to add to the logits, or `Prompts`.
        """
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (_split(x, self.heads) for x in (q, k, v))
        if isinstance(attn_mask, Prompts):
            heads = attn_mask.attend(q, k, v)
        else:
            mask = None if attn_mask is None else attn_mask.to(q.dtype)
            heads = scaled_dot_product_attention(q, k, v, mask)
        tokens: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return (tokens if self.batch_first else tokens.transpose(0, 1)), None


class AttentionPool(nn.Module):
    """The attention pooling of CLIP's modified ResNet, through its own four `nn.Linear`s.

    open_clip hands their weights to a function and never calls them; names are open_clip's. The
    mean of the grid is the one query, where open_clip computes all and keeps that one.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.positional_embedding: nn.Parameter = pool.positional_embedding
        self.q_proj: nn.Module = pool.q_proj
        self.k_proj: nn.Module = pool.k_proj
        self.v_proj: nn.Module = pool.v_proj
        self.c_proj: nn.Module = pool.c_proj
        self.num_heads = int(pool.num_heads)

    def forward(self, grid: Tensor) -> Tensor:
        """Features (B, D) of the last stage's (B, W, h, w)."""
        tokens = grid.flatten(2).transpose(1, 2)  # (B, h w, W)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        q, k, v = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (_split(x, self.num_heads) for x in (q, k, v))
        pooled: Tensor = self.c_proj(scaled_dot_product_attention(q, k, v).flatten(1))
        return pooled


def unfuse(model: nn.Module) -> None:
    """Swap every attention of an open_clip model's two towers for one of ours, in place.

    Weights are the same, features equal to rounding; what was frozen stays frozen.

    Raises:
        UserError: A tower has attention of another kind, or none.
    """
    _refuse_other_attention(model)
    from open_clip.modified_resnet import AttentionPool2d

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            _swap(model, name, _unfused(module))
        elif isinstance(module, AttentionPool2d):
            _swap(model, name, AttentionPool(module))


def fuse(model: nn.Module) -> None:
    """Put open_clip's own attention modules back, in place.

    Raises:
        UserError: Something other than a plain `nn.Linear` stands in one of ours.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, Attention | AttentionPool):
            continue
        for child, linear in module.named_children():
            if type(linear) is not nn.Linear:
                raise UserError(
                    f"open_clip's attention has plain matrices only; {name}.{child} is a "
                    f"{type(linear).__name__}; fold it into its matrix first"
                )
        _swap(model, name, _fused(module) if isinstance(module, Attention) else _stock(module))


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, H, L, d) of (B, L, H d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _refuse_other_attention(model: Any) -> None:
    from open_clip.model import CLIP
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    def refuse(part: str, module: object) -> UserError:
        return UserError(
            f"gradients through a tower need open_clip's CLIP with a plain ViT or modified ResNet; "
            f"{part} is a {type(module).__name__}; use a model such as ViT-B-16/openai"
        )

    if not isinstance(model, CLIP):
        raise refuse("the model", model)
    if not isinstance(model.visual, VisionTransformer | ModifiedResNet):
        raise refuse("its image tower", model.visual)
    if getattr(model.visual, "attn_pool", None) is not None:
        raise refuse("the image tower's pooling", model.visual.attn_pool)
    for part, tower in (("image", model.visual), ("text", model)):
        for block in [] if isinstance(tower, ModifiedResNet) else tower.transformer.resblocks:
            if not isinstance(block, ResidualAttentionBlock):
                raise refuse(f"a block of the {part} tower", block)


def _swap(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    new.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, new)


def _linear(weight: Tensor, bias: Tensor, *, trained: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), trained)
    linear.bias = nn.Parameter(bias.detach().clone(), trained)
    return linear


def _unfused(stock: nn.MultiheadAttention) -> Attention:
    q, k, v = (
        _linear(weight, bias, trained=stock.in_proj_weight.requires_grad)
        for weight, bias in zip(
            stock.in_proj_weight.chunk(3), stock.in_proj_bias.chunk(3), strict=True
        )
    )
    weight, bias = stock.out_proj.weight, stock.out_proj.bias
    out = _linear(weight, bias, trained=weight.requires_grad)
    return Attention(q, k, v, out, stock.num_heads, batch_first=stock.batch_first)


def _fused(attention: Any) -> nn.MultiheadAttention:
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    out, trained = attention.out_proj, any(x.weight.requires_grad for x in linears)
    stock = nn.MultiheadAttention(
        out.out_features, attention.heads, batch_first=attention.batch_first, device="meta"
    )
    for name in ("weight", "bias"):
        packed = torch.cat([getattr(x, name) for x in linears]).detach()
        setattr(stock, f"in_proj_{name}", nn.Parameter(packed, trained))
        setattr(stock.out_proj, name, getattr(out, name))
    return stock


def _stock(pool: Any) -> nn.Module:
    from open_clip.modified_resnet import AttentionPool2d

    stock: nn.Module = AttentionPool2d(1, 1, pool.num_heads)
    for name in ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj"):
        setattr(stock, name, getattr(pool, name))
    return stock
