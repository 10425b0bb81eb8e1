"""Text-initialized probe: a linear head that starts as the zero-shot classifier.

Li et al., "ELEVATER: A Benchmark and Toolkit for Evaluating Language-Augmented Visual Models",
NeurIPS 2022, https://arxiv.org/abs/2204.08790, there called language-augmented initialization.
Differs from the authors' toolkit: learning rate and weight decay are fixed rather than searched on
a validation set; the optimizer is AdamW; the logit scale is CLIP's, so that the head starts as
zero-shot CLIP, temperature and all.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from cache.errors import UserError
from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import Method, PracticalSize
from fewshot.parts.optimizers import Adam
from fewshot.parts.softmax_heads import inner, logit_gradient
from fewshot.support import SupportSet
from fewshot.text import Text, required
from fewshot.threads import closed_form
from fewshot.training import batches, cosine_by_step

Init = Literal["text", "random"]


@dataclass(frozen=True)
class TextProbe(Method):
    """Logits logit_scale (W f + b), or logit_scale (W A f + b) with a visual projection A.

    All of W (C, D), b (C,) and A (D, D) is trained, by the cross-entropy of mini-batches. b starts
    at zero, A as the identity, W as the text features or at random.

    Attributes:
        init: Start of W: the `text`, or `random`, which needs none.
        projections: Number of matrices: 1 for the head alone, 2 for A before it.
        lr: Learning rate at the start; it falls to zero along half a cosine.
        weight_decay: Weight decay of AdamW.
        epochs: Passes over the images.
        batch_size: Images per step.
        logit_scale: CLIP's inverse temperature.
        seed: Random seed for the batches, and for a random W.
    """

    init: Init = "text"
    projections: int = 1
    # About the best of rates 3e-4 to 3e-3 and 20 to 100 epochs on UCF101's validation split, at
    # each K from 1 to 16.
    lr: float = 3e-4
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int = 256
    logit_scale: float = 100.0
    seed: int = 1

    name: ClassVar[str] = "text-probe"
    summary: ClassVar[str] = "Draws straight borders that start where the class names put them."
    practical_size: ClassVar[PracticalSize] = PracticalSize(
        images=2000, logits=100_000, seconds=0.3
    )

    def __post_init__(self) -> None:
        one_of(self, "init", get_args(Init))
        if self.projections not in (1, 2):
            raise UserError(
                f"projections must be 1 or 2; got {self.projections}; 1 is the head alone"
            )
        positive(self, "lr")
        non_negative(self, "weight_decay")
        whole(self, "epochs", "batch_size")

    @closed_form
    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Train; what comes out is linear, with one projection or two.

        Raises:
            UserError: The head is to start as the text, and there is none.
        """
        dim = support.features.shape[1]
        from_text = self.init == "text"
        head = required(text, self.name) if from_text else random_head(support, self.seed)
        starts = [head, head.new_zeros(len(head))]
        if self.projections == 2:
            starts.append(torch.eye(dim).to(head))
        trained = Adam(*starts, weight_decay=self.weight_decay, decoupled=True)
        (w, b, *visual), (of_w, of_b, *of_visual) = trained.values, trained.gradients
        for f, labels, _, _, rate in batches(
            support,
            cosine_by_step(self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        ):
            x = linear(f, visual[0]) if visual else f
            logits = inner(x, w).add_(b).mul_(self.logit_scale)
            gradient = logit_gradient(logits, labels).mul_(self.logit_scale)
            torch.mm(gradient.T, x, out=of_w)
            torch.sum(gradient, dim=0, out=of_b)
            if visual:
                torch.mm((gradient @ w).T, f, out=of_visual[0])
            trained.step(rate)
        weight = self.logit_scale * (w @ visual[0] if visual else w)
        stats = {"trained_parameters": trained.count}
        return LinearClassifier(weight, self.logit_scale * b, stats)


def random_head(support: SupportSet, seed: int) -> Tensor:
    """(C, D) weights as torch's Linear draws them, from U(-1, 1) / sqrt(D)."""
    dim = support.features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = 2 * torch.rand(support.n_classes, dim, generator=generator) - 1
    return (drawn / math.sqrt(dim)).to(support.features)
