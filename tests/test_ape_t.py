import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from cache.errors import UserError
from fewshot.methods.ape_t import APET
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.parts import support_affinities
from fewshot.parts.channels import best_channels
from tests.toys import task

N_CLASSES = 5


@pytest.mark.parametrize("n_views", [0, 3])
def test_training_is_adamw_on_residuals_and_weights_by_a_cosine_per_step(n_views: int) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views, left_out=2)
    method = APET(2.0, 3.0, 5.0, 1.5, 0.6, 0.4, 0.01, 0.2, epochs=4, batch_size=7, logit_scale=20.0)
    n, t = len(support.labels), text.features
    chosen = best_channels(t, t, torch.arange(N_CLASSES), 0.6, 0.4)
    pick = one_hot(chosen, 12).float()  # (Q, D)
    views = [support.features] if support.views is None else list(support.views)
    mean = torch.stack(views).mean(dim=0)
    keys = mean @ pick.T / (mean @ pick.T).norm(dim=1, keepdim=True)
    values = one_hot(support.labels, N_CLASSES).float()
    residual = torch.nn.Parameter(torch.zeros(N_CLASSES, 7))
    weights = torch.nn.Parameter(torch.ones(n, 1))
    optimizer = torch.optim.AdamW([residual, weights], lr=0.01, eps=1e-3, weight_decay=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * math.ceil(n / 7))
    generator = torch.Generator().manual_seed(1)

    def scores(f: Tensor, alpha: float, beta: float) -> Tensor:
        on = f @ pick.T / (f @ pick.T).norm(dim=1, keepdim=True)
        affinity = on @ (keys + values @ residual).T
        votes = torch.exp(-beta * (1 - affinity)) @ (weights * values)
        return 20 * f @ (t + residual @ pick).T + alpha * votes

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
    assert fitted.stats["trained_parameters"] == N_CLASSES * 7 + n
    assert fitted.stats["residual_size"] == pytest.approx(
        float((residual.detach().norm(dim=1) / t.norm(dim=1)).mean()), rel=1e-4
    )
    assert fitted.stats["residual_size"] > 0.01


def test_affinities_that_are_not_kept_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, query = task(N_CLASSES, n_views=3, left_out=2)
    kept = APET(epochs=4, batch_size=7).fit(support, text).logits(query)
    monkeypatch.setattr(support_affinities, "KEPT", 0)
    computed = APET(epochs=4, batch_size=7).fit(support, text).logits(query)
    torch.testing.assert_close(computed, kept, rtol=1e-5, atol=1e-4)


def test_untrained_on_all_channels_it_is_tip_adapter() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    torch.testing.assert_close(
        APET(2.0, 3.0, channels=1.0, epochs=0).fit(support, text).logits(query),
        TipAdapter(2.0, 3.0).fit(support, text).logits(query),
    )


def test_a_sweep_over_scoring_and_training_equals_fitting_each() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    grid = {"alpha": (0.5, 4.0), "train_alpha": (1.0, 5.0), "beta": (1.0, 6.0)}
    swept = list(APET(epochs=3).sweep(grid, support, text, query))
    assert len({method for method, _ in swept}) == 8
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_it_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="ape-t needs text features"):
        APET().fit(task(N_CLASSES, left_out=2)[0], None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("alpha", -1.0, "alpha must be 0 or more; got -1.0"),
        ("beta", -1.0, "beta must be 0 or more; got -1.0"),
        ("train_alpha", -1.0, "train_alpha must be 0 or more; got -1.0"),
        ("train_beta", -1.0, "train_beta must be 0 or more; got -1.0"),
        ("weight_decay", -1.0, "weight_decay must be 0 or more; got -1.0"),
        ("epochs", -1, "epochs must be a whole number, 0 or more; got -1"),
        ("lr", 0.0, "lr must be more than 0; got 0.0"),
        ("batch_size", 0, "batch_size must be a whole number, 1 or more; got 0"),
        ("channels", 0.0, r"channels must be more than 0 and at most 1; got 0.0"),
        ("balance", -0.1, "balance must be 0 or more and at most 1; got -0.1"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    field: str, value: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        replace(APET(), **{field: value})  # type: ignore[arg-type]
