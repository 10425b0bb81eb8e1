"""Where the bytes of a dataset's images come from: files of their own, or parts of larger ones."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from cache.files.stamp import Stamp as Stamp
from cache.images import decode

Content = Path | bytes | Image.Image  # a file, the bytes of one, or pixels that have no file


class Reader(Protocol):
    """Gives the content of an image by its item's path. Plain data, so that it can be pickled."""

    def place(self, path: str) -> str:
        """The whole address of an image, for messages and for what is remembered of it."""

    def stamp(self, path: str) -> Stamp:
        """The image's size, and the time of modification of the file that it is in.

        Raises:
            OSError: There is none.
        """

    def content(self, path: str) -> Content:
        """The image's content.

        Raises:
            OSError: It cannot be read.
        """

    def check(self, path: str, max_pixels: int) -> None:
        """Raise OSError where it is cheap to see that there is no whole image of fair size."""

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """The paths of images that were modified since a moment, in ns, or are gone."""


@dataclass(frozen=True)
class Files:
    """Each image is a file below a folder."""

    root: Path

    def place(self, path: str) -> str:
        """The file's path."""
        return str(self.root / path)

    def stamp(self, path: str) -> Stamp:
        """The file's stamp now."""
        return Stamp.of(self.root / path)

    def content(self, path: str) -> Path:
        """The file, of which nothing is read yet."""
        file = self.root / path
        if not file.is_file():  # a folder, or what never ends
            raise FileNotFoundError(f"no file at {file}")
        return file

    def check(self, path: str, max_pixels: int) -> None:
        """Raise OSError unless the file begins and ends as an image of fair size does."""
        decode.check_file(self.root / path, max_pixels=max_pixels)

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """The paths of files that are gone, or whose time of modification is later.

        A modification yet to come, as a camera with a wrong clock dates it, says nothing.
        """
        now = time.time_ns()

        def changed(path: str) -> bool:
            try:
                return moment < self.stamp(path).modified <= now
            except OSError:
                return True

        return [path for path in paths if changed(path)]
