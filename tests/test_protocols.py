import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from cache.extraction.store_writer import create
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
    tune,
)
from fewshot.abilities import SupportsNewClasses
from fewshot.cross_dataset import transfer
from fewshot.fitting import fit
from fewshot.imbalance import draw_imbalanced
from fewshot.method import LearnsFrom
from fewshot.new_classes import base_to_new
from fewshot.results.prediction_files import digest_of_images, read_predictions
from fewshot.text import Text, required

DIM = 12
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def store(
    path: Path,
    *,
    names: Sequence[str] = NAMES,
    ids: Sequence[str] | None = None,
    model: str = "noise",
    sizes: Sequence[int] = (9,) * 7,
    test: int = 84,
    test_labels: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    text: bool = True,
) -> FeatureStore:
    """A store of noise about the centers of its classes, which their names alone decide.

    Args:
        path: Its folder names the dataset.
        names: Of the classes.
        ids: Of the classes.
        model: The model's name.
        sizes: Train images of each class; val has three of each.
        test: Test images.
        test_labels: What they are labeled, whatever they are.
        rows: Train rows that were encoded.
        text: Whether there is text.
    """
    centers = np.stack([noise(sum(map(ord, ids[k] if ids else name)), DIM)
                        for k, name in enumerate(names)])  # fmt: skip
    dataset: dict[str, Any] = {"name": path.parent.name}
    identity = {
        "dataset": dataset if ids is None else {**dataset, "class_ids": list(ids)},
        "model": {"name": model, "logit_scale": 40.0},
        "support_only": None if rows is None else {"shots": 1},
    }
    rng = np.random.default_rng(0)
    labels = {
        "train": rng.permutation(np.repeat(np.arange(len(names)), sizes[: len(names)])),
        "val": np.arange(3 * len(names)) % len(names),
        "test": rng.permutation(np.arange(test) % len(names)),
    }
    with create(path, identity=identity, classnames=names, versions={}) as writer:
        for seed, (split, here) in enumerate(labels.items(), start=1):
            features = centers[here] + 1.5 * noise(seed, len(here), DIM)
            kept = rows if split == "train" and rows is not None else range(len(here))
            told = here if split != "test" or test_labels is None else np.asarray(test_labels)
            paths = [f"{i}.jpg" for i in range(len(here))]
            writer.split(split, labels=told, paths=paths, dim=DIM, rows=kept)
            writer.write(split, 0, features[list(kept)])
        if text:
            prompts = centers.repeat(2, axis=0) + 2 * noise(8, 2 * len(names), DIM)
            whose = np.arange(len(names)).repeat(2)
            writer.text("templates", prompts, whose, [f"prompt {i}" for i in range(len(whose))])
    return FeatureStore.open(path)


@pytest.fixture
def opened(tmp_path: Path) -> FeatureStore:
    return store(tmp_path / "toy" / "noise.h5")


def tensors(opened: FeatureStore, split: str, wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features and labels of the images of these classes, numbered in this order."""
    labels = opened.labels(split)
    rows = np.flatnonzero(np.isin(labels, wanted))
    new = [list(wanted).index(one) for one in labels[rows]]
    return torch.from_numpy(opened.features(split, rows)), torch.tensor(new)


def share(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


def few(opened: FeatureStore, shots: int, seed: int, wanted: Sequence[int]) -> SupportSet:
    """The few shots of all classes, cut down to these."""
    rows = draw(opened.labels("train"), NAMES, shots=shots, seed=seed).train
    rows = rows[np.isin(opened.labels("train")[rows], wanted)]
    new = [list(wanted).index(one) for one in opened.labels("train")[rows]]
    return SupportSet(
        torch.from_numpy(opened.features("train", rows)), torch.tensor(new), len(wanted)
    )


def text_of(opened: FeatureStore, wanted: Sequence[int]) -> Text:
    return Text(torch.from_numpy(opened.text())[list(wanted)])


@dataclass(frozen=True)
class Echo(Method):
    """Nearest mean of base classes, the text's of new ones; its one field is tuned."""

    weight: float = 1.0

    name: ClassVar[str] = "echo"
    grid: ClassVar[Any] = {"weight": (0.0, 0.5, 1.0)}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        means = NearestMean().fit(support, None).weight
        return LinearClassifier(self.weight * means + 50 * required(text, self.name))

    def fit_new_classes(
        self, support: SupportSet, text: Text | None, new: Text
    ) -> LinearClassifier:
        shift = required(text, self.name).mean(dim=0) - support.features.mean(dim=0)
        return LinearClassifier(new.features - self.weight * shift)


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


BASE, NEW = (0, 1, 2, 3), (4, 5, 6)


@pytest.mark.parametrize("protocol", ["none", "cv", "full-val"])
def test_base_to_new_is_what_the_halves_give_each_by_itself(
    opened: FeatureStore, tmp_path: Path, protocol: str
) -> None:
    result = base_to_new(opened, Echo(), shots=4, seed=2, tune=protocol, save=tmp_path / "said")
    support, text = few(opened, 4, 2, BASE), text_of(opened, BASE)
    validation = tensors(opened, "val", BASE)
    echo = tune(Echo(), support, text, protocol=protocol, validation=validation)
    said, rows = [], []
    accuracies = {}
    for name, wanted in (("base", BASE), ("new", NEW)):
        new = text_of(opened, wanted)
        classifier = (
            echo.fit(support, text) if name == "base" else echo.fit_new_classes(support, text, new)
        )
        features, labels = tensors(opened, "test", wanted)
        accuracies[name] = share(classify(classifier, features), labels)
        said += [wanted[k] for k in classify(classifier, features)]
        rows += np.flatnonzero(np.isin(opened.labels("test"), wanted)).tolist()
    b, n = accuracies["base"], accuracies["new"]
    assert result.accuracies == pytest.approx(accuracies)
    assert result.accuracy == pytest.approx(2 * b * n / (b + n))
    assert result.hyperparameters == {"weight": echo.weight}
    assert (result.setting, result.tune, result.shots, result.seed) == (
        "base-to-new", protocol, 4, 2
    )  # fmt: skip
    assert (result.n_support, result.n_test, result.n_classes) == (16, 84, 7)
    assert result.n_validation == (12 if protocol == "full-val" else 0)
    kept = read_predictions(Path(result.predictions or ""))
    assert kept.predicted.tolist() == said
    assert kept.labels.tolist() == opened.labels("test")[rows].tolist()
    assert kept.images == digest_of_images("toy", opened.labels("test"), np.array(rows))


def test_zero_shot_from_base_to_new_takes_no_shots(opened: FeatureStore) -> None:
    result = base_to_new(opened, ZeroShot(), shots=16, seed=3)
    for name, wanted in (("base", BASE), ("new", NEW)):
        features, labels = tensors(opened, "test", wanted)
        predicted = (features @ text_of(opened, wanted).features.T).argmax(dim=1)
        assert result.accuracies[name] == pytest.approx(share(predicted, labels))
    assert (result.setting, result.shots, result.seed) == ("base-to-new", 0, 0)


def test_what_knows_only_classes_with_images_is_refused_for_others(
    opened: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"ridge knows no classes but those .* base-to-new asks"):
        base_to_new(opened, Ridge(), shots=4)
    other = store(tmp_path / "other" / "noise.h5", names=("yak", "zho"))
    with pytest.raises(UserError, match=r"ridge knows no classes .* cross-dataset asks"):
        transfer(opened, [other], Ridge(), shots=4)


def test_classes_without_images_need_text(tmp_path: Path) -> None:
    bare = store(tmp_path / "toy" / "noise.h5", text=False)
    generalizers = [m() for m in METHODS.values() if isinstance(m(), SupportsNewClasses)]
    for method in generalizers:
        with pytest.raises(UserError, match="text"):
            base_to_new(bare, method, shots=4)


def test_a_target_with_some_of_the_classes_is_judged_by_their_logits(
    opened: FeatureStore, tmp_path: Path
) -> None:
    columns = [5, 1, 3]
    target = store(tmp_path / "art" / "noise.h5", names=[NAMES[k] for k in columns], test=30)
    [result] = transfer(opened, [target], Ridge(), shots=4, seed=3, save=tmp_path / "said")
    support, text = few(opened, 4, 3, range(7)), text_of(opened, range(7))
    ridge = tune(Ridge(), support, text, protocol="cv")
    logits = ridge.fit(support, text).logits(torch.from_numpy(target.features("test")))
    predicted = logits[:, columns].argmax(dim=1)
    labels = torch.from_numpy(target.labels("test"))
    assert result.accuracy == pytest.approx(share(predicted, labels))
    assert result.accuracy > 0.5
    assert (result.setting, result.dataset, result.fitted_on) == (
        "domain-generalization", "art", "toy"
    )  # fmt: skip
    assert (result.n_classes, result.n_test, result.n_support) == (3, 30, 28)
    assert result.fingerprint == target.fingerprint
    kept = read_predictions(Path(result.predictions or ""))
    assert kept.predicted.tolist() == predicted.tolist()
    assert kept.classnames == ("fox", "bee", "dog")
    assert kept.images == digest_of_images("art", target.labels("test"), np.arange(30))


def test_ids_decide_where_names_occur_twice(tmp_path: Path) -> None:
    # ImageNet has two cranes.
    source = store(
        tmp_path / "toy" / "noise.h5", names=("crane", "bee", "crane"), ids=("n1", "n2", "n3")
    )
    target = store(tmp_path / "art" / "noise.h5", names=("crane", "bee"), ids=("n3", "n2"), test=30)
    [result] = transfer(source, [target], NearestMean(), shots=4)
    support = few_of_three(source)
    logits = NearestMean().fit(support, None).logits(torch.from_numpy(target.features("test")))
    labels = torch.from_numpy(target.labels("test"))
    assert result.accuracy == pytest.approx(share(logits[:, [2, 1]].argmax(dim=1), labels))
    assert result.accuracy > share(logits[:, [0, 1]].argmax(dim=1), labels)
    assert result.setting == "domain-generalization"


def few_of_three(source: FeatureStore) -> SupportSet:
    rows = draw(source.labels("train"), source.classnames, shots=4, seed=1).train
    return SupportSet(
        torch.from_numpy(source.features("train", rows)),
        torch.from_numpy(source.labels("train")[rows]),
        3,
    )


@pytest.mark.parametrize(
    ("known", "wanted", "setting"),
    [
        (("crane", "bee", "crane"), ("crane", "bee", "crane"), "domain-generalization"),
        (("crane", "bee", "crane"), ("bee", "crane"), "cross-dataset"),  # which crane?
        (("crane", "bee"), ("crane", "bee", "crane"), "cross-dataset"),
        (("crane", "bee"), ("bee", "yak"), "cross-dataset"),
        (("crane", "bee"), ("bee", "crane"), "domain-generalization"),
    ],
)
def test_classes_are_shared_where_each_name_means_one(
    tmp_path: Path, known: tuple[str, ...], wanted: tuple[str, ...], setting: str
) -> None:
    source = store(tmp_path / "toy" / "noise.h5", names=known)
    target = store(tmp_path / "art" / "noise.h5", names=wanted)
    [result] = transfer(source, [target], ZeroShot())
    assert result.setting == setting
    if setting == "domain-generalization":
        assert transfer(source, [target], Ridge(), shots=4)[0].setting == setting


def test_ids_of_one_store_alone_leave_it_to_the_names(tmp_path: Path) -> None:
    source = store(tmp_path / "toy" / "noise.h5", names=("ant", "bee"), ids=("n1", "n2"))
    target = store(tmp_path / "art" / "noise.h5", names=("bee", "ant"))
    [result] = transfer(source, [target], Ridge(), shots=4)
    assert result.setting == "domain-generalization"


def test_across_datasets_the_targets_own_text_says_the_classes(
    opened: FeatureStore, tmp_path: Path
) -> None:
    target = store(tmp_path / "art" / "noise.h5", names=("yak", "zho", "ant"), test=30)
    support, text = few(opened, 4, 1, range(7)), text_of(opened, range(7))
    own = text_of(target, range(3))
    [result] = transfer(opened, [target], Echo(), shots=4, tune="none")
    features, labels = tensors(target, "test", range(3))
    predicted = classify(Echo().fit_new_classes(support, text, own), features)
    assert result.accuracy == pytest.approx(share(predicted, labels))
    assert (result.setting, result.fitted_on, result.n_classes) == ("cross-dataset", "toy", 3)
    [zero_shot] = transfer(opened, [target], ZeroShot())
    assert zero_shot.accuracy == evaluate(target, ZeroShot()).accuracy


def test_several_targets_share_one_fit(opened: FeatureStore, tmp_path: Path) -> None:
    targets = [store(tmp_path / name / "noise.h5", test=n) for name, n in (("x", 35), ("y", 42))]
    results = transfer(opened, targets, Echo(), shots=4)
    assert [(r.dataset, r.n_test) for r in results] == [("x", 35), ("y", 42)]
    assert len({r.fit_seconds for r in results}) == 1


def test_stores_of_different_models_are_refused(opened: FeatureStore, tmp_path: Path) -> None:
    target = store(tmp_path / "art" / "other.h5", model="other")
    with pytest.raises(UserError, match=r"holds features of other and .* of noise; extract both"):
        transfer(opened, [target], ZeroShot())


def test_an_imbalanced_test_tells_many_medium_and_few_apart(tmp_path: Path) -> None:
    sizes = (101, 150, 100, 20, 19, 1, 50)
    opened = store(tmp_path / "toy" / "noise.h5", sizes=sizes)
    result = evaluate(opened, NearestMean(), shots=16, imbalance="natural")
    labels = torch.from_numpy(opened.labels("train"))
    support = SupportSet(torch.from_numpy(opened.features("train")), labels, 7)
    predicted = classify(
        NearestMean().fit(support, None), torch.from_numpy(opened.features("test"))
    )
    truth = torch.from_numpy(opened.labels("test"))
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
    opened = store(tmp_path / "toy" / "noise.h5", sizes=(25, 0, 9, 9, 0, 9, 9))
    seen, unseen = [0, 2, 3, 5, 6], [1, 4]
    result = evaluate(opened, Echo(), shots="all", tune="none", blend=1.0)
    support = SupportSet(*tensors(opened, "train", seen), n_classes=5)
    text = text_of(opened, seen)
    features, truth = tensors(opened, "test", range(7))
    logits = torch.empty(len(features), 7)
    logits[:, seen] = Echo().fit(support, text).logits(features)
    logits[:, unseen] = (
        Echo().fit_new_classes(support, text, text_of(opened, unseen)).logits(features)
    )
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
    opened = store(tmp_path / "toy" / "noise.h5", sizes=(9, 9, 0, 9, 9, 9, 9))
    fixed = {"residual": "image"} if name == "taskres" else {}
    result = evaluate(opened, name, shots="all", tune="none", fixed=fixed)
    assert result.accuracy > 0.25, "chance is 0.14"


def test_with_all_shots_zero_shot_tests_every_class(tmp_path: Path) -> None:
    opened = store(tmp_path / "toy" / "noise.h5", sizes=(25, 0, 9, 9, 0, 9, 9))
    assert (
        evaluate(opened, "zero-shot", shots="all").accuracy
        == evaluate(opened, "zero-shot").accuracy
    )


def test_a_class_without_images_is_named_where_it_cannot_be_learned(tmp_path: Path) -> None:
    opened = store(tmp_path / "toy" / "noise.h5", sizes=(9, 0, 9, 9, 9, 9, 9))
    none_of = f"toy has no(ne|) (train image )?of '{NAMES[1]}'"
    with pytest.raises(
        UserError, match=f"ridge knows no classes but .*{none_of}; use a method that"
    ):
        evaluate(opened, "ridge", shots="all")
    with pytest.raises(UserError, match=f"{none_of}; add some, or leave that class out"):
        fit(opened, "gda", shots="all")


def test_an_imbalanced_fit_learns_the_unequal_sample(opened: FeatureStore) -> None:
    result = evaluate(opened, Ridge(), shots=8, seed=2, imbalance="long-tail:4")
    sample = draw_imbalanced(opened.labels("train"), NAMES, profile="long-tail:4", shots=8, seed=2)
    again = evaluate(opened, Ridge(), sample=sample)
    assert result.accuracy == again.accuracy
    assert (result.n_support, result.shots, result.seed) == (len(sample.train), 8, 2)
    assert (result.setting, again.setting) == ("imbalanced", "few-shot")
    assert set(result.accuracies) == {"few"}
    assert again.accuracies == {}


@pytest.mark.parametrize("method", [ZeroShot(), Joint()])
def test_imbalance_is_refused_for_what_learns_from_no_labels(
    opened: FeatureStore, method: Method
) -> None:
    with pytest.raises(UserError, match=f"{method.name} learns from no labels"):
        evaluate(opened, method, imbalance="step:2")


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
    opened: FeatureStore, method: Method, shots: int, setting: str, n_support: int
) -> None:
    result = evaluate(opened, method, shots=shots, seed=3)
    assert (result.setting, result.n_support) == (setting, n_support)
    labeled = setting.endswith("few-shot")
    assert (result.shots, result.seed) == ((4, 3) if labeled else (0, 0))
    assert result.fitted_on == "toy"


@pytest.mark.parametrize(
    ("method", "setting"), [(ZeroShot(), "zero-shot"), (Clusters(), "unsupervised")]
)
def test_a_given_sample_makes_no_learner_of_labels(
    opened: FeatureStore, method: Method, setting: str
) -> None:
    sample = draw(opened.labels("train"), NAMES, shots=4, seed=2)
    result = evaluate(opened, method, sample=sample)
    assert result.setting == setting
    assert result.n_support == (28 if setting == "unsupervised" else 0)


def test_other_protocols_say_when_the_test_was_joint(opened: FeatureStore, tmp_path: Path) -> None:
    assert base_to_new(opened, Joint(), shots=4).setting == "transductive base-to-new"
    target = store(tmp_path / "art" / "noise.h5")
    [result] = transfer(opened, [target], Joint(), shots=4)
    assert result.setting == "transductive domain-generalization"
    result = evaluate(opened, Joint(), shots=4, imbalance="step:2")
    assert result.setting == "transductive imbalanced"


def test_the_unsupervised_get_the_features_of_all_encoded_train_images_and_no_labels(
    tmp_path: Path,
) -> None:
    rows = [3, 5, 8, 13, 21, 34]
    opened = store(tmp_path / "toy" / "noise.h5", rows=rows)
    method = Clusters()
    result = evaluate(opened, method, shots=4)
    [given] = method.given
    assert torch.equal(given, torch.from_numpy(opened.features("train", rows)))
    assert (result.n_support, result.n_views) == (6, 0)


def test_the_unsupervised_get_images_of_base_classes_alone_where_only_these_are_learned(
    opened: FeatureStore,
) -> None:
    method = Clusters()
    base_to_new(opened, method, shots=4)
    [given] = method.given
    assert torch.equal(given, tensors(opened, "train", BASE)[0])


def test_the_transductive_get_all_test_images_at_once(tmp_path: Path) -> None:
    opened = store(tmp_path / "toy" / "noise.h5", test=4200)  # more than a block
    result = evaluate(opened, Joint())
    features = torch.from_numpy(opened.features("test"))
    logits = (features - features.mean(dim=0)) @ text_of(opened, range(7)).features.T
    labels = torch.from_numpy(opened.labels("test"))
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
    one = store(tmp_path / "one" / "toy" / "noise.h5")
    other = store(tmp_path / "two" / "toy" / "noise.h5", test_labels=[6] * 84)
    method = METHODS[name]()
    if "epochs" in {field.name for field in fields(method)}:
        method = replace(method, epochs=3)
    first, second = (
        evaluate(
            opened, method, shots=2, tune="cv" if name == "gda" else "none", save=opened.path.parent
        )
        for opened in (one, other)
    )
    assert first.hyperparameters == second.hyperparameters
    assert first.accuracy != second.accuracy
    said = [read_predictions(Path(r.predictions or "")) for r in (first, second)]
    assert said[0].predicted.tolist() == said[1].predicted.tolist()
    assert said[0].images != said[1].images


def test_saved_predictions_are_the_results(opened: FeatureStore, tmp_path: Path) -> None:
    result = evaluate(opened, GDA(), shots=4, save=tmp_path / "said")
    kept = read_predictions(Path(result.predictions or ""))
    assert (kept.predicted == kept.labels).mean() == pytest.approx(result.accuracy)
    assert kept.classnames == NAMES
    assert kept.images == digest_of_images("toy", opened.labels("test"), np.arange(84))
    assert Path(result.predictions or "").parent == tmp_path / "said"
    assert evaluate(opened, GDA(), shots=4).predictions is None
