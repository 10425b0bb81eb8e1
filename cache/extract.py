"""A dataset and a frozen CLIP into a feature store, resumable at any moment.

What is not in the bank yet is encoded and put there, a shard at a time; then the store is assembled
from the bank and takes its name last.
"""

import contextlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cache.datasets.source import Source
from cache.errors import UserError, count, unknown
from cache.extraction import engines
from cache.extraction.bank import Bank
from cache.extraction.digests import Digests
from cache.extraction.new_images import NewImages, groups
from cache.extraction.shards import Cropping, computed_on, encode_prompts, fitting_batch, prompt_key
from cache.extraction.shared_features import SharedFeatures
from cache.extraction.store_assembly import assemble
from cache.identity import Recipe, fingerprint, identity_of
from cache.images.skipped import cannot_read, listed
from cache.models.encoder import Encoder
from cache.progress import progress
from cache.prompts import cut_prompts
from cache.store import FeatureStore

COMPUTING = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")  # features
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
            replaced = _replaced(made, digests, workers)
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
        done = _encode_and_assemble(
            source, encoder, recipe, store, what, kept,
            trust=not rehash, batch_size=batch_size or fitting_batch(encoder), workers=workers,
            skip_unreadable=skip_unreadable, part=part, engine=engine, processes=processes,
            share=share, in_parts=in_parts, say=say,
        )  # fmt: skip
        if done:
            passing.unlink(missing_ok=True)
            shutil.rmtree(store.with_name(f".{store.stem}.parts"), ignore_errors=True)  # of old
    return True


def _encode_and_assemble(
    source: Source,
    encoder: Encoder,
    recipe: Recipe,
    store: Path,
    what: dict[str, Any],
    bank: Bank,
    *,
    trust: bool,
    batch_size: int,
    workers: int,
    skip_unreadable: bool,
    part: tuple[int, int] | None,
    engine: str,
    processes: int,
    share: str | None,
    in_parts: bool | None,
    say: Callable[[str], None],
) -> bool:
    """The store of what is in the bank and what is new; False if it is only a part of it."""
    begun = time.time_ns()
    machine = {
        **computed_on(encoder, engines.threads(engine, processes)),
        "batch_size": str(batch_size),
    }
    encoding = _encoding(encoder, machine)
    number = bank.encoder(str(encoder.identity["name"]), encoding)
    cropping = Cropping(
        source, batch_size, recipe.crop_scale, recipe.view_seed, recipe.pre_projection
    )
    shared = None if share is None else SharedFeatures.of(share, encoding, part)

    def look_up() -> NewImages:
        digests = Digests(source, recipe.rows(source), bank, trust=trust)
        return NewImages(cropping, digests, bank, number, recipe.views)

    images = look_up()
    every = groups(images.digests)
    mine = every if part is None else every[part[0] - 1 :: part[1]]
    known, total = images.find_known(mine), sum(len(places) for _, places in mine)
    if shared is not None and known < total:
        _fetch(shared, bank, number, say)
        images = look_up()
        known = images.find_known(mine)
    digests = images.digests
    if known:
        say(
            f"{known:,} of {count(total, 'image')} encoded before, by size and time of "
            "modification (--rehash reads them)"
        )
    with progress(f"{source.dataset}: images", total, known) as advance:
        shards = images.shards(mine, workers, advance)
        engines.run(
            cropping, shards, encoder, images.keep, advance, workers, engine, processes, shared
        )
    changed = [
        path
        for split, places in mine
        for path in source.changed_since(begun, split, digests.rows[split][places].tolist())
    ]
    if changed:
        raise UserError(
            f"{count(len(changed), 'image')} modified while the images were encoded, the first "
            f"{changed[0]}; run the same command again"
        )
    unread = list(images.skipped.values())
    if unread and not skip_unreadable:
        for line in listed(unread):
            say(line)
        raise cannot_read(unread)
    if part is not None:
        return False
    text = _text(source, encoder, recipe, bank, number)
    made_by = {**versions(), **machine, "manifest": source.manifest_digest[:12]}
    made_by["images"] = digests.total()
    made_by |= _splits(source, digests, say)
    projection = encoder.text_projection
    tower = encoder.image_tower if recipe.pre_projection else None
    used = (key for group in every for keys in images.keys(*group).values() for key in keys)
    bank.use(store, number, chain(used, map(prompt_key, text)))  # before, lest it be pruned
    if source.place:
        bank.found_at(store, source.place)
    assemble(
        store, what, made_by, source, recipe, images, every, text, projection, tower,
        fingerprint(encoding), in_parts,
    )  # fmt: skip
    return True


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


def _splits(source: Source, digests: Digests, say: Callable[[str], None]) -> dict[str, str]:
    """The digest of each split's images; says if they are not those of the manifest."""
    whole = [s for s, items in source.splits.items() if len(digests.rows[s]) == len(items)]
    found = {f"{split} images": digests.of_split(split) for split in whole}
    for split, declared in source.content.items():
        got = found.get(f"{split} images", declared)
        if got != declared:
            say(
                f"the {split} images of {source.dataset} are not, byte for byte, those that its "
                f"manifest declares: {got[:12]}, not {declared[:12]}; results on them do not "
                "compare with others"
            )
    return found


def _text(
    source: Source, encoder: Encoder, recipe: Recipe, bank: Bank, number: int
) -> dict[str, NDArray[np.float32]]:
    """Each prompt with its embedding (D,) and, where the tower ends in a matrix, pooled (W,)."""
    prompts = list(dict.fromkeys(p for s in recipe.prompts.values() for p in s.prompts))
    kept = bank.get(number, map(prompt_key, prompts))
    text = {p: kept[prompt_key(p)] for p in prompts if prompt_key(p) in kept}
    with progress(f"{source.dataset}: prompts", len(prompts), len(text)) as advance:
        new = [prompt for prompt in prompts if prompt not in text]
        for some, vectors in encode_prompts(new, encoder):
            bank.put(number, "prompt", list(map(prompt_key, some)), vectors)
            text |= zip(some, vectors, strict=True)
            advance(len(some))
    return text


def _encoding(encoder: Encoder, machine: dict[str, str]) -> dict[str, Any]:
    """All that changes a byte of a feature, besides the crop or the prompt."""
    model = {k: v for k, v in encoder.identity.items() if k not in ("name", "tag")}
    libraries = versions()
    return {
        "model": model,
        "preprocessing": encoder.preprocess.identity(),
        "precision": encoder.precision,
        "machine": machine,
        "libraries": {name: libraries[name] for name in COMPUTING if name in libraries},
    }


def _replaced(store: FeatureStore, digests: Digests, workers: int) -> str:
    """Why a finished store is to be made again; empty if its images are those it was made of."""
    made_of = store.versions.get("images")
    if made_of is not None and digests.read_all(workers).total() == made_of:
        return ""
    modified = [
        path
        for split, rows in digests.rows.items()
        for path in digests.source.changed_since(
            store.path.stat().st_mtime_ns, split, rows.tolist()
        )
    ]
    if modified:
        return (
            f"{count(len(modified), 'image')} modified since {store.path} was made, the first "
            f"{modified[0]}; making it again (--if-exists skip keeps the store)"
        )
    if made_of is None:  # a store of an earlier version, which can be asked no more
        return ""
    return (
        f"the images are not those that {store.path} was made of; making it again (--if-exists "
        "skip keeps the store)"
    )


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


def versions() -> dict[str, str]:
    """Versions of what computed the features and wrote them."""
    found = {}
    for name in (*COMPUTING, "h5py", "fewshot-clip"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def default_workers() -> int:
    """Decoding threads that keep a model fed: one per core, four at least, thirty-two at most."""
    return min(32, max(4, os.cpu_count() or 4))
