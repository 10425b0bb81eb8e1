"""SHOT's pseudo-labels from zero-shot CLIP beside UEO, on images of known and unknown classes.

    python -m benchmarks.shot_pseudo_labels STORE.h5 --known 7

Stage 2 of `two-stage` without a source (Liang et al., ICML 2020, https://arxiv.org/abs/2002.08546):
the head is the classes' text and stays; the residual layer learns labels by centroids, and to be
sure of each image and even on average. It is here and no method, for it separates unknown images
worse than the others do. Prints for each: accuracy of known images, AUROC and FPR95, in %.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.store import FeatureStore
from fewshot import evaluate
from fewshot.methods.ueo import UEO
from fewshot.parts.pseudo_labels import centroid_labels
from fewshot.parts.residual_layer import BottleneckClassifier, ResidualLayer
from fewshot.support import unlabeled
from fewshot.text import Text, required

BATCH = 64


@dataclass(frozen=True)
class Shot(UEO):
    """SHOT from zero-shot CLIP; of UEO it has what takes unlabeled images to it."""

    passes: int = 5
    rate: float = 1e-3
    label_weight: float = 0.3

    name: ClassVar[str] = "ueo"

    def fit_unlabeled(  # type: ignore[override]
        self, images: Tensor | None, text: Text | None
    ) -> BottleneckClassifier:
        """Fit to the features (U, D) of unlabeled images."""
        images = unlabeled(images, self.name)
        head = normalize(required(text, self.name))
        layer = ResidualLayer(head, self.logit_scale, trains_head=False)
        generator = torch.Generator().manual_seed(self.seed)
        steps, step = self.passes * math.ceil(len(images) / BATCH), 0
        for _ in range(self.passes):
            now = layer.classifier()
            pseudo = centroid_labels(now.moved(images), torch.softmax(now.logits(images), dim=1))
            for rows in torch.split(torch.randperm(len(images), generator=generator), BATCH):
                logits = layer.logits(images[rows])
                loss = self.label_weight * cross_entropy(logits, pseudo[rows])
                layer.step(loss + _information(logits), self.rate / (1 + 10 * step / steps))
                step += 1
        return layer.classifier()


def _information(logits: Tensor) -> Tensor:
    """Mean entropy of the images less the entropy of their mean."""
    p = torch.softmax(logits, dim=1)
    mean = p.mean(dim=0)
    entropies = -(p * p.clamp_min(1e-12).log()).sum(dim=1)
    return entropies.mean() + (mean * mean.clamp_min(1e-12).log()).sum()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--known", type=int, required=True)
    options = parser.parse_args()
    store = FeatureStore.open(options.store)
    for name, of in {"ueo": UEO, "SHOT's pseudo-labels": Shot}.items():
        method = of(logit_scale=store.logit_scale)
        found = evaluate(store, method, known=options.known).accuracies
        cells = ", ".join(f"{100 * found[key]:.1f}" for key in ("known", "auroc", "fpr95"))
        print(f"{name}: {cells}")


if __name__ == "__main__":
    main()
