"""An adapter ready to classify: features or pixels in, calibrated probabilities out."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cache.arrays.image_tower import ImageTower
from cache.images.preprocessing import Preprocess
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.two_crops import TwoCrops


@dataclass(frozen=True, eq=False)
class FeaturePredictor:
    """A classifier of features: an adapter ready for use.

    Attributes:
        adapter: What was learned.
        logits: Features (M, D) to logits (M, C), on the CPU.
        jointly: True where the logits of an image depend on the images beside it, so that `logits`
            needs all features at once.
        tower: Where it classifies pooled images, (M, w) in place of features: the model's own
            layers that make features of them.
    """

    adapter: Adapter
    logits: Callable[[Tensor], Tensor]
    jointly: bool
    tower: ImageTower | None = field(default=None, kw_only=True)

    def joint(self, features: Tensor) -> Tensor:
        """(M, D) features beside text, of what it classifies."""
        if self.tower is None:
            return features
        return torch.from_numpy(self.tower.features(features.numpy()))

    def probabilities(self, features: Tensor) -> Tensor:
        """(M, C) calibrated probabilities of (M, D) features."""
        if self.adapter.label_rule is not None:
            return self.adapter.label_rule.probabilities(self.logits(features))
        t = self.adapter.calibration.temperature
        return torch.softmax(self.logits(features).double() / t, dim=1)


@dataclass(frozen=True, eq=False)
class Predictor(FeaturePredictor):
    """A classifier of images: an adapter with its model.

    Attributes:
        preprocess: PIL image to the model's pixels (3, H, W); of a pair, the second model's.
        features: A batch of what `crops` gives to features (B, D), on the CPU.
        device: Where the model runs.
        beside: The preprocessing of a pair's first model.
    """

    preprocess: Preprocess
    features: Callable[[Tensor], Tensor]
    device: torch.device
    beside: Preprocess | None = None

    @property
    def crops(self) -> Preprocess | TwoCrops:
        """The crop of an image that the model takes, or the two that a pair takes."""
        return self.preprocess if self.beside is None else TwoCrops(self.beside, self.preprocess)
