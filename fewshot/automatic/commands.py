"""The commands that repeat each step, as one types them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cache.errors import printable
from cache.pair import Pair
from cache.store import FeatureStore
from fewshot.method import Method
from fewshot.settings import configure

PHOTOS = "PHOTOS"  # what stands for the user's photos in the command that classifies them


@dataclass(frozen=True)
class Command:
    """One step.

    Attributes:
        does: What it does, a sentence.
        line: The command, quoted for a shell.
    """

    does: str
    line: str


def quoted(*words: str | Path) -> str:
    """The words as one line for a POSIX shell."""
    return shlex.join(map(str, words))


def settings(method: Method, logit_scale: float) -> list[str]:
    """`--set NAME=VALUE` for all that tuning chose, and all else that is not as it is by default.

    Args:
        method: With its hyper-parameters as tuned.
        logit_scale: The store's, which methods have by default.
    """
    usual = configure(method.name, logit_scale=logit_scale)
    words = []
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name == "seed" or value is None:  # `--seed` sets it; text cannot say None
            continue
        if field.name in method.grid or value != getattr(usual, field.name):
            words += ["--set", f"{field.name}={_text(value)}"]
    return words


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def commands(
    store: FeatureStore,
    method: Method,
    *,
    dataset: str,
    adapter: Path,
    temperature: float,
    root: Path | None,
    seed: int,
    encoding: Mapping[str, object],
    again: Mapping[str, object],
    skip: bool,
) -> tuple[Command, ...]:
    """The commands of each step, and of the next ones.

    Args:
        store: Of the labeled images.
        method: The winner, with its hyper-parameters as tuned.
        dataset: The images as the user named them.
        adapter: Where the winner was saved.
        temperature: Of the adapter's probabilities.
        root: The folder of stores, if it is not the default one.
        seed: Random seed of folds and training.
        encoding: Option -> value for whatever encodes; None for one left out, True for a flag.
        again: The same for the `fewshot auto` that does all of it.
        skip: True if there were images that cannot be read.
    """
    model = ["--model", store.model, *([] if root is None else ["--store", str(root)])]
    whole = model[2:] if again.get("--models") else model
    extract = ["fewshot", "extract", "--dataset", dataset, "--all-train"]
    encoder = _options(encoding)
    unreadable = ["--skip-unreadable"] if skip else []
    fit = ["fewshot", "fit", method.name, "--dataset", store.dataset]
    learning: Sequence[str] = []
    if method.takes_support():
        learning = ["--shots", "all", *(["--seed", str(seed)] if seed != 1 else [])]
    chosen = settings(method, store.logit_scale)
    shared = ["--pair-weight", str(store.share)] if isinstance(store, Pair) else []
    calibrated = ["--temperature", repr(temperature)]
    return (
        Command(
            "All of it again",
            quoted("fewshot", "auto", dataset, *whole, *encoder, *_options(again)),
        ),
        Command(
            "Encode the photos and the class names, once",
            quoted(*extract, *model, *encoder, *unreadable),
        ),
        Command(
            "Fit the winner to all labels, with the settings that were chosen",
            quoted(*fit, *model, *learning, *shared, *chosen, *calibrated, "--save", adapter),
        ),
        Command(
            f"Classify new photos; {PHOTOS} stands for files or folders",
            quoted("fewshot", "predict", adapter, PHOTOS),
        ),
    )


def _options(values: Mapping[str, object]) -> list[str]:
    return [
        word
        for name, value in values.items()
        if value
        for word in ((name,) if value is True else (name, str(value)))
    ]


def script(steps: Sequence[Command], directory: Path) -> str:
    """A shell script that repeats the steps.

    The first, which is all of them, and the last, which needs photos, are comments.

    Args:
        steps: By `commands`.
        directory: In which they were typed.
    """
    lines = ["#!/bin/sh", "set -e", quoted("cd", directory)]
    for step in steps:
        comment = step in (steps[0], steps[-1])
        # A line break in a name would end the comment, and the shell would run the rest.
        lines += ["", f"# {step.does}:", f"# {printable(step.line)}" if comment else step.line]
    return "\n".join(lines) + "\n"
