"""Training some of CLIP's own parameters, chosen by what they belong to and where it lies.

Image tower and text tower are told apart by name, as open_clip has them: all of the image tower
begins with "visual.", and the temperature belongs to neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.lora import Towers
from fewshot.endtoend.parts.peft import Head, Inserted, Tuned

Kind = Literal["norms", "biases", "all"]

BEFORE = {  # how the names of what comes before a tower's blocks begin
    "image": ("class_embedding", "positional_embedding", "conv", "bn", "ln_pre"),
    "text": ("token_embedding", "positional_embedding"),
}
NORMS = (nn.LayerNorm, nn.BatchNorm2d)


@dataclass(frozen=True)
class LiveLinearProbe(Tuned):
    """The classes' text features, trained; the towers stay as they are.

    With a store it learns from stored features, else from new crops of the images in every epoch.
    """

    head: Head = "tuned"

    name: ClassVar[str] = "live-linear-probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head != "tuned":
            raise UserError("head must be tuned: a linear probe trains nothing else; got frozen")

    @property
    def on_images(self) -> bool:
        """No: the towers stay as they are."""
        return False

    def insert(self, clip: Clip) -> Inserted:
        """Nothing."""
        return {}, ()


@dataclass(frozen=True)
class LNTune(Tuned):
    """Scale and shift of every norm; a ResNet's are batch norms, which keep their statistics.

    Steps and step size are those of 2SFS, https://arxiv.org/abs/2503.11609, which tunes the norms
    of both towers and keeps the last 40 % of the steps for a linear classifier alone.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    iterations_per_shot: int = 300
    lr: float = 2e-4
    last: int = 0

    name: ClassVar[str] = "ln-tune"

    def insert(self, clip: Clip) -> Inserted:
        """The norms' own parameters."""
        return select(clip.model, self.towers, "norms", self.last), ()


@dataclass(frozen=True)
class BitFit(Tuned):
    """Every bias, those of the norms too. Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    last: int = 0

    name: ClassVar[str] = "bitfit"

    def insert(self, clip: Clip) -> Inserted:
        """The biases."""
        return select(clip.model, self.towers, "biases", self.last), ()


@dataclass(frozen=True)
class FullFineTuning(Tuned):
    """Every parameter of a tower, or those of its last blocks.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    lr: float = 1e-5
    weight_decay: float = 0.1
    last: int = 0

    name: ClassVar[str] = "full-fine-tuning"

    def insert(self, clip: Clip) -> Inserted:
        """All there is but the temperature."""
        return select(clip.model, self.towers, "all", self.last), ()


def select(model: Any, towers: Towers, kind: Kind, last: int = 0) -> dict[str, nn.Parameter]:
    """Path in the model -> parameter, all of them now with a gradient.

    Args:
        model: An unfused open_clip CLIP, frozen.
        towers: Which of the two.
        kind: Scale and shift of the norms (a ResNet's batch norms keep their statistics); every
            bias, those of the norms too; or all there is.
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.

    Raises:
        UserError: The tower has fewer blocks.
    """
    owners = {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    chosen: dict[str, nn.Parameter] = {}
    for tower in ("text", "image"):
        if towers in (tower, "both"):
            for path, parameter in _from_block(model, tower, last):
                if (
                    kind == "all"
                    or (kind == "norms" and isinstance(owners[path], NORMS))
                    or (kind == "biases" and path.rpartition(".")[2] == "bias")
                ):
                    parameter.requires_grad_()
                    chosen[path] = parameter
    return chosen


def _from_block(model: Any, tower: str, last: int) -> Iterator[tuple[str, nn.Parameter]]:
    """A tower's parameters, from its last so many blocks on."""
    blocks = _blocks(model, tower)
    if not 0 <= last <= len(blocks):
        raise UserError(
            f"last must be 0, for all, to {len(blocks)}, the {tower} tower's blocks; got {last}"
        )
    left_out = tuple(f"{path}." for path in blocks[: len(blocks) - last]) if last else ()
    for path, parameter in model.named_parameters():
        inside = path.removeprefix("visual.")
        if (inside != path) != (tower == "image") or path in ("logit_scale", "logit_bias"):
            continue
        if last and (inside.startswith(BEFORE[tower]) or path.startswith(left_out)):
            continue
        yield path, parameter


def _blocks(model: Any, tower: str) -> list[str]:
    """Paths of a tower's residual blocks, from the input on."""
    if tower == "image" and hasattr(model.visual, "attnpool"):
        stages = [f"visual.layer{i}" for i in (1, 2, 3, 4)]
    else:
        stages = ["visual.transformer.resblocks" if tower == "image" else "transformer.resblocks"]
    return [f"{stage}.{i}" for stage in stages for i in range(len(model.get_submodule(stage)))]
