"""Datasets by name: their declarations in `data_manifests/`, or in a user's own file."""

import functools
import re
from pathlib import Path

from cache.datasets.manifest_file import Layout, Manifest, read_manifests
from cache.errors import UserError, unknown

_DIRECTORY = Path(__file__).resolve().parents[2] / "data_manifests"


def load_manifest(name: str, file: Path | None = None) -> Manifest:
    """The manifest called `name`, or the one in `file`.

    Args:
        name: A dataset's name or alias. With `file` it may be empty; otherwise it must fit.
        file: A manifest of the user's own.

    Raises:
        UserError: No such dataset, or a file that is not a valid manifest.
    """
    manifests = all_manifests() if file is None else read_manifests(file)
    for manifest in manifests:
        if _key(name) in map(_key, (manifest.name, *manifest.aliases)):
            return manifest
    if file is not None and not name:
        if len(manifests) == 1:
            return manifests[0]
        names = ", ".join(manifest.name for manifest in manifests)
        raise UserError(f"{file} declares {names}; say which with --dataset")
    raise unknown(
        f"dataset{f' in {file}' if file else ''}",
        name,
        [m.name for m in manifests],
        see="fewshot datasets",
    )


@functools.cache
def _shipped() -> tuple[Manifest, ...]:
    found = [manifest for file in _DIRECTORY.glob("*.toml") for manifest in read_manifests(file)]
    return tuple(sorted(found, key=lambda manifest: manifest.name))


def all_manifests() -> list[Manifest]:
    """Every manifest that comes with the program, by name."""
    return list(_shipped())


def published_known(dataset: str) -> int:
    """The number of a dataset's first classes that are known in published open sets.

    Raises:
        UserError: There is none of it.
    """
    for manifest in all_manifests():
        if manifest.known is not None and _key(manifest.name) == _key(dataset):
            return manifest.known
    raise UserError(
        f"no open set of {dataset} is published; give --known a number of classes, or their names"
    )


def metric_of(dataset: str) -> str:
    """The measure that is published of a dataset, one of `METRICS`; `accuracy` of any other."""
    return next((one.metric for one in all_manifests() if one.name == dataset), "accuracy")


def describe(manifest: Manifest) -> str:
    """Lines for a reader: what a dataset is and how to get it."""
    layout = manifest.layout
    sizes = ", ".join(f"{split} {size:,}" for split, size in manifest.sizes.items())
    place = "/".join(part for part in (layout.directory, layout.images) if part)
    facts = {
        "aliases": ", ".join(manifest.aliases),
        "classes": "" if manifest.n_classes is None else str(manifest.n_classes),
        "images": sizes,
        "content": ", ".join(f"{s} {digest[:12]}" for s, digest in manifest.content.items()),
        "metric": "mean per-class accuracy" if manifest.metric == "per-class" else "",
        "open set": f"the first {manifest.known} classes are known: --known published"
        if manifest.known
        else "",
        "templates": " | ".join(manifest.templates),
        **{f"  {name}": " | ".join(set_) for name, set_ in manifest.template_sets.items()},
        "layout": f"{layout.kind}{f', below the data root at {place}/' if place else ''}",
        "class names": _below(layout, layout.names),
        "split file": _below(layout, layout.split_file),
        "lists": ", ".join(_below(layout, file) for file in layout.lists.values()),
        "checksum": layout.checksum,
        "checksums": ", ".join(layout.checksums.values()),
        "torchvision": manifest.torchvision,
        "license": manifest.license,
        "homepage": manifest.homepage,
    }
    lines = [f"{manifest.name}: {manifest.title}"]
    lines += [f"  {fact:<12} {value}" for fact, value in facts.items() if value]
    if manifest.obtain:
        lines += ["  how to get it", *(f"    {line}" for line in manifest.obtain.splitlines())]
    return "\n".join(lines)


def _key(name: str) -> str:
    """A name with all that does not matter in it taken out."""
    return re.sub(r"[-_ ]", "", name).lower()


def _below(layout: Layout, file: str) -> str:
    """Where a file lies below the data root; empty for none."""
    return "/".join(part for part in (layout.directory, file) if part) if file else ""
