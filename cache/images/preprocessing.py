"""Images into encoder input: the model's own preprocessing, and seeded augmented views."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cache.errors import UserError, unknown
from cache.images import fast_images
from cache.images.fast_images import PREFIX
from cache.images.turbo_jpeg import Pixels

RESIZE = {"shorter": "shortest", "squash": "squash"}  # our word, open_clip's word


@dataclass(frozen=True)
class Preprocess:
    """PIL image to pixels (3, H, W), channels standardized as the model needs them.

    Attributes:
        size: H = W in pixels.
        mean: Per-channel mean that is taken off, of values in 0..1.
        std: Per-channel divisor.
        interpolation: "bicubic", or what else the model was trained with; with "fast-" before it
            `fast_images` scales, not Pillow.
        resize_mode: open_clip's word: "shortest", "squash" or "longest".
        fill_color: Padding for "longest".
        crop_pct: Share of the resized image's side that the center crop keeps; timm's models
            look at the middle of a larger image.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int = 0
    crop_pct: float = 1.0

    @classmethod
    def of(cls, model: nn.Module, resize: str | None = None, *, fast: bool = False) -> "Preprocess":
        """The preprocessing that open_clip names for the model.

        Args:
            model: It carries its own configuration.
            resize: Overrides the style.
            fast: Scale by `fast_images`.

        Raises:
            UserError: There is no such style, or the model's cannot be fast.
        """
        if resize is not None and resize not in RESIZE:
            raise unknown("resize", resize, RESIZE)
        cfg: Mapping[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr, assignment]  # no nn.Module to mypy
        size, interpolation = cfg["size"], str(cfg["interpolation"])
        mode = RESIZE[resize] if resize else str(cfg["resize_mode"])
        if fast and (mode == "longest" or interpolation not in ("bicubic", "bilinear")):
            raise UserError(
                f"--fast-images cannot scale as this model asks for ({interpolation}, {mode}); "
                "leave it out"
            )
        return cls(
            size=int(size if isinstance(size, int) else size[0]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=f"{PREFIX}{interpolation}" if fast else interpolation,
            resize_mode=mode,
            fill_color=int(cfg["fill_color"]),
            crop_pct=float(cfg.get("crop_pct", 1.0)),
        )

    def identity(self) -> dict[str, Any]:
        """Everything that changes a pixel, for the store's fingerprint; no `crop_pct` of 1."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("crop_pct", 1.0)}

    @property
    def resized(self) -> int:
        """The side in pixels that images are scaled to before the center crop."""
        return math.floor(self.size / self.crop_pct)

    @property
    def fast(self) -> bool:
        """True if `fast_images` scales; images may then come as arrays (H, W, 3) of bytes."""
        return self.interpolation.startswith(PREFIX)

    def center(self, image: Image.Image | Pixels) -> Tensor:
        """The single deterministic crop (3, H, W) that features are stored for."""
        return self.standardize(self.center_crop(image))

    def center_crop(self, image: Image.Image | Pixels) -> Tensor:
        """The same before channels are standardized, uint8."""
        if self.resize_mode == "shortest":
            image = _middle(image)
        if self.fast:
            return fast_images.center_crop(
                image,
                self.resized,
                self.size,
                self.interpolation,
                squash=self.resize_mode == "squash",
            )
        image = _pillows(image)
        if self.resized != self.size:  # then what is left for open_clip's transform has its size
            image = self._cropped(image)
        return _bytes(_open_clips(self)(image))

    def standardize(self, crops: Tensor) -> Tensor:
        """Pixels (..., 3, H, W), float32, of uint8 crops; of the same bits on every device."""

        def constant(values: float | tuple[float, ...]) -> Tensor:
            # On the device, for a GPU multiplies by the reciprocal of a number from elsewhere.
            return torch.tensor(values, device=crops.device)

        mean, std = (constant(values)[:, None, None] for values in (self.mean, self.std))
        return crops.float().div_(constant(255.0)).sub_(mean).div_(std)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The middle (size, size) of the image at its larger size, as timm crops it."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tv

        side = [self.resized] if self.resize_mode == "shortest" else [self.resized, self.resized]
        larger = tv.resize(image, side, InterpolationMode(self.interpolation))
        cropped: Image.Image = tv.center_crop(larger, [self.size, self.size])
        return cropped

    def view(
        self,
        image: Image.Image | Pixels,
        scale: tuple[float, float],
        key: tuple[int, ...],
        *,
        flip: bool = True,
    ) -> Tensor:
        """One augmented view (3, H, W): a random resized crop, flipped half of the time.

        Args:
            image: RGB.
            scale: Minimum and maximum share of the area that the crop keeps; (0.5, 1) is
                Tip-Adapter's and GDA's, (0.08, 1) CoOp's.
            key: Seed, row, view number: the crop is a function of these alone, so views do not
                depend on the order or the process in which images are encoded.
            flip: False for no view flipped; the crops are the same.
        """
        return self.standardize(self.view_crop(image, scale, key, flip=flip))

    def view_crop(
        self,
        image: Image.Image | Pixels,
        scale: tuple[float, float],
        key: tuple[int, ...],
        *,
        flip: bool = True,
    ) -> Tensor:
        """The same before channels are standardized, uint8."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tv

        rng = np.random.default_rng(key)
        box = crop_box(*_height_and_width(image), scale, rng)
        mirrored = flip and rng.random() < 0.5
        if self.fast:
            return fast_images.box_crop(image, box, self.size, self.interpolation, mirrored)
        size, how = [self.size, self.size], InterpolationMode(self.interpolation)
        crop = tv.resized_crop(_pillows(image), *box, size, how)
        return _bytes(tv.hflip(crop) if mirrored else crop)


def _bytes(image: Image.Image) -> Tensor:
    """(3, H, W) uint8; by numpy, for torch in a thread that decodes starts threads of its own."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _height_and_width(image: Image.Image | Pixels) -> tuple[int, int]:
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def _pillows(image: Image.Image | Pixels) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _middle(image: Image.Image | Pixels) -> Image.Image | Pixels:
    """The middle of a sliver: its ends are cut off anyway, and whole it could fill the memory.

    As much goes from either end, so that the middle stays where it was.
    """
    height, width = _height_and_width(image)
    short, long = sorted((height, width))
    cut = max(0, long - 64 * short) // 2
    left, top = (cut, 0) if width == long else (0, cut)
    right, bottom = width - left, height - top
    if not cut:
        return image
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return image[top:bottom, left:right]


@functools.cache
def _open_clips(preprocess: Preprocess) -> Callable[[Image.Image], Image.Image]:
    """open_clip's own transform but for its last two steps; takes as long to build as to run."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    cfg = PreprocessCfg(**{k: v for k, v in asdict(preprocess).items() if k != "crop_pct"})
    *geometric, _to_tensor, _normalize = image_transform_v2(cfg, is_train=False).transforms
    transform: Callable[[Image.Image], Image.Image] = Compose(geometric)
    return transform


def crop_box(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, aspect ratio between 3:4 and 4:3.

    The rule of Inception-style training (Szegedy et al., 2015, arXiv:1409.4842): area and aspect
    are drawn up to ten times until the box fits, then the largest centered box is taken.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w
