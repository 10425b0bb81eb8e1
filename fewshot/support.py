"""The support set: the few labeled images, as features, that a method learns from."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cache.arrays.image_tower import ImageTower
from cache.errors import UserError, count
from fewshot.arrays import as_tensor

BLOCK = 2**16  # rows checked at a time


@dataclass(frozen=True, eq=False)
class SupportSet:
    """N labeled images of C classes, checked once, here, so that no method has to.

    Arrays and lists are taken for tensors as well.

    Attributes:
        features: (N, D) float32, unit norm: one center crop of each image.
        labels: (N,) int64 in 0..C-1; every class has at least one image.
        n_classes: C, at least two.
        views: (V, N, D) float32, unit norm: V augmented crops of the same images in the same
            order, or None.
        unit_norm: False where features and views are as the encoder gave them, any norm.
        tower: Where features and views are pooled images, (N, w) and (V, N, w) of any norm: the
            layers that make CLIP's own features of them. None else.

    Raises:
        UserError: Any of this does not hold.
    """

    features: Tensor
    labels: Tensor
    n_classes: int
    views: Tensor | None = None
    unit_norm: bool = True
    tower: ImageTower | None = None

    kind: ClassVar[str] = "support set"

    def __post_init__(self) -> None:
        for name in ("features", "labels", "views"):
            if name != "views" or self.views is not None:
                object.__setattr__(self, name, as_tensor(getattr(self, name)))
        shape = tuple(self.features.shape)
        if len(shape) != 2 or tuple(self.labels.shape) != shape[:1]:
            raise UserError(
                f"features must be (N, D) and labels (N,); got {shape} and "
                f"{tuple(self.labels.shape)}; give one label per row"
            )
        _check_features("features", self.features, self.unit_norm)
        if self.views is not None:
            if self.views.ndim != 3 or tuple(self.views.shape[1:]) != shape or not len(self.views):
                raise UserError(
                    f"views must be (V, N, D) with the features' N and D, {shape}; "
                    f"got {tuple(self.views.shape)}; leave them out or give V of every image"
                )
            _check_features("views", self.views, self.unit_norm)
        if self.labels.dtype != torch.int64:
            raise UserError(f"labels must be int64; got {self.labels.dtype}; use labels.long()")
        if self.n_classes < 2:
            raise UserError(f"two classes are needed to tell apart; got {self.n_classes}; add some")
        outside = self.labels[(self.labels < 0) | (self.labels >= self.n_classes)]
        if len(outside):
            raise UserError(
                f"labels must be 0..{self.n_classes - 1}, for {self.n_classes} classes; "
                f"got {int(outside[0])}; number the classes from 0"
            )
        empty = torch.nonzero(self.counts == 0).flatten().tolist()
        if empty:
            raise UserError(
                f"every one of the {self.n_classes} classes needs an image; "
                f"{count(len(empty), 'has', 'have')} none, such as class {empty[0]}; leave them "
                "out or add some"
            )

    @property
    def joint(self) -> Tensor:
        """(N, D) center crops as features beside text, of any norm where they were pooled."""
        if self.tower is None:
            return self.features
        return torch.from_numpy(self.tower.features(self.features.numpy()))

    @property
    def counts(self) -> Tensor:
        """(C,) images of each class."""
        return torch.bincount(self.labels, minlength=self.n_classes)

    @property
    def shots(self) -> int:
        """K, the images that the smallest class has."""
        return int(self.counts.min())

    @property
    def n_views(self) -> int:
        """V; 1 where there are no augmented views and the center crop stands for the image."""
        return 1 if self.views is None else len(self.views)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Training samples: features (V*N, D) and labels (V*N,), each view a sample of its own.

        With views the center crops are not among them, as in the published recipes.
        """
        if self.views is None:
            return self.features, self.labels
        return self.views.flatten(0, 1), self.labels.repeat(len(self.views))

    def subset(self, rows: Tensor) -> "SupportSet":
        """The images at `rows` ((n,) indices or an (N,) mask), with all their views."""
        views = None if self.views is None else self.views[:, rows]
        return replace(self, features=self.features[rows], labels=self.labels[rows], views=views)


def labeled(support: SupportSet | None, method: str) -> SupportSet:
    """Return the support set, for a method that cannot do without.

    Raises:
        UserError: There is none.
    """
    if support is None:
        raise UserError(f"{method} learns from labeled images and got none; give some shots")
    return support


def unlabeled(images: Tensor | None, method: str) -> Tensor:
    """Return the (U, D) unlabeled images, for a method that learns from them.

    Raises:
        UserError: There are fewer than two.
    """
    if images is None or len(images) < 2:
        n = 0 if images is None else len(images)
        raise UserError(f"{method} needs two unlabeled images; got {n}; add some")
    return images


def spread(n: int, most: int) -> Tensor:
    """At most so many of n rows, evenly spread: of every class where they lie class by class.

    Args:
        n: The number of rows.
        most: The maximum to return.
    """
    return torch.arange(n) if n <= most else torch.arange(most) * n // most


def _check_features(name: str, features: Tensor, unit_norm: bool) -> None:
    """Raise unless the features are float32, finite and, if they should be, of unit norm."""
    if features.dtype != torch.float32:
        raise UserError(f"{name} must be float32; got {features.dtype}; use {name}.float()")
    # In blocks: the check of a million images at once takes more memory than the images.
    parts = torch.split(features.flatten(0, -2), BLOCK)
    bad = sum(int((~torch.isfinite(part)).any(dim=1).sum()) for part in parts)
    if bad:
        raise UserError(
            f"{name} must be finite; {count(bad, 'row is', 'rows are')} not; extract them again"
        )
    norms = torch.cat([part.norm(dim=1) for part in parts])
    if unit_norm and len(norms) and float((norms - 1).abs().max()) > 1e-2:
        worst = int((norms - 1).abs().argmax())
        raise UserError(
            f"{name} must have unit norm; row {worst} has {float(norms[worst]):.3g}; "
            "divide each by its norm"
        )
