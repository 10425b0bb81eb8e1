import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot.methods.cross_modal import CrossModal
from fewshot.methods.zero_shot import ZeroShot
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES, DIM = 5, 12


def task(shots: int = 4, n_views: int = 0, n_prompts: int = 3) -> tuple[SupportSet, Text, Tensor]:
    """Prompts of which the first class has one more; none of them is a class's mean."""
    labels = torch.arange(N_CLASSES).repeat(shots)
    centers = vectors(3, N_CLASSES, DIM)
    support = support_near(centers, labels, n_views=n_views)
    whose = torch.cat([torch.arange(N_CLASSES).repeat(n_prompts), torch.tensor([0])])
    prompts = normalize(centers[whose] + vectors(5, len(whose), DIM))
    return support, Text(centers, prompts, whose), vectors(4, 40, DIM)


def restated(
    method: CrossModal, support: SupportSet, text: Text, start: Tensor, query: Tensor
) -> Tensor:
    """Trained logits: explicit lists of batches, torch's AdamW, double precision."""
    half = method.batch_size // 2
    x = support.features.double()[None] if support.views is None else support.views.double()
    prompts, whose = text.samples()
    n = len(support.labels)
    generator = torch.Generator().manual_seed(method.seed)
    images = []
    for epoch in range(method.epochs):
        order = torch.randperm(n, generator=generator).tolist()
        images += [(epoch, order[i : i + half]) for i in range(0, n, half)]
    generator = torch.Generator().manual_seed(method.seed)
    texts: list[list[int]] = []
    while len(texts) < len(images):
        order = torch.randperm(len(whose), generator=generator).tolist()
        whole = [order[i : i + half] for i in range(0, len(whose), half)]
        texts += [b for b in whole if len(b) == half] or [order]
    weight = start.double().clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], weight_decay=method.weight_decay)
    for step, ((epoch, rows), chosen) in enumerate(zip(images, texts, strict=False)):
        share = step / len(images)
        optimizer.param_groups[0]["lr"] = method.lr * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        image = method.logit_scale * x[epoch % len(x), rows] @ weight.T
        prompt = method.logit_scale * prompts[chosen].double() @ weight.T
        loss = cross_entropy(image, support.labels[rows]) + cross_entropy(prompt, whose[chosen])
        torch.autograd.backward(loss / 2)
        optimizer.step()
    return method.logit_scale * query.double() @ weight.detach().T


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("batch_size", [6, 14, 36, 100])
def test_training_is_adamw_on_batches_of_half_images_and_half_prompts(
    batch_size: int, n_views: int
) -> None:
    support, text, query = task(n_views=n_views)
    method = CrossModal(
        lr=0.01, weight_decay=0.3, epochs=4, batch_size=batch_size, logit_scale=20.0, blend=1.0
    )
    expected = restated(method, support, text, text.features, query)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_where_a_batch_is_full_the_loss_is_the_mean_over_images_and_prompts_together() -> None:
    support, text, query = task(shots=4, n_prompts=4)  # 20 images, 21 prompts
    method = CrossModal(batch_size=40, epochs=3, lr=0.01, weight_decay=0.0)
    prompts, whose = text.samples()
    weight = text.features.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
    generator = torch.Generator().manual_seed(method.seed)
    for epoch in range(3):
        chosen = torch.randperm(21, generator=generator)[:20]
        logits = 100 * torch.cat([support.features, prompts[chosen]]) @ weight.T
        loss = cross_entropy(logits, torch.cat([support.labels, whose[chosen]]))
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    expected = 100 * query @ weight.detach().T
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_class_means_stand_in_for_prompts_that_are_not_known() -> None:
    support, text, query = task()
    method = CrossModal(epochs=3, batch_size=1000)
    means = Text(text.features, text.features, torch.arange(N_CLASSES))
    torch.testing.assert_close(
        method.fit(support, Text(text.features)).logits(query),
        method.fit(support, means).logits(query),
    )


@pytest.mark.parametrize("init", ["zeroshot", "random"])
def test_a_blend_of_nothing_is_zero_shot(init: Any) -> None:
    support, text, query = task()
    logits = CrossModal(blend=0.0, init=init, epochs=3).fit(support, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot().fit(None, text).logits(query))


def test_half_a_blend_lies_in_the_middle() -> None:
    support, text, query = task()
    zero, half, one = (
        CrossModal(blend=blend, epochs=3).fit(support, text).logits(query)
        for blend in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(half, (zero + one) / 2, rtol=1e-4, atol=1e-4)


def test_where_training_hardly_moves_the_head_it_stays_as_it_was_drawn() -> None:
    support, text, query = task()
    still = CrossModal(lr=1e-12, epochs=3, blend=1.0)
    torch.testing.assert_close(
        still.fit(support, text).logits(query), ZeroShot().fit(None, text).logits(query)
    )
    drawn = replace(still, init="random").fit(support, text).weight / 100
    assert float(drawn.abs().max()) <= 1 / math.sqrt(DIM)
    assert not torch.allclose(drawn, text.features, atol=0.01)
    other = replace(still, init="random", seed=2).fit(support, text).weight / 100
    assert not torch.allclose(drawn, other, atol=0.01)


def test_a_sweep_over_more_than_the_blend_equals_fitting_each() -> None:
    support, text, query = task()
    grid = {"blend": (0.3, 1.0), "init": ("zeroshot", "random"), "logit_scale": (100.0, 50.0)}
    swept = list(CrossModal(epochs=3).sweep(grid, support, text, query))
    assert len(set(swept)) == 8
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_the_weights_are_counted() -> None:
    support, text, _ = task()
    stats = CrossModal(epochs=1).fit(support, text).stats
    assert stats == {"trained_parameters": N_CLASSES * DIM}


def test_it_needs_text_at_any_start() -> None:
    support, _, query = task()
    for method in (CrossModal(), CrossModal(init="random")):
        with pytest.raises(UserError, match="cross-modal needs text features"):
            method.fit(support, None)
        with pytest.raises(UserError, match="cross-modal needs text features"):
            list(method.sweep(method.grid, support, None, query))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "zero-shot"}, "unknown init 'zero-shot'; did you mean 'zeroshot'"),
        ({"blend": -0.1}, "blend must be 0 or more and at most 1; got -0.1"),
        ({"blend": math.nan}, "blend must be 0 or more and at most 1; got nan"),
        ({"lr": 0.0}, "lr must be more than 0; got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more; got -1.0"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number, 2 or more; got 1; half are images"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CrossModal(**settings)
