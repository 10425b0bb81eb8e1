"""Tip-Adapter-F: Tip-Adapter's keys, trained.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
https://arxiv.org/abs/2207.09519. Differs from the authors' code where that looks at the test split:
theirs keeps the epoch of best test accuracy and reports the better of two test accuracies; here the
last epoch counts. All is single precision, and (alpha, beta) are tuned on a grid of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewshot.checks import non_negative, positive, whole
from fewshot.method import Grid, PracticalSize
from fewshot.parts.cache_method import CacheMethod
from fewshot.parts.key_value_cache import CacheClassifier, KeyValueCache, keys_of
from fewshot.parts.optimizers import Adam
from fewshot.parts.softmax_heads import logit_gradient
from fewshot.parts.tip_search import published_grid
from fewshot.published_recipe import PublishedRecipe, of_dataset
from fewshot.support import SupportSet
from fewshot.text import Text, required
from fewshot.threads import closed_form
from fewshot.training import batches, cosine_by_step, views_of

# Weight of the votes while training, and epochs, that the authors give for each dataset.
TRAINED = {
    "imagenet": (1.17, 20),
    "caltech101": (3.0, 20),
    "oxford_pets": (1.17, 20),
    "stanford_cars": (3.0, 20),
    "oxford_flowers": (10.0, 20),
    "food101": (1.17, 20),
    "fgvc_aircraft": (5.0, 20),
    "sun397": (1.17, 20),
    "dtd": (2.0, 20),
    "eurosat": (2.0, 100),
    "ucf101": (3.0, 20),
}


@dataclass(frozen=True)
class TipAdapterF(CacheMethod):
    """Tip-Adapter with keys moved by gradient descent; text and values stay.

    The keys start as Tip-Adapter's and lower the cross-entropy of

        logits(f) = logit_scale f.t + train_alpha exp(-train_beta (1 - f.F)) L

    on the support images, an augmented view at a time. Afterwards alpha and beta replace the
    pair that was trained with, and the keys stay as they are.

    Attributes:
        alpha: Weight of the votes when classifying; 0 is zero-shot CLIP.
        beta: Sharpness of the votes when classifying.
        train_alpha: Weight of the votes while training.
        train_beta: Sharpness of the votes while training.
        lr: AdamW's learning rate at the start, from where half a cosine leads to 0.
        weight_decay: Weight decay of AdamW.
        epochs: Passes over the support set.
        batch_size: Images per step.
        seed: Random seed for the order of the images.
        logit_scale: CLIP's inverse temperature.
    """

    # Published by dataset, 1.17 to 10. On UCF101's validation split and on held-out images of
    # WHU-RS19, 10 beats 3, 5 and 7 at 1 to 4 shots and is within 0.3 % of their best at 8 and 16.
    alpha: float = 10.0
    beta: float = 1.0
    train_alpha: float = 10.0
    train_beta: float = 1.0
    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 20
    batch_size: int = 256
    seed: int = 1
    logit_scale: float = 100.0

    name: ClassVar[str] = "tip-adapter-f"
    summary: ClassVar[str] = "As tip-adapter, with the remembered photos adjusted by training."
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=1000, seconds=0.6)
    grid: ClassVar[Grid] = {
        "beta": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        "alpha": (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0),
    }

    def __post_init__(self) -> None:
        non_negative(self, "alpha", "beta", "train_alpha", "train_beta", "weight_decay")
        positive(self, "lr")
        whole(self, "epochs", minimum=0)
        whole(self, "batch_size")

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the same search as of Tip-Adapter, after training as for each dataset."""
        alpha, epochs = of_dataset(TRAINED, dataset)
        return PublishedRecipe(
            settings={"train_alpha": alpha, "train_beta": 1.0, "epochs": epochs},
            grid=published_grid(dataset),
            tune="full-val",
            views=10,
        )

    @closed_form
    def fit(self, support: SupportSet, text: Text | None) -> CacheClassifier:
        """Train the keys.

        Raises:
            UserError: There is no text.
        """
        weight = self.logit_scale * required(text, self.name)
        trained = Adam(keys_of(support), weight_decay=self.weight_decay, decoupled=True, eps=1e-4)
        (keys,), (gradient,) = trained.values, trained.gradients
        zero_shot = views_of(support) @ weight.T  # (V, N, C)
        for f, y, rows, view, lr in batches(
            support,
            cosine_by_step(self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        ):
            affinities = (keys @ f.T).sub_(1).mul_(self.train_beta).exp_()  # (N, B)
            votes = f.new_zeros(len(weight), len(f)).index_add_(0, support.labels, affinities)
            logits = torch.add(zero_shot[view, rows], votes.T, alpha=self.train_alpha)
            of_votes = logit_gradient(logits, y).mul_(self.train_alpha * self.train_beta)
            affinities.mul_(of_votes.T.contiguous()[support.labels])
            torch.mm(affinities, f, out=gradient)
            trained.step(lr)
        cache = KeyValueCache(keys, support.labels, support.n_classes)
        stats = {"trained_parameters": trained.count}
        return CacheClassifier(weight, cache, self.alpha, self.beta, stats)
