"""Photographs as they come from cameras, phones, scanners and other people's disks."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.store import FeatureStore
from cli import main
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.pipeline import auto
from tests.auto_photos import digit, draw_digits

QUICK = ("zero-shot", "nearest-mean")
ORIENTATION = 0x0112  # of EXIF
UNTURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # the camera lay on its side; shown, it is turned back
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def two_classes(folder: Path, n: int = 3) -> Path:
    """Three digits called zero and three called one."""
    return draw_digits(folder, {"zero": n, "one": n})


def picture() -> Image.Image:
    """A gray digit, wider than high, which looks like itself in no other orientation."""
    page = Image.new("L", (48, 32), 30)
    page.paste(digit("three", 0).convert("L"), (2, 0))
    return page.convert("RGB")


def _gray(dtype: type, scale: float) -> Image.Image:
    gray = np.asarray(picture().convert("L"), np.float64)
    return Image.fromarray((gray * scale).astype(dtype))


def _palette_with_transparency() -> Image.Image:
    image = picture().convert("L").convert("P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    return image


FORMS: Mapping[str, Callable[[Path], None]] = {
    "UPPER.PNG": lambda path: picture().save(path),
    "Mixed.PnG": lambda path: picture().save(path),
    "a.bmp": lambda path: picture().save(path),
    "a.TIFF": lambda path: picture().save(path),
    "a.ppm": lambda path: picture().save(path),
    "gray.png": lambda path: picture().convert("L").save(path),
    "16 bit gray.png": lambda path: _gray(np.uint16, 257).save(path),
    "16 bit gray.tif": lambda path: _gray(np.uint16, 257).save(path),
    "float of 0 to 1.tif": lambda path: _gray(np.float32, 1 / 255).save(path),
    "float of 0 to 255.tif": lambda path: _gray(np.float32, 1).save(path),
    "palette.png": lambda path: _palette_with_transparency().save(path, transparency=30),
    "palette.gif": lambda path: _palette_with_transparency().save(path, transparency=30),
    "rgba.png": lambda path: picture().convert("RGBA").save(path),
    "la.png": lambda path: picture().convert("LA").save(path),
    "lossless.webp": lambda path: picture().save(path, lossless=True),
    "animated.gif": lambda path: _moving(path),
    "animated.webp": lambda path: _moving(path, lossless=True),
    "pages.tiff": lambda path: _moving(path),
    "JPEG called.png": lambda path: picture().save(path, "JPEG", quality=100, subsampling=0),
    "a.JPG": lambda path: picture().save(path, quality=100, subsampling=0),
    "a.JPEG": lambda path: picture().save(path, quality=100, subsampling=0),
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path, quality=100),
}
LOSSY = ("JPEG called.png", "a.JPG", "a.JPEG", "cmyk.jpg")


def _moving(path: Path, **options: Any) -> None:
    """The picture first, and then another."""
    other = Image.new("RGB", picture().size, "white")
    picture().save(path, save_all=True, append_images=[other], **options)


def damaged(folder: Path) -> dict[str, str]:
    """Five files that are no images; file name -> what is said of each."""
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    picture().resize((480, 320)).save(folder / "half.jpg")
    content = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    return {
        "empty.jpg": "the file is empty",
        "gone.png": "no such file",
        "half.jpg": "truncated",
        "huge.png": "20,000 x 10,000 = 200,000,000 pixels, the maximum is 120,000,000",
        "text.jpg": "not an image in any format that is read: JPEG, PNG",
    }


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: path -> when it was changed, and its bytes."""
    return {path: (os.lstat(path).st_mtime_ns, _bytes(path)) for path in _below(folder)}


def _below(folder: Path) -> Iterator[str]:
    for directory, folders, files in os.walk(folder):
        yield from (os.path.join(directory, name) for name in (".", *folders, *files))  # noqa: PTH118


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes() if Path(path).is_file() else b""


@dataclass(frozen=True)
class Ran:
    """What a command left behind: exit code, stdout, and stderr by line."""

    code: int
    out: str
    said: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """Its one line, where it was refused."""
        assert self.code == 2
        assert not self.out
        return self.said[-1]


class User:
    """Somebody at a command line, with a folder of their own."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys

    def types(self, *arguments: str | Path) -> Ran:
        """One command."""
        self._capsys.readouterr()
        code = main([str(word) for word in arguments])
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, tuple(captured.err.splitlines()))

    def extracts(self, photos: Path | str, *more: str | Path) -> Ran:
        """All images of a folder, into a store of this folder's own."""
        return self.types(
            "extract", "--dataset", photos, "--all-train", "--model", "tiny", "--store",
            self.home / "extracted", *more,
        )  # fmt: skip

    def learns(self, photos: Path | str, methods: Sequence[str] = QUICK) -> Outcome:
        """By `auto`, with few methods."""
        out, store = self.home / "out", self.home / "features"
        return auto(photos, model="tiny", methods=methods, out=out, store=store)

    def predicts(self, *images: str | Path) -> list[dict[str, Any]]:
        """What `predict` says of images, by what `auto` learned."""
        adapter = self.home / "out" / "adapter.safetensors"
        ran = self.types("predict", adapter, *images, "--format", "jsonl", "--top", "99")
        assert ran.code == 0, ran.said
        return [json.loads(line) for line in ran.out.splitlines()]


def extracted(user: User, dataset: str = "photos-all") -> FeatureStore:
    return FeatureStore.open(user.home / "extracted" / dataset / "tiny.h5")
