"""Errors that say what to do are followed to the letter, and then it works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cli import main
from tests.auto_photos import draw_digits


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_STORE", "FEWSHOT_DATA"):
        monkeypatch.delenv(name, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def extracted(*more: str, dataset: str = "./photos") -> None:
    assert main(["extract", "--dataset", dataset, "--model", "tiny", *more]) == 0


def test_three_classes_have_no_two_halves_and_work_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_digits(Path("photos"), {"zero": 6, "one": 6, "two": 6})
    extracted()
    fit = ["fit", "gda", "--dataset", "photos", "--shots", "2"]
    assert "needs four classes or more" in refusal(capsys, *fit, "--base-to-new")
    assert main(fit) == 0


def test_the_folder_that_was_extracted_is_the_dataset_that_is_fitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_digits(Path("my photos"), {"zero": 6, "one": 6})
    fit = ["fit", "gda", "--dataset", "./my photos", "--shots", "2"]
    told = refusal(capsys, *fit)
    command = shlex.split(told[told.index("fewshot extract") :])
    assert main([*command[1:], "--model", "tiny"]) == 0
    assert main(fit) == 0


def split_folders() -> None:
    draw_digits(Path("photos/train"), {"zero": 4, "one": 4})
    draw_digits(Path("photos/val"), {"zero": 2, "one": 2}, first=4)


FIT = ["fit", "gda", "--dataset", "photos", "--shots", "2"]


def test_without_test_images_a_classifier_is_kept_with_save(
    capsys: pytest.CaptureFixture[str],
) -> None:
    split_folders()
    extracted()
    assert "keep a classifier of it with --save FILE.safetensors, or" in refusal(capsys, *FIT)
    assert main([*FIT, "--save", "FILE.safetensors"]) == 0
    assert Path("FILE.safetensors").is_file()


def test_without_test_images_some_are_added(capsys: pytest.CaptureFixture[str]) -> None:
    split_folders()
    extracted()
    told = refusal(capsys, *FIT)
    assert "add a folder of test images and extract again with --if-exists overwrite" in told
    draw_digits(Path("photos/test"), {"zero": 2, "one": 2}, first=6)
    extracted("--if-exists", "overwrite")
    assert main(FIT) == 0


def test_what_was_all_trained_on_is_extracted_without(capsys: pytest.CaptureFixture[str]) -> None:
    draw_digits(Path("photos"), {"zero": 6, "one": 6})
    extracted("--all-train")
    told = refusal(capsys, "fit", "gda", "--dataset", "photos-all", "--shots", "2")
    assert re.search(r"or extract without --all-train$", told)
    extracted()
    assert main(FIT) == 0


def test_imported_features_get_test_features(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    arrays = {"train_features": rng.normal(size=(12, 8)), "train_labels": labels}
    np.savez("f.npz", **arrays)  # type: ignore[arg-type]  # numpy's own stubs want one keyword here
    importing = ["import", "f.npz", "--dataset", "photos", "--model", "m"]
    assert main(importing) == 0
    assert "or import test features as well" in refusal(capsys, *FIT)
    arrays |= {"test_features": rng.normal(size=(12, 8)), "test_labels": labels}
    np.savez("f.npz", **arrays)  # type: ignore[arg-type]  # as above
    assert main([*importing, "--if-exists", "overwrite"]) == 0
    assert main(FIT) == 0
