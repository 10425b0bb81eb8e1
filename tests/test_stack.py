from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from cache.errors import UserError
from fewshot import GDA, ProKeR, SupportSet, Text, TextProbe, ZeroShot
from fewshot.adapters.classifiers import put_together, take_apart
from fewshot.adapters.export.onnx_graph import formula
from fewshot.classifier import LinearClassifier
from fewshot.methods import stack
from fewshot.methods.stack import Stack
from fewshot.model_selection.folds import held_out
from fewshot.model_selection.tuning import cv_folds, tune
from fewshot.parts.doubt import doubt
from fewshot.parts.kernels import KernelClassifier, WhitenedKernel
from fewshot.parts.whitened_probe import whitened_probe
from tests.toys import task, vectors

SCALE = 20.0
WEIGHTS = {
    "zero_shot": 0.3,
    "gda": 0.2,
    "proker": 0.7,
    "text_probe": 0.5,
    "whitened_probe": 0.4,
    "whitened_kernel": 0.6,
}
IMAGES_ALONE = ("gda", "proker", "whitened_probe", "whitened_kernel")


def weighted(weights: Mapping[str, float]) -> Stack:
    return replace(Stack(logit_scale=SCALE), **cast(Any, weights))


def few(shots: int = 4, noise: float = 1.0) -> tuple[SupportSet, Text, Tensor]:
    return task(5, shots=shots, noise=noise)


def bases(support: SupportSet, text: Text, query: Tensor) -> dict[str, Tensor]:
    """Each base's logits, by itself."""
    d = doubt(support, SCALE * text.features)
    return {
        "zero_shot": ZeroShot(SCALE).fit(support, text).logits(query),
        "gda": GDA().fit(support, None).logits(query),
        "proker": ProKeR(logit_scale=SCALE).fit(support, text).logits(query),
        "text_probe": TextProbe(logit_scale=SCALE).fit(support, text).logits(query),
        "whitened_probe": whitened_probe(support, SCALE * text.features, d).logits(query),
        "whitened_kernel": kernel_ridge(support, query),
    }


def kernel_ridge(support: SupportSet, query: Tensor) -> Tensor:
    """Kernel ridge regression by scikit-learn, on features that the inverse root of a covariance
    makes round, a quarter that within classes, a quarter that of all images and half the identity:
    50 for the right class, less the mean over the classes."""
    x, y = support.features.double().numpy(), support.labels.numpy()
    q, n_classes = query.double().numpy(), support.n_classes
    residuals = np.concatenate([x[y == k] - x[y == k].mean(axis=0) for k in range(n_classes)])
    ball = np.eye(x.shape[1])
    within = residuals.T @ residuals if residuals.any() else ball  # none at one shot
    shares = [(0.25, within), (0.25, np.cov(x.T)), (0.5, ball)]
    axes, variances, _ = np.linalg.svd(sum(w * share / np.trace(share) for w, share in shares))
    root = axes / np.sqrt(variances) @ axes.T

    def white(features: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = (features - x.mean(axis=0)) @ root
        return cast(NDArray[np.float64], moved / np.linalg.norm(moved, axis=1, keepdims=True))

    targets = 50 * (np.eye(n_classes)[y] - 1 / n_classes)
    # exp(-6 (1 - cosine)) is exp(-3 |a - b|^2) of unit vectors.
    fitted = KernelRidge(alpha=0.1, kernel="rbf", gamma=3.0).fit(white(x), targets)
    return torch.from_numpy(fitted.predict(white(q))).float()


@pytest.mark.parametrize("shots", [1, 4])
def test_the_logits_are_the_weighted_sum_of_those_of_the_bases(shots: int) -> None:
    support, text, query = few(shots)
    found = weighted(WEIGHTS).fit(support, text).logits(query)
    alone = bases(support, text, query)
    expected = sum(w * alone[name] for name, w in WEIGHTS.items())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_base_of_weight_zero_is_not_fitted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "gda": "GDA",
        "proker": "ProKeR",
        "text_probe": "TextProbe",
        "zero_shot": "ZeroShot",
        "whitened_kernel": "Whitening",
    }

    def never(*_: object, **__: object) -> None:
        raise AssertionError("fitted")

    monkeypatch.setattr(stack, kinds.get(name, name), never)
    support, text, query = few()
    weights = {**WEIGHTS, name: 0.0}
    left = weighted(weights).fit(support, text)
    monkeypatch.undo()
    alone = bases(support, text, query)
    expected = sum(w * alone[base] for base, w in weights.items())
    torch.testing.assert_close(left.logits(query), expected, rtol=1e-4, atol=1e-3)


def test_without_kernels_it_is_one_linear_classifier() -> None:
    support, text, _ = few()
    without = Stack(proker=0.0, whitened_kernel=0.0)
    assert isinstance(without.fit(support, text), LinearClassifier)
    assert isinstance(Stack(whitened_kernel=0.0).fit(support, text), KernelClassifier)
    assert isinstance(Stack().fit(support, text), WhitenedKernel)


@pytest.mark.parametrize("name", ["proker", "whitened_kernel"])
def test_a_kernel_can_stand_alone_without_text(name: str) -> None:
    support, _, query = few()
    alone = weighted({one: float(one == name) for one in WEIGHTS}).fit(support, None)
    expected = {
        "proker": ProKeR(logit_scale=SCALE).fit(support, None).logits(query),
        "whitened_kernel": kernel_ridge(support, query),
    }
    torch.testing.assert_close(alone.logits(query), expected[name], rtol=1e-4, atol=1e-3)


def test_where_the_names_say_all_one_shot_stays_close_to_zero_shot() -> None:
    centers = vectors(0, 5, 12)
    labels = torch.arange(5)
    support, text = SupportSet(centers, labels, 5), Text(centers)
    weights = Stack(logit_scale=SCALE).fit(support, text).stats
    assert weights["zero_shot"] > 0.99
    turned = Text(centers[torch.tensor([1, 2, 3, 4, 0])])
    weights = Stack(logit_scale=SCALE).fit(support, turned).stats
    assert weights == {
        **dict.fromkeys(("zero_shot", "gda", "text_probe"), 0.0),
        **stack.OBSCURE,
    }


def test_tuning_takes_weight_from_names_that_are_wrong_and_leaves_it_to_those_that_are_right() -> (
    None
):
    support, text, _ = few(shots=8, noise=1.2)  # images alone leave something open
    wrong = Text(text.features[torch.tensor([1, 2, 3, 4, 0])])
    method = Stack(logit_scale=SCALE, zero_shot=0.3, text_probe=0.0)
    right_weight = tune(method, support, text, protocol="cv").zero_shot
    wrong_weight = tune(method, support, wrong, protocol="cv").zero_shot
    assert float(wrong_weight) < 0.5 * float(right_weight)


def test_tuning_lowers_the_log_loss_of_the_images_held_out() -> None:
    support, text, _ = few(shots=4)
    tuned = tune(Stack(logit_scale=SCALE), support, text, protocol="cv")

    def loss(method: Stack) -> float:
        total = 0.0
        for train, rows in held_out(support, cv_folds(support)):
            alone = bases(train, text, support.features[rows])
            logits = sum(float(getattr(method, name)) * alone[name] for name in WEIGHTS)
            assert isinstance(logits, Tensor)
            total += float(
                torch.nn.functional.cross_entropy(logits, support.labels[rows], reduction="sum")
            )
        return total

    prior = weighted(Stack(logit_scale=SCALE).fit(support, text).stats)
    assert loss(tuned) < loss(prior) - 0.1


@pytest.mark.parametrize(("shots", "learned_from"), [(2, 1), (4, 3), (8, 6)])
def test_the_pull_weakens_with_the_shots_that_the_held_out_images_bases_had(
    shots: int, learned_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls: list[float] = []

    def pool(logits: object, labels: object, prior: Tensor, free: object, *, pull: float) -> Tensor:
        pulls.append(pull)
        return prior

    monkeypatch.setattr(stack, "pool_weights", pool)
    support, text, _ = few(shots)
    tune(Stack(text_probe=0.0), support, text, protocol="cv")
    assert pulls == [stack.PULL / learned_from]


def test_a_weight_that_is_fixed_stays() -> None:
    support, text, _ = few()
    free = {name: ("prior",) for name in WEIGHTS if name != "gda"}
    tuned = tune(Stack(gda=0.123), support, text, protocol="cv", grid=free)
    assert tuned.gda == 0.123
    assert all(isinstance(getattr(tuned, name), float) for name in WEIGHTS)


def test_no_more_images_are_held_out_than_place_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, text, _ = few(shots=4)
    parts = [
        (train, support.features[rows], support.labels[rows])
        for train, rows in held_out(support, cv_folds(support))
    ]  # four of five images
    monkeypatch.setattr(stack, "ENOUGH", 5)
    left = iter(parts)
    Stack().tuned(tuple(WEIGHTS), support, text, left)
    assert len(list(left)) == 3


def test_without_text_the_bases_that_learn_from_images_are_left() -> None:
    support, _, query = few()
    classifier = Stack().fit(support, None)
    assert {name for name, weight in classifier.stats.items() if weight} == set(stack.OBSCURE)
    assert classifier.logits(query).shape == (40, 5)
    with pytest.raises(UserError, match="every weight of stack is 0; without text"):
        weighted(dict.fromkeys(IMAGES_ALONE, 0.0)).fit(support, None)


def test_beyond_their_limit_kernels_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, _ = few()
    monkeypatch.setattr(stack, "MAX_KERNEL", len(support.labels) - 1)
    stats = Stack().fit(support, text).stats
    assert stats["proker"] == stats["whitened_kernel"] == 0
    assert stats["text_probe"] > 0


def test_tuning_can_give_weight_to_a_base_whose_prior_is_none() -> None:
    support, text, _ = few()
    assert Stack(logit_scale=SCALE).fit(support, text).stats["gda"] == 0
    without_kernels = Stack(logit_scale=SCALE, proker=0.0, whitened_kernel=0.0)
    tuned = tune(without_kernels, support, text, protocol="cv")
    assert float(tuned.gda) > 0
    assert tuned.proker == tuned.whitened_kernel == 0


def test_new_classes_are_zero_shots() -> None:
    support, text, query = few()
    new = Text(vectors(9, 3, 12))
    torch.testing.assert_close(
        Stack().fit_new_classes(support, text, new).logits(query),
        ZeroShot().fit(None, new).logits(query),
    )


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="gda must be 0 or more, or prior; got -1"):
        Stack(gda=-1.0)


@pytest.mark.parametrize(("proker", "whitened_kernel"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.6)])
def test_saved_and_exported_it_says_the_same(proker: float, whitened_kernel: float) -> None:
    support, text, query = few()
    classifier = Stack(proker=proker, whitened_kernel=whitened_kernel).fit(support, text)
    plain, tensors = take_apart(classifier)
    expected = classifier.logits(query)
    torch.testing.assert_close(put_together(plain, tensors).logits(query), expected)
    torch.testing.assert_close(formula(plain, tensors)(query), expected, rtol=1e-4, atol=1e-3)
