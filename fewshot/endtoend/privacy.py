"""DP-SGD: gradients that say little of any one image, and the account of how little.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, https://arxiv.org/abs/1607.00133.
Each step sees every image with the same probability, clips the gradient of each one to a norm, and
adds normal noise to their sum. opacus says how much noise it takes.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cache.errors import UserError, count

ACCOUNT = ("epsilon", "delta", "noise_multiplier", "sample_rate", "private_steps")
# Images (B, 3, H, W) and labels (B,) to the mean loss and the logits (B, C).
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of N training images, if one of them more or less is to go unnoticed.

    Attributes:
        epsilon: Bound on what all steps together show of one image.
        delta: Probability with which that bound may fail.
        clip: Maximum norm of one image's gradient.
        n_images: N.
        batch_size: Images per step, expected.
        steps: Of the training.
        repeatable: Draw by the seed, so that whoever knows it can subtract the noise; else by the
            system's random numbers.
    """

    epsilon: float
    delta: float
    clip: float
    n_images: int
    batch_size: int
    steps: int
    repeatable: bool = False

    @property
    def rate(self) -> float:
        """Probability with which an image is in a step."""
        return min(1.0, self.batch_size / self.n_images)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the noise, as a multiple of `clip`.

        Raises:
            UserError: opacus is not installed, or no noise is enough.
        """
        try:
            from opacus.accountants.utils import get_noise_multiplier
        except ImportError:
            raise UserError(
                "the noise of private training is found by the package opacus, which is not "
                "installed; run: pip install 'fewshot-clip[private]'"
            ) from None
        with warnings.catch_warnings(action="ignore"):  # that the bound could be a little tighter
            try:
                noise: float = get_noise_multiplier(
                    target_epsilon=self.epsilon,
                    target_delta=self.delta,
                    sample_rate=self.rate,
                    steps=self.steps,
                    accountant="rdp",
                )
            except ValueError:
                raise UserError(
                    f"no noise gives epsilon={self.epsilon:g} at delta={self.delta:g} in "
                    f"{count(self.steps, 'step')}; use a larger epsilon, or fewer steps"
                ) from None
        return noise

    def account(self) -> dict[str, float]:
        """Privacy spent, by name; of a repeatable training no epsilon, for it protects nobody."""
        from opacus.accountants import RDPAccountant

        ledger = RDPAccountant()
        ledger.history = [(self.noise, self.rate, self.steps)]
        with warnings.catch_warnings(action="ignore"):
            bound = {"epsilon": float(ledger.get_epsilon(delta=self.delta)), "delta": self.delta}
        how = (self.noise, self.rate, float(self.steps))
        return ({} if self.repeatable else bound) | dict(zip(ACCOUNT[2:], how, strict=True))

    def draw(self, seed: int, step: int, what: int) -> np.random.Generator:
        """Random numbers for one use in a step."""
        return np.random.default_rng([seed % 2**64, step, what] if self.repeatable else None)

    def rows(self, seed: int, step: int) -> Tensor:
        """(B,) the images of a step, each there or not whatever the others are; B may be 0."""
        there = self.draw(seed, step, 0).random(self.n_images) < self.rate
        return torch.from_numpy(np.flatnonzero(there))


def spent(account: Mapping[str, float]) -> str:
    """A sentence on a finished training's account of privacy."""
    how = (
        f"{account['private_steps']:.0f} steps, each image in one with probability "
        f"{account['sample_rate']:.3g}, noise {account['noise_multiplier']:.3g} times the clip norm"
    )
    if "epsilon" not in account:
        return f"not private, since whoever knows the seed can subtract the noise: {how}"
    bound = f"epsilon {account['epsilon']:.3g} at delta {account['delta']:.3g}"
    return f"private train images: {bound}; {how}"


class _Single(nn.Module):
    """The loss of one image, as a module that holds the model's parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self.loss(image[None], label[None])
        return loss, logits[0]


def private_gradients(
    model: nn.Module,
    loss: Loss,
    trained: Mapping[str, nn.Parameter],
    given: Tensor,
    truth: Tensor,
    *,
    clip: float,
    noise: float,
    expected: int,
    draw: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Set each parameter's gradient to (sum of clipped gradients + noise) / expected images.

    Args:
        model: Of which `loss` makes use.
        loss: Mean loss and logits of images and labels.
        trained: Path in the model -> parameter.
        given: Images (B, 3, H, W); B may be 0.
        truth: (B,) class ids.
        clip: Maximum norm of an image's gradient, over all parameters.
        noise: Standard deviation of what is added to the sum, as a multiple of `clip`.
        expected: Images per step, expected.
        draw: Random numbers of the noise.

    Returns:
        The images' mean loss, 0 of none, and their (B, C) logits, neither of them private.
    """
    sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    mean, logits = torch.zeros(()), torch.zeros(0, 1)
    if len(given):
        single = _Single(model, loss)
        here = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}
        each = vmap(
            grad_and_value(lambda p, x, y: functional_call(single, p, (x, y)), has_aux=True),
            in_dims=(None, 0, 0),
        )
        with sdpa_kernel(SDPBackend.MATH):  # the others are not made for vmap, and slow there
            of_each, (losses, logits) = each(here, given, truth)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in of_each.values()]).norm(dim=0)
        shares = (clip / norms).clamp(max=1.0)
        sums = {name: torch.tensordot(shares, of_each[f"model.{name}"], 1) for name in trained}
        mean = losses.mean()
    for name, parameter in trained.items():
        drawn = torch.from_numpy(draw.standard_normal(parameter.shape)).to(parameter)
        # An infinite clip is for no noise at all.
        spread = noise * clip if noise else 0.0
        parameter.grad = (sums[name] + spread * drawn) / expected
    return mean, logits
