"""Photos into feature stores, whatever state an earlier run left these in."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cache.datasets.preflight import check_files
from cache.datasets.preflight_report import Preflight
from cache.datasets.source import Source
from cache.errors import UserError, count, none_can
from cache.extract import default_workers, extract
from cache.identity import Recipe, identity_of
from cache.location import bank_path, store_path
from cache.models.encoder import Encoder
from cache.pair import paired
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot.parts.gaussian import alike

Say = Callable[[str], None]


@dataclass(frozen=True)
class Encoding:
    """By what, to where and how photos are encoded.

    Attributes:
        encoders: The model, or the two of a pair.
        root: The folder of stores.
        workers: Threads that decode images; one per core or so if None.
        rehash: Read images again whose size and time of modification are as before.
        say: Called with what is known, and with what happens to an older store.
    """

    encoders: tuple[Encoder, ...]
    root: Path
    workers: int | None
    rehash: bool
    say: Say


def encode_labeled(report: Preflight, how: Encoding) -> FeatureStore:
    """The store of labeled images, and of their classes' prompts where the model reads text.

    Unreadable images are left out.

    Args:
        report: On these images.
        how: By what and to where.

    Raises:
        UserError: The report has problems, no image of a class can be read, or all are alike.
    """
    source, left_out = report.passed(skip_unreadable=True)
    recipe = Recipe(prompt_sets(source.classnames, source.templates), left_out=left_out)
    store = _encode(source, recipe, how)
    present = set(store.labels("train").tolist())
    empty = [name for c, name in enumerate(store.classnames) if c not in present]
    if empty:
        raise UserError(
            f"no image of {', '.join(empty[:5])} can be read; the store {store.path} says why; "
            "fix the images, or remove the class"
        )
    train = store.split("train")
    if alike(torch.from_numpy(train.features(unit=True))):
        raise UserError(
            f"all {count(len(train), 'photo')} look the same to {store.model}, so nothing "
            "tells the classes apart; look for one photo under all labels"
        )
    return store


def encode_unlabeled(source: Source, how: Encoding) -> FeatureStore | None:
    """The store of images without labels or prompts; None where none of them can be read."""
    unreadable = check_files(source).unreadable
    readable = source.without(image.path for image in unreadable)
    if not any(_decodes(source, item.path) for item in readable.splits["test"]):
        unread = none_can(len(source.splits["test"]), "image")
        how.say(f"of those without a label, {unread} be read")
        return None
    return _encode(readable, Recipe({}, left_out=unreadable), how)


def _decodes(source: Source, path: str) -> bool:
    try:
        source.read(path)
    except OSError:
        return False
    return True


def _encode(source: Source, recipe: Recipe, how: Encoding) -> FeatureStore:
    """The store, or the pair of the two models' stores."""
    stores = [_encode_by(encoder, source, recipe, how) for encoder in how.encoders]
    return paired(*stores) if len(stores) == 2 else stores[0]


def _encode_by(encoder: Encoder, source: Source, recipe: Recipe, how: Encoding) -> FeatureStore:
    """The store, begun or finished before or not; a new one if images or classes changed since."""
    recipe = recipe if encoder.reads_text else replace(recipe, prompts={})
    path = store_path(how.root, source.dataset, str(encoder.identity["name"]))
    stale = path.exists() and _others(FeatureStore.open(path), source, encoder, recipe)
    if stale:
        how.say(f"the images or classes are not those that {path} was made of; making it again")
    extract(
        source,
        encoder,
        recipe,
        path,
        bank=bank_path(how.root),
        rehash=how.rehash,
        workers=how.workers or default_workers(),
        if_exists="overwrite" if stale else "resume",
        skip_unreadable=True,
        say=how.say,
    )
    return FeatureStore.open(path)


def _others(store: FeatureStore, source: Source, encoder: Encoder, recipe: Recipe) -> bool:
    """True if the store was made in exactly this way, but of other images or classes.

    Any other difference, of the model or of views that somebody paid for, is left for `extract` to
    refuse.
    """
    wanted = identity_of(source, encoder, recipe)
    differing = {key for key in wanted if store.identity.get(key) != wanted[key]}
    return "dataset" in differing and differing <= {"dataset", "text"}
