"""Check that an export says what the adapter says, on noise and on what looks like images."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache.errors import UserError
from cache.images.preprocessing import Preprocess

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)


def probes(preprocess: Preprocess) -> Iterator[Tensor]:
    """Pixels (B, 3, H, W) of several B: of each first noise, then pictures through `preprocess`."""
    generator = torch.Generator().manual_seed(0)
    draw = np.random.default_rng(0)
    for n in BATCHES:
        yield torch.randn(n, 3, preprocess.size, preprocess.size, generator=generator)
        yield torch.stack([preprocess.center(_picture(draw, preprocess.size)) for _ in range(n)])


def require_close(what: str, exported: Tensor, ours: Tensor, *, scale: float | None = None) -> None:
    """Raise if a value is off by more than `TOLERANCE` times the scale.

    Args:
        what: Of what, for the message.
        exported: What the export computes.
        ours: What the adapter computes, of the same shape.
        scale: That of the values; the maximum magnitude of ours without it.

    Raises:
        UserError: One is.
    """
    ours = ours.double()
    scale = float(ours.abs().max()) if scale is None else scale
    off = float((exported.double() - ours).abs().max()) / max(scale, 1e-12)
    if not off <= TOLERANCE:  # nor if not a number
        raise UserError(
            f"the export's {what} are off by {off:.1e} of their scale, where {TOLERANCE:.0e} is "
            "the limit, so nothing was written; use the adapter with `fewshot predict`, and report "
            "the method and the model"
        )


def _picture(draw: np.random.Generator, size: int) -> Image.Image:
    """Smooth patches of color, wider than high and not of the model's size."""
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((size * 7 // 4, size * 5 // 4), Image.Resampling.BICUBIC)
