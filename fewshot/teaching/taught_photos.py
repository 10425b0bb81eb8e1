"""The photos of a folder, with their features and the model that made them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.datasets.image_search import describe_ignored, find_images
from cache.datasets.listing import Item
from cache.datasets.preflight import check_files
from cache.datasets.source import DEFAULT_TEMPLATES, Source
from cache.errors import UserError
from cache.files.names import name_of
from cache.images import decode
from cache.models.encoder import Encoder
from cache.prompts import prompt_sets
from cache.recipes import class_text
from cache.store import FeatureStore
from fewshot.automatic.encoding import Encoding, encode_labeled, encode_unlabeled

MINIMUM = 2


@dataclass(frozen=True, eq=False)
class TaughtPhotos:
    """U photos.

    Attributes:
        source: The folder, with all of its photos as the test split of one class.
        paths: Of those that could be read, relative to the folder.
        features: (U, D) of unit norm.
        how: The model, and where features are kept.
    """

    source: Source
    paths: tuple[str, ...]
    features: Tensor
    how: Encoding

    @property
    def encoder(self) -> Encoder:
        """The model."""
        return self.how.encoders[0]

    def text_of(self, name: str) -> Tensor | None:
        """(D,) the class's text, of unit norm; None where the model reads none."""
        if not self.encoder.reads_text:
            return None
        prompts = prompt_sets((name,), self.source.templates)["templates"]
        encoded = self.encoder.encode_text(list(prompts.prompts)).numpy()
        norms = np.linalg.norm(encoded, axis=1)
        labels = np.array(prompts.labels)
        text = class_text("unit-mean", encoded / norms[:, None], norms, labels)
        return torch.from_numpy(text[0])

    def encode(self, content: bytes) -> Tensor:
        """(D,) the feature of the photo in a file's content, of unit norm.

        Raises:
            OSError: It cannot be read.
        """
        source = self.source
        with decode.opened(content, exif=source.exif, max_pixels=source.max_pixels) as rgb:
            pixels = self.encoder.preprocess.center(rgb)
        return normalize(self.encoder.encode_images(pixels[None])[0], dim=0)

    def labeled(self, labels: Mapping[str, str]) -> FeatureStore:
        """The store of the photos that have a label, each class's text included.

        Args:
            labels: Path -> the class's name.

        Raises:
            UserError: Photos have changed or gone since they were encoded.
        """
        names = tuple(sorted(set(labels.values())))
        items = tuple(Item(path, names.index(label)) for path, label in sorted(labels.items()))
        source = replace(
            self.source,
            dataset=f"{self.source.dataset}-labeled",
            classnames=names,
            splits={"train": items},
            origin="labels given on the page of fewshot teach",
        )
        return encode_labeled(check_files(source), self.how)


def folder_of_photos(folder: Path, max_pixels: int) -> Source:
    """The photos below a folder, whatever folders they are in.

    Raises:
        UserError: No such folder, or fewer than `MINIMUM` photos in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give one that holds photos")
    found = find_images(folder)
    if len(found.paths) < MINIMUM:
        others = describe_ignored(found.ignored)
        raise UserError(
            f"{folder} holds {len(found.paths) or 'no'} photo{'' if len(found.paths) == 1 else 's'}"
            f"{f' ({others})' if others else ''}; give a folder with at least {MINIMUM}"
        )
    return Source(
        dataset=f"{name_of(folder)}-taught",
        root=folder.absolute(),
        classnames=("unlabeled",),
        splits={"test": tuple(Item(path, 0) for path in found.paths)},
        templates=DEFAULT_TEMPLATES,
        origin="a folder of photos",
        exif=True,
        max_pixels=max_pixels,
    )


def encoded_photos(source: Source, how: Encoding) -> TaughtPhotos:
    """The photos, each encoded unless its feature is kept already.

    Raises:
        UserError: None of them can be read.
    """
    store = encode_unlabeled(source, how)
    if store is None:
        raise UserError(f"no photo in {source.root} can be read; give other photos")
    split = store.split("test")
    features = torch.from_numpy(split.features(unit=True))
    return TaughtPhotos(source, tuple(store.paths("test")), features, how)
