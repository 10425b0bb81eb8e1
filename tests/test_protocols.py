import inspect
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import (
    GDA,
    METHODS,
    LinearClassifier,
    Method,
    NearestMean,
    Ridge,
    SupportSet,
    ZeroShot,
    classify,
    draw,
    evaluate,
)
from fewshot.cross_dataset import transfer
from fewshot.fitting import fit
from fewshot.imbalance import draw_imbalanced
from fewshot.method import LearnsFrom
from fewshot.new_classes import base_to_new
from fewshot.results.prediction_files import digest_of_images, read_predictions
from fewshot.text import Text, required
from tests.zoos import BASE, NAMES, Echo, share, tensors, text_of, zoo_at


@dataclass(frozen=True)
class Clusters(Method):
    """Zero-shot's guesses at unlabeled images, averaged: one step of k-means."""

    given: list[Any] = field(default_factory=list, compare=False)

    name: ClassVar[str] = "clusters"
    learns_from: ClassVar[LearnsFrom] = "images"

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        return self.fit_unlabeled(support.features, text)

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> LinearClassifier:
        assert images is not None
        self.given.append(images)
        guess = (images @ required(text, self.name).T).argmax(dim=1)
        hot = torch.nn.functional.one_hot(guess, len(required(text, self.name))).float()
        return LinearClassifier(10 * hot.T @ images + required(text, self.name))

    def fit_new_classes(self, support: Any, text: Text | None, new: Text) -> LinearClassifier:
        return LinearClassifier(new.features)


class Centered:
    """Cosines after the mean of all queries is taken from each."""

    def __init__(self, text: Tensor) -> None:
        self.text = text
        self.stats: dict[str, float] = {}

    def logits(self, features: Tensor) -> Tensor:
        return (features - features.mean(dim=0)) @ self.text.T


@dataclass(frozen=True)
class Joint(Method):
    """Transductive, with the images of a support set or without."""

    name: ClassVar[str] = "joint"
    learns_from: ClassVar[LearnsFrom] = "labels or text"
    transductive: ClassVar[bool] = True

    def fit(self, support: SupportSet | None, text: Text | None) -> Centered:
        weight = required(text, self.name)
        return Centered(weight if support is None else NearestMean().fit(support, None).weight)

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> Centered:
        return self.fit(None, text)

    def fit_new_classes(self, support: Any, text: Text | None, new: Text) -> Centered:
        return Centered(new.features)


def test_an_imbalanced_test_tells_many_medium_and_few_apart(tmp_path: Path) -> None:
    sizes = (101, 150, 100, 20, 19, 1, 50)
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", sizes=sizes)
    result = evaluate(zoo, NearestMean(), shots=16, imbalance="natural")
    labels = torch.from_numpy(zoo.labels("train"))
    support = SupportSet(torch.from_numpy(zoo.features("train")), labels, 7)
    predicted = classify(NearestMean().fit(support, None), torch.from_numpy(zoo.features("test")))
    truth = torch.from_numpy(zoo.labels("test"))
    groups = {"many": [0, 1], "medium": [2, 3, 6], "few": [4, 5]}
    expected = {
        name: share(predicted[mine], truth[mine])
        for name, wanted in groups.items()
        for mine in [torch.isin(truth, torch.tensor(wanted))]
    }
    assert result.accuracies == pytest.approx(expected)
    assert len(set(expected.values())) == 3
    assert (result.setting, result.imbalance, result.shots) == ("imbalanced", "natural", 150)
    assert result.n_support == sum(sizes)


def test_with_all_shots_a_class_without_images_is_known_by_its_text(tmp_path: Path) -> None:
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", sizes=(25, 0, 9, 9, 0, 9, 9))
    seen, unseen = [0, 2, 3, 5, 6], [1, 4]
    result = evaluate(zoo, Echo(), shots="all", tune="none", blend=1.0)
    support = SupportSet(*tensors(zoo, "train", seen), n_classes=5)
    text = text_of(zoo, seen)
    features, truth = tensors(zoo, "test", range(7))
    logits = torch.empty(len(features), 7)
    logits[:, seen] = Echo().fit(support, text).logits(features)
    logits[:, unseen] = Echo().fit_new_classes(support, text, text_of(zoo, unseen)).logits(features)
    predicted = logits.argmax(dim=1)
    assert result.accuracy == pytest.approx(share(predicted, truth))
    assert {1, 4} & set(predicted.tolist())
    medium = truth == 0
    assert result.accuracies == pytest.approx({
        "medium": share(predicted[medium], truth[medium]),
        "few": share(predicted[~medium], truth[~medium]),
    })  # fmt: skip
    assert (result.n_support, result.shots, result.n_classes) == (61, 25, 7)


@pytest.mark.parametrize("name", ["zero-shot", "gda", "stack", "clip-adapter", "prolip", "taskres"])
def test_with_all_shots_one_class_may_lack_images(tmp_path: Path, name: str) -> None:
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", sizes=(9, 9, 0, 9, 9, 9, 9))
    fixed = {"residual": "image"} if name == "taskres" else {}
    result = evaluate(zoo, name, shots="all", tune="none", fixed=fixed)
    assert result.accuracy > 0.25, "chance is 0.14"


def test_with_all_shots_zero_shot_tests_every_class(tmp_path: Path) -> None:
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", sizes=(25, 0, 9, 9, 0, 9, 9))
    assert evaluate(zoo, "zero-shot", shots="all").accuracy == evaluate(zoo, "zero-shot").accuracy


def test_a_class_without_images_is_named_where_it_cannot_be_learned(tmp_path: Path) -> None:
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", sizes=(9, 0, 9, 9, 9, 9, 9))
    none_of = f"toy has no(ne|) (train image )?of '{NAMES[1]}'"
    with pytest.raises(
        UserError, match=f"ridge knows no classes but .*{none_of}; use a method that"
    ):
        evaluate(zoo, "ridge", shots="all")
    with pytest.raises(UserError, match=f"{none_of}; add some, or leave that class out"):
        fit(zoo, "gda", shots="all")


def test_an_imbalanced_fit_learns_the_unequal_sample(zoo: FeatureStore) -> None:
    result = evaluate(zoo, Ridge(), shots=8, seed=2, imbalance="long-tail:4")
    sample = draw_imbalanced(zoo.labels("train"), NAMES, profile="long-tail:4", shots=8, seed=2)
    again = evaluate(zoo, Ridge(), sample=sample)
    assert result.accuracy == again.accuracy
    assert (result.n_support, result.shots, result.seed) == (len(sample.train), 8, 2)
    assert (result.setting, again.setting) == ("imbalanced", "few-shot")
    assert set(result.accuracies) == {"few"}
    assert again.accuracies == {}


@pytest.mark.parametrize("method", [ZeroShot(), Joint()])
def test_imbalance_is_refused_for_what_learns_from_no_labels(
    zoo: FeatureStore, method: Method
) -> None:
    with pytest.raises(UserError, match=f"{method.name} learns from no labels"):
        evaluate(zoo, method, imbalance="step:2")


@pytest.mark.parametrize(
    ("method", "shots", "setting", "n_support"),
    [
        (NearestMean(), 4, "few-shot", 28),
        (ZeroShot(), 4, "zero-shot", 0),
        (Clusters(), 4, "unsupervised", 63),
        (Joint(), 0, "transductive zero-shot", 0),
        (Joint(), 4, "transductive few-shot", 28),
    ],
)
def test_a_setting_says_what_was_learned_from(
    zoo: FeatureStore, method: Method, shots: int, setting: str, n_support: int
) -> None:
    result = evaluate(zoo, method, shots=shots, seed=3)
    assert (result.setting, result.n_support) == (setting, n_support)
    labeled = setting.endswith("few-shot")
    assert (result.shots, result.seed) == ((4, 3) if labeled else (0, 0))
    assert result.fitted_on == "toy"


@pytest.mark.parametrize(
    ("method", "setting"), [(ZeroShot(), "zero-shot"), (Clusters(), "unsupervised")]
)
def test_a_given_sample_makes_no_learner_of_labels(
    zoo: FeatureStore, method: Method, setting: str
) -> None:
    sample = draw(zoo.labels("train"), NAMES, shots=4, seed=2)
    result = evaluate(zoo, method, sample=sample)
    assert result.setting == setting
    assert result.n_support == (28 if setting == "unsupervised" else 0)


def test_other_protocols_say_when_the_test_was_joint(zoo: FeatureStore, tmp_path: Path) -> None:
    assert base_to_new(zoo, Joint(), shots=4).setting == "transductive base-to-new"
    target = zoo_at(tmp_path / "art" / "noise.h5")
    [result] = transfer(zoo, [target], Joint(), shots=4)
    assert result.setting == "transductive domain-generalization"
    result = evaluate(zoo, Joint(), shots=4, imbalance="step:2")
    assert result.setting == "transductive imbalanced"


def test_the_unsupervised_get_the_features_of_all_encoded_train_images_and_no_labels(
    tmp_path: Path,
) -> None:
    rows = [3, 5, 8, 13, 21, 34]
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", rows=rows)
    method = Clusters()
    result = evaluate(zoo, method, shots=4)
    [given] = method.given
    assert torch.equal(given, torch.from_numpy(zoo.features("train", rows)))
    assert (result.n_support, result.n_views) == (6, 0)


def test_the_unsupervised_get_images_of_base_classes_alone_where_only_these_are_learned(
    zoo: FeatureStore,
) -> None:
    method = Clusters()
    base_to_new(zoo, method, shots=4)
    [given] = method.given
    assert torch.equal(given, tensors(zoo, "train", BASE)[0])


def test_the_transductive_get_all_test_images_at_once(tmp_path: Path) -> None:
    zoo = zoo_at(tmp_path / "toy" / "noise.h5", test=4200)  # more than a block
    result = evaluate(zoo, Joint())
    features = torch.from_numpy(zoo.features("test"))
    logits = (features - features.mean(dim=0)) @ text_of(zoo, range(7)).features.T
    labels = torch.from_numpy(zoo.labels("test"))
    assert result.accuracy == pytest.approx(share(logits.argmax(dim=1), labels))


@pytest.mark.parametrize("name", METHODS)
def test_no_method_has_a_way_to_be_handed_test_labels(name: str) -> None:
    known = {"self", "support", "images", "text", "new", "grid", "query"}
    for step in ("fit", "fit_unlabeled", "fit_new_classes", "sweep"):
        function = getattr(METHODS[name], step, None)
        if function is not None:
            assert set(inspect.signature(function).parameters) <= known


@pytest.mark.parametrize("name", METHODS)
def test_other_test_labels_change_no_prediction(tmp_path: Path, name: str) -> None:
    one = zoo_at(tmp_path / "one" / "toy" / "noise.h5")
    other = zoo_at(tmp_path / "two" / "toy" / "noise.h5", test_labels=[6] * 84)
    method = METHODS[name]()
    if "epochs" in {field.name for field in fields(method)}:
        method = replace(method, epochs=3)
    first, second = (
        evaluate(zoo, method, shots=2, tune="cv" if name == "gda" else "none", save=zoo.path.parent)
        for zoo in (one, other)
    )
    assert first.hyperparameters == second.hyperparameters
    assert first.accuracy != second.accuracy
    said = [read_predictions(Path(r.predictions or "")) for r in (first, second)]
    assert said[0].predicted.tolist() == said[1].predicted.tolist()
    assert said[0].images != said[1].images


def test_saved_predictions_are_the_results(zoo: FeatureStore, tmp_path: Path) -> None:
    result = evaluate(zoo, GDA(), shots=4, save=tmp_path / "said")
    kept = read_predictions(Path(result.predictions or ""))
    assert (kept.predicted == kept.labels).mean() == pytest.approx(result.accuracy)
    assert kept.classnames == NAMES
    assert kept.images == digest_of_images("toy", zoo.labels("test"), np.arange(84))
    assert Path(result.predictions or "").parent == tmp_path / "said"
    assert evaluate(zoo, GDA(), shots=4).predictions is None
