"""The feature store: all that a frozen CLIP made of one dataset, in one HDF5 file or in parts.

`cache.arrays.store_format` lists its arrays.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.arrays.contents import Contents
from cache.arrays.hdf5 import Place, attributes, places, root, stamp, within
from cache.arrays.image_tower import ImageTower
from cache.arrays.parted_contents import with_parts
from cache.arrays.parts import LISTING
from cache.arrays.store_format import (
    ATTRIBUTES,
    FORMAT,
    SCHEMA,
    form_problems,
    has_label_sets,
    id_problems,
    identity_problems,
    splits_of,
    text_sets_of,
)
from cache.class_text import ClassText
from cache.datasets.addresses import address_of
from cache.errors import UserError, printable
from cache.files.stamp import Stamp
from cache.identity import differences, fingerprint, plain
from cache.images.skipped import Skipped
from cache.split import Split

SHOWN = 3  # of many problems, how many are named


@dataclass(frozen=True)
class FeatureStore:
    """One store, open for reading; holds no file handle, so it pickles and forks.

    Attributes:
        contents: The file's arrays.
        identity: What made the features, as nested mappings: dataset, model, preprocessing, ...
        fingerprint: The identity's 64 hex digits.
        versions: The libraries that wrote the file, and digests of the images' bytes; no part of
            the identity.
        imported: True where the features were computed elsewhere.
        classnames: C names by class id; names may repeat.
        skipped: Images left out because they could not be read.
        splits: Those of train, val and test that are present.
        text_sets: The prompt sets that were encoded, possibly none.
        dim: D, the width of features and text alike.
    """

    contents: Contents = field(repr=False)
    identity: dict[str, Any] = field(repr=False)
    fingerprint: str
    versions: dict[str, str] = field(repr=False)
    imported: bool
    classnames: tuple[str, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(repr=False)
    splits: tuple[str, ...]
    text_sets: tuple[str, ...]
    dim: int

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The store at a path or a URL that fsspec knows, its header read and checked.

        Raises:
            UserError: Nothing there, no HDF5, another program's file, cut short, unfinished,
                damaged, or written by a newer version.
        """
        address = address_of(path)
        found = stamp(address)

        def located(file: Any) -> tuple[dict[str, Any], dict[str, Place]]:
            said = attributes(root(file))
            _check_attributes(address, said)
            return said, places(file, found.size)

        said, here = within(address, located)
        contents = Contents(address, found, here)
        if LISTING in contents:
            contents = with_parts(contents)
        _refuse(address, form_problems(contents.places))
        identity = contents.json("identity")
        if np.bytes_(fingerprint(identity)) != said["fingerprint"]:
            _refuse(address, ["the identity is not the one that the fingerprint was made of"])
        try:
            skipped = tuple(map(Skipped.parse, contents.strings("skipped")))
        except ValueError as error:
            raise contents.damaged("skipped") from error
        missing = Counter(image.split for image in skipped)
        _refuse(address, identity_problems(identity, contents.places, missing))
        store = cls(
            contents=contents,
            identity=identity,
            fingerprint=fingerprint(identity),
            versions=contents.json("versions"),
            imported=bool(said["imported"]),
            classnames=tuple(contents.strings("classnames")),
            skipped=skipped,
            splits=splits_of(contents.places),
            text_sets=text_sets_of(contents.places),
            dim=contents.places[f"{splits_of(contents.places)[0]}/features"].shape[1],
        )
        _refuse(address, id_problems(contents, store.n_classes))
        return store

    @classmethod
    def of(cls, store: "FeatureStore | Path | str") -> "FeatureStore":
        """The store itself, or the one at a path."""
        return store if isinstance(store, FeatureStore) else cls.open(store)

    def reopened(self) -> "FeatureStore":
        """The store that is at the path now."""
        return FeatureStore.open(self.contents.address)

    @property
    def path(self) -> Path:
        """The HDF5 file, which lists the others where there are parts."""
        return Path(self.contents.address)

    @property
    def stamp(self) -> Stamp:
        """Size and time of the file when it was opened; a file replaced since is refused."""
        return self.contents.stamp

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.identity["dataset"]["name"])

    @property
    def model(self) -> str:
        """The model's canonical name, such as `ViT-B-16/openai`."""
        return str(self.identity["model"]["name"])

    @property
    def logit_scale(self) -> float:
        """CLIP's inverse temperature; 100 for the published models."""
        return float(self.identity["model"]["logit_scale"])

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """From an image to the model's input; empty where nobody knows, as of imported features."""
        known = self.identity.get("preprocessing")
        return known if isinstance(known, Mapping) else {}

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.classnames)

    @property
    def multi_label(self) -> bool:
        """True if an image may have several labels."""
        return has_label_sets(self.contents.places)

    @property
    def attributes(self) -> NDArray[np.float32] | None:
        """(C, A) attributes that people gave the classes, or None."""
        return self.contents.array("attributes") if "attributes" in self.contents else None

    def split(self, name: str) -> Split:
        """The split of that name, which keeps what is read of it: hold on to it.

        Raises:
            UserError: The store has no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.contents.address} has no {name} split, only {', '.join(self.splits)}; "
                "choose a protocol that needs no other"
            )
        only = self.identity.get("support_only") or {}
        words = ["fewshot", "extract", "--dataset", self.dataset, "--model", self.model]
        return Split(
            self.contents,
            name,
            ", ".join(f"{key} {value}" for key, value in only.items()),
            f"{shlex.join(words)} --if-exists overwrite",
        )

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) class ids of every image of the split, those not encoded included."""
        return self.split(split).labels

    def paths(self, split: str) -> list[str]:
        """N paths, relative to the dataset's root, POSIX."""
        return self.split(split).paths

    def features(
        self, split: str, rows: ArrayLike | None = None, *, unit: bool = True
    ) -> NDArray[np.float32]:
        """(n, D) features of rows of the split, as `Split.features` has them."""
        return self.split(split).features(rows, unit=unit)

    @property
    def image_tower(self) -> ImageTower | None:
        """The layers that made features of `Split.pooled`; None where the store has none."""
        return ImageTower.of(self.contents)

    def text(self, recipe: str = "unit-mean", prompt_set: str | None = None) -> NDArray[np.float32]:
        """(C, D) text features, one row per class: the `features` of `class_text`."""
        return self.class_text(recipe, prompt_set).features

    def class_text(self, recipe: str = "unit-mean", prompt_set: str | None = None) -> ClassText:
        """The text of the classes.

        Args:
            recipe: `unit-mean` or `raw-mean`; see `recipes.class_text`.
            prompt_set: One of `text_sets`. Without it `templates`, else the only set; and for
                `raw-mean` first `templates-raw`, the prompts that spell class names as they are,
                underscores and all, which a store has where that makes a difference.

        Raises:
            UserError: No such recipe or set, no text at all, or several sets and none named.
        """
        return ClassText.of(self.contents, recipe, prompt_set)

    def require(self, identity: Mapping[str, Any]) -> None:
        """Raise UserError unless the store has this identity.

        Raises:
            UserError: It was not; names every dotted key that differs, with both values.
        """
        differing = differences(self.identity, plain(identity))
        if differing:
            raise UserError(
                f"{self.contents.address} was made otherwise: {'; '.join(differing)}; "
                "replace it with --if-exists overwrite, or give another --store"
            )


def _check_attributes(address: str, said: Mapping[str, Any]) -> None:
    if said.get("format") != np.bytes_(FORMAT):
        raise UserError(f"{address} is an HDF5 file that fewshot did not write; name another")
    schema = said.get("schema")
    if not isinstance(schema, np.integer) or schema < 1:
        _refuse(address, [f"its schema is {schema}"])
    elif schema > SCHEMA:
        raise UserError(
            f"{address} has schema {schema} and this version reads up to {SCHEMA}; "
            "install a newer fewshot, or extract again"
        )
    if not said.get("complete", False):
        raise UserError(f"{address} was never finished; delete it and extract again")
    if said.keys() != ATTRIBUTES:
        _refuse(address, [f"its attributes are {', '.join(said)}"])


def _refuse(address: str, problems: Iterable[str]) -> None:
    """Raise UserError if there are any problems."""
    found = list(problems)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{address} is damaged: {printable('; '.join(found[:SHOWN]))}{more}; "
            "delete it and make it again"
        )
