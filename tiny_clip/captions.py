"""What the tiny CLIP is told: captions for a drawn picture, and which captions fit which pictures.

A caption states some of the facts of `tiny_clip.words` and leaves the others `UNSAID`, so that it
fits every picture that agrees with all it states, not only the one it was written for.
"""

from random import Random

import torch
from torch import Tensor

from tiny_clip import words

FRAMES = (
    "{}", "{}.", "a photo of {}", "a photo of {}.", "an image of {}", "an image of {}.",
    "a picture of {}", "a picture of {}.", "a drawing of {}.", "this is {}.",
    "a small photo of {}.", "a blurry photo of {}.", "a low resolution photo of {}.",
    "a close-up photo of {}.",
)  # fmt: skip
DIGIT_PHRASES = (
    "the {look}digit {name}", "the {look}number {name}", "a {look}digit {name}", "a {look}{name}",
    "the {look}digit: {name}", 'the {look}number: "{name}"', "a {look}number {name}",
    "{look}{name}", "the {look}figure {name}",
)  # fmt: skip
LETTER_PHRASES = ("the {look}letter {name}", "a {look}letter {name}", "a {look}{name}")
THING_PHRASES = ("a {look}{name}", "the {look}{name}", "{look}{name}")
PATTERN_PHRASES = (
    "a {look}texture", "a {look}pattern", "a {look}surface", "a {look}background", "{look}texture",
)  # fmt: skip


def describe(truth: list[int], rng: Random) -> tuple[str, list[int]]:
    """One caption for a picture, and the facts it states (`UNSAID` for the others)."""
    said = [words.UNSAID] * len(words.FACTS)
    group = truth[words.GROUP]
    said[words.GROUP] = group

    def state(fact: int, probability: float) -> bool:
        if truth[fact] == words.UNSAID or rng.random() >= probability:
            return False
        said[fact] = truth[fact]
        return True

    look = ""
    if state(words.MEDIUM, 0.15):
        look += rng.choice(words.MEDIA[truth[words.MEDIUM]]) + " "
    if state(words.CASE, 0.5):
        look += rng.choice(words.CASES[truth[words.CASE]]) + " "
    if group == words.PATTERN:
        phrase = _pattern(truth, said, rng)
        return rng.choice(FRAMES).format(_article(phrase)), said
    colorful = group == words.SHAPE
    if state(words.TEXTURE, 0.7):
        look += rng.choice(words.TEXTURES[truth[words.TEXTURE]]) + " "
    if state(words.INK, 0.7 if colorful else 0.2):
        look += words.COLOR_NAMES[truth[words.INK]] + " "

    state(words.NAME, 1.0)
    name = words.NAMES[truth[words.NAME]]
    if group == words.DIGIT and rng.random() < 0.5:
        name = str(truth[words.NAME])
    phrases = {words.DIGIT: DIGIT_PHRASES, words.LETTER: LETTER_PHRASES}.get(group, THING_PHRASES)
    phrase = rng.choice(phrases).format(look=look, name=name)
    if state(words.GROUND, 0.5 if colorful else 0.15):
        phrase += f" on a {words.COLOR_NAMES[truth[words.GROUND]]} background"
    return rng.choice(FRAMES).format(_article(phrase)), said


def fits(said: Tensor, truth: Tensor) -> Tensor:
    """(M, N) bool: whether caption m, stating (M, F) facts, is true of picture n, (N, F) facts."""
    stated, actual = said[:, None, :], truth[None, :, :]
    return torch.all((stated == words.UNSAID) | (stated == actual), dim=-1)


def _pattern(truth: list[int], said: list[int], rng: Random) -> str:
    """A phrase for a picture that is texture all over; states its texture, colors or both."""
    style = rng.choice(("texture", "both", "both"))
    said[words.TEXTURE] = truth[words.TEXTURE]
    look = rng.choice(words.TEXTURES[truth[words.TEXTURE]]) + " "
    if style == "both" or truth[words.TEXTURE] == words.PLAIN:
        said[words.INK], said[words.GROUND] = truth[words.INK], truth[words.GROUND]
        colors = [
            words.COLOR_NAMES[c]
            for c in (truth[words.INK], truth[words.GROUND])
            if c != words.UNSAID
        ]
        rng.shuffle(colors)
        look += " and ".join(colors) + " "
    return rng.choice(PATTERN_PHRASES).format(look=look)


def _article(phrase: str) -> str:
    """The phrase with "a" made "an" before a vowel, as in "an orange eight"."""
    if phrase.startswith(("a a", "a e", "a i", "a o", "a 8", "a upper")):
        return "an " + phrase[2:]
    return phrase
