from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from fewshot.automatic import judging
from fewshot.automatic.candidates import Candidates
from fewshot.automatic.pipeline import auto
from fewshot.metrics import wilson
from fewshot.model_selection import race
from fewshot.parts import memory
from tests.auto_photos import by_predictor, digit, draw_digits, quickly


def test_one_photo_of_each_class_gives_a_classifier_and_no_promise(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 1, "one": 1, "two": 1})
    found = quickly(photos, methods=None)
    assert (found.accuracy, found.interval, found.validation.winner) == (None, None, None)
    assert found.winner == "stack"
    assert found.adapter.calibration.images == 0
    assert found.adapter.training["tune"] == "none"
    assert "nobody can say" in found.summary()
    assert "a second photo of each class" in found.summary()
    tests = draw_digits(tmp_path / "tests", {"zero": 5, "one": 5, "two": 5}, split="test")
    paths = sorted(tests.rglob("*.png"))
    p = by_predictor(found, paths)
    said = [found.store.classnames[k] for k in p.argmax(dim=1).tolist()]
    right = np.mean([name == path.parent.name for name, path in zip(said, paths, strict=True)])
    assert right >= 0.8


def test_two_classes_of_two_photos_are_judged_with_an_interval_to_match(tmp_path: Path) -> None:
    found = quickly(draw_digits(tmp_path / "photos", {"zero": 2, "one": 2}))
    assert found.validation.selection is not None
    assert found.validation.selection.n_images == 4
    assert found.interval is not None
    low, high = wilson(found.validation.selection.accuracy, 4)
    assert found.interval[0] <= low
    assert found.interval[1] >= high


def test_what_cannot_win_is_fitted_to_fewer_folds_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 8, "one": 8})
    few = Candidates(("gda", "linear-probe"), {})
    monkeypatch.setattr(judging, "candidates", lambda *_: few)
    monkeypatch.setattr(race, "chance", lambda *_: 0.0)
    found = quickly(photos, methods=None)
    assert [one.name for one in found.validation.tried] == ["gda"]
    [given_up] = found.validation.given_up
    assert (given_up.name, given_up.ahead) == ("linear-probe", "gda")
    assert given_up.images < 16
    assert "as they could not win any more: linear-probe, " in found.page_path.read_text()
    whole = quickly(photos, methods=None, thorough=True)
    assert [one.name for one in whole.validation.tried] == ["gda", "linear-probe"]
    assert whole.validation.given_up == ()


def test_the_users_own_test_photos_are_scored_once_by_the_saved_adapter(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw_digits(photos / "train", {"three": 5, "eight": 5})
    draw_digits(photos / "test", {"three": 9, "eight": 8}, split="test")
    digit("three", 20).save(photos / "test" / "eight" / "wrong.png")
    found = quickly(photos)
    paths = sorted((photos / "test").rglob("*.png"))
    p = by_predictor(found, paths)
    said = [found.store.classnames[k] for k in p.argmax(dim=1).tolist()]
    right = np.mean([name == path.parent.name for name, path in zip(said, paths, strict=True)])
    assert found.tested is not None
    assert found.tested.images == 18
    assert found.tested.accuracy == pytest.approx(right)
    assert right < 1
    assert len(found.validation.labels) == 10
    assert found.adapter.training["test accuracy"] == found.tested.accuracy


def test_a_table_will_do_and_photos_elsewhere_are_classified(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 4, "one": 4})
    lines = [f"{path.relative_to(photos)},{path.parent.name}" for path in photos.rglob("*.png")]
    (photos / "mine.csv").write_text("\n".join(["path,label", *lines]))
    others = draw_digits(tmp_path / "others", {"zero": 2}, first=30)
    found = auto(
        photos / "mine.csv",
        model="tiny",
        methods=["gda"],
        out=tmp_path / "out",
        store=tmp_path / "features",
        unlabeled=others,
    )
    assert found.winner == "gda"
    assert found.zero_shot is None
    assert found.unlabeled is not None
    assert len(found.unlabeled.paths) == 2
    assert found.store.dataset == "mine-all"


def test_a_method_that_fails_is_noted_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 0 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    photos = draw_digits(tmp_path / "photos", {"zero": 3, "one": 3})
    found = quickly(photos, methods=["zero-shot", "proker"])
    [failed] = found.validation.failed
    assert failed.name == "proker"
    assert found.winner == "zero-shot"
    assert failed.why in found.page_path.read_text().replace("&#x27;", "'")
    with pytest.raises(UserError, match=r"no method could be tried \(proker: .*with --methods"):
        quickly(photos, methods=["proker"])


def test_no_readable_photo_without_a_label_is_no_obstacle(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 2, "one": 2})
    (photos / "unlabeled").mkdir()
    (photos / "unlabeled" / "empty.png").write_bytes(b"")
    broken = (photos / "zero" / "000.png").read_bytes()[:60]
    said: list[str] = []
    assert quickly(photos, say=said.append).unlabeled is None
    assert "of those without a label, the one image cannot be read" in said
    (photos / "unlabeled" / "broken.png").write_bytes(broken)  # whose header is fine
    assert quickly(photos, say=said.append).unlabeled is None


def test_mistakes_show_before_a_model_is_loaded(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 2, "one": 2})
    absent = {"model": "no-such-model", "store": tmp_path / "features"}
    with pytest.raises(UserError, match="unknown method 'gdb'; did you mean 'gda'"):
        quickly(photos, **absent, methods=["gdb"])
    with pytest.raises(UserError, match="transclip learns from the images to be classified"):
        quickly(photos, **absent, methods=["transclip"])
    with pytest.raises(UserError, match=r"lies in the folder of photos.*give --out another place"):
        quickly(photos, **absent, out=photos / "out")
    with pytest.raises(UserError, match="give --store another place"):
        quickly(photos, **{**absent, "store": photos / "features"})
    lone = draw_digits(tmp_path / "lone", {"zero": 2})
    with pytest.raises(UserError, match=r"^lone cannot be encoded: a classifier needs two classes"):
        quickly(lone, **absent)


def test_one_photo_under_all_labels_is_refused_in_the_users_terms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for name, n in {"zero": 2, "one": 1}.items():
        (photos / name).mkdir(parents=True)
        for i in range(n):
            digit("three", 0).save(photos / name / f"{i}.png")
    said: list[str] = []
    with pytest.raises(UserError) as raised:
        quickly(photos, methods=["gda"], say=said.append)
    assert str(raised.value) == (
        "all 3 photos look the same to tiny, so nothing tells the classes apart; look for one "
        "photo under all labels"
    )
    shown = "\n".join([*said, capsys.readouterr().err])
    assert "photos: images" in shown
    assert "photos-all" not in shown


def test_a_class_of_which_nothing_decodes_is_named(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 2, "one": 2, "two": 1})
    file = photos / "two" / "000.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"1 class \(two\) with no readable train image"):
        quickly(photos)
