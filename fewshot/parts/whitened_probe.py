"""Logistic regression from tempered zero-shot logits, on features whose classes are round.

A base of `fewshot.methods.stack`. A linear probe that starts at the class texts, as ELEVATER's (Li
et al., NeurIPS 2022, https://arxiv.org/abs/2204.08790), with two differences. It measures how far
it moves in the metric of the covariance within classes, as linear discriminant analysis does: along
directions in which the images of a class differ anyway, a step is dear. And zero-shot's logits are
not the start of a descent but a fixed offset, held back as the names are in doubt, so that the
optimum is unique and no learning rate matters.
"""

import torch
from torch import Tensor

from fewshot.classifier import LinearClassifier
from fewshot.parts.gaussian import class_means, shared_covariance
from fewshot.parts.logistic import logistic_path
from fewshot.support import SupportSet

PENALTY = 30.0
SHRINKAGE = 0.5
OFFSET = 0.6  # zero-shot's share of the logits where names leave no doubt


def whitened_probe(support: SupportSet, zero_shot: Tensor | None, doubt: float) -> LinearClassifier:
    """Return logits OFFSET (1 - doubt) f.t_k + v_k.A (f - mean) + b_k, with A'A the precision.

    V (C, D) and b minimize penalty/2 |V|^2 + the sum over images of the cross-entropy; the views of
    an image share its weight.

    Args:
        support: The labeled images.
        zero_shot: (C, D) texts t times CLIP's inverse temperature, or None.
        doubt: Zero-shot's; see `parts.doubt`.
    """
    features, labels = support.samples()
    n, n_classes = len(features), support.n_classes
    means = class_means(features, labels, n_classes, torch.float64)
    covariance = shared_covariance(features, labels, means, SHRINKAGE)
    if n > n_classes:  # residuals from C means have N - C degrees of freedom
        covariance *= (n - 1) / (n - n_classes)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, features.double().T, upper=False).T
    offset = None
    if zero_shot is not None:
        held = OFFSET * (1 - doubt) * zero_shot
        offset = features @ held.T
    strength = 1 / (PENALTY * support.n_views)
    solution = next(logistic_path(white, labels, n_classes, [strength], offset=offset, tol=1e-3))
    weight = torch.linalg.solve_triangular(root.T, solution.weight.T, upper=True).T
    if zero_shot is not None:
        weight = weight + held
    return LinearClassifier(weight.to(features), solution.bias.to(features))
