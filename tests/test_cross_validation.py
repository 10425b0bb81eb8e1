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
from fewshot import GDA, LinearProbe, NearestMean, SupportSet, ZeroShot
from fewshot.classifier import Grid, LinearClassifier, Method, variants
from fewshot.model_selection.cross_validation import (
    Failed,
    OutOfFold,
    cross_validate,
    tune_unbalanced,
)
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes
from fewshot.model_selection.tuning import Score, best
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


def tried(method: Method, fold: Tensor, tune: bool = True) -> OutOfFold:
    support, text = task()
    found = cross_validate(method, lambda _: support, lambda _: text, fold, tune=tune)
    assert isinstance(found, OutOfFold)
    return found


def tuned_by_hand(method: Method, support: SupportSet, text: Text, fold: Tensor) -> Method:
    """Every variant fitted anew in every fold, each fold's logits scored."""
    scores: dict[Method, Score] = {}
    for variant in variants(method, method.grid):
        scores[variant] = Score()
        for k in range(4):
            rows = (fold == k).nonzero()[:, 0]
            logits = variant.fit(support.subset(fold != k), text).logits(support.features[rows])
            scores[variant].add(logits, support.labels[rows])
    return best(scores, int((fold >= 0).sum()))


def test_tuning_bears_a_class_of_one_image_and_finds_what_a_loop_over_refits_finds() -> None:
    support, text = task()
    fold = folds(support.labels, n_folds=4)
    assert tune_unbalanced(GDA(), support, text) == tuned_by_hand(GDA(), support, text, fold)


def test_tuning_keeps_groups_together() -> None:
    support, text = task()
    groups = torch.arange(20) // 2
    fold = folds(support.labels, groups=groups, n_folds=4)
    expected = tuned_by_hand(GDA(), support, text, fold)
    assert tune_unbalanced(GDA(), support, text, groups=groups) == expected


def test_where_nothing_can_be_held_out_the_method_stays_as_it_is() -> None:
    support, text = task()
    few = support.subset(torch.tensor([0, 9, 15, 19]))
    assert tune_unbalanced(GDA(alpha=3.5), few, text) == GDA(alpha=3.5)


def test_a_method_without_a_grid_is_not_fitted_to_be_tuned() -> None:
    support, _ = task()
    assert tune_unbalanced(ZeroShot(), support, None) == ZeroShot()


def test_logits_are_those_of_a_classifier_tuned_and_fitted_without_the_image() -> None:
    support, text = task()
    fold = folds(support.labels, n_folds=3)
    found = tried(GDA(), fold)
    for k in range(3):
        train = support.subset(fold != k)
        within = folds(train.labels, n_folds=4)
        method = tuned_by_hand(GDA(), train, text, within)
        rows = fold == k
        logits = method.fit(train, text).logits(support.features[rows])
        torch.testing.assert_close(found.logits[rows], logits)
        assert found.settings[k] == {"alpha": method.alpha}  # type: ignore[attr-defined]
    assert len(found.settings) == 3


def test_correct_and_judged_say_what_the_logits_do() -> None:
    support, _ = task()
    found = tried(NearestMean(), folds(support.labels))
    assert found.judged.tolist() == [True] * 19 + [False]
    assert found.logits[19].isnan().all()
    predicted = found.logits.argmax(dim=1)
    assert found.correct[:19].tolist() == (predicted == support.labels)[:19].tolist()
    assert not found.correct[19]
    assert 0 < found.correct.sum() < 19
    assert found.name == "nearest-mean"
    assert found.seconds > 0


def test_probabilities_are_softmax_at_the_temperature() -> None:
    found = tried(NearestMean(), folds(task()[0].labels))
    p = found.probabilities(3.0)[:19]
    labels = task()[0].labels[:19]
    expected = cross_entropy(found.logits[:19] / 3, labels, reduction="none")
    torch.testing.assert_close(-p[torch.arange(19), labels].log(), expected)


def test_without_tuning_the_method_is_taken_as_it_is() -> None:
    support, text = task()
    fold = folds(support.labels)
    found = tried(GDA(alpha=2.5), fold, tune=False)
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

    found = cross_validate(
        LinearProbe(C=30.0), support_of, text_for, folds(support.labels), tune=False
    )
    assert isinstance(found, OutOfFold)
    assert found.correct.sum() > 9
    assert asked == ["unit-mean"]


def test_groups_reach_the_tuning_within_each_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text = task()
    groups = torch.arange(20) // 2
    fold = folds(support.labels, groups=groups)
    seen = []

    def watched(method: Method, train: SupportSet, text: Text, *, groups: Tensor) -> Method:
        seen.append((train, groups))
        return method

    monkeypatch.setattr("fewshot.model_selection.cross_validation.tune_unbalanced", watched)
    cross_validate(GDA(), lambda _: support, lambda _: text, fold, groups=groups)
    assert len(seen) == len(torch.unique(fold[fold >= 0]))
    for train, within in seen:
        whose = [int((support.features == row).all(dim=1).nonzero()) for row in train.features]
        assert within.tolist() == groups[whose].tolist()


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
        fold = folds(support.labels)
        found = cross_validate(Broken(how), lambda _: support, lambda _: text, fold)
        assert isinstance(found, Failed)
        assert (found.name, found.why) == ("broken", why)
        assert found.seconds >= 0


def test_a_bug_is_no_failure_to_record() -> None:
    support, text = task()
    with pytest.raises(ZeroDivisionError):
        cross_validate(Broken("bug"), lambda _: support, lambda _: text, folds(support.labels))


def test_the_accuracy_foretold_for_ucf101_is_that_on_its_test_videos(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        real = {
            name: normalize(torch.from_numpy(arrays[name]).float())
            for name in ("train16_x", "test_x", "text")
        }
        labels, truth = (torch.from_numpy(arrays[name]) for name in ("train16_y", "test_y"))
    support, text = SupportSet(real["train16_x"], labels, 101), Text(real["text"])
    groups = scenes(support.features, labels)  # many of the frames are of one scene
    fold = folds(labels, groups=groups)
    found = cross_validate(GDA(), lambda _: support, lambda _: text, fold, groups=groups)
    assert isinstance(found, OutOfFold)
    foretold = float(found.correct.sum() / found.judged.sum())
    classifier = tune_unbalanced(GDA(), support, text, groups=groups).fit(support, text)
    reached = float((classifier.logits(real["test_x"]).argmax(dim=1) == truth).double().mean())
    assert foretold == pytest.approx(reached, abs=0.03)
