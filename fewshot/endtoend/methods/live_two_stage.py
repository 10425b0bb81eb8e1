"""Two-stage adaptation through the image tower: learned on a source, moved to unlabeled images.

The winning entry of the GeoNet challenge at ICCV 2023,
https://github.com/tim-learn/GeoNet23_casia_tim, which follows SHOT, Liang et al., ICML 2020,
https://arxiv.org/abs/2002.08546; the recipe is that of its code, with CLIP in place of a Swin
transformer: a residual layer on the tower's features for the bottleneck, and class text for the
classifier's start.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear, normalize
from torch.optim import SGD, Optimizer

from cache.errors import UserError
from fewshot.checks import fraction, non_negative, one_of, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, scaled_cosines
from fewshot.endtoend.parts.peft import class_text
from fewshot.endtoend.parts.select import select
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.open_set import certainty
from fewshot.parts.pseudo_labels import (
    PseudoLabels,
    adaptation_loss,
    centroid_labels,
    known_and_unknown,
)

TOWER = "visual."  # begins the names of the image tower's parameters


@dataclass(frozen=True)
class LiveTwoStage(EndToEnd):
    """The image tower, a residual layer and a cosine head, learned with labels and moved without.

    Losses and pseudo-labels are those of `fit two-stage`. In stage 1 the images of an epoch are
    drawn so that all classes come alike often. In stage 2 the head stays, and the rest moves.

    Attributes:
        backbone: Parameters of the image tower that learn: scale and shift of the `norms`, or
            `all`.
        lr: Learning rate of layer and head, which falls as 1 / (1 + 10 t / T).
        backbone_share: Learning rate of the tower, relative to `lr`.
        weight_decay: Weight decay of SGD.
        epochs: Passes over the source images.
        adapt_epochs: Passes over the target images; 0 is the source's model alone.
        pseudo_labels: Source of pseudo-labels: the nearest `centroids` of the images, as in SHOT;
            or `argmax`.
        push: Weight of unknown images' entropy, where there may be some.
        smoothing: Share of a label that all classes have alike.
        batch_size: Images per step.
    """

    backbone: Literal["all", "norms"] = "all"
    lr: float = 1e-2
    backbone_share: float = 0.1
    weight_decay: float = 1e-3
    epochs: int = 10
    adapt_epochs: int = 5
    pseudo_labels: PseudoLabels = "centroids"
    push: float = 0.3
    smoothing: float = 0.1
    batch_size: int = 64

    name: ClassVar[str] = "live-two-stage"
    summary: ClassVar[str] = (
        "Trains the whole model on labeled photos of one kind, and adapts it to unlabeled photos "
        "of another."
    )
    unfoldable: ClassVar[str] = "a layer behind the image tower moves its features"

    def __post_init__(self) -> None:
        one_of(self, "backbone", ("all", "norms"))
        positive(self, "lr")
        non_negative(self, "backbone_share", "weight_decay")
        whole(self, "epochs", "adapt_epochs", minimum=0)
        whole(self, "batch_size")
        one_of(self, "pseudo_labels", get_args(PseudoLabels))
        non_negative(self, "push", hint="0 leaves unknown images alone")
        fraction(self, "smoothing", below_one=True)

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Stage 1; the head starts as the mean of the dataset's prompts."""
        if not clip.reads_text:
            raise UserError(
                f"live-two-stage starts its classifier from text, and {clip.identity['name']} "
                "encodes images alone; use a model such as ViT-B-16/openai"
            )
        head = nn.Parameter(class_text(clip, classnames, templates).float())
        width = head.shape[1]
        matrix = nn.Parameter(head.new_zeros(width, width))
        parameters = {"matrix": matrix, "shift": nn.Parameter(head.new_zeros(width)), "head": head}
        parameters |= select(clip.model, "image", self.backbone)
        teacher = {name: p.detach().clone() for name, p in parameters.items()}
        taught = False

        def stage(step: int, steps: int) -> None:
            nonlocal taught
            first = math.ceil(0.4 * steps)
            taught = step >= first
            share = 0.0 if step == first else 0.95
            if step == first or (taught and step % (steps // self.epochs) == 0):
                with torch.no_grad():
                    for name, p in parameters.items():
                        teacher[name].copy_(torch.lerp(p, teacher[name], share))

        def images(pixels: Tensor) -> Tensor:
            moved = _moved(clip, parameters, pixels)
            if not (taught and torch.is_grad_enabled()):
                return moved
            with torch.no_grad():
                theirs = _moved(clip, teacher, pixels)
                logits = scaled_cosines(clip.logit_scale, theirs, teacher["head"])
            return torch.cat([moved.float(), logits], dim=1)

        def loss(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
            value = cross_entropy(logits, labels, label_smoothing=self.smoothing)
            if features.shape[1] > width:
                value = value + cross_entropy(logits, torch.softmax(features[:, width:], dim=1))
            return value

        return Learner(
            parameters,
            clip.logit_scale,
            lambda: head,
            images=images,
            objective=loss,
            stage=stage,
            memory=teacher,
        )

    def adapted(
        self, clip: Clip, learned: Learner, n_images: int, look: Callable[[], Tensor], unknown: bool
    ) -> Learner:
        """Stage 2, of what stage 1 learned; nothing else is left of the source.

        Args:
            clip: The model that stage 1 trained.
            learned: Its learner.
            n_images: U.
            look: Returns (U, D) features that the learner has of the unlabeled images' center
                crops as it is then.
            unknown: True where some images may be of classes that the source does not have.
        """
        head = learned.parameters["head"]
        moving = {name: p for name, p in learned.parameters.items() if name != "head"}
        pseudo = torch.zeros(n_images, dtype=torch.int64)
        certain = torch.zeros(n_images)
        now, last = 0, 1

        def stage(step: int, steps: int) -> None:
            nonlocal now, last
            now, last = step, steps
            if step % (steps // self.adapt_epochs) == 0:
                features = normalize(look().float()).cpu()
                logits = scaled_cosines(clip.logit_scale, features, head.detach().cpu())
                p = torch.softmax(logits, dim=1)
                centroids = self.pseudo_labels == "centroids"
                pseudo.copy_(centroid_labels(features, p) if centroids else p.argmax(dim=1))
                certain.copy_(certainty(logits))

        def loss(features: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
            sure, label = certain.to(logits.device)[rows], pseudo.to(logits.device)[rows]
            masks = known_and_unknown(sure, now, last)
            return adaptation_loss(logits, label, *masks, self.push if unknown else 0.0)

        return replace(
            learned,
            parameters=moving,
            images=lambda pixels: _moved(clip, moving, pixels),
            objective=loss,
            survey=lambda features: None,
            stage=stage,
            memory={"pseudo": pseudo, "certain": certain},
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """Stage 1, on crops as large as 224 pixels of 238 are, and larger ones."""
        return TrainingPlan(
            iterations=self.epochs * math.ceil(n_images / self.batch_size),
            batch_size=self.batch_size,
            schedule=lambda epoch, done: self.lr / (1 + 10 * done),
            balanced=True,
            crop_scale=(0.88, 1.0),
        )

    def adapting_plan(self, n_images: int) -> TrainingPlan:
        """Stage 2, each image once an epoch."""
        steps = self.adapt_epochs * math.ceil(n_images / self.batch_size)
        return replace(self.plan(0, n_images), iterations=steps, balanced=False)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with Nesterov's momentum, in two groups."""
        tower = {n: p for n, p in learner.parameters.items() if n.startswith(TOWER)}
        rest = [p for n, p in learner.parameters.items() if n not in tower]
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": list(tower.values()), "lr_share": self.backbone_share},
        ]
        return SGD(groups, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)


def _moved(clip: Clip, parameters: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """(B, D) features of any norm, behind tower and layer with these parameters."""
    tower = {
        name.removeprefix(TOWER): p for name, p in parameters.items() if name.startswith(TOWER)
    }
    features = normalize(functional_call(clip.model.visual, tower, (pixels,)).float(), dim=-1)
    return features + linear(features, parameters["matrix"], parameters["shift"])
