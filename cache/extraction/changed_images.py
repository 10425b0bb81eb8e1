"""Images that are no longer those of the store, of this run, or of the manifest."""

from collections.abc import Callable, Iterable

from cache.errors import UserError, count
from cache.extraction.digests import Digests
from cache.extraction.new_images import Group
from cache.store import FeatureStore


def why_again(store: FeatureStore, digests: Digests, workers: int) -> str:
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


def refuse_modified(digests: Digests, groups: Iterable[Group], since: int) -> None:
    """Raise UserError if an image of the groups was modified since, a time in nanoseconds."""
    modified = [
        path
        for split, places in groups
        for path in digests.source.changed_since(since, split, digests.rows[split][places].tolist())
    ]
    if modified:
        raise UserError(
            f"{count(len(modified), 'image')} modified while the images were encoded, the first "
            f"{modified[0]}; run the same command again"
        )


def split_digests(digests: Digests, say: Callable[[str], None]) -> dict[str, str]:
    """The digest of each split's images; says if they are not those of the manifest."""
    source = digests.source
    whole = [s for s, items in source.splits.items() if len(digests.rows[s]) == len(items)]
    found = {f"{split} images": digests.of_split(split) for split in whole}
    for split, declared in source.content.items():
        got = found.get(f"{split} images", declared)
        if got != declared:
            say(
                f"the {split} images of {source.title} are not, byte for byte, those that its "
                f"manifest declares: {got[:12]}, not {declared[:12]}; results on them do not "
                "compare with others"
            )
    return found
