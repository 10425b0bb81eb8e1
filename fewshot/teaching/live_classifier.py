"""The classifier on the page: GDA on the labels so far, class names where there are no labels yet.

It has no settings to tune, so that it is fitted in milliseconds after each label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from cache.errors import UserError
from fewshot.methods.gda import GDA
from fewshot.support import SupportSet


@dataclass(frozen=True, eq=False)
class LiveClassifier:
    """Logits that are linear in the features.

    Attributes:
        weight: (C, D).
        bias: (C,); minus infinity for a class that nothing is known of.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        return linear(features, self.weight, self.bias)


def live_classifier(
    features: Tensor, labels: Tensor, text: Sequence[Tensor | None], logit_scale: float
) -> LiveClassifier | None:
    """Fit to the labels so far.

    A class without a photo has its text, and of the Gaussian term the average of the other
    classes; without text it is never predicted.

    Args:
        features: (N, D) of the labeled photos, of unit norm.
        labels: (N,) class ids.
        text: C texts of unit norm, or None each where the model reads none.
        logit_scale: CLIP's inverse temperature.

    Returns:
        None where nothing can be said: fewer than two classes are known by photos, or by their
        names.
    """
    n_classes, dim = len(text), features.shape[1]
    seen = torch.unique(labels)
    weight, bias = torch.zeros(n_classes, dim), torch.zeros(n_classes)
    named = [one for one in text if one is not None]
    zero_shot = logit_scale * torch.stack(named) if len(named) == n_classes and named else None
    if zero_shot is not None:
        weight += zero_shot
    elif len(seen) < n_classes:
        bias.fill_(-torch.inf)
        bias[seen] = 0.0
    gaussian = _gaussian(features, labels, seen)
    if gaussian is not None:
        weight += gaussian.weight.mean(dim=0)
        weight[seen] += gaussian.weight - gaussian.weight.mean(dim=0)
        bias += gaussian.bias.mean()
        bias[seen] += gaussian.bias - gaussian.bias.mean()
    known = n_classes if zero_shot is not None else len(seen) if gaussian is not None else 0
    return LiveClassifier(weight, bias) if known >= 2 else None


def _gaussian(features: Tensor, labels: Tensor, seen: Tensor) -> LiveClassifier | None:
    """GDA's term for the classes that have photos; None where these cannot be told apart."""
    if len(seen) < 2:
        return None
    support = SupportSet(features, torch.searchsorted(seen, labels), len(seen))
    try:
        found = GDA().fit(support, None)
    except UserError:  # the means coincide
        return None
    assert found.bias is not None
    return LiveClassifier(found.weight, found.bias)
