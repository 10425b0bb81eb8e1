"""The training of TF-VAEGAN with pseudo-attributes: one step of all networks after another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, normalize
from torch.optim import Adam

from cache.errors import UserError
from cache.progress import progress
from fewshot.support import SupportSet
from fewshot.synthesis.critic import Critic, between, next_weight
from fewshot.synthesis.feedback_networks import Networks, Scale, decoding_loss, standardized
from fewshot.synthesis.ship import divergence
from fewshot.synthesis.tf_vaegan import TfVaegan
from fewshot.threads import few_threads
from fewshot.training import Batch, batches

UNSEEN_SCALE = 10.0  # weight of the decoder's loss on generated features of unseen classes
SCALE = 100.0  # CLIP's inverse temperature
DIVERGED = 100.0  # a mean gradient penalty at which gradients are eleven times too long

Pair = tuple[Critic, Tensor, Tensor]  # a critic, (B, D) real features and (B, A) conditions


class AdversarialEpoch(NamedTuple):
    """Means over the steps of one epoch.

    Attributes:
        reconstruction: Binary cross-entropy of an image's features, summed over these.
        kl: Divergence of the posterior from the prior in nats.
        decoding: Loss of the decoder on seen images.
        distance: How much higher the critics score real features than generated ones.
        penalty: Mean of (|gradient| - 1)^2 of the critics; it should stay about 1 or below.
    """

    reconstruction: float
    kl: float
    decoding: float
    distance: float
    penalty: float


@dataclass(frozen=True, eq=False)
class TrainedNetworks:
    """Networks after their training.

    Attributes:
        networks: The networks.
        scale: Of their features.
        log: Every epoch's means, the first one first.
    """

    networks: Networks
    scale: Scale
    log: tuple[AdversarialEpoch, ...]

    @torch.no_grad()
    def features(self, attributes: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, D) features at unit norm, one for each of the labels.

        Args:
            attributes: (C, A) of all classes, as `train_tf_vaegan` took them.
            labels: (n,) rows of the attributes.
            generator: Draws the latent vectors.
        """
        z = torch.randn(len(labels), self.networks.latent, generator=generator)
        made = self.networks.make(
            z, standardized(attributes)[labels], feedback=self.networks.weight > 0
        )
        return self.scale.back(made)


def train_tf_vaegan(
    settings: TfVaegan,
    support: SupportSet,
    attributes: Tensor,
    seed: int,
    unlabeled: Tensor | None = None,
) -> TrainedNetworks:
    """Train on the images there are, of which the last epoch counts.

    Args:
        settings: The settings.
        support: N images of the seen classes, ids 0 to S - 1, of any norm.
        attributes: (C, A) of the seen classes, then the unseen ones, of any norm.
        seed: Random seed for all of it.
        unlabeled: (U, D) images of unseen classes, of any norm.

    Raises:
        UserError: The training diverged.
    """
    run = Training(settings, support, attributes, seed, unlabeled)
    with few_threads(support), progress(settings.name, settings.epochs, patience=2.0) as advance:
        log = []
        for epoch in run.epochs():
            log.append(epoch)
            if not (math.isfinite(sum(epoch)) and epoch.penalty < DIVERGED):
                remedy = f"lower lr, as in '{settings.name} lr={settings.lr / 3:.2g}'"
                raise UserError(
                    f"{settings.name} diverged in epoch {len(log)}, with a gradient penalty of "
                    f"{epoch.penalty:.3g}; {remedy}"
                )
            advance(1, f"gradient penalty {epoch.penalty:.2f}")
    return TrainedNetworks(run.networks, run.scale, tuple(log))


class Training:
    """One training, step by step.

    Attributes:
        networks: What is trained.
        scale: Of the features.
        penalty_weight: Of the critics' gradient penalty.
        prior: (C',) how often each unseen class is generated.
        pseudo: (U, A) pseudo-attributes by zero-shot; None where the decoder makes them.
    """

    def __init__(
        self,
        settings: TfVaegan,
        support: SupportSet,
        attributes: Tensor,
        seed: int,
        unlabeled: Tensor | None,
    ) -> None:
        self._set, self._seed = settings, seed
        self._draws = draws = torch.Generator().manual_seed(seed)
        self._a, self._n_seen = standardized(attributes), support.n_classes
        self.scale = Scale.of(normalize(support.samples()[0], dim=1))
        views = support.views
        self._support = replace(
            support,
            features=self._scaled(support.features),
            views=None if views is None else self._scaled(views),
            unit_norm=False,
        )
        self._unlabeled = None
        if unlabeled is not None and len(unlabeled):
            self._unlabeled = self._scaled(unlabeled)
        unseen = len(attributes) - self._n_seen
        self.prior = torch.full((unseen,), 1 / unseen)
        self.pseudo: Tensor | None = None
        if "zero-shot" in (settings.prior, settings.pseudo):
            guessed = zero_shot(unlabeled, attributes[self._n_seen :])
            if settings.prior == "zero-shot":
                self.prior = guessed.mean(dim=0)
            if settings.pseudo == "zero-shot":
                self.pseudo = guessed @ self._a[self._n_seen :]
        self.penalty_weight = 10.0
        dim, n_attributes = support.features.shape[1], attributes.shape[1]
        sizes = (settings.latent, settings.hidden, settings.feedback)
        self.networks = n = Networks(dim, n_attributes, *sizes, draws)
        self._decoder = self._adam(n.decoder)
        self._critics = self._adam(n.seen, n.unseen)
        self._generators = self._adam(n.encoder, n.generator, n.feedback)

    def _scaled(self, features: Tensor) -> Tensor:
        return self.scale.into(normalize(features, dim=-1))

    def _adam(self, *networks: nn.Module) -> Adam:
        parameters = [p for network in networks for p in network.parameters()]
        return Adam(parameters, lr=self._set.lr, betas=(0.5, 0.999))

    def epochs(self) -> Iterator[AdversarialEpoch]:
        """Train, the decoder alone first; yield the means of each epoch of all networks."""
        for batch in self._batches():
            self.step_decoder(batch.features, self._a[batch.labels])
        per_epoch = math.ceil(len(self._support.labels) / self._set.batch_size)
        steps: list[AdversarialEpoch] = []
        for done, batch in enumerate(self._batches()):
            feedback = self._set.feedback > 0 and done // per_epoch % 2 == 1
            steps.append(self.step(batch.features, self._a[batch.labels], feedback=feedback))
            if len(steps) == per_epoch:
                yield AdversarialEpoch(
                    *(sum(values) / per_epoch for values in zip(*steps, strict=True))
                )
                steps = []

    def _batches(self) -> Iterator[Batch]:
        return batches(
            self._support,
            lambda epoch, done: self._set.lr,
            epochs=self._set.epochs,
            batch_size=self._set.batch_size,
            seed=self._seed,
        )

    def step(self, x: Tensor, a: Tensor, *, feedback: bool) -> AdversarialEpoch:
        """Take a step of the decoder, some of the critics, and one of the generator."""
        decoding = self.step_decoder(x, a)
        pairs = [(self.networks.seen, x, a)]
        if self._unlabeled is not None:
            rows = torch.randint(len(self._unlabeled), (len(x),), generator=self._draws)
            images = self._unlabeled[rows]
            with torch.no_grad():
                a = self.networks.decoder(images) if self.pseudo is None else self.pseudo[rows]
            pairs.append((self.networks.unseen, images, a))
        critics = [self._step_critics(pairs, feedback) for _ in range(self._set.critic_steps)]
        distance, penalty = (sum(c) / len(c) for c in zip(*critics, strict=True))
        self.penalty_weight = next_weight(self.penalty_weight, penalty)
        reconstruction, kl = self._step_generator(pairs, feedback)
        return AdversarialEpoch(reconstruction, kl, decoding, distance, penalty)

    def step_decoder(self, x: Tensor, a: Tensor) -> float:
        """Take a step of the decoder on seen images; return its loss."""
        loss = decoding_loss(self.networks.decoder(x), a)
        _minimize(self._decoder, loss)
        return loss.item()

    def _step_critics(self, pairs: list[Pair], feedback: bool) -> tuple[float, float]:
        """Return the critics' mean distance and penalty."""
        parts = []
        for critic, real, a in pairs:
            with torch.no_grad():
                made = self.networks.make(self._latent(len(a)), a, feedback=feedback)
            distance = (critic(real, a) - critic(made, a)).mean()
            parts.append((distance, critic.penalty(between(real, made, self._draws), a)))
        distance, penalty = (torch.stack(values) for values in zip(*parts, strict=True))
        _minimize(self._critics, (self.penalty_weight * penalty - distance).sum())
        return distance.mean().item(), penalty.mean().item()

    def _step_generator(self, pairs: list[Pair], feedback: bool) -> tuple[float, float]:
        """Return the reconstruction and the KL divergence."""
        n, weights = self.networks, self._set
        (_, x, a), *_ = pairs
        mean, log_variance = n.encoder(x, a)
        z = mean + self._latent(len(a)) * (log_variance / 2).exp()
        made = n.make(z, a, feedback=feedback)
        reconstruction = binary_cross_entropy(made, x, reduction="sum") / len(x)
        kl = divergence(mean, log_variance).mean()
        loss = reconstruction + kl - weights.critic * n.seen(made, a).mean()
        loss = loss + weights.decoding * decoding_loss(n.decoder(made), a)
        for critic, _, condition in pairs[1:]:
            fake = n.make(self._latent(len(condition)), condition, feedback=feedback)
            loss = loss - weights.critic * critic(fake, condition).mean()
        ids = torch.multinomial(self.prior, len(x), replacement=True, generator=self._draws)
        unseen = self._a[self._n_seen + ids]
        fake = n.make(self._latent(len(unseen)), unseen, feedback=feedback)
        loss = loss + UNSEEN_SCALE * weights.decoding * decoding_loss(n.decoder(fake), unseen)
        _minimize(self._generators, loss)
        return reconstruction.item(), kl.item()

    def _latent(self, n: int) -> Tensor:
        return torch.randn(n, self._set.latent, generator=self._draws)


def _minimize(optimizer: Adam, loss: Tensor) -> None:
    """Take one step; gradients of other networks are dropped when these take theirs."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    optimizer.step()


def zero_shot(unlabeled: Tensor | None, unseen: Tensor) -> Tensor:
    """(U, C') zero-shot probabilities of (U, D) images, given (C', D) texts, all of any norm.

    Raises:
        UserError: There are no images, or what there is of the classes is no text.
    """
    if unlabeled is None or unlabeled.shape[1] != unseen.shape[1]:
        raise UserError(
            "zero-shot needs unlabeled train images of the unseen classes, and the classes' text; "
            "leave prior and pseudo as they are"
        )
    return (SCALE * normalize(unlabeled, dim=1) @ normalize(unseen, dim=1).T).softmax(dim=1)
