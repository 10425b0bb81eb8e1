"""LION: an implicit layer before the frozen tower and one behind it.

Wang et al., "LION: Implicit Vision Prompt Tuning", AAAI 2024, https://arxiv.org/abs/2303.09992. No
code was found. The paper's layer itself is not restated here: it is the plainest one that provably
converges, on blocks of pixels before the tower and on its feature behind. Of the paper are the two
places and the rule by which parameters that matter little shrink. Not the optimizer called Lion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pixel_shuffle, pixel_unshuffle
from torch.optim import AdamW, Optimizer

from fewshot.checks import fraction, whole
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.equilibrium import ImplicitLayer
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only


class LotteryAdamW(AdamW):
    """AdamW on the parameters with the largest |p g|; the others move toward zero by the rate.

    A group's share of them is `crucial`. A parameter at zero has no say and stays there, once
    enough others are not.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        others: list[tuple[Tensor, Tensor, Tensor]] = []
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            scores = [(p * p.grad).abs() for p in moved]
            every = torch.cat([score.flatten() for score in scores])
            kept = max(1, round(group["crucial"] * len(every)))
            threshold = every.topk(kept).values[-1]
            for p, score in zip(moved, scores, strict=True):
                smaller = p.sign() * (p.abs() - group["lr"]).clamp_min(0)
                others.append((p, score < threshold, smaller))
        super().step()
        for p, shrinks, smaller in others:
            p.copy_(torch.where(shrinks, smaller, p))


@dataclass(frozen=True)
class LION(PEFTMethod):
    """An implicit layer of the image, added to it, and one of the feature, added to that.

    Attributes:
        dim: Numbers in a layer's state, d.
        crucial: Share of the layers' parameters that a step trains; 1 for all.
    """

    dim: int = 16
    crucial: float = 0.9

    name: ClassVar[str] = "lion"
    summary: ClassVar[str] = "Adds a small network to each photo and one to what the model sees."
    unfoldable: ClassVar[str] = "it changes the pixels, before any weight of the model"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "dim")
        fraction(self, "crucial", above_zero=True, hint="1 is all")

    def insert(self, clip: Clip) -> Inserted:
        """Layers that add zero at first, before whatever the image tower begins with and behind."""
        size, features = clip.preprocess.size, int(clip.identity["dim"])
        side = next(n for n in range(16, 0, -1) if size % n == 0)
        generator = torch.Generator().manual_seed(self.seed)
        before = ImplicitLayer(3 * side**2, self.dim, generator).to(clip.device)
        behind = ImplicitLayer(features, self.dim, generator).to(clip.device)
        encode = clip.model.encode_image

        def enriched(pixels: Tensor) -> Tensor:
            blocks = pixel_unshuffle(pixels, side).movedim(1, -1)  # (B, H / n, W / n, 3 n^2)
            prompt = before(blocks.flatten(0, 2)).view(blocks.shape).movedim(-1, 1)
            feature = encode(pixels + pixel_shuffle(prompt, side))
            standard = normalize(feature.float(), dim=-1) * features**0.5  # numbers around 1
            out: Tensor = standard + behind(standard)
            return out

        clip.model.encode_image = enriched
        layers = nn.ModuleDict({"before": before, "behind": behind})
        return dict(layers.named_parameters()), ()

    def optimizer(self, learner: Learner) -> Optimizer:
        """AdamW on the layers' crucial parameters, and on all of a trained head."""
        groups: list[dict[str, Any]] = [
            {
                "params": [p for name, p in learner.parameters.items() if (name == "head") == head],
                "crucial": 1.0 if head else self.crucial,
            }
            for head in (False, True)
        ]
        return LotteryAdamW(
            [group for group in groups if group["params"]],
            lr=self.lr, weight_decay=self.weight_decay, fused=False,
        )  # fmt: skip
