"""Photos into feature stores, whatever state an earlier run left these in."""

from collections.abc import Callable
from pathlib import Path

from cache.encoder import Encoder
from cache.errors import UserError, none_can
from cache.extract import default_workers, extract
from cache.identity import Recipe, identity_of
from cache.preflight import Preflight, check_files
from cache.prompts import prompt_sets
from cache.source import Source
from cache.store import FeatureStore

Say = Callable[[str], None]


def encode_labeled(
    report: Preflight, encoder: Encoder, path: Path, *, workers: int | None, say: Say
) -> FeatureStore:
    """The store of labeled images and of their classes' prompts; unreadable images are left out.

    Args:
        report: On these images.
        encoder: The model.
        path: Where the store goes.
        workers: Threads that decode images; one per core or so without it.
        say: Called with what happens to an older store.

    Raises:
        UserError: The report has problems, or too few images of a class can be read.
    """
    source, left_out = report.passed(skip_unreadable=True)
    recipe = Recipe(prompt_sets(source.classnames, source.templates), left_out=left_out)
    store = _encode(source, encoder, recipe, path, workers, say)
    present = set(store.labels("train").tolist())
    empty = [name for c, name in enumerate(store.classnames) if c not in present]
    if empty:
        raise UserError(
            f"no image of {', '.join(empty[:5])} can be read; the store {store.path} says why; "
            "fix the images, or remove the class"
        )
    return store


def encode_unlabeled(
    source: Source, encoder: Encoder, path: Path, *, workers: int | None, say: Say
) -> FeatureStore | None:
    """The store of images without labels or prompts; None where none of them can be read."""
    unreadable = check_files(source).unreadable
    readable = source.without(image.path for image in unreadable)
    if not any(_decodes(source, item.path) for item in readable.splits["test"]):
        say(f"{none_can(len(source.splits['test']), 'image')} be read of those without a label")
        return None
    return _encode(readable, encoder, Recipe({}, left_out=unreadable), path, workers, say)


def _decodes(source: Source, path: str) -> bool:
    try:
        source.read(path)
    except OSError:
        return False
    return True


def _encode(
    source: Source,
    encoder: Encoder,
    recipe: Recipe,
    path: Path,
    workers: int | None,
    say: Say,
) -> FeatureStore:
    """The store, begun or finished before or not; a new one if images were changed since."""
    stale = path.exists() and _other_images(FeatureStore.open(path), source, encoder, recipe)
    if stale:
        say(f"the images are not those that {path} was made of; encoding them again")
    extract(
        source,
        encoder,
        recipe,
        path,
        workers=workers or default_workers(),
        if_exists="overwrite" if stale else "resume",
        skip_unreadable=True,
        say=say,
    )
    return FeatureStore.open(path)


def _other_images(store: FeatureStore, source: Source, encoder: Encoder, recipe: Recipe) -> bool:
    """Whether the store was made in just this way, but of other images or classes.

    Any other difference, of the model or of views that somebody paid for, is left for `extract` to
    refuse.
    """
    wanted = identity_of(source, encoder, recipe)
    differing = {key for key in wanted if store.identity.get(key) != wanted[key]}
    return "dataset" in differing and differing <= {"dataset", "text"}
