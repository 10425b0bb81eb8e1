"""One split of a store: its labels, its images' paths, and the features of any of its rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.arrays.contents import Contents
from cache.arrays.image_tower import ImageTower
from cache.errors import UserError


@dataclass(frozen=True)
class Split:
    """Train, val or test of one store. What is read of it is kept as long as it is.

    Attributes:
        contents: The store's arrays.
        name: `train`, `val` or `test`.
        only: The few shots that alone were encoded, such as {"shots": 4}; empty if all were.
        remake: The command that encodes more of it.
    """

    contents: Contents
    name: str
    only: str
    remake: str

    def __len__(self) -> int:
        """N, every image of the split, those not encoded included."""
        return self.contents.places[f"{self.name}/labels"].shape[0]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class ids of every image, those not encoded included.

        Raises:
            UserError: Images have several labels, or none.
        """
        if self.unlabeled:
            raise UserError(
                f"{self.name} images of {self.contents.address} have no labels; use a method that "
                "learns from unlabeled images, such as gda-em, or a dataset with labels"
            )
        if self.multi_label:
            raise UserError(
                f"images of {self.contents.address} may have several labels, and this needs one of "
                "each; for several there are fit and bench, in the few-shot setting, and predict"
            )
        return self._integers("labels")

    @cached_property
    def unlabeled(self) -> bool:
        """True if nobody has labeled the images."""
        return bool(self._integers("labels")[0] < 0)

    @property
    def multi_label(self) -> bool:
        """True if an image may have several labels."""
        return self._has("label_sets")

    @cached_property
    def label_sets(self) -> NDArray[np.bool_]:
        """(N, C) True for each class of each image, where images may have several labels."""
        return np.asarray(self.contents.array(f"{self.name}/label_sets"), np.bool_)

    def images_per_class(self, n_classes: int) -> NDArray[np.int64]:
        """(C,) images of each class; one of several labels counts for each of its classes."""
        if self.multi_label:
            return np.asarray(self.label_sets.sum(axis=0), np.int64)
        return np.bincount(self.labels, minlength=n_classes).astype(np.int64)

    @cached_property
    def paths(self) -> list[str]:
        """N paths, relative to the dataset's root, POSIX."""
        return self.contents.strings(f"{self.name}/paths")

    @cached_property
    def encoded(self) -> NDArray[np.int64]:
        """(n,) rows that have features, ascending; all N but for few-shot stores."""
        return self._integers("rows") if self._has("rows") else np.arange(len(self))

    @property
    def n_views(self) -> int:
        """V, the augmented views stored for each of some images; 0 without any."""
        return self.contents.places[f"{self.name}/views"].shape[0] if self._has("views") else 0

    @property
    def n_viewed(self) -> int:
        """How many images have views."""
        return self.contents.places[f"{self.name}/views"].shape[1] if self._has("views") else 0

    def features(self, rows: ArrayLike | None = None, *, unit: bool = True) -> NDArray[np.float32]:
        """(n, D) features of the given rows, in the order given, repeats included.

        Args:
            rows: (n,) rows of the split; without it all N, which must all have been encoded.
            unit: Unit norm; else as the encoder gave them.

        Raises:
            UserError: A row was not encoded, or the store is damaged.
        """
        at = self._positions(rows, self.encoded)
        features = self.contents.rows(f"{self.name}/features", at)
        if not unit:
            features *= self._norms[at, None]
        return features

    def norms(self, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """(n,) norms of the features as the encoder gave them; rows as in `features`."""
        return self._norms[self._positions(rows, self.encoded)]

    def views(self, rows: ArrayLike, *, unit: bool = True) -> NDArray[np.float32]:
        """(V, n, D) augmented views of the given rows, in the order given, repeats included.

        Raises:
            UserError: No views in this store, or none of one of the rows.
        """
        return self._views(rows, "views", None if unit else "view_norms")

    def _views(self, rows: ArrayLike, name: str, norms: str | None) -> NDArray[np.float32]:
        if not self._has("views"):
            raise UserError(
                f"{self.contents.address} holds no augmented {self.name} views; "
                f"run {self.remake} --views V"
            )
        at = self._positions(rows, self._integers("view_rows"), "views of ")
        n_views, n_rows, dim = self.contents.places[f"{self.name}/{name}"].shape
        flat = (np.arange(n_views)[:, None] * n_rows + at).ravel()
        views = self.contents.rows(f"{self.name}/{name}", flat).reshape(n_views, len(at), dim)
        if norms is not None:
            views *= self.contents.array(f"{self.name}/{norms}")[:, at, None]
        return views

    def pooled(self, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """(n, w) pooled images, of which `FeatureStore.image_tower` makes features.

        Each is the output of the last layer norm before its scale and shift; rows are as in
        `features`.

        Raises:
            UserError: A row was not encoded, or the store has no pooled images.
        """
        self._require_pooled()
        at = self._positions(rows, self.encoded)
        pooled = self.contents.rows(f"{self.name}/pooled", at)
        pooled *= self.contents.array(f"{self.name}/pooled_norms")[at, None]
        return pooled

    def pooled_views(self, rows: ArrayLike) -> NDArray[np.float32]:
        """(V, n, w) pooled augmented views, as `pooled` has images; rows are as in `views`.

        Raises:
            UserError: No views or pooled images in this store, or no views of one of the rows.
        """
        self._require_pooled()
        return self._views(rows, "pooled_views", "pooled_view_norms")

    @property
    def image_tower(self) -> ImageTower | None:
        """The layers that made the features of `pooled`; None where the store has none."""
        return ImageTower.of(self.contents)

    def _require_pooled(self) -> None:
        if not self._has("pooled"):
            raise UserError(
                f"{self.contents.address} holds no features before the projection; "
                f"run {self.remake} --pre-projection"
            )

    @cached_property
    def _norms(self) -> NDArray[np.float32]:
        return np.asarray(self.contents.array(f"{self.name}/norms"), np.float32)

    def _has(self, name: str) -> bool:
        return f"{self.name}/{name}" in self.contents

    def _integers(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self.contents.array(f"{self.name}/{name}"), np.int64)

    def _positions(
        self, rows: ArrayLike | None, present: NDArray[np.int64], what: str = ""
    ) -> NDArray[np.int64]:
        """Where the rows of the split are in a matrix that holds only the rows `present`."""
        n_rows = len(self)
        wanted = np.arange(n_rows) if rows is None else np.asarray(rows)
        if wanted.size == 0:
            return np.empty(0, np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise TypeError(f"rows must be (n,) integers; got {wanted.dtype} {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= n_rows:
            raise IndexError(f"rows must be in 0..{n_rows - 1}; got {wanted.min()}..{wanted.max()}")
        at = np.minimum(np.searchsorted(present, wanted), len(present) - 1)
        missing = wanted[present[at] != wanted]
        if missing.size:
            raise UserError(
                f"{self.contents.address} holds {what}{len(present)} of {n_rows} {self.name} "
                f"images ({self.only or 'given rows'}), not row {missing[0]}; to encode more run "
                f"{self.remake}"
            )
        return at
