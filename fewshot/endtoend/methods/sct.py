"""SCT: the most active channels of a tower's tokens, mapped linearly.

Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV
2024, https://arxiv.org/abs/2309.08513. Which channels those are is measured on the few shots before
training.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import one_of, positive, whole
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.blocks import Position
from fewshot.endtoend.parts.branch import Branch, Half, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear, patches


@dataclass(frozen=True)
class SCT(PEFTMethod):
    """A linear map among the most active channels, added to them behind a half of each block.

    Attributes:
        channels: Channels that are mapped, k; 32 in the code, 96 in the paper.
        after: Half of the block behind which the map is added: `attn` or `mlp`.
        scale: Scale of the map's output.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    channels: int = 32
    after: Half = "attn"
    scale: float = 1.0
    position: Position = "all"

    name: ClassVar[str] = "sct"
    summary: ClassVar[str] = "Adjusts only those parts of the model that your photos use most."

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "channels")
        positive(self, "scale")
        one_of(self, "after", ("attn", "mlp"))

    def insert(self, clip: Clip) -> Inserted:
        """A branch on the stream behind the half."""
        return insert_branches(
            self,
            clip,
            lambda width: {
                self.after: Branch(ChannelSubset(width, self.channels), "stream", scale=self.scale)
            },
            self.position,
        )

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The same with channels that wait for the few shots to be chosen by."""
        learner = super().attach(clip, classnames, templates)

        def calibrate(batches: Iterable[Tensor], labels: Tensor) -> None:
            batches = list(batches)
            choose_channels(clip, batches, labels)
            if learner.calibrate is not None:
                learner.calibrate(batches, labels)

        chosen = {
            path: core.channels
            for path, core in clip.model.visual.named_modules()
            if isinstance(core, ChannelSubset)
        }
        return replace(learner, calibrate=calibrate, chosen=chosen)


@torch.no_grad()
def choose_channels(clip: Clip, batches: Iterable[Tensor], labels: Tensor) -> None:
    """Let each `ChannelSubset` take the channels that are the most active on the few shots.

    Activity is the L2 norm over all patches of a class's images, and of that the mean over the
    classes; tokens before those of the patches, such as the class token, do not count.

    Args:
        clip: With untrained branches in it, which add nothing.
        batches: All N images, in order, (B, 3, H, W) at a time.
        labels: (N,) class ids.
    """
    n_patches = math.prod(patches(clip))
    squares: dict[ChannelSubset, list[Tensor]] = {}

    def collect(core: ChannelSubset, tokens: tuple[Tensor]) -> None:
        squares.setdefault(core, []).append(
            tokens[0][:, -n_patches:].float().square().sum(dim=1).cpu()
        )

    cores = [m for m in clip.model.visual.modules() if isinstance(m, ChannelSubset)]
    handles = [core.register_forward_pre_hook(collect) for core in cores]
    with clip.autocast():
        for pixels in batches:
            clip.model.encode_image(pixels.to(clip.device))
    for handle in handles:
        handle.remove()
    for core in cores:
        per_image = torch.cat(squares[core])  # (N, W)
        per_class = torch.zeros(int(labels.max()) + 1, per_image.shape[1])
        per_class.index_add_(0, labels, per_image)
        core.select(per_class.sqrt().mean(dim=0).to(clip.device))


class ChannelSubset(nn.Module):
    """A linear map among k of the W channels, zero elsewhere; it starts at zero.

    Attributes:
        channels: (k,) which; the first ones until `select` has run.
    """

    channels: Tensor

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        if k > width:
            raise UserError(f"channels must be at most the tower's width, {width}; got {k}")
        self.register_buffer("channels", torch.arange(k), persistent=False)
        self.map = linear(k, k, None)

    def select(self, salience: Tensor) -> None:
        """Take the k channels of largest (W,) salience."""
        self.channels.copy_(salience.topk(len(self.channels)).indices.sort().values)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W)."""
        mapped = self.map(tokens[..., self.channels])
        return torch.zeros_like(tokens, dtype=mapped.dtype).index_copy(-1, self.channels, mapped)
