"""Which methods are worth trying on so many images and classes: those done in seconds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewshot.methods import METHODS


@dataclass(frozen=True)
class Candidates:
    """The methods to try, and those not to.

    Attributes:
        names: Of `METHODS`, the cheap ones first.
        left_out: Name -> why, half a sentence.
    """

    names: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _Limit:
    """The largest task that a method is tried on.

    Attributes:
        images: N.
        logits: N C, what a training step computes.
    """

    images: float = math.inf
    logits: float = math.inf


# From the seconds that tuning and fitting in five folds took on one core, 512 features, up to 4000
# images and 100 classes. All together a minute at 400 images, and two minutes at 4000. The first
# four do without the matrix of all pairs and without training, at any size.
LIMITS = {
    "zero-shot": _Limit(),
    "nearest-mean": _Limit(),
    "gda": _Limit(),
    "ridge": _Limit(),
    "tip-adapter": _Limit(images=20_000),
    "ape": _Limit(images=20_000, logits=2_000_000),
    "tip-x": _Limit(images=10_000, logits=1_000_000),
    "proker": _Limit(images=2000),
    "linear-probe": _Limit(images=5000, logits=200_000),
    "lp++": _Limit(images=2000, logits=200_000),
    "text-probe": _Limit(images=2000, logits=100_000),
    "tip-adapter-f": _Limit(images=1000),
    "ape-t": _Limit(images=500),
    "zs-lp": _Limit(images=500, logits=10_000),
    "clap": _Limit(images=500, logits=10_000),
    "cross-modal": _Limit(images=500, logits=10_000),
    "taskres": _Limit(images=200),
    "clip-adapter": _Limit(images=200),
}


def candidates(n_images: int, n_classes: int) -> Candidates:
    """The methods to try on N images of C classes; what has no text to learn from fails by itself.

    Never those whose logits of an image depend on the images beside it, nor those that learn from
    unlabeled images: labels could not say how good they are by folds, or would be wasted.
    """
    left_out = {}
    for name, kind in METHODS.items():
        limit = LIMITS.get(name)
        if limit is None:
            left_out[name] = (
                "classifies images together, not one by one"
                if kind.transductive
                else "learns from images without labels"
            )
        elif n_images > limit.images:
            left_out[name] = f"slow with more than {limit.images:,} images"
        elif n_images * n_classes > limit.logits:
            left_out[name] = f"slow with more than {limit.logits:,} images times classes"
    return Candidates(tuple(name for name in LIMITS if name not in left_out), left_out)
