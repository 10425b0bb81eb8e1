"""Plain shapes as masks: (S, S) pictures in 0..1, `S = fonts.MASK_SIZE`, that fill their frame."""

import math
from functools import cache

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tiny_clip import words
from tiny_clip.fonts import fill_frame


@cache
def shapes() -> Tensor:
    """(len(words.SHAPES), S, S) masks in 0..1, one for each of `words.SHAPES`."""
    return torch.stack([fill_frame(_draw_shape(name)) for name in words.SHAPES])


def _draw_shape(name: str, size: int = 256) -> Image.Image:
    """One shape in white on black, `size` pixels square."""
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    full = (0, 0, size - 1, size - 1)

    def polygon(points: list[tuple[float, float]]) -> None:
        pen.polygon([(x * (size - 1), y * (size - 1)) for x, y in points], fill=255)

    def around(corners: int, radii: tuple[float, ...] = (0.5,)) -> None:
        angles = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
        reach = [radii[i % len(radii)] for i in range(corners)]
        polygon([(0.5 + r * math.cos(a), 0.5 + r * math.sin(a))
                 for r, a in zip(reach, angles, strict=True)])  # fmt: skip

    match name:
        case "circle":
            pen.ellipse(full, fill=255)
        case "square":
            pen.rectangle(full, fill=255)
        case "triangle":
            polygon([(0.5, 0), (1, 0.9), (0, 0.9)])
        case "diamond":
            around(4)
        case "star":
            around(10, (0.5, 0.2))
        case "cross":
            pen.rectangle((0, size * 0.36, size, size * 0.64), fill=255)
            pen.rectangle((size * 0.36, 0, size * 0.64, size), fill=255)
        case "ring":
            pen.ellipse(full, outline=255, width=size // 6)
        case "frame":
            pen.rectangle(full, outline=255, width=size // 7)
        case "heart":
            pen.ellipse((0, size * 0.05, size * 0.52, size * 0.57), fill=255)
            pen.ellipse((size * 0.48, size * 0.05, size, size * 0.57), fill=255)
            polygon([(0.045, 0.45), (0.955, 0.45), (0.5, 0.97)])
        case "hexagon":
            around(6)
        case "pentagon":
            around(5)
        case "rectangle":
            pen.rectangle((0, size * 0.25, size, size * 0.75), fill=255)
        case "ellipse":
            pen.ellipse((0, size * 0.22, size, size * 0.78), fill=255)
        case "crescent":
            pen.ellipse(full, fill=255)
            pen.ellipse((size * 0.3, -size * 0.05, size * 1.2, size * 0.85), fill=0)
        case "arrow":
            polygon([(0, 0.35), (0.5, 0.35), (0.5, 0.1), (1, 0.5), (0.5, 0.9), (0.5, 0.65),
                     (0, 0.65)])  # fmt: skip
        case "semicircle":
            pen.pieslice((0, 0, size - 1, size * 2), 180, 360, fill=255)
    return image
