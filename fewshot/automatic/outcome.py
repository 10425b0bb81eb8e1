"""All that was found out about a folder of photos."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from cache.datasets.preflight_report import Preflight
from cache.datasets.source import Source
from cache.errors import count
from cache.pair import Pair
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.automatic.backbones import Backbone, losses
from fewshot.automatic.commands import Command
from fewshot.automatic.diagnostics import Diagnostics
from fewshot.automatic.judging import CrossValidation
from fewshot.automatic.unlabeled import Unlabeled
from fewshot.automatic.wording import in_100
from fewshot.model_selection.conformal import COVERAGES, Coverage, check_coverage
from fewshot.model_selection.selection import MethodScore

# Of the labels. People mislabel fewer: in ten well-known test sets at most 10 % were wrong
# (Northcutt, Athalye and Mueller, 2021, https://arxiv.org/abs/2103.14749).
MOST_DOUBTFUL = 0.1


@dataclass(frozen=True)
class Tested:
    """The winner on test images that the user kept apart, looked at once, at the very end.

    Attributes:
        images: How many.
        accuracy: Top-1, in 0..1.
        interval: Its 95 % interval, Wilson's.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The findings of `auto`, and the files it wrote.

    Attributes:
        dataset: The images as the user named them.
        out: The folder of all that was written.
        source: The labeled images.
        report: The pre-flight report on them.
        store: Their features.
        judged: What became of the methods.
        adapter: The winner, fitted to all labels.
        diagnostics: What its answers out of fold say of the photos.
        tested: The winner on the user's own test images; None without any.
        unlabeled: What it makes of images without a label; None without any.
        commands: What repeats each step.
        seconds: Stage -> how long it took.
        backbones: The models that were compared, the fastest first; none where one was named.
    """

    dataset: str
    out: Path
    source: Source
    report: Preflight
    store: FeatureStore
    validation: CrossValidation
    adapter: Adapter
    diagnostics: Diagnostics
    tested: Tested | None
    unlabeled: Unlabeled | None
    commands: tuple[Command, ...]
    seconds: Mapping[str, float]
    backbones: tuple[Backbone, ...] = ()

    @property
    def winner(self) -> str:
        """The method's name."""
        return self.adapter.method

    @property
    def accuracy(self) -> float | None:
        """Of new images, corrected for the choice of method, 0..1; None where nobody can say."""
        selection = self.validation.selection
        return None if selection is None else selection.accuracy

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `accuracy`."""
        selection = self.validation.selection
        return None if selection is None else selection.interval

    @property
    def zero_shot(self) -> MethodScore | None:
        """The accuracy of class names alone; None where that was not tried."""
        selection = self.validation.selection
        return None if selection is None else selection.score_of("zero-shot")

    @cached_property
    def probabilities(self) -> Tensor | None:
        """(N, C) the winner's calibrated ones out of fold; NaN of images not judged."""
        winner = self.validation.winner
        if winner is None:
            return None
        return winner.probabilities(self.adapter.calibration.temperature)

    @cached_property
    def coverages(self) -> tuple[Coverage, ...]:
        """Prediction sets on images held out; none where too few were."""
        winner, t = self.validation.winner, self.adapter.calibration.temperature
        if winner is None:
            return ()
        seen = winner.judged
        held = winner.logits[seen], self.validation.labels[seen], self.validation.fold[seen]
        checked = (check_coverage(*held, t, coverage) for coverage in COVERAGES)
        return tuple(one for one in checked if one is not None)

    @cached_property
    def paths(self) -> list[str]:
        """N paths of the labeled images, relative to the source's root."""
        return self.store.paths("train")

    @property
    def doubtful_labels(self) -> int:
        """How many labels are worth another look.

        0 where more than a tenth are doubted: it is then the model that knows too little.
        """
        n = len(self.diagnostics.label_issues)
        return n if n <= MOST_DOUBTFUL * len(self.validation.labels) else 0

    @property
    def more_labels(self) -> str:
        """The gain that more labels would bring, in a sentence."""
        if self.validation.selection is None:
            return "a second photo of each class would let methods be compared, and judged"
        if self.diagnostics.curve is None:
            return f"{self.winner} learns nothing from labels, so more of them would not help it"
        return self.diagnostics.curve.sentence

    @property
    def adapter_path(self) -> Path:
        """Where the winner is."""
        return self.out / "adapter.safetensors"

    @property
    def page_path(self) -> Path:
        """Where the page is."""
        return self.out / "report.html"

    def summary(self) -> str:
        """The outcome in a few lines."""
        return "\n".join(_summary(self))

    def first_answer(self) -> str:
        """The first answer in two lines, while other methods or models are tried."""
        what = "further model" if self.backbones else "further method"
        more = count(len(self.validation.pending), what)
        return (
            f"first answer: {_summary(self)[0]}\n"
            f"it is in {self.out}, and stays if you stop here; {more} to try"
        )


def _summary(outcome: Outcome) -> list[str]:
    selection, interval = outcome.validation.selection, outcome.interval
    if selection is None or interval is None:
        lines = [
            (
                f"{outcome.winner}, on trust: with one photo of each class nothing can be held "
                "out, so how good it is nobody can say"
            )
        ]
    else:
        low, high = (f"{100 * share:.0f}" for share in interval)
        judged = count(selection.n_images, "labeled photo")
        labeled = len(outcome.validation.labels)
        if selection.n_images < labeled:
            judged = f"{selection.n_images:,} of {count(labeled, 'labeled photo')}"
        lines = [
            (
                f"{outcome.winner}: about {in_100(selection.accuracy)} new photos right, between "
                f"{low} and {high} (cross-validated on {judged})"
            )
        ]
    if outcome.zero_shot and outcome.winner != "zero-shot":
        lines.append(f"zero-shot, from class names alone: {in_100(outcome.zero_shot.accuracy)}")
    if outcome.backbones and selection is not None:
        own = next(one for one in outcome.backbones if one.model == outcome.store.model)
        tried = count(len(outcome.backbones), "model")
        weight = ""
        if isinstance(outcome.store, Pair):
            weight = f" with weight {outcome.store.share} for the first"
        price = f"{1000 * own.seconds:.1f} ms per image"
        lines.append(f"best of {tried}: {own.model}{weight}, {price}")
        lines += losses(outcome.backbones, selection, own.model)
    if outcome.tested:
        right = f"{100 * outcome.tested.accuracy:.1f} %"
        lines.append(f"on your own {count(outcome.tested.images, 'test photo')}: {right} right")
    open_set = outcome.adapter.open_set
    if open_set is not None:
        lines.append(
            "photos of none of the classes: "
            f"{'' if open_set.enough else 'at most '}{in_100(open_set.refused)} refused by predict "
            f"--unknown, which keeps 95 in 100 of the others (AUROC {open_set.auroc:.2f})"
        )
    lines.append(f"more labels: {outcome.more_labels}")
    if outcome.doubtful_labels:
        lines.append(f"labels to look at again: {outcome.doubtful_labels:,}")
    if outcome.unlabeled:
        n = count(len(outcome.unlabeled.paths), "photo")
        lines.append(f"without a label: {n}, predictions in {outcome.out / 'predictions.csv'}")
    lines.append(f"page: {outcome.page_path}")
    lines.append(f"next: {outcome.commands[-1].line}")
    return lines
