import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot
from fewshot.methods import ProKeR, proker
from fewshot.parts import kernels
from fewshot.text import Text
from tests.toys import vectors

N_CLASSES = 5


def task(shots: int = 4, dim: int = 10, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    labels = torch.arange(N_CLASSES).repeat(shots)
    labels = labels[:-2] if shots > 1 else labels  # the last two classes lack an image
    features = vectors(1, len(labels), dim)
    views = vectors(2, n_views, len(labels), dim)
    support = SupportSet(features, labels, N_CLASSES, views if n_views else None)
    return support, Text(vectors(3, N_CLASSES, dim)), vectors(4, 40, dim)


def centered(logits: Tensor) -> Tensor:
    """Less what all classes of a query share."""
    return logits - logits.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("shots", "dim", "n_views"), [(1, 10, 0), (4, 10, 0), (3, 60, 0), (3, 60, 3)]
)
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("lmbda", [0.03, 2.0])
@pytest.mark.parametrize("correction", ["exact", "published"])
def test_the_correction_is_scikit_learns_kernel_ridge_of_the_residuals(
    shots: int, dim: int, n_views: int, with_text: bool, lmbda: float, correction: str
) -> None:
    support, text, query = task(shots, dim, n_views)
    samples, labels = support.samples()
    residuals = 7.0 * one_hot(labels, N_CLASSES).double()
    zero_shot = torch.zeros(40, N_CLASSES).double()
    if with_text:
        residuals -= 30 * samples.double() @ text.features.double().T
        zero_shot = 30 * query.double() @ text.features.double().T
    # |x - x'|^2 = 2 (1 - x.x') of unit vectors, hence half of beta.
    reference = KernelRidge(alpha=lmbda, kernel="rbf", gamma=1.5 / 2).fit(
        samples.double().numpy(),
        residuals.numpy(),
        sample_weight=np.full(len(samples), 1 / support.n_views),
    )
    predicted = torch.from_numpy(reference.predict(query.double().numpy()))
    expected = zero_shot + (lmbda if correction == "published" else 1) * predicted
    method = ProKeR(1.5, lmbda, correction, margin=7.0, logit_scale=30.0)  # type: ignore[arg-type]
    logits = method.fit(support, text if with_text else None).logits(query)
    torch.testing.assert_close(centered(logits).double(), centered(expected), rtol=1e-5, atol=1e-4)


def test_the_published_correction_of_cosines_is_the_authors_but_for_scale_and_shift() -> None:
    support, text, query = task()
    x, t, q = support.features.double(), text.features.double(), query.double()
    kernel = torch.exp(-2.5 * (1 - x @ x.T))
    left = one_hot(support.labels, N_CLASSES) - x @ t.T
    solved = torch.linalg.solve(kernel / 0.3 + torch.eye(len(x)).double(), left)
    expected = 100 * (q @ t.T + torch.exp(-2.5 * (1 - q @ x.T)) @ solved)
    logits = ProKeR(2.5, 0.3, margin=100.0).fit(support, text).logits(query)
    torch.testing.assert_close(centered(logits).double(), centered(expected), rtol=1e-5, atol=1e-4)


def test_single_precision_does_until_the_condition_number_asks_for_double() -> None:
    support, text, query = task()
    fitted = {lmbda: ProKeR(lmbda=lmbda).fit(support, text) for lmbda in (1e-5, 0.1)}
    assert fitted[0.1].samples.dtype == fitted[0.1].coefficients.dtype == torch.float32
    assert fitted[1e-5].samples.dtype == fitted[1e-5].coefficients.dtype == torch.float64
    # A sweep goes by the smallest lambda.
    for variant, logits in ProKeR().sweep({"lmbda": (0.1, 1e-5)}, support, text, query):
        expected = fitted[variant.lmbda].logits(query)
        assert logits.dtype == query.dtype
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("correction", "lmbda"), [("published", 1e-9), ("exact", 1e9)])
def test_zero_shot_is_the_limit_of_lambda(correction: str, lmbda: float) -> None:
    support, text, query = task()
    method = ProKeR(lmbda=lmbda, correction=correction)  # type: ignore[arg-type]
    torch.testing.assert_close(
        method.fit(support, text).logits(query),
        ZeroShot().fit(None, text).logits(query),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_vanishing_lambda_of_the_exact_correction_puts_every_image_ahead_by_the_margin() -> None:
    support, _, _ = task(3, 60)
    method = ProKeR(lmbda=1e-9, correction="exact", margin=9.0)
    logits = centered(method.fit(support, None).logits(support.features))
    expected = 9 * (one_hot(support.labels, N_CLASSES) - 1 / N_CLASSES)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("correction", ["published", "exact"])
def test_lambda_means_the_same_with_every_image_listed_twice_as_a_view(correction: str) -> None:
    support, text, query = task()
    views = torch.stack([support.features, support.features])
    doubled = SupportSet(support.features, support.labels, N_CLASSES, views)
    method = ProKeR(correction=correction)  # type: ignore[arg-type]
    torch.testing.assert_close(
        method.fit(doubled, text).logits(query), method.fit(support, text).logits(query)
    )


def test_views_beyond_the_limit_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, query = task(n_views=3)
    assert support.views is not None
    mean = normalize(support.views.mean(dim=0), dim=1)
    averaged = SupportSet(mean, support.labels, N_CLASSES)
    monkeypatch.setattr(proker, "MAX_SAMPLES", 3 * len(mean))
    as_samples = ProKeR().fit(support, text).logits(query)
    monkeypatch.setattr(proker, "MAX_SAMPLES", 3 * len(mean) - 1)
    logits = ProKeR().fit(support, text).logits(query)
    torch.testing.assert_close(logits, ProKeR().fit(averaged, text).logits(query))
    assert not torch.allclose(logits, as_samples, atol=0.1)


def test_queries_in_blocks_are_classified_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, query = task()
    classifier = ProKeR().fit(support, text)
    expected = classifier.logits(query)
    monkeypatch.setattr(kernels, "BLOCK", 7 * len(support.labels))
    torch.testing.assert_close(classifier.logits(query), expected)


@pytest.mark.parametrize(
    "grid",
    [
        {"lmbda": (0.1, 1.0), "beta": (1.0, 5.0)},
        {"correction": ("exact", "published"), "margin": (5.0, 50.0), "lmbda": (0.1, 1.0)},
        {"logit_scale": (10.0, 100.0)},
    ],
)
def test_a_sweep_over_any_fields_equals_fitting_each(grid: dict[str, tuple[object, ...]]) -> None:
    support, text, query = task(n_views=2)
    swept = list(ProKeR().sweep(grid, support, text, query))
    assert len({method for method, _ in swept}) == math.prod(map(len, grid.values()))
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_too_large_a_kernel_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, query = task()
    monkeypatch.setattr("fewshot.parts.memory.available_memory", lambda: 2**10)
    with pytest.raises(UserError, match=r"proker with 18 support images needs .* use fewer shots"):
        ProKeR().fit(support, text)
    with pytest.raises(UserError, match="proker with 18 support images needs"):
        list(ProKeR().sweep({}, support, text, query))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be more than 0; got 0.0"),
        ({"lmbda": -1.0}, "lmbda must be more than 0; got -1.0"),
        ({"margin": math.nan}, "margin must be more than 0; got nan"),
        ({"correction": "exakt"}, "unknown correction 'exakt'; did you mean 'exact'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ProKeR(**settings)  # type: ignore[arg-type]
