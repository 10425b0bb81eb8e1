"""Small updates beside the towers' weights: where, and with what step sizes, per technique.

What the updates compute is in `weight_delta`; how long they train, and against which classifier,
is for all of them what `tuned` says. Learning rates and decay are the papers', for other data and
backbones than few shots of CLIP, so all of them are starting points.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import nn

from cache.errors import UserError, unknown
from fewshot.endtoend import weight_delta
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.lora import BLOCKS, Position, Towers, blocks_of, matrix_paths, towers_of
from fewshot.endtoend.select import select
from fewshot.endtoend.tuned import Inserted, Tuned
from fewshot.endtoend.weight_delta import WeightDelta, replace


@dataclass(frozen=True)
class DiffFit(Tuned):
    """Biases, norms, and a gain on what each half of each block adds.

    Xie et al., 2023, https://arxiv.org/abs/2304.06648, made for diffusion; the gains start at 1.
    """

    name: ClassVar[str] = "difffit"

    def insert(self, clip: Clip) -> Inserted:
        """The gains stand at the output matrices of attention and MLP."""
        gains: dict[str, WeightDelta] = {
            path: weight_delta.Gain(linear)
            for tower in towers_of(self.towers)
            for path, linear in linears(clip.model, tower, "o,fc2", "all").items()
        }
        parameters, _ = put(clip.model, gains)
        biases = select(clip.model, self.towers, "biases")
        return {**parameters, **biases, **select(clip.model, self.towers, "norms")}, ()


@dataclass(frozen=True)
class OnMatrices(Tuned):
    """A technique that puts an update beside each of the chosen matrices.

    Attributes:
        matrices: Of q, k, v, o, fc1 and fc2, those that get one, with commas.
        position: Which blocks, counted from the input.
    """

    matrices: str = "q,v"
    position: Position = "all"

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


@dataclass(frozen=True)
class FullDelta(OnMatrices):
    """An update as large as the matrix: fine-tuning that decays to the pretrained weights.

    Its weight decay is what L2-SP's penalty is, https://arxiv.org/abs/1802.01483, decoupled.
    """

    matrices: str = "q,k,v,o,fc1,fc2"
    lr: float = 1e-5
    weight_decay: float = 0.1

    name: ClassVar[str] = "full-delta"

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + D."""
        return {path: weight_delta.FullDelta(linear) for path, linear in plain.items()}


@dataclass(frozen=True)
class KronA(OnMatrices):
    """One Kronecker product per matrix.

    Attributes:
        factor: Rows and columns of its first factor.
        scale: s.
    """

    factor: int = 32
    scale: float = 1.0

    name: ClassVar[str] = "krona"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sizes(factor=self.factor)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s A kron B."""
        return {
            path: weight_delta.KronA(linear, self.factor, self.scale, generator=generator)
            for path, linear in plain.items()
        }


@dataclass(frozen=True)
class KAdaptation(OnMatrices):
    """Sums of Kronecker products of rank-one matrices, one of which all matrices share.

    Attributes:
        terms: n, products in the sum.
        factor: Rows and columns of the shared ones.
        scale: s.
        dropout: Share of an update's entries that are zeroed in training.
    """

    terms: int = 32
    factor: int = 32
    scale: float = 160.0
    dropout: float = 0.5

    name: ClassVar[str] = "kadaptation"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sizes(terms=self.terms, factor=self.factor)
        _require_share(self.dropout)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s sum_i (p_i q_i') kron (u_i v_i')."""
        like = next(iter(plain.values())).weight
        shared = weight_delta.KAdaptation.shared_factors(like, self.terms, self.factor, generator)
        return {
            path: weight_delta.KAdaptation(
                linear, shared, self.scale, dropout=self.dropout, generator=generator
            )
            for path, linear in plain.items()
        }


@dataclass(frozen=True)
class FacT(OnMatrices):
    """Low-rank updates whose outer factors all matrices of a tower share.

    The authors choose rank (16 or 32) and scale (0.01 to 100) for each dataset.

    Attributes:
        rank: r.
        scale: s.
        tucker: Take the inner factors, too, from r common ones (FacT-TK instead of FacT-TT).
        dropout: Share of the inner factors' outputs that are zeroed in training.
    """

    matrices: str = "q,k,v,o,fc1,fc2"
    weight_decay: float = 1e-4
    rank: int = 16
    scale: float = 1.0
    tucker: bool = False
    dropout: float = 0.1

    name: ClassVar[str] = "fact"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sizes(rank=self.rank)
        _require_share(self.dropout)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s V S U."""
        shared = weight_delta.FacT.shared_factors(
            list(plain.values()), self.rank, generator, tucker=self.tucker
        )
        deltas: dict[str, WeightDelta] = {}
        slot = 0
        for path, linear in plain.items():
            delta = weight_delta.FacT(
                linear,
                shared,
                self.scale,
                dropout=self.dropout,
                generator=generator,
                first_slot=slot if self.tucker else None,
            )
            deltas[path] = delta
            slot += delta.into * delta.out
        return deltas


@dataclass(frozen=True)
class SSF(Tuned):
    """A gain and an offset for every channel of what every layer puts out.

    Attributes:
        noise: Deviation from 1 and 0 of the gains and offsets at the start, where the authors have
            0.02; 0 starts from CLIP as it is.
    """

    lr: float = 1e-2
    weight_decay: float = 0.0  # the authors decay matrices alone, and there is none here
    noise: float = 0.0

    name: ClassVar[str] = "ssf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise UserError(f"noise must be 0 or more; got {self.noise}; the authors' is 0.02")

    def insert(self, clip: Clip) -> Inserted:
        """After every matrix, norm and convolution of the tower."""
        generator = torch.Generator().manual_seed(self.seed)
        kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d)
        return put(
            clip.model,
            {
                path: weight_delta.SSF(module, self.noise, generator=generator)
                for tower in towers_of(self.towers)
                for path, module in clip.model.named_modules()
                if isinstance(module, kinds) and path.startswith("visual.") == (tower == "image")
            },
        )


@dataclass(frozen=True)
class RepAdapter(Tuned):
    """A narrow linear adapter between each norm and the matrices that it feeds.

    The authors choose the scale (0.1 to 10) for each dataset.

    Attributes:
        dim: h, the adapter's width.
        groups: g; the second of its matrices writes each share of the channels from its own hidden
            units.
        scale: s.
        dropout: Share of hidden units that are zeroed in training.
        position: Which blocks, counted from the input.
    """

    weight_decay: float = 1e-4
    dim: int = 8
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "repadapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sizes(dim=self.dim, groups=self.groups)
        _require_share(self.dropout)
        if self.position not in get_args(Position):
            raise unknown("position", self.position, get_args(Position))

    def insert(self, clip: Clip) -> Inserted:
        """Before attention and before the MLP of each block."""
        if self.towers != "text" and hasattr(clip.model.visual, "attnpool"):
            raise UserError(
                "repadapter goes between a block's norms and matrices, which a ResNet's image "
                "tower does not have; use towers=text, or a ViT"
            )
        generator = torch.Generator().manual_seed(self.seed)
        adapters: dict[str, WeightDelta] = {}
        for tower in towers_of(self.towers):
            blocks: Any = clip.model.get_submodule(BLOCKS[tower])
            for i in blocks_of(self.position, len(blocks)):
                block = blocks[i]
                attention = [block.attn.q_proj, block.attn.k_proj, block.attn.v_proj]
                for norm, fed in (("ln_1", attention), ("ln_2", [block.mlp.c_fc])):
                    adapters[f"{BLOCKS[tower]}.{i}.{norm}"] = weight_delta.RepAdapter(
                        getattr(block, norm),
                        fed,
                        self.dim,
                        self.groups,
                        self.scale,
                        dropout=self.dropout,
                        generator=generator,
                    )
        return put(clip.model, adapters)


def linears(model: Any, tower: str, matrices: str, position: Position) -> dict[str, nn.Linear]:
    """Path -> matrix of those chosen in a tower.

    Raises:
        UserError: The tower has no such matrix, or it is no plain one any more.
    """
    chosen: Towers = "image" if tower == "image" else "text"
    names: Any = matrices.split(",")
    found = {
        path: model.get_submodule(path) for path in matrix_paths(model, chosen, names, position)
    }
    for path, linear in found.items():
        if type(linear) is not nn.Linear:
            raise UserError(
                f"an update goes beside a plain nn.Linear; {path} is a {type(linear).__name__}; "
                "attach to a model of its own"
            )
    return found


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


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} must be 1 or more; got {size}")


def _require_share(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be in [0, 1); got {dropout}")
