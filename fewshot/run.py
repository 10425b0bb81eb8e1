"""The experiment that a result is of: a method under a protocol on a dataset, nothing measured."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from annotated_types import Interval

from cache.files.json_text import canonical_json
from cache.files.names import safe_name
from fewshot.model_selection.protocols import Share
from fewshot.open_set import Known, Score, checked_known
from fewshot.protocol import HALVES, OFFICIAL, TRANSFERS, Protocol

if TYPE_CHECKING:
    from fewshot.method import MethodInfo

# Accuracies on parts of the test split, of which a result's accuracy is the harmonic mean of two.
PARTS: Mapping[str, tuple[str, ...]] = {
    "base-to-new": ("base", "new"),
    "generalized": ("seen", "unseen"),
    "open-set": ("known", "auroc", "fpr95"),
    "multi-label": ("mAP",),
}
ADAPTED = ("known", "unknown")  # likewise, in adaptation to a domain with unknown classes
# Likewise, where images may have several labels and there were thresholds.
LABELED = ("macro F1", "micro F1", "macro precision", "macro recall")
JOINTLY = "transductive "  # begins the setting of a result whose test images were joint
# Images of a class in the train split by which long-tailed recognition groups its test accuracy.
CLASS_GROUPS = {"many": range(101, 2**62), "medium": range(20, 101), "few": range(20)}
Count = Annotated[int, Interval(ge=0, le=2**53)]
Seed = Annotated[int, Interval(ge=-(2**63), lt=2**63)]  # what random number generators take
Plain = bool | int | float | str | None


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
            domain-generalization, cross-dataset, open-set, domain-adaptation and multi-label,
            with `transductive` before it where the test images were classified together.
        fitted_on: The dataset that was learned from.
        shots: K, images per class that the method learned from, or of the largest class where they
            differ; 0 without labels.
        seed: Random seed that drew them, or that a training without them had; 0 where nothing was
            drawn.
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
            seed=protocol.seed if support or method.seeded else 0,
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
        elif end_to_end:
            words += ["--seed", str(self.seed)]
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
