"""TaskRes's residuals, trained for several weights alpha side by side, and what they classify."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.classifier import require_width
from fewshot.parts.optimizers import Adam
from fewshot.parts.softmax_heads import TINY, across, cosine_gradient
from fewshot.support import SupportSet
from fewshot.threads import closed_form
from fewshot.training import dassl_batches


@dataclass(frozen=True, eq=False)
class ShiftedClassifier:
    """Cosines to weights, of features that all were shifted alike.

    Attributes:
        weight: (C, D).
        shift: (D,), added to every feature of unit norm before it is normalized again.
        stats: See `Classifier`.
    """

    weight: Tensor
    shift: Tensor
    stats: Mapping[str, float]

    kind: ClassVar[str] = "shifted"

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        return linear(normalize(features + self.shift), self.weight)


@closed_form
def learn_residuals(
    support: SupportSet,
    t: Tensor,
    alphas: Sequence[float],
    *,
    kinds: Sequence[str],
    learn_alpha: bool,
    norm: float,
    lr: float,
    weight_decay: float,
    epochs: int,
    batch_size: int,
    seed: int,
    logit_scale: float,
) -> tuple[Tensor, Tensor, int]:
    """Residuals for each of A alphas, trained by Adam on the same batches.

    With images f at norm 1 and t'_k = t_k + alpha x_k, logits are

        logit_scale f'.t'_k / (|f'| |t'_k|),    f' = f + alpha / norm x.

    Args:
        support: The images.
        t: (C, D) class text.
        alphas: Of each residual, or where it starts.
        kinds: What has a residual: `text`, `image` or both.
        learn_alpha: Train alpha as well.
        norm: What images are brought to before their residual is added.
        lr: Learning rate; `cosine_by_epoch`.
        weight_decay: Times what is trained, added to its gradient.
        epochs: Passes over the images.
        batch_size: Images per step.
        seed: Of the order of the images.
        logit_scale: CLIP's inverse temperature.

    Returns:
        Alpha x_k (A, C, D), alpha x (A, D) for images of norm 1, and how many numbers are
        trained for an alpha.
    """
    starts = {
        "text": t.new_zeros(len(alphas), *t.shape),
        "image": t.new_zeros(len(alphas), 1, t.shape[1]),
        "alpha": t.new_tensor(alphas)[:, None, None],
    }
    names = (*kinds, "alpha") if learn_alpha else kinds
    trained = Adam(*(starts[name] for name in names), weight_decay=weight_decay, decoupled=False)
    gradients = dict(zip(names, trained.gradients, strict=True))
    values = starts | dict(zip(names, trained.values, strict=True))
    x, x_image, alpha = values["text"], values["image"], values["alpha"]
    for f, y, _, _, rate in dassl_batches(
        support, lr=lr, epochs=epochs, batch_size=batch_size, seed=seed
    ):
        if "image" in kinds:
            f = torch.addcmul(f, alpha / norm, x_image)  # (A, B, D)
            length = torch.linalg.vector_norm(f, dim=-1, keepdim=True).clamp_min_(TINY)
            f.div_(length)
        moved = torch.addcmul(t, alpha, x)  # t' (A, C, D)
        g = cosine_gradient(f, moved, y, logit_scale)  # (A, B, C)
        of_moved = {}  # gradients with respect to alpha times a residual
        if "text" in kinds:
            of_moved["text"] = across(g.mT @ f, moved)
        if "image" in kinds:
            of_images = across(g @ moved, f).div_(length)
            of_moved["image"] = of_images.sum(dim=1, keepdim=True).div_(norm)
        for kind, of in of_moved.items():
            torch.mul(of, alpha, out=gradients[kind])
        if learn_alpha:
            of_alpha = [(of * values[kind]).sum(dim=(1, 2)) for kind, of in of_moved.items()]
            torch.sum(torch.stack(of_alpha), dim=0, out=gradients["alpha"][:, 0, 0])
        trained.step(rate)
    shift = (alpha / norm * x_image)[:, 0]
    return alpha * x, shift, int(trained.count) // len(alphas)
