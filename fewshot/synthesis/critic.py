"""The critic of a Wasserstein GAN with gradient penalty, and what it and its adversary minimize.

Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017,
https://arxiv.org/abs/1704.00028.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

SLOPE = 0.2  # of LeakyReLU below zero


class Critic(nn.Module):
    """A network that scores a feature together with its condition; higher is more real.

    Args:
        dim: D of the features.
        condition: A of the conditions.
        hidden: Units of the one hidden layer.
    """

    def __init__(self, dim: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = nn.Linear(dim + condition, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """Return (B,) scores of (B, D) features and (B, A) conditions."""
        h = leaky_relu(self.hidden(torch.cat([x, a], dim=1)), SLOPE)
        score: Tensor = self.score(h)[:, 0]
        return score

    def gradient(self, x: Tensor, a: Tensor) -> Tensor:
        """Return (B, D) gradients of the scores by the features.

        One hidden layer has them in closed form, which costs half of differentiating twice.
        """
        with torch.no_grad():
            below = self.hidden(torch.cat([x, a], dim=1)) < 0
        steps = torch.where(below, SLOPE, 1.0) * self.score.weight
        gradient: Tensor = steps @ self.hidden.weight[:, : self.dim]
        return gradient

    def penalty(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the mean of (|gradient| - 1)^2 at (B, D) features."""
        off: Tensor = self.gradient(x, a).norm(dim=1) - 1
        return off.square().mean()


def between(real: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
    """(B, D) features on the lines from real to made ones, each at a place of its own."""
    place = torch.rand(len(real), 1, generator=draws)
    return torch.lerp(made, real, place)


def next_weight(weight: float, penalty: float) -> float:
    """The penalty's weight for the next step: it follows the mean penalty, as in TF-VAEGAN."""
    return weight * 1.1 if penalty > 1.05 else weight / 1.1 if penalty < 1.001 else weight
