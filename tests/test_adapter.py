import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

import fewshot
from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from cli import main
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.classifiers import kinds, put_together, take_apart
from fewshot.adapters.fitted_adapter import fit_and_save, of_fitted
from fewshot.adapters.header import is_adapter
from fewshot.classifier import LinearClassifier
from fewshot.methods import METHODS
from fewshot.model_selection.calibration import Calibration, calibrate, out_of_fold
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes
from fewshot.store_features import query
from fewshot.support import SupportSet
from tests.small_stores import NAMES, write_store
from tests.toy_adapters import fitted_on, made_of


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_classifier_of_every_method_gives_the_same_logits(
    pets: FeatureStore, tmp_path: Path, name: str
) -> None:
    fit = fitted_on(pets, name)
    path = tmp_path / "a.safetensors"
    of_fitted(fit, calibration=Calibration()).save(path)
    again = load_adapter(path)
    assert again.classifier is not None
    images = query(pets.split("test"), fit.method)
    torch.testing.assert_close(
        put_together(again.classifier, again.tensors).logits(images),
        fit.classifier.logits(images),
        rtol=2e-6,
        atol=2e-6,  # a matrix that was stored by columns adds up in another order
    )


@pytest.mark.parametrize("settings", [{"residual": "image"}, {"residual": "both"}])
def test_a_residual_on_features_is_saved(pets: FeatureStore, settings: dict[str, str]) -> None:
    fit = fitted_on(pets, "taskres", **settings)
    images = query(pets.split("test"), fit.method)
    plain, tensors = take_apart(fit.classifier)
    through = json.loads(json.dumps(plain))
    assert torch.equal(put_together(through, tensors).logits(images), fit.classifier.logits(images))


def test_an_adapter_tells_what_made_it(pets: FeatureStore, tmp_path: Path) -> None:
    adapter, result = fit_and_save(
        pets, fewshot.GDA(alpha=2.0), tmp_path / "a.safetensors", shots=4, seed=3, fixed=("alpha",)
    )
    again = load_adapter(tmp_path / "a.safetensors")
    assert result is not None
    assert again.card() == adapter.card()
    assert (again.method, again.settings["alpha"], again.classnames) == ("gda", 2.0, NAMES)
    assert again.prompts == tuple((name,) for name in NAMES)
    assert again.model_name == pets.model
    training = again.training
    assert (training["dataset"], training["shots"], training["seed"]) == ("pets", 4, 3)
    assert training["images per class"] == [4] * 4
    assert training["test accuracy"] == result.accuracy
    assert training["fingerprint"] == pets.fingerprint


def test_what_cross_validation_says_is_that_of_a_loop_over_folds(pets: FeatureStore) -> None:
    fit = fitted_on(pets, "ridge")
    assert fit.support is not None
    support, right = fit.support, 0
    fold = folds(support.labels, groups=scenes(support.features, support.labels), seed=1)
    for i in range(len(support.labels)):
        train = support.subset(fold != fold[i])
        logits = fit.method.fit(train, fit.text).logits(support.features[i : i + 1])
        right += int(logits.argmax() == support.labels[i])
    held = out_of_fold(fit.method, fit.support, fit.text)
    assert held is not None
    known = calibrate(*held, "cv")
    assert (known.source, known.images) == ("cv", 16)
    assert known.accuracy == pytest.approx(right / 16)
    assert known.interval is not None
    assert known.interval[0] < right / 16 < known.interval[1]


def test_nothing_is_known_of_how_sure_zero_shot_or_one_shot_is(pets: FeatureStore) -> None:
    none = fitted_on(pets, "zero-shot")
    assert out_of_fold(none.method, none.support, none.text) is None
    one = fewshot.fit(pets, fewshot.GDA(), shots=1)
    assert out_of_fold(one.method, one.support, one.text) is None
    assert "not calibrated" in of_fitted(one, calibration=Calibration()).summary()


def test_the_calibration_lowers_the_error_of_sure_mistakes() -> None:
    labels = torch.arange(400) % 4
    logits = 50 * torch.nn.functional.one_hot(labels, 4).float()
    logits[::5] = logits[::5].roll(1, dims=1)
    known = calibrate(logits, labels, "val")
    assert known.accuracy == 0.8
    assert known.error is not None
    assert known.error_before == pytest.approx(0.2, abs=1e-6)
    assert known.error < 0.02


def test_a_store_without_a_test_split_gives_an_adapter_and_no_result(tmp_path: Path) -> None:
    alone = FeatureStore.open(write_store(tmp_path, "mine", splits=("train",)))
    path = tmp_path / "a.safetensors"
    adapter, result = fit_and_save(alone, fewshot.GDA(), path, imbalance="natural")
    assert result is None
    assert adapter.training["images"] == 80
    assert "test accuracy" not in adapter.training


@pytest.mark.parametrize("name", ["a.pt", "a", "folder.safetensors"])
def test_a_name_that_is_no_adapters_is_refused(
    pets: FeatureStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match=r"a file that ends in \.safetensors; got .*" + name):
        made_of(pets).save(tmp_path / name)


def test_a_flipped_bit_is_noticed(pets: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    made_of(pets).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its bytes are not those written"):
        load_adapter(path)


def test_a_file_cut_short_is_noticed(pets: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    made_of(pets).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load_adapter(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, struct.pack("<Q", 2) + b"[]"])
def test_another_file_is_no_adapter(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert not is_adapter(path)
    with pytest.raises(UserError, match="is no adapter of this program"):
        load_adapter(path)


def test_somebody_elses_safetensors_is_no_adapter(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is no adapter of this program"):
        load_adapter(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"cannot read an adapter from .*none: No such file"):
        load_adapter(tmp_path / "none")


def test_a_later_format_is_refused(
    pets: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.adapters.adapter_file.FORMAT", 5)
    made_of(pets).save(tmp_path / "a.safetensors")
    monkeypatch.undo()
    with pytest.raises(UserError, match="is of adapter format 5, and this version reads 1 to 4"):
        load_adapter(tmp_path / "a.safetensors")


def test_an_adapter_is_known_by_its_header_whatever_it_is_called(
    pets: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made_of(pets).save(tmp_path / "a.safetensors")
    renamed = (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert main(["verify", str(renamed)]) == 0
    assert capsys.readouterr().out == f"{renamed}: whole and unchanged\n"
    monkeypatch.delattr(Path, "read_bytes")
    assert is_adapter(renamed)
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "none")
    assert not is_adapter(pets.path)


def as_format_1(adapter: Adapter, path: Path, **changes: Any) -> Path:
    """A file as earlier versions wrote it: the digest is over the tensors alone."""
    digest = hashlib.sha256()
    for name, t in sorted(adapter.tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode() + t.numpy().tobytes())
    card = {"format": 1, "digest": digest.hexdigest(), **adapter.card(), **changes}
    tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, path, {"fewshot": json.dumps(card)})
    return path


def test_a_file_of_format_1_is_read_and_its_uncovered_header_is_told(
    pets: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = made_of(pets)
    path = as_format_1(adapter, tmp_path / "a.safetensors")
    again = load_adapter(path)
    assert again.card() == adapter.card()
    assert main(["inspect", str(path)]) == 0
    assert "its digest covers the tensors, but not the class names" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: tensors unchanged; file of format 1")
    again.save(path)
    assert main(["inspect", str(path)]) == 0
    assert "format 1" not in capsys.readouterr().out


def test_a_class_taken_out_of_the_card_is_refused(pets: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    as_format_1(made_of(pets), path, classnames=NAMES[1:], prompts=[])
    with pytest.raises(UserError, match=r"images per class: expected 3 entries, .* got 4"):
        load_adapter(path)
    as_format_1(made_of(pets), path, classnames=NAMES[1:], prompts=[], training={})
    with pytest.raises(UserError, match="classifier: expected finite logits of 3 classes, got"):
        load_adapter(path)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("calibration.temperature", 0.0, "expected greater than 0, got 0.0"),
        (
            "calibration.accuracy",
            0.5,
            "expected accuracy, interval, error, error_before and a source",
        ),
        ("model.name", 3, "model.name: expected a valid string, got 3"),
        ("precision", "fp8", "precision: expected 'fp32', 'bf16', 'fp16' or 'unknown', got 'fp8'"),
        ("classnames", [], "classnames: .* at least 1 item"),
        ("settings", None, "settings: expected a valid dictionary, got None"),
        ("training.shots", "4", "training.shots: expected a valid integer, got '4'"),
        ("surplus", 1, "surplus: expected nothing under this name"),
        ("classifier.fields.bias", 1.0, "expected to use each tensor once, got bias otherwise"),
        ("classifier.kind", "os.system", "a part that this version does not know"),
    ],
)
def test_a_card_of_another_form_is_refused_by_place_and_value(
    pets: FeatureStore, tmp_path: Path, place: str, value: Any, expected: str
) -> None:
    adapter = made_of(pets)
    card = adapter.card()
    *parents, last = place.split(".")
    inner = card
    for name in parents:
        inner = inner[name]
    inner[last] = value
    path = as_format_1(adapter, tmp_path / "a.safetensors", **card)
    with pytest.raises(UserError, match=expected) as error:
        load_adapter(path)
    assert str(error.value).startswith(f"{path}: ")


def test_tensors_that_are_not_finite_are_refused(pets: FeatureStore, tmp_path: Path) -> None:
    adapter = made_of(pets)
    weight = adapter.tensors["weight"].clone()
    weight[1, 2] = torch.nan
    broken = replace(adapter, tensors={**adapter.tensors, "weight": weight})
    broken.save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="tensor weight: expected finite numbers"):
        load_adapter(tmp_path / "a.safetensors")


def test_an_adapter_of_imported_features_is_shown_and_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "f.npz",
        train_features=draw.normal(size=(12, 16)),
        train_labels=np.arange(12) % 3,
    )
    path = import_file(tmp_path / "f.npz", "mine", "some/model", tmp_path)
    adapter = made_of(FeatureStore.open(path), "nearest-mean")
    adapter.save(tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").preprocessing == {}
    as_format_1(adapter, tmp_path / "a.safetensors", preprocessing="unknown")
    assert load_adapter(tmp_path / "a.safetensors").preprocessing == {}
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert "nearest-mean on some/model" in capsys.readouterr().out


def test_only_known_kinds_are_made_from_a_file() -> None:
    assert all(isinstance(kind, type) for kind in kinds().values())
    with pytest.raises(UserError, match="a part that this version does not know"):
        put_together({"kind": "os.system", "fields": {}}, {})
    with pytest.raises(UserError, match="a part that this version does not know"):
        put_together({"kind": "linear", "fields": {"wait": 1}}, {})


def test_a_classifier_of_an_unknown_kind_is_not_saved() -> None:
    class Odd(LinearClassifier):
        pass

    with pytest.raises(TypeError, match="which an adapter file cannot hold"):
        take_apart(Odd(torch.zeros(2, 2)))


def test_images_of_one_scene_do_not_vouch_for_one_another(pets: FeatureStore) -> None:
    noise = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    features = normalize(noise, dim=1).repeat(3, 1)  # each image three times
    support = SupportSet(features, (torch.arange(32) % 4).repeat(3), 4)
    fit = replace(fitted_on(pets, "nearest-mean"), support=support, text=None)
    held = out_of_fold(fit.method, fit.support, fit.text)
    assert held is not None
    known = calibrate(*held, "cv")
    assert known.images == 96
    assert known.accuracy is not None
    assert known.accuracy < 0.5  # 1.0 where a copy is learned from
