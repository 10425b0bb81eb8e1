"""Low-rank updates of CLIP's matrices: y = W x + b + s B A dropout(x), with W and b frozen.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685; in CLIP, Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of
Vision-Language Models", CVPR Workshops 2024, https://arxiv.org/abs/2405.18541. CLIP-LoRA's paper
speaks of a scale s of 1, its code computes alpha / sqrt(r); the code made its numbers, so that is
the default. Its code also multiplies B A out, for a product as dear as W's; here x goes through A
and then B.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cache.errors import UserError, unknown

Towers = Literal["both", "text", "image"]
Position = Literal["all", "bottom", "mid", "up", "half-bottom", "half-up"]
Matrix = Literal["q", "k", "v", "o", "fc1", "fc2"]
Scaling = Literal["sqrt", "rank"]

TWELFTHS = {  # of a tower's depth; at 12 blocks CLIP-LoRA's
    "all": (0, 12),
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-bottom": (0, 6),
    "half-up": (6, 12),
}
IN_BLOCK = {
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "o": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
IN_POOL = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "c_proj"}
BLOCKS = {"text": "transformer.resblocks", "image": "visual.transformer.resblocks"}


class LoRA(nn.Linear):
    """An `nn.Linear` with a low-rank update beside its weight, at first of no effect.

    Attributes:
        A: (r, in), drawn as `nn.Linear` draws its weight (Kaiming-uniform, a = sqrt 5).
        B: (out, r), zero.
        scale: s, which is alpha / sqrt(r) ("sqrt") or alpha / r ("rank").
    """

    def __init__(
        self,
        plain: nn.Linear,
        rank: int,
        alpha: float = 1.0,
        *,
        dropout: float = 0.0,
        scaling: Scaling = "sqrt",
        generator: torch.Generator,
    ) -> None:
        """Take over the weight and bias of `plain`, which become frozen."""
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        for parameter in plain.parameters():
            parameter.requires_grad_(False)
        self.scale = alpha / (math.sqrt(rank) if scaling == "sqrt" else rank)
        self.dropout = nn.Dropout(dropout)
        drawn = torch.empty(rank, plain.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(drawn.to(self.weight))
        self.B = nn.Parameter(self.weight.new_zeros(plain.out_features, rank))
        self.unmerged: Tensor | None
        self.register_buffer("unmerged", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in)."""
        y = super().forward(x)
        if self.unmerged is not None:
            return y
        return y + self.scale * linear(linear(self.dropout(x), self.A), self.B)

    def delta(self) -> Tensor:
        """The update s B A, (out, in)."""
        return self.scale * self.B @ self.A

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight, to run at the price of a plain matrix; no dropout then."""
        if self.unmerged is None:
            self.unmerged = self.weight.data
            self.weight.data = self.unmerged + self.delta()

    def unmerge(self) -> None:
        """Put the weight of before back, to the bit."""
        if self.unmerged is not None:
            self.weight.data, self.unmerged = self.unmerged, None


def attach_lora(
    model: nn.Module,
    *,
    towers: Towers = "both",
    matrices: Sequence[Matrix] = ("q", "k", "v"),
    position: Position = "all",
    rank: int = 2,
    alpha: float = 1.0,
    dropout: float = 0.0,
    scaling: Scaling = "sqrt",
    generator: torch.Generator,
) -> dict[str, LoRA]:
    """Put a pair beside each chosen matrix, in place; path in the model -> pair, text tower first.

    Args:
        model: An unfused open_clip CLIP.
        towers: Which of the two.
        matrices: Attention's query, key, value and output projections, and the MLP's two.
        position: Which blocks: all, a third or a half of the depth, counted from the input. Thirds
            and halves are rounded outwards: none is empty, and where the depth does not divide,
            neighbors share a block. A ResNet has one attention, which belongs to every position.
        rank: r.
        alpha: Numerator of the scale.
        dropout: Share of inputs to A that are zeroed in training mode.
        scaling: See `LoRA`.
        generator: Draws A, in the order of the result.

    Raises:
        UserError: An unknown name, a number out of range, or a tower without such a matrix.
    """
    if rank < 1:
        raise UserError(f"rank must be 1 or more; got {rank}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be in [0, 1); got {dropout}; CLIP-LoRA's is 0.25")
    if scaling not in get_args(Scaling):
        raise unknown("scaling", scaling, get_args(Scaling))
    pairs = {}
    for path in matrix_paths(model, towers, matrices, position):
        parent, _, leaf = path.rpartition(".")
        plain = getattr(model.get_submodule(parent), leaf, None)
        if type(plain) is not nn.Linear:
            raise UserError(
                f"a pair goes beside a plain nn.Linear; {path} is a {type(plain).__name__}; "
                "unfuse the model, and attach once"
            )
        pairs[path] = LoRA(
            plain, rank, alpha, dropout=dropout, scaling=scaling, generator=generator
        ).train(plain.training)
        setattr(model.get_submodule(parent), leaf, pairs[path])
    return pairs


def parameters(pairs: Mapping[str, LoRA]) -> dict[str, nn.Parameter]:
    """All that is trained: "<path>.A" and "<path>.B" of each pair."""
    return {
        f"{path}.{factor}": parameter
        for path, pair in pairs.items()
        for factor, parameter in (("A", pair.A), ("B", pair.B))
    }


@torch.no_grad()
def load_weights(pairs: Mapping[str, LoRA], weights: Mapping[str, Tensor]) -> None:
    """Set the pairs to what was saved; a pair of which nothing was saved gets no effect.

    Raises:
        UserError: A saved factor has no pair here, or one of another shape.
    """
    here = parameters(pairs)
    for name, tensor in weights.items():
        if name not in here or here[name].shape != tensor.shape:
            got = tuple(here[name].shape) if name in here else "no such pair"
            raise UserError(
                f"{name} was saved as {tuple(tensor.shape)}; the model has {got}; attach with the "
                "saved rank, towers, matrices and position to the same architecture"
            )
    for name, parameter in here.items():
        if name in weights:
            parameter.copy_(weights[name])
        elif name.endswith(".B"):
            parameter.zero_()


def fold(model: nn.Module) -> None:
    """Replace every pair in the model by one plain matrix of the same function, in place."""
    for path, pair in list(model.named_modules()):
        if isinstance(pair, LoRA):
            pair.merge()
            plain = nn.Linear(pair.in_features, pair.out_features, bias=False, device="meta")
            plain.weight, plain.bias = pair.weight, pair.bias
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain.train(pair.training))


def matrix_paths(
    model: nn.Module, towers: Towers, matrices: Sequence[Matrix], position: Position
) -> list[str]:
    """Paths of the chosen matrices: text before image, block by block, in the order of `Matrix`."""
    if towers not in get_args(Towers):
        raise unknown("towers", towers, get_args(Towers))
    if position not in TWELFTHS:
        raise unknown("position", position, TWELFTHS)
    for matrix in matrices:
        if matrix not in IN_BLOCK:
            raise unknown("matrix", matrix, IN_BLOCK)
    if not matrices:
        raise UserError(f"no matrix to adapt; give one or more of {', '.join(IN_BLOCK)}")
    chosen = [matrix for matrix in IN_BLOCK if matrix in matrices]
    paths = []
    for tower in towers_of(towers):
        if tower == "image" and hasattr(model.visual, "attnpool"):
            if outside := [matrix for matrix in chosen if matrix not in IN_POOL]:
                raise UserError(
                    f"a ResNet's image tower has no matrix {', '.join(outside)}; "
                    f"choose of {', '.join(IN_POOL)}, or the text tower"
                )
            paths += [f"visual.attnpool.{IN_POOL[matrix]}" for matrix in chosen]
        else:
            blocks: Any = model.get_submodule(BLOCKS[tower])
            rows = blocks_of(position, len(blocks))
            paths += [f"{BLOCKS[tower]}.{i}.{IN_BLOCK[m]}" for i in rows for m in chosen]
    return paths


def towers_of(towers: Towers) -> tuple[str, ...]:
    """The towers' names in the order of all that is listed here."""
    return ("text", "image") if towers == "both" else (towers,)


def blocks_of(position: str, depth: int) -> range:
    """The numbers of a tower's blocks at that position."""
    first, last = TWELFTHS[position]
    return range(first * depth // 12, -(-last * depth // 12))
