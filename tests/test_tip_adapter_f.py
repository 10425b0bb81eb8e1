import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from cache.errors import UserError
from fewshot import SupportSet
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.methods.tip_adapter_f import TipAdapterF
from fewshot.text import Text
from tests.toys import task

N_CLASSES = 5


@pytest.mark.parametrize("n_views", [0, 3])
def test_training_is_adamw_on_the_keys_by_a_cosine_per_step(n_views: int) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views, left_out=2)
    method = TipAdapterF(
        2.0, 3.0, 5.0, 1.5, lr=0.01, weight_decay=0.1, epochs=4, batch_size=7, logit_scale=20.0
    )
    n = len(support.labels)
    views = [support.features] if support.views is None else list(support.views)
    mean = torch.stack(views).mean(dim=0)
    keys = torch.nn.Parameter(mean / mean.norm(dim=1, keepdim=True))
    values = one_hot(support.labels, N_CLASSES).float()
    optimizer = torch.optim.AdamW([keys], lr=0.01, eps=1e-4, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * math.ceil(n / 7))
    generator = torch.Generator().manual_seed(1)

    def scores(f: Tensor, alpha: float, beta: float) -> Tensor:
        votes = torch.exp(-beta * (1 - f @ keys.T)) @ values
        return 20 * f @ text.features.T + alpha * votes

    for epoch in range(4):
        for rows in torch.split(torch.randperm(n, generator=generator), 7):
            loss = cross_entropy(
                scores(views[epoch % len(views)][rows], 5.0, 1.5), support.labels[rows]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
    fitted = method.fit(support, text)
    expected = scores(query, 2.0, 3.0).detach()
    torch.testing.assert_close(fitted.logits(query), expected, rtol=1e-5, atol=1e-5)
    untrained = TipAdapter(2.0, 3.0, 20.0).fit(support, text).logits(query)
    assert not torch.allclose(untrained, expected, rtol=1e-3, atol=1e-3)
    assert fitted.stats == {"trained_parameters": n * 12}


def test_untrained_it_is_tip_adapter() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    torch.testing.assert_close(
        TipAdapterF(2.0, 3.0, epochs=0).fit(support, text).logits(query),
        TipAdapter(2.0, 3.0).fit(support, text).logits(query),
    )


def test_a_sweep_over_scoring_and_training_equals_fitting_each() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    grid = {"alpha": (0.5, 4.0), "train_alpha": (1.0, 5.0), "beta": (1.0, 6.0)}
    swept = list(TipAdapterF(epochs=3).sweep(grid, support, text, query))
    assert len({method for method, _ in swept}) == 8
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_published_recipe_gets_82_percent_and_a_half_of_ucf101_right(shared: Path) -> None:
    archive = np.load(shared / "features" / "ucf101_openai_vitb16.npz")

    def unit(name: str) -> Tensor:
        return normalize(torch.from_numpy(archive[name].astype(np.float32)), dim=-1)

    support = SupportSet(unit("train16_x"), torch.from_numpy(archive["train16_y"]), 101)
    # The authors' alpha and beta for this dataset, before any search.
    method = TipAdapterF(3.0, 1.0, 3.0, 1.0)
    predicted = method.fit(support, Text(unit("text"))).logits(unit("test_x")).argmax(dim=1)
    accuracy = (predicted == torch.from_numpy(archive["test_y"])).double().mean()
    assert accuracy >= 0.825


def test_it_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="tip-adapter-f needs text features"):
        TipAdapterF().fit(task(N_CLASSES, left_out=2)[0], None)


@pytest.mark.parametrize("field", ["alpha", "beta", "train_alpha", "train_beta", "weight_decay"])
def test_what_must_not_be_negative_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"{field} must be 0 or more; got -1"):
        replace(TipAdapterF(), **{field: -1})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0, "lr must be more than 0; got 0"),
        ("batch_size", 0, "batch_size must be a whole number, 1 or more; got 0"),
        ("epochs", -1, "epochs must be a whole number, 0 or more; got -1"),
        ("epochs", 2.5, "epochs must be a whole number, 0 or more; got 2.5"),
    ],
)
def test_what_training_cannot_do_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TipAdapterF(), **{field: value})
