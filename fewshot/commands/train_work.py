"""The work of `train`, known before it starts: options that can stand together, steps, progress."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cache.errors import UserError, some
from fewshot.commands.parsing import parse_pairs
from fewshot.commands.terminal import say

if TYPE_CHECKING:
    from cache.datasets.source import Source
    from fewshot.endtoend.clip import EndToEnd
    from fewshot.open_set import Known

COMPOSITION = "composition"


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


def method_and_settings(
    method: str | None, composition: Path | None, settings: list[str] | None
) -> tuple[str, Mapping[str, str]]:
    """The method's name, and its settings as text, those of a composition's file among them.

    Args:
        method: As typed, or None.
        composition: A file that takes the place of a method, or None.
        settings: Of `--set`, which replace the file's.

    Raises:
        UserError: There are a method and a composition, or neither.
    """
    fixed = parse_pairs("--set", settings)
    if composition is not None:
        from fewshot.endtoend.search.composition_file import read_composition

        if method not in (None, COMPOSITION):
            raise UserError(f"--composition takes the place of a method; got {method} as well")
        return COMPOSITION, read_composition(composition) | fixed
    if method is None:
        raise UserError(
            "missing argument METHOD; `fewshot methods` lists them; or give --composition"
        )
    return method, fixed


def refuse_contradictions(
    known: str | None,
    score: str | None,
    base_to_new: bool,
    synthesize: str | None,
    labeled: str | None,
    threshold: float | None,
    official: bool,
    save: Path | None,
) -> None:
    """Raise unless these options can stand together."""
    if score is not None and known is None:
        raise UserError("--score separates known images from unknown ones; give --known as well")
    if known is not None and save is not None:
        raise UserError("--save keeps one adapter of all classes; leave --known out")
    if base_to_new and known is not None:
        raise UserError("--known and --base-to-new are two settings; give one")
    if base_to_new and save is not None:
        raise UserError("--save keeps one adapter of all classes; leave --base-to-new out")
    if synthesize is not None and not base_to_new:
        raise UserError("--synthesize makes features of new classes; give --base-to-new as well")
    if threshold is not None and labeled is None:
        raise UserError("--threshold is for domain adaptation; give --source as well")
    if labeled is not None and (known is not None or base_to_new or official or save is not None):
        raise UserError("--source excludes --known, --base-to-new, --official and --save; give one")


def said_of_computing(device: str, precision: str) -> list[object]:
    """The options of computing that are given, since each has a checkpoint of its own."""
    return [word for word in (device, precision) if word != "auto"]


def start_or_continue(checkpoint: Path, method: "EndToEnd", *earlier: Path, resume: bool) -> None:
    """Say where the training starts.

    Args:
        checkpoint: The run's.
        method: The method.
        *earlier: The checkpoints of its earlier stages, the last one first.
        resume: Continue from a checkpoint.

    Raises:
        UserError: It must not continue, and there is a checkpoint.
    """
    from fewshot.endtoend.checkpoint import steps_done
    from fewshot.endtoend.finished import require_new

    if not resume:
        require_new(checkpoint, *earlier)
        return
    for path in (checkpoint, *earlier):
        if done := steps_done(path):
            say(f"continuing after {method.step_name} {done} of {path}")
        if path.exists():  # a damaged one is refused when it is read
            return
    say(f"no checkpoint {checkpoint} to continue from; starting over")
