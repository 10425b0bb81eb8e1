from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, LedoitWolf
from torch import Tensor

from cache.errors import UserError
from fewshot.parts.gaussian import (
    Shrinkage,
    class_means,
    shared_covariance,
    shrinkage_intensity,
    soft_covariance,
)

LABELS = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0])


def features(dim: int) -> Tensor:
    return torch.randn(len(LABELS), dim, generator=torch.Generator().manual_seed(1)).double()


def pooled_by_loop(x: Tensor, labels: Tensor) -> Tensor:
    scatter = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
    for row, label in zip(x, labels, strict=True):
        residual = row - x[labels == label].mean(dim=0)
        scatter += torch.outer(residual, residual)
    return scatter / (len(x) - 1)


def test_class_means_equal_a_loop_over_classes() -> None:
    x = features(4)
    expected = torch.stack([x[k == LABELS].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(class_means(x, LABELS, 3), expected)


@pytest.mark.parametrize("dim", [3, 20])
def test_a_given_intensity_mixes_the_pooled_covariance_with_its_mean_variance(dim: int) -> None:
    x = features(dim)
    pooled = pooled_by_loop(x, LABELS)
    expected = 0.7 * pooled + 0.3 * pooled.trace() / dim * torch.eye(dim, dtype=x.dtype)
    covariance = shared_covariance(x, LABELS, class_means(x, LABELS, 3), 0.3)
    torch.testing.assert_close(covariance, expected)


@pytest.mark.parametrize("dim", [3, 20])
def test_published_shrinkage_gives_the_published_precision_but_for_its_scale(dim: int) -> None:
    x, n = features(dim), len(LABELS)
    pooled = pooled_by_loop(x, LABELS)
    identity = torch.eye(dim, dtype=x.dtype)
    published = dim * torch.linalg.pinv((n - 1) * pooled + pooled.trace() * identity)
    covariance = shared_covariance(x, LABELS, class_means(x, LABELS, 3), "published")
    intensity = shrinkage_intensity(x, "published")
    torch.testing.assert_close(
        intensity * torch.linalg.inv(covariance), published, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize(
    ("rule", "estimator"), [("ledoit-wolf", LedoitWolf), ("oas", OAS)], ids=["ledoit-wolf", "oas"]
)
def test_estimated_intensities_are_those_of_centered_residuals(
    rule: Shrinkage, estimator: type[LedoitWolf]
) -> None:
    x = features(3)
    residuals = x - class_means(x, LABELS, 3)[LABELS]
    fitted = estimator(assume_centered=True).fit(residuals.numpy())
    np.testing.assert_allclose(shrinkage_intensity(residuals, rule), fitted.shrinkage_)
    # Not about the residuals' mean, which is not zero in a class's share of the samples.
    shifted = residuals + 1
    assert shrinkage_intensity(shifted, rule) != pytest.approx(fitted.shrinkage_)


@pytest.mark.parametrize("rule", ["published", "ledoit-wolf", "oas", 0.5])
def test_one_sample_per_class_leaves_a_ball_of_the_total_variance(rule: Shrinkage) -> None:
    x = features(5)[:3]
    labels = torch.arange(3)
    covariance = shared_covariance(x, labels, class_means(x, labels, 3), rule)
    variance = torch.cov(x.T).trace() / 5
    torch.testing.assert_close(covariance, variance * torch.eye(5, dtype=x.dtype))


@pytest.mark.parametrize("shrinkage", ["published", 0.3])
def test_the_soft_covariance_is_the_mean_of_the_classes_weighted_ones(
    shrinkage: Literal["published"] | float,
) -> None:
    x = features(4)
    weights = torch.rand(8, 3, generator=torch.Generator().manual_seed(2)).double()
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).double()
    mean = torch.zeros(4, 4).double()
    for k in range(3):
        for row, weight in zip(x, weights[:, k], strict=True):
            mean += weight * torch.outer(row - means[k], row - means[k]) / 3
    intensity = 4 / (4 + 8 - 1) if shrinkage == "published" else 0.3
    ball = mean.trace() / 4 * torch.eye(4).double()
    torch.testing.assert_close(
        soft_covariance(x, weights, means, shrinkage), (1 - intensity) * mean + intensity * ball
    )


@pytest.mark.parametrize("shrinkage", [0.3, "published", "oas", "ledoit-wolf"])
def test_samples_in_blocks_and_single_precision_give_the_same_in_double(
    shrinkage: Shrinkage, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = features(5).float()
    means = class_means(x.double(), LABELS, 3)
    covariance = shared_covariance(x.double(), LABELS, means, shrinkage)
    monkeypatch.setattr("fewshot.parts.gaussian.BLOCK", 3)
    blocked = class_means(x, LABELS, 3, torch.float64)
    assert blocked.dtype == torch.float64
    torch.testing.assert_close(blocked, means, rtol=1e-14, atol=1e-14)
    found = shared_covariance(x, LABELS, blocked, shrinkage)
    torch.testing.assert_close(found, covariance, rtol=1e-12, atol=1e-14)


def test_samples_that_are_all_alike_are_refused() -> None:
    x = features(4)[:1].repeat(8, 1)
    with pytest.raises(UserError, match="8 labeled samples are all one and the same"):
        shared_covariance(x, LABELS, class_means(x, LABELS, 3), 0.5)
