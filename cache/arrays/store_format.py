"""The form of a store: which arrays it has, nothing more and nothing less, and how they fit.

    identity, versions                 JSON: what made the features, and with which libraries
    classnames, skipped                names by class id; the unreadable images left out
    attributes                         (C, A) float32, attributes that people gave the classes
    <split>/labels, <split>/paths      (N,) every image of train, val or test, in published order
    <split>/label_sets                 (N, C) 1 for each class of an image; only where it may have
                                       several, of which `labels` has the rarest
    <split>/features, <split>/norms    (N, D) float16, unit norm; (N,) float32, the norms before
    <split>/rows                       (n,) the images encoded, where not all N were
    <split>/views, view_norms          (V, m, D), (V, m): augmented views of the images in view_rows
    <split>/pooled, pooled_views       the same before the image tower's last layers, with norms,
    image_scale, _shift, _projection   and those layers; only where `--pre-projection` asked for it
    text/<prompt set>/                 embeddings (P, D) float32, unit norm; norms, labels, prompts
    text/<prompt set>/pooled           (P, W) float32, the same before the text tower's projection,
    text_projection                    (W, D) float32; neither where a tower does not end in one

Unit features in float16 are off by 6e-5 at most, and their norms by 5e-4: reading makes them
float32 of unit norm again. Every matrix lies in one piece and uncompressed, so that a few rows of
it can be read and nothing else.

C classes of A attributes, D, W and w the widths of features, of the text tower and of the image
tower; of a split N images, n of them encoded, m with V views; P prompts. `S` is text of one width
per array.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from cache.arrays.contents import CHECKED, Contents
from cache.arrays.hdf5 import Place
from cache.errors import count

FORMAT = "fewshot feature store"
SCHEMA = 5  # the newest; see `schema_of`
ATTRIBUTES = {"format", "schema", "fingerprint", "imported", "complete"}
SPLITS = ("train", "val", "test")

Form = dict[str, tuple[str, str]]  # name -> type and axes
STORE: Form = {"identity": ("S", ""), "versions": ("S", "")}
NAMES: Form = {"classnames": ("S", "C"), "skipped": ("S", "s")}
SPLIT: Form = {"labels": ("<i8", "N"), "paths": ("S", "N")}
LABEL_SETS: Form = {"label_sets": ("|u1", "NC")}
ALL: Form = {"features": ("<f2", "ND"), "norms": ("<f4", "N")}
SOME: Form = {"rows": ("<i8", "n"), "features": ("<f2", "nD"), "norms": ("<f4", "n")}
VIEWS: Form = {"view_rows": ("<i8", "m"), "views": ("<f2", "VmD"), "view_norms": ("<f4", "Vm")}
TEXT: Form = {
    "labels": ("<i8", "P"),
    "embeddings": ("<f4", "PD"),
    "norms": ("<f4", "P"),
    "prompts": ("S", "P"),
}
POOLED: Form = {"pooled": ("<f4", "PW")}
IMAGE_POOLED: Form = {"pooled": ("<f2", "nw"), "pooled_norms": ("<f4", "n")}
POOLED_VIEWS: Form = {"pooled_views": ("<f2", "Vmw"), "pooled_view_norms": ("<f4", "Vm")}
IMAGE_TOWER: Form = {
    "image_scale": ("<f4", "w"),
    "image_shift": ("<f4", "w"),
    "image_projection": ("<f4", "wD"),
}
PROJECTION: Form = {"text_projection": ("<f4", "WD")}
DESCRIBED: Form = {"attributes": ("<f4", "CA")}
IMAGE_MATRICES = {"features", "norms", "views", "view_norms", *IMAGE_POOLED, *POOLED_VIEWS}


def is_unlabeled(identity: Mapping[str, Any]) -> bool:
    """True if the train images of a store of this identity have no labels, but -1."""
    return identity.get("dataset", {}).get("unlabeled") is True


def splits_of(places: Mapping[str, Place]) -> tuple[str, ...]:
    """Names of the splits that there are, of train, val and test."""
    groups = {name.partition("/")[0] for name in places}
    return tuple(split for split in SPLITS if split in groups)


def text_sets_of(places: Mapping[str, Place]) -> tuple[str, ...]:
    """The prompt sets that there are, sorted."""
    return tuple(sorted({n.split("/")[1] for n in places if n.startswith("text/")}))


def is_image_matrix(name: str) -> bool:
    """True if an array has a row or a number for each image: it is checked when it is read."""
    group, _, array = name.partition("/")
    return group in SPLITS and array in IMAGE_MATRICES


def has_label_sets(names: Collection[str]) -> bool:
    """True if there is anything of what images of several labels have."""
    return any(f"{split}/{name}" in names for split in SPLITS for name in LABEL_SETS)


def schema_of(names: Collection[str], identity: Mapping[str, Any]) -> int:
    """The earliest schema of a store with these arrays.

    It is 5 in parts, 4 without labels, 3 with label sets, 2 with attributes.
    """
    if "parts" in names:
        return 5
    if is_unlabeled(identity):
        return 4
    return 3 if has_label_sets(names) else 2 if "attributes" in names else 1


def has_pooled_images(places: Mapping[str, Place]) -> bool:
    """True if there is anything of what is before the image tower's last layers."""
    known = {f"{split}/{name}" for split in SPLITS for name in (*IMAGE_POOLED, *POOLED_VIEWS)}
    return any(name in known or name in IMAGE_TOWER for name in places)


def form_problems(places: Mapping[str, Place]) -> Iterator[str]:
    """Arrays that are missing or too many, and types and shapes that do not fit, one line each."""
    if not splits_of(places):
        yield "there is no split"
    expected: dict[str, tuple[str, str]] = {}
    for prefix, form in _forms(places):
        expected |= {f"{prefix}{name}": kind for name, kind in form.items()}
    yield from (f"/{name} is missing" for name in sorted(expected.keys() - places.keys()))
    yield from (
        f"/{name} is no part of a store" for name in sorted(places.keys() - expected.keys())
    )
    sizes: dict[str, int] = {}
    for name, (kind, axes) in expected.items():
        if name in places:
            yield from _misfit(name, places[name], kind, axes, sizes)


def _forms(places: Mapping[str, Place]) -> Iterator[tuple[str, Form]]:
    """The arrays that belong under each prefix, optional arrays where there is one of them."""
    yield "", STORE | NAMES | (DESCRIBED if "attributes" in places else {})
    pooled, several = has_pooled_images(places), has_label_sets(places)
    if pooled:
        yield "", IMAGE_TOWER
    for split in splits_of(places):
        few = f"{split}/rows" in places
        yield f"{split}/", SPLIT | (SOME if few else ALL) | (LABEL_SETS if several else {})
        if pooled:
            yield f"{split}/", IMAGE_POOLED if few else _of_all(IMAGE_POOLED)
        if any(f"{split}/{name}" in places for name in VIEWS):
            yield f"{split}/", VIEWS | (POOLED_VIEWS if pooled else {})
    tower = "text_projection" in places or any(
        name.startswith("text/") and name.endswith("/pooled") for name in places
    )
    if tower:
        yield "", PROJECTION
    for name in text_sets_of(places):
        yield f"text/{name}/", TEXT | (POOLED if tower else {})


def _of_all(form: Form) -> Form:
    """The form where all N images are encoded."""
    return {name: (kind, axes.replace("n", "N")) for name, (kind, axes) in form.items()}


def _misfit(name: str, place: Place, kind: str, axes: str, sizes: dict[str, int]) -> Iterator[str]:
    """The array's type and shape against its form; `sizes` learns the axes met first."""
    if not (place.dtype == kind or (kind == "S" and place.dtype.startswith("|S"))):
        yield f"/{name}: type {place.dtype}, should be {kind}"
    group = name.rpartition("/")[0]
    keys = [axis if axis in "CDWw" else f"{group} {axis}" for axis in axes]
    if len(place.shape) == len(axes):
        for key, size in zip(keys, place.shape, strict=True):
            sizes.setdefault(key, size)
    wanted = tuple(sizes.get(key, axis) for key, axis in zip(keys, axes, strict=True))
    if place.shape != wanted:
        yield f"/{name}: shape {place.shape}, should be {wanted}"
    elif 0 in place.shape and name != "skipped":
        yield f"/{name}: shape {place.shape}, which is empty"


def identity_problems(
    identity: Mapping[str, Any], places: Mapping[str, Place], skipped: Mapping[str, int]
) -> Iterator[str]:
    """Where the arrays are not what the identity says they are, one line each.

    Args:
        identity: What made the features.
        places: The arrays.
        skipped: Split -> images left out of it.
    """
    splits = splits_of(places)
    sizes = {split: places[f"{split}/labels"].shape[0] + skipped.get(split, 0) for split in splits}
    views = [places[f"{s}/views"].shape[0] for s in splits if f"{s}/views" in places]
    found = {
        "model.dim": (places[f"{splits[0]}/features"].shape[1], identity["model"].get("dim")),
        "text": (list(text_sets_of(places)), sorted(identity.get("text") or ())),
        "dataset.sizes": (sizes, identity["dataset"].get("sizes")),
        "views.count": (max(views, default=0), (identity.get("views") or {}).get("count", 0)),
    }
    found["pre_projection"] = (has_pooled_images(places), identity.get("pre_projection", False))
    several = identity["dataset"].get("multi_label", False)
    found["dataset.multi_label"] = (has_label_sets(places), several)
    said = {"text": "text" in identity, "views.count": "views" in identity}
    for key, (there, expected) in found.items():
        if said.get(key, expected is not None) and there != expected:
            yield f"the identity says {key} {expected}; the file has {there}"
    if not identity.get("support_only"):
        for split in splits:
            if f"{split}/rows" in places:
                yield f"/{split}: not all images are encoded, and the identity does not say so"


def id_problems(contents: Contents, n_classes: int) -> Iterator[str]:
    """Labels that are no classes, and rows that are no rows, one line each.

    All but image features and long lists of paths is read for it, and so compared with its digest.

    Args:
        contents: The arrays, of the form of a store.
        n_classes: C.

    Raises:
        UserError: The bytes of an array are not the ones that were written.
    """
    read = {
        name: contents.array(name)
        for name, place in contents.places.items()
        if place.dtype == "<i8"
    }
    for name in contents.places.keys() - read.keys():
        long = name.endswith("/paths") and contents.places[name].nbytes > CHECKED
        if not is_image_matrix(name) and not long:  # what is long is compared when it is read
            contents.check(name)
    unlabeled = is_unlabeled(contents.json("identity"))
    for name, ids in read.items():
        split, _, kind = name.rpartition("/")
        if unlabeled and name == "train/labels":
            if (ids != -1).any():
                yield f"/{name}: {ids.min()}..{ids.max()}, for images without labels"
        elif kind == "labels" and not 0 <= ids.min() <= ids.max() < n_classes:
            yield f"/{name}: {ids.min()}..{ids.max()}, for {count(n_classes, 'class name')}"
        if kind != "labels":
            n_rows = contents.places[f"{split}/labels"].shape[0]
            if (np.diff(ids, prepend=-1) <= 0).any() or (ids >= n_rows).any():
                yield f"/{name}: not ascending within 0..{n_rows - 1}"
    for split in splits_of(contents.places) if has_label_sets(contents.places) else ():
        sets, own = contents.array(f"{split}/label_sets"), read[f"{split}/labels"]
        if (sets > 1).any() or not np.take_along_axis(sets, own[:, None], 1).all():
            yield f"/{split}/label_sets: not 0 and 1, with 1 for the image's class in labels"
    for name in text_sets_of(contents.places):
        unserved = np.setdiff1d(np.arange(n_classes), read[f"text/{name}/labels"])
        if unserved.size:
            yield (
                f"/text/{name}: {count(unserved.size, 'class has', 'classes have')} no prompt, the "
                f"first is {unserved[0]}"
            )
