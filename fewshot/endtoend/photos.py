"""Images as pixels: decoded once, then augmented by threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from cache.datasets.source import Source
from cache.errors import UserError
from cache.images.preprocessing import Preprocess
from cache.images.read_ahead import ERRORS, read_ahead, reason

KEEP = 2**32  # bytes of decoded images held in memory; beyond it they are decoded again


class PhotoBatches:
    """Training images (N) by row, each epoch by a fresh augmented crop.

    The crop of an image in an epoch is a function of the seed, the row and the epoch alone.
    """

    def __init__(
        self,
        source: Source,
        paths: Sequence[str],
        preprocess: Preprocess,
        *,
        crop_scale: tuple[float, float],
        flip: bool = True,
        seed: int,
        workers: int = 2,
    ) -> None:
        self.source = source
        self.paths = paths
        self.preprocess = preprocess
        self.crop_scale = crop_scale
        self.flip = flip
        self.seed = seed
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._decoded: dict[int, Image.Image] = {}
        self._held = 0

    def __call__(self, rows: Tensor, epoch: int) -> Tensor:
        """Pixels (B, 3, H, W) of the rows in this epoch.

        Raises:
            UserError: An image cannot be read.
        """
        return torch.stack(list(self._pool.map(lambda row: self._crop(row, epoch), rows.tolist())))

    def _crop(self, row: int, epoch: int) -> Tensor:
        key = (self.seed % 2**64, row, epoch)  # numpy takes no negative seed
        try:
            if row in self._decoded:
                return self._view(self._decoded[row], key)
            with self.source.opened(self.paths[row]) as image:
                self._keep(row, image)
                return self._view(image, key)
        except ERRORS as error:
            raise _unreadable(self.source, self.paths[row], reason(error)) from None

    def _view(self, image: Image.Image, key: tuple[int, int, int]) -> Tensor:
        return self.preprocess.view(image, self.crop_scale, key, flip=self.flip)

    def _keep(self, row: int, image: Image.Image) -> None:
        size = 3 * image.width * image.height
        if self._held + size <= KEEP:
            self._held += size
            self._decoded[row] = image


def center_crops(
    source: Source,
    paths: Sequence[str],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 2,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[Tensor]:
    """Batches of pixels (B, 3, H, W) of the center crops, in order, read ahead.

    Raises:
        UserError: An image cannot be read.
    """

    def crop(path: str) -> Tensor:
        with source.opened(path) as image:
            return preprocess.center(image)

    for batch in read_ahead(paths, crop, batch_size=batch_size, workers=workers):
        pixels = []
        for path, x in batch:
            if isinstance(x, str):
                raise _unreadable(source, path, x)
            pixels.append(x)
        yield torch.stack(pixels)
        advance(len(batch))


def require_images(source: Source, paths: Sequence[str], *, workers: int = 2) -> None:
    """Raise unless there is an image at every path; reads the start of each file.

    Raises:
        UserError: There is not; says at how many, and names the first.
    """

    def fault(path: str) -> str:
        try:
            source.check_file(path)
        except OSError as error:
            return f"{source.images.place(path)}: {error}"
        return ""

    with ThreadPoolExecutor(max(1, workers)) as pool:
        faults = [found for found in pool.map(fault, paths) if found]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(paths)} images of {source.dataset} cannot be read, the first "
            f"{faults[0]}; fix or fetch them, or remove them from the dataset"
        )


def _unreadable(source: Source, path: str, why: str) -> UserError:
    return UserError(
        f"cannot read {source.images.place(path)}: {why}; fix it, or remove it from the dataset"
    )
