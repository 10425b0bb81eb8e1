"""The work of a training, known before it starts, for its progress."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cache.errors import UserError, some
from fewshot.commands.terminal import say

if TYPE_CHECKING:
    from cache.datasets.source import Source
    from fewshot.endtoend.clip import EndToEnd
    from fewshot.open_set import Known


@dataclass(frozen=True)
class Work:
    """The work of a training.

    Attributes:
        steps: Of the training.
        prompts: How many prompts each step has the text tower read.
    """

    steps: int
    prompts: int


def work_of(
    method: "EndToEnd",
    source: "Source",
    shots: "int | Literal['all']",
    known: "Known | None",
    *,
    base_to_new: bool,
    synthesize: str | None,
) -> Work:
    """The work on this dataset; a note where some of its classes have no image.

    Args:
        method: The method.
        source: The dataset.
        shots: K, or all.
        known: The classes with images in an open set; None without one.
        base_to_new: Learn from images of the first half of the classes.
        synthesize: The generator of features of the other half; None without one.

    Raises:
        UserError: All shots in base-to-new, or no train split.
    """
    from fewshot.endtoend.requirements import require_splits
    from fewshot.endtoend.training_set import TrainingSet
    from fewshot.few_shots import base_and_new
    from fewshot.open_set import checked_known, known_classes
    from fewshot.protocol import Protocol

    n_classes, n_train = len(source.classnames), len(source.splits.get("train", ()))
    if shots == "all" and not method.unsupervised():
        require_splits(source)
        drawn = TrainingSet.of(method, source, Protocol(shots="all"), val_first=False)
        if empty := [source.classnames[i] for i in drawn.without_images]:
            say(f"{some(empty)}: no train image; such a class is known by its text alone")
        steps = method.plan(drawn.mean_shots, n_train).iterations
    else:
        steps = method.steps(0 if shots == "all" else shots, n_classes, n_train)
    if known is not None:
        n_classes = len(known_classes(source.classnames, checked_known(known)))
    if base_to_new:
        base, _ = base_and_new(source, "base-to-new")
        if shots == "all":
            raise UserError("--base-to-new draws as many images of each class; give --shots K")
        steps = method.steps(shots, len(base), 0)  # images of new classes are not trained on
        n_classes = n_classes if synthesize else len(base)
    return Work(steps, n_classes if method.reads_prompts else 0)
