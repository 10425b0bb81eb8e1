"""Characters in the fonts that matplotlib ships: as masks, and as paths for a pen to follow.

A mask is an (S, S) picture of ink in 0..1 with `S = MASK_SIZE`; a path is points in the square
[-1, 1], x to the right and y down. Nothing here is random.
"""

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from tiny_clip import words
from tiny_clip.pen import TRACE_POINTS

MASK_SIZE = 64

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip


@cache
def glyphs() -> tuple[Tensor, Tensor, Tensor]:
    """Every character in every font that has it.

    Returns:
        Masks (G, S, S) in 0..1, each glyph filling its frame; name (G,), an index into
        `words.NAMES`; case (G,), `UNSAID` but for letters.
    """
    digits, letters, signs = (words.NAMES_OF[g] for g in (words.DIGIT, words.LETTER, words.SIGN))
    characters = [(str(name), name, words.UNSAID) for name in digits]
    for name, letter in zip(letters, words.LETTERS, strict=True):
        characters += [(letter.upper(), name, words.CAPITAL), (letter, name, words.SMALL)]
    for name, sign in zip(signs, words.SIGNS.values(), strict=True):
        characters.append((sign, name, words.UNSAID))

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    masks, names, cases = [], [], []
    for font_name in FONTS:
        font = ImageFont.truetype(folder / f"{font_name}.ttf", 96)
        missing = bytes(font.getmask("\ufffe"))
        for character, name, case in characters:
            ink = font.getmask(character)
            if bytes(ink) == missing or 0 in ink.size:
                continue
            masks.append(fill_frame(Image.frombytes("L", ink.size, bytes(ink))))
            names.append(name)
            cases.append(case)
    return torch.stack(masks), torch.tensor(names), torch.tensor(cases)


@cache
def blurred_glyphs() -> Tensor:
    """(G, S, S) `glyphs`, blurred: a threshold on them makes the letters bolder or lighter."""
    return avg_pool2d(glyphs()[0][:, None], 7, stride=1, padding=3)[:, 0]


@cache
def glyph_traces() -> Tensor:
    """(G, P, 2) points along the middle of the strokes of each of `glyphs`, for a pen to follow."""
    masks, _, _ = glyphs()
    generator = torch.Generator().manual_seed(0)
    traces = []
    for ridge in _skeleton(masks):
        rows, columns = torch.nonzero(ridge > 0.3, as_tuple=True)
        points = torch.stack((columns, rows), dim=1) * (2 / (MASK_SIZE - 1)) - 1
        order = torch.randperm(len(points), generator=generator)
        repeats = -(-TRACE_POINTS // len(points))
        traces.append(points[order].repeat(repeats, 1)[:TRACE_POINTS])
    return torch.stack(traces)


def fill_frame(ink: Image.Image) -> Tensor:
    """A mask (S, S) of the ink, cropped, centered and enlarged until one side touches the frame."""
    ink = ink.crop(ink.getbbox())
    scale = MASK_SIZE / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    frame = Image.new("L", (MASK_SIZE, MASK_SIZE))
    corner = ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2)
    frame.paste(ink.resize((width, height), Image.Resampling.LANCZOS), corner)
    return torch.from_numpy(np.asarray(frame, dtype=np.float32) / 255)


def _skeleton(masks: Tensor) -> Tensor:
    """The ridges of (G, S, S) masks: what each erosion leaves that an opening would remove.

    Lantuéjoul's morphological skeleton, on greys.
    """
    ink = pad(masks, (1, 1, 1, 1))
    ridges = torch.zeros_like(ink)
    while ink.any():
        eroded = -_dilate(-ink)
        ridges = torch.maximum(ridges, ink - _dilate(eroded))
        ink = eroded
    return ridges[:, 1:-1, 1:-1]


def _dilate(ink: Tensor) -> Tensor:
    """The brightest of every pixel of (G, H, W) and its eight neighbors."""
    wide = pad(ink, (1, 1, 1, 1), mode="replicate")
    rows = torch.maximum(torch.maximum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
