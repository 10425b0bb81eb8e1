"""Optimal transport between the parts of an image and the prompts of a class, as PLOT has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot.endtoend.parts.learned_prompts import LearnedPrompts

EPS = 0.1  # weight of the plan's entropy
MOST_STEPS = 100
STILL = 0.01  # mean change of the scale r at which an image's plans are left as they are


def similarity(images: Tensor, text: Tensor) -> Tensor:
    """(B, C) mean cosines of an image's parts and a class's prompts, weighed by the best plan.

    The plan T (M, N) moves the same share 1/M of every part to prompts that get 1/N each, and
    maximizes the mean cosine plus 0.1 times its entropy. Gradients leave the plan as it is, as in
    the authors' code.

    Args:
        images: (B, M, D) parts of images, any norm.
        text: (N, C, D) prompts of classes, any norm.
    """
    with torch.autocast(images.device.type, enabled=False):
        parts, prompts = normalize(images.float(), dim=-1), normalize(text.float(), dim=-1)
        cosines = torch.einsum("bmd,ncd->bcmn", parts, prompts)
        plan = transport_plan(cosines.detach())
        return (plan * cosines).sum(dim=(2, 3))


@torch.no_grad()
def transport_plan(cosines: Tensor) -> Tensor:
    """The plans (B, C, M, N) that Sinkhorn's iteration finds for these cosines.

    It ends when the mean change of r, over an image's classes and parts, is below 0.01, and after
    100 steps. Where the authors' code has one mean over a batch, here each image has its own, so
    that its logits do not depend on the images beside it.
    """
    kernel = torch.exp((cosines - 1) / EPS)
    n_parts, n_prompts = kernel.shape[2:]
    r, c = torch.ones_like(kernel[..., 0]), torch.ones_like(kernel[..., 0, :])
    moving = torch.ones_like(r[:, :1, :1])  # (B, 1, 1), 0 where an image's plans stand
    exporting = torch.compiler.is_exporting()  # a graph has no end that depends on its input
    for _ in range(MOST_STEPS):
        new_r = 1 / n_parts / torch.einsum("bcmn,bcn->bcm", kernel, c)
        new_c = 1 / n_prompts / torch.einsum("bcmn,bcm->bcn", kernel, new_r)
        change = (new_r - r).abs().mean(dim=(1, 2), keepdim=True)
        r, c = torch.where(moving > 0, new_r, r), torch.where(moving > 0, new_c, c)
        moving = moving * (change >= STILL)
        if not exporting and not moving.any():
            break
    return r[..., None] * kernel * c[..., None, :]


@dataclass(frozen=True, eq=False)
class SeveralPrompts:
    """N learned prompts of each class.

    Attributes:
        prompts: The classes' prompts around each of N contexts.
    """

    prompts: Sequence[LearnedPrompts]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Each context, by name."""
        return {f"context.{i}": one.context for i, one in enumerate(self.prompts)}

    def features(self) -> Tensor:
        """(N, C, D) text features, any norm."""
        return torch.stack([one.features() for one in self.prompts])


def drawn(prompts: LearnedPrompts, n: int, seed: int) -> SeveralPrompts:
    """The same prompts around n contexts drawn as the one of these was."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.empty(n, *prompts.context.shape).normal_(std=0.02, generator=generator)
    return SeveralPrompts(
        [replace(prompts, context=nn.Parameter(one.to(prompts.context))) for one in contexts]
    )
