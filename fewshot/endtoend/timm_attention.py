"""timm's attention taken apart: one `nn.Linear` each for queries, keys and values.

timm packs them into `qkv`, and its Eva keeps the biases apart from it. All else is timm's own code,
before and after: norms of queries and keys, rotary positions, gates, the norm before the output.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UserError


class SplitProjections(nn.Module):
    """Queries, keys and values side by side, as `qkv` puts them out."""

    def __init__(self, q_proj: nn.Module, k_proj: nn.Module, v_proj: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., 3 W) of (..., W)."""
        return torch.cat([self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)], dim=-1)


def unfuse(attention: Any) -> None:
    """Split a module of timm's if it is attention with a packed `qkv`, in place."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention

    eva = isinstance(attention, EvaAttention)
    if not (eva or isinstance(attention, Attention | AttentionRope)):
        return
    qkv: Any = attention.qkv
    kind = type(qkv)
    if kind is not nn.Linear:
        return
    weight, trained = qkv.weight, qkv.weight.requires_grad
    biases: list[Tensor | None] = [None] * 3
    if qkv.bias is not None:
        biases = list(qkv.bias.chunk(3))
    elif eva and attention.q_bias is not None:
        biases = [attention.q_bias, None, attention.v_bias]
        attention.q_bias = attention.k_bias = attention.v_bias = None
    parts = [plain_linear(*x, trained=trained) for x in zip(weight.chunk(3), biases, strict=True)]
    attention.qkv = SplitProjections(*parts).train(attention.training)


def fuse(attention: Any, name: str) -> None:
    """Pack what `unfuse` has split, in place; a module of another kind is left as it is.

    Args:
        attention: A module.
        name: Its path, for errors.

    Raises:
        UserError: A projection is no plain `nn.Linear`, or has a bias for which timm has no place.
    """
    from timm.models.eva import EvaAttention

    split = getattr(attention, "qkv", None)
    if not isinstance(split, SplitProjections):
        return
    parts: Any = list(split.children())
    for child, part in split.named_children():
        require_plain(f"{name}.{child}", part)
    weight = torch.cat([part.weight for part in parts])
    q, k, v = (part.bias for part in parts)
    eva = isinstance(attention, EvaAttention)
    if {q is None, v is None} != {q is None} or (k is None) != (eva or q is None):
        raise UserError(
            f"{name} was given a bias that timm's {type(attention).__name__} has no place for; "
            "use --to onnx"
        )
    trained = any(part.weight.requires_grad for part in parts)
    if eva and q is not None:
        attention.q_bias, attention.v_bias = q, v
        attention.register_buffer("k_bias", torch.zeros_like(q), persistent=False)
    bias = None if k is None else torch.cat([q, k, v])
    attention.qkv = plain_linear(weight, bias, trained=trained).train(split.training)


def plain_linear(weight: Tensor, bias: Tensor | None, *, trained: bool) -> nn.Linear:
    """An `nn.Linear` of copies of the weight and the bias, if there is one."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), trained)
    return linear


def require_plain(path: str, layer: nn.Module) -> None:
    """Raise unless the module is an `nn.Linear` with nothing beside it.

    Raises:
        UserError: It is another.
    """
    if type(layer) is not nn.Linear:
        raise UserError(
            f"open_clip's attention has plain matrices only; {path} is a {type(layer).__name__}; "
            "fold it into its matrix first"
        )
