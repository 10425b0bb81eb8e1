from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
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
from fewshot.parts.kernels import KernelClassifier
from fewshot.parts.whitened_probe import whitened_probe
from tests.toys import task, vectors

SCALE = 20.0
WEIGHTS = {"zero_shot": 0.3, "gda": 0.2, "proker": 0.7, "text_probe": 0.5, "whitened_probe": 0.4}


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
    }


def test_the_logits_are_the_weighted_sum_of_those_of_the_bases() -> None:
    support, text, query = few()
    found = weighted(WEIGHTS).fit(support, text).logits(query)
    alone = bases(support, text, query)
    expected = sum(w * alone[name] for name, w in WEIGHTS.items())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_base_of_weight_zero_is_not_fitted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"gda": "GDA", "proker": "ProKeR", "text_probe": "TextProbe", "zero_shot": "ZeroShot"}

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


def test_without_proker_it_is_one_linear_classifier() -> None:
    support, text, _ = few()
    assert isinstance(Stack(proker=0.0).fit(support, text), LinearClassifier)
    assert isinstance(Stack().fit(support, text), KernelClassifier)


def test_where_the_names_say_all_one_shot_stays_close_to_zero_shot() -> None:
    centers = vectors(0, 5, 12)
    labels = torch.arange(5)
    support, text = SupportSet(centers, labels, 5), Text(centers)
    weights = Stack(logit_scale=SCALE).fit(support, text).stats
    assert weights["zero_shot"] > 0.99
    turned = Text(centers[torch.tensor([1, 2, 3, 4, 0])])
    weights = Stack(logit_scale=SCALE).fit(support, turned).stats
    assert weights == {
        "zero_shot": 0.0,
        "text_probe": 0.0,
        **{name: stack.OBSCURE[name] for name in ("gda", "proker", "whitened_probe")},
    }


def test_tuning_takes_weight_from_names_that_are_wrong_and_leaves_it_to_those_that_are_right() -> (
    None
):
    support, text, _ = few(shots=8, noise=0.6)
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
    assert {name for name, weight in classifier.stats.items() if weight} == {
        "gda",
        "proker",
        "whitened_probe",
    }
    assert classifier.logits(query).shape == (40, 5)
    with pytest.raises(UserError, match="every weight of stack is 0; without text"):
        Stack(gda=0.0, proker=0.0, whitened_probe=0.0).fit(support, None)


def test_beyond_its_limit_proker_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text, _ = few()
    monkeypatch.setattr(stack, "MAX_KERNEL", len(support.labels) - 1)
    assert Stack().fit(support, text).stats["proker"] == 0


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


@pytest.mark.parametrize("proker", [0.0, 0.7])
def test_saved_and_exported_it_says_the_same(proker: float) -> None:
    support, text, query = few()
    classifier = Stack(proker=proker).fit(support, text)
    plain, tensors = take_apart(classifier)
    expected = classifier.logits(query)
    torch.testing.assert_close(put_together(plain, tensors).logits(query), expected)
    torch.testing.assert_close(formula(plain, tensors)(query), expected, rtol=1e-4, atol=1e-3)
