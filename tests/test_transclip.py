import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot
from fewshot.classifier import classify
from fewshot.method import Method
from fewshot.methods import NearestMean, TransCLIP
from fewshot.parts import neighbors as neighbors
from fewshot.parts.neighbors import nearest
from fewshot.text import Text
from tests.toys import vectors

N_CLASSES = 5


def task(shots: int = 3, m: int = 40, dim: int = 12) -> tuple[SupportSet, Text, Tensor]:
    centers = vectors(0, N_CLASSES, dim)
    labels = torch.arange(N_CLASSES).repeat(shots)
    labels = labels[:-2] if shots > 1 else labels  # the last two classes lack an image
    support = SupportSet(
        normalize(centers[labels] + vectors(1, len(labels), dim)), labels, N_CLASSES
    )
    query = normalize(centers[torch.arange(m) % N_CLASSES] + vectors(4, m, dim))
    return support, Text(normalize(centers + vectors(3, N_CLASSES, dim))), query


def accuracy(method: Method, support: SupportSet, query: Tensor, labels: Tensor) -> float:
    """Of the method without text."""
    found = method.fit(support, None).logits(query).argmax(dim=1)
    return float((found == labels).double().mean())


def assignments_by_loop(
    support: SupportSet | None, text: Text | None, query: Tensor, *, weight: float, lmbda: float,
    scale: float = 100.0, n: int = 3, rounds: int = 10, steps: int = 5,
) -> Tensor:  # fmt: skip
    """The paper's updates with one dense affinity matrix of queries, then support images.

    `weight` is what all support images weigh where all queries weigh 1.
    """
    x = query.double()
    m, dim = x.shape
    if text is not None:
        y = torch.softmax(scale * x @ text.features.double().T, dim=1)
    else:
        assert support is not None
        of_class = [support.features[support.labels == k].double() for k in range(N_CLASSES)]
        prototypes = normalize(torch.stack([images.mean(dim=0) for images in of_class]), dim=1)
        y = torch.softmax(0.5 * scale * x @ prototypes.T, dim=1)
    everything, known = x, torch.zeros(0, N_CLASSES).double()
    if support is not None:
        everything = torch.cat([x, support.features.double()])
        known = one_hot(support.labels, N_CLASSES).double()
    affinity = torch.zeros(len(everything), len(everything)).double()
    for i, row in enumerate(everything):
        others = [j for j in range(m) if j != i]
        for j in sorted(others, key=lambda j: -float(row @ x[j]))[:n]:
            affinity[i, j] = row @ x[j]
    means = []
    for k in range(N_CLASSES):
        if support is None:
            best = torch.argsort(y[:, k], descending=True)[:8]
            mean = sum(y[i, k] * x[i] for i in best)
            assert isinstance(mean, Tensor)
        else:
            mean = support.features[support.labels == k].double().sum(dim=0)
        means.append(mean / mean.norm())
    mu, variance, z = torch.stack(means), torch.full((dim,), 1 / dim).double(), y
    for outer in range(rounds + 1):
        distance = torch.stack([((x - mean) ** 2 / variance).sum(dim=1) for mean in mu], dim=1)
        for _ in range(steps):
            every = torch.cat([z, known])
            votes = ((affinity + affinity.T) @ every)[:m]
            z = torch.softmax(lmbda * y.log() + (-distance / 2 + 50 / (2 * n) * votes) / 50, dim=1)
        if outer == rounds:
            break
        weights = torch.cat([z / m, weight / max(1, len(known)) * known])
        mu = normalize(weights.T @ everything, dim=1)
        squares = (everything[:, None] - mu) ** 2
        variance = (weights[:, :, None] * squares).sum(dim=(0, 1)) / weights.sum()
    return z.log()


def test_without_images_the_assignments_are_the_papers_by_a_loop() -> None:
    _, text, query = task()
    logits = TransCLIP(logit_scale=30.0).fit(None, text).logits(query)
    expected = assignments_by_loop(None, text, query, weight=0, lmbda=1, scale=30)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize(("unit", "gamma"), [("published", 0.01), ("image", 2.0), ("image", 0.0)])
@pytest.mark.parametrize(("shots", "m", "dim"), [(1, 40, 12), (4, 40, 12), (3, 12, 30)])
def test_with_few_shots_the_assignments_are_the_papers_by_a_loop(
    with_text: bool, unit: str, gamma: float, shots: int, m: int, dim: int
) -> None:
    support, text, query = task(shots, m, dim)
    given = text if with_text else None
    method = TransCLIP(gamma, unit, logit_scale=30.0)  # type: ignore[arg-type]
    weight = 50 * gamma if unit == "published" else gamma * len(support.labels) / m
    expected = assignments_by_loop(support, given, query, weight=weight, lmbda=0.5, scale=30)
    logits = method.fit(support, given).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_without_text_images_classified_together_help_one_another() -> None:
    n_classes, dim = 100, 256
    centers = vectors(0, n_classes, dim)
    support = SupportSet(
        normalize(centers + 2 * vectors(1, n_classes, dim)), torch.arange(n_classes), n_classes
    )
    truth = torch.arange(400) % n_classes
    query = normalize(centers[truth] + 2 * vectors(4, 400, dim))
    assert accuracy(TransCLIP(), support, query, truth) > 0.08 + accuracy(
        NearestMean(), support, query, truth
    )


def test_every_number_of_neighbors_and_iterations_and_any_lambda_are_as_given() -> None:
    support, text, query = task()
    method = TransCLIP(1.0, lmbda=0.3, neighbors=5, iterations=2, inner_iterations=3)
    weight = len(support.labels) / 40
    expected = assignments_by_loop(
        support, text, query, weight=weight, lmbda=0.3, n=5, rounds=2, steps=3
    )
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_softmax_of_the_logits_are_the_assignments() -> None:
    support, text, query = task()
    logits = TransCLIP().fit(support, text).logits(query)
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(40))


def test_the_units_of_gamma_agree_where_they_should() -> None:
    support, text, query = task()
    published = TransCLIP(13 / 40 / 50, "published").fit(support, text).logits(query)
    torch.testing.assert_close(TransCLIP(1.0).fit(support, text).logits(query), published)


def test_the_order_of_the_queries_permutes_the_rows() -> None:
    support, text, query = task()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    for given in (support, None):
        classifier = TransCLIP().fit(given, text)
        torch.testing.assert_close(
            classifier.logits(query[order]), classifier.logits(query)[order], rtol=1e-4, atol=1e-4
        )


def test_the_views_of_labeled_images_are_not_looked_at() -> None:
    support, text, query = task()
    views = vectors(9, 2, 13, 12)
    viewed = SupportSet(support.features, support.labels, N_CLASSES, views)
    expected = TransCLIP().fit(support, text).logits(query)
    assert torch.equal(TransCLIP().fit(viewed, text).logits(query), expected)


@pytest.mark.parametrize("m", [1, 2, 3, 9])
@pytest.mark.parametrize("few_shot", [True, False])
def test_a_handful_of_queries_get_finite_logits(m: int, few_shot: bool) -> None:
    support, text, query = task(m=m)
    logits = TransCLIP().fit(support if few_shot else None, text).logits(query)
    assert logits.shape == (m, N_CLASSES)
    assert torch.isfinite(logits).all()


def test_queries_that_are_all_the_same_get_finite_logits() -> None:
    support, text, query = task()
    for given in (support, None):
        logits = TransCLIP().fit(given, text).logits(query[:1].expand(10, -1))
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "grid",
    [
        {"gamma": (0.5, 3.0), "neighbors": (2, 4)},
        {"lmbda": ("published", 0.1), "gamma_unit": ("image", "published")},
    ],
)
@pytest.mark.parametrize("few_shot", [True, False])
def test_a_sweep_over_any_fields_equals_fitting_each(
    grid: dict[str, tuple[object, ...]], few_shot: bool
) -> None:
    support, text, query = task()
    given = support if few_shot else None
    swept = list(TransCLIP().sweep(grid, given, text, query))
    assert len({method for method, _ in swept}) == math.prod(map(len, grid.values()))
    for method, logits in swept:
        torch.testing.assert_close(logits, method.fit(given, text).logits(query))


@pytest.mark.parametrize("pairs", [1, 90, 2**24])
def test_neighbors_in_blocks_are_those_of_the_whole_matrix(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "PAIRS", pairs)
    query, other = vectors(1, 40, 6), vectors(2, 7, 6)
    cosines = query @ query.T
    expected = cosines.fill_diagonal_(-2).topk(3, dim=1)
    found = nearest(query, query, 3, leave_out_itself=True)
    torch.testing.assert_close(found[0], expected.values)
    assert torch.equal(found[1], expected.indices)
    assert torch.equal(nearest(query, other, 2)[1], (query @ other.T).topk(2, dim=1).indices)
    assert nearest(query, other, 9)[1].shape == (40, 7)


def test_without_text_and_images_there_is_nothing_to_go_by() -> None:
    with pytest.raises(UserError, match="transclip needs text features and there are none"):
        TransCLIP().fit(None, None)


def test_too_many_queries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, query = task()
    monkeypatch.setattr("fewshot.parts.memory.available_memory", lambda: 2**10)
    with pytest.raises(UserError, match="transclip on 40 images of 5 classes at once needs"):
        TransCLIP().fit(support, text).logits(query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -1.0}, "gamma must be 0 or more; got -1.0"),
        ({"gamma_unit": "images"}, "unknown gamma_unit 'images'; did you mean 'image'"),
        ({"lmbda": "publish"}, "unknown lmbda 'publish'; did you mean 'published'"),
        ({"lmbda": -0.5}, "lmbda must be 0 or more, or published; got -0.5"),
        ({"neighbors": 0}, "neighbors must be a whole number, 1 or more; got 0"),
        ({"iterations": 0}, "iterations must be a whole number, 1 or more; got 0"),
        ({"inner_iterations": 0}, "inner_iterations must be a whole number, 1 or more; got 0"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TransCLIP(**settings)  # type: ignore[arg-type]


def test_on_ucf101_classifying_all_at_once_is_worth_four_percent(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        query, text = (
            normalize(torch.from_numpy(arrays[name].astype(np.float32)))
            for name in ("val_x", "text")
        )
        labels = torch.from_numpy(arrays["val_y"])
    accuracies = [
        float((classify(method.fit(None, Text(text)), query) == labels).double().mean())
        for method in (ZeroShot(), TransCLIP())
    ]
    assert accuracies[1] > accuracies[0] + 0.04


def test_on_ucf101_one_shot_without_text_is_worth_more_than_the_nearest_mean(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        train, query = (
            normalize(torch.from_numpy(arrays[name].astype(np.float32)))
            for name in ("train16_x", "val_x")
        )
        labels, truth = torch.from_numpy(arrays["train16_y"]), torch.from_numpy(arrays["val_y"])
    first = torch.stack([torch.nonzero(labels == k)[0, 0] for k in range(101)])
    support = SupportSet(train[first], labels[first], 101)
    assert accuracy(TransCLIP(), support, query, truth) > 0.05 + accuracy(
        NearestMean(), support, query, truth
    )


def test_every_inner_step_starts_from_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    query, text = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (30, 4)
    )
    one, two = (
        TransCLIP(iterations=1, inner_iterations=n, logit_scale=5.0)
        .fit(None, Text(text))
        .logits(query)
        for n in (1, 2)
    )
    assert (one - two).abs().max() > 1e-3
