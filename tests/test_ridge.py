import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as LeastSquares
from torch import Tensor
from torch.nn.functional import one_hot

from cache.errors import UserError
from fewshot import Ridge, SupportSet, ZeroShot
from fewshot.text import Text
from tests.toys import vectors

N_CLASSES = 5


def task(shots: int, dim: int, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    labels = torch.arange(N_CLASSES).repeat(shots)[:-2]  # the last two classes lack an image
    features = vectors(1, len(labels), dim)
    views = vectors(2, n_views, len(labels), dim)
    support = SupportSet(features, labels, N_CLASSES, views if n_views else None)
    return support, Text(vectors(3, N_CLASSES, dim)), vectors(4, 40, dim)


more_samples_and_more_dimensions = pytest.mark.parametrize(
    ("shots", "dim", "n_views"), [(8, 10, 0), (3, 10, 3), (3, 60, 0), (3, 60, 3), (3, 30, 3)]
)


@more_samples_and_more_dimensions
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("penalty", [0.01, 0.5, 20.0])
def test_the_fit_is_scikit_learns_ridge_on_what_the_text_leaves_of_the_targets(
    shots: int, dim: int, n_views: int, with_text: bool, penalty: float
) -> None:
    support, text, query = task(shots, dim, n_views)
    samples, labels = support.samples()
    targets = 7.0 * (one_hot(labels, N_CLASSES) - 1 / N_CLASSES).double()
    zero_shot = torch.zeros(40, N_CLASSES).double()
    if with_text:
        anchor = 30.0 * (text.features - text.features.mean(dim=0)).double()
        targets = targets - samples.double() @ anchor.T
        zero_shot = query.double() @ anchor.T
    reference = LeastSquares(alpha=penalty, fit_intercept=False, solver="svd").fit(
        samples.double().numpy(),
        targets.numpy(),
        sample_weight=np.full(len(samples), 1 / support.n_views),
    )
    expected = zero_shot + torch.from_numpy(reference.predict(query.double().numpy()))
    method = Ridge(penalty=penalty, margin=7.0, logit_scale=30.0)
    logits = method.fit(support, text if with_text else None).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_samples_in_blocks_give_the_weights_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, _ = task(8, 10)
    whole = Ridge().fit(support, text).weight
    monkeypatch.setattr("fewshot.methods.ridge.BLOCK", 7)
    torch.testing.assert_close(Ridge().fit(support, text).weight, whole)


@more_samples_and_more_dimensions
def test_an_endless_penalty_is_zero_shot(shots: int, dim: int, n_views: int) -> None:
    support, text, query = task(shots, dim, n_views)
    logits = Ridge(penalty=1e9).fit(support, text).logits(query)
    zero_shot = ZeroShot().fit(None, text).logits(query)
    shift = zero_shot.mean(dim=1, keepdim=True)  # the same for every class of a query
    torch.testing.assert_close(logits, zero_shot - shift, rtol=1e-4, atol=1e-3)


def test_a_vanishing_penalty_puts_every_support_image_ahead_by_the_margin() -> None:
    support, text, _ = task(3, 60)
    logits = Ridge(penalty=1e-7, margin=9.0).fit(support, text).logits(support.features)
    own = one_hot(support.labels, N_CLASSES).bool()
    torch.testing.assert_close(
        logits[own], torch.full((13,), 9.0 * (1 - 1 / N_CLASSES)), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(logits[~own], torch.full((52,), -9.0 / N_CLASSES), rtol=0, atol=1e-3)


def test_a_penalty_means_the_same_with_every_image_listed_twice_as_a_view() -> None:
    support, text, query = task(4, 10)
    doubled = replace(support, views=torch.stack([support.features, support.features]))
    torch.testing.assert_close(
        Ridge().fit(doubled, text).logits(query), Ridge().fit(support, text).logits(query)
    )


def test_a_sweep_over_two_fields_equals_fitting_each_pair() -> None:
    support, text, query = task(4, 10)
    grid = {"margin": (5.0, 20.0), "penalty": (0.1, 1.0)}
    swept = dict(Ridge().sweep(grid, support, text, query))
    assert len(swept) == 4
    for method, logits in swept.items():
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("field", ["penalty", "margin"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_penalty_and_a_margin_must_be_positive(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{field} must be more than 0; got {value}"):
        Ridge(**{field: value})
