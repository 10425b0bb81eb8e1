"""Image files below a directory, links followed once."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cache.datasets.layouts.conventions import (
    IMAGES,
    NOT_READ,
    begins_as_an_image,
    extension,
    of_a_system,
)
from cache.errors import UserError


@dataclass(frozen=True)
class Images:
    """The image files below a directory.

    Attributes:
        files: Path relative to the directory, with "/" between parts, sorted -> the path of the
            file itself, with all links resolved. No file is here twice.
        ignored: How many other files there were, by what they are.
    """

    files: dict[str, str]
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> tuple[str, ...]:
        """The relative paths."""
        return tuple(self.files)


def find_images(directory: Path) -> Images:
    """Every image file below a directory, hidden files and folders left out.

    Links are followed, except to a folder that the directory lies in. What can be reached in
    several ways is taken once: as it lies there, rather than by a link to it.

    Raises:
        UserError: A folder cannot be read.
    """
    real = os.path.realpath(directory)
    walk = _Walk(visited=set(map(str, Path(real).parents)))
    by_file: dict[str, str] = {}
    waiting = [("", real)]
    while waiting:
        found = sorted(file for prefix, folder in waiting for file in walk.below(prefix, folder))
        for _, path, file in found:
            by_file.setdefault(file, path)
        waiting = sorted(walk.links)
        walk.links.clear()
    return Images(dict(sorted((path, file) for file, path in by_file.items())), walk.ignored)


def describe_ignored(ignored: Counter[str]) -> str:
    """Such as `2 hidden, 1 .heic (a format that is not read; convert it to JPEG)`."""
    return ", ".join(f"{n:,} {what}" for what, n in sorted(ignored.items()) if n)


def folders(directory: Path) -> list[str]:
    """Names of the folders in a directory that are not hidden or among `lost_links`, sorted."""
    lost = lost_links(directory)
    with _entries(directory) as entries:
        found = [e.name for e in entries if _is_folder(e) and not of_a_system(e.name)]
    return sorted(name for name in found if name not in lost)


def lost_links(directory: Path) -> list[str]:
    """Names of the links in a directory that lead nowhere, or back to where it lies, sorted."""
    here = os.path.realpath(directory)
    with _entries(directory) as entries:
        links = [Path(e.path) for e in entries if e.is_symlink() and not of_a_system(e.name)]
    return sorted(x.name for x in links if not x.exists() or Path(here).is_relative_to(x.resolve()))


@dataclass
class _Walk:
    """A walk through folders, none of them twice; links to folders are left for later."""

    visited: set[str]
    links: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def below(self, prefix: str, folder: str) -> Iterator[tuple[bool, str, str]]:
        """Each image: whether it is a link, its path after `prefix`, and the file itself."""
        if folder in self.visited:
            return
        self.visited.add(folder)
        with _entries(Path(folder)) as entries:
            for entry in entries:
                path, link = prefix + entry.name, entry.is_symlink()
                file = os.path.realpath(entry.path) if link else entry.path
                if _is_folder(entry):
                    if of_a_system(entry.name):
                        continue
                    if link:
                        self.links.append((f"{path}/", file))
                    else:
                        yield from self.below(f"{path}/", file)
                elif kind := _ignored_as(entry):
                    self.ignored[kind] += 1
                else:
                    yield link, path, file


def _ignored_as(entry: os.DirEntry[str]) -> str:
    """The kind of a file that is not taken for an image; empty for an image."""
    kind = extension(entry.name)
    if of_a_system(entry.name):
        return "hidden"
    if kind in IMAGES or (not kind and _begins_as_an_image(entry)):
        return ""
    if kind in NOT_READ:
        return f".{kind} (a format that is not read; convert it to JPEG)"
    return "of another type"


def _begins_as_an_image(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            return begins_as_an_image(file.read(16))
    except OSError:
        return False


@contextmanager
def _entries(directory: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        entries = os.scandir(directory)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {directory}: {error.strerror}; allow it, or move it away"
        ) from None
    with entries:
        yield entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
