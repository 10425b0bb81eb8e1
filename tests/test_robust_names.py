import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from cache.images.skipped import Skipped
from tests.auto_photos import digit
from tests.nasty_photos import (
    User,
    extracted,
    two_classes,
)

CLASSES = (
    "a b", " spaces ", "it's", 'say "x"', "a, b; c", "100%", "%s", "[x]*?", "{}", "$HOME `id`",
    "<b>&amp;", "<script>", "-dash", "caf\u00e9", "עברית", "日本語", "👩\u200d🔬", "line\nbreak",
    "tab\there", "back\\slash",
)  # fmt: skip


def test_names_of_any_kind_stay_as_they_are(user: User, tmp_path: Path) -> None:
    home = tmp_path / "it's “my” photos, [all] 100% 日本"
    photos = home / "photos"
    for i, name in enumerate(CLASSES):
        (photos / name).mkdir(parents=True)
        digit("two", i).save(photos / name / f"{name}.png")
        digit("three", i).save(photos / name / "plain.png")
    (photos / "unlabeled").mkdir()
    for i, name in enumerate(CLASSES):
        digit("four", i).save(photos / "unlabeled" / f"{name}.png")
    mine = User(home, user._capsys)
    assert mine.extracts(photos).code == 0
    learned = mine.learns(photos)
    for store in (extracted(mine), learned.store):
        assert store.classnames == tuple(sorted(CLASSES))
        assert {f"{name}/{name}.png" for name in CLASSES} < set(store.paths("train"))
    files = [photos / "unlabeled" / f"{name}.png" for name in CLASSES]
    said = mine.predicts(*files)
    assert [one["path"] for one in said] == list(map(str, files))
    assert {one["label"] for one in said} <= set(CLASSES)
    with (learned.out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert {row["path"] for row in csv.DictReader(file)} == set(map(str, files))
    assert json.loads((learned.out / "report.json").read_text())["accuracy"] == learned.accuracy
    page = learned.page_path.read_text(encoding="utf-8")
    assert "<b>&amp;" not in page
    assert page.count("</script>") == page.count("<script")
    report = mine.extracts(photos, "--dry-run").said
    assert any(line.endswith("  line\\nbreak") for line in report)  # one line for each class


def test_the_step_by_step_commands_survive_any_name(user: User, tmp_path: Path) -> None:
    home = tmp_path / "it's “my” photos, [all] $HOME"
    photos = two_classes(home / "-photos")
    mine = User(home, user._capsys)
    learned = mine.learns(photos)
    script = (learned.out / "commands.sh").read_text(encoding="utf-8").splitlines()
    for line in [line for line in script if line.startswith("fewshot ")]:
        assert mine.types(*shlex.split(line)[1:]).code == 0, line


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("caf\u00e9", "cafe\u0301"), r"'cafe\u0301' and 'caf\xe9'"),
        (("a b", "a_b"), "'a b' and 'a_b'"),
        (("Cat", "cat"), "'Cat' and 'cat'"),
    ],
)
def test_classes_that_the_model_cannot_tell_by_name_are_told_and_stay_two(
    user: User, tmp_path: Path, names: tuple[str, str], told: str
) -> None:
    photos = two_classes(tmp_path / "photos")
    for old, new in zip(("zero", "one"), names, strict=True):
        (photos / old).rename(photos / new)
    note = f"classes called {told} have the same prompts; if they are one class, put their images "
    ran = user.extracts(photos)
    assert [line for line in ran.said if line.startswith(f"note: {note}")]
    learned = user.learns(photos)
    assert any(line.startswith(note) for line in learned.report.notes)
    for store in (extracted(user), learned.store):
        assert store.classnames == tuple(sorted(names))
        text = store.text()
        np.testing.assert_allclose(text[0], text[1], atol=1e-6)
    assert {one["label"] for one in user.predicts(photos)} == set(names)


def test_two_ids_of_one_name_stay_apart_to_the_end(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    rows = [f"{name}/{i:03d}.png,{k},crane" for k, name in enumerate(("one", "zero"))
            for i in range(3)]  # fmt: skip
    table = photos / "birds.csv"
    table.write_text("\n".join(["path,label,classname", *rows]))
    ran = user.extracts(table)
    assert "note: classes 0 and 1 are both called 'crane'; they stay apart by id" in ran.said
    learned = user.learns(table)
    assert extracted(user, "birds-all").classnames == learned.store.classnames == ("crane", "crane")
    said = user.predicts(photos / "one", photos / "zero")
    assert [one["label"] for one in said] == ["crane (class 0)"] * 3 + ["crane (class 1)"] * 3


def test_names_that_are_no_utf8_are_unreadable_and_named_before_anything_is_encoded(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    (photos / "one" / "002.png").rename(photos / "one" / "caf\udce9.png")
    (photos / "unlabeled").mkdir()
    for name in ("caf\udce9.png", "tea.png"):
        digit("two", 0).save(tmp_path / "two.png")
        (tmp_path / "two.png").rename(photos / "unlabeled" / name)
    refusal = user.extracts(photos).refusal
    assert r"train one/caf\udce9.png (its name is no valid UTF-8; rename it)" in refusal
    assert user.extracts(photos, "--skip-unreadable").code == 0
    left_out = (Skipped("train", r"one/caf\udce9.png", "its name is no valid UTF-8; rename it"),)
    learned = user.learns(photos)
    assert extracted(user).skipped == learned.store.skipped == left_out
    assert learned.unlabeled is not None
    assert learned.unlabeled.paths == ("tea.png",)
    assert len(learned.unlabeled.skipped) == 1
    assert len(user.predicts(photos)) == 8  # what is stored nowhere may be called anything
    (photos / "zero").rename(photos / "z\udce9ro")
    assert r"1 class (z\udce9ro) with no readable train image" in user.extracts(photos).refusal
