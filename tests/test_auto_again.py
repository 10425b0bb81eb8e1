"""`auto` on photos that it saw before: interrupted, repeated, or with other photos."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import load_adapter
from fewshot.automatic import pipeline, writing
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.writing import claimed
from fewshot.methods import METHODS
from tests.auto_photos import digit, draw_digits, quickly


def test_an_interrupted_extraction_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 3, "one": 3})
    encode = Encoder.encode_text_pooled

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode_text_pooled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickly(photos)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Encoder, "encode_text_pooled", encode)
    monkeypatch.delattr(Encoder, "encode_images")  # the images were encoded before
    assert quickly(photos).page_path.is_file()


def test_photos_that_were_added_are_encoded_and_old_predictions_go(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 4, "one": 4})
    draw_digits(photos / "unlabeled", {"zero": 1}, first=60)
    first = quickly(photos)
    assert (first.out / "predictions.csv").is_file()
    draw_digits(photos, {"two": 4})
    for file in (photos / "unlabeled").rglob("*.png"):
        file.unlink()
    said: list[str] = []
    second = quickly(photos, say=said.append)
    assert second.store.classnames == ("one", "two", "zero")
    assert any("are not those that" in line for line in said)
    assert not (second.out / "predictions.csv").exists()


def test_a_photo_replaced_by_another_of_equal_size_is_encoded_again(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 3, "one": 3})
    for path in photos.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    first = quickly(photos, methods=["nearest-mean"])
    before = first.store.path.read_bytes()
    quickly(photos, methods=["nearest-mean"])
    assert first.store.path.read_bytes() == before
    time.sleep(0.02)
    digit("one", 30).save(photos / "zero" / "000.bmp")
    said: list[str] = []
    quickly(photos, methods=["nearest-mean"], say=said.append)
    assert any(line.startswith("1 image modified since") for line in said)
    assert first.store.path.read_bytes() != before


def test_photos_of_another_folder_do_not_replace_a_result(tmp_path: Path) -> None:
    a = draw_digits(tmp_path / "a" / "photos", {"zero": 2, "one": 2})
    b = draw_digits(tmp_path / "b" / "photos", {"two": 2, "three": 2})
    options = {"out": tmp_path / "out", "store": tmp_path / "features", "methods": ["gda"]}
    first = quickly(a, **options)
    before = {path.name: path.read_bytes() for path in first.out.iterdir()}
    with pytest.raises(UserError, match=r"holds the result for the photos in .*a/photos"):
        quickly(b, **options)
    assert {path.name: path.read_bytes() for path in first.out.iterdir()} == before
    (first.out / "report.json").write_text("[]")
    assert quickly(b, **options).store.classnames == ("three", "two")


def test_of_two_runs_on_one_folder_the_second_stops(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out", tmp_path),
        pytest.raises(UserError, match="another `fewshot auto` is writing into"),
        claimed(tmp_path / "out", tmp_path),
    ):
        pass
    with claimed(tmp_path / "out", tmp_path):
        pass


def test_what_is_interrupted_after_the_first_answer_leaves_it_and_it_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    photos = draw_digits(tmp_path / "photos", {"zero": 4, "one": 4})
    monkeypatch.setattr(METHODS["clap"], "fit", interrupted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        quickly(photos, methods=["gda", "clap"], say=said.append)
    out = tmp_path / "out"
    assert said[-1].startswith("first answer: gda: about ")
    assert said[-1].endswith(f"it is in {out}, and stays if you stop here; 1 further method to try")
    assert json.loads((out / "report.json").read_text())["still_to_be_tried"] == ["clap"]
    assert "This is a first answer" in (out / "report.html").read_text()
    saved = load_adapter(out / "adapter.safetensors")
    assert saved.training["still to be tried"] == ["clap"]
    monkeypatch.undo()
    found = quickly(photos, methods=["gda", "clap"], thorough=True)
    assert [one.name for one in found.validation.tried] == ["gda", "clap"]
    assert json.loads((out / "report.json").read_text())["still_to_be_tried"] == []
    assert "This is a first answer" not in found.page_path.read_text()
    assert "still to be tried" not in load_adapter(found.adapter_path).training
    assert " --thorough" in found.commands[0].line


def test_a_first_answer_has_not_looked_at_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_digits(tmp_path / "photos" / "train", {"zero": 4, "one": 4})
    draw_digits(tmp_path / "photos" / "test", {"zero": 3, "one": 3}, split="test")
    written: list[Outcome] = []

    def noted(outcome: Outcome) -> None:
        written.append(outcome)
        writing.write(outcome)

    monkeypatch.setattr(pipeline, "write", noted)
    quickly(tmp_path / "photos", methods=["gda", "clap"])
    first, last = written
    assert first.validation.pending
    assert first.tested is None
    assert "test accuracy" not in first.adapter.training
    assert last.tested is not None
