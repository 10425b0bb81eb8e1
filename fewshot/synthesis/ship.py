"""SHIP: a variational autoencoder makes image features of classes that have a name and no image.

Wang et al., "Improving Zero-Shot Generalization for CLIP with Synthesized Prompts", ICCV 2023,
https://arxiv.org/abs/2307.07397. There the decoder adds a bias to the context of a prompt, the same
for every class, and the frozen text tower makes features of it. From stored features there is no
text tower, so here the bias is added to the class text itself:

    f' = normalize(t_c + context + G(z)),

with the same encoder, the same loss, and the last epoch in place of the best on the test split.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot.checks import non_negative, positive, whole
from fewshot.support import SupportSet
from fewshot.training import minimize

INIT = 0.02  # standard deviation of all weights at the start, as published


class Epoch(NamedTuple):
    """Means over the images of one epoch.

    Attributes:
        reconstruction: |f' - f|^2.
        kl: Divergence of the posterior from the prior in nats; near 0 the posterior has collapsed,
            and a class's features differ by next to nothing.
    """

    reconstruction: float
    kl: float


class Autoencoder(nn.Module):
    """The encoder of image features, and the decoder from class text and a latent vector.

    Args:
        dim: D of the features.
        latent: Z of the latent vectors.
        hidden: Units of the hidden layers.
        generator: Draws the weights.
    """

    def __init__(self, dim: int, latent: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.generator = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.context = nn.Parameter(torch.zeros(dim))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=INIT, generator=generator)
                nn.init.zeros_(layer.bias)

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, Z) of the posterior of (B, D) features."""
        hidden = self.encoder(features)
        return self.mean(hidden), self.log_variance(hidden)

    def decode(self, text: Tensor, z: Tensor) -> Tensor:
        """Return (B, D) features at unit norm of (B, D) class texts and (B, Z) latent vectors."""
        made: Tensor = normalize(text + self.context + self.generator(z), dim=1)
        return made


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) KL divergences of N(mean, variance), of (B, Z) each, from N(0, I)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """A trained autoencoder.

    Attributes:
        autoencoder: The networks.
        latent: Z.
        log: Every epoch's loss, the first one first.
    """

    autoencoder: Autoencoder
    latent: int
    log: tuple[Epoch, ...]

    @torch.no_grad()
    def features(self, text: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, D) features at unit norm, one for each of the labels, by z from the prior.

        Args:
            text: (C, D) class texts at unit norm.
            labels: (n,) rows of the text.
            generator: Draws z.
        """
        z = torch.randn(len(labels), self.latent, generator=generator)
        return self.autoencoder.decode(text[labels], z)


@dataclass(frozen=True)
class Ship:
    """The settings of the autoencoder, and how many features it makes.

    Attributes:
        beta: Weight of the KL divergence; 1 as published.
        images: Features to make of each class.
        latent: Z, length of a latent vector.
        hidden: Units of the hidden layers. The paper has 512, 2048 and 4096, for prompts. Here
            fewer are as good or better on four datasets, for less noise is left in a collapsed
            G(z); docs/guide/label-only.md has the table.
        epochs: Passes over the images.
        lr: AdamW's learning rate.
        batch_size: Images per step.
    """

    beta: float = 1.0
    images: int = 16
    latent: int = 64
    hidden: int = 256
    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 256

    name: ClassVar[str] = "ship"

    def __post_init__(self) -> None:
        non_negative(self, "beta")
        positive(self, "lr")
        whole(self, "images", "latent", "hidden", "epochs", "batch_size")

    def train(self, support: SupportSet, text: Tensor, seed: int) -> Synthesizer:
        """Train on the images of the base classes, of which the last epoch counts.

        Args:
            support: N images of the C base classes, of any norm.
            text: (C, D) their texts, of any norm.
            seed: Random seed for the weights, the batches and the latent vectors.
        """
        draws = torch.Generator().manual_seed(seed)
        model = Autoencoder(support.features.shape[1], self.latent, self.hidden, draws)
        t = normalize(text, dim=1)
        steps: list[tuple[int, float, float]] = []

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            f = normalize(features, dim=1)
            mean, log_variance = model.encode(f)
            noise = torch.randn(mean.shape, generator=draws)
            made = model.decode(t[labels], mean + noise * (log_variance / 2).exp())
            reconstruction = (made - f).square().sum(dim=1).mean()
            kl = divergence(mean, log_variance).mean()
            steps.append((len(labels), reconstruction.item(), kl.item()))
            return reconstruction + self.beta * kl

        minimize(
            loss,
            torch.optim.AdamW(model.parameters(), lr=self.lr),
            lambda epoch, done: self.lr,
            support,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
        )
        return Synthesizer(model, self.latent, _by_epoch(steps, self.epochs))


def _by_epoch(steps: list[tuple[int, float, float]], epochs: int) -> tuple[Epoch, ...]:
    """The means of each epoch's images, of the size and the two means of each step."""
    each = torch.tensor(steps, dtype=torch.float64).view(epochs, -1, 3)
    sizes, values = each[:, :, :1], each[:, :, 1:]
    means = (sizes * values).sum(dim=1) / sizes.sum(dim=1)
    return tuple(Epoch(*map(float, mean)) for mean in means)
