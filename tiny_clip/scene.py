"""From ink to a picture: colors, textures, a coarse and noisy camera."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from tiny_clip import words
from tiny_clip.chance import chance, uniform
from tiny_clip.ink import IMAGE_SIZE, pixel_grid

RESOLUTIONS = {8: 0.45, 12: 0.15, 16: 0.1, IMAGE_SIZE: 0.3}
BLACK, WHITE = 0, 1
PALETTE = torch.tensor(list(words.COLORS.values()))


def color(ink: Tensor, truth: Tensor, generator: Generator) -> Tensor:
    """RGB (n, 3, 32, 32) in 0..1 of the ink on a ground; writes color and texture into `truth`."""
    n = len(ink)
    group = truth[:, words.GROUP]
    pattern = group == words.PATTERN
    ink_color, ground_color = _colors(truth, generator)
    top = ink_color[..., None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE).clone()
    bottom = ground_color[..., None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE).clone()

    woven = torch.nonzero(pattern | ((group == words.SHAPE) & chance(n, 0.4, generator)))[:, 0]
    texture = torch.randint(len(words.TEXTURES), (len(woven),), generator=generator)
    truth[woven, words.TEXTURE] = texture
    truth[woven[pattern[woven] & (texture == words.PLAIN)], words.GROUND] = words.UNSAID
    shade = torch.where(pattern[:, None], ground_color, ink_color * 0.45 + 0.05)[woven]
    top[woven] = shade[..., None, None].lerp(top[woven], _textures(texture, generator)[:, None])

    stained = torch.nonzero(chance(n, 0.05, generator))[:, 0]
    stain = torch.randint(1, len(words.TEXTURES), (len(stained),), generator=generator)
    other = PALETTE[torch.randint(len(PALETTE), (len(stained),), generator=generator)]
    strength = uniform(len(stained), 0.0, 0.5, generator).reshape(-1, 1, 1, 1)
    mix = strength * _textures(stain, generator)[:, None]
    bottom[stained] = bottom[stained].lerp(other[..., None, None].expand_as(bottom[stained]), mix)
    return bottom.lerp(top, torch.where(pattern[:, None, None], 1.0, ink)[:, None])


def photograph(image: Tensor, generator: Generator) -> Tensor:
    """uint8 pictures of (n, 3, 32, 32) in 0..1 as a coarse, noisy camera would take them."""
    n = len(image)
    odds = torch.tensor(list(RESOLUTIONS.values()))
    choice = torch.multinomial(odds, n, replacement=True, generator=generator)
    for index, resolution in enumerate(RESOLUTIONS):
        rows = choice == index
        if resolution < IMAGE_SIZE and rows.any():
            coarse = interpolate(image[rows], size=resolution, mode="area")
            image[rows] = interpolate(coarse, size=IMAGE_SIZE, mode="bicubic", antialias=True)
    noise = uniform(n, 0, 0.1, generator) * chance(n, 0.3, generator)
    image = image + noise.reshape(-1, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _colors(truth: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ink and ground colors (n, 3); named in `truth` where they have a name.

    Characters are mostly light on dark greys, as scanned writing is; the rest is in color.
    """
    n = len(truth)
    character = truth[:, words.GROUP] <= words.SIGN
    named = torch.stack([torch.randperm(len(PALETTE), generator=generator)[:2] for _ in range(n)])
    pattern = truth[:, words.GROUP] == words.PATTERN
    named[pattern] = named[pattern].sort(dim=1).values  # "red and blue" is "blue and red"
    scan = character & chance(n, 0.8, generator)
    classic = chance(n, 0.6, generator)
    flipped = chance(n, 0.1, generator)
    black_white = torch.where(
        flipped[:, None], torch.tensor([BLACK, WHITE]), torch.tensor([WHITE, BLACK])
    )
    named = torch.where((scan & classic)[:, None], black_white, named)
    colors = PALETTE[named] + 0.06 * torch.randn(n, 2, 3, generator=generator)
    dark, light = uniform(n, 0.0, 0.35, generator), uniform(n, 0.6, 1.0, generator)
    greys = torch.stack((light, dark), dim=1)
    greys = torch.where(flipped[:, None], greys.flip(1), greys)[..., None].expand(-1, -1, 3)
    grey = (scan & ~classic)[:, None]
    truth[:, words.INK : words.GROUND + 1] = torch.where(grey, words.UNSAID, named)
    colors = torch.where(grey[..., None], greys, colors).clamp(0, 1)
    return colors[:, 0], colors[:, 1]


def _textures(kind: Tensor, generator: Generator) -> Tensor:
    """(n, 32, 32) in 0..1: one picture for each kind of texture (n,), an index in `TEXTURES`."""
    n = len(kind)
    angle = uniform(n, 0, math.pi, generator)
    rotation = torch.stack(
        (torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)), dim=1
    ).reshape(n, 2, 2)
    frequency = uniform(n, 4, 10, generator).reshape(n, 1, 1)
    phase = uniform(n, 0, 2 * math.pi, generator).reshape(n, 1, 1)
    x, y = (
        (pixel_grid().reshape(1, -1, 2) @ rotation).reshape(n, IMAGE_SIZE, IMAGE_SIZE, 2).unbind(-1)
    )
    across, along = torch.sin(frequency * x + phase), torch.sin(frequency * y)
    speckle = torch.rand(n, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    fields = {
        words.STRIPED: torch.sigmoid(8 * across),
        words.CHECKERED: torch.sigmoid(12 * across * along),
        words.DOTTED: torch.sigmoid(8 * (across + along - 0.9)),
        words.GRADIENT: (x + 1) / 2,
        words.NOISY: speckle,
        words.WAVY: torch.sigmoid(
            8 * torch.sin(frequency * x + 1.5 * torch.sin(frequency * y) + phase)
        ),
        words.GRIDDED: torch.sigmoid(10 * (torch.maximum(across, along) - 0.75)),
    }
    field = torch.ones(n, IMAGE_SIZE, IMAGE_SIZE)
    for index, picture in fields.items():
        field = torch.where((kind == index)[:, None, None], picture, field)
    return field.clamp(0, 1)
