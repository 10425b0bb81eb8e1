import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot
from fewshot.methods.prediction_refiner import PredictionRefiner
from fewshot.parts.refiner import Refiner, Start, consistent_loss
from tests.toys import task, vectors

SCALE = 10.0
SMALL = PredictionRefiner(hidden=6, epochs=3, batch_size=8, lr=0.02, logit_scale=SCALE)
Array = NDArray[np.float64]


def probabilities(logits: Array) -> Array:
    weights: Array = np.exp(logits)
    return weights / float(weights.sum())


def naive_loss(logits: Array, labels: Array, other: Array, consistency: float) -> float:
    """The loss image by image and class by class."""
    total = 0.0
    for o, y, q in zip(logits, labels, other, strict=True):
        p, target = probabilities(o), probabilities(q)
        total -= math.log(p[int(y)])
        total += consistency * sum(t * math.log(t / one) for t, one in zip(target, p, strict=True))
    return total / len(labels)


@pytest.mark.parametrize("consistency", [0.0, 0.3])
def test_the_loss_is_that_of_the_definition_image_by_image(consistency: float) -> None:
    logits, other = 4 * vectors(0, 7, 5), 3 * vectors(1, 7, 5)
    labels = torch.arange(7) % 5
    got = consistent_loss(torch.stack([logits, other]), labels, other, consistency)
    for one, given in zip(got, (logits, other), strict=True):
        expected = naive_loss(
            given.double().numpy(), labels.numpy(), other.double().numpy(), consistency
        )
        assert float(one) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("start", ["zero", "random"])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("n_views", [0, 2])
def test_training_is_autograds_of_the_definition(
    start: Start, centered: bool, n_views: int
) -> None:
    support, text, query = task(4, n_views=n_views)
    method = replace(SMALL, start=start, centered=centered, consistency=0.7, until=0.5)
    got = method.fit(support, text).logits(query)

    t = SCALE * text.features.double()
    begun = Refiner.untrained(text.features, 4, 6, seed=1, start=start, centered=centered)
    w1, b1, w2, b2 = trained = [p.double().requires_grad_() for p in begun.parameters()]

    def refined(o: torch.Tensor) -> torch.Tensor:
        x = torch.stack([row - sum(row) / 4 for row in o]) if centered else o
        return o + (x @ w1.T + b1).clamp(min=0) @ w2.T + b2

    optimizer = torch.optim.Adam(trained, lr=0.02)
    generator = torch.Generator().manual_seed(1)
    views = [support.features] if support.views is None else list(support.views)
    for epoch in range(3):
        order = torch.randperm(len(support.labels), generator=generator)
        for rows in torch.split(order, 8):
            o = views[epoch % len(views)][rows].double() @ t.T
            loss = cross_entropy(refined(o), support.labels[rows])
            if epoch < 2:  # of three epochs the first half is one and a half
                p, q = o.softmax(dim=1), refined(o).softmax(dim=1)
                loss = loss + 0.7 * (p * (p / q).log()).sum() / len(rows)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    expected = refined(query.double() @ t.T).detach()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    assert (got - query @ t.T.float()).abs().max() > 0.1


def test_an_untrained_refiner_is_zero_shot() -> None:
    support, text, query = task(4)
    logits = replace(SMALL, epochs=0).fit(support, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot(SCALE).fit(None, text).logits(query))


def test_a_very_consistent_refiner_stays_near_zero_shot() -> None:
    support, text, query = task(4)
    zero_shot = ZeroShot(SCALE).fit(None, text).logits(query)

    def moved(consistency: float) -> float:
        method = replace(SMALL, consistency=consistency, epochs=40)
        return float((method.fit(support, text).logits(query) - zero_shot).abs().mean())

    assert moved(100.0) < moved(0.0) / 5


def test_the_model_is_asked_once() -> None:
    support, text, _ = task(4)
    assert SMALL.fit(support, text).stats["queries"] == 1


def test_without_text_there_are_no_logits_to_refine() -> None:
    support: SupportSet = task(4)[0]
    with pytest.raises(UserError, match="refiner needs"):
        SMALL.fit(support, None)


@pytest.mark.parametrize(
    ("dataset", "consistency", "until", "batch_size", "hidden"),
    [
        ("ucf101", 0.1, 0.25, 256, 256),
        ("oxford_pets", 0.1, 1.0, 64, 256),
        ("imagenet", 0, 1, 256, 512),
    ],
)
def test_the_published_constants_are_the_datasets(
    dataset: str, consistency: float, until: float, batch_size: int, hidden: int
) -> None:
    settings = PredictionRefiner().published_recipe(dataset).settings
    named = {name: settings[name] for name in ("consistency", "until", "batch_size", "hidden")}
    assert named == {
        "consistency": consistency, "until": until, "batch_size": batch_size, "hidden": hidden,
    }  # fmt: skip
