"""2SFS: norms of both towers for the first part of the steps, then a linear classifier alone.

Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025,
https://arxiv.org/abs/2503.11609; the recipe is that of the authors' code as a fork of it has it.
Both stages have an AdamW and a cosine of their own, and the classifier starts as the text features
after the first stage. The code computes in mixed precision on a GPU; here --precision chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.checks import fraction
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.blocks import Towers
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.select import select
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import cosine_by_step


@dataclass(frozen=True)
class TwoStageFewShot(PEFTMethod):
    """Scale and shift of every norm, then the classes' features, which start as the tuned text.

    Attributes:
        norms_share: Share of the steps in which the norms learn; the classifier has the rest.
    """

    towers: Towers = "both"
    iterations_per_shot: int = 300
    lr: float = 2e-4
    norms_share: float = 0.6

    name: ClassVar[str] = "2sfs"
    summary: ClassVar[str] = (
        "Adjusts the numbers by which the model normalizes, then a classifier on top."
    )
    unfoldable: ClassVar[str] = ""
    published: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "norms_share", below_one=True)
        if self.head != "frozen":
            raise UserError(
                f"2sfs trains the head in its second stage in any case; got head={self.head}; "
                "leave head out"
            )

    def insert(self, clip: Clip) -> Inserted:
        """The norms' own parameters."""
        return select(clip.model, self.towers, "norms"), ()

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Norms and head are trained one after the other; each class has one prompt."""
        if not clip.reads_text:
            raise UserError(
                f"2sfs starts its classifier from text, and {clip.identity['name']} encodes images "
                "alone; use ln-tune with --set head=trained"
            )
        norms = super().attach(clip, classnames, templates[:1])
        with torch.no_grad():
            head = nn.Parameter(normalize(norms.text().float(), dim=1))
        tuning_norms = False  # the head is what a trained learner classifies by

        def stage(step: int, steps: int) -> None:
            nonlocal tuning_norms
            first_of_head = int(self.norms_share * steps)
            tuning_norms = step < first_of_head
            if step == first_of_head:
                with torch.no_grad():
                    head.copy_(normalize(norms.text().float(), dim=1))

        def text() -> Tensor:
            return norms.text() if tuning_norms else head

        def images(pixels: Tensor) -> Tensor:
            with torch.set_grad_enabled(tuning_norms and torch.is_grad_enabled()):
                features: Tensor = clip.model.encode_image(pixels)
            return features

        return replace(
            norms,
            parameters={**norms.parameters, "head": head},
            text=text,
            images=images if self.on_images else None,
            stage=stage,
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """300 K steps; the learning rate starts again where the second stage does."""
        cosine = cosine_by_step(self.lr, 1e-6)

        def schedule(epoch: int, done: float) -> float:
            if done < self.norms_share:
                return cosine(epoch, done / self.norms_share)
            return cosine(epoch, (done - self.norms_share) / (1 - self.norms_share))

        return replace(super().plan(shots, n_images), schedule=schedule)
