from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot.methods.lp_plus_plus import LPPlusPlus
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES = 5


def task(shots: int = 4, dim: int = 12, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    """Text says little of the images, or training had nothing to do; two classes lack an image."""
    labels = torch.arange(N_CLASSES).repeat(shots)[: N_CLASSES * shots - 2 * (shots > 1)]
    centers = vectors(3, N_CLASSES, dim)
    support = support_near(centers, labels, n_views=n_views, noise=2)
    text = normalize(0.2 * centers + vectors(5, N_CLASSES, dim))
    return support, Text(text), vectors(4, 40, dim)


def restated(
    method: LPPlusPlus, support: SupportSet, text: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """w, alpha and b by torch's own gradients and SGD, sums as loops, in double precision."""
    x, y = support.samples()
    x, t, n = x.double(), text.double(), len(x)
    w = torch.zeros(N_CLASSES, x.shape[1]).double()
    for row, label in zip(x, y, strict=True):
        w[label] += row / support.n_views
    cosines = [torch.stack([x[i] @ t[k] for i in range(n) if y[i] == k]) for k in range(N_CLASSES)]
    alpha = 250 * torch.stack([c.mean() for c in cosines]).mean().repeat(N_CLASSES)
    b = torch.zeros(N_CLASSES).double()
    for parameter in (w, alpha, b):
        parameter.requires_grad_()
    lr = 4 * n / float(torch.linalg.svdvals(x)[0] ** 2)
    lr_alpha = n / (4 * max(float(((x @ t[k]) ** 2).sum()) for k in range(N_CLASSES)))
    optimizer = torch.optim.SGD([w, b], lr=lr, momentum=method.momentum)
    for epoch in range(1, method.epochs + 1):
        optimizer.zero_grad()
        if method.alpha_gradient == "epoch":
            alpha.grad = None
        torch.autograd.backward(cross_entropy(x @ (w + alpha[:, None] * t).T + b, y))
        optimizer.step()
        if epoch % 10 == 0:
            assert alpha.grad is not None
            alpha.data -= lr_alpha * alpha.grad
    return w.detach(), alpha.detach(), b.detach()


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("dim", [12, 40])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("alpha_gradient", ["epoch", "sum"])
def test_training_follows_the_recipe(
    alpha_gradient: Any, momentum: float, dim: int, n_views: int
) -> None:
    support, text, query = task(dim=dim, n_views=n_views)
    method = LPPlusPlus(35, momentum, alpha_gradient)
    w, alpha, b = restated(method, support, text.features)
    expected = query.double() @ (w + alpha[:, None] * text.features.double()).T + b
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_the_sum_of_alphas_gradients_makes_a_difference_from_the_first_step_on() -> None:
    support, text, query = task()

    def gap(epochs: int) -> float:
        one, other = (
            LPPlusPlus(epochs, alpha_gradient=kind).fit(support, text).logits(query)
            for kind in ("epoch", "sum")
        )
        return float((one - other).abs().max())

    # At the tenth epoch the sum already has ten gradients in it.
    assert gap(9) == 0
    assert gap(10) > 0.01


def test_training_lowers_the_loss() -> None:
    support, text, _ = task()
    losses = [
        float(
            cross_entropy(
                LPPlusPlus(epochs).fit(support, text).logits(support.features), support.labels
            )
        )
        for epochs in (1, 30, 300)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_a_sweep_in_any_order_equals_fitting_each() -> None:
    support, text, query = task()
    grid = {"epochs": (20, 3, 11), "alpha_gradient": ("sum", "epoch"), "momentum": (0.5, 0.0)}
    swept = list(LPPlusPlus().sweep(grid, support, text, query))
    assert sorted((m.epochs, m.alpha_gradient, m.momentum) for m, _ in swept) == sorted(
        (epochs, kind, momentum)
        for epochs in (20, 3, 11)
        for kind in ("sum", "epoch")
        for momentum in (0.5, 0.0)
    )
    for method, logits in swept:
        torch.testing.assert_close(logits, method.fit(support, text).logits(query))


def test_the_weights_the_multipliers_and_the_bias_are_counted() -> None:
    support, text, _ = task()
    assert LPPlusPlus(1).fit(support, text).stats == {"trained_parameters": 5 * 12 + 5 + 5}


def test_it_needs_text() -> None:
    with pytest.raises(UserError, match=r"lp\+\+ needs text features"):
        LPPlusPlus().fit(task()[0], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"momentum": -0.1}, "momentum must be 0 or more and less than 1; got -0.1"),
        ({"momentum": 1.0}, "momentum must be 0 or more and less than 1; got 1.0"),
        ({"alpha_gradient": "sums"}, "unknown alpha_gradient 'sums'; did you mean 'sum'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        LPPlusPlus(**settings)
