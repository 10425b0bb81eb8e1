"""The networks of TF-VAEGAN, and what they take and lose.

Narayan et al., "Latent Embedding Feedback and Discriminative Features for Zero-Shot
Classification", ECCV 2020, https://arxiv.org/abs/2003.07833.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from fewshot.synthesis.critic import SLOPE, Critic

INIT = 0.02  # standard deviation of all weights at the start, as published


class FeatureEncoder(nn.Module):
    """The encoder of (B, D) features with (B, A) attributes into (B, Z) latent vectors."""

    def __init__(self, dim: int, attributes: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim + attributes, hidden)
        self.second = nn.Linear(hidden, 2 * latent)
        self.mean = nn.Linear(2 * latent, latent)
        self.log_variance = nn.Linear(2 * latent, latent)

    def forward(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (B, Z) each."""
        h = leaky_relu(self.first(torch.cat([x, a], dim=1)), SLOPE)
        h = leaky_relu(self.second(h), SLOPE)
        return self.mean(h), self.log_variance(h)


class Decoder(nn.Module):
    """The decoder of (..., D) features into (..., A) attributes at unit norm."""

    def __init__(self, dim: int, attributes: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden)
        self.second = nn.Linear(hidden, attributes)

    def hidden(self, x: Tensor) -> Tensor:
        """Return the (..., H) hidden layer."""
        return leaky_relu(self.first(x), SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attributes."""
        return normalize(self.second(self.hidden(x)), dim=-1)


class Feedback(nn.Module):
    """The network from the decoder's hidden layer to the generator's."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor) -> Tensor:
        """Return (B, H) what to add to the generator's hidden layer."""
        return leaky_relu(self.second(leaky_relu(self.first(h), SLOPE)), SLOPE)


class Generator(nn.Module):
    """The generator of (B, D) features from 0 to 1, of (B, Z) latent vectors and attributes."""

    def __init__(self, dim: int, attributes: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent + attributes, hidden)
        self.second = nn.Linear(hidden, dim)

    def forward(self, z: Tensor, a: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the features, with (B, H) added to the hidden layer if anything is."""
        h = leaky_relu(self.first(torch.cat([z, a], dim=1)), SLOPE)
        x: Tensor = self.second(h if added is None else h + added)
        return x.sigmoid()


def start(network: nn.Module, draws: torch.Generator) -> None:
    """Set weights and biases as published, in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=INIT, generator=draws)
            nn.init.zeros_(layer.bias)


class Networks(nn.Module):
    """All networks.

    Args:
        dim: D of the features.
        attributes: A.
        latent: Z of the latent vectors.
        hidden: Units of the hidden layers.
        feedback: Weight of the feedback.
        draws: Draws the weights.
    """

    def __init__(
        self,
        dim: int,
        attributes: int,
        latent: int,
        hidden: int,
        feedback: float,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self.weight, self.latent = feedback, latent
        self.encoder = FeatureEncoder(dim, attributes, latent, hidden)
        self.generator = Generator(dim, attributes, latent, hidden)
        self.decoder = Decoder(dim, attributes, hidden)
        self.feedback = Feedback(hidden)
        self.seen, self.unseen = (Critic(dim, attributes, hidden) for _ in range(2))
        start(self, draws)

    def make(self, z: Tensor, a: Tensor, *, feedback: bool) -> Tensor:
        """Return (B, D) features, generated again with what the decoder feeds back if so asked."""
        made: Tensor = self.generator(z, a)
        if feedback:
            added = self.feedback(self.decoder.hidden(made))
            made = self.generator(z, a, self.weight * added)
        return made


def decoding_loss(p: Tensor, a: Tensor) -> Tensor:
    """Mean of sum_j |p_j - a_j|^3 / |p - a| over (B, A) decoded and true attributes."""
    off = p - a
    length = off.norm(dim=1).clamp_min(1e-12)
    each: Tensor = off.abs().pow(3).sum(dim=1) / length
    return each.mean()


def standardized(attributes: Tensor) -> Tensor:
    """(C, A) attributes, each of mean 0 and deviation 1 over the classes, then at unit norm.

    So published, and needed for class texts, which are mostly what they have in common.
    """
    centered = attributes - attributes.mean(dim=0)
    deviation = centered.square().mean(dim=0).sqrt()
    return normalize(centered / deviation.clamp_min(1e-6), dim=1)


@dataclass(frozen=True, eq=False)
class Scale:
    """The map of features to 0 to 1, by the smallest and largest values of the seen classes.

    Attributes:
        low: (D,) smallest values.
        width: (D,) the largest minus these.
    """

    low: Tensor
    width: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Scale":
        """The map for (N, D) features."""
        low = features.amin(dim=0)
        return cls(low, (features.amax(dim=0) - low).clamp_min(1e-6))

    def into(self, features: Tensor) -> Tensor:
        """Return the features on that scale; those of other images may lie outside 0 to 1."""
        return (features - self.low) / self.width

    def back(self, scaled: Tensor) -> Tensor:
        """Return what was scaled, at unit norm."""
        return normalize(scaled * self.width + self.low, dim=1)
