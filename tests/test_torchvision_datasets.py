import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Item, Source
from cache.errors import UserError


def fill(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def found(name: str, data_root: Path, n_classes: int) -> Source:
    return resolve(replace(load_manifest(name), n_classes=n_classes), data_root)


def test_dtd_partition_one(tmp_path: Path) -> None:
    home = tmp_path / "dtd" / "dtd"
    fill(home, ["images/x", "labels/x"])
    for split, image in (("train", "b_1"), ("val", "b_2"), ("test", "b_3")):
        (home / "labels" / f"{split}1.txt").write_text(f"braided/{image}.jpg\nbanded/a.jpg\n")
    source = found("dtd", tmp_path, 2)
    assert source.classnames == ("banded", "braided")
    assert source.splits["train"] == (Item("braided/b_1.jpg", 1), Item("banded/a.jpg", 0))
    assert list(source.splits) == ["train", "val", "test"]
    assert source.root == home / "images"
    assert source.origin == "torchvision's official split of DTD"
    assert source.sizes == {}
    assert not source.exif


def test_another_split_than_coops_is_said_to_be_one(tmp_path: Path) -> None:
    fill(tmp_path, ["eurosat/2750/River/1.jpg", "eurosat/2750/SeaLake/1.jpg"])
    (note,) = found("eurosat", tmp_path, 2).notes
    assert f"no {tmp_path}/eurosat/split_zhou_EuroSAT.json" in note
    assert "train 13,500, val 5,400, test 8,100" in note


def test_coops_split_comes_first(tmp_path: Path) -> None:
    fill(tmp_path, ["eurosat/2750/River/1.jpg", "eurosat/2750/SeaLake/1.jpg"])
    rows = {"train": [["River/1.jpg", 0, "x"]], "val": [], "test": [["SeaLake/1.jpg", 1, "y"]]}
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    manifest = load_manifest("eurosat")
    layout = replace(manifest.layout, checksum="")
    source = resolve(replace(manifest, n_classes=2, layout=layout), tmp_path)
    assert source.origin == "split_zhou_EuroSAT.json"
    assert source.notes == ()


def test_eurosat_is_split_by_our_rule_under_coops_names(tmp_path: Path) -> None:
    classes = [
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
        "PermanentCrop", "Residential", "River", "SeaLake",
    ]  # fmt: skip
    fill(tmp_path / "eurosat" / "2750", [f"{c}/{c}_{n}.jpg" for c in classes for n in range(10)])
    source = resolve(load_manifest("eurosat"), tmp_path)
    assert source.origin == "torchvision's EuroSAT, stratified 50/20/30"
    assert {split: len(items) for split, items in source.splits.items()} == {
        "train": 50,
        "val": 20,
        "test": 30,
    }
    assert all(item.path.startswith(classes[item.label]) for item in source.splits["test"])
    assert source.classnames == (
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road",
        "Industrial Buildings", "Pasture Land", "Permanent Crop Land", "Residential Buildings",
        "River", "Sea or Lake",
    )  # fmt: skip


def test_pets_in_coops_spelling(tmp_path: Path) -> None:
    home = tmp_path / "oxford-iiit-pet"
    fill(home, ["images/x", "annotations/x"])
    (home / "annotations" / "trainval.txt").write_text(
        "great_pyrenees_7 2 2 1\nAbyssinian_100 1 1 1\n"
    )
    (home / "annotations" / "test.txt").write_text("Abyssinian_1 1 1 1\ngreat_pyrenees_1 2 2 1\n")
    source = found("oxford_pets", tmp_path, 2)
    assert source.classnames == ("abyssinian", "great_pyrenees")
    assert source.splits == {
        "train": (Item("great_pyrenees_7.jpg", 1), Item("Abyssinian_100.jpg", 0)),
        "test": (Item("Abyssinian_1.jpg", 0), Item("great_pyrenees_1.jpg", 1)),
    }


def test_food_lists(tmp_path: Path) -> None:
    home = tmp_path / "food-101"
    fill(home, ["images/x", "meta/x"])
    for split in ("train", "test"):
        rows = {"pad_thai": [f"pad_thai/{split}"], "apple_pie": [f"apple_pie/{split}"]}
        (home / "meta" / f"{split}.json").write_text(json.dumps(rows))
    source = found("food101", tmp_path, 2)
    assert source.classnames == ("apple_pie", "pad_thai")
    assert source.splits["train"] == (
        Item("pad_thai/train.jpg", 1),
        Item("apple_pie/train.jpg", 0),
    )


def test_aircraft_in_torchvisions_folder(tmp_path: Path) -> None:
    home = tmp_path / "fgvc-aircraft-2013b" / "data"
    home.mkdir(parents=True)
    (home / "variants.txt").write_text("707-320\nBoeing 717\n")
    for split in ("train", "val", "test"):
        (home / f"images_variant_{split}.txt").write_text("1 Boeing 717\n2 707-320\n")
    source = found("fgvc_aircraft", tmp_path, 2)
    assert source.classnames == ("707-320", "Boeing 717")
    assert source.splits["val"] == (Item("1.jpg", 1), Item("2.jpg", 0))


def test_cars_have_the_year_first(tmp_path: Path) -> None:
    from scipy.io import savemat

    home = tmp_path / "stanford_cars"
    fill(home, ["devkit/x", "cars_train/x", "cars_test/x"])
    names = np.array(["Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("fname", object), ("class", object)]
    rows = np.array([("00002.jpg", 2), ("00001.jpg", 1)], dtype=kind)
    savemat(home / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    savemat(home / "cars_test_annos_withlabels.mat", {"annotations": rows})
    source = found("stanford_cars", tmp_path, 2)
    assert source.classnames == ("2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan")
    assert source.splits["train"] == (
        Item("cars_train/00002.jpg", 1),
        Item("cars_train/00001.jpg", 0),
    )
    assert source.splits["test"][0] == Item("cars_test/00002.jpg", 1)


def test_sun_has_its_words_reversed(tmp_path: Path) -> None:
    home = tmp_path / "sun397" / "SUN397"
    scenes = ["a/abbey", "a/apartment_building/outdoor"]
    fill(home, [f"{scene}/sun_{n}.jpg" for scene in scenes for n in range(100)])
    (home / "ClassName.txt").write_text("".join(f"/{scene}\n" for scene in scenes))
    source = found("sun397", tmp_path, 2)
    assert source.classnames == ("abbey", "outdoor apartment_building")
    assert Counter(item.label for item in source.splits["train"]) == {0: 50, 1: 50}
    assert all(item.path.startswith(scenes[item.label]) for item in source.splits["train"])
    for items in source.splits.values():
        assert list(items) == sorted(items, key=lambda item: (item.label, item.path))


def test_caltech_leaves_out_the_easy_faces_and_renames_four(tmp_path: Path) -> None:
    classes = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "airplanes"]
    fill(
        tmp_path / "caltech101" / "101_ObjectCategories",
        [f"{c}/image_{n:04d}.jpg" for c in classes for n in range(1, 4)],
    )
    source = found("caltech101", tmp_path, 4)
    assert source.classnames == ("face", "leopard", "motorbike", "airplane")
    assert {item.path for items in source.splits.values() for item in items if not item.label} == {
        f"Faces/image_{n:04d}.jpg" for n in range(1, 4)
    }
    assert {item.path[:4] for items in source.splits.values() for item in items} == {
        "Face", "Leop", "Moto", "airp",
    }  # fmt: skip


def test_caltechs_names_agree_with_coops(shared: Path, tmp_path: Path) -> None:
    published = json.loads((shared / "splits" / "split_zhou_Caltech101.json").read_bytes())
    rows = [row for split in published.values() for row in split]
    names = {label: name for _, label, name in rows}
    classes = {path.split("/")[0] for path, _, _ in rows} | {"BACKGROUND_Google", "Faces_easy"}
    fill(
        tmp_path / "caltech101" / "101_ObjectCategories",
        [f"{c}/image_{n:04d}.jpg" for c in classes for n in (1, 2)],
    )
    source = resolve(load_manifest("caltech101"), tmp_path)
    assert source.classnames == tuple(names[label] for label in range(100))


def test_flowers_names_agree_with_coops(shared: Path) -> None:
    from torchvision.datasets import Flowers102

    published = json.loads((shared / "splits" / "split_zhou_OxfordFlowers.json").read_bytes())
    names = {label: name for split in published.values() for _, label, name in split}
    rename = load_manifest("oxford_flowers").rename
    ours = [rename.get(name, name) for name in Flowers102.classes]
    assert ours == [names[label] for label in range(102)]


def test_an_incomplete_copy_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["flowers-102/setid.mat"])
    with pytest.raises(UserError, match=r"torchvision cannot read Flowers102 at .*: Dataset not"):
        resolve(load_manifest("oxford_flowers"), tmp_path)


def test_a_download_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"torchvision cannot download StanfordCars at .*broken"):
        resolve(load_manifest("cars"), tmp_path, download=True)
    with pytest.raises(UserError, match=r"imagenet is not at .*; to get it: Register"):
        resolve(load_manifest("imagenet"), tmp_path, download=True)


def test_looking_for_a_dataset_makes_no_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="caltech101 is not at"):
        resolve(load_manifest("caltech101"), tmp_path)
    assert list(tmp_path.iterdir()) == []
