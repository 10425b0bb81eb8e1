from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot import GDA, LinearProbe, NearestMean, SupportSet
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, variants
from fewshot.model_selection.choosing import VariantScore, best
from fewshot.model_selection.cross_validation import Failed, OutOfFold, cross_validate
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes
from fewshot.model_selection.tuning import tune
from fewshot.text import Text
from tests.toys import vectors

N_CLASSES = 4
COUNTS = (9, 6, 4, 1)


def task(noise: float = 1.2) -> tuple[SupportSet, Text]:
    """Unbalanced, one class of one image."""
    labels = torch.repeat_interleave(torch.arange(N_CLASSES), torch.tensor(COUNTS))
    centers = vectors(0, N_CLASSES, 16)
    features = normalize(centers[labels] + noise * vectors(1, len(labels), 16))
    return SupportSet(features, labels, N_CLASSES), Text(normalize(centers + vectors(2, 4, 16)))


def out_of_fold(method: Method, fold: Tensor, *, tuned: bool = True) -> OutOfFold:
    support, text = task()
    *_, found = cross_validate(method, lambda _: support, lambda _: text, fold, tune=tuned)
    assert isinstance(found, OutOfFold)
    return found


def tuned_by_hand(method: Method, support: SupportSet, text: Text, fold: Tensor) -> Method:
    """Every variant fitted anew in every fold, each fold's logits scored."""
    scores: dict[Method, VariantScore] = {}
    for variant in variants(method, method.grid):
        scores[variant] = VariantScore()
        for k in range(4):
            rows = (fold == k).nonzero()[:, 0]
            logits = variant.fit(support.subset(fold != k), text).logits(support.features[rows])
            scores[variant].add(logits, support.labels[rows])
    return best(scores, method)


def test_tuning_bears_a_class_of_one_image_and_finds_what_a_loop_over_refits_finds() -> None:
    support, text = task()
    fold = folds(support.labels, n_folds=4, seed=1)
    tuned = tune(GDA(), support, text, protocol="cv", fold=fold)
    assert tuned == tuned_by_hand(GDA(), support, text, fold)


def test_tuning_keeps_groups_together() -> None:
    support, text = task()
    groups = torch.arange(20) // 2
    fold = folds(support.labels, groups=groups, n_folds=4, seed=1)
    expected = tuned_by_hand(GDA(), support, text, fold)
    assert tune(GDA(), support, text, protocol="cv", fold=fold) == expected


def test_where_nothing_can_be_held_out_the_method_stays_as_it_is() -> None:
    support, text = task()
    few = support.subset(torch.tensor([0, 9, 15, 19]))
    fold = folds(few.labels, n_folds=4, seed=1)
    assert tune(GDA(alpha=3.5), few, text, protocol="cv", fold=fold) == GDA(alpha=3.5)


def test_logits_are_those_of_a_classifier_tuned_and_fitted_without_the_image() -> None:
    support, text = task()
    fold = folds(support.labels, n_folds=3, seed=1)
    found = out_of_fold(GDA(), fold)
    for k in range(3):
        train = support.subset(fold != k)
        within = folds(train.labels, n_folds=4, seed=1)
        method = tuned_by_hand(GDA(), train, text, within)
        rows = fold == k
        logits = method.fit(train, text).logits(support.features[rows])
        torch.testing.assert_close(found.logits[rows], logits)
        assert found.settings[k] == {"alpha": method.alpha}  # type: ignore[attr-defined]
    assert len(found.settings) == 3


def test_correct_and_judged_say_what_the_logits_do() -> None:
    support, _ = task()
    found = out_of_fold(NearestMean(), folds(support.labels, seed=1))
    assert found.judged.tolist() == [True] * 19 + [False]
    assert found.logits[19].isnan().all()
    predicted = found.logits.argmax(dim=1)
    assert found.correct[:19].tolist() == (predicted == support.labels)[:19].tolist()
    assert not found.correct[19]
    assert 0 < found.correct.sum() < 19
    assert found.name == "nearest-mean"
    assert found.seconds > 0


def test_probabilities_are_softmax_at_the_temperature() -> None:
    found = out_of_fold(NearestMean(), folds(task()[0].labels, seed=1))
    p = found.probabilities(3.0)[:19]
    labels = task()[0].labels[:19]
    expected = cross_entropy(found.logits[:19] / 3, labels, reduction="none")
    torch.testing.assert_close(-p[torch.arange(19), labels].log(), expected)


def test_without_tuning_the_method_is_taken_as_it_is() -> None:
    support, text = task()
    fold = folds(support.labels, seed=1)
    found = out_of_fold(GDA(alpha=2.5), fold, tuned=False)
    assert found.settings == ({"alpha": 2.5},) * 5
    logits = GDA(alpha=2.5).fit(support.subset(fold != 0), text).logits(support.features[fold == 0])
    torch.testing.assert_close(found.logits[fold == 0], logits)


def test_every_method_is_asked_for_its_own_features_and_text() -> None:
    support, text = task()
    raw = SupportSet(10 * support.features, support.labels, N_CLASSES, unit_norm=False)
    asked: list[str] = []

    def support_of(method: Method) -> SupportSet:
        return support if method.unit_norm else raw

    def text_for(method: Method) -> Text:
        asked.append(method.text_recipe)
        return text

    *_, found = cross_validate(
        LinearProbe(C=30.0), support_of, text_for, folds(support.labels, seed=1), tune=False
    )
    assert isinstance(found, OutOfFold)
    assert found.correct.sum() > 9
    assert asked == ["unit-mean"]


def test_groups_reach_the_tuning_within_each_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text = task()
    groups = torch.arange(20) // 2
    fold = folds(support.labels, groups=groups, seed=1)
    seen = []

    def watched(
        method: Method, train: SupportSet, text: Text, *, protocol: str, fold: Tensor, **_: object
    ) -> Method:
        assert protocol == "cv"
        seen.append((train, fold))
        return method

    monkeypatch.setattr("fewshot.model_selection.tuning.tune", watched)
    *_, _ = cross_validate(GDA(), lambda _: support, lambda _: text, fold, groups=groups)
    assert len(seen) == len(torch.unique(fold[fold >= 0]))
    for train, inner in seen:
        whose = [int((support.features == row).all(dim=1).nonzero()) for row in train.features]
        for group in torch.unique(groups[whose]):
            assert len(torch.unique(inner[groups[whose] == group])) == 1
        assert len(torch.unique(inner[inner >= 0])) > 1


@dataclass(frozen=True)
class Broken(Method):
    """Fails in one way or another."""

    how: str

    name: ClassVar[str] = "broken"
    grid: ClassVar[Grid] = {}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        if self.how == "user":
            raise UserError("it needs 9.0 GiB of memory")
        if self.how == "linalg":
            raise LinAlgError("not positive-definite")
        if self.how == "bug":
            raise ZeroDivisionError
        return LinearClassifier(torch.full((N_CLASSES, 16), torch.nan))


def test_a_method_that_fails_says_why() -> None:
    support, text = task()
    expected: Mapping[str, str] = {
        "user": "it needs 9.0 GiB of memory",
        "linalg": "not positive-definite",
        "nan": "broken gave logits that are no numbers; leave it out",
    }
    for how, why in expected.items():
        fold = folds(support.labels, seed=1)
        *_, found = cross_validate(Broken(how), lambda _: support, lambda _: text, fold)
        assert isinstance(found, Failed)
        assert (found.name, found.why) == ("broken", why)
        assert found.seconds >= 0


def test_a_bug_is_no_failure_to_record() -> None:
    support, text = task()
    with pytest.raises(ZeroDivisionError):
        next(
            cross_validate(
                Broken("bug"), lambda _: support, lambda _: text, folds(support.labels, seed=1)
            )
        )


def test_the_accuracy_foretold_for_ucf101_is_that_on_its_test_videos(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        real = {
            name: normalize(torch.from_numpy(arrays[name]).float())
            for name in ("train16_x", "test_x", "text")
        }
        labels, truth = (torch.from_numpy(arrays[name]) for name in ("train16_y", "test_y"))
    support, text = SupportSet(real["train16_x"], labels, 101), Text(real["text"])
    groups = scenes(support.features, labels)  # many of the frames are of one scene
    fold = folds(labels, groups=groups, seed=1)
    *_, found = cross_validate(GDA(), lambda _: support, lambda _: text, fold, groups=groups)
    assert isinstance(found, OutOfFold)
    foretold = float(found.correct.sum() / found.judged.sum())
    inner = folds(labels, groups=groups, n_folds=4, seed=1)
    classifier = tune(GDA(), support, text, protocol="cv", fold=inner).fit(support, text)
    reached = float((classifier.logits(real["test_x"]).argmax(dim=1) == truth).double().mean())
    assert foretold == pytest.approx(reached, abs=0.03)
