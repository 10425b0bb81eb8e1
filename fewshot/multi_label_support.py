"""The support set of images that may have several labels each."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache.errors import UserError, count


@dataclass(frozen=True, eq=False)
class MultiLabelSupport:
    """N images, each of any of C classes; every class has an image of it and one that is not.

    Attributes:
        features: (N, D) float32, one center crop of each image, in the form the method needs.
        label_sets: (N, C) bool, True for each class of each image.
        views: (V, N, D) augmented crops of the same images, in the same order and form; None
            without.

    Raises:
        UserError: A class has no image, or all of them.
    """

    features: Tensor
    label_sets: Tensor
    views: Tensor | None = None

    def __post_init__(self) -> None:
        for images, what in ((self.counts, "no image"), (len(self) - self.counts, "every image")):
            wrong = torch.nonzero(images == 0).flatten().tolist()
            if wrong:
                some = count(len(wrong), "class has", "classes have")
                raise UserError(
                    f"every class needs an image of it and one that is not; {some} {what}, such "
                    f"as class {wrong[0]}; leave such classes out, or add images"
                )

    def __len__(self) -> int:
        """N."""
        return len(self.features)

    @property
    def n_classes(self) -> int:
        """C."""
        return self.label_sets.shape[1]

    @property
    def counts(self) -> Tensor:
        """(C,) images of each class."""
        return self.label_sets.sum(dim=0)

    @property
    def n_views(self) -> int:
        """V; 1 where there are no augmented views and the center crop stands for the image."""
        return 1 if self.views is None else len(self.views)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Features (V N, D) and label sets (V N, C): every view, or every center crop without."""
        if self.views is None:
            return self.features, self.label_sets
        return self.views.flatten(0, 1), self.label_sets.repeat(len(self.views), 1)

    def subset(self, rows: Tensor) -> "MultiLabelSupport":
        """The images at `rows`, (n,) indices or an (N,) mask, with all their views."""
        views = None if self.views is None else self.views[:, rows]
        return replace(
            self, features=self.features[rows], label_sets=self.label_sets[rows], views=views
        )


def one_label_each(features: Tensor, label_sets: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) and labels (n,): of (M, D) and (M, C), a sample once for each class of it."""
    rows, labels = label_sets.nonzero(as_tuple=True)
    return features[rows], labels
