"""A method of one's own, compared with two others on the same few shots.

python examples/add_a_method.py features/digits/tiny.h5

The method is a frozen dataclass: fields are hyper-parameters, `grid` is what tuning tries, `fit`
makes a classifier. docs/extend/add-a-method.md says what a test of it looks like.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import normalize

from cache.store import FeatureStore
from fewshot import METHODS, LinearClassifier, Method, SupportSet, Text, configure, evaluate
from fewshot.method import Grid


@dataclass(frozen=True)
class Blend(Method):
    """The cosine to a blend of each class's text and its mean image.

    Attributes:
        share: The images' share of the blend, 0 to 1; at 0 it is zero-shot CLIP.
        logit_scale: CLIP's inverse temperature.
    """

    share: float = 0.5
    logit_scale: float = 100.0
    name: ClassVar[str] = "blend"
    grid: ClassVar[Grid] = {"share": (0.0, 0.25, 0.5, 0.75)}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Average the (N, D) images of each class, and blend with the (C, D) text."""
        features, labels = support.samples()
        sums = features.new_zeros(support.n_classes, features.shape[1])
        means = normalize(sums.index_add(0, labels, features), dim=1)
        if text is not None:
            means = self.share * means + (1 - self.share) * text.features
        return LinearClassifier(self.logit_scale * normalize(means, dim=1))


def main(path: str, shots: int = 4) -> dict[str, float]:
    """Print and return the accuracy of three methods on the test split."""
    METHODS["blend"] = Blend
    store = FeatureStore.open(path)
    accuracies = {}
    for name in ("zero-shot", "blend", "gda"):
        method = configure(name, logit_scale=store.logit_scale)
        accuracies[name] = evaluate(store, method, shots=shots, seed=1).accuracy
        print(f"{name:10s} {100 * accuracies[name]:.1f} %")
    return accuracies


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "features/digits/tiny.h5")
