"""The images that a user names: found on disk, and decoded ahead of the model by threads."""

import contextlib
import glob
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cache.datasets.image_search import describe_ignored, find_images
from cache.errors import UserError, printable
from cache.images import decode
from cache.images.decoding_memory import MAX_PIXELS
from cache.images.read_ahead import read_ahead

Taken = str | os.PathLike[str] | Image.Image  # in hand, to be decoded
Given = Taken | NDArray[np.uint8]


class Crops(Protocol):
    """A maker of pixels, such as a `Preprocess`."""

    def center(self, image: Image.Image) -> Tensor:
        """Pixels of an RGB image, always of the same shape."""


def image_files(
    names: Iterable[str],
    stdin: BinaryIO | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """The files that are meant, in the order named; one that is named twice comes twice.

    A file is taken whatever its extension. A folder stands for all image files below it, sorted.
    A name of no file or folder is a pattern, as of a shell, where `**` stands for folders below
    one another; it stands for the files that match, sorted.

    A list on stdin is mostly another program's, and some of its files may be gone by now. Their
    names are kept, unless nothing matches any of the list, and turn out to be unreadable.

    Args:
        names: Of files, folders and patterns.
        stdin: Where `-` reads more of them; without it, `-` is a name like others.
        say: Called with how many other files a folder holds, and why they are left out.

    Raises:
        UserError: A name that nothing matches, a folder without an image, or no name at all.
    """
    names = list(names)
    if not names:
        raise UserError("no images named; give files, folders or patterns such as 'photos/*.jpg'")
    found = []
    for name in names:
        if name == "-" and stdin is not None:
            found += _gone_kept(_listed(stdin), say)
        else:
            found.append((name, _files(name, say)))
    missing = [name for name, files in found if not files]
    if missing:
        more = f", nor {len(missing) - 1:,} more of {len(found):,} names" if missing[1:] else ""
        raise UserError(
            f"nothing matches {missing[0]!r}{more}; name images that there are, folders of them, "
            "or patterns such as 'photos/**/*.jpg'"
        )
    return [file for _, files in found for file in files]


def every(images: Given | Iterable[Given]) -> Iterator[str | Image.Image]:
    """One image or many: PIL images, arrays of their pixels, or names as `image_files` takes them.

    Raises:
        UserError: Nothing matches a name, or something is no image.
    """
    several = not isinstance(images, str | os.PathLike | Image.Image | np.ndarray)
    several |= isinstance(images, np.ndarray) and images.ndim > 3
    given: Any = images if several else [images]
    for image in given:
        if isinstance(image, Image.Image):
            yield image
        elif isinstance(image, np.ndarray):
            yield _of_pixels(image)
        elif isinstance(image, str | os.PathLike):
            yield from image_files([os.fspath(image)])
        else:
            raise UserError(
                f"an image must be a path, a PIL image or an array of uint8 (H, W, 3); got "
                f"{type(image).__name__}"
            )


def _of_pixels(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] in ((3,), (4,))):
        raise UserError(
            f"an image as an array must be uint8 (H, W, 3); got {pixels.dtype} {pixels.shape}; "
            "scale it to 0..255 and put the channels last"
        )
    return Image.fromarray(pixels)


def decoded(
    images: Iterable[Taken],
    crops: Crops,
    *,
    exif: bool,
    batch_size: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[tuple[str, Tensor | str]]]:
    """Batches of images in order: the path of each, and its pixels, or why it cannot be read.

    Args:
        images: Files and PIL images; they are taken as they are needed.
        crops: What makes the pixels, (3, H, W) for one model.
        exif: Turn images upright as their EXIF orientation says.
        batch_size: Images in a batch.
        workers: Threads.
        max_pixels: Width times height of the largest image that is decoded.
    """
    lazy = threading.Lock()  # a PIL image may be here twice, and its file not yet read

    def pixels(named: tuple[str, Taken]) -> Tensor:
        _, image = named
        own = lazy if isinstance(image, Image.Image) else contextlib.nullcontext()
        given = image if isinstance(image, Image.Image) else Path(image)
        with own, decode.opened(given, exif=exif, max_pixels=max_pixels) as rgb:
            return crops.center(rgb)

    named = ((_path(i, image), image) for i, image in enumerate(images))
    for batch in read_ahead(named, pixels, batch_size=batch_size, workers=workers):
        yield [(path, x) for (path, _), x in batch]


def _path(i: int, image: Taken) -> str:
    """The name that the user knows an image by."""
    if isinstance(image, Image.Image):
        return os.fsdecode(getattr(image, "filename", "")) or f"images[{i}]"
    return os.fspath(image)


def _listed(stdin: BinaryIO) -> list[str]:
    """The names on stdin: one a line, or ended by NUL if there is any, as `find -print0` does.

    Bytes that are not UTF-8 stay as Python has them in file names.
    """
    content = stdin.read()
    if b"\0" not in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\0")
    names = [os.fsdecode(name) for name in content.split(b"\0") if name.strip()]
    if not names:
        raise UserError("no image was named on stdin; write one path a line, or end each with NUL")
    return names


def _gone_kept(names: Iterable[str], say: Callable[[str], None]) -> list[tuple[str, list[str]]]:
    """Names and their files; if some name has files, the others stand for a file of that name."""
    found = [(name, _files(name, say)) for name in names]
    some = any(files for _, files in found)
    return [(name, files or ([name] if some else [])) for name, files in found]


def _files(name: str, say: Callable[[str], None]) -> list[str]:
    """The files that one name stands for; none where nothing matches."""
    # Not pathlib's, which drop a leading "./" and raise for a name that is too long to exist.
    if os.path.isdir(name):  # noqa: PTH112
        return _below(name, say)
    if os.path.exists(name):  # noqa: PTH110
        return [name]
    matches = glob.glob(name, recursive=True)  # noqa: PTH207
    return sorted(match for match in matches if os.path.isfile(match))  # noqa: PTH113


def _below(folder: str, say: Callable[[str], None]) -> list[str]:
    """The image files below a folder, under the name that it was given."""
    images = find_images(Path(folder))
    others = describe_ignored(images.ignored)
    if not images.paths:
        holds = f"it holds other files ({others}), and one named itself is taken whatever its name"
        raise UserError(
            f"no image below {folder}; {holds if others else 'name a folder that holds some'}"
        )
    if images.ignored.keys() - {"hidden"}:
        say(f"{printable(folder)}: files left out: {others}")
    return [f"{folder.rstrip('/')}/{path}" for path in images.paths]
