"""TaskRes's enhanced base: the text tower's projection, tuned before residuals are learned.

Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023,
https://arxiv.org/abs/2211.10277, section 4.1. The authors released such projections for one model
and no code that makes them, so the recipe here is theirs only where the paper says: the same few
shots, and 50 epochs. All else follows their recipe for residuals but the learning rate, which has
to suit weights a hundred times smaller than the text. It cannot be expected to give their numbers.
"""

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.parts.optimizers import Adam
from fewshot.parts.softmax_heads import across, cosine_gradient
from fewshot.support import SupportSet
from fewshot.text import Text
from fewshot.threads import closed_form
from fewshot.training import dassl_batches


def tower_end(text: Text | None, method: str) -> tuple[Tensor, Tensor]:
    """(C, W) pooled text and the (W, D) projection, for a method that cannot do without.

    Raises:
        UserError: There is no text, or it lacks them.
    """
    if text is None or text.pooled is None or text.projection is None:
        raise UserError(
            f"{method} needs text from before the text tower's projection, which this store does "
            "not hold; extract it again with --if-exists overwrite (a store of imported features, "
            "or of a model whose text tower does not end in a matrix, cannot have it)"
        )
    return text.pooled, text.projection


@closed_form
def tune_projection(
    support: SupportSet,
    pooled: Tensor,
    projection: Tensor,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    batch_size: int,
    seed: int,
    logit_scale: float,
) -> Tensor:
    """The (W, D) projection P under which the pooled text classifies the support set best.

    logits(f) = logit_scale f.t / |t|, t_k = p_k P, cross-entropy, and Adam with coupled weight
    decay, by the schedule of `cosine_by_epoch`.

    Args:
        support: The images.
        pooled: (C, W).
        projection: (W, D) to start from.
        lr: Learning rate.
        weight_decay: Times the projection, added to its gradient.
        epochs: Passes over the images.
        batch_size: Images per step.
        seed: Of the order of the images.
        logit_scale: CLIP's inverse temperature.
    """
    trained = Adam(projection, weight_decay=weight_decay, decoupled=False)
    (tuned,), (gradient,) = trained.values, trained.gradients
    for f, labels, _, _, rate in dassl_batches(
        support, lr=lr, epochs=epochs, batch_size=batch_size, seed=seed
    ):
        t = pooled @ tuned
        of_text = across(cosine_gradient(f, t, labels, logit_scale).T @ f, t)
        torch.mm(pooled.T, of_text, out=gradient)
        trained.step(rate)
    return tuned
