"""The unit of extraction: some images that are not encoded yet.

Every forward pass has one and the same shape: a batch that is not full is filled up. So a feature
is a function of its crop alone, whatever images are encoded with it, here or in another process.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cache.datasets.reader import Stamp
from cache.datasets.source import Source
from cache.extraction.digests import digest_of
from cache.files.json_text import canonical_json
from cache.images.preprocessing import Preprocess
from cache.images.read_ahead import read_ahead
from cache.images.turbo_jpeg import Pixels
from cache.models.encoder import Encoder

T = TypeVar("T")
CENTER = -1  # the number of the center crop, beside views 0, 1, ...


class Wanted(NamedTuple):
    """An image, and the numbers of those of its crops that are not encoded yet."""

    path: str
    crops: tuple[int, ...]


class Shard(NamedTuple):
    """Images that are encoded together, under a number that tells shards apart."""

    number: int
    images: tuple[Wanted, ...]


class Encoded(NamedTuple):
    """A shard's features.

    Attributes:
        number: The shard's.
        contents: Stamp and digest of each image as it was read, None where there is no file.
        reasons: Index among the images -> why it does not decode.
        keys: n keys of crops.
        vectors: (n, D) float32, unnormalized; (n, D + w) with pooled images.
    """

    number: int
    contents: tuple[tuple[Stamp, bytes] | None, ...]
    reasons: dict[int, str]
    keys: tuple[bytes, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Cropping:
    """How images become crops; plain data, so that it goes to other processes.

    Attributes:
        source: The images.
        batch_size: Crops per forward pass; the last bit of a matrix product depends on its shape.
        crop_scale: Minimum and maximum share of the area that an augmented view keeps.
        view_seed: Seed of the views.
        pooled: Encode what is before the image tower's last layers as well.
    """

    source: Source
    batch_size: int
    crop_scale: tuple[float, float]
    view_seed: int
    pooled: bool = False

    def key(self, digest: bytes, crop: int) -> bytes:
        """The key of an image's crop: which pixels the encoder gets, and what is kept of it."""
        view = None if crop == CENTER else [self.view_seed, *self.crop_scale, crop]
        what = {"exif": self.source.exif, "view": view}
        if self.pooled:
            what["pooled"] = True
        return hashlib.sha256(digest + canonical_json(what).encode()).digest()

    def pixels(
        self, preprocess: Preprocess, image: Image.Image | Pixels, digest: bytes, crop: int
    ) -> Tensor:
        """The crop (3, H, W), uint8; a view is drawn for its seed, content and number."""
        if crop == CENTER:
            return preprocess.center_crop(image)
        drawn_for = (self.view_seed, int.from_bytes(digest[:16], "big"), crop)
        return preprocess.view_crop(image, self.crop_scale, drawn_for)


def encode_shard(
    cropping: Cropping,
    shard: Shard,
    encoder: Encoder,
    *,
    workers: int = 2,
    advance: Callable[[int], None] = lambda n: None,
) -> Encoded:
    """Encode the images of one shard.

    Args:
        cropping: How they become crops.
        shard: Which.
        encoder: The model.
        workers: Threads that read and resize images while the model runs.
        advance: Called with the number of images after each batch.
    """
    images, source, size = shard.images, cropping.source, cropping.batch_size
    pixels_of = source.decoded_pixels if encoder.preprocess.fast else source.decoded
    contents: list[tuple[Stamp, bytes] | None] = [None] * len(images)

    def crops_of(i: int) -> Tensor:
        path, numbers = images[i]
        content, stamp = source.images.content(path), source.images.stamp(path)
        contents[i] = _, digest = stamp, digest_of(content)
        with pixels_of(content) as image:
            crops = [cropping.pixels(encoder.preprocess, image, digest, n) for n in numbers]
        if source.images.stamp(path) != stamp:
            contents[i] = None
            raise OSError("it was modified while it was read; run the same command again")
        # By numpy, for torch would start threads of its own in each that decodes.
        return torch.from_numpy(np.stack([crop.numpy() for crop in crops]))

    keys: list[bytes] = []
    reasons: dict[int, str] = {}

    def decoded() -> Iterator[Tensor]:
        most = max((len(image.crops) for image in images), default=1)
        ahead = max(1, size // most)
        for batch in read_ahead(range(len(images)), crops_of, batch_size=ahead, workers=workers):
            for i, x in batch:
                known = contents[i]
                if isinstance(x, str) or known is None:
                    reasons[i] = str(x)
                    continue
                keys.extend(cropping.key(known[1], n) for n in images[i].crops)
                yield from x
            advance(len(batch))

    encode = encoder.encode_images_pooled if cropping.pooled else encoder.encode_images
    vectors = [encode(torch.stack(filled))[:n].numpy() for filled, n in full(decoded(), size)]
    stacked = np.concatenate(vectors) if vectors else np.empty((0, encoder.dim), np.float32)
    return Encoded(shard.number, tuple(contents), reasons, tuple(keys), stacked)


def full(items: Iterable[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Batches of exactly `size`, each with the number of those that count.

    The last batch is filled up with its last item.
    """
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)


def fitting_batch(encoder: Encoder) -> int:
    """Crops per forward pass where nobody says: a CPU is as fast with few, and none are wasted."""
    return 8 if encoder.device.type == "cpu" else 64
