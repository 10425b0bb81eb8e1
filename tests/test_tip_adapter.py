import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from cache.errors import UserError
from fewshot import METHODS, SupportSet, ZeroShot
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.parts import key_value_cache
from fewshot.parts.key_value_cache import KeyValueCache
from fewshot.parts.tip_search import SCALES, published_grid, search_pair
from tests.toys import task, vectors

N_CLASSES = 5


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (3.0, 0.0), (0.2, 40.0)])
def test_the_logits_are_the_papers_key_by_key(alpha: float, beta: float, n_views: int) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views, left_out=2)
    expected = torch.zeros(40, N_CLASSES, dtype=torch.float64)
    for m, f in enumerate(query.double()):
        expected[m] = 30 * text.features.double() @ f
        for i, label in enumerate(support.labels):
            key = support.features[i].double()
            if support.views is not None:
                key = sum(view.double() for view in support.views[:, i]) / n_views
                key = key / key.norm()
            expected[m, label] += alpha * math.exp(-beta * (1 - float(f @ key)))
    logits = TipAdapter(alpha, beta, logit_scale=30.0).fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_alpha_zero_is_zero_shot() -> None:
    support, text, query = task(N_CLASSES, left_out=2)
    logits = TipAdapter(alpha=0.0).fit(support, text).logits(query)
    torch.testing.assert_close(logits, ZeroShot().fit(None, text).logits(query))


@pytest.mark.parametrize("limits", [{"KEYS": 4}, {"QUERIES": 7}, {"KEYS": 4, "SUMS": 1}])
def test_keys_and_queries_in_blocks_vote_as_all_at_once(
    limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    support, text, query = task(N_CLASSES, left_out=2)
    cache = KeyValueCache(support.features, support.labels, N_CLASSES)
    weights = torch.stack([torch.ones(len(support.labels)), torch.rand(len(support.labels))])
    betas = (1.0, 5.0)
    for name, value in limits.items():
        monkeypatch.setattr(key_value_cache, name, value)
    votes = cache.all_votes(query, betas, weights)
    for k, beta in enumerate(betas):
        for g, weight in enumerate(weights):
            expected = replace(cache, weights=weight).votes(query, beta)
            torch.testing.assert_close(votes[k, g], expected)
    classifier = TipAdapter().fit(support, text)
    torch.testing.assert_close(classifier.logits(query), classifier.block_logits(query))


@pytest.mark.parametrize("order", [("alpha", "beta", "logit_scale"), ("logit_scale", "beta")])
def test_a_sweep_over_any_fields_equals_fitting_each(order: tuple[str, ...]) -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    values = {"alpha": (0.5, 4.0), "beta": (1.0, 6.0, 2.0), "logit_scale": (10.0, 50.0)}
    grid = {name: values[name] for name in order}
    swept = list(TipAdapter().sweep(grid, support, text, query))
    assert sorted(tuple(getattr(m, name) for name in order) for m, _ in swept) == sorted(
        product(*grid.values())
    )
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def naive_search(
    alphas: list[float], betas: list[float], support: SupportSet, text: Tensor, query: Tensor,
    labels: Tensor,
) -> tuple[float, float, int]:  # fmt: skip
    """The loop of the paper, every product anew."""
    values = one_hot(support.labels, N_CLASSES).to(query)
    chosen, most = (0.0, 0.0), -1
    for beta in betas:
        for alpha in alphas:
            affinity = query @ support.features.to(query).T
            logits = query @ text.T + alpha * (-beta + beta * affinity).exp() @ values
            hits = int((logits.argmax(dim=1) == labels).sum())
            if hits > most:
                chosen, most = (alpha, beta), hits
    return *chosen, most


@pytest.mark.parametrize("seed", range(8))
def test_the_published_search_finds_the_first_best_pair_of_the_naive_loop(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_value_cache, "QUERIES", 7)
    support, _, query = task(N_CLASSES, left_out=2)
    query = vectors(10 + seed, 300, 12).double()
    text = 8 * vectors(20 + seed, N_CLASSES, 12).double()
    generator = torch.Generator().manual_seed(seed)
    labels = (query @ vectors(0, N_CLASSES, 12).double().T + 0.3 * query @ text.T).argmax(dim=1)
    labels = torch.where(
        torch.rand(300, generator=generator) < 0.2,
        torch.randint(N_CLASSES, (300,), generator=generator),
        labels,
    )
    grid = {"alpha": tuple(0.1 + 0.4 * j for j in range(15)), "beta": (0.5, 1.0, 2.0, 4.0, 8.0)}
    cache = KeyValueCache(support.features.double(), support.labels, N_CLASSES)
    found = search_pair(grid, linear(query, text), cache, query, labels)
    expected = naive_search(list(grid["alpha"]), list(grid["beta"]), support, text, query, labels)
    assert found == expected
    assert 0 < found[2] < 300


def test_where_all_images_vote_alike_the_search_counts_what_zero_shot_gets_right() -> None:
    support, text, query = task(N_CLASSES, left_out=2)
    support = support.subset(torch.arange(15))  # as many images of every class
    labels = torch.arange(40) % N_CLASSES
    cache = KeyValueCache(support.features, support.labels, N_CLASSES)
    found = search_pair(
        {"beta": (0.0,), "alpha": (2.0,)}, linear(query, text.features), cache, query, labels
    )
    hits = int(((query @ text.features.T).argmax(dim=1) == labels).sum())
    assert found == (2.0, 0.0, hits)
    assert 0 < hits < 40


def test_the_published_grids_are_200_betas_and_20_alphas_below_the_scales() -> None:
    for dataset, (beta, alpha) in SCALES.items():
        grid = published_grid(dataset)
        for name, most, n in (("beta", beta, 200), ("alpha", alpha, 20)):
            assert len(grid[name]) == n
            assert grid[name][0] == 0.1
            step = grid[name][1] - grid[name][0]
            assert grid[name][-1] + step == pytest.approx(most)
    with pytest.raises(UserError, match="unknown dataset with a published recipe 'ucf'"):
        published_grid("ucf")


def test_it_is_listed_and_says_that_it_needs_text() -> None:
    assert METHODS["tip-adapter"] is TipAdapter
    with pytest.raises(UserError, match="tip-adapter needs text features"):
        TipAdapter().fit(task(N_CLASSES, left_out=2)[0], None)


@pytest.mark.parametrize("field", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_alpha_and_beta_below_zero_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{field} must be 0 or more; got {value}"):
        TipAdapter(**{field: value})
