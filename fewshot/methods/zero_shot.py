"""Zero-shot CLIP: the baseline that every other method has to beat.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewshot.classifier import Grid, LinearClassifier, required
from fewshot.support import SupportSet


@dataclass(frozen=True)
class ZeroShot:
    """The cosine to each class's text, times CLIP's inverse temperature.

    Attributes:
        logit_scale: CLIP's inverse temperature.
    """

    logit_scale: float = 100.0

    name: ClassVar[str] = "zero-shot"
    grid: ClassVar[Grid] = {}
    text_recipe: ClassVar[str] = "unit-mean"
    needs_support: ClassVar[bool] = False

    def fit(self, support: SupportSet | None, text: Tensor | None) -> LinearClassifier:
        """Nothing is learnt: the weights are the text features; the support is not looked at.

        Raises:
            UserError: There is no text.
        """
        return LinearClassifier(self.logit_scale * required(text, self.name))
