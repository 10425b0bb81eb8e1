"""Memory and time of listing many images in shards: `python -m benchmarks.listing 10000000`.

The images exist nowhere: what a tar file would say of each is made up. All else is what `extract`
does before it encodes anything: the index, the identity, the checks but those of each file, and
the table of digests.
"""

import resource
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from cache.datasets.layouts.shard_listing import ShardedImage, ShardRows, Shards, listing_of
from cache.datasets.layouts.tar_shards import TarMembers
from cache.datasets.path_index import PathIndex
from cache.datasets.preflight import check
from cache.datasets.reader import Stamp
from cache.datasets.source import Source
from cache.identity import Recipe, identity_of

PER_SHARD, CLASSES = 10_000, 1_000


def shard(name: str) -> tuple[ShardRows, PathIndex]:
    """Make up the listing of one shard."""
    paths = [f"{name}/{i:09d}.jpg" for i in range(PER_SHARD)]
    images = (ShardedImage(path, str(i % CLASSES), "") for i, path in enumerate(paths))
    sizes = np.random.default_rng(len(name)).integers(20_000, 200_000, PER_SHARD)
    return ShardRows.of(images), PathIndex(paths, (sizes.cumsum() - sizes, sizes))


def report(what: str, started: float) -> None:
    """Print seconds, and the largest memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{what:<34}{time.perf_counter() - started:>8.1f} s {peak:>8,.0f} MiB at most")


def main(n: int) -> None:
    """List, check and identify n images."""
    started = time.perf_counter()
    report("start", started)
    names = tuple(f"train-{i:05d}.tar" for i in range(n // PER_SHARD))
    shards = Shards("/nowhere/", names, (Stamp(10**9, 1),) * len(names))
    listed = [shard(name) for name in names]
    report(f"{n:,} images listed", started)
    classnames = [f"class {i}" for i in range(CLASSES)]
    reader = TarMembers(shards, {name: (i, listed[i][1]) for i, name in enumerate(names)})
    listing = listing_of(shards, [rows for rows, _ in listed], reader, classnames)
    del listed
    source = Source(
        "made up", listing.root, listing.classnames, listing.splits, ("{}",), "here",
        reader=listing.reader,
    )  # fmt: skip
    report("index and classes", started)
    check(source, rows={})
    report("checked, but for the files", started)
    preprocess = SimpleNamespace(identity=dict)
    encoder: Any = SimpleNamespace(identity={}, preprocess=preprocess, precision="fp32")
    identity_of(source, encoder, Recipe({}))
    report("identity", started)
    digests = np.ones((n, 32), np.uint8)
    report(f"digests, {digests.nbytes / 2**20:,.0f} MiB", started)


if __name__ == "__main__":
    main(int(sys.argv[1]))
