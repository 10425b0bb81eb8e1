"""Class prototypes trained from the text, and held near it, as ZS-LP and CLAP have them."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.classifier import LinearClassifier
from fewshot.parts.optimizers import SGD
from fewshot.parts.softmax_heads import across, cosine_gradient
from fewshot.support import SupportSet
from fewshot.threads import closed_form
from fewshot.training import dassl_batches

TYPICAL_NORM = 10.0  # of what CLIP's text tower puts out, about 7 to 11


def raw_text(features: Tensor) -> Tensor:
    """(C, D) text features as the encoder may have given them, where they were normalized."""
    return TYPICAL_NORM * features if float(features.norm(dim=1).mean()) < 2 else features


@closed_form
def learn_prototypes(
    support: SupportSet,
    start: Tensor,
    weights: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    logit_scale: float,
    seed: int,
) -> LinearClassifier:
    """Prototypes trained by cross-entropy + mean_k lambda_k |w_k - t_k|^2.

    Its gradient in w_k is that of the cross-entropy and 2 lambda_k (w_k - t_k) / C.

    Args:
        support: The images.
        start: (C, D) t, where the prototypes begin and are held.
        weights: (C,) lambda.
        lr: Learning rate; `cosine_by_epoch`.
        epochs: Passes over the images.
        batch_size: Images per step.
        logit_scale: CLIP's inverse temperature.
        seed: Of the batches.
    """
    trained = SGD(start, momentum=0.9)
    (w,), (gradient,) = trained.values, trained.gradients
    pull = 2 / len(start) * weights[:, None] if weights.any() else None
    for f, labels, _, _, rate in dassl_batches(
        support, lr=lr, epochs=epochs, batch_size=batch_size, seed=seed
    ):
        torch.mm(cosine_gradient(f, w, labels, logit_scale).T, f, out=gradient)
        across(gradient, w)
        if pull is not None:
            gradient.addcmul_(pull, w - start)
        trained.step(rate)
    stats = {
        "trained_parameters": trained.count,
        "residual_size": float(((w - start).norm(dim=1) / start.norm(dim=1)).mean()),
    }
    return LinearClassifier(logit_scale * normalize(w), stats=stats)
