"""A choice of CLIP's own parameters, by what they belong to and where it lies.

Image tower and text tower are told apart by name, as open_clip has them: all of the image tower
begins with "visual.", and the temperature belongs to neither. timm's names differ within.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from cache.errors import UserError
from fewshot.endtoend.parts.blocks import Towers, blocks_path

Kind = Literal["norms", "biases", "all"]

BEFORE = {  # how the names of what comes before a tower's blocks begin
    "image": (
        *("class_embedding", "positional_embedding", "conv", "bn", "ln_pre"),
        *("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"),
    ),
    "text": ("token_embedding", "positional_embedding"),
}
NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def select(model: Any, towers: Towers, kind: Kind, last: int = 0) -> dict[str, nn.Parameter]:
    """Path in the model -> parameter, all of them now with a gradient and none with one before.

    Args:
        model: An unfused model, frozen.
        towers: Which of the two.
        kind: Scale and shift of the norms (a ResNet's batch norms keep their statistics); every
            bias, those of the norms too; or all there is.
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.

    Raises:
        UserError: There are none, or the tower has fewer blocks.
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
                if not parameter.requires_grad and (
                    kind == "all"
                    or (kind == "norms" and isinstance(owners[path], NORMS))
                    or (kind == "biases" and path.rpartition(".")[2] == "bias")
                ):
                    parameter.requires_grad_()
                    chosen[path] = parameter
    if not chosen:
        wanted = "parameters" if kind == "all" else kind
        raise UserError(
            f"the {towers} tower of this {type(model).__name__} has no {wanted} left to train; use "
            "another method, such as full-fine-tuning, or attach to a model of its own"
        )
    return chosen


def _from_block(model: Any, tower: str, last: int) -> Iterator[tuple[str, nn.Parameter]]:
    """A tower's parameters, from its last so many blocks on."""
    blocks = _blocks(model, tower) if last else []
    if not 0 <= last <= len(blocks):
        raise UserError(
            f"last must be 0, for all, to {len(blocks)}, the {tower} tower's blocks; got {last}"
        )
    left_out = tuple(f"{path}." for path in blocks[: len(blocks) - last]) if last else ()
    for path, parameter in model.named_parameters():
        inside = path.removeprefix("visual.")
        if (inside != path) != (tower == "image") or path in ("logit_scale", "logit_bias"):
            continue
        inside = inside.removeprefix("trunk.").removeprefix("text.")
        if last and (inside.startswith(BEFORE[tower]) or path.startswith(left_out)):
            continue
        yield path, parameter


def _blocks(model: Any, tower: str) -> list[str]:
    """Paths of a tower's residual blocks, from the input on."""
    if tower == "image" and hasattr(model.visual, "attnpool"):
        stages = [f"visual.layer{i}" for i in (1, 2, 3, 4)]
    else:
        stages = [blocks_path(model, tower, "a choice of the last blocks")]
    return [f"{stage}.{i}" for stage in stages for i in range(len(model.get_submodule(stage)))]
