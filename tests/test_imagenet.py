from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Item
from cache.errors import UserError

WNIDS = [f"n{number:08d}" for number in range(1_440_764, 1_440_764 + 7 * 1000, 7)]


def touch(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_imagenets_val_folder_is_the_test_split(tmp_path: Path) -> None:
    import open_clip

    images = tmp_path / "imagenet" / "images"
    touch(images / "train", [f"{w}/{w}_{n}.JPEG" for w in WNIDS for n in (2, 10)])
    touch(images / "val", [f"{w}/val.JPEG" for w in WNIDS])
    source = resolve(load_manifest("imagenet"), tmp_path)
    assert list(source.splits) == ["train", "test"]
    assert "no val split" in source.origin
    assert source.classnames == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert [item.label for item in source.splits["test"]] == list(range(1000))
    assert source.splits["test"][3].path == f"val/{WNIDS[3]}/val.JPEG"
    assert len(source.splits["train"]) == 2000
    assert source.splits["train"][1] == Item(f"train/{WNIDS[0]}/{WNIDS[0]}_2.JPEG", 0)
    (images / "train" / "n99999999").mkdir()
    with pytest.raises(UserError, match=r"1000 class folders .*, got 1001 and 1000"):
        resolve(load_manifest("imagenet"), tmp_path)


def test_flat_validation_images_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "imagenet" / "images" / "val", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(UserError, match="got 0 and 0; validation images must lie in a folder per"):
        resolve(load_manifest("imagenet"), tmp_path)


def test_imagenet_v2_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    layout = load_manifest("imagenetv2").layout
    touch(tmp_path / layout.directory / layout.images, [f"{i}/x.jpeg" for i in range(1000)])
    source = resolve(load_manifest("imagenetv2"), tmp_path)
    assert [(i.path, i.label) for i in source.splits["test"]] == [
        (f"{i}/x.jpeg", i) for i in range(1000)
    ]
    assert source.class_ids == tuple(range(1000))
    assert list(source.splits) == ["test"]


def test_a_class_folder_too_few_is_noticed(tmp_path: Path) -> None:
    layout = load_manifest("imagenetv2").layout
    touch(tmp_path / layout.directory / layout.images, [f"{i}/x.jpeg" for i in range(999)])
    with pytest.raises(UserError, match="must have 1000 class folders, got 999"):
        resolve(load_manifest("imagenetv2"), tmp_path)


def test_sketch_needs_no_table_of_classes(tmp_path: Path) -> None:
    touch(tmp_path / "imagenet-sketch" / "images", [f"{w}/sketch_0.JPEG" for w in WNIDS])
    source = resolve(load_manifest("imagenet_sketch"), tmp_path)
    assert source.splits["test"][-1] == Item(f"{WNIDS[-1]}/sketch_0.JPEG", 999)


@pytest.mark.parametrize("where", ["own classnames.txt", "classnames.txt", "val", "train"])
def test_imagenet_a_finds_its_classes_among_the_thousand(tmp_path: Path, where: str) -> None:
    import open_clip

    chosen = WNIDS[5::5]
    root = tmp_path / "imagenet-adversarial" / "imagenet-a"
    touch(root, [f"{w}/a.jpg" for w in chosen] + ["README.txt"])
    table = "".join(f"{w} name of {w}\n" for w in reversed(WNIDS))
    if where == "own classnames.txt":
        (root.parent / "classnames.txt").write_text(table)
    elif where == "classnames.txt":
        (tmp_path / "imagenet").mkdir()
        (tmp_path / "imagenet" / "classnames.txt").write_text(table)
    else:
        touch(tmp_path / "imagenet" / "images" / where, [f"{w}/x.JPEG" for w in WNIDS])
    manifest = replace(load_manifest("imagenet_a"), n_classes=len(chosen))
    source = resolve(manifest, tmp_path)
    assert source.class_ids == tuple(range(5, 1000, 5))
    assert source.classnames == tuple(open_clip.IMAGENET_CLASSNAMES[i] for i in range(5, 1000, 5))
    assert source.splits["test"] == tuple(Item(f"{w}/a.jpg", i) for i, w in enumerate(chosen))


def test_imagenet_a_without_a_table_of_classes_says_what_is_needed(tmp_path: Path) -> None:
    touch(tmp_path / "imagenet-adversarial" / "imagenet-a", [f"{w}/a.jpg" for w in WNIDS[:200]])
    manifest = load_manifest("imagenet_a")
    with pytest.raises(UserError, match=r"put CoOp's classnames.txt into .*imagenet-adversarial"):
        resolve(manifest, tmp_path)
    (tmp_path / "imagenet-adversarial" / "classnames.txt").write_text(f"{WNIDS[0]} tench\n")
    with pytest.raises(UserError, match=r"classnames.txt must have 1000 lines .*, got 1"):
        resolve(manifest, tmp_path)


def test_a_folder_that_is_no_imagenet_class_is_named(tmp_path: Path) -> None:
    home = tmp_path / "imagenet-adversarial"
    touch(home / "imagenet-a", [f"{w}/a.jpg" for w in [*WNIDS[:199], "n00000001"]])
    (home / "classnames.txt").write_text("".join(f"{w} x\n" for w in WNIDS))
    with pytest.raises(UserError, match="no ImageNet class: n00000001"):
        resolve(load_manifest("imagenet_a"), tmp_path)


def test_real_class_names_file_gives_the_order_of_imagenet(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "splits" / "imagenet_classnames.txt").read_text().splitlines()
    names = dict(line.split(" ", 1) for line in lines)
    chosen = sorted(names)[::5]
    home = tmp_path / "imagenet-rendition"
    touch(home / "imagenet-r", [f"{w}/a.jpg" for w in chosen])
    (home / "classnames.txt").write_text("\n".join(lines))
    source = resolve(load_manifest("imagenet_r"), tmp_path)
    assert source.classnames == tuple(names[w] for w in chosen)
