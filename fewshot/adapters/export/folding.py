"""The part of an adapter that open_clip's own CLIP can hold: weights, and a matrix."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from cache.errors import UserError
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import put_together
from fewshot.classifier import LinearClassifier
from fewshot.endtoend.attention import fuse
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.parts import weight_delta
from fewshot.methods import METHODS
from fewshot.parts.feature_adapters import AdapterClassifier
from fewshot.parts.projected import PooledClassifier, ProjectedClassifier

_FOLLOWED = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))  # in downsample


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier of image features.

    Attributes:
        weight: (C, D).
        bias: (C,), or None.
        unit_norm: True where features come at unit norm, False where as the tower gives them.
        learned: What is to be put into the image tower's last layers, if anything.
    """

    weight: Tensor
    bias: Tensor | None
    unit_norm: bool
    learned: ProjectedClassifier | PooledClassifier | None = None

    def form(self, features: Tensor) -> Tensor:
        """(M, D) features as the head needs them, of the tower's (M, D)."""
        return normalize(features, dim=-1) if self.unit_norm else features

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of the tower's (M, D) features."""
        return linear(self.form(features), self.weight, self.bias)

    def of_tower(self, features: Tensor) -> Tensor:
        """(M, D) features that the changed tower has of images, of what the classifier takes."""
        return features if self.learned is None else self.learned.features(features)

    def tower(self, model: Any) -> Any:
        """The model that makes features for the head: itself, or a copy with what was learned.

        Raises:
            UserError: Its image tower does not end in a matrix.
        """
        if self.learned is None:
            return model
        if not isinstance(getattr(model.visual, "proj", None), nn.Parameter):
            raise UserError(
                "the image tower does not end in a matrix that could take up what was learned; "
                "use --to onnx"
            )
        model = copy.deepcopy(model)
        tower, projection = model.visual, self.learned.projection
        if isinstance(self.learned, PooledClassifier):
            tower.ln_post.weight.data = self.learned.scale.clone()
            tower.ln_post.bias.data = self.learned.shift.clone()
            tower.proj.data = projection.clone()
        else:
            tower.proj.data = tower.proj @ projection
        return model


def require_towers(adapter: Adapter) -> None:
    """Raise unless the adapter's method can be open_clip's two towers and a matrix.

    Raises:
        UserError: It cannot; says why, and what works.
    """
    if adapter.classifier is None:
        why = TRAINED[adapter.method].unfoldable
    else:
        no_matrix = "its classifier is no matrix that image features are multiplied by"
        why = no_matrix if matrix_of(adapter) is None else ""
    if why:
        raise UserError(f"{adapter.method} cannot be exported to open_clip: {why}; use --to onnx")


def matrix_of(adapter: Adapter) -> Head | None:
    """The classifier on features as a head, if it is one."""
    if adapter.classifier is None:
        return None
    classifier = put_together(adapter.classifier, adapter.tensors)
    unit_norm = METHODS[adapter.method].unit_norm
    if isinstance(classifier, LinearClassifier):
        return Head(classifier.weight, classifier.bias, unit_norm)
    if isinstance(classifier, AdapterClassifier) and classifier.visual is None:
        return Head(classifier.weight, None, unit_norm)
    if isinstance(classifier, ProjectedClassifier | PooledClassifier):
        return Head(classifier.weight, None, unit_norm, classifier)
    return None


def folded(model: Any) -> Any:
    """The same model, its updates now in open_clip's own weights."""
    weight_delta.fold(model)
    _move_biases_of_convolutions(model.visual)
    fuse(model)
    return model


def _move_biases_of_convolutions(tower: Any) -> None:
    """Put biases that convolutions were given, where open_clip has none, into what follows them.

    That is the positions of a ViT's patches, and a ResNet's batch norms, which take off a mean.
    """

    def take_from(convolution: Any) -> Tensor | None:
        bias: Tensor | None = convolution.bias
        convolution.bias = None
        return bias

    if not hasattr(tower, "transformer") and not hasattr(tower, "attnpool"):
        return  # timm's convolutions keep what biases they have
    if hasattr(tower, "transformer"):
        if (bias := take_from(tower.conv1)) is not None:
            tower.positional_embedding.data[1:] += bias  # the first is the class token's
        return
    for module in list(tower.modules()):
        for first, second in _FOLLOWED:
            convolution = getattr(module, first, None)
            if isinstance(convolution, nn.Conv2d) and (bias := take_from(convolution)) is not None:
                getattr(module, second).running_mean -= bias
