"""A preprocessing for tests that need pixels of photos, and no model's own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.images.preprocessing import Preprocess


@dataclass(frozen=True)
class Shrunk(Preprocess):
    """The whole image at a small size, without the library that takes seconds to be imported."""

    def center_crop(self, image: Any) -> Tensor:
        pixels = np.array(image.resize((self.size, self.size)), np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def shrunk(size: int) -> Shrunk:
    """Pixels (3, size, size), 0 to 1."""
    return Shrunk(size, (0.0,) * 3, (1.0,) * 3, "bicubic", "squash")
