import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import GDA, SupportSet, ZeroShot
from fewshot.text import Text
from tests.toys import support_near, vectors

N_CLASSES = 5


def task(shots: int = 6, dim: int = 12, n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    centers = vectors(0, N_CLASSES, dim)
    labels = torch.arange(N_CLASSES).repeat(shots)
    support = support_near(centers, labels, n_views=n_views)
    return support, Text(vectors(3, N_CLASSES, dim)), vectors(4, 40, dim)


def published_logits(
    x: Tensor, labels: Tensor, text: Tensor, query: Tensor, alpha: float
) -> Tensor:
    """The authors' formula, by a loop and a pseudo-inverse, less the log of the uniform prior."""
    x, text, query = x.double(), text.double(), query.double()
    n, dim = x.shape
    means = torch.stack([x[labels == k].mean(dim=0) for k in range(N_CLASSES)])
    covariance = torch.zeros(dim, dim, dtype=x.dtype)
    for row, label in zip(x, labels, strict=True):
        covariance += torch.outer(row - means[label], row - means[label]) / (n - 1)
    identity = torch.eye(dim, dtype=x.dtype)
    precision: Tensor = dim * torch.linalg.pinv(
        (n - 1) * covariance + covariance.trace() * identity
    )
    weight = means @ precision
    return 100 * query @ text.T + alpha * (query @ weight.T - (weight * means).sum(dim=1) / 2)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize(("dim", "n_views"), [(12, 0), (12, 4), (50, 0), (50, 4)])
def test_in_the_published_unit_the_logits_are_the_papers(
    alpha: float, dim: int, n_views: int
) -> None:
    support, text, query = task(dim=dim, n_views=n_views)
    expected = published_logits(*support.samples(), text.features, query, alpha)
    logits = GDA(alpha, alpha_unit="published").fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_views", [0, 4])
@pytest.mark.parametrize("shots", [1, 2, 9])
@pytest.mark.parametrize("shrinkage", ["published", "oas", 0.3])
def test_alpha_is_the_lead_in_nats_per_root_shot_at_the_class_means(
    shots: int, n_views: int, shrinkage: float
) -> None:
    support, _, _ = task(shots=shots, n_views=n_views)
    samples, labels = support.samples()
    means = torch.stack([samples[labels == k].mean(dim=0) for k in range(N_CLASSES)])
    logits = GDA(alpha=3.0, shrinkage=shrinkage).fit(support, None).logits(means)
    leads = logits.diagonal() - logits.mean(dim=1)
    assert float(leads.mean()) == pytest.approx(3 * math.sqrt(shots), rel=1e-4)


def test_alpha_means_the_same_with_every_image_listed_twice_as_a_view() -> None:
    support, text, query = task()
    doubled = replace(support, views=torch.stack([support.features, support.features]))
    gda = GDA(shrinkage=0.3)
    torch.testing.assert_close(
        gda.fit(doubled, text).logits(query), gda.fit(support, text).logits(query)
    )


@pytest.mark.parametrize("text_given", [True, False])
def test_the_units_differ_by_a_factor_alone(text_given: bool) -> None:
    support, text, query = task()
    zero_shot = 100 * query @ text.features.T if text_given else torch.zeros(40, N_CLASSES)
    lead, published = (
        GDA(1.0, alpha_unit=unit).fit(support, text if text_given else None).logits(query)
        - zero_shot
        for unit in ("lead", "published")
    )
    ratio = lead / published
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


def test_alpha_zero_is_zero_shot() -> None:
    support, text, query = task()
    for priors in ("uniform", "empirical"):
        logits = GDA(alpha=0.0, priors=priors).fit(support, text).logits(query)
        torch.testing.assert_close(logits, ZeroShot().fit(None, text).logits(query))


@pytest.mark.parametrize("alpha_unit", ["lead", "published"])
@pytest.mark.parametrize("shrinkage", ["published", "ledoit-wolf", "oas", 0.1])
def test_one_shot_with_one_view_picks_the_nearest_class_mean(
    alpha_unit: str, shrinkage: str
) -> None:
    support, _, query = task(shots=1)
    gda = GDA(alpha_unit=alpha_unit, shrinkage=shrinkage)  # type: ignore[arg-type]
    predicted = gda.fit(support, None).logits(query).argmax(dim=1)
    order = torch.argsort(support.labels)
    nearest = torch.cdist(query, support.features[order]).argmin(dim=1)
    torch.testing.assert_close(predicted, nearest)


def test_full_shrinkage_picks_the_nearest_class_mean_at_any_shots() -> None:
    support, _, query = task()
    means = torch.stack([support.features[support.labels == k].mean(0) for k in range(N_CLASSES)])
    predicted = GDA(shrinkage=1.0).fit(support, None).logits(query).argmax(dim=1)
    torch.testing.assert_close(predicted, torch.cdist(query, means).argmin(dim=1))


def test_empirical_priors_add_the_log_of_the_frequencies() -> None:
    support, _, query = task()
    rows = torch.arange(30)[:-3]  # classes 2, 3 and 4 lose an image
    support = support.subset(rows)
    published = GDA(1.0, alpha_unit="published")
    n, dim = 27, 12
    uniform, empirical = (
        replace(published, priors=priors).fit(support, None).logits(query)
        for priors in ("uniform", "empirical")
    )
    frequency = torch.tensor([6, 6, 5, 5, 5]) / 27
    shift = dim / (dim + n - 1) * (frequency.log() - math.log(1 / N_CLASSES))
    torch.testing.assert_close(empirical - uniform, shift.expand(40, -1), rtol=1e-3, atol=1e-4)


def test_a_sweep_over_two_fields_equals_fitting_each_pair() -> None:
    support, text, query = task()
    grid = {"alpha": (0.5, 4.0), "shrinkage": ("oas", 0.2)}
    swept = dict(GDA().sweep(grid, support, text, query))
    assert {(m.alpha, m.shrinkage) for m in swept} == {
        (alpha, shrinkage) for alpha in (0.5, 4.0) for shrinkage in ("oas", 0.2)
    }
    for method, logits in swept.items():
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_class_means_that_coincide_are_refused() -> None:
    features = vectors(0, 1, 12).expand(4, -1)
    support = SupportSet(features, torch.tensor([0, 1, 0, 1]), 2)
    with pytest.raises(UserError, match="gda needs class means that differ"):
        GDA().fit(support, None)


def long_tailed() -> tuple[SupportSet, Tensor]:
    """Classes of 1 to 200 images, and their counts."""
    counts = torch.tensor([200, 40, 7, 2, 1])
    labels = torch.arange(N_CLASSES).repeat_interleave(counts)
    features = normalize(vectors(0, N_CLASSES, 12)[labels] + vectors(1, len(labels), 12))
    order = torch.randperm(250, generator=torch.Generator().manual_seed(5))
    return SupportSet(features[order], labels[order], N_CLASSES), counts


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_with_unequal_classes_the_logits_are_the_papers_too(alpha: float) -> None:
    support, _ = long_tailed()
    _, text, query = task()
    expected = published_logits(support.features, support.labels, text.features, query, alpha)
    logits = GDA(alpha, alpha_unit="published").fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_with_unequal_classes_the_lead_is_the_same_mean_over_classes() -> None:
    support, _ = long_tailed()
    means = torch.stack([support.features[support.labels == k].mean(0) for k in range(N_CLASSES)])
    logits = GDA(alpha=3.0).fit(support, None).logits(means)
    leads = logits.diagonal() - logits.mean(dim=1)
    assert float(leads.mean()) == pytest.approx(3 * math.sqrt(250 / N_CLASSES), rel=1e-4)


def test_empirical_priors_favor_the_head_of_a_long_tail_by_the_log_of_its_share() -> None:
    support, counts = long_tailed()
    query = vectors(4, 40, 12)
    uniform, empirical = (
        GDA(1.0, priors=priors, alpha_unit="published").fit(support, None).logits(query)
        for priors in ("uniform", "empirical")
    )
    shift = 12 / (12 + 250 - 1) * (counts / 50).log()
    torch.testing.assert_close(empirical - uniform, shift.expand(40, -1), rtol=1e-3, atol=1e-4)


N_NEW = 3


def new_task(n_views: int = 0) -> tuple[SupportSet, Text, Tensor]:
    support, _, query = task(n_views=n_views)
    return support, Text(vectors(7, N_NEW, 12)), query


def borrowed_by_loop(support: SupportSet, new: Text, k: int) -> list[tuple[Tensor, Tensor]]:
    """The mean of each new class, and its neighbors' residuals about the text."""
    samples = support.samples()[0].double()
    result = []
    for t in new.features.double():
        near = samples[torch.argsort(samples @ t, descending=True)[:k]]
        result.append((torch.cat([near, t.expand(16, -1)]).mean(dim=0), near - t))
    return result


@pytest.mark.parametrize(("k", "n_views"), [(8, 0), (8, 4), (64, 4), (64, 0)])
def test_new_classes_are_the_papers_with_the_published_covariance_and_unit(
    k: int, n_views: int
) -> None:
    support, new, query = new_task(n_views)
    means, precisions = [], []
    for mean, residuals in borrowed_by_loop(support, new, k):
        n, dim = residuals.shape
        covariance = residuals.T @ residuals / (n - 1)
        ridge = covariance.trace() * torch.eye(dim).double()
        means.append(mean)
        precisions.append(dim * torch.linalg.pinv((n - 1) * covariance + ridge))
    mu, precision = torch.stack(means), torch.stack(precisions).mean(dim=0)
    gaussian = query.double() @ precision @ mu.T - (mu @ precision * mu).sum(dim=1) / 2
    expected = 100 * query.double() @ new.features.double().T + 0.1 * gaussian
    gda = GDA(0.1, alpha_unit="published", neighbors=k, new_covariance="published")
    logits = gda.fit_new_classes(support, None, new).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_views", [0, 4])
def test_new_classes_share_the_base_classes_covariance_and_unit(n_views: int) -> None:
    support, new, query = new_task(n_views)
    samples, labels = (part.double() for part in support.samples())
    n, dim = samples.shape
    base = torch.stack([samples[labels == k].mean(dim=0) for k in range(N_CLASSES)])
    residuals = samples - base[labels.long()]
    covariance = residuals.T @ residuals / (n - 1)
    ridge = covariance.trace() * torch.eye(dim).double()
    precision = dim * torch.linalg.inv((n - 1) * covariance + ridge)
    mu = torch.stack([mean for mean, _ in borrowed_by_loop(support, new, 8)])
    gaussian = query.double() @ precision @ mu.T - (mu @ precision * mu).sum(dim=1) / 2
    expected = 100 * query.double() @ new.features.double().T + 0.1 * gaussian
    gda = GDA(0.1, alpha_unit="published", neighbors=8)
    logits = gda.fit_new_classes(support, None, new).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("new_covariance", ["shared", "published"])
def test_of_new_classes_alpha_is_the_lead_that_one_image_gives(new_covariance: str) -> None:
    support, new, _ = new_task()
    gda = GDA(alpha=3.0, neighbors=8, new_covariance=new_covariance)  # type: ignore[arg-type]
    mu = torch.stack([mean for mean, _ in borrowed_by_loop(support, new, 8)]).float()
    gaussian = gda.fit_new_classes(support, None, new).logits(mu) - 100 * mu @ new.features.T
    leads = gaussian.diagonal() - gaussian.mean(dim=1)
    assert float(leads.mean()) == pytest.approx(3.0, rel=1e-4)


def test_at_alpha_zero_new_classes_are_zero_shot_and_the_base_text_plays_no_part() -> None:
    support, new, query = new_task()
    base = Text(vectors(8, N_CLASSES, 12))
    zero_shot = ZeroShot().fit(None, new).logits(query)
    torch.testing.assert_close(
        GDA(alpha=0.0).fit_new_classes(support, base, new).logits(query), zero_shot
    )
    with_text = GDA().fit_new_classes(support, base, new).logits(query)
    torch.testing.assert_close(GDA().fit_new_classes(support, None, new).logits(query), with_text)
    assert not torch.allclose(with_text, zero_shot, atol=0.1)


def test_new_classes_whose_text_is_the_same_are_refused() -> None:
    support, _, _ = new_task()
    with pytest.raises(UserError, match="gda needs class means that differ"):
        GDA().fit_new_classes(support, None, Text(vectors(7, 1, 12).expand(2, -1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more; got -1.0"),
        ({"alpha": math.nan}, "alpha must be 0 or more; got nan"),
        (
            {"shrinkage": 0.0},
            "shrinkage must be more than 0 and at most 1, or .* oas; got 0.0",
        ),
        (
            {"shrinkage": 1.5},
            "shrinkage must be more than 0 and at most 1, or .* oas; got 1.5",
        ),
        ({"shrinkage": "ledoit"}, "unknown shrinkage 'ledoit'; did you mean 'ledoit-wolf'"),
        ({"priors": "unifrom"}, "unknown priors 'unifrom'; did you mean 'uniform'"),
        ({"alpha_unit": "nats"}, "unknown alpha_unit 'nats'"),
        ({"new_covariance": "share"}, "unknown new_covariance 'share'; did you mean 'shared'"),
        ({"neighbors": 1}, "neighbors must be a whole number, 2 or more; got 1"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        GDA(**settings)  # type: ignore[arg-type]
