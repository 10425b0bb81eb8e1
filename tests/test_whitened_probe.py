import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fewshot.parts import whitened_probe as module
from fewshot.parts.whitened_probe import whitened_probe
from fewshot.support import SupportSet
from tests.toys import task

N_CLASSES = 4
SCALE = 20.0


def reference(support: SupportSet, held: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias in the features' own coordinates: the penalty is the distance from `held`
    in the metric of the covariance within classes."""
    x, y = (part.double() if part.is_floating_point() else part for part in support.samples())
    n, dim = x.shape
    means = torch.stack([x[y == k].mean(dim=0) for k in range(N_CLASSES)])
    scatter = (x - means[y]).T @ (x - means[y]) / (n - N_CLASSES)
    round_ = scatter.trace() / dim * torch.eye(dim).double()
    covariance = (1 - module.SHRINKAGE) * scatter + module.SHRINKAGE * round_
    start = torch.zeros(N_CLASSES, dim).double() if held is None else held.double()
    w, b = start.clone().requires_grad_(), torch.zeros(N_CLASSES).double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(x, w, b), y, reduction="sum") / support.n_views
        moved = w - start
        loss = loss + module.PENALTY / 2 * (moved @ covariance * moved).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return w.detach(), b.detach() - b.detach().mean()


@pytest.mark.parametrize("n_views", [0, 2])
@pytest.mark.parametrize("with_text", [True, False])
def test_it_is_the_regression_penalized_by_the_covariance_within_classes(
    n_views: int, with_text: bool
) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views)
    zero_shot = SCALE * text.features if with_text else None
    held = None if zero_shot is None else module.OFFSET * 0.75 * zero_shot
    weight, bias = reference(support, held)
    found = whitened_probe(support, zero_shot, 0.25).logits(query)
    expected = linear(query.double(), weight, bias).float()
    torch.testing.assert_close(
        found - found.mean(dim=1, keepdim=True),
        expected - expected.mean(dim=1, keepdim=True),
        rtol=1e-2,
        atol=1e-2,
    )


def test_names_that_say_nothing_count_for_nothing() -> None:
    support, text, query = task(N_CLASSES)
    without = whitened_probe(support, None, 1.0).logits(query)
    torch.testing.assert_close(
        whitened_probe(support, SCALE * text.features, 1.0).logits(query), without
    )
