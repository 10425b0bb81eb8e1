"""Pictures that the tiny CLIP is shown, drawn at random with what is true of each.

Every random number comes from the generator given, so equal seeds draw equal pictures.
"""

import torch
from torch import Generator, Tensor

from tiny_clip import fonts, pen, shapes, words
from tiny_clip.chance import chance
from tiny_clip.ink import IMAGE_SIZE, print_mask, write
from tiny_clip.scene import color, photograph

GROUP_SHARES = {
    words.DIGIT: 0.6,
    words.LETTER: 0.14,
    words.SIGN: 0.04,
    words.SHAPE: 0.15,
    words.PATTERN: 0.07,
}


def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Random pictures and what is true of them.

    Returns:
        Images (n, 3, 32, 32) uint8; truth (n, F) int64, the columns `words.FACTS`.
    """
    shares = torch.tensor([GROUP_SHARES[group] for group in range(len(GROUP_SHARES))])
    truth = torch.full((n, len(words.FACTS)), words.UNSAID)
    truth[:, words.GROUP] = torch.multinomial(shares, n, replacement=True, generator=generator)
    ink = torch.zeros(n, IMAGE_SIZE, IMAGE_SIZE)
    for group, paint in {
        words.DIGIT: _digits,
        words.LETTER: _characters,
        words.SIGN: _characters,
        words.SHAPE: _shapes,
    }.items():
        rows = torch.nonzero(truth[:, words.GROUP] == group)[:, 0]
        if len(rows):
            ink[rows], truth[rows] = paint(truth[rows], generator)
    return photograph(color(ink, truth, generator), generator), truth


def draw_digits(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 of digits alone, and the digits (n,)."""
    truth = torch.full((n, len(words.FACTS)), words.UNSAID)
    truth[:, words.GROUP] = words.DIGIT
    ink, truth = _digits(truth, generator)
    return photograph(color(ink, truth, generator), generator), truth[:, words.NAME]


def _digits(truth: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ink (n, 32, 32) of digits, most written with a pen, and their facts (n, F)."""
    ink, truth = _characters(truth, generator)
    rows = torch.nonzero(chance(len(truth), 0.5, generator))[:, 0]
    matrices, controls, digits = pen.pen_strokes()
    wanted = truth[rows, words.NAME]
    noise = torch.rand(len(rows), len(digits), generator=generator)
    way = (noise + (digits == wanted[:, None])).argmax(dim=1)  # one of the digit's own ways
    jitter = 0.09 * torch.randn(len(rows), controls.shape[1], 2, generator=generator)
    ink[rows] = write(matrices[way] @ (controls[way] + jitter), generator)
    truth[rows, words.MEDIUM] = words.HANDWRITTEN
    return ink, truth


def _characters(truth: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ink (n, 32, 32) of the fonts' characters, printed or traced with a pen, and facts (n, F)."""
    _, names, cases = fonts.glyphs()
    wanted = words.NAMES_OF[int(truth[0, words.GROUP])]
    known = torch.nonzero((names >= wanted.start) & (names < wanted.stop))[:, 0]
    glyph = known[torch.randint(len(known), (len(truth),), generator=generator)]
    truth[:, words.NAME], truth[:, words.CASE] = names[glyph], cases[glyph]
    by_pen = chance(len(truth), 0.5, generator)
    truth[:, words.MEDIUM] = torch.where(by_pen, words.HANDWRITTEN, words.PRINTED)
    ink = print_mask(fonts.blurred_glyphs()[glyph], generator, turn=0.15)
    ink[by_pen] = write(fonts.glyph_traces()[glyph[by_pen]], generator)
    return ink, truth


def _shapes(truth: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ink (n, 32, 32) of shapes, and their facts (n, F)."""
    shape = torch.randint(len(words.SHAPES), (len(truth),), generator=generator)
    truth[:, words.NAME] = words.NAMES_OF[words.SHAPE].start + shape
    return print_mask(shapes.shapes()[shape], generator, turn=0.15, reweigh=False), truth
