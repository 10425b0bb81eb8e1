import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cache.datasets.items import Items
from cache.datasets.manifest import load_manifest
from cache.datasets.preflight import check
from cache.datasets.preflight_report import MISSING
from cache.datasets.resolving import resolve, resolve_folder, resolve_table
from cache.datasets.source import Item, Source
from cache.images.decode import NO_IMAGE
from cache.images.skipped import Skipped

SPLITS = {
    "train": (Item("a1.png", 0), Item("a2.png", 0), Item("b1.png", 1)),
    "val": (Item("a3.png", 0), Item("b2.png", 1)),
    "test": (Item("a4.png", 0), Item("b3.png", 1)),
}


def source(
    root: Path,
    splits: Mapping[str, tuple[Item, ...]] = SPLITS,
    classnames: tuple[str, ...] = ("ant", "bee"),
) -> Source:
    """A dataset of which every image is on disk."""
    for items in splits.values():
        for item in items:
            Image.new("RGB", (2, 2)).save(root / item.path)
    return Source("pets", root, classnames, splits, ("{}",), "by hand")


def test_a_sound_dataset_has_no_problems(tmp_path: Path) -> None:
    preflight = check(source(tmp_path))
    assert preflight.problems == ()
    assert preflight.notes == ()
    assert preflight.unreadable == ()
    assert preflight.counts == {"train": (2, 1), "val": (1, 1), "test": (1, 1)}


def test_the_report_shows_counts_and_names(tmp_path: Path) -> None:
    lines = check(source(tmp_path)).report().splitlines()
    assert lines[0] == "pets: 2 classes, 7 images (by hand)"
    assert lines[2].split() == ["train", "3", "1", "/", "1.5", "/", "2"]
    assert lines[-3].split() == ["id", "train", "val", "test", "class"]
    assert lines[-2].split() == ["0", "2", "1", "1", "ant"]
    assert lines[-1].split() == ["1", "1", "1", "1", "bee"]


def test_the_report_of_many_classes_is_short_and_shows_the_smallest(tmp_path: Path) -> None:
    items = [Item(f"{c}_{n}.png", c) for c in range(100) for n in range(1 if c == 42 else 3)]
    names = tuple(f"class{c}" for c in range(100))
    preflight = check(source(tmp_path, {"train": tuple(items)}, names))
    report = preflight.report()
    assert len(report.splitlines()) < 15
    assert "1 / 3 / 3" in report
    assert "fewest train images: class42 1, class0 3" in report
    assert len(preflight.table().splitlines()) == 101
    assert preflight.table().splitlines()[43].split() == ["42", "1", "class42"]


def test_missing_empty_and_foreign_files_are_listed(tmp_path: Path) -> None:
    pets = source(tmp_path)
    (tmp_path / "a1.png").unlink()
    (tmp_path / "a3.png").write_bytes(b"")
    (tmp_path / "b3.png").write_bytes(b"hello")
    preflight = check(pets)
    assert preflight.unreadable == (
        Skipped("train", "a1.png", MISSING),
        Skipped("val", "a3.png", "the file is empty"),
        Skipped("test", "b3.png", NO_IMAGE),
    )
    assert preflight.missing == (("train", "a1.png", MISSING),)
    assert preflight.problems == ()
    assert "unreadable: 3 images\n  train a1.png: no such file" in preflight.report()


def test_skipping_what_is_unreadable_makes_a_clean_dataset(tmp_path: Path) -> None:
    pets = replace(source(tmp_path), sizes={"train": 3, "val": 2, "test": 2})
    (tmp_path / "a1.png").unlink()
    rest = pets.without(image.path for image in check(pets).unreadable)
    again = check(rest)
    assert again.unreadable == ()
    assert again.problems == ()
    assert again.counts["train"] == (1, 1)


def test_a_class_that_unreadable_images_would_empty_is_a_problem(tmp_path: Path) -> None:
    pets = source(tmp_path)
    (tmp_path / "b1.png").unlink()
    assert check(pets).problems == ("1 class (bee) with no readable train image",)


def test_a_split_of_which_nothing_can_be_read_is_a_problem(tmp_path: Path) -> None:
    pets = source(tmp_path)
    for item in SPLITS["test"]:
        (tmp_path / item.path).unlink()
    (problem,) = check(pets).problems
    assert problem == f"none of the 2 test images can be read; is {tmp_path} right?"


def test_many_unreadable_files_are_counted_and_a_few_shown(tmp_path: Path) -> None:
    items = tuple(Item(f"{n}.png", n % 2) for n in range(1000))
    pets = source(tmp_path, {"train": items})
    for item in items[:600]:
        (tmp_path / item.path).unlink()
    preflight = check(pets)
    assert [image.path for image in preflight.unreadable] == [item.path for item in items[:600]]
    assert "unreadable: 600 images" in preflight.report()
    assert preflight.report().endswith("and 580 more")


def test_only_chosen_rows_are_opened(tmp_path: Path) -> None:
    pets = source(tmp_path)
    for path in ("a1.png", "b1.png", "a3.png"):
        (tmp_path / path).unlink()
    opened: list[int] = []
    preflight = check(pets, rows={"train": [0], "test": [0, 1]}, advance=opened.append)
    assert preflight.unreadable == (("train", "a1.png", MISSING),)
    assert sum(opened) == 3
    assert preflight.problems == ()


@pytest.mark.parametrize(
    ("splits", "names", "problem"),
    [
        (SPLITS, ("ant", "bee", "cat"), "1 class (cat) without a train image"),
        (
            {"train": (Item("a.png", 0), Item("b.png", 2), Item("c.png", 1))},
            ("ant", "bee"),
            "1 train label is out of range 0..1, first: 2 of b.png",
        ),
        (
            {"train": (Item("a.png", 0), Item("c.png", 1)), "val": (Item("b.png", -1),)},
            ("ant", "bee"),
            "1 val label is out of range 0..1, first: -1 of b.png",
        ),
        ({"train": (Item("a.png", 0),)}, ("ant",), "a classifier needs two classes at least"),
        (
            {**SPLITS, "val": (Item("a1.png", 0), Item("a2.png", 0), Item("b9.png", 1))},
            ("ant", "bee"),
            "2 images are in train and in val, first: a1.png",
        ),
        (
            {**SPLITS, "val": (Item("a4.png", 0), Item("b9.png", 1))},
            ("ant", "bee"),
            "1 image is in val and in test, first: a4.png",
        ),
    ],
)
def test_what_forbids_encoding(
    tmp_path: Path, splits: Mapping[str, tuple[Item, ...]], names: tuple[str, ...], problem: str
) -> None:
    (found,) = check(source(tmp_path, splits, names)).problems
    assert found.startswith(problem)


def test_a_dataset_without_images_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    preflight = check(resolve_folder(tmp_path))
    assert preflight.problems[0] == f"no images in {tmp_path}"
    assert preflight.report()


def test_counts_other_than_the_manifests_are_a_problem(tmp_path: Path) -> None:
    pets = replace(source(tmp_path), sizes={"train": 4, "val": 2})
    assert check(pets).problems == (
        "train must have 4 images, got 3",
        "test must have 0 images, got 2",
    )
    no_val = replace(pets, splits={s: SPLITS[s] for s in ("train", "test")}, sizes={"val": 2})
    assert "val must have 2 images, got 0" in check(no_val).problems


def test_items_in_columns_have_the_same_report(tmp_path: Path) -> None:
    splits = {
        "train": (Item("b.png", 1), Item("a.png", 0), Item("x.png", 7), Item("b.png", 1)),
        "test": (Item("c.png", 0), Item("b.png", -1), Item("a.png", 0)),
    }
    one = check(source(tmp_path, splits))
    assert any("1 train label is out of range 0..1, first: 7 of x.png" in p for p in one.problems)
    assert any("2 images are in train and in test, first: a.png" in p for p in one.problems)
    assert "1 train row repeats an image of the same split" in one.notes
    columns = {s: Items.of([i.path for i in of], [i.label for i in of]) for s, of in splits.items()}
    other = check(replace(one.source, splits=columns))
    assert (other.problems, other.notes, other.counts) == (one.problems, one.notes, one.counts)


def test_names_that_repeat_are_noted_and_kept_apart(tmp_path: Path) -> None:
    preflight = check(source(tmp_path, classnames=("crane", "crane")))
    assert preflight.problems == ()
    assert preflight.notes == ("classes 0 and 1 are both called 'crane'; they stay apart by id",)
    assert preflight.counts["train"] == (2, 1)


def test_a_class_that_only_val_or_test_lacks_is_noted(tmp_path: Path) -> None:
    splits = {**SPLITS, "val": (Item("a3.png", 0),)}
    preflight = check(source(tmp_path, splits))
    assert preflight.problems == ()
    assert preflight.notes == ("1 class (bee) without a val image",)


def test_rows_that_repeat_within_a_split_are_noted(tmp_path: Path) -> None:
    splits = {**SPLITS, "test": (*SPLITS["test"], Item("a4.png", 0))}
    assert check(source(tmp_path, splits)).notes == (
        "1 test row repeats an image of the same split",
    )


def test_the_sources_own_notes_come_first(tmp_path: Path) -> None:
    pets = replace(source(tmp_path), notes=("files left out: 1 hidden",))
    assert check(pets).notes == ("files left out: 1 hidden",)
    assert "note: files left out: 1 hidden" in check(pets).report()


def test_digits_pass() -> None:
    preflight = check(resolve(load_manifest("digits"), Path("absent")))
    assert preflight.problems == ()
    assert preflight.unreadable == ()
    assert "   0      89      36      53  zero" in preflight.report()


def test_an_empty_class_folder_is_a_problem(tmp_path: Path) -> None:
    for path in ("a/1.png", "b/1.png"):
        (tmp_path / path).parent.mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / path)
    (tmp_path / "c").mkdir()
    preflight = check(resolve_folder(tmp_path))
    assert preflight.problems == (
        "1 class (c) without a train image; add at least one for each class, or remove the class",
    )
    assert preflight.notes == ()


def test_a_class_without_train_images_is_a_problem_with_a_way_out(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    rows = "path,label,split\na.png,x,train\nb.png,y,test\nc.png,x,test\n"
    (tmp_path / "rows.csv").write_text(rows)
    assert check(resolve_table(tmp_path / "rows.csv")).problems == (
        "1 class (y) without a train image; add at least one for each class, or remove the class",
    )


def test_a_published_split_may_have_a_class_without_train_images(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    declared = replace(source(tmp_path, classnames=names), sizes={"train": 3, "val": 2, "test": 2})
    preflight = check(declared)
    assert preflight.problems == ()
    assert preflight.notes[0] == "1 class (cat) without a train image"
    assert len(check(replace(declared, sizes={"train": 4, "val": 2, "test": 2})).problems) == 2


def test_a_large_photograph_does_not_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = source(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert check(pets, workers=4).unreadable == ()
    reason = check(replace(pets, max_pixels=3)).unreadable[0].reason
    assert "the maximum is 3" in reason


def test_real_images_under_coops_split(shared: Path, tmp_path: Path) -> None:
    """Every row of the three splits, and the pixels of one image in fifty."""
    manifest = load_manifest("eurosat")
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    split = shared / "splits" / manifest.layout.split_file
    (tmp_path / "eurosat" / manifest.layout.split_file).symlink_to(split)
    eurosat = resolve(manifest, tmp_path)
    rows = {name: range(0, len(items), 50) for name, items in eurosat.splits.items()}
    opened = {eurosat.splits[name][row].path for name, some in rows.items() for row in some}
    with tarfile.open(shared / "images" / "eurosat.tar") as tar:
        images = [member for member in tar if member.name.removeprefix("2750/") in opened]
        tar.extractall(tmp_path / "eurosat", members=images, filter="data")
    preflight = check(eurosat, rows=rows)
    assert preflight.problems == ()
    assert preflight.unreadable == ()
    item = eurosat.splits["test"][0]
    assert eurosat.read(item.path).size == (64, 64)
    assert item.path.split("/")[0] == "AnnualCrop"
    assert eurosat.classnames[item.label] == "Annual Crop Land"
