"""Images as pixels: decoded once, then augmented by threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from cache.errors import UserError
from cache.images import Preprocess
from cache.source import Source

KEEP = 2**32  # bytes of decoded images held in memory; beyond it they are decoded anew


class Photos:
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
        image = self._decoded.get(row)
        if image is None:
            image = read(self.source, self.paths[row])
            size = 3 * image.width * image.height
            if self._held + size <= KEEP:
                self._held += size
                self._decoded[row] = image
        key = (self.seed, row, epoch)
        return self.preprocess.view(image, self.crop_scale, key, flip=self.flip)


def center_crops(
    source: Source,
    paths: Sequence[str],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 2,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[Tensor]:
    """Batches of pixels (B, 3, H, W) of the center crops, in order, decoded two batches ahead."""

    def crop(path: str) -> Tensor:
        return preprocess.center(read(source, path))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: list[list[Future[Tensor]]] = []
        for start in [*range(0, len(paths), batch_size), None, None]:
            if start is not None:
                ahead.append([pool.submit(crop, p) for p in paths[start : start + batch_size]])
            if ahead and (start is None or len(ahead) > 2):
                batch = [future.result() for future in ahead.pop(0)]
                yield torch.stack(batch)
                advance(len(batch))


def require_images(source: Source, paths: Sequence[str], *, workers: int = 2) -> None:
    """Do nothing if there is an image at every path; looks at how each file begins.

    Raises:
        UserError: There is not; says at how many, and names the first.
    """

    def fault(path: str) -> str:
        try:
            source.check_header(path)
        except OSError as error:
            return f"{source.root / path}: {error}"
        return ""

    with ThreadPoolExecutor(max(1, workers)) as pool:
        faults = [found for found in pool.map(fault, paths) if found]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(paths)} images of {source.dataset} cannot be read, the first "
            f"{faults[0]}; mend or fetch them, or remove them from the dataset"
        )


def read(source: Source, path: str) -> Image.Image:
    """The decoded image.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return source.read(path)
    except OSError as error:
        raise UserError(
            f"cannot read {source.root / path}: {error}; mend it, or remove it from the dataset"
        ) from None
