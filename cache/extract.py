"""A dataset and a frozen CLIP into a feature store, resumable at any moment.

What is not in the bank yet is encoded and put there, a shard at a time; then the store is assembled
from the bank and takes its name last.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cache.datasets.source import Source
from cache.errors import UserError, count, unknown
from cache.extraction import engines
from cache.extraction.bank import Bank
from cache.extraction.changed_images import refuse_modified, split_digests, why_again
from cache.extraction.digests import Digests
from cache.extraction.new_images import NewImages, groups
from cache.extraction.prompt_features import prompt_key, text_features
from cache.extraction.provenance import encoding_of, versions
from cache.extraction.shards import Cropping, fitting_batch
from cache.extraction.shared_features import SharedFeatures
from cache.extraction.store_assembly import assemble
from cache.identity import Recipe, fingerprint, identity_of
from cache.images.skipped import cannot_read, listed
from cache.models.encoder import Encoder
from cache.progress import progress
from cache.prompts import cut_prompts
from cache.store import FeatureStore

IF_EXISTS = ("resume", "skip", "overwrite", "error")


def extract(
    source: Source,
    encoder: Encoder,
    recipe: Recipe,
    store: Path,
    *,
    bank: Path | None = None,
    rehash: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    if_exists: str = "resume",
    skip_unreadable: bool = False,
    part: tuple[int, int] | None = None,
    engine: str = "serial",
    processes: int = 1,
    share: str | None = None,
    in_parts: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Build the store at `store`; False where nothing was to be done.

    Args:
        source: The images, already checked.
        encoder: The model.
        recipe: What to encode.
        store: Where the store goes.
        bank: File of features that are kept for other stores. Without it none are known, and those
            made here are kept until the store is finished.
        rehash: Read every image; else one that has the size and the time of modification it had
            when it was read last is taken to be the same.
        batch_size: Crops per forward pass; 8 on a CPU and 64 elsewhere without it.
        workers: Threads that decode images.
        if_exists: "resume" (finish what was begun; a finished store of the same identity is left
            alone unless images were replaced since, one of another identity is an error), "skip"
            (leave any store alone), "overwrite" or "error".
        skip_unreadable: Leave out images that do not decode, and list them in the store.
        part: (i, n): encode only every n-th shard from the i-th (1-based) on, and leave the
            assembly to a run without it.
        engine: "serial", "process" or "ray": who encodes the shards.
        processes: Worker processes or actors of the last two.
        share: A folder or URL where each shard's features are put as well, and taken from, for
            machines without a common disk.
        in_parts: Write the features into files of their own beside the store; without it, as many
            as are too many for one file.
        say: Called with the reason why a finished store is made again, with the number of images
            that are known, and with each image that does not decode and is not to be left out.

    Raises:
        UserError: The store exists and may not be touched, another process is writing it, an
            image cannot be read, or the model has no projection to keep features before.
    """
    if recipe.pre_projection and encoder.image_tower is None:
        raise UserError(
            f"{encoder.identity['name']} has no projection after a layer norm at the end of its "
            "image tower; leave --pre-projection out, or use a CLIP with a ViT, such as "
            "ViT-B-16/openai"
        )
    if if_exists not in IF_EXISTS:
        raise unknown("--if-exists", if_exists, IF_EXISTS)
    if store.exists() and if_exists == "error":
        raise UserError(f"{store} exists; --if-exists resume, skip or overwrite says what to do")
    if store.exists() and if_exists == "skip":
        return False
    what = identity_of(source, encoder, recipe)
    if store.exists() and if_exists == "resume":
        made = FeatureStore.open(store)
        made.require(what)
        with Bank.opened(bank or Path(":memory:")) as kept:
            digests = Digests(source, recipe.rows(source), kept, trust=not rehash)
            replaced = why_again(made, digests, workers)
            if source.place:  # the folder may have moved
                kept.found_at(store, source.place)
        if not replaced:
            return False
        say(replaced)
    for prompts in recipe.prompts.values():  # before any image is encoded
        if cut := cut_prompts(encoder.tokenizer, prompts.prompts):
            say(cut)
    passing = store.with_name(f".{store.stem}.bank.sqlite")
    with _alone(store, part), Bank.opened(bank or passing) as kept:
        batch_size = batch_size or fitting_batch(encoder)
        encoding = encoding_of(encoder, engines.threads(engine, processes), batch_size)
        number = kept.encoder(str(encoder.identity["name"]), encoding)
        cropping = Cropping(
            source, batch_size, recipe.crop_scale, recipe.view_seed, recipe.pre_projection
        )
        shared = None if share is None else SharedFeatures.of(share, encoding, part)
        images = _encode_images(
            cropping, encoder, recipe, kept, number, shared, part,
            trust=not rehash, workers=workers, engine=engine, processes=processes, say=say,
        )  # fmt: skip
        _refuse_unreadable(images, skip_unreadable, say)
        if part is None:
            _assemble_store(
                store, what, source, encoder, recipe, kept, number, encoding, images, in_parts, say
            )
            passing.unlink(missing_ok=True)
            shutil.rmtree(store.with_name(f".{store.stem}.parts"), ignore_errors=True)  # of old
    return True


def _encode_images(
    cropping: Cropping,
    encoder: Encoder,
    recipe: Recipe,
    bank: Bank,
    number: int,
    shared: SharedFeatures | None,
    part: tuple[int, int] | None,
    *,
    trust: bool,
    workers: int,
    engine: str,
    processes: int,
    say: Callable[[str], None],
) -> NewImages:
    """Encode what neither the bank nor another machine has, and put it into the bank.

    Raises:
        UserError: An image was modified meanwhile.
    """
    begun = time.time_ns()
    source = cropping.source

    def look_up() -> NewImages:
        digests = Digests(source, recipe.rows(source), bank, trust=trust)
        return NewImages(cropping, digests, bank, number, recipe.views)

    images = look_up()
    mine = groups(images.digests)
    if part is not None:
        mine = mine[part[0] - 1 :: part[1]]
    known, total = images.find_known(mine), sum(len(places) for _, places in mine)
    if shared is not None and known < total:
        _fetch(shared, bank, number, say)
        images = look_up()
        known = images.find_known(mine)
    if known:
        say(
            f"{known:,} of {count(total, 'image')} encoded before, by size and time of "
            "modification (--rehash reads them)"
        )
    with progress(f"{source.title}: images", total, known) as advance:
        shards = images.shards(mine, workers, advance)
        engines.run(
            cropping, shards, encoder, images.keep, advance, workers, engine, processes, shared
        )
    refuse_modified(images.digests, mine, begun)
    return images


def _refuse_unreadable(images: NewImages, skip: bool, say: Callable[[str], None]) -> None:
    """Raise UserError if images do not decode and are not to be skipped; says which."""
    unread = list(images.skipped.values())
    if unread and not skip:
        for line in listed(unread):
            say(line)
        raise cannot_read(unread)


def _assemble_store(
    store: Path,
    what: Mapping[str, Any],
    source: Source,
    encoder: Encoder,
    recipe: Recipe,
    bank: Bank,
    number: int,
    encoding: Mapping[str, Any],
    images: NewImages,
    in_parts: bool | None,
    say: Callable[[str], None],
) -> None:
    """Encode the prompts, and make the store of them and of the images in the bank."""
    prompts = list(dict.fromkeys(p for s in recipe.prompts.values() for p in s.prompts))
    text = text_features(prompts, encoder, bank, number, f"{source.title}: prompts")
    made_by = {**versions(), **encoding["machine"], "manifest": source.manifest_digest[:12]}
    made_by["images"] = images.digests.total()
    made_by |= split_digests(images.digests, say)
    every = groups(images.digests)
    used = (key for group in every for keys in images.keys(*group).values() for key in keys)
    bank.use(store, number, chain(used, map(prompt_key, text)))  # before, lest it be pruned
    if source.place:
        bank.found_at(store, source.place)
    assemble(
        store, what, made_by, source, recipe, images, every, text, encoder.text_projection,
        encoder.image_tower if recipe.pre_projection else None, fingerprint(encoding), in_parts,
    )  # fmt: skip


def _fetch(shared: SharedFeatures, bank: Bank, number: int, say: Callable[[str], None]) -> None:
    """Put the features that other machines have shared into the bank."""
    images = 0
    for shard in shared.fetch():
        bank.put(number, "image", shard.keys, shard.vectors)
        bank.remember(shard.read)
        images += len(shard.read)
    if images:
        say(f"{count(images, 'image')} encoded by other machines, from {shared.address}")
    elif note := shared.other():
        say(f"features in {shared.address} are of another encoder and not used: {note}")


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


def default_workers() -> int:
    """Decoding threads that keep a model fed: one per core, four at least, thirty-two at most."""
    return min(32, max(4, os.cpu_count() or 4))
