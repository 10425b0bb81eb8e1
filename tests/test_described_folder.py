import json
from pathlib import Path

import pytest

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Item
from cache.errors import UserError


def describe(folder: Path, rows: dict[str, str], name: str = "metadata.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in rows:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    pairs = [{"file_name": path, "label": label} for path, label in rows.items()]
    (folder / name).write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))


def test_a_table_among_the_images_names_their_classes(tmp_path: Path) -> None:
    describe(tmp_path / "pets", {"images/1.png": "cat", "images/2.png": "dog"})
    source = resolve_folder(tmp_path / "pets")
    assert (source.dataset, source.classnames) == ("pets", ("cat", "dog"))
    assert source.root == tmp_path / "pets"


def test_each_split_may_have_its_own_table(tmp_path: Path) -> None:
    describe(tmp_path / "test", {"9.png": "fox", "8.png": "dog"})
    describe(tmp_path / "train", {"1.png": "cat", "2.png": "dog", "3.png": "fox"})
    source = resolve_folder(tmp_path)
    assert source.classnames == ("cat", "dog", "fox")
    assert list(source.splits) == ["train", "test"]
    assert source.splits["test"] == (Item("test/8.png", 1), Item("test/9.png", 2))
    assert source.origin == "metadata in train, test"
    assert not source.drawn


def test_class_folders_beside_a_table_name_the_classes(tmp_path: Path) -> None:
    describe(tmp_path, {"cat/1.png": "x", "dog/1.png": "y"})
    assert resolve_folder(tmp_path).classnames == ("cat", "dog")


def test_splits_without_classes_are_not_taken_for_two_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    with pytest.raises(UserError, match="has the splits test, train, without class folders"):
        resolve_folder(tmp_path)
