import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot.methods.clap import CLAP
from fewshot.methods.zero_shot import ZeroShot
from fewshot.methods.zs_lp import ZSLP
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES, DIM = 5, 12


def task(shots: int = 4, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    """Text of norms 7 to 11; the last two classes lack an image."""
    labels = torch.arange(N_CLASSES).repeat(shots)[: N_CLASSES * shots - 2 * (shots > 1)]
    centers = vectors(3, N_CLASSES, DIM)
    support = support_near(centers, labels, n_views=n_views)
    text = torch.linspace(7, 11, N_CLASSES)[:, None] * normalize(
        centers + vectors(5, N_CLASSES, DIM)
    )
    return support, Text(text), vectors(4, 40, DIM)


def multipliers(support: SupportSet, text: Tensor, scale: float) -> Tensor:
    """(C,) by a loop over the samples."""
    samples, labels = support.samples()
    found: list[list[Tensor]] = [[] for _ in range(N_CLASSES)]
    for x, label in zip(samples.double(), labels.tolist(), strict=True):
        exponents = torch.stack([torch.exp(scale * (x @ t) / t.norm()) for t in text.double()])
        found[label].append(exponents[label] / exponents.sum())
    return torch.stack([torch.stack(p).mean() for p in found])


def restated(method: CLAP | ZSLP, support: SupportSet, text: Tensor, weights: Tensor) -> Tensor:
    """(C, D) prototypes by hand-written momentum, in double precision, the recipe's steps."""
    x = support.features.double()[None] if support.views is None else support.views.double()
    n, t = x.shape[1], text.double()
    w, velocity = t.clone(), torch.zeros_like(t)
    generator = torch.Generator().manual_seed(method.seed)
    for epoch in range(method.epochs):
        lr = method.lr * (1 + math.cos(math.pi * (epoch - 1) / method.epochs)) / 2
        lr = 1e-5 if epoch == 0 else lr
        order = torch.randperm(n, generator=generator)
        for step in range(max(1, n // method.batch_size)):
            rows = order[step * method.batch_size : (step + 1) * method.batch_size]
            w.requires_grad_()
            logits = method.logit_scale * x[epoch % len(x), rows] @ (w / w.norm(dim=1)[:, None]).T
            penalty = sum(weights[k] * ((w[k] - t[k]) ** 2).sum() for k in range(N_CLASSES))
            loss = cross_entropy(logits, support.labels[rows]) + penalty / N_CLASSES
            (gradient,) = torch.autograd.grad(loss, w)
            velocity = 0.9 * velocity + gradient
            w = (w - lr * velocity).detach()
    return w


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("batch_size", [4, 7, 256])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 5.0])
def test_training_follows_the_recipe(penalty: float, batch_size: int, n_views: int) -> None:
    support, text, query = task(n_views=n_views)
    method = CLAP(penalty, epochs=6, batch_size=batch_size, logit_scale=20.0)
    weights = penalty * multipliers(support, text.features, 20.0)
    w = restated(method, support, text.features, weights)
    expected = 20 * query.double() @ normalize(w).T
    fitted = method.fit(support, text)
    torch.testing.assert_close(fitted.logits(query).double(), expected, rtol=1e-5, atol=1e-4)
    moved = [(w[k] - t).norm() / t.norm() for k, t in enumerate(text.features.double())]
    assert fitted.stats == {
        "trained_parameters": N_CLASSES * DIM,
        "residual_size": pytest.approx(float(torch.stack(moved).mean()), rel=1e-4),
    }


@pytest.mark.parametrize("n_views", [0, 3])
def test_zs_lp_is_clap_without_its_penalty(n_views: int) -> None:
    support, text, query = task(n_views=n_views)
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 20, "batch_size": 5, "seed": 3}
    without = CLAP(penalty=0.0, **settings).fit(support, text).logits(query)
    assert torch.equal(ZSLP(**settings).fit(support, text).logits(query), without)
    assert not torch.allclose(CLAP(**settings).fit(support, text).logits(query), without, atol=0.01)


def test_the_penalty_holds_the_prototypes_at_the_text() -> None:
    support, text, query = task()
    sizes = [
        CLAP(penalty, lr=0.01, epochs=50).fit(support, text).stats["residual_size"]
        for penalty in (0.0, 1.0, 100.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    held = CLAP(penalty=1e4, lr=1e-4, epochs=50).fit(support, text).logits(query)
    unit = Text(normalize(text.features))
    torch.testing.assert_close(held, ZeroShot().fit(None, unit).logits(query), rtol=0, atol=0.2)


@pytest.mark.parametrize("method", [CLAP(epochs=9), ZSLP(epochs=9)])
def test_text_of_unit_norm_is_brought_to_a_typical_one(method: CLAP | ZSLP) -> None:
    support, text, query = task()
    unit = normalize(text.features)
    torch.testing.assert_close(
        method.fit(support, Text(unit)).logits(query),
        method.fit(support, Text(10 * unit)).logits(query),
    )
    assert not torch.allclose(
        method.fit(support, Text(unit)).logits(query), method.fit(support, text).logits(query)
    )


@pytest.mark.parametrize("method", [CLAP(epochs=9, batch_size=4), ZSLP(epochs=9, batch_size=4)])
def test_the_seed_decides_the_batches(method: CLAP | ZSLP) -> None:
    support, text, query = task()
    logits = method.fit(support, text).logits(query)
    assert not torch.equal(replace(method, seed=2).fit(support, text).logits(query), logits)


@pytest.mark.parametrize("method", [CLAP(), ZSLP()])
def test_they_need_text(method: CLAP | ZSLP) -> None:
    with pytest.raises(UserError, match=f"{method.name} needs text features"):
        method.fit(task()[0], None)


@pytest.mark.parametrize("method", [CLAP, ZSLP])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be more than 0; got 0.0"),
        ({"lr": math.inf}, "lr must be more than 0; got inf"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more; got 0"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    method: Any, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method(**settings)


@pytest.mark.parametrize("penalty", [-1.0, math.inf, math.nan])
def test_a_penalty_must_be_zero_or_more(penalty: float) -> None:
    with pytest.raises(UserError, match=f"penalty must be 0 or more; got {penalty}"):
        CLAP(penalty=penalty)
