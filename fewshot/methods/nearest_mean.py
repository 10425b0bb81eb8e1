"""Nearest class mean on CLIP features.

Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
https://arxiv.org/abs/1703.05175, with cosines for distances and nothing trained.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.checks import fraction
from fewshot.classifier import LinearClassifier
from fewshot.method import Method
from fewshot.multi_label_support import MultiLabelSupport, one_label_each
from fewshot.parts.gaussian import class_means
from fewshot.support import SupportSet
from fewshot.text import Text, required


@dataclass(frozen=True)
class NearestMean(Method):
    """The cosine to each class's mean feature, times CLIP's inverse temperature.

    The baseline of what the images say alone, so nothing is tuned and text takes no part unless
    it is given a weight.

    Attributes:
        text_weight: Share of the class's text feature in its prototype, 0 to 1; at 0 the
            prototype is the mean of the images.
        logit_scale: CLIP's inverse temperature.
    """

    text_weight: float = 0.0
    logit_scale: float = 100.0

    name: ClassVar[str] = "nearest-mean"
    blends: ClassVar[bool] = False
    summary: ClassVar[str] = (
        "Averages your photos of each class and picks the class whose average is nearest. "
        "Class names play no part."
    )

    def __post_init__(self) -> None:
        fraction(self, "text_weight", hint="0 is images only")

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Mix the normalized class means with text, and normalize them again.

        Raises:
            UserError: Text has a weight, and there is none.
        """
        return self._of(*support.samples(), support.n_classes, text)

    def fit_multi_label(self, support: MultiLabelSupport, text: Text | None) -> LinearClassifier:
        """Do the same; an image is in the mean of each of its classes.

        Raises:
            UserError: Text has a weight, and there is none.
        """
        return self._of(*one_label_each(*support.samples()), support.n_classes, text)

    def _of(
        self, features: Tensor, labels: Tensor, n_classes: int, text: Text | None
    ) -> LinearClassifier:
        prototypes = normalize(class_means(features.double(), labels, n_classes))
        if self.text_weight:
            anchors = required(text, f"{self.name} with text_weight {self.text_weight}").double()
            prototypes = normalize(torch.lerp(prototypes, anchors, self.text_weight))
        return LinearClassifier(self.logit_scale * prototypes.to(features))
