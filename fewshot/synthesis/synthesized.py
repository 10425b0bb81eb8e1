"""Features that a generator made, and a support set that has them beside its images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot.model_selection.folds import ALWAYS_TRAINS
from fewshot.support import SupportSet
from fewshot.synthesis.decoded import Decoding


@dataclass(frozen=True, eq=False)
class Synthesized:
    """Features of classes without images, n of them.

    Attributes:
        generator: The generator's name.
        features: (1 + V, n, D) at unit norm: in place of center crops, then of each of V views.
        labels: (n,) class ids.
        log: Every epoch's means by name, the first one first.
        decoding: Of a generator with a decoder of attributes: what decodes features by it.
    """

    generator: str
    features: Tensor
    labels: Tensor
    log: tuple[Mapping[str, float], ...]
    decoding: Decoding | None = None

    @property
    def measures(self) -> dict[str, float]:
        """The last epoch's means, such as `ship_kl`."""
        return {f"{self.generator}_{name}": value for name, value in self.log[-1].items()}

    def beside(self, support: SupportSet) -> SupportSet:
        """The images of base classes, then these features, of all classes together.

        Where features come as the encoder gave them, these have the real ones' mean norm.

        Args:
            support: Images of the base classes, with V views or none.
        """
        norm = 1.0 if support.unit_norm else float(support.features.norm(dim=1).mean())
        crops, *more = norm * self.features
        views = support.views
        if views is not None:
            pairs = zip(views, more, strict=True)
            views = torch.stack([torch.cat([view, made]) for view, made in pairs])
        return replace(
            support,
            features=torch.cat([support.features, crops]),
            labels=torch.cat([support.labels, self.labels]),
            n_classes=int(self.labels.max()) + 1,
            views=views,
        )

    def folds(self, real: Tensor) -> Tensor:
        """(N + n,) fold of each image, given the real ones': what is synthesized judges nothing."""
        return torch.cat([real, torch.full((len(self.labels),), ALWAYS_TRAINS)])
