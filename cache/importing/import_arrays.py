"""The arrays of a file of features from elsewhere: which is which, and if they can be right."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.arrays.store_format import SPLITS
from cache.datasets.listing import stratified_split
from cache.errors import UserError, count, printable, unknown
from cache.importing.import_files import Arrays
from cache.importing.import_labels import labels_of
from cache.importing.imported import Imported, ImportedSplit, ImportedText
from cache.prompts import filled

# What each array is called in the wild: ours and its short form, Tip-Adapter's, CLIP_benchmark's.
NAMES = {
    "train_features": r"train_(features|x|f)|features_train|keys_\d+shots",
    "train_labels": r"train_(labels|y|l)|targets_train|values_\d+shots",
    "val_features": r"val_(features|x|f)|features_val",
    "val_labels": r"val_(labels|y|l)|targets_val",
    "test_features": r"test_(features|x|f)|features_test",
    "test_labels": r"test_(labels|y|l)|targets_test",
    "train_paths": r"train_paths",
    "val_paths": r"val_paths",
    "test_paths": r"test_paths",
    "features": r"features|x",
    "labels": r"labels|targets|y",
    "paths": r"paths",
    "text_features": r"text(_features|_weights\w*)?",
    "attributes": r"att(ributes)?",
    "prompts": r"prompts",
    "classnames": r"class_?names",
}


def recognize(found: Arrays, arrays: Mapping[str, str]) -> Imported:
    """The arrays of a file, each in its place, checked against one another.

    Args:
        found: The file.
        arrays: Names of arrays that go by other ones: {"train_features": "train16_x"}.

    Raises:
        UserError: An array is missing, has several candidates or the wrong shape, a feature
            is NaN, infinite or zero, or the counts of classes do not agree.
    """
    names = _names(found, arrays)
    splits = _one_label_each(_splits(found, names))
    text = found.read(names["text_features"]) if "text_features" in names else None
    if text is not None and (
        text.ndim not in (2, 3) or text.dtype.kind not in "fiu" or not text.size
    ):
        raise UserError(
            "text_features must be (C, D), or (T, C, D) for T templates, and numbers; "
            f"{names['text_features']} is {text.shape} {text.dtype}"
        )
    if "classnames" in names:
        classnames = tuple(_texts(found, names["classnames"], "class names"))
    else:
        n_classes = _n_classes(splits) if text is None else text.shape[-2]
        classnames = tuple(f"class {label}" for label in range(n_classes))
        if text is not None:
            _require_row_each(names["text_features"], text, splits)
    if len(classnames) < 2:
        raise UserError("there is only one class, and nothing to tell apart; give two or more")
    _require_as_wide(splits, len(classnames))
    if text is not None and text.shape[-2] != len(classnames):
        raise UserError(
            "text_features must be (C, D) or (T, C, D), for "
            f"{count(len(classnames), 'class name')}; {names['text_features']} is {text.shape}"
        )
    attributes = found.read(names["attributes"]) if "attributes" in names else None
    if attributes is not None:
        _require_attributes(names["attributes"], attributes, len(classnames))
    templates = _texts(found, names["prompts"], "prompts") if "prompts" in names else []
    return Imported(
        names=names,
        splits=splits,
        text=None if text is None else _text(text, classnames, templates),
        attributes=attributes,
        classnames=classnames,
        stratified="features" in names,
    )


def _names(found: Arrays, arrays: Mapping[str, str]) -> dict[str, str]:
    """The file's name of each array that is there, those asked for first."""
    for target, name in arrays.items():
        if target not in NAMES:
            raise unknown("array", target, NAMES)
        if name not in found.names:
            raise unknown("array in the file", name, found.names)
    names = dict(arrays)
    for target, pattern in NAMES.items():
        # An array named for one purpose is not taken for another: val for test is no val as well.
        fitting = [
            name
            for name in found.names
            if re.fullmatch(pattern, name) and name not in arrays.values()
        ]
        if target in names or not fitting:
            continue
        if len(fitting) > 1:
            raise UserError(
                f"several arrays could be {target}: {printable(', '.join(fitting))}; "
                f"choose with --array {target}=NAME"
            )
        names[target] = fitting[0]
    others = sorted(set(found.names) - set(names.values()))
    if not {"train_features", "features"} & names.keys() and others:
        raise UserError(
            f"no train_features, and arrays of unknown purpose: {printable(', '.join(others))}; "
            "say which is which, such as --array train_features=NAME --array train_labels=NAME"
        )
    return names


def _splits(found: Arrays, names: Mapping[str, str]) -> dict[str, ImportedSplit]:
    given = [s for s in SPLITS if {f"{s}_features", f"{s}_labels"} & names.keys()]
    if given and "features" in names:
        raise UserError(
            f"there are {given[0]} features, and {names['features']}, which may be any; say what "
            f"it is, such as --array train_features={names['features']}"
        )
    if given:
        return {split: _split(found, names, f"{split}_") for split in given}
    whole = _split(found, names, "")
    return {
        split: whole.at(rows) for split, rows in stratified_split(whole.labels.tolist()).items()
    }


def _one_label_each(splits: dict[str, ImportedSplit]) -> dict[str, ImportedSplit]:
    """The splits, without label sets where no image has two labels: such are one-hot ids."""
    sets = [one.label_sets for one in splits.values() if one.label_sets is not None]
    if any((one.sum(axis=1) > 1).any() for one in sets):
        return splits
    return {split: replace(one, label_sets=None) for split, one in splits.items()}


def _split(found: Arrays, names: Mapping[str, str], prefix: str) -> ImportedSplit:
    for target in (f"{prefix}features", f"{prefix}labels"):
        if target not in names:
            raise UserError(
                f"no array for {target} among {printable(', '.join(found.names)) or 'none'}; "
                f"say which it is with --array {target}=NAME"
            )
    name = names[f"{prefix}features"]
    features = _features(name, found.read(name))
    labels, label_sets = labels_of(names[f"{prefix}labels"], found.read(names[f"{prefix}labels"]))
    if len(features) != len(labels):
        raise UserError(
            f"{prefix}features has {count(len(features), 'row')} and {prefix}labels {len(labels)}; "
            "each row needs one label"
        )
    if f"{prefix}paths" in names:
        paths = _texts(found, names[f"{prefix}paths"], "paths")
    else:
        paths = [f"{name}[{row}]" for row in range(len(labels))]
    return ImportedSplit(features, labels, paths, label_sets)


def _texts(found: Arrays, name: str, what: str) -> list[str]:
    """An array of texts, or of numbers that are names."""
    array = found.read(name)
    try:
        if array.ndim == 1 and array.dtype.kind in "iuU":
            return list(map(str, array.tolist()))
    except ValueError:  # characters beyond Unicode
        pass
    raise UserError(f"{what} must be a list of texts; {name} is {array.dtype} {array.shape}")


def _n_classes(splits: Mapping[str, ImportedSplit]) -> int:
    """C, where nothing but the labels says it."""
    sets = [split.label_sets for split in splits.values() if split.label_sets is not None]
    if sets:
        return max(int(one.shape[1]) for one in sets)
    n_labels = 1 + max(int(split.labels.max()) for split in splits.values())
    n_images = sum(len(split.labels) for split in splits.values())
    if n_labels > n_images:
        raise UserError(
            f"labels of {count(n_images, 'image')} go up to {n_labels - 1:,}; number the "
            "classes from 0 on without gaps, or add an array classnames"
        )
    return n_labels


def _require_row_each(name: str, text: NDArray[Any], splits: Mapping[str, ImportedSplit]) -> None:
    """Refuse text of fewer classes than the labels have, where it alone says how many there are."""
    highest = max(
        int(one.labels.max()) if one.label_sets is None else one.label_sets.shape[1] - 1
        for one in splits.values()
    )
    if highest >= text.shape[-2]:
        raise UserError(
            f"text_features must have a row for each class, and labels go up to {highest}; {name} "
            f"is {text.shape}; give {highest + 1} rows"
        )


def _features(name: str, features: NDArray[Any]) -> NDArray[Any]:
    if features.ndim != 2 or features.dtype.kind not in "fiu" or 0 in features.shape:
        raise UserError(
            f"features must be (N, D) numbers; {name} is {features.dtype} {features.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(features).all(axis=1) & features.any(axis=1)))
    if bad.size:
        raise UserError(
            f"features must be finite and not zero; {bad.size} of {len(features)} rows of {name} "
            f"are not, the first is row {bad[0]}; drop them, or compute them again"
        )
    return features


def _require_as_wide(splits: Mapping[str, ImportedSplit], n_classes: int) -> None:
    """Refuse labels of several classes in one split and not another, or of other classes."""
    widths = {
        split: None if one.label_sets is None else one.label_sets.shape[1]
        for split, one in splits.items()
    }
    wrong = [split for split, width in widths.items() if width != n_classes]
    if wrong and any(widths.values()):
        raise UserError(
            f"labels of several classes must be (N, {n_classes}) in every split, a column for each "
            f"class; those of {wrong[0]} are not"
        )


def _require_attributes(name: str, attributes: NDArray[Any], n_classes: int) -> None:
    numbers = attributes.dtype.kind in "fiu" and attributes.ndim == 2
    if not numbers or len(attributes) != n_classes or not np.isfinite(attributes).all():
        raise UserError(
            "attributes must be (C, A) finite numbers, for "
            f"{count(n_classes, 'class', 'classes')}; {name} is {attributes.dtype} "
            f"{attributes.shape}; leave them out, or give one row per class"
        )


def _text(text: NDArray[Any], classnames: tuple[str, ...], templates: list[str]) -> ImportedText:
    """One prompt per template and class, template by template."""
    embeddings = text.reshape(-1, text.shape[-1])
    n_templates = len(embeddings) // len(classnames)
    if len(templates) != n_templates:  # the list belongs to other text, or there is none
        templates = [f"(template {i})" for i in range(n_templates)]
    return ImportedText(
        embeddings,
        np.tile(np.arange(len(classnames)), n_templates),
        [p for t in templates for p in filled(_with_place(t), classnames, raw_names=True)],
    )


def _with_place(template: str) -> str:
    """The template with {} at its end if it says nowhere where the name goes."""
    return template if "{}" in template else f"{template.rstrip()} {{}}"
