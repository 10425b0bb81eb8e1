from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import SupportSet, evaluate
from fewshot.sampling import halves
from fewshot.synthesis.adversarial_training import TrainedNetworks, Training, train_tf_vaegan
from fewshot.synthesis.critic import Critic, between, next_weight
from fewshot.synthesis.feedback_networks import Networks, decoding_loss, standardized
from fewshot.synthesis.from_store import unlabeled_images
from fewshot.synthesis.generators import described, generator_of
from fewshot.synthesis.tf_vaegan import TfVaegan
from tests.small_stores import write_store
from tests.toys import task

SMALL = TfVaegan(latent=3, hidden=6, epochs=1, critic_steps=1)
A = 5  # attributes


def halved(n: int = 4, dim: int = 7) -> tuple[SupportSet, Tensor, Tensor]:
    """Images of the first two of four classes, attributes of all, and images of the others."""
    support, _, _ = task(4, shots=n, dim=dim)
    seen = support.labels < 2
    attributes = torch.randn(4, A, generator=torch.Generator().manual_seed(8))
    base = SupportSet(support.features[seen], support.labels[seen], 2)
    return base, attributes, support.features[~seen]


def test_the_penalty_is_that_of_differentiating_twice() -> None:
    torch.manual_seed(0)
    critic, x, a = Critic(7, A, 6), torch.randn(9, 7, requires_grad=True), torch.randn(9, A)
    (slope,) = torch.autograd.grad(critic(x, a).sum(), x, create_graph=True)
    twice = torch.stack([(row.square().sum().sqrt() - 1) ** 2 for row in slope]).mean()
    once = critic.penalty(x, a)
    assert once.item() == pytest.approx(twice.item(), abs=1e-6)
    weights = (critic.hidden.weight, critic.score.weight)
    for got, expected in zip(
        torch.autograd.grad(once, weights), torch.autograd.grad(twice, weights), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_penalties_are_taken_between_real_and_generated_features() -> None:
    real, made = torch.randn(50, 7), torch.randn(50, 7)
    points = between(real, made, torch.Generator().manual_seed(2))
    place = torch.rand(50, 1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(points, place * real + (1 - place) * made)


def test_the_weight_follows_the_penalty() -> None:
    assert [next_weight(10.0, p) for p in (1.06, 1.02, 1.0)] == pytest.approx([11, 10, 10 / 1.1])


def test_the_decoder_loses_by_cubes_over_the_distance() -> None:
    p, a = torch.randn(3, A), torch.randn(3, A)
    p[2] = a[2]
    total = 0.0
    for decoded, true in zip(p.tolist(), a.tolist(), strict=True):
        off = [abs(x - y) for x, y in zip(decoded, true, strict=True)]
        length = sum(o * o for o in off) ** 0.5
        total += sum(o * o * o for o in off) / length if length else 0.0
    assert decoding_loss(p, a).item() == pytest.approx(total / 3, rel=1e-5)


def test_attributes_are_standardized_over_the_classes() -> None:
    a = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]])
    got = standardized(7 * a + 2)
    z = [(k - 3) / (8 / 3) ** 0.5 for k in (1, 3, 5)], [(k - 6) / 2**0.5 for k in (5, 5, 8)]
    torch.testing.assert_close(got, normalize(torch.tensor(z).T, dim=1))


class Naive:
    """The published losses of named weights, layer by layer."""

    def __init__(self, networks: Networks) -> None:
        self.w = {k: p.detach().clone().requires_grad_() for k, p in networks.named_parameters()}

    def layer(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def decode(self, x: Tensor) -> Tensor:
        p = self.layer("decoder.second", leaky_relu(self.layer("decoder.first", x), 0.2))
        return p / p.square().sum(dim=1, keepdim=True).sqrt()

    def generate(self, z: Tensor, a: Tensor) -> Tensor:
        h = leaky_relu(self.layer("generator.first", torch.cat([z, a], 1)), 0.2)
        return 1 / (1 + torch.exp(-self.layer("generator.second", h)))

    def score(self, which: str, x: Tensor, a: Tensor) -> Tensor:
        h = leaky_relu(self.layer(f"{which}.hidden", torch.cat([x, a], 1)), 0.2)
        return self.layer(f"{which}.score", h)[:, 0]

    def penalty(self, which: str, x: Tensor, a: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.score(which, x, a).sum(), x, create_graph=True)
        return (slope.square().sum(dim=1).sqrt() - 1).square().mean()

    def gradients(self, loss: Tensor, parts: tuple[str, ...]) -> dict[str, Tensor]:
        names = [k for k in self.w if k.startswith(parts)]
        found = torch.autograd.grad(loss, [self.w[k] for k in names])
        return dict(zip(names, found, strict=True))


class Adam:
    """Adam written out for one group of weights."""

    def __init__(self) -> None:
        self.t, self.m, self.v = 0, {}, {}  # type: ignore[var-annotated]

    def step(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], lr: float) -> None:
        self.t += 1
        for k, g in gradients.items():
            self.m[k] = 0.5 * self.m.get(k, 0) + 0.5 * g
            self.v[k] = 0.999 * self.v.get(k, 0) + 0.001 * g * g
            m, v = self.m[k] / (1 - 0.5**self.t), self.v[k] / (1 - 0.999**self.t)
            weights[k] = (weights[k] - lr * m / (v.sqrt() + 1e-8)).detach().requires_grad_()


def test_one_step_of_all_networks_is_that_of_the_published_losses() -> None:
    support, attributes, unlabeled = halved()
    made = train_tf_vaegan(SMALL, support, attributes, 3, unlabeled)
    draws = torch.Generator().manual_seed(3)
    naive = Naive(Networks(7, A, 3, 6, SMALL.feedback, draws))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    low, high = support.features.min(dim=0).values, support.features.max(dim=0).values
    x, u = ((f - low) / (high - low) for f in (support.features[order], unlabeled))
    whole = standardized(attributes)
    a, lr, decoder = whole[support.labels[order]], SMALL.lr, Adam()
    for _ in range(2):  # alone, and then with the others
        decoding = decoding_loss(naive.decode(x), a)
        decoder.step(naive.w, naive.gradients(decoding, ("decoder",)), lr)
    images = u[torch.randint(8, (8,), generator=draws)]
    pseudo = naive.decode(images).detach()
    pairs = {"seen": (x, a), "unseen": (images, pseudo)}
    loss, distance, penalty = torch.tensor(0.0), 0.0, 0.0
    for which, (real, condition) in pairs.items():
        fake = naive.generate(torch.randn(8, 3, generator=draws), condition).detach()
        place = torch.rand(8, 1, generator=draws)
        gap = (naive.score(which, real, condition) - naive.score(which, fake, condition)).mean()
        steep = naive.penalty(which, place * real + (1 - place) * fake, condition)
        loss = loss + 10 * steep - gap
        distance, penalty = distance + gap.item() / 2, penalty + steep.item() / 2
    Adam().step(naive.w, naive.gradients(loss, ("seen", "unseen")), lr)
    h = leaky_relu(naive.layer("encoder.first", torch.cat([x, a], 1)), 0.2)
    h = leaky_relu(naive.layer("encoder.second", h), 0.2)
    mean, log_variance = naive.layer("encoder.mean", h), naive.layer("encoder.log_variance", h)
    z = mean + torch.randn(8, 3, generator=draws) * log_variance.exp().sqrt()
    again = naive.generate(z, a)
    crossed = -(x * again.log() + (1 - x) * (1 - again).log()).sum() / 8
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 16
    fake = naive.generate(torch.randn(8, 3, generator=draws), pseudo)
    ids = torch.multinomial(torch.tensor([0.5, 0.5]), 8, replacement=True, generator=draws)
    new = whole[2 + ids]
    other = naive.generate(torch.randn(8, 3, generator=draws), new)
    loss = crossed + kl
    loss = loss - 10 * naive.score("seen", again, a).mean()
    loss = loss - 10 * naive.score("unseen", fake, pseudo).mean()
    loss = loss + 0.1 * decoding_loss(naive.decode(again), a)
    loss = loss + 10 * 0.1 * decoding_loss(naive.decode(other), new)
    gradients = naive.gradients(loss, ("encoder", "generator"))
    Adam().step(naive.w, gradients, lr)
    expected = (crossed.item(), kl.item(), decoding.item(), distance, penalty)
    assert made.log[0] == pytest.approx(expected, abs=1e-5)
    for name, value in made.networks.named_parameters():
        # A gradient of 0 but for rounding has no sign, by which Adam's first step goes.
        clear = (
            gradients[name].abs() > 1e-6
            if name in gradients
            else torch.ones_like(value, dtype=torch.bool)
        )
        torch.testing.assert_close(value[clear], naive.w[name][clear], atol=1e-5, rtol=0)


def start_of(settings: TfVaegan, seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    start = Networks(7, A, settings.latent, settings.hidden, settings.feedback, draws)
    return dict(start.named_parameters())


def moved(made: TrainedNetworks, start: dict[str, Tensor]) -> set[str]:
    """The networks that training changed."""
    return {
        name.partition(".")[0]
        for name, value in made.networks.named_parameters()
        if not torch.equal(value, start[name])
    }


@pytest.mark.parametrize("feedback", [0.0, 0.5])
@pytest.mark.parametrize("transductive", [False, True])
def test_without_unlabeled_images_one_critic_is_left_and_without_feedback_f_vaegan(
    feedback: float, transductive: bool
) -> None:
    support, attributes, unlabeled = halved()
    settings = TfVaegan(latent=3, hidden=6, epochs=2, critic_steps=1, feedback=feedback)
    made = train_tf_vaegan(settings, support, attributes, 3, unlabeled if transductive else None)
    expected = {"encoder", "generator", "decoder", "seen"}
    expected |= {"unseen"} if transductive else set()
    expected |= {"feedback"} if feedback else set()
    assert moved(made, start_of(settings, 3)) == expected
    labels, draws = torch.tensor([2, 3]), torch.Generator().manual_seed(1)
    before = made.features(attributes, labels, draws)
    for p in made.networks.feedback.parameters():
        p.data += 1
    after = made.features(attributes, labels, torch.Generator().manual_seed(1))
    assert torch.equal(before, after) == (feedback == 0)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(2))


def test_a_training_that_diverges_says_so_and_leaves_nothing() -> None:
    support, attributes, unlabeled = halved()
    wild = TfVaegan(latent=3, hidden=6, epochs=9, lr=30.0)
    with pytest.raises(UserError, match=r"diverged in epoch 1, with .*; lower lr, as in .*lr=10'"):
        train_tf_vaegan(wild, support, attributes, 3, unlabeled)


def test_zero_shot_needs_text_and_images_for_pseudo_attributes_and_the_prior() -> None:
    support, attributes, unlabeled = halved()
    for settings in (TfVaegan(pseudo="zero-shot"), TfVaegan(prior="zero-shot")):
        with pytest.raises(UserError, match="zero-shot needs unlabeled train images"):
            train_tf_vaegan(settings, support, attributes, 3, unlabeled)


def test_any_method_learns_from_the_features_of_a_store(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, "six", names=tuple("abcdef"), n_views=2))
    quick = "tf-vaegan images=3 latent=3 hidden=6 epochs=1 critic_steps=1"
    result = evaluate(store, "ridge", shots=3, tune="none", setting="generalized", synthesize=quick)
    assert result.synthesized == described(generator_of(quick))
    assert result.measures["tf-vaegan_penalty"] >= 0
    _, new = halves(store.labels("train"), 6)
    images = unlabeled_images(store, new)
    rows = [row for row, label in enumerate(store.labels("train")) if label in new]
    assert torch.equal(images, torch.from_numpy(store.features("train", rows)))


def test_the_prior_and_the_pseudo_attributes_are_those_of_zero_shot_probabilities() -> None:
    base, _, others = halved()
    text = torch.randn(4, 7, generator=torch.Generator().manual_seed(4))
    settings = TfVaegan(latent=3, hidden=6, epochs=1, pseudo="zero-shot", prior="zero-shot")
    run = Training(settings, base, text, 1, others)
    cosines = normalize(others, dim=1).numpy() @ normalize(text[2:], dim=1).numpy().T
    raised = np.exp(100 * (cosines - cosines.max(axis=1, keepdims=True)))
    p = torch.from_numpy(raised / raised.sum(axis=1, keepdims=True))
    torch.testing.assert_close(run.prior, p.mean(dim=0))
    torch.testing.assert_close(run.pseudo, p @ standardized(text)[2:])
    plain = Training(TfVaegan(latent=3, hidden=6), base, text, 1, others)
    assert plain.prior.tolist() == [0.5, 0.5]
    assert plain.pseudo is None
