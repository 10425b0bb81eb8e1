"""The Python functions take what a person types: texts, paths, names, objects, lists, arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fewshot
from cache.errors import UserError
from cache.models.loading import load
from cache.store import FeatureStore
from cli import main
from tests.small_stores import write_store
from tests.toy_adapters import fitted_adapter

KINDS: dict[str, Callable[[Any], Any]] = {
    "list": lambda x: np.asarray(x).tolist(),
    "tuple": lambda x: tuple(map(tuple, x)) if np.ndim(x) == 2 else tuple(np.asarray(x).tolist()),
    "array": lambda x: np.asarray(x, np.float64 if np.ndim(x) == 2 else np.int32),
    "tensor": torch.as_tensor,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, its sample, an image and an adapter for it."""
    folder = tmp_path_factory.mktemp("typed")
    write_store(folder, "pets").rename(folder / "pets.h5")
    write_store(folder, "beasts", seed=1).rename(folder / "beasts.h5")
    fitted_adapter(load("tiny", device="cpu"), "gda").save(folder / "a.safetensors")
    Image.new("RGB", (40, 30), (200, 20, 20)).save(folder / "red.png")
    return folder


def accuracies(*results: Any) -> list[float]:
    return [result.accuracy for result in results]


STORES: dict[str, Callable[[Any, Any, str], Any]] = {
    "evaluate": lambda store, _, save: accuracies(
        fewshot.evaluate(store, "gda", shots=2, save=save)
    ),
    "base_to_new": lambda store, _, save: accuracies(
        fewshot.base_to_new(store, "zero-shot", save=save)
    ),
    "transfer": lambda store, other, save: accuracies(
        *fewshot.transfer(store, [other], "zero-shot", save=save)
    ),
    "fit": lambda store, _, save: fewshot.fit(store, "gda", shots=2).run,
    "inspect": lambda store, *_: fewshot.inspect(getattr(store, "path", store)),
    "verify": lambda store, *_: fewshot.verify(getattr(store, "path", store)),
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_given_open_or_by_its_path(name: str, places: Path, tmp_path: Path) -> None:
    do, paths = STORES[name], (places / "pets.h5", places / "beasts.h5")
    opened = [FeatureStore.open(path) for path in paths]
    expected = do(opened[0], opened[1], str(tmp_path))
    assert do(paths[0], paths[1], str(tmp_path)) == expected
    assert do(str(paths[0]), str(paths[1]), str(tmp_path)) == expected


def test_a_method_is_given_by_its_name_or_as_an_object(places: Path) -> None:
    store = str(places / "pets.h5")
    scale = FeatureStore.open(store).logit_scale
    for method in ("gda", fewshot.GDA(), fewshot.configure("gda", logit_scale=scale)):
        assert fewshot.evaluate(store, method, shots=2).method == "gda"
    x, y = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    support = fewshot.SupportSet(x, y, 4)
    expected = fewshot.tune(fewshot.GDA(), support, None, protocol="cv")
    assert fewshot.tune("gda", support, None, protocol="cv") == expected
    with pytest.raises(UserError, match="unknown method 'gdb'; did you mean 'gda'"):
        fewshot.tune("gdb", support, None, protocol="cv")


@pytest.mark.parametrize("kind", KINDS)
def test_features_labels_and_texts_are_given_as_anything_that_holds_numbers(
    kind: str, places: Path
) -> None:
    to = KINDS[kind]
    store = FeatureStore.open(places / "pets.h5")
    rows = fewshot.draw(to(store.labels("train")), store.classnames, shots=3, seed=1).train
    x, y = store.features("train", rows), store.labels("train")[rows]
    text, test = store.text(), store.features("test")
    support = fewshot.SupportSet(to(x), to(y), 4)
    fitted = fewshot.GDA().fit(support, fewshot.Text(to(text)))
    expected = fewshot.GDA().fit(
        fewshot.SupportSet(torch.as_tensor(x), torch.as_tensor(y), 4),
        fewshot.Text(torch.as_tensor(text)),
    )
    predicted = fewshot.classify(fitted, to(test))
    assert torch.equal(predicted, fewshot.classify(expected, torch.as_tensor(test)))
    names = [store.classnames[label] for label in y]
    for labels in (to(y), names, np.array(names)):
        facade = fewshot.FewShotClassifier("gda").fit(to(x), labels)
        assert len(facade.predict(to(test))) == len(test)


@pytest.mark.parametrize("form", ["text", "path", "image", "array", "gray array", "arrays", "list"])
def test_images_are_given_as_files_pictures_or_pixels(form: str, places: Path) -> None:
    file = places / "red.png"
    with Image.open(file) as opened_file:
        picture = opened_file.copy()
    pixels = np.asarray(picture)
    given: dict[str, Any] = {
        "text": str(file), "path": file, "image": picture, "array": pixels,
        "gray array": pixels[..., 0], "arrays": np.stack([pixels, pixels]),
        "list": [file, str(file), picture, pixels],
    }  # fmt: skip
    opened = fewshot.open_adapter(str(places / "a.safetensors"))
    expected = fewshot.predict(opened, file)[0]
    found = fewshot.predict(opened, given[form])
    assert len(found) == {"arrays": 2, "list": 4}.get(form, 1)
    if form != "gray array":
        for one in found:
            assert one.classes == expected.classes
            assert one.probabilities == pytest.approx(expected.probabilities, rel=1e-4)


def test_pixels_of_another_kind_are_refused(places: Path) -> None:
    for pixels in (np.zeros((4, 4, 3)), np.zeros((3, 5, 5), np.uint8)):
        with pytest.raises(UserError, match=r"an array must be uint8 \(H, W, 3\); got"):
            fewshot.predict(places / "a.safetensors", pixels)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_adapter_is_given_by_its_path(kind: type, places: Path, tmp_path: Path) -> None:
    file = kind(places / "a.safetensors")
    assert fewshot.load_adapter(file).method == fewshot.open_adapter(file).adapter.method
    assert fewshot.predict(file, kind(places / "red.png"))
    assert fewshot.export(file, "open_clip", kind(tmp_path / "x")).is_dir()


def test_a_sample_is_written_and_read_by_its_name_as_text(tmp_path: Path) -> None:
    store = FeatureStore.open(str(write_store(tmp_path, "pets")))
    few = fewshot.draw(store.labels("train"), store.classnames, shots=2, seed=1)
    name = str(tmp_path / "sample.json")
    fewshot.write_sample(name, few, store)
    assert fewshot.read_sample(name, store).train.tolist() == few.train.tolist()


def test_auto_takes_folders_as_text(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    assert main(["demo", "--photos", str(photos)]) == 0
    outcome = fewshot.auto(
        str(photos),
        model="tiny",
        out=str(tmp_path / "out"),
        store=str(tmp_path / "stores"),
        unlabeled=str(photos / "unlabeled"),
        methods="nearest-mean",
    )
    assert outcome.adapter_path.parent == tmp_path / "out"
