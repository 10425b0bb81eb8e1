import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from cache.errors import UserError
from fewshot.methods.text_probe import TextProbe
from fewshot.methods.zero_shot import ZeroShot
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES = 5


def task(shots: int = 4, dim: int = 12, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    labels = torch.arange(N_CLASSES).repeat(shots)
    centers = vectors(3, N_CLASSES, dim)
    support = support_near(centers, labels, n_views=n_views)
    return support, Text(centers), vectors(4, 40, dim)


class AdamW:
    """Loshchilov and Hutter's algorithm 2, with the usual constants."""

    def __init__(self, value: Tensor, decay: float) -> None:
        self.value, self.decay, self.steps = value.clone(), decay, 0
        self.first, self.second = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, gradient: Tensor, lr: float) -> None:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean = self.first / (1 - 0.9**self.steps)
        root = (self.second / (1 - 0.999**self.steps)).sqrt()
        self.value = self.value * (1 - lr * self.decay) - lr * mean / (root + 1e-8)


def restated(method: TextProbe, support: SupportSet, head: Tensor, query: Tensor) -> Tensor:
    """Training with the gradients written out, in double precision."""
    x = support.features.double()[None] if support.views is None else support.views.double()
    y = one_hot(support.labels, N_CLASSES).double()
    n, dim = x.shape[1:]
    w = AdamW(head.double(), method.weight_decay)
    b = AdamW(torch.zeros(N_CLASSES).double(), method.weight_decay)
    a = AdamW(torch.eye(dim).double(), method.weight_decay)
    generator = torch.Generator().manual_seed(method.seed)
    steps = math.ceil(n / method.batch_size) * method.epochs
    step = 0
    for epoch in range(method.epochs):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n, method.batch_size):
            rows = order[start : start + method.batch_size]
            f = x[epoch % len(x), rows]
            z = f @ a.value.T if method.projections == 2 else f
            p = torch.softmax(method.logit_scale * (z @ w.value.T + b.value), dim=1)
            error = method.logit_scale * (p - y[rows]) / len(rows)
            gradients = error.T @ z, error.sum(dim=0), (error @ w.value).T @ f
            lr = method.lr * (1 + math.cos(math.pi * step / steps)) / 2
            for parameter, gradient in zip((w, b, a), gradients, strict=True):
                parameter.step(gradient, lr)
            step += 1
    z = query.double() @ a.value.T if method.projections == 2 else query.double()
    return method.logit_scale * (z @ w.value.T + b.value)


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("projections", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_training_is_adamw_on_the_cross_entropy(
    projections: int, n_views: int, weight_decay: float
) -> None:
    support, text, query = task(n_views=n_views)
    method = TextProbe(
        projections=projections,
        weight_decay=weight_decay,
        lr=0.01,
        epochs=4,
        batch_size=6,
        logit_scale=20.0,
    )
    expected = restated(method, support, text.features, query)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("projections", [1, 2])
def test_where_training_hardly_moves_it_is_zero_shot(projections: int) -> None:
    support, text, query = task()
    logits = TextProbe(projections=projections, lr=1e-12).fit(support, text).logits(query)
    torch.testing.assert_close(
        logits, ZeroShot().fit(None, text).logits(query), rtol=1e-5, atol=1e-4
    )


def test_a_random_head_needs_no_text_and_hangs_on_the_seed() -> None:
    support, text, query = task()
    probe = TextProbe(init="random", epochs=5)
    logits = probe.fit(support, None).logits(query)
    assert torch.equal(probe.fit(support, text).logits(query), logits)
    other = replace(probe, seed=2, batch_size=1000).fit(support, None).logits(query)
    assert not torch.allclose(
        other, replace(probe, batch_size=1000).fit(support, None).logits(query)
    )


def test_a_random_head_is_drawn_as_torch_draws_its_own() -> None:
    labels = torch.arange(200)
    support = SupportSet(vectors(0, 200, 64), labels, 200)
    probe = TextProbe(init="random", lr=1e-12, epochs=1, logit_scale=1.0)
    weight = probe.fit(support, None).weight
    assert float(weight.abs().max()) <= 1 / 8
    assert float(weight.abs().max()) > 0.99 / 8
    assert float(weight.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("projections", "count"), [(1, 5 * 12 + 5), (2, 5 * 12 + 5 + 12 * 12)])
def test_all_that_is_trained_is_counted(projections: int, count: int) -> None:
    support, text, _ = task()
    fitted = TextProbe(projections=projections, epochs=1).fit(support, text)
    assert fitted.stats == {"trained_parameters": count}


def test_a_head_that_is_to_start_as_text_needs_it() -> None:
    with pytest.raises(UserError, match="text-probe needs text features"):
        TextProbe().fit(task()[0], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "txt"}, "unknown init 'txt'; did you mean 'text'"),
        ({"projections": 3}, "projections must be 1 or 2; got 3"),
        ({"lr": 0.0}, "lr must be more than 0; got 0.0"),
        ({"lr": math.nan}, "lr must be more than 0; got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more; got -1.0"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more; got 0"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TextProbe(**settings)


def test_sixteen_shots_of_ucf101_reach_84_percent(shared: Path) -> None:
    arrays = np.load(shared / "features" / "ucf101_openai_vitb16.npz")

    def unit(name: str) -> Tensor:
        return normalize(torch.from_numpy(arrays[name].astype(np.float32)))

    support = SupportSet(unit("train16_x"), torch.from_numpy(arrays["train16_y"]), 101)
    classifier = TextProbe().fit(support, Text(unit("text")))
    predicted = classifier.logits(unit("test_x")).argmax(dim=1)
    assert (predicted == torch.from_numpy(arrays["test_y"])).double().mean() >= 0.84
