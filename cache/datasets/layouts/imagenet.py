"""ImageNet and the test sets made for its classifiers: one folder per class.

Class ids are the ranks of ImageNet's 1000 sorted WordNet ids. Class names are open_clip's list,
which is OpenAI's; two names in it are used twice, so only ids tell classes apart.
"""

from pathlib import Path

from cache.datasets.image_search import find_images, folders
from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import Manifest
from cache.errors import UserError

N_CLASSES = 1000


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of ImageNet: train, and the 50,000 validation images as test.

    As in CoOp there is no val split: the images that would make one are the test set. Within a
    class, files are in the order of their names; the published few-shot lists do not fix one.
    """
    root = data_root / manifest.layout.directory / manifest.layout.images
    wnids, train = (folders(root / f) if (root / f).is_dir() else [] for f in ("val", "train"))
    if len(wnids) != N_CLASSES or train != wnids:
        raise UserError(
            f"{root} must have the same {N_CLASSES} class folders in train/ and val/, got "
            f"{len(train)} and {len(wnids)}; validation images must lie in a folder per class too"
        )
    ids = {wnid: label for label, wnid in enumerate(wnids)}
    return Listing(
        root,
        _names(),
        {"train": _items(root, "train/", ids), "test": _items(root, "val/", ids)},
        "official train and val folders; val is the test split and there is no val split",
        class_ids=tuple(range(N_CLASSES)),
    )


def read_variant(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of a test set in class folders, named by WordNet id or by number 0..999.

    Labels count from 0 within the test set, in the order of ImageNet's ids.
    """
    root = data_root / manifest.layout.directory / manifest.layout.images
    found = folders(root)
    if manifest.n_classes is not None and len(found) != manifest.n_classes:
        raise UserError(
            f"{root} must have {manifest.n_classes} class folders, got {len(found)}; unpack the "
            "archive again"
        )
    ids = _imagenet_ids(root, found, data_root, data_root / manifest.layout.directory)
    in_order = sorted(found, key=ids.__getitem__)
    names = _names()
    return Listing(
        root,
        tuple(names[ids[folder]] for folder in in_order),
        {"test": _items(root, "", {folder: label for label, folder in enumerate(in_order)})},
        "official class folders, test only",
        class_ids=tuple(ids[folder] for folder in in_order),
    )


def _items(root: Path, prefix: str, ids: dict[str, int]) -> tuple[Item, ...]:
    paths = find_images(root / prefix).paths
    inside = [(path, ids[path.partition("/")[0]]) for path in paths if "/" in path]
    items = [Item(prefix + path, label) for path, label in inside]
    return tuple(sorted(items, key=lambda item: item.label))


def _imagenet_ids(root: Path, found: list[str], data_root: Path, directory: Path) -> dict[str, int]:
    """ImageNet's class id of every folder."""
    if all(folder.isdecimal() for folder in found):
        ids = {folder: int(folder) for folder in found}
    else:
        wnids = found if len(found) == N_CLASSES else _wnids(data_root, directory)
        rank = {wnid: i for i, wnid in enumerate(wnids)}
        ids = {folder: rank.get(folder, N_CLASSES) for folder in found}
    wrong = [folder for folder, i in ids.items() if i >= N_CLASSES]
    if wrong:
        raise UserError(f"{root} has folders that are no ImageNet class: {', '.join(wrong[:5])}")
    return ids


def _wnids(data_root: Path, directory: Path) -> list[str]:
    """ImageNet's 1000 WordNet ids, sorted, from whatever on disk knows them."""
    imagenet = data_root / "imagenet"
    for file in (directory / "classnames.txt", imagenet / "classnames.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            wnids = sorted({line.split(maxsplit=1)[0] for line in lines if line.strip()})
            if len(wnids) != N_CLASSES:
                raise UserError(
                    f"{file} must have {N_CLASSES} lines '<wnid> <class name>', got {len(wnids)} "
                    "different ids"
                )
            return wnids
    for folder in (imagenet / "images" / "val", imagenet / "images" / "train"):
        if folder.is_dir() and len(wnids := folders(folder)) == N_CLASSES:
            return wnids
    raise UserError(
        f"which ImageNet classes the folders in {directory} are cannot be seen: put CoOp's "
        f"classnames.txt into {directory} or {imagenet}, or ImageNet's class folders into "
        f"{imagenet}/images/val"
    )


def _names() -> tuple[str, ...]:
    import open_clip  # takes seconds to import

    return tuple(open_clip.IMAGENET_CLASSNAMES)
