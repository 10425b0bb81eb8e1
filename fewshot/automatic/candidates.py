"""Which methods are worth trying on so many images and classes: those done in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass

from fewshot.methods import METHODS

QUICK = 0.5  # seconds of a `PracticalSize`: with stack these are tried in 4 s on 200 images
FIRST = ("stack",)  # of other methods, those that the first answer waits for


@dataclass(frozen=True)
class Candidates:
    """The methods to try, and those not to.

    Attributes:
        names: Of `METHODS`, the quickest first.
        left_out: Name -> why, half a sentence.
        named: True if the user named them.
    """

    names: tuple[str, ...]
    left_out: Mapping[str, str]
    named: bool = False

    @property
    def quick(self) -> tuple[str, ...]:
        """The methods of the first answer, the quickest first."""
        return tuple(
            name
            for name in self.names
            if name in FIRST or METHODS[name].practical_size.seconds <= QUICK
        )


def candidates(n_images: int, n_classes: int) -> Candidates:
    """Choose the methods to try on N images of C classes.

    Never those whose logits of an image depend on the images beside it, nor those that learn from
    unlabeled images: held-out labels could not say how good they are, or would be wasted. A method
    that needs text where there is none fails by itself.
    """
    kept, left_out = [], {}
    for name, method in METHODS.items():
        limit = method.practical_size
        if method.transductive:
            left_out[name] = "classifies images together, not one by one"
        elif method.unsupervised():
            left_out[name] = "learns from images without labels"
        elif n_images > limit.images:
            left_out[name] = f"slow with more than {limit.images:,} images"
        elif n_images * n_classes > limit.logits:
            left_out[name] = f"slow with more than {limit.logits:,} images times classes"
        else:
            kept.append(name)
    kept.sort(key=lambda name: METHODS[name].practical_size, reverse=True)
    return Candidates(tuple(kept), left_out)
