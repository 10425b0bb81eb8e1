"""Crops made by torch's vector instructions, faster than Pillow's and equal within 1 of 255."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache.images.turbo_jpeg import Pixels

PREFIX = "fast-"  # of an interpolation's name


def center_crop(
    image: Image.Image | Pixels, side: int, size: int, interpolation: str, *, squash: bool
) -> Tensor:
    """The middle (3, size, size), uint8, of an image scaled so that its shorter side is `side`.

    Args:
        image: RGB.
        side: In pixels.
        size: In pixels, no more than `side`.
        interpolation: With the prefix.
        squash: Give both sides `side` pixels.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    short = min(height, width)
    tall, wide = (side * long // short for long in (height, width))  # as torchvision rounds
    if squash:
        tall = wide = side
    top, left = (round((long - size) / 2) for long in (tall, wide))
    scaled = _scaled(pixels, tall, wide, interpolation)
    return _contiguous(scaled[:, top : top + size, left : left + size])


def box_crop(
    image: Image.Image | Pixels,
    box: tuple[int, int, int, int],
    size: int,
    interpolation: str,
    mirrored: bool,
) -> Tensor:
    """A part of an image scaled to (3, size, size), uint8.

    Args:
        image: RGB.
        box: Top, left, height and width of the part.
        size: In pixels.
        interpolation: With the prefix.
        mirrored: Turn left and right about.
    """
    top, left, height, width = box
    part = np.asarray(image)[top : top + height, left : left + width]
    scaled = _scaled(part, size, size, interpolation)
    return _contiguous(scaled[:, :, ::-1] if mirrored else scaled)


def _scaled(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """(3, height, width), antialiased; by no other thread than the caller's."""
    owned = np.require(pixels, requirements=["C", "W"])  # Pillow's bytes may not be written to
    channels = torch.from_numpy(owned).permute(2, 0, 1)[None]
    mode = interpolation.removeprefix(PREFIX)
    scaled = torch.nn.functional.interpolate(channels, (height, width), mode=mode, antialias=True)
    return scaled[0].numpy()


def _contiguous(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels))
