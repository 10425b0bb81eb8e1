"""Two values that belong to every experiment, both known before anything is fitted.

Protocol    what is asked: how few shots are drawn, what is tuned, which classes are tested
Run         what a result is of: a method under a protocol on one dataset, and nothing measured
"""

import hashlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict, get_args

from annotated_types import Interval
from numpy.typing import ArrayLike

from cache.errors import UserError, unknown
from cache.identity import canonical_json
from cache.names import safe_name
from fewshot.model_selection.protocols import PROTOCOLS, Share, check_share, default_protocol
from fewshot.open_set import SCORES, Known, Score, checked_known
from fewshot.sampling import Sample, draw, draw_imbalanced, everything, parse_profile

if TYPE_CHECKING:
    from fewshot.method import MethodInfo

Setting = Literal[
    "few-shot", "base-to-new", "generalized", "domain-generalization", "cross-dataset", "open-set",
    "domain-adaptation",
]  # fmt: skip
SETTINGS: tuple[Setting, ...] = get_args(Setting)
# Learn the first half of the classes alone, of which the second half has names.
HALVES: tuple[Setting, ...] = ("base-to-new", "generalized")
TRANSFERS: tuple[Setting, ...] = (
    "domain-generalization", "cross-dataset", "domain-adaptation",
)  # fmt: skip
# Accuracies on parts of the test split, of which a result's accuracy is the harmonic mean of two.
PARTS: Mapping[str, tuple[str, ...]] = {
    "base-to-new": ("base", "new"),
    "generalized": ("seen", "unseen"),
    "open-set": ("known", "auroc", "fpr95"),
}
ADAPTED = ("known", "unknown")  # likewise, in adaptation to a domain with unknown classes
JOINTLY = "transductive "  # begins the setting of a result whose test images were joint
# Images of a class in the train split by which long-tailed recognition groups its test accuracy.
CLASS_GROUPS = {"many": range(101, 2**62), "medium": range(20, 101), "few": range(20)}


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


Count = Annotated[int, Interval(ge=0, le=2**53)]
Seed = Annotated[int, Interval(ge=-(2**63), lt=2**63)]  # what random number generators take
Plain = bool | int | float | str | None


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
        imbalance: Profile of unequal classes, as in `sampling.draw_imbalanced`; `natural` is the
            same as all shots.
        views: Learn from the store's augmented views where it has some, else from center crops.
        setting: Which classes are tested: those learned, or base and new ones apart
            (`base-to-new`) or together (`generalized`), or another dataset's, or known among
            unknown ones.
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
        if self.shots != "all" and (type(self.shots) is not int or self.shots < 0):
            raise UserError(f"shots must be 0 or more; got {self.shots!r:.60}")
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number of 64 bits; got {self.seed!r:.60}")
        check_share(self.blend)
        if self.known is not None:
            object.__setattr__(self, "known", checked_known(self.known))
            if self.setting == "few-shot":
                object.__setattr__(self, "setting", "open-set")
        if (self.known is None) == (self.setting == "open-set"):
            raise UserError(
                "open-set needs the known classes, and no other setting has some; "
                f"got known {self.known!r:.60} and {self.setting}"
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
        whole = ("few-shot", "domain-adaptation")  # settings in which no class is left out
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
            return everything(train_labels, classnames, seed=self.seed)
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


def setting_name(method: "MethodInfo", setting: str) -> str:
    """The name that a result has for its setting: it says when the test images were joint."""
    return f"{JOINTLY}{setting}" if method.transductive else setting


def plain_setting(setting: str) -> str:
    """The setting without the word that says that the test images were joint."""
    return setting.removeprefix(JOINTLY)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The experiment that a result is of; equal for two results of the same experiment.

    Attributes:
        method: The method's name.
        fixed: Hyper-parameter -> its value, of those that were set and not tuned.
        dataset: The dataset that was tested.
        model: The CLIP model's name.
        setting: Which task it was; results of different settings are never averaged. One of
            zero-shot, few-shot, imbalanced, unsupervised, base-to-new, generalized,
            domain-generalization, cross-dataset, open-set and domain-adaptation, with
            `transductive` before it where the test images were classified together.
        fitted_on: The dataset that was learned from.
        shots: K, images per class that the method learned from, or of the largest class where they
            differ; 0 without labels.
        seed: Random seed that drew them; 0 where nothing was drawn.
        tune: The tuning protocol.
        imbalance: Profile of unequal classes; None where they are alike.
        prompt_set: The prompt set that was asked for; None for the dataset's own.
        n_views: V, augmented views of each image; 1 is its center crop alone, 0 is no stored
            features of labeled images.
        blend: The method's share of the logits that was asked for; `auto` also where it stands
            alone.
        fingerprint: The fingerprint of the store that was tested on.
        known: The known classes, by number or by name; None where all are.
        score: The score that separated images of known classes from others; None where all are
            known.
        synthesized: The generator of the new classes' features, and what was set of it; None where
            all features are of images.
        threshold: The certainty below which an image of the target was unknown; None elsewhere.
    """

    method: str
    fixed: Mapping[str, Plain | list[Plain]] = field(hash=False)
    dataset: str
    model: str
    setting: str
    fitted_on: str
    shots: Count
    seed: Seed
    tune: str
    imbalance: str | None
    prompt_set: str | None
    n_views: Count
    blend: Share
    fingerprint: str
    known: Known | None = None
    score: Score | None = None
    synthesized: str | None = None
    threshold: float | None = None

    @classmethod
    def planned(
        cls,
        method: "MethodInfo",
        protocol: Protocol,
        *,
        dataset: str,
        model: str,
        fingerprint: str,
        fitted_on: str | None = None,
        shots: int,
        fewest: int,
        n_views: int = 1,
    ) -> "Run":
        """The run that comes of a protocol, before it is fitted.

        Args:
            method: What is fitted.
            protocol: What is asked of it.
            dataset: The dataset to test.
            model: The CLIP model's name.
            fingerprint: The fingerprint of the store to test on.
            fitted_on: The dataset to learn from, where it is another one.
            shots: Images of the largest class of the few shots.
            fewest: Images of the smallest class.
            n_views: V of the support set.
        """
        support = protocol.support_for(method)
        setting: str = protocol.setting
        if setting == "few-shot" and (method.unsupervised() or not support):
            setting = "unsupervised" if method.unsupervised() else "zero-shot"
        if support and protocol.imbalance is not None and setting == "few-shot":
            setting = "imbalanced"
        return cls(
            method=method.name,
            fixed=dict(protocol.fixed),
            dataset=dataset,
            model=model,
            setting=setting_name(method, setting),
            fitted_on=fitted_on or dataset,
            shots=shots if support else 0,
            seed=protocol.seed if support else 0,
            tune=protocol.tune_for(method, fewest) if support else "none",
            imbalance=protocol.imbalance if support else None,
            prompt_set=protocol.prompt_set,
            n_views=n_views if support else 0,
            blend=protocol.blend if support and method.blends else "auto",
            fingerprint=fingerprint,
            known=None if protocol.known is None else checked_known(protocol.known),
            score=None if protocol.known is None else protocol.score,
            synthesized=protocol.synthesize if support else None,
            threshold=protocol.threshold if setting == "domain-adaptation" else None,
        )

    @property
    def run(self) -> "Run":
        """The run itself, without what came of it."""
        return Run(**{one.name: getattr(self, one.name) for one in fields(Run)})

    @property
    def row(self) -> "Run":
        """The run without its shots and seed: equal for runs that may share a row of a table."""
        return replace(self.run, shots=0, seed=0)

    @property
    def source(self) -> str:
        """The dataset that was learned from where it is not the one tested, else empty."""
        return self.fitted_on if plain_setting(self.setting) in TRANSFERS else ""

    @property
    def detail(self) -> str:
        """The task beyond the setting's name: which are known, how unequal, from what features."""
        if self.synthesized is not None:
            return f"with {self.synthesized}"
        if self.threshold is not None:
            return f"known from {self.threshold}"
        if self.known is None:
            return self.imbalance or ""
        known = self.known if isinstance(self.known, int) else ", ".join(self.known)
        return f"{known} known by {self.score}"

    def anywhere(self) -> Self:
        """The same on no dataset in particular: equal for runs that an average may be over."""
        return replace(self, dataset="", fitted_on=self.source, fingerprint="")

    @property
    def name(self) -> str:
        """The method with what was fixed of it: `gda alpha=2.0`, `gda blend=1.0`."""
        words = [self.method, *(f"{name}={value}" for name, value in self.fixed.items())]
        return " ".join(words if self.blend == "auto" else [*words, f"blend={self.blend}"])

    @property
    def label(self) -> str:
        """The run in words, such as `gda alpha=2.0 dtd RN50/openai 4 shots, seed 1`."""
        words = [self.name, self.dataset, self.model]
        words += [f"prompts {self.prompt_set}"] if self.prompt_set else []
        words += [f"{self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}"] * (self.shots > 0)
        told = self.known is not None or self.synthesized is not None
        return " ".join([*words, self.detail] if told else words)

    @property
    def file_name(self) -> str:
        """A name for its predictions, which differs for whatever differs in two runs."""
        given = [one for one in fields(Run) if getattr(self, one.name) != one.default]
        values = {one.name: getattr(self, one.name) for one in given}
        digest = hashlib.sha256(canonical_json(values).encode()).hexdigest()[:12]
        return f"{safe_name(f'{self.method}-{self.dataset}')}-{digest}.npz"

    def command(self, store: Path, out: Path, *, end_to_end: bool = False) -> str:
        """The command that runs it again, quoted for a shell.

        Args:
            store: The folder of stores.
            out: The folder of results.
            end_to_end: It is `train` that runs the method, and not `fit`.
        """
        words = ["fewshot", "train" if end_to_end else "fit", self.method, "--model", self.model]
        if self.threshold is None:
            words += ["--dataset", self.fitted_on]
            words += ["--test-on", self.dataset] if self.source else []
        else:
            words += ["--dataset", self.dataset, "--source", self.fitted_on]
            words += ["--threshold", str(self.threshold)]
        if self.imbalance == "natural":
            words += ["--shots", "all", "--seed", str(self.seed)]
        elif self.shots:
            words += ["--shots", str(self.shots), "--seed", str(self.seed)]
            words += ["--imbalance", self.imbalance] if self.imbalance else []
        else:
            words += ["--shots", "0"]
        if self.tune == OFFICIAL:
            words += ["--official"]
        elif self.shots and not end_to_end:
            words += ["--tune", self.tune]
        for name, value in self.fixed.items():
            words += _words(name, value)
        words += ["--prompts", self.prompt_set] if self.prompt_set else []
        words += [] if self.blend == "auto" else ["--blend", str(self.blend)]
        halves = plain_setting(self.setting)
        words += [f"--{halves}"] if halves in HALVES else []
        if self.known is not None:
            known = str(self.known) if isinstance(self.known, int) else ",".join(self.known)
            words += ["--known", known, "--score", str(self.score)]
        words += ["--synthesize", self.synthesized] if self.synthesized else []
        words += ["--store", str(store)]
        words += ["--out", str(out)] if end_to_end else ["--results", str(out / "results.jsonl")]
        return shlex.join(words)


def _words(name: str, value: Plain | list[Plain]) -> list[str]:
    """The option that sets it; what end-to-end methods record of images has options of its own."""
    match name, value:
        case "crop_scale", [least, most]:
            return ["--crop-scale", str(least), str(most)]
        case "flip", bool(flip):
            return ["--flip" if flip else "--no-flip"]
        case "sample", "val first":
            return ["--official"]
        case _:
            return ["--set", f"{name}={value}"]
