"""GDA without labels: a Gaussian mixture fitted by EM from where zero-shot CLIP starts it.

Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024,
https://arxiv.org/abs/2402.04087, section on unsupervised learning, of which no code was released.
Where the paper is silent: the covariance is shrunk as among the few shots; alpha is in GDA's own
unit; the number of iterations is fixed, where theirs run until convergence, since the mixture
grows surer of itself with every one; and a class has one image's worth of the average image
among its own, so that one without images has a mean and is left to the text.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewshot.checks import fraction, non_negative, one_of, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import LearnsFrom, Method
from fewshot.parts.gaussian import directions, lead, offsets, soft_covariance
from fewshot.support import SupportSet, unlabeled
from fewshot.text import Text, required

Priors = Literal["uniform", "estimated"]


@dataclass(frozen=True)
class GDAEM(Method):
    """Gaussian classes of one covariance, fitted to unlabeled images, added to zero-shot logits.

    From responsibilities r = softmax(logit_scale x.t), each iteration estimates

        mu_k  = (sum_i r_ik x_i + smoothing mu) / (n_k + smoothing),      n_k = sum_i r_ik,
        Sigma = mean over k of sum_i r_ik (x_i - mu_k)(x_i - mu_k)' / (n_k + smoothing),

    mu the mean of all images, then shrinks Sigma, and takes r from the softmax of the logits that
    GDA would have of them: zero-shot and Gaussian together. Those logits are the classifier.

    Attributes:
        alpha: Weight of the Gaussian term, as GDA's in its unit `lead`; the K there is the
            number of unlabeled images per class. 0 is zero-shot CLIP.
        iterations: EM steps; each estimates the Gaussians once.
        shrinkage: How far the covariance is shrunk toward the identity, in (0, 1]; or
            `published`, GDA's rule.
        smoothing: Images that each class has of the average image; 0 is plain EM.
        priors: Frequency of the classes: `uniform`, or `estimated` from the responsibilities.
        logit_scale: CLIP's inverse temperature.
    """

    # On UCF101's validation split, with its 16 shots for unlabeled images: least log-loss at an
    # alpha of 2 and best accuracy at 8, by then at a log-loss far above zero-shot's; either is best
    # after two or three iterations, and the log-loss has risen past zero-shot's after ten, at 3.
    alpha: float = 3.0
    iterations: int = 5
    shrinkage: Literal["published"] | float = "published"
    smoothing: float = 1.0
    priors: Priors = "uniform"
    logit_scale: float = 100.0

    name: ClassVar[str] = "gda-em"
    blends: ClassVar[bool] = False
    summary: ClassVar[str] = (
        "As gda, with photos that nobody has labeled; it starts from what the class names say."
    )
    learns_from: ClassVar[LearnsFrom] = "images"

    def __post_init__(self) -> None:
        non_negative(self, "alpha", hint="0 is zero-shot")
        whole(self, "iterations", hint="5 is usual")
        fraction(self, "shrinkage", above_zero=True, words=("published",), hint="1 is the identity")
        non_negative(self, "smoothing", hint="1 is usual")
        one_of(self, "priors", get_args(Priors))

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Fit to the support set's images; labels and views are not looked at."""
        return self.fit_unlabeled(support.features, text)

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> LinearClassifier:
        """Fit to the features (U, D) of unlabeled images.

        Raises:
            UserError: There is no text, or there are fewer than two images.
        """
        images = unlabeled(images, self.name)
        anchor = self.logit_scale * required(text, self.name).double()
        x = images.double()
        zero_shot = linear(x, anchor)
        logits = zero_shot
        for _ in range(self.iterations):
            weight, bias = self._gaussians(x, torch.softmax(logits, dim=1))
            logits = zero_shot + self.alpha * linear(x, weight, bias)
        weight, bias = anchor + self.alpha * weight, self.alpha * bias
        return LinearClassifier(weight.to(images), bias.to(images))

    def _gaussians(self, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the Gaussian term at alpha 1: the M-step.

        Args:
            x: (U, D).
            shares: (U, C) the responsibilities.
        """
        # Against a class that underflowed to nothing, where there is no smoothing.
        mass = shares.sum(dim=0)
        smoothing = max(self.smoothing, 1e-12)
        means = (shares.T @ x + smoothing * x.mean(dim=0)) / (mass + smoothing)[:, None]
        if (means - means.mean(dim=0)).norm() < 1e-6:  # nothing to learn: all images or text alike
            return torch.zeros_like(means), means.new_zeros(len(means))
        covariance = soft_covariance(x, shares / (mass + smoothing), means, self.shrinkage)
        weight = directions(means, covariance)
        bias = offsets(means, weight)
        if self.priors == "estimated":
            bias += ((mass + smoothing) / (mass + smoothing).mean()).log()
        unit = math.sqrt(len(x) / len(means)) / lead(means, weight)
        return unit * weight, unit * bias
