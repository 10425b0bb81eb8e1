import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.methods.ape import APE
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.parts.channels import best_channels
from tests.toys import task

N_CLASSES = 5


def naive_criterion(text: Tensor, samples: Tensor, labels: Tensor, balance: float) -> Tensor:
    """The mean product over all ordered pairs of different classes, a pair at a time."""
    total, n = torch.zeros(text.shape[1], dtype=torch.float64), 0
    for i, j in product(range(len(labels)), repeat=2):
        if labels[i] != labels[j]:
            total += samples[i].double() * samples[j].double()
            n += 1
    centered = text.double() - text.double().mean(dim=0)
    variance = (centered**2).sum(dim=0) / (len(text) - 1)
    return torch.sub(balance * variance, total, alpha=(1 - balance) / n)


@pytest.mark.parametrize("left_out", [0, 2])
@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("share", "count"), [(0.5, 6), (0.7, 8), (1.0, 12), (0.01, 1)])
def test_the_channels_are_those_of_the_largest_criterion(
    share: float, count: int, balance: float, left_out: int
) -> None:
    support, text, _ = task(N_CLASSES, left_out=left_out)
    samples = torch.cat([text.features, support.features])
    labels = torch.cat([torch.arange(N_CLASSES), support.labels])
    criterion = naive_criterion(text.features, samples, labels, balance)
    expected = sorted(range(12), key=lambda d: -float(criterion[d]))[:count]
    assert best_channels(text.features, samples, labels, share, balance).tolist() == expected


@pytest.mark.parametrize("n_views", [0, 3])
def test_the_logits_are_the_papers_key_by_key(n_views: int) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views, left_out=2)
    t = text.features.double()
    keys = support.features if support.views is None else normalize(support.views.mean(dim=0))
    keys = keys.double()
    samples = torch.cat([t, keys])
    labels = torch.cat([torch.arange(N_CLASSES), support.labels])
    criterion = naive_criterion(t, samples, labels, 0.4)
    chosen = sorted(range(12), key=lambda d: -float(criterion[d]))[:7]

    def on(f: Tensor) -> Tensor:
        return normalize(f[chosen], dim=0)

    expected = torch.zeros(40, N_CLASSES, dtype=torch.float64)
    for m, f in enumerate(query.double()):
        expected[m] = 30 * t @ f
        for key, label in zip(keys, support.labels, strict=True):
            seen = torch.stack([on(key) @ on(row) for row in t]).softmax(dim=0)
            hot = torch.zeros(N_CLASSES).index_fill(0, label, 1.0)
            divergence = float((hot * torch.log2((hot + 1e-6) / (seen + 1e-6))).sum())
            vote = math.exp(-4 * (1 - float(on(f) @ on(key))) + 0.6 * divergence)
            expected[m, label] += 2 * vote
    method = APE(2.0, 4.0, 0.6, channels=0.6, balance=0.4, logit_scale=30.0)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_with_all_channels_and_all_images_alike_it_is_tip_adapter() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    torch.testing.assert_close(
        APE(2.0, 3.0, 0.0, channels=1.0).fit(support, text).logits(query),
        TipAdapter(2.0, 3.0).fit(support, text).logits(query),
    )


def test_a_sweep_over_scoring_and_channels_equals_fitting_each() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    grid = {
        "gamma": (0.0, 0.5),
        "channels": (0.4, 0.8),
        "beta": (1.0, 6.0),
        "alpha": (0.5, 4.0),
    }
    swept = list(APE().sweep(grid, support, text, query))
    assert len({method for method, _ in swept}) == 16
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_it_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="ape needs text features"):
        APE().fit(task(N_CLASSES, left_out=2)[0], None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("alpha", -1.0, "alpha must be 0 or more; got -1.0"),
        ("beta", math.inf, "beta must be 0 or more; got inf"),
        ("gamma", math.nan, "gamma must be 0 or more; got nan"),
        ("channels", 0.0, r"channels must be more than 0 and at most 1; got 0.0"),
        ("channels", 500.0, r"channels must be more than 0 and at most 1; got 500.0"),
        ("balance", 1.1, "balance must be 0 or more and at most 1; got 1.1"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    field: str, value: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        APE(**{field: value})
