"""Zero-shot CLIP: the baseline that every other method has to beat.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020.
"""

from dataclasses import dataclass
from typing import ClassVar

from fewshot.classifier import LearnsFrom, LinearClassifier, Method
from fewshot.support import SupportSet
from fewshot.text import Text, required


@dataclass(frozen=True)
class ZeroShot(Method):
    """The cosine to each class's text, times CLIP's inverse temperature.

    Attributes:
        logit_scale: CLIP's inverse temperature.
    """

    logit_scale: float = 100.0

    name: ClassVar[str] = "zero-shot"
    learns_from: ClassVar[LearnsFrom] = "text"

    def fit(self, support: SupportSet | None, text: Text | None) -> LinearClassifier:
        """Nothing is learned: the weights are the text features; the support is not looked at.

        Raises:
            UserError: There is no text.
        """
        return LinearClassifier(self.logit_scale * required(text, self.name))

    def fit_new(self, support: SupportSet | None, text: Text | None, new: Text) -> LinearClassifier:
        """The same of the new classes; the old ones play no part."""
        return self.fit(None, new)
