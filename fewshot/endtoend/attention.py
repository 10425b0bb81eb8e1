"""CLIP's attention taken apart: one `nn.Linear` each for queries, keys, values and the output.

open_clip packs the first three into one matrix and never calls the module of the fourth, so there
is nothing to hang a low-rank update or its input dropout on. `unfuse` puts modules of the same
function in place, `fuse` puts open_clip's back for export. timm's attention is in
`timm_attention`; nothing else in this project looks inside attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewshot.endtoend import timm_attention
from fewshot.endtoend.packing import LastTokens, Prompts
from fewshot.endtoend.timm_attention import plain_linear, require_plain


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
        attn_mask: Tensor | Prompts | LastTokens | None = None,
    ) -> tuple[Tensor, None]:
        """The attended tokens, shaped as `query`; and None, whether weights are wanted or not.

        Args:
            query: The tokens that look.
            key: The tokens they look at.
            value: What they see of those.
            need_weights: Not heeded; open_clip never asks for them.
            attn_mask: (L, L') to add to the logits, (B H, L, L') of each head, (B, 1, L, L') of
                all heads, or packed prompts'.
        """
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (_split(x, self.heads) for x in (q, k, v))
        if isinstance(attn_mask, Prompts | LastTokens):
            heads = attn_mask.attend(q, k, v)
        else:
            mask = None if attn_mask is None else attn_mask.to(q.dtype)
            if mask is not None and mask.ndim == 3:
                mask = mask.view(-1, self.heads, *mask.shape[1:])
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
        return self._attended(grid, 1)[:, 0]

    def every_query(self, grid: Tensor) -> Tensor:
        """(B, 1 + h w, D): that feature, and what would come with each place as the query."""
        return self._attended(grid, None)

    def _attended(self, grid: Tensor, n_queries: int | None) -> Tensor:
        tokens = grid.flatten(2).transpose(1, 2)  # (B, h w, W)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        q, k, v = self.q_proj(tokens[:, :n_queries]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (_split(x, self.num_heads) for x in (q, k, v))
        heads = scaled_dot_product_attention(q, k, v)
        features: Tensor = self.c_proj(heads.transpose(1, 2).flatten(2))
        return features


def unfuse(model: nn.Module) -> None:
    """Take apart every attention of an open_clip model's towers, open_clip's and timm's, in place.

    Weights are the same, features equal to rounding; what was frozen stays frozen. Attention of
    other kinds is left as it is.
    """
    from open_clip.modified_resnet import AttentionPool2d

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            if _is_open_clips(model, name):
                _swap(model, name, _unfused(module))
        elif isinstance(module, AttentionPool2d):
            _swap(model, name, AttentionPool(module))
        else:
            timm_attention.unfuse(module)


def fuse(model: nn.Module) -> None:
    """Put open_clip's and timm's own attention back, in place.

    Raises:
        UserError: Something other than a plain `nn.Linear` stands in one of ours.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention | AttentionPool):
            for child, layer in module.named_children():
                require_plain(f"{name}.{child}", layer)
            _swap(model, name, _fused(module) if isinstance(module, Attention) else _stock(module))
        else:
            timm_attention.fuse(module, name)


def _swap(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    new.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, new)


def _is_open_clips(model: nn.Module, name: str) -> bool:
    """True where open_clip's own code calls the module at that path."""
    return type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("open_clip")


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, H, L, d) of (B, L, H d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _unfused(stock: Any) -> Attention:
    if stock.in_proj_weight is None:  # keys and values of another width than queries
        weights = (stock.q_proj_weight, stock.k_proj_weight, stock.v_proj_weight)
    else:
        weights = stock.in_proj_weight.chunk(3)
    q, k, v = (
        plain_linear(weight, bias, trained=weight.requires_grad)
        for weight, bias in zip(weights, stock.in_proj_bias.chunk(3), strict=True)
    )
    weight, bias = stock.out_proj.weight, stock.out_proj.bias
    out = plain_linear(weight, bias, trained=weight.requires_grad)
    return Attention(q, k, v, out, stock.num_heads, batch_first=stock.batch_first)


def _fused(attention: Any) -> nn.Module:
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    out, trained = attention.out_proj, any(x.weight.requires_grad for x in linears)
    stock: Any = nn.MultiheadAttention(
        out.out_features,
        attention.heads,
        kdim=attention.k_proj.in_features,
        vdim=attention.v_proj.in_features,
        batch_first=attention.batch_first,
        device="meta",
    )
    bias = torch.cat([x.bias for x in linears]).detach()
    stock.in_proj_bias = nn.Parameter(bias, trained)
    if stock.in_proj_weight is None:
        for letter, x in zip("qkv", linears, strict=True):
            setattr(stock, f"{letter}_proj_weight", nn.Parameter(x.weight.detach(), trained))
    else:
        packed = torch.cat([x.weight for x in linears]).detach()
        stock.in_proj_weight = nn.Parameter(packed, trained)
    stock.out_proj.weight, stock.out_proj.bias = out.weight, out.bias
    module: nn.Module = stock
    return module


def _stock(pool: Any) -> nn.Module:
    from open_clip.modified_resnet import AttentionPool2d

    stock: nn.Module = AttentionPool2d(1, 1, pool.num_heads)
    for name in ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj"):
        setattr(stock, name, getattr(pool, name))
    return stock
