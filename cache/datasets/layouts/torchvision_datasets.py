"""Datasets as torchvision lays them out, and downloads them.

Used where CoOp's split file is not at hand: torchvision's official split where it has one, else
our own stratified one. Neither is CoOp's, so few-shot numbers do not compare with published ones.
Paths come out relative to the same folder as in CoOp's split, and class names in CoOp's spelling.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.datasets.listing import SPLIT_RULE, Item, Listing, split_items
from cache.datasets.manifest_file import Manifest
from cache.errors import UserError


@dataclass(frozen=True)
class _Place:
    """Where torchvision keeps a dataset below the data root.

    Attributes:
        marker: A file or folder that is there when the dataset is.
        images: What paths are relative to.
        splits: Our splits in torchvision's words; empty where it has none.
        root: What its class takes for a root.
    """

    marker: str
    images: str
    splits: dict[str, str] = field(default_factory=dict)
    root: str = ""


_THREE = {"train": "train", "val": "val", "test": "test"}
_TWO = {"train": "train", "test": "test"}
PLACES = {
    "Caltech101": _Place("caltech101/101_ObjectCategories", "caltech101/101_ObjectCategories"),
    "DTD": _Place("dtd/dtd/labels/train1.txt", "dtd/dtd/images", _THREE),
    "EuroSAT": _Place("eurosat/2750", "eurosat/2750"),
    "FGVCAircraft": _Place(
        "fgvc-aircraft-2013b/data/variants.txt", "fgvc-aircraft-2013b/data/images", _THREE
    ),
    "Flowers102": _Place("flowers-102/setid.mat", "flowers-102/jpg", _THREE),
    "Food101": _Place("food-101/meta/train.json", "food-101/images", _TWO),
    "OxfordIIITPet": _Place(
        "oxford-iiit-pet/annotations/trainval.txt",
        "oxford-iiit-pet/images",
        {"train": "trainval", "test": "test"},
    ),
    "StanfordCars": _Place("stanford_cars/devkit/cars_train_annos.mat", "stanford_cars", _TWO),
    "SUN397": _Place("sun397/SUN397/ClassName.txt", "sun397/SUN397", root="sun397"),
}


def place(manifest: Manifest) -> _Place | None:
    """Where torchvision would keep this dataset; None where it does not have it."""
    return PLACES[manifest.torchvision] if manifest.torchvision else None


def read(manifest: Manifest, data_root: Path, *, download: bool) -> Listing:
    """The listing of torchvision's copy below the data root.

    Raises:
        UserError: It cannot be downloaded, or what is on disk is incomplete.
    """
    from torchvision import datasets  # takes seconds to import

    name = manifest.torchvision
    place = PLACES[name]
    root = data_root / place.images
    reader = getattr(datasets, name)
    try:
        parts = {
            split: reader(data_root / place.root, split=theirs, download=download)
            for split, theirs in place.splits.items()
        } or {"all": reader(data_root / place.root, download=download)}
    except (OSError, RuntimeError, ValueError) as error:
        verb = "download" if download else "read"
        raise UserError(
            f"torchvision cannot {verb} {name} at {data_root}: {error}; see: fewshot datasets "
            f"{manifest.name}"
        ) from error
    raw = _classnames(name, next(iter(parts.values())))
    kept = [label for label, classname in enumerate(raw) if classname not in manifest.drop]
    ids = {label: rank for rank, label in enumerate(kept)}
    splits: dict[str, Sequence[Item]] = {
        split: tuple(
            Item(Path(path).relative_to(root).as_posix(), ids[int(label)])
            for path, label in _rows(name, part)
            if int(label) in ids
        )
        for split, part in parts.items()
    }
    origin = f"torchvision's official split of {name}"
    if not place.splits:
        ordered = sorted(splits["all"], key=lambda item: (item.label, item.path))
        splits, origin = split_items(ordered), f"torchvision's {name}, {SPLIT_RULE}"
    classnames = tuple(manifest.called(raw[label]) for label in kept)
    return Listing(root, classnames, splits, origin, drawn=not place.splits)


def _rows(name: str, dataset: Any) -> Iterable[tuple[Any, int]]:
    """Path and label of every image, from the attributes in which torchvision keeps them."""
    match name:
        case "EuroSAT":
            return list(dataset.samples)
        case "StanfordCars":
            return list(dataset._samples)
        case "OxfordIIITPet":
            return zip(dataset._images, dataset._labels, strict=True)
        case "Caltech101":
            folder = Path(dataset.root, "101_ObjectCategories")
            return [
                (folder / dataset.categories[label] / f"image_{number:04d}.jpg", label)
                for label, number in zip(dataset.y, dataset.index, strict=True)
            ]
        case _:
            return zip(dataset._image_files, dataset._labels, strict=True)


def _classnames(name: str, dataset: Any) -> list[str]:
    """Class names by torchvision's ids, as CoOp spells them."""
    match name:
        case "Caltech101":
            return list(dataset.categories)
        case "OxfordIIITPet":
            return [breed.lower().replace(" ", "_") for breed in dataset.classes]
        case "StanfordCars":  # year first
            return [
                " ".join([*words[-1:], *words[:-1]]) for words in map(str.split, dataset.classes)
            ]
        case "SUN397":  # the specific part first: "apartment_building/outdoor" is an outdoor one
            return [" ".join(reversed(scene.split("/"))) for scene in dataset.classes]
        case _:
            return list(dataset.classes)
