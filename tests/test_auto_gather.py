from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cache.errors import UserError
from fewshot.automatic.gather import gather

Draw = Callable[..., Path]


def copies(photos: Path, folder: Path, n: int) -> Path:
    """A folder of n images copied from the first class."""
    folder.mkdir(exist_ok=True)
    for i, file in zip(range(n), sorted((photos / "blue").iterdir()), strict=False):
        (folder / f"copy{i}.jpg").write_bytes(file.read_bytes())
    return folder


def test_all_labeled_images_are_for_training(draw_photos: Draw) -> None:
    found = gather(draw_photos(n=4))
    assert found.labeled.dataset == "photos-all"
    assert found.labeled.classnames == ("blue", "green", "red")
    assert [len(items) for items in found.labeled.splits.values()] == [12]
    assert found.unlabeled is None


@pytest.mark.parametrize("name", ["unlabeled", "Unlabeled"])
def test_a_folder_of_unlabeled_images_is_no_class(draw_photos: Draw, name: str) -> None:
    photos = draw_photos(n=4)
    copies(photos, photos / name, 2)
    found = gather(photos)
    assert found.labeled.classnames == ("blue", "green", "red")
    assert len(found.labeled.splits["train"]) == 12
    assert found.unlabeled is not None
    assert found.unlabeled.dataset == "photos-unlabeled"
    assert [item.path for item in found.unlabeled.splits["test"]] == ["copy0.jpg", "copy1.jpg"]
    assert found.unlabeled.root == photos / name


def test_images_beside_the_class_folders_have_no_label(draw_photos: Draw) -> None:
    photos = draw_photos(n=2)
    copies(photos, photos, 2)
    (photos / "notes.txt").write_text("no image")
    found = gather(photos)
    assert found.unlabeled is not None
    assert [item.path for item in found.unlabeled.splits["test"]] == ["copy0.jpg", "copy1.jpg"]
    with found.unlabeled.read("copy0.jpg") as image:
        assert image.size == (50, 40)


def test_a_named_folder_comes_before_those_beside(draw_photos: Draw, tmp_path: Path) -> None:
    photos = draw_photos(n=3)
    copies(photos, photos / "unlabeled", 1)
    found = gather(photos, copies(photos, tmp_path / "more", 3))
    assert found.unlabeled is not None
    assert found.unlabeled.root == tmp_path / "more"
    assert len(found.unlabeled.splits["test"]) == 3


def test_a_test_split_of_the_users_own_is_kept_apart_and_val_is_not(draw_photos: Draw) -> None:
    photos = draw_photos(n=2)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = photos.parent / "splits" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / f"{split}.png")
    source = gather(photos.parent / "splits").labeled
    assert [item.path for item in source.splits["train"]] == [
        "train/cat/train.png", "val/cat/val.png", "train/dog/train.png", "val/dog/val.png",
    ]  # fmt: skip
    assert [item.path for item in source.splits["test"]] == [
        "test/cat/test.png",
        "test/dog/test.png",
    ]


def test_a_table_will_do(draw_photos: Draw) -> None:
    photos = draw_photos(n=2)
    rows = [f"{name}/{i:03d}.jpg,{name}" for name in ("blue", "red") for i in range(2)]
    (photos / "mine.csv").write_text("\n".join(["path,label", *rows]))
    found = gather(photos / "mine.csv")
    assert found.labeled.dataset == "mine-all"
    assert found.labeled.classnames == ("blue", "red")
    assert len(found.labeled.splits["train"]) == 4
    assert found.unlabeled is None  # the loose images of a folder are no matter of a table


def test_a_known_dataset_will_do() -> None:
    source = gather("digits").labeled
    assert source.dataset == "digits-all"
    assert set(source.splits) == {"train", "test"}


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/nowhere/"])
def test_a_mistyped_folder_is_one_short_line(name: str) -> None:
    with pytest.raises(UserError) as raised:
        gather(name)
    assert str(raised.value) == (
        f"no folder or table of images at {name}; check its name; fewshot datasets lists the "
        "datasets that go by name"
    )


def test_what_is_not_there_is_said(draw_photos: Draw, tmp_path: Path) -> None:
    photos = draw_photos(n=2)
    with pytest.raises(UserError, match=r"absent is not a folder; give a folder of images"):
        gather(photos, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in .*empty; give a folder of images"):
        gather(photos, tmp_path / "empty")
