"""Writing a feature store: whole or not at all, and the same bytes for the same content."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.arrays.hdf5 import write_strings
from cache.arrays.image_matrices import ImageMatrices, unit_and_norms, usable
from cache.arrays.image_tower import ImageTower
from cache.arrays.parts import StorePart, listing_json
from cache.arrays.store_file import new_file
from cache.arrays.store_format import FORMAT, SPLITS, is_unlabeled, schema_of
from cache.errors import UserError, count
from cache.files.disk import DiskFile
from cache.files.json_text import canonical_json
from cache.identity import fingerprint
from cache.images.skipped import Skipped


@contextlib.contextmanager
def create(
    path: Path,
    *,
    identity: Mapping[str, Any],
    classnames: Sequence[str],
    versions: Mapping[str, str],
    imported: bool = False,
    skipped: Sequence[Skipped] = (),
) -> Iterator["StoreWriter"]:
    """A writer of the store at `path`, which appears when the block ends well.

    Where the block raises, Ctrl-C included, `path` is as it was and nothing else is left.
    Everything has its place before the first feature comes, so equal content gives equal bytes
    whatever the sizes and the order of the writes.

    Args:
        path: Where the store goes; one that is there is replaced.
        identity: What made the features; see `FeatureStore.identity`.
        classnames: C names by class id.
        versions: Libraries and their versions.
        imported: True if the features were computed elsewhere.
        skipped: Images that were left out.

    Raises:
        UserError: The disk is full.
        ValueError: A declared row was not written.
    """
    with new_file(path) as (file, disk, attributes):
        writer = StoreWriter(path, file, disk, identity, classnames)
        for name, value in (("identity", identity), ("versions", versions)):
            write_strings(file, name, canonical_json(value))
        write_strings(file, "classnames", classnames)
        write_strings(file, "skipped", list(map(str, skipped)))
        yield writer
        writer.finish()
        attributes["format"] = np.bytes_(FORMAT)
        attributes["schema"] = schema_of(file, identity)
        attributes["fingerprint"] = np.bytes_(fingerprint(identity))
        attributes["imported"] = imported
        attributes["complete"] = True


class StoreWriter:
    """Takes splits, features and text as they come; made by `create`.

    Attributes:
        identity: What makes the features.
    """

    def __init__(
        self,
        path: Path,
        file: Any,
        disk: DiskFile,
        identity: Mapping[str, Any],
        classnames: Sequence[str],
    ) -> None:
        self.identity = identity
        self._path, self._file, self._disk = path, file, disk
        self._n_classes = len(classnames)
        self._images: dict[str, ImageMatrices] = {}
        self._parts: dict[str, Sequence[StorePart]] = {}
        self._width: tuple[str, int] | None = None

    def split(
        self,
        name: str,
        *,
        labels: ArrayLike,
        paths: Sequence[str],
        dim: int,
        rows: ArrayLike | None = None,
        n_views: int = 0,
        view_rows: ArrayLike | None = None,
        pooled_dim: int = 0,
        label_sets: ArrayLike | None = None,
        parts: Sequence[StorePart] | None = None,
    ) -> None:
        """Declare a split; its features are written afterwards, unless they are in parts.

        Args:
            name: train, val or test.
            labels: (N,) class ids of all its images; of unlabeled train images -1.
            paths: N paths, relative to the dataset's root, POSIX.
            dim: D.
            rows: (n,) ascending, the images that are encoded; all N without it.
            n_views: V, augmented views of each of some images.
            view_rows: (m,) ascending, the images with views; all that are encoded without it.
            pooled_dim: w, the width of pooled images, which every image and view then has.
            label_sets: (N, C) True for each class of each image, where images have several.
            parts: Files that have the features of all encoded images, in order, and lie in a folder
                beside this one; nothing of the split is then to be written. All encoded images
                have views, or none.
        """
        ids = np.asarray(labels)
        if name not in SPLITS:
            raise ValueError(f"a split is one of {SPLITS}; got {name!r}")
        if len(ids) == 0:
            raise UserError(f"the {name} split has no images; leave it out or give it some")
        if len(paths) != len(ids):
            given = f"{count(len(ids), 'label')} and {count(len(paths), 'path')}"
            raise UserError(f"{name} has {given}; give one each")
        if not (name == "train" and is_unlabeled(self.identity)):
            self._check_labels(name, ids)
        self._check_width(f"{name} features", dim)
        group = self._file.create_group(name)
        group["labels"] = ids.astype("<i8")
        if label_sets is not None:
            group["label_sets"] = np.asarray(label_sets, "u1")
        write_strings(group, "paths", paths)
        encoded = _ascending(np.arange(len(ids)) if rows is None else rows, len(ids))
        if len(encoded) < len(ids):
            group["rows"] = encoded
        viewed = encoded if view_rows is None else _ascending(view_rows, len(ids))
        rows_of = {False: encoded, True: viewed}

        def name_of(of_views: bool, place: int) -> str:
            row = int(rows_of[of_views][place])
            return f"row {row} ({paths[row]})"

        images = ImageMatrices(self._path, self._file, self._disk, name, name_of)
        self._images[name] = images
        if parts is not None:
            if sum(part.images for part in parts) != len(encoded):
                raise ValueError(f"{name}: the parts do not have {count(len(encoded), 'image')}")
            self._parts[name] = parts
            if n_views:
                group["view_rows"] = viewed
            return
        images.reserve("features", (len(encoded), dim))
        if pooled_dim:
            images.reserve("pooled", (len(encoded), pooled_dim))
        if n_views:
            group["view_rows"] = viewed
            images.reserve("views", (n_views, len(viewed), dim))
            if pooled_dim:
                images.reserve("pooled_views", (n_views, len(viewed), pooled_dim))

    def write(self, split: str, start: int, features: ArrayLike) -> None:
        """Write (b, D) features, as the encoder gave them, of encoded images `start` onwards.

        Raises:
            UserError: A feature is not finite or is zero, or the disk is full.
        """
        self._images[split].write("features", start, features)

    def write_pooled(self, split: str, start: int, pooled: ArrayLike) -> None:
        """Write (b, w) pooled images; see `write`."""
        self._images[split].write("pooled", start, pooled)

    def write_views(self, split: str, start: int, views: ArrayLike) -> None:
        """Write (V, b, D) views, as the encoder gave them, of viewed images `start` onwards.

        Raises:
            UserError: A feature is not finite or is zero, or the disk is full.
        """
        self._images[split].write("views", start, views)

    def write_pooled_views(self, split: str, start: int, pooled: ArrayLike) -> None:
        """Write (V, b, w) pooled views; see `write_views`."""
        self._images[split].write("pooled_views", start, pooled)

    def attributes(self, values: ArrayLike) -> None:
        """Write (C, A) attributes of the classes."""
        self._file["attributes"] = np.asarray(values, "<f4")

    def text(
        self,
        prompt_set: str,
        embeddings: ArrayLike,
        labels: ArrayLike,
        prompts: Sequence[str],
        pooled: ArrayLike | None = None,
    ) -> None:
        """Write the embeddings of one prompt set, in any order, each class served at least once.

        Args:
            prompt_set: Its name, such as `templates`.
            embeddings: (P, D), as the encoder gave them.
            labels: (P,) class ids.
            prompts: P sentences.
            pooled: (P, W), what the text tower made of them before its last projection, where it
                ends in one; the projection itself then goes to `text_projection`.
        """
        block, ids = np.asarray(embeddings), np.asarray(labels)
        if not len(block) == len(ids) == len(prompts):
            raise UserError(
                f"prompt set {prompt_set} needs one embedding and one label for each prompt; "
                f"got {len(block)}, {len(ids)} and {len(prompts)}"
            )
        self._check_labels(f"prompt set {prompt_set}", ids)
        self._check_width("text features", block.shape[1])
        unserved = np.setdiff1d(np.arange(self._n_classes), ids)
        if unserved.size:
            raise UserError(
                f"prompt set {prompt_set} has nothing for "
                f"{count(unserved.size, 'class', 'classes')}, the first is class "
                f"{unserved[0]}; add a prompt for each"
            )
        vectors, norms = unit_and_norms(block)
        bad = np.flatnonzero(~usable(norms))
        if bad.size:
            raise UserError(
                f"text features must be finite and not zero; {bad.size} of {len(block)} are not, "
                f"the first is of {prompts[bad[0]]!r}"
            )
        group = self._file.create_group(f"text/{prompt_set}")
        group["embeddings"] = vectors.astype("<f4")
        group["norms"] = norms.astype("<f4")
        group["labels"] = ids.astype("<i8")
        write_strings(group, "prompts", prompts)
        if pooled is not None:
            group["pooled"] = np.asarray(pooled, dtype="<f4")
        self._disk.report(self._path)

    def text_projection(self, projection: ArrayLike) -> None:
        """Write the (W, D) matrix that ends the text tower: `pooled @ projection` is the text."""
        self._file["text_projection"] = np.asarray(projection, dtype="<f4")
        self._disk.report(self._path)

    def image_tower(self, tower: ImageTower) -> None:
        """Write the layers that make pooled images features."""
        for name in ("scale", "shift", "projection"):
            self._file[f"image_{name}"] = getattr(tower, name).astype("<f4")
        self._disk.report(self._path)

    def finish(self) -> None:
        """List the parts, and raise unless there is a split, and each declared row was written.

        Raises:
            ValueError: Some were not.
        """
        if not self._images:
            raise ValueError("a store needs a split")
        for images in self._images.values():
            images.check_complete()
        if self._parts:
            write_strings(self._file, "parts", listing_json(self._parts))

    def _check_labels(self, what: str, labels: NDArray[Any]) -> None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(
                f"{what}: labels must be (N,) integers; got {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= self._n_classes:
            raise UserError(
                f"{what}: labels must be in 0..{self._n_classes - 1}, for "
                f"{count(self._n_classes, 'class name')}; got {labels.min()}..{labels.max()}"
            )

    def _check_width(self, what: str, dim: int) -> None:
        if self._width is None:
            self._width = (what, dim)
        if dim != self._width[1]:
            raise UserError(
                f"{what} are {dim} wide and {self._width[0]} {self._width[1]}; "
                "both must come from one model"
            )


def _ascending(rows: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    """The rows as they are stored, once it is sure that they can be looked up."""
    ascending = np.asarray(rows, dtype="<i8")
    if (
        not len(ascending)
        or (np.diff(ascending, prepend=-1) <= 0).any()
        or (ascending >= n_rows).any()
    ):
        raise ValueError(f"rows must ascend within 0..{n_rows - 1}, one at least; got {ascending}")
    return ascending
