"""Zero-shot CLIP: the baseline that every other method has to beat.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewshot.classifier import LinearClassifier
from fewshot.method import LearnsFrom, Method
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.published_recipe import PublishedRecipe
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
    blends: ClassVar[bool] = False
    summary: ClassVar[str] = (
        "Compares a photo with the names of the classes. Learns nothing from your labels."
    )
    learns_from: ClassVar[LearnsFrom] = "text"

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the one there is: the text alone."""
        return PublishedRecipe()

    def fit(self, support: SupportSet | None, text: Text | None) -> LinearClassifier:
        """Take the text features for weights; the support set is not looked at.

        Raises:
            UserError: There is no text.
        """
        return LinearClassifier(self.logit_scale * required(text, self.name))

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> LinearClassifier:
        """Do the same; images are not looked at."""
        return self.fit(None, text)

    def fit_multi_label(self, support: MultiLabelSupport, text: Text | None) -> LinearClassifier:
        """Do the same: each class's cosine ranks the images by itself."""
        return self.fit(None, text)

    def fit_new_classes(
        self, support: SupportSet | None, text: Text | None, new: Text
    ) -> LinearClassifier:
        """Do the same with the new classes; the base classes play no part."""
        return self.fit(None, new)
