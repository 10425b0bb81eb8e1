"""The two ends of CLIP that features alone can move: class text, and the last image layer norm.

Each gives logits, takes the gradient of a loss with respect to them, and makes a classifier.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.arrays.image_tower import ImageTower
from fewshot.classifier import LinearClassifier
from fewshot.parts.optimizers import SGD
from fewshot.parts.projected import PooledClassifier
from fewshot.parts.softmax_heads import TINY, across


class TextEnd:
    """Class text with residuals, logit_scale f.(t + x) / |t + x|, zero at first.

    Args:
        text: (C, D).
        shared: One residual for all classes, instead of one for each.
        logit_scale: CLIP's inverse temperature.
    """

    def __init__(self, text: Tensor, *, shared: bool, logit_scale: float) -> None:
        self.optimizer = SGD(torch.zeros_like(text[:1] if shared else text), momentum=0.0)
        self._text, self._scale = text, logit_scale

    @property
    def _moved(self) -> Tensor:
        return self._text + self.optimizer.values[0]

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) logits of (B, D) features."""
        return self._scale * features @ normalize(self._moved).T

    def backward(self, of_logits: Tensor, features: Tensor) -> None:
        """Take the gradient (B, C) with respect to the logits of these features."""
        moved, (gradient,) = self._moved, self.optimizer.gradients
        of_text = across(self._scale * of_logits.T @ features, moved)
        of_text /= moved.norm(dim=1, keepdim=True)
        gradient.copy_(of_text if len(gradient) > 1 else of_text.sum(dim=0, keepdim=True))

    def classifier(self) -> LinearClassifier:
        """The classifier of the text as it is."""
        size = float(self.optimizer.values[0].expand_as(self._text).norm() / self._text.norm())
        stats = {"trained_parameters": self.optimizer.count, "residual_size": size}
        return LinearClassifier(self._scale * normalize(self._moved), stats=stats)


class NormEnd:
    """The last layer norm of the image tower: its scale and shift, as the tower has them at first.

    Args:
        tower: The image tower's last layers.
        text: (C, D) at unit norm.
        logit_scale: CLIP's inverse temperature.
    """

    def __init__(self, tower: ImageTower, text: Tensor, *, logit_scale: float) -> None:
        scale, shift, projection = (
            torch.from_numpy(part) for part in (tower.scale, tower.shift, tower.projection)
        )
        self.optimizer = SGD(scale, shift, momentum=0.0)
        scale, shift = self.optimizer.values
        self._now = PooledClassifier(scale, shift, projection, logit_scale * text)

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, C) logits of (B, w) pooled images."""
        return self._now.logits(pooled)

    def backward(self, of_logits: Tensor, pooled: Tensor) -> None:
        """Take the gradient (B, C) with respect to the logits of these pooled images."""
        features = self._now.features(pooled)
        of_features = across(of_logits @ self._now.weight, features)
        of_features /= features.norm(dim=1, keepdim=True).clamp_min(TINY)
        of_norm = of_features @ self._now.projection.T
        of_scale, of_shift = self.optimizer.gradients
        of_scale.copy_((of_norm * pooled).sum(dim=0))
        of_shift.copy_(of_norm.sum(dim=0))

    def classifier(self) -> PooledClassifier:
        """The classifier of the norm as it is."""
        scale, shift = (value.clone() for value in self.optimizer.values)
        stats = {"trained_parameters": self.optimizer.count}
        return PooledClassifier(scale, shift, self._now.projection, self._now.weight, stats)
