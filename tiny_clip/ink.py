"""Ink on a picture: a pen following a path, or a mask printed, each distorted at random.

Coordinates are those of `grid_sample`: [-1, 1], x to the right and y down.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from tiny_clip.chance import uniform

IMAGE_SIZE = 32


def write(path: Tensor, generator: Generator) -> Tensor:
    """Ink (n, 32, 32) of a pen following points (n, P, 2), bent, slanted, fitted to the frame."""
    n = len(path)
    path = _bend(path, uniform(n, 0.0, 0.12, generator), generator)
    path = path @ _linear(n, 0.12, 0.22, generator)
    radius = uniform(n, 0.05, 0.2, generator)[:, None]
    low, high = path.amin(dim=1), path.amax(dim=1)
    extent = (high - low).clamp_min(1e-3)
    height = 2 * uniform(n, 0.75, 1.02, generator) - 2 * radius[:, 0]
    aspect = extent[:, 0] / extent[:, 1] * uniform(n, 0.75, 1.35, generator)
    target = torch.stack((torch.minimum(height * aspect, 1.95 - 2 * radius[:, 0]), height), dim=1)
    slack = (1 - target / 2 - radius).clamp_min(0.03)
    center = slack * (2 * torch.rand(n, 2, generator=generator) - 1) * 0.6
    path = (path - ((low + high) / 2)[:, None]) * (target / extent)[:, None] + center[:, None]
    distance = torch.cdist(pixel_grid().reshape(1, -1, 2).expand(n, -1, -1), path).amin(dim=2)
    softness = uniform(n, 0.01, 0.04, generator)[:, None]
    return torch.sigmoid((radius - distance) / softness).reshape(n, IMAGE_SIZE, IMAGE_SIZE)


def print_mask(masks: Tensor, generator: Generator, turn: float, reweigh: bool = True) -> Tensor:
    """Ink (n, 32, 32) of masks (n, S, S), placed, turned, bent and made bolder or lighter."""
    n = len(masks)
    scale = uniform(n, 0.6, 1.0, generator)
    stretch = torch.exp(uniform(n, -0.2, 0.2, generator))
    reach = torch.stack((scale * stretch, scale / stretch), dim=1).clamp_max(1.0)
    center = (1 - reach) * (2 * torch.rand(n, 2, generator=generator) - 1)
    grid = (pixel_grid().reshape(1, -1, 2) - center[:, None]) / reach[:, None]
    grid = grid @ _linear(n, turn, turn, generator)
    grid = _bend(grid, uniform(n, 0.0, 0.1 if reweigh else 0.03, generator), generator)
    grid = grid.reshape(n, IMAGE_SIZE, IMAGE_SIZE, 2)
    warped = grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    if not reweigh:
        return warped
    threshold = uniform(n, 0.2, 0.7, generator).reshape(-1, 1, 1)
    return torch.sigmoid((warped - threshold) * 12)


def pixel_grid() -> Tensor:
    """(32, 32, 2) centers of the picture's pixels, (x, y)."""
    axis = (torch.arange(IMAGE_SIZE) + 0.5) * (2 / IMAGE_SIZE) - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)


def _bend(points: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Points (n, P, 2) moved along three slow random waves of the given strength (n,)."""
    n = len(points)
    for _ in range(3):
        wave = 2.2 * torch.randn(n, 2, 2, generator=generator)
        phase = uniform(n, 0, 2 * math.pi, generator).reshape(n, 1, 1)
        points = points + strength.reshape(n, 1, 1) * torch.sin(points @ wave + phase)
    return points


def _linear(n: int, turn: float, slant: float, generator: Generator) -> Tensor:
    """(n, 2, 2) random rotations, up to three times `turn` radians or so, with a random slant."""
    angle = turn * torch.randn(n, generator=generator).clamp(-2.5, 2.5)
    lean = slant * torch.randn(n, generator=generator).clamp(-2.5, 2.5)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack((cos, sin, lean * cos - sin, lean * sin + cos), dim=1).reshape(n, 2, 2)
