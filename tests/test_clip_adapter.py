import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot, configure
from fewshot.method import variants
from fewshot.methods.clip_adapter import CLIPAdapter
from fewshot.text import Text, required
from tests.test_enhanced_base import DIM, N_CLASSES
from tests.test_enhanced_base import task as raw_task

SMALL = CLIPAdapter(
    ratio=0.4, lr=0.05, weight_decay=0.02, epochs=6, batch_size=8, reduction=3, logit_scale=30.0
)


def unit(x: Tensor) -> Tensor:
    norms: Tensor = x.norm(dim=-1, keepdim=True)
    return x / norms


def task(shots: int = 4, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    support, text, query = raw_task(shots, n_views)
    return support, Text(unit(text.features)), query


def reference(
    method: CLIPAdapter, support: SupportSet, t: Tensor, query: Tensor, raw_norm: float = 1.0
) -> Tensor:
    """The paper's logits after training in double precision, by updates written out."""
    assert not isinstance(method.epochs, str)
    generator = torch.Generator().manual_seed(method.seed)
    t, width = t.double(), DIM // method.reduction
    adapters: dict[str, list[Tensor]] = {}
    for kind in ("visual", "text"):
        if method.adapter in (kind, "both"):
            low, high = DIM**-0.5, width**-0.5
            w1 = torch.empty(width, DIM).uniform_(-low, low, generator=generator).double()
            w2 = torch.empty(DIM, width).uniform_(-high, high, generator=generator).double()
            logit = torch.tensor(math.log(method.ratio / (1 - method.ratio))).double()
            adapters[kind] = [w1, w2, *([logit] if method.learn_ratio else [])]
    parameters = [p.requires_grad_() for weights in adapters.values() for p in weights]

    def adapted(kind: str, f: Tensor) -> Tensor:
        if kind not in adapters:
            return unit(f)
        w1, w2, *logit = adapters[kind]
        ratio = 1 / (1 + (-logit[0]).exp()) if logit else method.ratio
        a = torch.stack([(w2 @ (w1 @ row).clamp(min=0)).clamp(min=0) for row in f])
        return unit(ratio * a + (1 - ratio) * f)

    def logits(f: Tensor) -> Tensor:
        return method.logit_scale * adapted("visual", raw_norm * f) @ adapted("text", t).T

    order_of = torch.Generator().manual_seed(method.seed)
    views = [support.features] if support.views is None else list(support.views)
    momenta = [torch.zeros_like(p) for p in parameters]
    n, size = len(support.labels), method.batch_size
    for epoch in range(method.epochs):
        order = torch.randperm(n, generator=order_of)
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / method.epochs))
        rate = 1e-5 if epoch == 0 else method.lr * cosine
        for start in [0] if n < size else range(0, n - size + 1, size):
            rows = order[start : start + size]
            given = logits(views[epoch % len(views)][rows].double())
            right = given[torch.arange(len(rows)), support.labels[rows]]
            loss = (given.exp().sum(dim=1).log() - right).mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g, m in zip(parameters, gradients, momenta, strict=True):
                    m.copy_(method.momentum * m + g + method.weight_decay * p)
                    p -= rate * m
    return logits(query.double()).detach()


@pytest.mark.parametrize("adapter", ["visual", "text", "both"])
@pytest.mark.parametrize("learn_ratio", [False, True])
@pytest.mark.parametrize(("n_views", "batch_size"), [(0, 8), (4, 100)])
def test_training_is_the_papers(
    adapter: Any, learn_ratio: bool, n_views: int, batch_size: int
) -> None:
    support, text, query = task(n_views=n_views)
    method = replace(SMALL, adapter=adapter, learn_ratio=learn_ratio, batch_size=batch_size, seed=3)
    expected = reference(method, support, text.features, query)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, replace(method, epochs=0).fit(support, text).logits(query))


def test_the_norm_of_the_features_does_not_matter() -> None:
    support, text, query = task()
    expected = reference(SMALL, support, text.features, query, raw_norm=11.0)
    logits = SMALL.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (5, 200)])
def test_the_published_epochs_go_by_the_shots(shots: int, epochs: int) -> None:
    support, text, query = task(shots)
    method = replace(SMALL, batch_size=32)
    torch.testing.assert_close(
        replace(method, epochs="published").fit(support, text).logits(query),
        replace(method, epochs=epochs).fit(support, text).logits(query),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("adapter", ["visual", "text", "both"])
def test_at_ratio_zero_it_is_zero_shot(adapter: Any) -> None:
    support, text, query = task()
    logits = replace(SMALL, ratio=0.0, adapter=adapter).fit(support, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot(30.0).fit(None, text).logits(query))


@pytest.mark.parametrize("adapter", ["visual", "text", "both"])
def test_the_adapter_serves_classes_without_images(adapter: Any) -> None:
    support, text, query = task()
    method = replace(SMALL, adapter=adapter)
    whole = method.fit(support, text).logits(query)
    order = torch.tensor([3, 0])
    new = method.fit_new_classes(support, text, text.classes(order))
    torch.testing.assert_close(new.logits(query), whole[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "grid",
    [
        {"ratio": (0.2, 0.6, 0.8)},
        {"ratio": (0.2, 0.7), "lr": (0.01, 0.05)},
        {"adapter": ("visual", "text", "both"), "ratio": (0.3, 0.6), "learn_ratio": (True, False)},
        {"reduction": (2, 6)},
    ],
    ids=lambda grid: " ".join(grid),
)
@pytest.mark.parametrize("n_views", [0, 3])
def test_a_sweep_yields_each_variant_in_order_with_the_logits_of_its_fit(
    grid: dict[str, tuple[Any, ...]], n_views: int
) -> None:
    support, text, query = task(n_views=n_views)
    swept = list(SMALL.sweep(grid, support, text, query))
    assert Counter(method for method, _ in swept) == Counter(variants(SMALL, grid))
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_ratios_trained_side_by_side_do_not_mind_one_another() -> None:
    support, text, query = task()
    ratios = (0.1, 0.5, 0.5, 0.9)
    t = required(text, "x")
    together = SMALL._train(support, t, ratios)
    for i, ratio in enumerate(ratios):
        alone = replace(SMALL, ratio=ratio).fit(support, text).logits(query)
        logits = SMALL._classifier(together, i, t).logits(query)
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-3)


def test_the_count_of_trained_parameters_is_that_of_all_adapters() -> None:
    support, text, _ = task()
    counts: dict[Any, int] = {"visual": 1, "text": 1, "both": 2}
    for adapter, n_adapters in counts.items():
        for learn_ratio in (False, True):
            method = replace(SMALL, adapter=adapter, learn_ratio=learn_ratio)
            count = method.fit(support, text).stats["trained_parameters"]
            assert count == n_adapters * (2 * DIM * DIM // 3 + learn_ratio)


def test_features_narrower_than_the_reduction_pass_one_unit() -> None:
    support, text, query = task()
    logits = replace(SMALL, reduction=100).fit(support, text).logits(query)
    assert logits.shape == (30, N_CLASSES)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": -0.1}, "ratio must be 0 or more and at most 1; got -0.1; 0 is zero-shot"),
        ({"ratio": 1.1}, "ratio must be 0 or more and at most 1; got 1.1"),
        ({"ratio": 0.0, "learn_ratio": True}, "learned must start between 0 and 1; got 0.0"),
        ({"adapter": "image"}, "unknown adapter 'image'"),
        ({"reduction": 0}, "reduction must be a whole number, 1 or more"),
        ({"lr": math.nan}, "lr must be more than 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"momentum": 1.0}, "momentum must be 0 or more and less than 1; got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more; got -1.0"),
        ({"epochs": -1}, "epochs must be a whole number, 0 or more, or published; got -1"),
        ({"epochs": "coop"}, "unknown epochs 'coop'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CLIPAdapter(**settings)


def test_epochs_are_a_number_or_published_on_the_command_line() -> None:
    assert configure("clip-adapter", {"epochs": "7"}) == CLIPAdapter(epochs=7)
    assert configure("clip-adapter", {"epochs": "published"}) == CLIPAdapter(epochs="published")


def test_it_reaches_what_is_published_on_ucf101(shared: Path) -> None:
    real = np.load(shared / "features" / "ucf101_openai_vitb16.npz")
    names = ("train16_x", "test_x", "text")
    train, query, text = (normalize(torch.from_numpy(real[n]).float()) for n in names)
    support = SupportSet(train, torch.from_numpy(real["train16_y"]), len(text))
    predicted = CLIPAdapter().fit(support, Text(text)).logits(query).argmax(dim=1)
    assert (predicted == torch.from_numpy(real["test_y"])).double().mean() >= 0.825
