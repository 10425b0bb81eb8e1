from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import (
    NearestMean,
    Ridge,
    SupportSet,
    ZeroShot,
    classify,
    draw,
    evaluate,
    tune,
)
from fewshot.cross_dataset import transfer
from fewshot.results.prediction_files import digest_of_images, read_predictions
from tests.zoos import NAMES, Echo, few, share, tensors, text_of, zoo_at


def test_a_target_with_some_of_the_classes_is_judged_by_their_logits(
    zoo: FeatureStore, tmp_path: Path
) -> None:
    columns = [5, 1, 3]
    target = zoo_at(tmp_path / "art" / "noise.h5", names=[NAMES[k] for k in columns], test=30)
    [result] = transfer(zoo, [target], Ridge(), shots=4, seed=3, save=tmp_path / "said")
    support, text = few(zoo, 4, 3, range(7)), text_of(zoo, range(7))
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
    source = zoo_at(
        tmp_path / "toy" / "noise.h5", names=("crane", "bee", "crane"), ids=("n1", "n2", "n3")
    )
    target = zoo_at(
        tmp_path / "art" / "noise.h5", names=("crane", "bee"), ids=("n3", "n2"), test=30
    )
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
    source = zoo_at(tmp_path / "toy" / "noise.h5", names=known)
    target = zoo_at(tmp_path / "art" / "noise.h5", names=wanted)
    [result] = transfer(source, [target], ZeroShot())
    assert result.setting == setting
    if setting == "domain-generalization":
        assert transfer(source, [target], Ridge(), shots=4)[0].setting == setting


def test_ids_of_one_store_alone_leave_it_to_the_names(tmp_path: Path) -> None:
    source = zoo_at(tmp_path / "toy" / "noise.h5", names=("ant", "bee"), ids=("n1", "n2"))
    target = zoo_at(tmp_path / "art" / "noise.h5", names=("bee", "ant"))
    [result] = transfer(source, [target], Ridge(), shots=4)
    assert result.setting == "domain-generalization"


def test_across_datasets_the_targets_own_text_says_the_classes(
    zoo: FeatureStore, tmp_path: Path
) -> None:
    target = zoo_at(tmp_path / "art" / "noise.h5", names=("yak", "zho", "ant"), test=30)
    support, text = few(zoo, 4, 1, range(7)), text_of(zoo, range(7))
    own = text_of(target, range(3))
    [result] = transfer(zoo, [target], Echo(), shots=4, tune="none")
    features, labels = tensors(target, "test", range(3))
    predicted = classify(Echo().fit_new_classes(support, text, own), features)
    assert result.accuracy == pytest.approx(share(predicted, labels))
    assert (result.setting, result.fitted_on, result.n_classes) == ("cross-dataset", "toy", 3)
    [zero_shot] = transfer(zoo, [target], ZeroShot())
    assert zero_shot.accuracy == evaluate(target, ZeroShot()).accuracy


def test_several_targets_share_one_fit(zoo: FeatureStore, tmp_path: Path) -> None:
    targets = [zoo_at(tmp_path / name / "noise.h5", test=n) for name, n in (("x", 35), ("y", 42))]
    results = transfer(zoo, targets, Echo(), shots=4)
    assert [(r.dataset, r.n_test) for r in results] == [("x", 35), ("y", 42)]
    assert len({r.fit_seconds for r in results}) == 1


def test_stores_of_different_models_are_refused(zoo: FeatureStore, tmp_path: Path) -> None:
    target = zoo_at(tmp_path / "art" / "other.h5", model="other")
    with pytest.raises(UserError, match=r"holds features of other and .* of noise; extract both"):
        transfer(zoo, [target], ZeroShot())
