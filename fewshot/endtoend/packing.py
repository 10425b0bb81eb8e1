"""Prompts end to end in one row of tokens, and who may see whom there."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, eq=False)
class Prompts:
    """The attention mask of C prompts in one row of tokens, those that all share coming once.

    The row is the P shared tokens, then each prompt's own tokens, one prompt after the other and
    no padding in between. A token sees itself and what precedes it in its prompt, shared or own;
    of other prompts nothing. So a block computes what it would for the prompts one by one, but the
    shared tokens once. Blocks take this for their `attn_mask` and only `Attention` can read it.

    Attributes:
        shared: P.
        shape: C and S, the maximum number of own tokens.
        places: (T,) place of the row's own tokens in a flattened (C, S) table of them.
    """

    shared: int
    shape: tuple[int, int]
    places: Tensor

    @classmethod
    def of(cls, shared: int, lengths: Tensor) -> Self:
        """For `shared` common tokens and (C,) `lengths`, the number of each prompt's own."""
        size = int(lengths.max())
        own = torch.arange(size, device=lengths.device) < lengths[:, None]
        return cls(shared, (len(lengths), size), own.flatten().nonzero()[:, 0])

    def to(self, dtype: torch.dtype) -> Self:
        """Itself: open_clip's blocks cast their mask to the type of the tokens."""
        return self

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention output of the tokens, (1, H, P + T, d), from q, k and v of that shape."""
        (c, s), p, (_, h, _, d) = self.shape, self.shared, q.shape
        shared = q[0, :, :p]
        if p:
            first, seen, value = (x[:, :, :p] for x in (q, k, v))
            shared = scaled_dot_product_attention(first, seen, value, is_causal=True)[0]
        own_q, own_k, own_v = (self._table(x[0, :, p:]) for x in (q * d**-0.5, k, v))
        # Two products instead of one with the shared keys repeated C times; padding stands after
        # a prompt's own tokens, so causality hides it too.
        to_shared = own_q @ k[0, :, :p].transpose(1, 2)  # (H, C S, P)
        to_own = own_q.view(h * c, s, d) @ own_k.view(h * c, s, d).transpose(1, 2)
        future = torch.ones(s, s, dtype=torch.bool, device=q.device).triu(1)
        to_own = to_own.masked_fill(future, -torch.inf).view(h, c * s, s)
        weights = torch.cat([to_shared, to_own], dim=2).softmax(dim=2).to(v.dtype)
        own = (weights[:, :, p:].reshape(h * c, s, s) @ own_v.view(h * c, s, d)).view(h, c * s, d)
        own = own + weights[:, :, :p] @ v[0, :, :p]
        return torch.cat([shared, own[:, self.places]], dim=1)[None]

    def _table(self, own: Tensor) -> Tensor:
        """(H, C S, d) of the own tokens' (H, T, d), with zeros for padding."""
        c, s = self.shape
        return own.new_zeros(len(own), c * s, own.shape[2]).index_copy(1, self.places, own)

    def attend_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention output of each prompt's last token, (1, H, C, d), from q of that shape.

        Args:
            q: Queries of these tokens alone.
            k: (1, H, P + T, d), of all tokens, and so the next.
            v: Values.
        """
        (c, s), p, (_, h, _, d) = self.shape, self.shared, q.shape
        own_q = q[0] * d**-0.5
        own_k, own_v = (self._table(x[0, :, p:]).view(h, c, s, d) for x in (k, v))
        padding = torch.ones(c * s, dtype=torch.bool, device=q.device)
        padding[self.places] = False
        to_own = (own_q[:, :, None] @ own_k.transpose(2, 3))[:, :, 0]
        to_own = to_own.masked_fill(padding.view(c, s), -torch.inf)
        to_shared = own_q @ k[0, :, :p].transpose(1, 2)  # (H, C, P)
        weights = torch.cat([to_shared, to_own], dim=2).softmax(dim=2).to(v.dtype)
        own = (weights[:, :, None, p:] @ own_v)[:, :, 0]
        return (own + weights[:, :, :p] @ v[0, :, :p])[None]


@dataclass(frozen=True, eq=False)
class LastTokens:
    """The attention mask of the last token of each of the `prompts`: it sees the whole prompt."""

    prompts: Prompts

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Prompts.attend`, of (1, H, C, d) queries of these tokens alone."""
        return self.prompts.attend_last(q, k, v)
