from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from cache.datasets.preflight import check
from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Item, pooled
from cache.errors import UserError


def fill(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_flat_class_folders_are_split_by_class_then_path(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n:02d}.jpg" for c in ("zebra", "ant_lion") for n in range(10)])
    source = resolve_folder(tmp_path)
    assert source.classnames == ("ant_lion", "zebra")
    assert source.origin == "folders, stratified 50/20/30"
    assert source.exif
    assert source.templates == ("a photo of a {}.",)
    assert source.manifest_digest == ""
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        items = source.splits[split]
        assert Counter(item.label for item in items) == {0: n, 1: n}
        assert list(items) == sorted(items, key=lambda item: (item.label, item.path))
    assert source.splits["train"][0].path.startswith("ant_lion/")


def test_a_folder_says_where_it_is_found_again_but_not_all_of_it_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("photos"), [f"{c}/{n}.jpg" for c in ("cat", "dog") for n in range(3)])
    source = resolve_folder(Path("photos"))
    assert source.place == str(tmp_path / "photos")
    assert pooled(source).place == ""


def test_hard_links_are_one_image_of_one_class(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])
    (tmp_path / "cat" / "again.png").hardlink_to(tmp_path / "cat" / "1.png")
    (tmp_path / "outside.png").hardlink_to(tmp_path / "cat" / "2.png")
    paths = [item.path for items in resolve_folder(tmp_path).splits.values() for item in items]
    assert sorted(paths) == ["cat/1.png", "cat/2.png", "dog/1.png"]
    (tmp_path / "dog" / "2.png").hardlink_to(tmp_path / "cat" / "1.png")
    with pytest.raises(UserError, match=r"cat/1\.png and .*dog/2\.png are one file"):
        resolve_folder(tmp_path)


def test_small_classes_go_to_train_first_and_then_to_test(tmp_path: Path) -> None:
    fill(tmp_path, ["one/1.png", "two/1.png", "two/2.png"])
    source = resolve_folder(tmp_path)
    assert list(source.splits) == ["train", "test"]
    assert [item.label for item in source.splits["train"]] == [0, 1]
    assert [item.label for item in source.splits["test"]] == [1]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    fill(tmp_path, ["train/b/2.png", "train/a/9.png", f"{val}/a/1.png", f"{val}/b/1.png"])
    fill(tmp_path, ["test/a/deep/3.png", "test/b/4.PNG", "labels.txt"])
    source = resolve_folder(tmp_path)
    assert source.splits == {
        "train": (Item("train/a/9.png", 0), Item("train/b/2.png", 1)),
        "val": (Item(f"{val}/a/1.png", 0), Item(f"{val}/b/1.png", 1)),
        "test": (Item("test/a/deep/3.png", 0), Item("test/b/4.PNG", 1)),
    }
    assert source.origin == f"folders train, {val}, test"


def test_two_splits_will_do(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"])
    assert list(resolve_folder(tmp_path).splits) == ["train", "test"]


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n}.png" for c in ("bus", "train") for n in range(3)])
    assert resolve_folder(tmp_path).classnames == ("bus", "train")


def test_splits_may_lack_classes_of_one_another(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"])
    source = resolve_folder(tmp_path)
    assert source.classnames == ("a", "b", "c")
    assert source.splits["test"] == (Item("test/a/1.png", 0), Item("test/c/1.png", 2))
    report = check(source)
    assert report.problems[0].startswith("1 class (c) without a train image; add at least one")
    assert "1 class (b) without a test image" in report.notes


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "dev", "eval"),
        ("train_set", "val-images", "Test Data"), ("trainset", "valset", "testset"),
    ],
)  # fmt: skip
def test_split_folders_have_many_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, [f"{name}/{c}/1.png" for name in names for c in "ab"])
    source = resolve_folder(tmp_path)
    assert {split: items[0].path for split, items in source.splits.items()} == {
        split: f"{name}/a/1.png"
        for split, name in zip(("train", "val", "test"), names, strict=True)
    }


def test_one_folder_too_high_names_the_folders_below(tmp_path: Path) -> None:
    fill(tmp_path, [f"archive/{c}/1.png" for c in ("cat", "dog")])
    fill(tmp_path, [".DS_Store", "__MACOSX/cat/1.png"])
    with pytest.raises(UserError, match=r"holds one folder, archive/, and that holds cat, dog; gi"):
        resolve_folder(tmp_path)
    assert resolve_folder(tmp_path / "archive").classnames == ("cat", "dog")


def test_one_file_in_two_classes_or_two_splits_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "dog" / "9.png").symlink_to(tmp_path / "cat" / "1.png")
    with pytest.raises(UserError, match=r"/cat/1.png and .*/dog/9.png are one file"):
        resolve_folder(tmp_path)
    both = tmp_path / "both"
    fill(both, ["train/a/1.png", "train/b/1.png", "test/b/1.png"])
    (both / "test" / "a").symlink_to(both / "train" / "a")
    with pytest.raises(UserError, match=r"/train/a/1.png and .*/test/a/1.png are one file"):
        resolve_folder(both)


def test_a_link_back_to_the_photos_brings_no_other_class(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(3)])
    (tmp_path / "cat" / "all").symlink_to(tmp_path)
    source = resolve_folder(tmp_path)
    assert sum(map(len, source.splits.values())) == 6


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/1.png", "bus/1.png", "notes/1.txt"])
    with pytest.raises(UserError, match=r"split folders \(train\) beside .* \(bus\)"):
        resolve_folder(tmp_path)


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "val/a/1.png", "valid/a/1.png"])
    with pytest.raises(UserError, match="both val/ and valid/; keep one val split"):
        resolve_folder(tmp_path)


def test_what_is_no_image_is_counted_and_left_out(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n}.png" for c in "ab" for n in range(3)])
    fill(tmp_path, ["a/.DS_Store", "a/Thumbs.db", "b/readme.txt", "LICENSE", "stray.png"])
    source = resolve_folder(tmp_path)
    assert source.notes == (
        "files left out: 2 hidden, 1 of another type, 2 outside any class folder",
    )
    assert sum(map(len, source.splits.values())) == 6


def test_a_class_without_images_stays_a_class(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "b/readme.txt", "c/1.png"])
    source = resolve_folder(tmp_path)
    assert source.classnames == ("a", "b", "c")
    assert {item.label for item in source.splits["train"]} == {0, 2}


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    fill(tmp_path, ["b/1.png"])
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(tmp_path / "a" / "1.jpg", exif=exif)
    assert resolve_folder(tmp_path).read("a/1.jpg").size == (6, 8)


def test_the_dataset_is_called_after_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, ["my photos (2024)/a/1.png", "my photos (2024)/b/1.png"])
    assert resolve_folder(tmp_path / "my photos (2024)").dataset == "my-photos-2024"
    assert resolve_folder(tmp_path / "my photos (2024)", "pets").dataset == "pets"
    monkeypatch.chdir(tmp_path / "my photos (2024)")
    assert resolve_folder(Path()).dataset == "my-photos-2024"


def test_no_folder_and_no_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent is not a folder"):
        resolve_folder(tmp_path / "absent")
    fill(tmp_path, ["1.png"])
    with pytest.raises(UserError, match="has no class folders"):
        resolve_folder(tmp_path)


@pytest.mark.parametrize("name", ["unlabeled", "Unlabeled"])
def test_a_folder_of_images_without_labels_is_no_class(tmp_path: Path, name: str) -> None:
    fill(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", f"{name}/9.png"])
    source = resolve_folder(tmp_path)
    assert source.classnames == ("a", "b")
    assert source.notes == (f"{name}/ is left out: its images have no label",)
    fill(tmp_path / "split", ["train/a/1.png", "train/b/1.png", f"{name}/9.png"])
    assert resolve_folder(tmp_path / "split").classnames == ("a", "b")


def test_pooled_a_folder_keeps_nothing_back(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n}.jpg" for c in "ba" for n in range(7)])
    source = pooled(resolve_folder(tmp_path, "mine"))
    assert (source.dataset, source.origin) == ("mine-all", "folders, all for training")
    paths = [item.path for item in source.splits["train"]]
    assert paths == [f"{c}/{n}.jpg" for c in "ab" for n in range(7)]
    assert list(source.splits) == ["train"]
    assert pooled(resolve_folder(tmp_path)).exif


def test_pooled_a_test_split_of_the_users_own_stays_apart(tmp_path: Path) -> None:
    fill(tmp_path, [f"{split}/{c}/1.jpg" for split in ("train", "val", "test") for c in "ab"])
    source = pooled(resolve_folder(tmp_path))
    assert [item.path for item in source.splits["train"]] == [
        "train/a/1.jpg", "val/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg",
    ]  # fmt: skip
    assert [item.path for item in source.splits["test"]] == ["test/a/1.jpg", "test/b/1.jpg"]
    assert source.origin == "folders train, val, test, all for training"
