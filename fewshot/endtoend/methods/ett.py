"""eTT's attentive prefix: keys and values that a small network makes of one prototype per class.

Xu et al., "Exploring Efficient Few-shot Adaptation for Vision Transformers", TMLR 2022,
https://arxiv.org/abs/2301.02419. Prototypes start as the class means of patch tokens, weighted by
the last block's attention, and are trained. As in the authors' code attention is taken before its
softmax, then normalized over the patches for each head, and the heads are averaged. Their domain
residual adapter, a vector behind each half of a block, and the loss that holds prefixes near the
prototypes are not here. It does not start as zero-shot CLIP, as `prefix` does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.blocks import PLACES, holder_of_projections, is_timms
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear
from fewshot.endtoend.parts.weight_delta import split


class Prototypes(nn.Module):
    """Hidden units (C, W / 2) of the C prototypes, for all prefixes.

    Attributes:
        prototypes: (C, W).
        down: W to W / 2.
        measuring: True while prototypes are taken, of the model without prefixes.
    """

    def __init__(self, n_classes: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(n_classes, width, generator=generator))
        self.down = linear(width, width // 2, generator)
        self.measuring = False

    def forward(self) -> Tensor:
        """(C, W / 2)."""
        hidden: Tensor = self.down(self.prototypes).tanh()
        return hidden


class ProjectedPrefix(nn.Module):
    """A projection to keys or values, of tokens (B, L, W), with C ones of prototypes before them.

    Attributes:
        plain: The projection.
        hidden: Of the prototypes.
        up: W / 2 to W.
    """

    def __init__(self, plain: nn.Module, hidden: Prototypes, generator: torch.Generator) -> None:
        super().__init__()
        self.plain, self.hidden = plain, hidden
        width = hidden.prototypes.shape[1]
        self.up = linear(width // 2, width, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, C + L, W)."""
        projected: Tensor = self.plain(tokens)
        if self.hidden.measuring:
            return projected
        prefix = self.up(self.hidden()).to(projected.dtype).expand(len(tokens), -1, -1)
        return torch.cat([prefix, projected], dim=1)


@dataclass(frozen=True)
class ETT(PEFTMethod):
    """One further key and value per class in every attention, made of the class's patches."""

    lr: float = 5e-4

    name: ClassVar[str] = "ett"
    summary: ClassVar[str] = "As prefix, begun from what your photos of each class look like."

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)

    def insert(self, clip: Clip) -> Inserted:
        """Nothing: how many prefixes there are depends on the classes."""
        return {}, ()

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Put prefixes into every block; they wait for the few shots to start from.

        Raises:
            UserError: The image tower is no vision transformer of open_clip's own.
        """
        vit = ImageTokens.of(clip, self.name)
        if is_timms(vit.blocks[0]):
            raise UserError("ett needs open_clip's own vision transformer; use prefix with timm's")
        learner = super().attach(clip, classnames, templates)
        generator = torch.Generator().manual_seed(self.seed)
        hidden = Prototypes(len(classnames), vit.width, generator).to(clip.device)
        parameters = dict(learner.parameters)
        parameters |= {f"hidden.{name}": p for name, p in hidden.named_parameters()}
        for i, block in enumerate(vit.blocks):
            for matrix in ("k_proj", "v_proj"):
                prefix = ProjectedPrefix(getattr(block.attn, matrix), hidden, generator)
                setattr(block.attn, matrix, prefix.to(clip.device))
                path = f"{PLACES['image'][0]}.{i}.attn.{matrix}.up"
                parameters |= {f"{path}.{name}": p for name, p in prefix.up.named_parameters()}

        def calibrate(batches: Iterable[Tensor], labels: Tensor) -> None:
            kept = list(batches)
            hidden.measuring = True
            try:
                start = prototypes(clip, vit, kept, labels, len(classnames))
                if learner.calibrate is not None:
                    learner.calibrate(kept, labels)
            finally:
                hidden.measuring = False
            with torch.no_grad():
                hidden.prototypes.copy_(start)

        return replace(
            learner, parameters=parameters, images=clip.model.encode_image, calibrate=calibrate
        )


@torch.no_grad()
def prototypes(
    clip: Clip, vit: ImageTokens, batches: Iterable[Tensor], labels: Tensor, n_classes: int
) -> Tensor:
    """(C, W) means over a class's images of their patches, weighted by the last block's attention.

    Args:
        clip: The model, without prefixes.
        vit: Its tokens.
        batches: All N images, in order, (B, 3, H, W) at a time.
        labels: (N,) class ids.
        n_classes: C.
    """
    seen: dict[str, Tensor] = {}
    last: Any = holder_of_projections(vit.blocks[-1])

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any = None) -> None:
            seen[name] = inputs[0] if output is None else output

        return hook

    handles = [
        vit.blocks[0].register_forward_pre_hook(keep("tokens")),
        last.q_proj.register_forward_hook(keep("q")),
        last.k_proj.register_forward_hook(keep("k")),
    ]
    means = []
    try:
        with clip.autocast():
            for pixels in batches:
                clip.model.encode_image(pixels.to(clip.device))
                q, k = (split(seen[x].float(), vit.heads) for x in "qk")
                logits = torch.einsum("bhd,blhd->bhl", q[:, 0], k[:, vit.before :])
                weights = (logits * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
                patches = seen["tokens"][:, vit.before :].float()
                means.append(torch.einsum("bl,blw->bw", weights, patches))
    finally:
        for handle in handles:
            handle.remove()
    of_images, at = torch.cat(means), labels.to(clip.device)
    sums = of_images.new_zeros(n_classes, of_images.shape[1]).index_add_(0, at, of_images)
    return sums / torch.bincount(at, minlength=n_classes)[:, None]
