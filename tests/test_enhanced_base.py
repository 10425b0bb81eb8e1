import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet
from fewshot.parts.enhanced_base import tower_end, tune_projection
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES, DIM, WIDTH = 5, 12, 15


def task(shots: int = 4, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    """Support about class centers, raw text about the same, and a query."""
    centers = vectors(0, N_CLASSES, DIM)
    labels = torch.arange(N_CLASSES).repeat(shots)
    projection = vectors(5, WIDTH, DIM)
    norms = torch.linspace(7, 11, N_CLASSES)[:, None]
    raw = norms * normalize(centers + 0.8 * vectors(3, N_CLASSES, DIM))
    text = Text(raw, pooled=raw @ torch.linalg.pinv(projection), projection=projection)
    support = support_near(centers, labels, n_views=n_views, noise=0.8)
    return support, text, vectors(4, 30, DIM)


def adam(
    parameters: list[Tensor],
    logits: Callable[[Tensor], Tensor],
    support: SupportSet,
    *,
    lr: float,
    decay: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Kingma and Ba's updates written out, weight decay in the gradient, by Dassl's schedule."""
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(seed)
    views = [support.features] if support.views is None else list(support.views)
    n, t = len(support.labels), 0
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator)
        rate = 1e-5 if epoch == 0 else lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        starts = [0] if n < batch_size else range(0, n - batch_size + 1, batch_size)
        for start in starts:
            rows = order[start : start + batch_size]
            given = logits(views[epoch % len(views)][rows].double())
            right = given[torch.arange(len(rows)), support.labels[rows]]
            loss = (given.exp().sum(dim=1).log() - right).mean()
            t += 1
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    g = g + decay * p
                    m.copy_(0.9 * m + 0.1 * g)
                    v.copy_(0.999 * v + 0.001 * g**2)
                    p -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize(
    ("n_views", "batch_size", "epochs", "seed"), [(0, 100, 8, 1), (0, 6, 4, 2), (3, 20, 5, 1)]
)
def test_training_is_adam_on_the_projection(
    n_views: int, batch_size: int, epochs: int, seed: int
) -> None:
    support, text, _ = task(n_views=n_views)
    assert text.pooled is not None
    assert text.projection is not None
    tuned = tune_projection(
        support, text.pooled, text.projection, lr=3e-3, weight_decay=0.02, epochs=epochs,
        batch_size=batch_size, seed=seed, logit_scale=30.0,
    )  # fmt: skip
    expected = text.projection.double().requires_grad_()
    pooled = text.pooled.double()

    def logits(features: Tensor) -> Tensor:
        t = pooled @ expected
        norms: Tensor = t.norm(dim=1, keepdim=True)
        return 30 * features @ (t / norms).T

    adam(
        [expected], logits, support, lr=3e-3, decay=0.02, epochs=epochs, batch_size=batch_size,
        seed=seed,
    )  # fmt: skip
    torch.testing.assert_close(tuned.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(tuned, text.projection, atol=1e-3)
    assert not tuned.requires_grad
    torch.testing.assert_close(text.projection, vectors(5, WIDTH, DIM), rtol=0, atol=0)


def test_no_epoch_leaves_the_projection_as_it_is() -> None:
    support, text, _ = task()
    pooled, projection = tower_end(text, "x")
    tuned = tune_projection(
        support, pooled, projection, lr=1.0, weight_decay=1.0, epochs=0, batch_size=4, seed=1,
        logit_scale=100.0,
    )  # fmt: skip
    assert torch.equal(tuned, projection)


def test_text_that_lacks_its_tower_is_refused_with_the_way_to_get_it() -> None:
    _, text, _ = task()
    for lacking in (None, replace(text, pooled=None), replace(text, projection=None)):
        with pytest.raises(UserError, match=r"taskres needs text from before .* extract it again"):
            tower_end(lacking, "taskres")
