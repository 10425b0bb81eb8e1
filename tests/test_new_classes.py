from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import (
    METHODS,
    Ridge,
    ZeroShot,
    classify,
    tune,
)
from fewshot.abilities import SupportsNewClasses
from fewshot.cross_dataset import transfer
from fewshot.new_classes import base_to_new
from fewshot.results.prediction_files import digest_of_images, read_predictions
from tests.zoos import BASE, NEW, Echo, few, share, tensors, text_of, zoo_at


@pytest.mark.parametrize("protocol", ["none", "cv", "full-val"])
def test_base_to_new_is_what_the_halves_give_each_by_itself(
    zoo: FeatureStore, tmp_path: Path, protocol: str
) -> None:
    result = base_to_new(zoo, Echo(), shots=4, seed=2, tune=protocol, save=tmp_path / "said")
    support, text = few(zoo, 4, 2, BASE), text_of(zoo, BASE)
    validation = tensors(zoo, "val", BASE)
    echo = tune(Echo(), support, text, protocol=protocol, validation=validation)
    said, rows = [], []
    accuracies = {}
    for name, wanted in (("base", BASE), ("new", NEW)):
        new = text_of(zoo, wanted)
        classifier = (
            echo.fit(support, text) if name == "base" else echo.fit_new_classes(support, text, new)
        )
        features, labels = tensors(zoo, "test", wanted)
        accuracies[name] = share(classify(classifier, features), labels)
        said += [wanted[k] for k in classify(classifier, features)]
        rows += np.flatnonzero(np.isin(zoo.labels("test"), wanted)).tolist()
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
    assert kept.labels.tolist() == zoo.labels("test")[rows].tolist()
    assert kept.images == digest_of_images("toy", zoo.labels("test"), np.array(rows))


def test_zero_shot_from_base_to_new_takes_no_shots(zoo: FeatureStore) -> None:
    result = base_to_new(zoo, ZeroShot(), shots=16, seed=3)
    for name, wanted in (("base", BASE), ("new", NEW)):
        features, labels = tensors(zoo, "test", wanted)
        predicted = (features @ text_of(zoo, wanted).features.T).argmax(dim=1)
        assert result.accuracies[name] == pytest.approx(share(predicted, labels))
    assert (result.setting, result.shots, result.seed) == ("base-to-new", 0, 0)


def test_what_knows_only_classes_with_images_is_refused_for_others(
    zoo: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"ridge knows no classes but those .* base-to-new asks"):
        base_to_new(zoo, Ridge(), shots=4)
    other = zoo_at(tmp_path / "other" / "noise.h5", names=("yak", "zho"))
    with pytest.raises(UserError, match=r"ridge knows no classes .* cross-dataset asks"):
        transfer(zoo, [other], Ridge(), shots=4)


def test_classes_without_images_need_text(tmp_path: Path) -> None:
    bare = zoo_at(tmp_path / "toy" / "noise.h5", text=False)
    generalizers = [m() for m in METHODS.values() if isinstance(m(), SupportsNewClasses)]
    for method in generalizers:
        with pytest.raises(UserError, match="text"):
            base_to_new(bare, method, shots=4)
