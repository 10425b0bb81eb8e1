import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot.methods.linear_probe import LinearProbe
from fewshot.parts.bisection import bisected
from fewshot.parts.class_blocks import HEAVY, ClassBlocks, heaviest
from fewshot.parts.logistic import Solution, logistic_path
from fewshot.support import SupportSet

N_CLASSES = 5


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def task(
    shots: int = 6, dim: int = 12, n_views: int = 0, norm: float = 3.0, n_classes: int = N_CLASSES
) -> tuple[SupportSet, Tensor]:
    """Features with a common component; the last two classes lack an image."""
    centers = noise(0, n_classes, dim) + 2
    labels = torch.arange(n_classes).repeat(shots)[: n_classes * shots - 2 * (shots > 1)]
    scale = norm / math.sqrt(6 * dim)
    features = scale * (centers[labels] + noise(1, len(labels), dim))
    views = features + 0.3 * scale * noise(2, n_views, len(labels), dim)
    support = SupportSet(features, labels, n_classes, views if n_views else None, unit_norm=False)
    return support, scale * (2 + noise(3, 40, dim))


def reference(support: SupportSet, c: float, query: Tensor) -> NDArray[np.float64]:
    """scikit-learn's, at a tolerance far below its own; two classes as two columns."""
    samples, labels = support.samples()
    model = LogisticRegression(C=c, max_iter=100_000, tol=1e-10, solver="newton-cg")
    model.fit(
        samples.double().numpy(),
        labels.numpy(),
        sample_weight=np.full(len(samples), 1 / support.n_views),
    )
    result: NDArray[np.float64] = model.decision_function(query.double().numpy())
    return result


shapes = pytest.mark.parametrize(
    ("shots", "dim", "n_views"), [(6, 12, 0), (6, 12, 3), (3, 60, 0), (3, 60, 3), (3, 30, 3)]
)


@shapes
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0, 1e4])
def test_the_published_unit_gives_scikit_learns_logits(
    shots: int, dim: int, n_views: int, c: float
) -> None:
    support, query = task(shots, dim, n_views)
    probe = LinearProbe(C=c, C_unit="published", tol=1e-9)
    logits = probe.fit(support, None).logits(query)
    np.testing.assert_allclose(logits, reference(support, c, query), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dim", [12, 60])
def test_one_shot_gives_scikit_learns_logits(dim: int) -> None:
    support, query = task(1, dim)
    logits = LinearProbe(C=2.0, C_unit="published", tol=1e-9).fit(support, None).logits(query)
    np.testing.assert_allclose(logits, reference(support, 2.0, query), rtol=1e-5, atol=1e-4)


def test_two_classes_minimize_the_objective_too() -> None:
    # scikit-learn fits a single vector there; with two, each of half of it, the penalty is half.
    support, query = task(6, n_classes=2)
    logits = LinearProbe(C=3.0, C_unit="published", tol=1e-9).fit(support, None).logits(query)
    expected = reference(support, 6.0, query)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-5, atol=1e-4)


@shapes
def test_at_the_solution_no_gradient_is_left(shots: int, dim: int, n_views: int) -> None:
    support, _ = task(shots, dim, n_views)
    samples, labels = support.samples()
    (found,) = logistic_path(samples, labels, N_CLASSES, [50.0], tol=1e-9)
    weight, bias = found.weight.requires_grad_(), found.bias.requires_grad_()
    loss = cross_entropy(samples.double() @ weight.T + bias, labels, reduction="sum")
    torch.autograd.backward(weight.square().sum() / 2 + 50 * loss)
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("dim", [12, 60])
def test_the_default_tolerance_leaves_the_objective_within_a_millionth(dim: int) -> None:
    support, _ = task(6, dim)
    x, y = support.features, support.labels

    def objective(tol: float, c: float) -> float:
        (found,) = logistic_path(x, y, N_CLASSES, [c], tol=tol)
        loss = cross_entropy(x.double() @ found.weight.T + found.bias, y, reduction="sum")
        return float(found.weight.square().sum() / 2 + c * loss)

    for c in (0.1, 10.0, 1e4):
        assert objective(1e-4, c) <= (1 + 1e-6) * objective(1e-10, c)


def test_c_by_the_features_means_the_same_at_any_scale() -> None:
    support, query = task(norm=1.0)
    larger, larger_query = replace(support, features=10 * support.features), 10 * query
    torch.testing.assert_close(
        LinearProbe(tol=1e-8).fit(larger, None).logits(larger_query),
        LinearProbe(tol=1e-8).fit(support, None).logits(query),
        rtol=1e-4,
        atol=1e-4,
    )


def test_c_by_the_features_is_the_published_one_over_the_mean_squared_norm() -> None:
    support, query = task()
    published = 7.0 / float(support.features.square().sum(dim=1).mean())
    torch.testing.assert_close(
        LinearProbe(7.0, tol=1e-8).fit(support, None).logits(query),
        LinearProbe(published, "published", tol=1e-8).fit(support, None).logits(query),
    )


@pytest.mark.parametrize("unit", ["feature", "published"])
def test_c_means_the_same_with_every_image_listed_twice_as_a_view(unit: Any) -> None:
    support, query = task()
    doubled = replace(support, views=torch.stack([support.features, support.features]))
    probe = LinearProbe(C_unit=unit, tol=1e-8)
    torch.testing.assert_close(
        probe.fit(doubled, None).logits(query), probe.fit(support, None).logits(query)
    )


def test_a_sweep_keeps_the_grids_order_and_equals_fitting_each() -> None:
    support, query = task()
    grid = {"C_unit": ("published", "feature"), "C": (100.0, 0.1, 3.0, 1e6)}
    swept = list(LinearProbe(tol=1e-5, tuning_tol=1e-5).sweep(grid, support, None, query))
    assert [(m.C_unit, m.C) for m, _ in swept] == [
        (unit, c) for unit in grid["C_unit"] for c in grid["C"]
    ]
    for method, logits in swept:
        expected = method.fit(support, None).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_blocks_of_samples_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the optimum: on the way there, sums round by the block."""
    support, query = task()
    probe = LinearProbe(tol=1e-8)
    whole = probe.fit(support, None).logits(query)
    monkeypatch.setattr("fewshot.parts.logistic.BLOCK", 7 * N_CLASSES)
    torch.testing.assert_close(probe.fit(support, None).logits(query), whole)


def test_a_class_is_solved_by_its_heaviest_samples_and_the_rest_of_the_diagonal() -> None:
    """However the samples are divided into blocks."""
    samples = torch.cat([noise(4, 3 * HEAVY, 6), torch.ones(3 * HEAVY, 1)], dim=1)
    weights = noise(5, 3 * HEAVY, 2).square()
    diagonal = samples.square().T @ weights + 0.1
    known = torch.empty(2, 0, 7)
    for rows, some in zip(torch.split(samples, 20), torch.split(weights, 20), strict=True):
        known = heaviest(known, rows, some)
    residual = noise(6, 7, 2)
    found = ClassBlocks(diagonal, known).solve(residual)
    for c in range(2):
        heavy = weights[:, c].argsort()[-HEAVY:]
        scaled = samples[heavy] * weights[heavy, c].sqrt()[:, None]
        rest = torch.diag(diagonal[:, c] - scaled.square().sum(dim=0))
        expected = torch.linalg.solve(scaled.T @ scaled + rest, residual[:, c])
        torch.testing.assert_close(found[:, c], expected, rtol=1e-4, atol=1e-4)


def test_the_heaviest_samples_save_passes_and_leave_the_minimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, _ = task(shots=16, dim=64, norm=1.0, n_classes=20)

    def found() -> Solution:
        (solution,) = logistic_path(support.features, support.labels, 20, [3000.0], tol=1e-5)
        return solution

    blocks = found()
    monkeypatch.setattr("fewshot.parts.class_blocks.HEAVY", 0)
    diagonal = found()
    assert blocks.converged
    assert blocks.passes < 0.8 * diagonal.passes
    torch.testing.assert_close(blocks.weight, diagonal.weight, rtol=1e-3, atol=1e-3)


def test_a_vanishing_c_leaves_the_frequencies_alone() -> None:
    support, query = task()
    logits = LinearProbe(C=1e-7).fit(support, None).logits(query)
    frequencies = support.counts / support.counts.sum()
    expected = frequencies.expand(40, -1)
    torch.testing.assert_close(torch.softmax(logits, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_measures_say_how_much_was_trained_and_that_it_converged() -> None:
    support, _ = task()
    stats = LinearProbe().fit(support, None).stats
    assert stats == {"trained_parameters": N_CLASSES * (12 + 1), "converged": 1.0}


def test_running_out_of_passes_is_measured_and_no_error() -> None:
    support, query = task()
    classifier = LinearProbe(max_iter=2, tol=1e-9).fit(support, None)
    assert classifier.stats["converged"] == 0.0
    assert torch.isfinite(classifier.logits(query)).all()


def test_features_that_are_all_alike_give_frequencies() -> None:
    features, labels = torch.ones(6, 4), torch.tensor([0, 0, 0, 0, 1, 1])
    logits = (
        LinearProbe(tol=1e-8)
        .fit(SupportSet(features, labels, 2, unit_norm=False))
        .logits(features[:1])
    )
    torch.testing.assert_close(torch.softmax(logits, 1), torch.tensor([[4 / 6, 2 / 6]]))


def bisected_by(accuracy: dict[float, float]) -> float:
    """The published search by the recipe's words, over accuracies interpolated in log10 C."""
    points, values = list(accuracy), list(accuracy.values())
    candidates = LinearProbe().published_recipe("ucf101").grid["C"]
    return math.log10(
        bisected(lambda c: float(np.interp(math.log10(c), points, values)), candidates)
    )


@pytest.mark.parametrize("peak", [-3.3, 0.0, 0.4, 1.7, 3.05])
def test_the_published_search_closes_in_on_a_single_peak(peak: float) -> None:
    found = bisected_by({-7: 0.0, peak: 1.0, 7: 0.0})
    assert abs(found - peak) < 1  # equal ends may send a bisection the wrong way, but once only


def test_the_published_search_takes_the_first_of_equals_and_then_the_left() -> None:
    # All alike: the first coarse value, 1e6, then ever the left end of the interval below 1e7.
    assert bisected_by({-7: 1.0, 7: 1.0}) == pytest.approx(5.0)


def test_the_published_search_ends_at_the_better_end_of_the_last_interval() -> None:
    # Rising throughout: from 1e6 the right end stays at 1e7.
    assert bisected_by({-7: 0.0, 7: 1.0}) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0.0}, "C must be more than 0; got 0.0"),
        ({"C": math.inf}, "C must be more than 0; got inf"),
        ({"C": math.nan}, "C must be more than 0; got nan"),
        ({"tol": 0.0}, "tol must be more than 0; got 0.0"),
        ({"max_iter": 0}, "max_iter must be a whole number, 1 or more; got 0"),
        ({"C_unit": "publishd"}, "unknown C_unit 'publishd'; did you mean 'published'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        LinearProbe(**settings)
