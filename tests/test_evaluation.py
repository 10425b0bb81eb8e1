from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.extraction.store_writer import create
from cache.store import FeatureStore
from fewshot import (
    GDA,
    NearestMean,
    Ridge,
    SupportSet,
    ZeroShot,
    classify,
    configure,
    draw,
    evaluate,
    tune,
)
from fewshot.text import Text

NAMES = ["ant", "bee", "cat", "dog", "elk"]
DIM = 16
Array = NDArray[np.float32]


def vectors(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def store(
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "val", "test"),
    text: bool = True,
    n_views: int = 0,
    view_rows: Sequence[int] | None = None,
    test_features: Array | None = None,
    test_labels: Sequence[int] | None = None,
) -> FeatureStore:
    """A store of noise about five centers; labels lie in no order."""
    centers = vectors(0, 5, DIM)
    path = folder / "toy" / "noise.h5"
    identity: Mapping[str, object] = {
        "dataset": {"name": "toy"},
        "model": {"name": "noise", "logit_scale": 40.0},
    }
    with create(path, identity=identity, classnames=NAMES, versions={}) as writer:
        for seed, (split, n) in enumerate([("train", 60), ("val", 40), ("test", 100)], start=1):
            if split not in splits:
                continue
            labels = np.random.default_rng(seed).permutation(np.arange(n) % 5)
            features = centers[labels] + 1.5 * vectors(seed, n, DIM)
            if split == "test" and test_features is not None:
                features = test_features
            if split == "test" and test_labels is not None:
                labels = np.asarray(test_labels)
            has_views = n_views if split == "train" else 0
            writer.split(
                split,
                labels=labels,
                paths=[f"{split}/{row}.jpg" for row in range(n)],
                dim=DIM,
                n_views=has_views,
                view_rows=view_rows if has_views else None,
            )
            writer.write(split, 0, features)
            if has_views:
                kept = range(n) if view_rows is None else view_rows
                writer.write_views(split, 0, features[kept] + vectors(9, has_views, len(kept), DIM))
        if text:
            writer.text("templates", centers + 2 * vectors(8, 5, DIM), range(5), NAMES)
    return FeatureStore.open(path)


def by_hand(opened: FeatureStore, shots: int, seed: int, protocol: str) -> tuple[float, GDA]:
    """Accuracy of GDA from the store's parts, with nothing of `evaluate`."""
    sample = draw(
        opened.labels("train"), NAMES, shots=shots, seed=seed, val_labels=opened.labels("val")
    )
    support = SupportSet(
        torch.from_numpy(opened.features("train", sample.train)),
        torch.from_numpy(opened.labels("train")[sample.train]),
        5,
    )
    text = Text(torch.from_numpy(opened.text()))
    rows = np.arange(40) if protocol == "full-val" else sample.val
    assert rows is not None
    held_out = (
        torch.from_numpy(opened.features("val", rows)),
        torch.from_numpy(opened.labels("val")[rows]),
    )
    gda = tune(GDA(), support, text, protocol=protocol, validation=held_out)
    predicted = classify(gda.fit(support, text), torch.from_numpy(opened.features("test")))
    return float((predicted.numpy() == opened.labels("test")).mean()), gda


@pytest.mark.parametrize(
    ("protocol", "n_validation"), [("none", 0), ("cv", 0), ("val", 20), ("full-val", 40)]
)
def test_a_result_says_what_the_parts_give_and_what_it_took(
    tmp_path: Path, protocol: str, n_validation: int
) -> None:
    opened = store(tmp_path)
    result = evaluate(opened, GDA(), shots=8, seed=2, tune=protocol)
    accuracy, gda = by_hand(opened, 8, 2, protocol)
    assert result.accuracy == pytest.approx(accuracy)
    assert result.accuracy > 0.4
    assert result.per_class_accuracy == pytest.approx(accuracy)  # the classes are of one size
    assert result.hyperparameters == asdict(gda)
    assert (result.method, result.dataset, result.model) == ("gda", "toy", "noise")
    assert (result.setting, result.shots, result.seed) == ("few-shot", 8, 2)
    assert (result.tune, result.n_validation) == (protocol, n_validation)
    assert (result.n_support, result.n_views, result.n_test) == (40, 1, 100)
    assert result.text_recipe == "unit-mean"
    assert result.fingerprint == opened.fingerprint
    assert result.fit_seconds > 0
    assert result.predict_seconds > 0


def test_the_default_protocol_is_cv_and_none_at_one_shot(tmp_path: Path) -> None:
    opened = store(tmp_path)
    assert [evaluate(opened, GDA(), shots=k).tune for k in (1, 2)] == ["none", "cv"]


def test_a_method_with_nothing_to_tune_says_so(tmp_path: Path) -> None:
    assert evaluate(store(tmp_path), NearestMean(), shots=4, tune="full-val").tune == "none"


def test_zero_shot_takes_no_shots_and_no_seed(tmp_path: Path) -> None:
    opened = store(tmp_path, splits=("test",))
    result = evaluate(opened, ZeroShot(), shots=16, seed=3)
    similar = torch.from_numpy(opened.features("test") @ opened.text().T).argmax(dim=1)
    assert result.accuracy == pytest.approx(
        float((similar.numpy() == opened.labels("test")).mean())
    )
    assert (result.setting, result.shots, result.seed, result.tune) == ("zero-shot", 0, 0, "none")
    assert (result.n_support, result.n_views) == (0, 0)


@pytest.mark.parametrize("name", ["nearest-mean", "gda", "ridge"])
def test_without_text_images_alone_serve(tmp_path: Path, name: str) -> None:
    result = evaluate(store(tmp_path, text=False), configure(name), shots=8)
    assert result.text_recipe is None
    assert result.accuracy > 0.4


def test_without_text_zero_shot_is_refused(tmp_path: Path) -> None:
    opened = store(tmp_path, text=False)
    with pytest.raises(UserError, match="zero-shot needs text features"):
        evaluate(opened, ZeroShot())


def test_stored_views_are_learned_from_unless_they_are_not_wanted(tmp_path: Path) -> None:
    opened = store(tmp_path / "views", n_views=3)
    with_views = evaluate(opened, Ridge(), shots=4)
    without = evaluate(opened, Ridge(), shots=4, views=False)
    plain = evaluate(store(tmp_path / "plain"), Ridge(), shots=4)
    assert (with_views.n_views, without.n_views) == (3, 1)
    assert (with_views.n_support, without.n_support) == (20, 20)
    assert without.accuracy == plain.accuracy
    assert with_views.accuracy != plain.accuracy


def test_views_of_other_images_are_no_views_of_these(tmp_path: Path) -> None:
    opened = store(tmp_path, n_views=2, view_rows=[0, 1, 2])
    with pytest.raises(UserError, match="not row"):
        evaluate(opened, GDA(), shots=4)


def test_the_test_split_steers_nothing(tmp_path: Path) -> None:
    opened = store(tmp_path / "one")
    other = store(tmp_path / "two", test_features=vectors(77, 100, DIM), test_labels=[4] * 100)
    for protocol in ("cv", "val", "full-val"):
        for method in (GDA(), Ridge()):
            first, second = (
                evaluate(one, method, shots=4, tune=protocol) for one in (opened, other)
            )
            assert first.hyperparameters == second.hyperparameters
            assert first.accuracy != second.accuracy


def test_a_given_sample_is_used_as_it_is(tmp_path: Path) -> None:
    opened = store(tmp_path)
    sample = draw(opened.labels("train"), NAMES, shots=3, seed=5)
    given = evaluate(opened, GDA(), sample=sample)
    drawn = evaluate(opened, GDA(), shots=3, seed=5)
    assert (given.shots, given.seed, given.tune) == (3, 5, "cv")
    assert given.accuracy == drawn.accuracy


def test_the_whole_val_split_serves_full_val_whatever_the_sample_has_drawn(tmp_path: Path) -> None:
    opened = store(tmp_path)
    labels = opened.labels("train")
    sample = draw(labels, NAMES, shots=3, seed=5, val_labels=opened.labels("val"))
    tuned_on = {
        tune: evaluate(opened, GDA(), sample=sample, tune=tune).n_validation
        for tune in ("val", "full-val")
    }
    assert tuned_on == {"val": 15, "full-val": 40}


def test_a_given_sample_without_val_rows_cannot_be_tuned_on_val(tmp_path: Path) -> None:
    opened = store(tmp_path)
    sample = draw(opened.labels("train"), NAMES, shots=3, seed=5)
    with pytest.raises(UserError, match="the sample has no val rows"):
        evaluate(opened, GDA(), sample=sample, tune="val")


@pytest.mark.parametrize("protocol", ["val", "full-val"])
def test_without_a_val_split_its_protocols_are_refused(tmp_path: Path, protocol: str) -> None:
    opened = store(tmp_path, splits=("train", "test"))
    with pytest.raises(UserError, match=f"toy has no val split for tuning by {protocol}"):
        evaluate(opened, GDA(), shots=4, tune=protocol)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 13}, "13 train images of every class are needed"),
        ({}, "shots must be 1 or more; got 0"),
        ({"shots": 1, "tune": "cv"}, "cv needs two images of every class"),
        ({"shots": 4, "tune": "kfold"}, "unknown tuning protocol 'kfold'"),
        ({"shots": 4, "prompt_set": "cupl"}, "unknown prompt set 'cupl'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    opened = store(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate(opened, GDA(), **arguments)  # type: ignore[arg-type]


def test_a_store_without_a_test_split_is_refused(tmp_path: Path) -> None:
    opened = store(tmp_path, splits=("train", "val"))
    with pytest.raises(UserError, match="has no test split"):
        evaluate(opened, GDA(), shots=4)


def test_an_evaluation_opens_the_file_twice_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path, n_views=2).path
    opened: list[Path] = []

    class Counted(h5py.File):  # type: ignore[misc]  # h5py has no types
        def __init__(self, name: Path, *more: object, **others: object) -> None:
            opened.append(name)
            super().__init__(name, *more, **others)

    monkeypatch.setattr(h5py, "File", Counted)
    evaluate(FeatureStore.open(path), GDA(), shots=4, tune="val")
    assert 1 <= len(opened) <= 2


class Real:
    """Features of a published CLIP, for which accuracies are known."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            self.labels = {
                s: torch.from_numpy(arrays[f"{s}_y"]) for s in ("train16", "val", "test")
            }
            self.features = {s: self.unit(arrays[f"{s}_x"]) for s in self.labels}
            self.text = Text(self.unit(arrays["text"])) if "text" in arrays else None

    @staticmethod
    def unit(features: NDArray[np.float16]) -> torch.Tensor:
        return normalize(torch.from_numpy(features.astype(np.float32)))

    def accuracy(self, method: GDA, protocol: str) -> float:
        labels = self.labels["train16"]
        support = SupportSet(self.features["train16"], labels, int(labels.max()) + 1)
        validation = (self.features["val"], self.labels["val"])
        tuned = tune(method, support, self.text, protocol=protocol, validation=validation)
        predicted = classify(tuned.fit(support, self.text), self.features["test"])
        return float((predicted == self.labels["test"]).double().mean())


@pytest.mark.parametrize(("protocol", "floor"), [("full-val", 0.83), ("cv", 0.84)])
def test_gda_reaches_what_is_published_on_ucf101(shared: Path, protocol: str, floor: float) -> None:
    real = Real(shared / "features" / "ucf101_openai_vitb16.npz")
    assert real.accuracy(GDA(), protocol) >= floor


def test_zero_shot_is_what_is_published_on_ucf101(shared: Path) -> None:
    real = Real(shared / "features" / "ucf101_openai_vitb16.npz")
    predicted = classify(ZeroShot().fit(None, real.text), real.features["test"])
    correct = float((predicted == real.labels["test"]).double().mean())
    assert correct == pytest.approx(0.704, abs=0.0005)


def test_gda_alone_reaches_what_is_known_on_dtd(shared: Path) -> None:
    real = Real(shared / "features" / "dtd_openai_rn50.npz")
    assert real.text is None
    assert real.accuracy(GDA(), "none") >= 0.65
