"""Two-stage adaptation: a head learned on a labeled source, then moved to unlabeled target images.

The winning entry of the GeoNet challenge at ICCV 2023,
https://github.com/tim-learn/GeoNet23_casia_tim, which follows SHOT, Liang et al., ICML 2020,
https://arxiv.org/abs/2002.08546. Their code also trains the image tower; here a layer on stored
features is all that moves.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot.checks import fraction, non_negative, one_of, positive, whole
from fewshot.classifier import Classifier
from fewshot.method import Method, PracticalSize
from fewshot.open_set import certainty
from fewshot.parts.pseudo_labels import (
    PseudoLabels,
    adaptation_loss,
    centroid_labels,
    known_and_unknown,
)
from fewshot.parts.residual_layer import BottleneckClassifier, ResidualLayer, averaged
from fewshot.support import SupportSet
from fewshot.text import Text, features_of


@dataclass(frozen=True)
class TwoStage(Method):
    """A residual layer and a cosine head, learned on labels and adapted without.

    The logits are logit_scale w_k.g / |w_k| |g| with g = f + Af + b; A and b are zero at first, and
    w is the classes' text, or their mean images. Stage 1 minimizes the cross-entropy to
    smoothed labels, every class with the same weight; after 40 % of the steps also that to the
    probabilities of a teacher, the weights' average over epochs. Stage 2, `adapt`, has no label and
    no source image: w stays, and A and b go down

        CE(pseudo-labels of known images) - push mean H(p of unknown images),

    where an image is known whose certainty 1 - H(p) / log C is above 1/2 by a margin that grows to
    0.2, and unknown if as far below. Pseudo-labels and certainties are those of each epoch's start.

    Attributes:
        lr: Learning rate, which falls as 1 / (1 + 10 t / T).
        epochs: Passes over the source images.
        adapt_epochs: Passes over the target images; 0 is the source's head alone. As published, 5.
        pseudo_labels: Source of pseudo-labels: the nearest `centroids` of the images, as in SHOT;
            or `argmax`.
        push: Weight of unknown images' entropy, where there may be some.
        smoothing: Share of a label that all classes have alike.
        batch_size: Images per step.
        seed: Random seed for the order of the images.
        logit_scale: CLIP's inverse temperature.
    """

    lr: float = 1e-2
    epochs: int = 10
    adapt_epochs: int = 5
    pseudo_labels: PseudoLabels = "centroids"
    push: float = 0.3
    smoothing: float = 0.1
    batch_size: int = 64
    seed: int = 1
    logit_scale: float = 100.0

    name: ClassVar[str] = "two-stage"
    summary: ClassVar[str] = (
        "Learns from labeled photos of one kind, and adapts to unlabeled photos of another."
    )
    blends: ClassVar[bool] = False
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=400, seconds=3)
    saved_as: ClassVar[tuple[type, ...]] = (BottleneckClassifier,)

    def __post_init__(self) -> None:
        positive(self, "lr")
        whole(self, "epochs", "adapt_epochs", minimum=0)
        whole(self, "batch_size")
        one_of(self, "pseudo_labels", get_args(PseudoLabels))
        non_negative(self, "push", hint="0 leaves unknown images alone")
        fraction(self, "smoothing", below_one=True)

    def fit(self, support: SupportSet, text: Text | None) -> BottleneckClassifier:
        """Learn the head on labels: stage 1, and all there is without a target."""
        features, labels = support.samples()
        means = torch.zeros(support.n_classes, features.shape[1]).index_add_(0, labels, features)
        start = normalize(means) if text is None else normalize(features_of(text))
        layer = ResidualLayer(start, self.logit_scale, trains_head=True)
        generator = torch.Generator().manual_seed(self.seed)
        balance = (len(support.labels) / (support.n_classes * support.counts))[labels]
        steps = self.epochs * math.ceil(len(labels) / self.batch_size)
        teacher: BottleneckClassifier | None = None
        step = 0
        for _ in range(self.epochs):
            order = torch.randperm(len(labels), generator=generator)
            for rows in torch.split(order, self.batch_size):
                if teacher is None and step >= 0.4 * steps:
                    teacher = layer.classifier()
                logits = layer.logits(features[rows])
                loss = cross_entropy(
                    logits, labels[rows], label_smoothing=self.smoothing, reduction="none"
                )
                if teacher is not None:
                    soft = torch.softmax(teacher.logits(features[rows]), dim=1)
                    loss = loss + cross_entropy(logits, soft, reduction="none")
                layer.step((balance[rows] * loss).mean(), self.lr / (1 + 10 * step / steps))
                step += 1
            if teacher is not None:
                teacher = averaged(teacher, layer.classifier(), 0.95)
        return layer.classifier()

    def adapt(self, source: Classifier, images: Tensor, *, unknown: bool) -> BottleneckClassifier:
        """Move the layer of what `fit` made to unlabeled images: stage 2.

        Args:
            source: The classifier that `fit` made; nothing else is left of the source.
            images: (U, D) target features.
            unknown: True where some images may be of classes that the source does not have.

        Raises:
            UserError: The classifier is another method's.
        """
        if not isinstance(source, BottleneckClassifier):
            raise UserError(f"{self.name} adapts what it fitted itself; got another classifier")
        layer = ResidualLayer(source.weight, 1.0, trains_head=False, start=source)
        generator = torch.Generator().manual_seed(self.seed)
        steps = self.adapt_epochs * math.ceil(len(images) / self.batch_size)
        step = 0
        for _ in range(self.adapt_epochs):
            now = layer.classifier()
            pseudo, certain = self._pseudo(now, images), certainty(now.logits(images))
            order = torch.randperm(len(images), generator=generator)
            for rows in torch.split(order, self.batch_size):
                loss = adaptation_loss(
                    layer.logits(images[rows]),
                    pseudo[rows],
                    *known_and_unknown(certain[rows], step, steps),
                    self.push if unknown else 0.0,
                )
                layer.step(loss, self.lr / (1 + 10 * step / steps))
                step += 1
        return layer.classifier()

    def _pseudo(self, now: BottleneckClassifier, images: Tensor) -> Tensor:
        probabilities = torch.softmax(now.logits(images), dim=1)
        if self.pseudo_labels == "argmax":
            return probabilities.argmax(dim=1)
        return centroid_labels(now.moved(images), probabilities)
