"""Features beside their decoded attributes and the decoder's hidden layer, as TF-VAEGAN classifies.

The published classifier is a softmax layer on [x, Dec(x), h(Dec(x))] of scaled features x, of real
images of seen classes and generated ones of unseen classes. Here any method that needs no text
learns from these, for they lie in a space of their own; `linear-probe` is that layer, with the
minimum of its loss in place of 25 epochs of Adam.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.classifier import Classifier
from fewshot.support import SupportSet
from fewshot.synthesis.feedback_networks import Decoder, Scale


@dataclass(frozen=True, eq=False)
class Decoding:
    """The map from features to decoded ones.

    Attributes:
        scale: Of the features that the decoder takes.
        decoder: The decoder.
    """

    scale: Scale
    decoder: Decoder

    @torch.no_grad()
    def features(self, given: Tensor, *, unit: bool) -> Tensor:
        """(..., D + A + H) of (..., D) features of any norm; at unit norm if so asked."""
        x = self.scale.into(normalize(given, dim=-1))
        parts = [x, self.decoder(x), self.decoder.hidden(x)]
        decoded = torch.cat(parts, dim=-1)
        return normalize(decoded, dim=-1) if unit else decoded

    def support(self, support: SupportSet) -> SupportSet:
        """The same images with decoded features."""
        unit, views = support.unit_norm, support.views
        return replace(
            support,
            features=self.features(support.features, unit=unit),
            views=None if views is None else self.features(views, unit=unit),
        )

    def classifier(self, inner: Classifier, *, unit: bool) -> Classifier:
        """A classifier of plain features, given one of decoded features."""
        return _OfDecoded(self, inner, unit)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, all that `of` needs."""
        weights = {f"decoder.{name}": t for name, t in self.decoder.state_dict().items()}
        return {"scale.low": self.scale.low, "scale.width": self.scale.width, **weights}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Decoding | None":
        """The decoding whose `tensors` are among these; None where there are none."""
        if "scale.low" not in tensors:
            return None
        prefix = "decoder."
        weights = {
            name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
        }
        hidden, dim = weights["first.weight"].shape
        decoder = Decoder(dim, len(weights["second.weight"]), hidden)
        decoder.load_state_dict(weights)
        return cls(Scale(tensors["scale.low"], tensors["scale.width"]), decoder)


@dataclass(frozen=True, eq=False)
class _OfDecoded:
    """A classifier that decodes features first."""

    decoding: Decoding
    inner: Classifier
    unit: bool

    @property
    def stats(self) -> Mapping[str, float]:
        return self.inner.stats

    def logits(self, features: Tensor) -> Tensor:
        return self.inner.logits(self.decoding.features(features, unit=self.unit))
