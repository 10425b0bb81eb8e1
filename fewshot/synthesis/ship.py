"""SHIP: a variational autoencoder makes image features of classes that have a name and no image.

Wang et al., "Improving Zero-Shot Generalization for CLIP with Synthesized Prompts", ICCV 2023,
https://arxiv.org/abs/2307.07397. A generator G makes a shift of a latent vector z, and a decoder
makes a feature of a class and the shift. The published one adds context and shift to the words of a
prompt, which the frozen text tower reads; it is `endtoend.prompt_decoder`, since it takes a model.
From stored features there is no text tower, and `ClassTexts` adds both to the class text itself:

    f' = normalize(t_c + context + G(z)),

with the same encoder, the same loss, and the last epoch in place of the best on the test split.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cache.progress import progress
from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.support import SupportSet
from fewshot.training import minimize

DecoderName = Literal["text", "tower"]
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


class FeatureDecoder(Protocol):
    """A module that makes features of classes and shifts; of C classes, the base ones first.

    Attributes:
        width: W of a shift.
        reads: Name of what it makes a feature of, as progress counts it.
    """

    width: int
    reads: str

    def __call__(self, labels: Tensor, shifts: Tensor, /) -> Tensor:
        """(B, D) features at unit norm of (B,) class ids and (B, W) shifts."""
        ...

    def parameters(self) -> Any:
        """Return what learns."""
        ...


class ClassTexts(nn.Module):
    """The decoder that adds context and shift to the class text.

    Args:
        text: (C, D) class texts of any norm.
    """

    reads = "class texts"

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.width = text.shape[1]
        self.text = normalize(text, dim=1)
        self.context = nn.Parameter(torch.zeros(self.width))

    def forward(self, labels: Tensor, shifts: Tensor) -> Tensor:
        """(B, D) features at unit norm of (B,) class ids and (B, D) shifts."""
        return normalize(self.text[labels] + self.context + shifts, dim=1)


class Autoencoder(nn.Module):
    """The encoder of image features, and the generator of a decoder's shifts.

    Args:
        dim: D of the features.
        latent: Z of the latent vectors.
        hidden: Units of the hidden layers.
        width: W of the shifts.
        generator: Draws the weights.
    """

    def __init__(
        self, dim: int, latent: int, hidden: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        layers = (nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.generator = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=INIT, generator=generator)
                nn.init.zeros_(layer.bias)

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, Z) of the posterior of (B, D) features."""
        hidden = self.encoder(features)
        return self.mean(hidden), self.log_variance(hidden)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) KL divergences of N(mean, variance), of (B, Z) each, from N(0, I)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """A trained autoencoder and its decoder.

    Attributes:
        autoencoder: The networks.
        decoder: The decoder.
        latent: Z.
        log: Every epoch's loss, the first one first.
    """

    autoencoder: Autoencoder
    decoder: FeatureDecoder
    latent: int
    log: tuple[Epoch, ...]

    @torch.no_grad()
    def features(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, D) features at unit norm, one for each of (n,) class ids, by z from the prior.

        Args:
            labels: The class ids.
            generator: Draws z.
        """
        z = torch.randn(len(labels), self.latent, generator=generator)
        return self.decoder(labels, self.autoencoder.generator(z))


@dataclass(frozen=True)
class Ship:
    """The settings of the autoencoder, and how many features it makes.

    Attributes:
        decoder: Maker of features: a shift of the class `text`; or the text `tower` of a shifted
            prompt, as published.
        beta: Weight of the KL divergence; 1 as published.
        images: Features to make of each class.
        latent: Z, length of a latent vector.
        hidden: Units of the hidden layers. The paper has 512, 2048 and 4096, for prompts. Here
            fewer are as good or better on four datasets, for less noise is left in a collapsed
            G(z); docs/guide/ship.md has the table.
        epochs: Passes over the images.
        lr: AdamW's learning rate.
        batch_size: Images per step.
    """

    decoder: DecoderName = "text"
    beta: float = 1.0
    images: int = 16
    latent: int = 64
    hidden: int = 256
    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 256

    name: ClassVar[str] = "ship"

    def __post_init__(self) -> None:
        one_of(self, "decoder", get_args(DecoderName))
        non_negative(self, "beta")
        positive(self, "lr")
        whole(self, "images", "latent", "hidden", "epochs", "batch_size")

    def train(self, support: SupportSet, decoder: FeatureDecoder, seed: int) -> Synthesizer:
        """Train on the images of the base classes, of which the last epoch counts.

        Args:
            support: N images of the base classes, of any norm.
            decoder: The decoder of all classes, which learns as well.
            seed: Random seed for the weights, the batches and the latent vectors.
        """
        draws = torch.Generator().manual_seed(seed)
        dim = support.features.shape[1]
        model = Autoencoder(dim, self.latent, self.hidden, decoder.width, draws)
        steps: list[tuple[int, float, float]] = []

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            f = normalize(features, dim=1)
            mean, log_variance = model.encode(f)
            noise = torch.randn(mean.shape, generator=draws)
            shifts = model.generator(mean + noise * (log_variance / 2).exp())
            reconstruction = (decoder(labels, shifts) - f).square().sum(dim=1).mean()
            kl = divergence(mean, log_variance).mean()
            steps.append((len(labels), reconstruction.item(), kl.item()))
            advance(len(labels), f"KL {kl.item():.2g} nats")
            return reconstruction + self.beta * kl

        total = self.epochs * len(support.labels)
        with progress(f"{self.name}: {decoder.reads}", total, patience=2.0) as advance:
            minimize(
                loss,
                torch.optim.AdamW([*model.parameters(), *decoder.parameters()], lr=self.lr),
                lambda epoch, done: self.lr,
                support,
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=seed,
                many_threads=self.decoder == "tower",
            )
        return Synthesizer(model, decoder, self.latent, _by_epoch(steps, self.epochs))


def _by_epoch(steps: list[tuple[int, float, float]], epochs: int) -> tuple[Epoch, ...]:
    """The means of each epoch's images, of the size and the two means of each step."""
    each = torch.tensor(steps, dtype=torch.float64).view(epochs, -1, 3)
    sizes, values = each[:, :, :1], each[:, :, 1:]
    means = (sizes * values).sum(dim=1) / sizes.sum(dim=1)
    return tuple(Epoch(*map(float, mean)) for mean in means)
