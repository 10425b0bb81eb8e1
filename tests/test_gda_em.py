import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot
from fewshot.methods import GDAEM
from fewshot.text import Text
from tests.toys import vectors

N_CLASSES = 5


def task(n: int = 60, dim: int = 12) -> tuple[Tensor, Text, Tensor, Tensor]:
    """Unlabeled images, text, a query, and the images' labels to see by."""
    centers = vectors(0, N_CLASSES, dim)
    labels = torch.arange(n) % N_CLASSES
    images = normalize(centers[labels] + 0.6 * vectors(1, n, dim))
    text = Text(normalize(centers + 1.5 * vectors(3, N_CLASSES, dim)))
    return images, text, vectors(4, 40, dim), labels


def em_by_loop(
    images: Tensor, text: Text, query: Tensor, *, alpha: float, iterations: int, smoothing: float,
    shrinkage: float | None = None, estimated: bool = False,
) -> Tensor:  # fmt: skip
    """The equations image by image and class by class, at a logit scale of 20."""
    x, t = images.double(), text.features.double()
    n, dim = x.shape
    logits = 20 * x @ t.T
    for _ in range(iterations):
        r = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        means, covariance, mass = [], torch.zeros(dim, dim).double(), []
        for k in range(N_CLASSES):
            total = r[:, k].sum() + smoothing
            mean = (sum(r[i, k] * x[i] for i in range(n)) + smoothing * x.mean(dim=0)) / total
            for i in range(n):
                deviation = x[i] - mean
                share = r[i, k] / total / N_CLASSES
                covariance += share * torch.outer(deviation, deviation)
            means.append(mean)
            mass.append(total)
        s = dim / (dim + n - 1) if shrinkage is None else shrinkage
        ball = covariance.trace() / dim * torch.eye(dim).double()
        precision = torch.linalg.inv((1 - s) * covariance + s * ball)
        mu = torch.stack(means)
        prior = torch.stack(mass) / torch.stack(mass).mean()

        def gaussian(f: Tensor, mu: Tensor = mu, p: Tensor = precision) -> Tensor:
            return f @ p @ mu.T - torch.stack([m @ p @ m for m in mu]) / 2

        at_means = gaussian(mu)
        lead = (at_means.diagonal() - at_means.mean(dim=1)).mean()
        unit = alpha * math.sqrt(n / N_CLASSES) / lead
        shift = prior.log() if estimated else 0.0
        logits = 20 * x @ t.T + unit * (gaussian(x) + shift)
    return 20 * query.double() @ t.T + unit * (gaussian(query.double()) + shift)


@pytest.mark.parametrize(("n", "dim"), [(60, 12), (20, 40)])
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.0, "smoothing": 0.0},
        {"alpha": 4.0, "smoothing": 1.0},
        {"alpha": 2.0, "smoothing": 2.5, "shrinkage": 0.4},
    ],
)
def test_the_fit_is_the_papers_em_by_a_loop(
    n: int, dim: int, iterations: int, settings: dict[str, float]
) -> None:
    images, text, query, _ = task(n, dim)
    expected = em_by_loop(images, text, query, iterations=iterations, **settings)  # type: ignore[arg-type]
    method = GDAEM(iterations=iterations, logit_scale=20.0, **settings)  # type: ignore[arg-type]
    logits = method.fit_unlabeled(images, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_estimated_priors_add_the_log_of_the_mass() -> None:
    images, text, query, labels = task()
    images = images[(labels < 2) | (torch.arange(60) < 15)]  # classes 2 to 4 are rare
    expected = em_by_loop(
        images, text, query, alpha=2.0, iterations=3, smoothing=1.0, estimated=True
    )
    method = GDAEM(alpha=2.0, iterations=3, priors="estimated", logit_scale=20.0)
    logits = method.fit_unlabeled(images, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(
        replace(method, priors="uniform").fit_unlabeled(images, text).logits(query), logits
    )


def test_of_a_support_set_neither_labels_nor_views_are_looked_at() -> None:
    images, text, query, labels = task()
    expected = GDAEM().fit_unlabeled(images, text).logits(query)
    for order in (torch.arange(60), torch.randperm(60, generator=torch.Generator().manual_seed(1))):
        support = SupportSet(images, labels[order], N_CLASSES, views=vectors(9, 2, 60, 12))
        assert torch.equal(GDAEM().fit(support, text).logits(query), expected)


def test_it_learns_from_images_what_the_text_alone_does_not_know() -> None:
    images, text, _, labels = task(300)
    zero_shot, learned = (
        (classifier.logits(images).argmax(dim=1) == labels).double().mean()
        for classifier in (
            ZeroShot(20.0).fit(None, text),
            GDAEM(logit_scale=20.0).fit_unlabeled(images, text),
        )
    )
    assert learned > zero_shot + 0.1


def test_alpha_zero_is_zero_shot() -> None:
    images, text, query, _ = task()
    logits = GDAEM(alpha=0.0).fit_unlabeled(images, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot().fit(None, text).logits(query))


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("priors", ["uniform", "estimated"])
def test_a_class_without_a_trace_of_an_image_is_given_finite_logits(
    smoothing: float, priors: str
) -> None:
    images, text, query, _ = task()
    # At this scale the other softmax entries underflow to zero: the last class is opposite to all.
    features = torch.cat([images[:4], -images.mean(dim=0, keepdim=True)])
    text = Text(normalize(features))
    method = GDAEM(smoothing=smoothing, priors=priors, logit_scale=20_000.0)  # type: ignore[arg-type]
    assert (
        torch.softmax(20_000 * images.double() @ text.features.double().T, dim=1)[:, 4].sum() == 0
    )
    assert torch.isfinite(method.fit_unlabeled(images, text).logits(query)).all()


@pytest.mark.parametrize("alike", ["text", "images"])
def test_where_nothing_differs_it_is_zero_shot(alike: str) -> None:
    images, text, query, _ = task()
    if alike == "text":
        text = Text(text.features[:1].expand(N_CLASSES, -1))
    else:
        images = images[:1].expand(60, -1)
    logits = GDAEM().fit_unlabeled(images, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot().fit(None, text).logits(query))


def test_it_needs_text_and_two_images() -> None:
    images, text, _, _ = task()
    with pytest.raises(UserError, match="gda-em needs text features and there are none"):
        GDAEM().fit_unlabeled(images, None)
    with pytest.raises(UserError, match="gda-em needs two unlabeled images; got 1"):
        GDAEM().fit_unlabeled(images[:1], text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more; got -1.0"),
        ({"iterations": 0}, "iterations must be a whole number, 1 or more; got 0"),
        ({"shrinkage": 0.0}, r"shrinkage must be more than 0 and at most 1, or published; got 0.0"),
        ({"shrinkage": "oas"}, "unknown shrinkage 'oas'; known: published"),
        ({"smoothing": -0.5}, "smoothing must be 0 or more; got -0.5"),
        ({"priors": "estimate"}, "unknown priors 'estimate'; did you mean 'estimated'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        GDAEM(**settings)  # type: ignore[arg-type]


def test_on_ucf101_unlabeled_images_are_worth_four_percent(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        images, query, text = (
            normalize(torch.from_numpy(arrays[name].astype(np.float32)))
            for name in ("train16_x", "test_x", "text")
        )
        labels = torch.from_numpy(arrays["test_y"])
    accuracies = [
        float((method.logits(query).argmax(dim=1) == labels).double().mean())
        for method in (ZeroShot().fit(None, Text(text)), GDAEM().fit_unlabeled(images, Text(text)))
    ]
    assert accuracies[1] > accuracies[0] + 0.04
