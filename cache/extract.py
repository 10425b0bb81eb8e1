"""A dataset and a frozen CLIP into a feature store, resumable at any moment.

Shards are encoded one by one into a directory beside the store, then the store is assembled from
them and takes its name last. The directory is named after everything that changes a byte, so shards
of another model, of other templates or of other images are never taken for these.
"""

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cache import engines
from cache.encoder import Encoder
from cache.errors import UserError, count, unknown
from cache.identity import Recipe, fingerprint, identity_of
from cache.parts import Parts
from cache.progress import progress
from cache.prompts import require_readable
from cache.shards import (
    Shard,
    ShardPlan,
    TextShard,
    encode_text_shard,
    image_shards,
    text_shards,
)
from cache.skipped import cannot_read, listed
from cache.source import Source
from cache.store import FeatureStore
from cache.store_writer import StoreWriter, create

IF_EXISTS = ("resume", "skip", "overwrite", "error")


def extract(
    source: Source,
    encoder: Encoder,
    recipe: Recipe,
    store: Path,
    *,
    batch_size: int = 64,
    workers: int = 2,
    if_exists: str = "resume",
    skip_unreadable: bool = False,
    part: tuple[int, int] | None = None,
    engine: str = "serial",
    processes: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Build the store at `store`; False where nothing was to be done.

    Args:
        source: The images, already checked.
        encoder: The model.
        recipe: What to encode.
        store: Where the store goes.
        batch_size: Crops per forward pass.
        workers: Threads that decode images.
        if_exists: "resume" (finish what was begun; a finished store of the same identity is left
            alone unless images were modified since, one of another identity is an error), "skip"
            (leave any store alone), "overwrite" or "error".
        skip_unreadable: Leave out images that do not decode, and list them in the store.
        part: (i, n): encode only every n-th shard from the i-th (1-based) on, and leave the
            assembly to a run without it.
        engine: "serial", "process" or "ray": who encodes the shards.
        processes: Worker processes or actors of the last two.
        say: Called with the reason why a finished store is made again, and with each image that
            does not decode and is not to be left out.

    Raises:
        UserError: The store exists and may not be touched, another process is writing it, or an
            image cannot be read.
    """
    if if_exists not in IF_EXISTS:
        raise unknown("--if-exists", if_exists, IF_EXISTS)
    if store.exists() and if_exists == "error":
        raise UserError(f"{store} exists; --if-exists resume, skip or overwrite says what to do")
    if store.exists() and if_exists == "skip":
        return False
    what = identity_of(source, encoder, recipe)
    home = store.with_name(f".{store.stem}.parts")
    key = fingerprint({"identity": what, "batch_size": batch_size})
    if store.exists() and if_exists == "resume":
        FeatureStore.open(store).require(what)
        made = store.stat().st_mtime_ns
        rows = recipe.rows(source)
        changed = [
            path for split in rows for path in source.changed_since(made, split, rows[split])
        ]
        if not changed:
            _remove_parts(store, home / key[:16])
            return False
        say(
            f"{count(len(changed), 'image')} modified since {store} was made, the first "
            f"{changed[0]}; encoding all again (--if-exists skip keeps the store)"
        )
    for prompts in recipe.prompts.values():  # before any image is encoded
        require_readable(encoder.tokenizer, prompts.prompts)
    plan = ShardPlan(
        source, Parts(home / key[:16]), batch_size, recipe.crop_scale, recipe.view_seed,
        skip_unreadable,
    )  # fmt: skip
    images = image_shards(recipe.rows(source), recipe.views)
    texts = text_shards({name: p.prompts for name, p in recipe.prompts.items()})
    with _alone(store, part):
        mine = images if part is None else images[part[0] - 1 :: part[1]]
        missing = [shard for shard in mine if not plan.done(shard)]
        total, left = (sum(len(shard.rows) for shard in shards) for shards in (mine, missing))
        with progress(f"{source.dataset}: images", total, total - left) as advance:
            engines.run(plan, missing, encoder, advance, workers, engine, processes)
        changed = [path for shard in mine for path in plan.changed(shard)]
        if changed:
            raise UserError(
                f"{count(len(changed), 'image')} modified while the images were encoded, the first "
                f"{changed[0]}; run the same command again"
            )
        unread = [image for shard in mine for image in plan.skipped(shard).values()]
        if unread and not skip_unreadable:
            for line in listed(unread):
                say(line)
            raise cannot_read(unread)
        if part is not None:
            return True
        missing_text = [shard for shard in texts if not plan.parts.done(shard.name)]
        total, left = (sum(len(s.prompts) for s in shards) for shards in (texts, missing_text))
        with progress(f"{source.dataset}: prompts", total, total - left) as advance:
            for shard in missing_text:
                encode_text_shard(plan.parts, shard, encoder)
                advance(len(shard.prompts))
        _assemble(store, what, plan, recipe, images, texts, encoder.text_projection)
        shutil.rmtree(home)
    return True


@contextlib.contextmanager
def _alone(store: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Hold the store, or one part of it, against a second writer."""
    suffix = "" if part is None else f".{part[0]}-of-{part[1]}"
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f".{store.stem}{suffix}.lock"), blocking=False)
    try:
        with lock:
            yield
    except Timeout:
        raise UserError(
            f"another process is writing {store}; wait for it, or stop it and run this again"
        ) from None


def _remove_parts(store: Path, parts: Path) -> None:
    """Remove what a finished store was made of, which a run killed just then left behind."""
    if not parts.exists():
        return
    with contextlib.suppress(UserError), _alone(store, None):  # unless somebody is at it
        shutil.rmtree(parts)
        with contextlib.suppress(OSError):  # parts of another identity are there as well
            parts.parent.rmdir()


def _assemble(
    store: Path,
    what: dict[str, Any],
    plan: ShardPlan,
    recipe: Recipe,
    shards: list[Shard],
    texts: list[TextShard],
    projection: Tensor | None,
) -> None:
    """The store from its finished shards; rows that were skipped are left out of every split."""
    skipped = {
        (shard.split, row): image for shard in shards for row, image in plan.skipped(shard).items()
    }
    found = list(skipped.values())
    if recipe.train_rows is not None and any(image.split == "train" for image in found):
        raise UserError(
            "leaving out train images that do not decode changes the few-shot sample; remove them "
            f"from the dataset and run this again: {'; '.join(map(str, found))}"
        )
    with create(
        store,
        identity=what,
        classnames=plan.source.classnames,
        versions=versions() | _computed(plan, [*shards, *texts]),
        skipped=[*recipe.left_out, *found],
    ) as writer:
        for split in plan.source.splits:
            gone = {row for s, row in skipped if s == split}
            mine = [shard for shard in shards if shard.split == split]
            _write_split(writer, plan, recipe, split, gone, mine)
        for name, prompts in recipe.prompts.items():
            pieces = [plan.parts.load(t.name) for t in texts if t.prompt_set == name]
            embeddings = torch.cat([piece["embeddings"] for piece in pieces]).numpy()
            labels, sentences = np.array(prompts.labels), list(prompts.prompts)
            pooled = None
            if projection is not None:
                pooled = torch.cat([piece["pooled"] for piece in pieces]).numpy()
            writer.text(name, embeddings, labels, sentences, pooled)
        if projection is not None and recipe.prompts:
            writer.text_projection(projection.numpy())


def _write_split(
    writer: StoreWriter,
    plan: ShardPlan,
    recipe: Recipe,
    split: str,
    gone: set[int],
    shards: list[Shard],
) -> None:
    items = plan.source.splits[split]
    kept = [row for row in range(len(items)) if row not in gone]
    encoded = [row for shard in shards for row in shard.rows if row not in gone]
    rows = None if encoded == kept else np.searchsorted(kept, encoded)
    views = recipe.views if split == "train" else 0
    writer.split(
        split,
        labels=np.array([items[row].label for row in kept], dtype=np.int64),
        paths=[items[row].path for row in kept],
        dim=int(writer.identity["model"]["dim"]),
        rows=rows,
        n_views=views,
    )
    start = 0
    for shard in shards:
        tensors = plan.parts.load(shard.name)
        writer.write(split, start, tensors["features"].numpy())
        if views:
            writer.write_views(split, start, tensors["views"].numpy())
        start += len(tensors["rows"])


def _computed(plan: ShardPlan, shards: Sequence[Shard | TextShard]) -> dict[str, str]:
    """What a store records of how it was computed, besides versions; several where they differ."""
    notes = [plan.parts.note(shard.name) for shard in shards]
    on = {
        key: ", ".join(sorted({note.get(key, "unknown") for note in notes}))
        for key in ("processor", "threads")
    }
    digest = plan.source.manifest_digest[:12]
    return {**on, "batch_size": str(plan.batch_size), "manifest": digest}


def versions() -> dict[str, str]:
    """Versions of what computed the features."""
    names = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy", "h5py", "fewshot-clip")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def default_workers() -> int:
    """Decoding threads that keep a model fed: one per core, four at least, thirty-two at most."""
    return min(32, max(4, os.cpu_count() or 4))
