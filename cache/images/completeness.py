"""Tell apart an image file that was cut off and a whole one by its end, without decoding it."""

import os
from typing import BinaryIO

from PIL import Image

_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"


def is_complete(image: Image.Image, file: BinaryIO) -> bool:
    """True if the file ends as its format says; False also where no cheap check exists.

    Args:
        image: The file, opened but not loaded.
        file: The same, read from any place.
    """
    head = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_PNG_END)))
    tail = file.read()
    match image.format:
        case "JPEG" | "MPO":
            return tail.endswith(_JPEG_END) or _JPEG_END in _after_the_headers(file)
        case "JPEG2000":
            return tail.endswith(_JPEG_END)
        case "PNG":
            return tail == _PNG_END
        case "GIF":
            return tail.endswith(b";")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case "BMP":
            return int.from_bytes(head[2:6], "little") <= size
        case "TIFF":
            return _end_of_pixels(image) <= size
    return False


def _after_the_headers(file: BinaryIO) -> bytes:
    """A JPEG from its first scan on, where an end marker is the end; headers hold thumbnails.

    Telephones write their own data behind the picture, so the end marker is often not the end of
    the file.
    """
    file.seek(2)
    while True:
        marker, length = file.read(2), int.from_bytes(file.read(2), "big")
        if len(marker) < 2 or marker[0] != 0xFF or length < 2:
            return b""
        if marker[1] == 0xDA:
            return file.read()
        file.seek(length - 2, 1)


def _end_of_pixels(image: Image.Image) -> int:
    """The offset behind the last strip or tile of a TIFF."""
    tags = getattr(image, "tag_v2", {})
    ends = [0]
    for offsets, sizes in ((273, 279), (324, 325)):
        pairs = zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)
        ends += [offset + size for offset, size in pairs]
    return max(ends)
