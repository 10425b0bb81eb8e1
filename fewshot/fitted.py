"""A fitted method: the classifier, and what it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cache.store import FeatureStore
from fewshot.classifier import Classifier
from fewshot.method import Method
from fewshot.run import Run
from fewshot.support import SupportSet
from fewshot.text import Text


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A classifier, and what it was made of.

    Attributes:
        run: What was fitted, to be tested on the store that it was fitted to.
        store: That store; of a pair, at the weight that was chosen.
        method: With its hyper-parameters as tuned.
        classifier: The classifier it made.
        support: The support set it learned from; None where it learned from no labels.
        text: The classes' text, or None.
        n_images: N of the support set, or of the unlabeled images, or 0.
        n_validation: Labeled images besides the support set that tuning looked at.
        measures: Figures about what was learned from, such as the loss of what synthesized it.
        seconds: Synthesizing, tuning and fitting, from features in memory.
    """

    run: Run
    store: FeatureStore
    method: Method
    classifier: Classifier
    support: SupportSet | None
    text: Text | None
    n_images: int
    n_validation: int
    seconds: float
    measures: Mapping[str, float] = field(default_factory=dict)
