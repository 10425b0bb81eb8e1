"""Small datasets in shards, as other people's tools write them."""

import io
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A small PNG that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tar(members: Mapping[str, bytes]) -> bytes:
    """A tar file of these members, as webdataset's writer makes one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(numbers: range, classes: int = 2) -> dict[str, bytes]:
    """Members of a shard: a picture of each number, and its label in a .cls."""
    found: dict[str, bytes] = {}
    for n in numbers:
        found |= {f"{n:04d}.png": picture(n), f"{n:04d}.cls": str(n % classes).encode()}
    return found
