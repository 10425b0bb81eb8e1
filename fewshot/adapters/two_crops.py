"""Two crops of one image, for the two models of a pair, and the features of both."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cache.images.preprocessing import Preprocess
from cache.models.encoder import Encoder
from cache.pair import side_by_side


@dataclass(frozen=True)
class TwoCrops:
    """Crops of one image for the two models of a pair, end to end.

    Attributes:
        first: The first model's preprocessing.
        second: The second's.
    """

    first: Preprocess
    second: Preprocess

    def center(self, image: Image.Image) -> Tensor:
        """(3 S^2 + 3 T^2,) of an RGB image, where the models take S and T pixels a side."""
        return torch.cat([one.center(image).flatten() for one in (self.first, self.second)])

    def features(self, pixels: Tensor, encoders: tuple[Encoder, Encoder], weight: float) -> Tensor:
        """(B, D) the pair's features of (B, P) crops, of the norm that the second model's have."""
        sizes = [3 * one.size**2 for one in (self.first, self.second)]
        a, b = (
            encoder.encode_images(part.reshape(-1, 3, crop.size, crop.size))
            for encoder, part, crop in zip(
                encoders, torch.split(pixels, sizes, dim=1), (self.first, self.second), strict=True
            )
        )
        unit = torch.nn.functional.normalize(a, dim=1)
        return torch.from_numpy(side_by_side(unit.numpy(), b.numpy(), weight))
