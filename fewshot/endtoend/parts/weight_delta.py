"""Small updates of frozen weights: each a module that stands in for the one it updates.

All of them are affine in what the frozen module puts out or takes in, so `fold` turns each back
into plain weights of the same function. Each technique has a file of its own, with its module and
where in the towers that goes; steps, optimizer and classifier are those of `peft`. Learning rates
and decay are the papers', for other data and backbones than few shots of CLIP, so all but
CLIP-LoRA's are starting points.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position, matrix_paths, towers_of
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod


class WeightDelta(nn.Module):
    """A frozen module and an update of it.

    Attributes:
        plain: The module, with a weight, and a bias or None.
        shared: Factors that it has in common with other updates.
        by_token: It treats tokens one by one.
    """

    by_token: ClassVar[bool] = True

    def __init__(self, plain: nn.Module, shared: nn.ParameterDict | None = None) -> None:
        super().__init__()
        self.plain: Any = plain
        self.shared = nn.ParameterDict() if shared is None else shared

    @property
    def weight(self) -> Tensor:
        """The frozen weight; open_clip looks at its type."""
        weight: Tensor = self.plain.weight
        return weight

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a plain module of the same function."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """As `plain` with the folded weights; for a Linear."""
        return linear(x, *self.folded())

    @torch.no_grad()
    def fold(self) -> None:
        """Put the update into the frozen weights."""
        weight, bias = self.eval().folded()
        self.plain.weight = nn.Parameter(weight, requires_grad=False)
        self.plain.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


@dataclass(frozen=True)
class OnMatrices(PEFTMethod):
    """A technique that puts an update beside each of the chosen matrices.

    Attributes:
        matrices: Matrices that get an update, with commas: any of q, k, v, o, fc1, fc2.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    matrices: str = "q,v"
    position: Position = "all"

    unfoldable: ClassVar[str] = ""

    @abstractmethod
    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """The updates of one tower's matrices."""

    def insert(self, clip: Clip) -> Inserted:
        """The updates; factors that a tower's updates share are called by its name."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters: dict[str, nn.Parameter] = {}
        dropout: list[nn.Module] = []
        for tower in towers_of(self.towers):
            plain = linears(clip.model, tower, self.matrices, self.position)
            own, modules = put(clip.model, self.deltas(plain, generator), tower)
            parameters |= own
            dropout += modules
        return parameters, dropout


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of the one at that path."""
    parent, _, leaf = path.rpartition(".")
    new.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), leaf, new)


def fold(model: nn.Module) -> None:
    """Put every update in the model into plain weights of the same function, in place.

    An update of a norm goes into the matrices that it feeds, so nothing else may look at it.
    """
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, WeightDelta)]
    # Norms last: what adapts one goes into the matrices behind it, their own updates included.
    for path, delta in sorted(found, key=lambda pair: isinstance(pair[1].plain, nn.LayerNorm)):
        delta.fold()
        replace(model, path, delta.plain)


def put(model: nn.Module, deltas: Mapping[str, WeightDelta], tower: str = "") -> Inserted:
    """Put each update into the place of what it updates; what they train, and their dropout."""
    parameters: dict[str, nn.Parameter] = {}
    dropout: list[nn.Module] = []
    for path, delta in deltas.items():
        replace(model, path, delta)
        parameters |= {f"{tower}.{name}": p for name, p in delta.shared.items()}
        parameters |= {f"{path}.{name}": p for name, p in delta.named_parameters(recurse=False)}
        dropout += [m for m in delta.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    return parameters, dropout


def linears(model: Any, tower: str, matrices: str, position: Position) -> dict[str, nn.Linear]:
    """Path -> matrix of those chosen in a tower.

    Raises:
        UserError: The tower has no such matrix, or it is no plain one any more.
    """
    paths = matrix_paths(model, tower, matrices.split(","), position)
    found = {path: model.get_submodule(path) for path in paths}
    for path, layer in found.items():
        if type(layer) is not nn.Linear:
            raise UserError(
                f"an update goes beside a plain nn.Linear; {path} is a {type(layer).__name__}; "
                "attach to a model of its own"
            )
    return found


def drawn_weight(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """As `nn.Linear` draws its weight."""
    drawn = torch.empty(rows, columns)
    return nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)


def split(x: Tensor, parts: int) -> Tensor:
    """(..., parts, n / parts) of (..., n)."""
    return x.reshape(*x.shape[:-1], parts, -1)


def divided(plain: nn.Linear, factor: int) -> tuple[int, int]:
    """Output and input features over the factor."""
    if factor < 1 or plain.out_features % factor or plain.in_features % factor:
        raise UserError(
            f"factor must divide a matrix's {plain.out_features} and {plain.in_features} features; "
            f"got {factor}; use such as 8 or 16"
        )
    return plain.out_features // factor, plain.in_features // factor
