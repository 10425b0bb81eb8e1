import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import fewshot
from cache.errors import UserError
from cache.store import FeatureStore
from cli import main
from fewshot.adapters import prediction_parts
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.image_results import PredictionForm
from fewshot.adapters.stored_images import BLOCK, StoredImages
from fewshot.methods import METHODS
from tests.small_stores import NAMES, write_store

N_IMAGES = {"train": 80, "val": 20, "test": 60}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store, and an adapter that was fitted to it."""
    root = tmp_path_factory.mktemp("stored")
    store = write_store(root / "features", "pets")
    fit_and_save(FeatureStore.open(store), "gda", root / "a.safetensors", shots=4, tune="none")
    return store, root / "a.safetensors"


@pytest.fixture
def predict(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `fewshot predict --store` on them: exit code, stdout, stderr."""

    def run(*options: str) -> tuple[int, str, str]:
        code = main(["predict", str(files[1]), "--store", str(files[0]), *options])
        return (code, *capsys.readouterr())

    return run


def labels(text: str) -> list[tuple[str, str]]:
    return [(row["path"], row["label"]) for row in csv.DictReader(io.StringIO(text))]


def test_predictions_of_a_store_are_those_of_the_fitted_classifier(
    files: tuple[Path, Path],
) -> None:
    store, adapter = FeatureStore.open(files[0]), load_adapter(files[1])
    fit = fewshot.fit(store, "gda", shots=4, tune="none")
    features = np.concatenate([store.features(split) for split in N_IMAGES])
    logits = fit.classifier.logits(torch.from_numpy(features))
    expected = (logits / adapter.calibration.temperature).softmax(dim=1)
    found = list(StoredImages(adapter, store, asked=PredictionForm(top=4)).predictions())
    assert [one.path for one in found] == [path for s in N_IMAGES for path in store.paths(s)]
    by_name = [dict(zip(one.classes, one.probabilities, strict=True)) for one in found]
    values = torch.tensor([[row[name] for name in NAMES] for row in by_name])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["gda", "tip-adapter", "nearest-mean"])
def test_a_block_of_images_is_classified_as_all_together(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    store = FeatureStore.open(files[0])
    fit_and_save(store, METHODS[method](), tmp_path / "a.safetensors", shots=2, tune="none")
    images = StoredImages(load_adapter(tmp_path / "a.safetensors"), store)
    whole = list(images.predictions())
    assert len(whole) == len(images) == sum(N_IMAGES.values()) < BLOCK
    monkeypatch.setattr("fewshot.adapters.stored_images.BLOCK", 33)
    assert [one.label for one in images.predictions()] == [one.label for one in whole]
    assert [one.path for one in images.predictions(70, 110)] == [one.path for one in whole[70:110]]


def test_one_split_is_classified_alone(predict: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = predict("--split", "val", "--format", "csv")
    assert (code, err) == (0, "20 images classified\n")
    assert {path.split("/")[0] for path, _ in labels(out)} == {"val"}


def test_every_form_of_file_says_the_same(
    predict: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    expected = labels(predict("--format", "csv")[1])
    asked = ("--coverage", "0.5", "--top", "2", "--out")
    for form in prediction_parts.FORMS:
        assert predict(*asked, str(tmp_path / f"p.{form}"))[:2] == (0, "")
    assert labels((tmp_path / "p.csv").read_text()) == expected
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [(row["path"], row["label"]) for row in rows] == expected
    for row, line in zip(rows, lines, strict=True):
        assert row.keys() == line.keys()
        assert row["set"] == line["set"]
        assert row["classes"] == line["classes"]
        assert row["probabilities"] == pytest.approx(line["probabilities"], rel=1e-5)


def test_parts_that_several_processes_write_make_the_whole(
    predict: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_parts, "PART", 50)
    whole = labels(predict("--format", "csv")[1])
    folder = str(tmp_path / "parts")
    assert predict("--out", folder, "--shard", "2/2")[2].endswith("60 images classified\n")
    assert predict("--out", folder, "--shard", "1/2")[2].endswith("100 images classified\n")
    parts = sorted((tmp_path / "parts").glob("part-*.csv"))
    assert [path.name for path in parts] == [f"part-{i:05}.csv" for i in range(4)]
    assert [row for path in parts for row in labels(path.read_text())] == whole


def test_a_run_that_stopped_goes_on_with_the_parts_that_lack(
    predict: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_parts, "PART", 50)
    folder = tmp_path / "parts"
    predict("--out", str(folder))
    before = (folder / "part-00001.csv").read_bytes()
    (folder / "part-00001.csv").unlink()
    kept = (folder / "part-00000.csv").stat().st_mtime_ns
    last = predict("--out", str(folder))[2].splitlines()[-1]
    assert last == "50 images classified, 110 of an earlier run kept"
    assert (folder / "part-00001.csv").read_bytes() == before
    assert (folder / "part-00000.csv").stat().st_mtime_ns == kept


def test_predictions_of_something_else_are_not_mixed_in(
    predict: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    predict("--out", str(folder))
    code, _, err = predict("--out", str(folder), "--top", "1")
    assert code == 2
    assert "has other predictions: top is 5 there, and 1 here" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "is no folder of predictions" in predict("--out", str(tmp_path / "mine"))[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("photo.jpg",), "give images or --store, not both"),
        (("--shard", "1/2"), "--shard divides the parts of a folder"),
        (("--out", "p.txt"), "a file that ends in .csv, .jsonl, .parquet"),
        (("--split", "val", "--out", "x.csv", "--shard", "1/2"), "give --out FOLDER as well"),
        (("--format", "parquet"), "parquet"),
    ],
)
def test_what_cannot_be_is_one_line(
    predict: Callable[..., tuple[int, str, str]], options: tuple[str, ...], said: str
) -> None:
    code, out, err = predict(*options)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_store_of_another_model_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = load_adapter(files[1])
    other = FeatureStore.open(write_store(tmp_path, "pets", "other"))
    with pytest.raises(UserError, match=r"made with toy, and .* is of other"):
        StoredImages(adapter, other)
    known = replace(adapter, model={**adapter.model, "weights": "f" * 64})
    with pytest.raises(UserError, match=r"weights ffffffffffff.* and this is other"):
        StoredImages(known, other)


def test_images_that_were_prepared_otherwise_are_refused(files: tuple[Path, Path]) -> None:
    store = FeatureStore.open(files[0])
    store.identity["preprocessing"] = {"size": 224, "exif": True}
    adapter = replace(load_adapter(files[1]), preprocessing={"size": 336, "exif": True})
    with pytest.raises(UserError, match="size 224 there, 336 for the adapter"):
        StoredImages(adapter, store)


def test_what_classifies_images_jointly_is_not_divided(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore.open(files[0])
    path = tmp_path / "t.safetensors"
    fit_and_save(store, "transclip", path, shots=2, tune="none")
    asked = ["predict", str(path), "--store", str(files[0]), "--out"]
    assert main([*asked, str(tmp_path / "parts")]) == 2
    assert "jointly, so not in parts; give --out FILE" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "p.csv")]) == 0


def test_what_was_trained_through_the_model_is_refused(files: tuple[Path, Path]) -> None:
    trained: Adapter = replace(load_adapter(files[1]), classifier=None, method="clip-lora")
    with pytest.raises(UserError, match="clip-lora was trained through the model"):
        StoredImages(trained, FeatureStore.open(files[0]))
