"""The last layers of a CLIP's image tower: a layer norm's scale and shift, and a projection."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cache.arrays.contents import Contents


@dataclass(frozen=True)
class ImageTower:
    """The layers between a pooled image and its feature, which is their output, unnormalized.

    Attributes:
        scale: (w,), the last layer norm's.
        shift: (w,), likewise.
        projection: (w, D).
    """

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    projection: NDArray[np.float32]

    @classmethod
    def of(cls, contents: "Contents") -> "ImageTower | None":
        """That of a store's features; None where the store has no pooled images."""
        if "image_projection" not in contents:
            return None
        parts = (contents.array(f"image_{name}") for name in ("scale", "shift", "projection"))
        return cls(*parts)

    def before_projection(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., w) scaled and shifted, as the projection takes them."""
        return self.scale * pooled + self.shift

    def features(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., D) features of pooled images (..., w), as the encoder gave them."""
        return self.before_projection(pooled) @ self.projection
