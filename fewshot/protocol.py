"""The task that is asked of a method: its few shots, its tuning, and the classes to test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np
from numpy.typing import ArrayLike

from cache.errors import UserError, excerpt, unknown
from fewshot.checks import require_seed
from fewshot.imbalance import draw_imbalanced, parse_profile
from fewshot.model_selection.protocols import PROTOCOLS, Share, check_share, default_protocol
from fewshot.open_set import SCORES, Score, checked_known
from fewshot.sampling import Sample, draw, everything

if TYPE_CHECKING:
    from fewshot.method import MethodInfo

Setting = Literal[
    "few-shot", "base-to-new", "generalized", "domain-generalization", "cross-dataset", "open-set",
    "domain-adaptation", "multi-label",
]  # fmt: skip
SETTINGS: tuple[Setting, ...] = get_args(Setting)
# Learn the first half of the classes alone, of which the second half has names.
HALVES: tuple[Setting, ...] = ("base-to-new", "generalized")
TRANSFERS: tuple[Setting, ...] = (
    "domain-generalization", "cross-dataset", "domain-adaptation",
)  # fmt: skip
OFFICIAL = "official"  # as a tuning protocol: the recipe of the method's paper


class Asked(TypedDict, total=False):
    """The fields of a `Protocol` as keywords, all optional."""

    shots: int | Literal["all"]
    seed: int
    tune: str | None
    fixed: Mapping[str, Any] | Collection[str]
    prompt_set: str | None
    sample: Sample | None
    imbalance: str | None
    views: bool
    setting: Setting
    known: int | Sequence[str] | None
    score: Score
    threshold: float
    blend: Share
    synthesize: str | None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The task that is asked of a method, checked once, here.

    Attributes:
        shots: K, images per class, or of the largest class where they are unequal; 0 for a method
            that needs none; "all" for every train image. Methods that use no labels ignore it.
        seed: Random seed for drawing the few shots, and for training.
        tune: The tuning protocol, one of `PROTOCOLS`; or `official` for the recipe of the
            method's paper, settings, views and search; None for `cv`, and `none` where a class has
            one image.
        fixed: Hyper-parameter -> its value, which is not tuned.
        prompt_set: The store's prompt set to make text features of; None for the dataset's own.
        sample: Few shots to use instead of drawing some; `shots` and `seed` are then its own.
        imbalance: Profile of unequal classes, as in `imbalance.draw_imbalanced`; `natural` is the
            same as all shots.
        views: Learn from the store's augmented views where it has some, else from center crops.
        setting: Which classes are tested: those learned, or base and new ones apart
            (`base-to-new`) or together (`generalized`), or another dataset's, or known among
            unknown ones. Images that may have several labels make it `multi-label`.
        known: From open set, the number of classes, from the first, or the names of those that are
            known; the others' images are unknown. It makes the setting `open-set`.
        score: How sure a classifier is that an image is of a known class; see `open_set.knownness`.
        threshold: In domain adaptation, the `open_set.certainty` below which an image is unknown.
        blend: The method's share of the logits, 0 to 1, where zero-shot has the rest; or `auto`,
            by how much zero-shot leaves open. See `model_selection.blending`.
        synthesize: The generator that makes features of the new classes, with its settings where
            they differ from the defaults, such as `ship beta=0.1`; None for none.

    Raises:
        UserError: A value that cannot be, or two that exclude each other.
    """

    shots: int | Literal["all"] = 0
    seed: int = 1
    tune: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    prompt_set: str | None = None
    sample: Sample | None = None
    imbalance: str | None = None
    views: bool = True
    setting: Setting = "few-shot"
    known: int | Sequence[str] | None = None
    score: Score = "mcm"
    threshold: float = 0.5
    blend: Share = "auto"
    synthesize: str | None = None

    def __post_init__(self) -> None:
        known = (*PROTOCOLS, OFFICIAL)
        if self.tune is not None and self.tune not in known:
            raise unknown("tuning protocol", self.tune, known)
        if self.setting not in SETTINGS:
            raise unknown("setting", self.setting, SETTINGS)
        if self.imbalance is not None:
            parse_profile(self.imbalance)
        for name in ("shots", "seed"):
            if isinstance(given := getattr(self, name), np.integer):
                object.__setattr__(self, name, int(given))
        if self.shots != "all" and (type(self.shots) is not int or self.shots < 0):
            raise UserError(
                f"shots must be a whole number, 0 or more, or all; got {excerpt(self.shots)}"
            )
        require_seed(self.seed)
        check_share(self.blend)
        if self.known is not None:
            object.__setattr__(self, "known", checked_known(self.known))
            if self.setting == "few-shot":
                object.__setattr__(self, "setting", "open-set")
        if self.known is None and self.setting == "open-set":
            raise UserError(
                "open-set needs the known classes; give known (--known), a number or names"
            )
        if self.known is not None and self.setting != "open-set":
            raise UserError(
                f"known classes (--known) belong to the setting open-set alone; got {self.setting}"
            )
        if self.score not in SCORES:
            raise unknown("score of known images", self.score, SCORES)
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold must be from 0 to 1; got {self.threshold!r:.60}")
        self._require_one_kind_of_sample()
        self._require_official_alone()
        values: dict[str, object] = {"fixed": dict(self.fixed)}
        if self.sample is not None:
            values |= {"shots": self.sample.shots, "seed": self.sample.seed}
        if self.tune == OFFICIAL:
            values |= {"blend": 1.0}
        if self.synthesize is not None:
            values |= {"synthesize": self._generator(self.synthesize)}
        if self.shots == "all" or self.imbalance == "natural":
            values |= {"shots": "all", "imbalance": "natural"}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _generator(self, words: str) -> str:
        """The generator's description, in one form.

        Raises:
            UserError: No such generator or setting, or no new classes to make features of.
        """
        from fewshot.synthesis.generators import described, generator_of  # with torch

        if self.setting not in HALVES:
            raise UserError(
                f"{words} makes features of classes without images, and {self.setting} has none; "
                "ask for base-to-new or generalized as well"
            )
        return described(generator_of(words))

    def _require_one_kind_of_sample(self) -> None:
        """Raise if what is asked excludes one another."""
        if self.sample is not None and not isinstance(self.sample, Sample):
            raise UserError(
                f"expected a sample as `draw` gives it; got {excerpt(self.sample)}; use draw"
            )
        if self.sample is not None and self.shots not in (0, self.sample.shots):
            raise UserError(
                f"the sample has its own shots, {self.sample.shots}; got shots {self.shots} as "
                "well; leave shots out"
            )
        imbalance = self.imbalance or ("natural" if self.shots == "all" else None)
        if self.shots == "all" and imbalance != "natural":
            raise UserError(
                f"shots all takes every train image, and imbalance {imbalance} takes some; give one"
            )
        given = [] if self.sample is None else ["a sample"]
        given += [] if imbalance is None else [f"imbalance {imbalance}"]
        # settings in which no class is left out
        whole = ("few-shot", "domain-adaptation", "multi-label")
        given += [] if self.setting in whole else [self.setting]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude one another; give one")

    def _require_official_alone(self) -> None:
        """Raise if a recipe is asked for together with what it decides itself, or cannot do."""
        if self.tune != OFFICIAL:
            return
        equal = self.imbalance is None and self.shots != "all"
        blended = self.blend not in ("auto", 1.0)
        if self.fixed or blended or not self.views or not equal or self.setting != "few-shot":
            raise UserError(
                "an official recipe decides hyper-parameters, views and blend itself, and is of as "
                "many shots of each class and a test of all classes; leave out what differs"
            )

    def draw(
        self,
        train_labels: ArrayLike,
        classnames: Sequence[str],
        *,
        val_labels: ArrayLike | None = None,
    ) -> Sample:
        """The few shots that are asked for, of a train split with these labels.

        Args:
            train_labels: (N,) class ids.
            classnames: C names by class id.
            val_labels: Class ids of the val split, where the protocol tunes on some of it.

        Raises:
            UserError: A class has too few images.
        """
        if self.sample is not None:
            return self.sample
        if self.shots == "all":
            return everything(train_labels, seed=self.seed)
        if self.imbalance is not None:
            return draw_imbalanced(
                train_labels, classnames, profile=self.imbalance, shots=self.shots, seed=self.seed
            )
        return draw(
            train_labels, classnames, shots=self.shots, seed=self.seed, val_labels=val_labels
        )

    def support_for(self, method: "MethodInfo") -> bool:
        """True if the method is given a support set.

        Raises:
            UserError: Unequal classes are asked for, and the method uses no labels.
        """
        if self.sample is not None:
            return method.takes_support()
        if self.shots == "all":
            return method.needs_support(1)
        if self.imbalance is None:
            return method.needs_support(self.shots)
        if not method.needs_support(self.shots) and not (method.unsupervised() and self.shots):
            raise UserError(f"{method.name} learns from no labels, which imbalance is about")
        return True

    def tune_for(self, method: "MethodInfo", fewest: int) -> str:
        """The tuning protocol on a support set; `none` where nothing is left to tune.

        Args:
            method: What is fitted.
            fewest: The images of the smallest class.
        """
        if self.tune == OFFICIAL:
            return OFFICIAL
        if not set(method.grid) - set(self.fixed):
            return "none"
        return self.tune or default_protocol(fewest)
