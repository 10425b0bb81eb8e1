"""The images and the prompts that `extract` was asked to encode."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError, count, unknown
from cache.location import IMAGE_ONLY
from fewshot.commands.parsing import parse_ints
from fewshot.commands.terminal import say

if TYPE_CHECKING:
    from cache.datasets.source import Source
    from cache.identity import Recipe
    from cache.images.skipped import Skipped
    from cache.prompts import PromptSet
    from fewshot.sampling import Rows

FewShots = Mapping[str, Sequence[int]]  # "shots" and "seeds" of the few-shot sets


def require_alone(*others: object) -> None:
    """Raise UserError if --unlabeled is given together with other options that say which images."""
    if any(others):
        raise UserError(
            "--unlabeled puts all images of a folder or of shards into one train split; leave "
            "--manifest, --support-only, --all-train, --download and --multi-label out"
        )


def typed_few_shots(shots: str | None, seeds: str) -> FewShots | None:
    """The few-shot sets of which alone the images are to be encoded; None for all images."""
    if shots is None:
        return None
    return {"shots": parse_ints("--support-only", shots), "seeds": parse_ints("--seeds", seeds)}


def train_rows(source: "Source", few: FewShots | None) -> "Rows | None":
    """The train rows of the few-shot sets that are asked for; None for all."""
    if few is None:
        return None
    from fewshot.sampling import support_rows

    source.require_one_label("--support-only")
    labels = [item.label for item in source.splits.get("train", ())]
    return support_rows(labels, source.classnames, shots=few["shots"], seeds=few["seeds"])


def checked(
    source: "Source", few: FewShots | None, *, skip_unreadable: bool
) -> tuple["Source", tuple["Skipped", ...]]:
    """The source after its pre-flight report, and the images left out of it."""
    from cache.datasets.preflight import check_files

    rows = train_rows(source, few)
    report = check_files(source, None if rows is None else rows.tolist())
    say(report.report())
    return report.passed(skip_unreadable=skip_unreadable)


def typed_prompts(
    source: "Source",
    templates: Sequence[str] | None,
    template_sets: Sequence[str] | None,
    files: Sequence[Path] | None,
) -> dict[str, "PromptSet"]:
    """The prompt sets of the classes.

    Args:
        source: The dataset.
        templates: In place of the dataset's own.
        template_sets: Names of further ones of the dataset.
        files: JSON files of sentences for each class.

    Raises:
        UserError: The dataset has no template set of a name, or a file is none of these.
    """
    from cache.prompts import prompt_sets

    for name in template_sets or ():
        if name not in source.template_sets:
            raise unknown(f"template set of {source.dataset}", name, source.template_sets)
    further = {name: source.template_sets[name] for name in template_sets or ()}
    return prompt_sets(source.classnames, templates or source.templates, files or (), further)


def require_text_tower(models: Sequence[str], *options: object) -> None:
    """Raise UserError if options of prompts are given and no model reads text."""
    if any(options) and all(name.startswith(IMAGE_ONLY) for name in models):
        raise UserError(f"{'+'.join(models)} encodes images alone; leave the prompts' options out")


def recipe_for(model: str, recipe: "Recipe") -> "Recipe":
    """The recipe without prompts where the model encodes images alone."""
    return replace(recipe, prompts={}) if model.startswith(IMAGE_ONLY) else recipe


def contents(recipe: "Recipe", source: "Source") -> str:
    """The number of images and of prompts."""
    images = sum(len(rows) for rows in recipe.rows(source).values())
    sentences = sum(len(prompts.prompts) for prompts in recipe.prompts.values())
    return f"{count(images, 'image')} and {count(sentences, 'prompt')}"
