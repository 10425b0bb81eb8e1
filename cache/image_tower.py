"""The last layers of a CLIP's image tower: a layer norm's scale and shift, and a projection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def before_projection(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., w) scaled and shifted, as the projection takes them."""
        return self.scale * pooled + self.shift

    def features(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., D) features of pooled images (..., w), as the encoder gave them."""
        return self.before_projection(pooled) @ self.projection
