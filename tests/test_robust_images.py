import csv
import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.store import FeatureStore
from fewshot.adapters.opened_adapter import open_adapter
from tests.auto_photos import digit
from tests.nasty_photos import (
    FORMS,
    LOSSY,
    ORIENTATION,
    QUICK,
    UNTURNED,
    User,
    contents,
    damaged,
    extracted,
    picture,
    two_classes,
)


@functools.cache
def encoder() -> Encoder:
    return load("tiny", device="cpu")


def feature(image: Image.Image) -> NDArray[np.float32]:
    """(D,) of unit norm, of an image in memory."""
    encoded = encoder().encode_images(encoder().preprocess.center(image)[None])[0]
    unit: NDArray[np.float32] = torch.nn.functional.normalize(encoded, dim=0).numpy()
    return unit


def features(store: FeatureStore) -> dict[str, NDArray[np.float32]]:
    """Path -> (D,)."""
    return dict(zip(store.paths("train"), store.features("train"), strict=True))


def assert_all_see(user: User, photos: Path, expected: dict[str, NDArray[np.float32]]) -> None:
    """Extract, auto and predict make the same features of files, by path below the photos."""
    assert user.extracts(photos).code == 0
    learned = user.learns(photos)
    for store in (extracted(user), learned.store):
        found = features(store)
        for path, wanted in expected.items():
            atol = 0.03 if Path(path).name in LOSSY else 1e-3
            np.testing.assert_allclose(found[path], wanted, atol=atol, err_msg=path)
    seen = torch.stack([torch.from_numpy(wanted) for wanted in expected.values()])
    all_p = open_adapter(learned.adapter, device="cpu").probabilities(seen)
    said = user.predicts(*(photos / path for path in expected))
    for one, p, path in zip(said, all_p, expected, strict=True):
        assert one["path"] == str(photos / path)
        atol = 0.1 if Path(path).name in LOSSY else 2e-3
        wanted_p = p.sort(descending=True).values
        np.testing.assert_allclose(one["probabilities"], wanted_p, atol=atol, err_msg=path)


def test_whatever_form_a_picture_is_in_its_features_are_the_same(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    for name, write in FORMS.items():
        write(photos / "zero" / name)
    assert_all_see(user, photos, {f"zero/{name}": feature(picture()) for name in FORMS})


def test_photographs_are_seen_upright_however_the_camera_was_held(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    for orientation in range(1, 9):
        turned = picture()
        if orientation in UNTURNED:
            turned = turned.transpose(UNTURNED[orientation])
        exif = turned.getexif()
        exif[ORIENTATION] = orientation
        turned.save(photos / "zero" / f"turned {orientation}.png", exif=exif)
    upright = feature(picture())
    lying = feature(picture().transpose(UNTURNED[6]))
    assert np.abs(upright - lying).max() > 0.05  # or the rest would say nothing
    assert_all_see(user, photos, {f"zero/turned {i}.png": upright for i in range(1, 9)})


def test_a_single_pixel_and_slivers_are_seen_as_what_is_in_their_middle(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    color = (200, 60, 20)
    sizes = {"1x1.png": (1, 1), "1x3000000.png": (1, 3_000_000), "5000x1.png": (5000, 1)}
    for name, (width, height) in sizes.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        middle = tuple(slice(n // 2 - min(n // 2, 50), n // 2 + 50) for n in (height, width))
        pixels[middle] = color
        Image.fromarray(pixels).save(photos / "zero" / name)
    plain = feature(Image.new("RGB", (32, 32), color))
    assert_all_see(user, photos, {f"zero/{name}": plain for name in sizes})


def test_what_is_no_image_stops_extract_and_is_counted_and_left_out_elsewhere(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    reasons = damaged(photos / "one")
    (photos / "one" / "folder.jpg").mkdir()  # no file: nobody takes it for a photo

    stopped = user.extracts(photos)
    assert stopped.refusal.startswith(
        "fewshot: 5 images cannot be read, the first train one/empty.jpg (the file is empty); "
    )
    assert stopped.refusal.endswith("--skip-unreadable")
    assert "unreadable: 5 images" in stopped.said
    assert not list(tmp_path.rglob("*.h5"))
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in stopped.said)

    assert user.extracts(photos, "--skip-unreadable").code == 0
    learned = user.learns(photos)
    for store in (extracted(user), learned.store):
        assert len(store.paths("train")) == 6
        left_out = {f"{split}/{path}": why for split, path, why in store.skipped}
        assert set(left_out) == {f"train/one/{name}" for name in reasons}
        for name, reason in reasons.items():
            assert reason in left_out[f"train/one/{name}"]

    adapter = learned.adapter_path
    ran = user.types("predict", adapter, photos / "one", "--format", "csv", "--top", "1")
    assert ran.code == 0
    assert ran.said[-1] == "3 images classified, 5 unreadable and skipped"
    told = [line for line in ran.said if line.startswith("cannot read ")]
    assert [Path(line.split(": ")[0]).name for line in told] == sorted(reasons)
    assert [Path(row["path"]).name for row in csv.DictReader(ran.out.splitlines())] == [
        "000.png", "001.png", "002.png",
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("test", "train"), ("val", "validation"), ("valid", "test")])
def test_splits_without_class_folders_are_not_taken_for_classes(
    user: User, tmp_path: Path, names: tuple[str, str]
) -> None:
    photos = two_classes(tmp_path / "photos")
    for old, new in zip(("zero", "one"), names, strict=True):
        (photos / old).rename(photos / new)
    refusal = user.extracts(photos).refusal
    assert "without class folders inside; put each class's images into a folder" in refusal
    with pytest.raises(UserError, match="without class folders inside"):
        user.learns(photos)


def test_a_second_folder_without_labels_is_not_taken_for_a_class(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    for name in ("unlabeled", "Unlabeled"):
        (photos / name).mkdir()
        digit("two", 0).save(photos / name / "a.png")
    expected = "has both Unlabeled/ and unlabeled/; keep one of them"
    assert user.extracts(photos).refusal.endswith(expected)


def test_one_photo_of_each_class_will_do(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos", 1)
    assert user.extracts(photos).code == 0
    with pytest.raises(UserError, match="methods cannot be compared; name one of"):
        user.learns(photos)
    assert user.learns(photos, ("nearest-mean",)).accuracy is None
    assert [one["label"] for one in user.predicts(photos)] == ["one", "zero"]


def test_images_are_found_whatever_their_extension_and_depth_and_nothing_else_is(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    deep = photos / "one" / "2019.jpg" / "Über" / "x y"
    deep.mkdir(parents=True)
    for name in ("a.JPG", "b.JPEG", "c.PnG", "d.TIFF", "e.webp", "f.GIF", "g.BMP"):
        digit("one", 20).save(deep / name)
    for name in ("Thumbs.db", "desktop.ini", "notes.txt", ".DS_Store", "._000.png", "raw.CR2"):
        (photos / "one" / name).write_bytes(b"\0")
    (photos / "__MACOSX" / "one").mkdir(parents=True)
    (photos / "__MACOSX" / "one" / "._000.png").write_bytes(b"\0")
    (photos / ".cache").mkdir()
    (photos / "read me.txt").touch()
    ran = user.extracts(photos)
    raw = "1 .cr2 (a format that is not read; convert it to JPEG)"
    found = f"{raw}, 4 hidden, 1 of another type, 1 outside any class folder"
    assert f"note: files left out: {found}" in ran.said
    learned = user.learns(photos)
    for store in (extracted(user), learned.store):
        assert store.classnames == ("one", "zero")
        assert len(store.paths("train")) == 13
        assert "one/2019.jpg/Über/x y/c.PnG" in store.paths("train")
    assert len(user.predicts(photos)) == 13


def test_links_are_followed_and_those_to_nowhere_are_told(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    elsewhere = two_classes(tmp_path / "elsewhere")
    (photos / "linked class").symlink_to(elsewhere / "one")
    (photos / "zero" / "linked photo.png").symlink_to(elsewhere / "zero" / "000.png")
    (photos / "zero" / "linked folder").symlink_to(elsewhere / "zero")
    (photos / "zero" / "round").symlink_to(photos / "zero")
    (photos / "round").symlink_to(photos)
    (photos / "gone").symlink_to(tmp_path / "unplugged disk" / "gone")
    (photos / "itself").symlink_to("itself")
    (photos / "zero" / "itself.png").symlink_to("itself.png")

    refusal = user.extracts(photos).refusal
    assert "1 image cannot be read, the first train zero/itself.png" in refusal
    ran = user.extracts(photos, "--skip-unreadable")
    told = "note: links left out, as they lead nowhere or back: gone, itself, round"
    assert told in ran.said
    learned = user.learns(photos)
    for store in (extracted(user), learned.store):
        assert store.classnames == ("linked class", "one", "zero")
        assert store.paths("train") == [
            *(f"linked class/00{i}.png" for i in range(3)),
            *(f"one/00{i}.png" for i in range(3)),
            *(f"zero/00{i}.png" for i in range(3)),
            *(f"zero/linked folder/00{i}.png" for i in (1, 2)),
            "zero/linked photo.png",  # which is 000.png of the linked folder: one image
        ]
    assert len(user.predicts(photos / "linked class", photos / "zero" / "linked photo.png")) == 4


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("one",), "two classes at least, got 1"),
        (("one", "zero", "empty"), r"1 class \(empty\) without a train image"),
        (("one", "zero", "damaged"), r"1 class \(damaged\) with no readable train image"),
        ((), "has no class folders"),
    ],
)
def test_photos_that_no_classifier_can_be_learned_from_are_refused_in_a_line(
    user: User, tmp_path: Path, folders: tuple[str, ...], expected: str
) -> None:
    photos = tmp_path / "photos"
    for name in ("", *folders):
        (photos / name).mkdir()
    for name in {"one", "zero"}.intersection(folders):
        digit(name, 0).save(photos / name / "a.png")
    if "damaged" in folders:
        (photos / "damaged" / "a.png").touch()
    assert re.search(expected, user.extracts(photos, "--skip-unreadable").refusal)
    with pytest.raises(UserError, match=expected):
        user.learns(photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_nothing_is_written_among_the_photos(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    damaged(photos / "one")
    before = contents(photos)
    assert user.extracts(photos).code == 2
    assert user.extracts(photos, "--skip-unreadable").code == 0
    user.learns(photos)
    user.predicts(photos)
    assert contents(photos) == before


def test_an_image_over_max_pixels_is_refused_by_every_command_and_the_option_lets_it_in(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    picture().resize((40, 50)).save(photos / "one" / "large.png")
    small = ("--max-pixels", "1999")
    said = "40 x 50 = 2,000 pixels, the maximum is 1,999; "
    tiny = ("--model", "tiny")
    learn = ("auto", photos, *tiny, "--methods", ",".join(QUICK))

    assert said in user.extracts(photos, *small).refusal
    train = ("train", "coop", "--shots", "1", "--dataset", photos, *tiny)
    assert "the maximum is 9; " in user.types(*train, "--max-pixels", "9").refusal
    assert any(said in line for line in user.types(*learn, *small).said)
    adapter = tmp_path / "runs" / "auto" / "photos" / "adapter.safetensors"
    assert said in user.types("predict", adapter, photos / "one" / "large.png", *small).said[-2]
    assert "--max-pixels 1999" in (adapter.parent / "commands.sh").read_text()

    large = ("--max-pixels", "2000")
    assert user.extracts(photos, *large).code == 0
    assert not any("the maximum is" in line for line in user.types(*learn, *large).said)
    assert user.types("predict", adapter, photos / "one" / "large.png", *large).code == 0
