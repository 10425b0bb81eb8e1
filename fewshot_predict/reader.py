"""The folder that `fewshot export --to onnx` or `--to hub` wrote, and images; no torch.

It imports nothing of `fewshot`, which needs torch. Pillow scales and crops as the model's own
preprocessing does, so that probabilities are those of `fewshot predict`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewshot_predict.answer_lines import Answer, lines, printable

MODEL = "model.onnx"
SLIVER = 64  # times as long as wide: of a longer image the middle is enough
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}


class ReaderError(Exception):
    """A mistake that the user can fix, in one line."""


class Reader:
    """An exported classifier, ready to use.

    Attributes:
        classnames: C names by class id.
        thresholds: C probabilities from which a class is a label, where an image may have several;
            None where it has one.
    """

    def __init__(self, folder: Path | str) -> None:
        path = Path(folder) / MODEL
        if not path.is_file():
            raise ReaderError(
                f"no {MODEL} in {folder}; `fewshot export ADAPTER --to onnx` writes such a folder"
            )
        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            about: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
            self.classnames: tuple[str, ...] = tuple(json.loads(about["classes"]))
            self._how: dict[str, Any] = json.loads(about["preprocessing"])
            several = about.get("thresholds")
            self.thresholds: list[float] | None = json.loads(several) if several else None
        except Exception as error:  # onnxruntime's own kinds, which it does not export
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ReaderError(f"{path} is no export of fewshot, or is damaged ({reason})") from None

    def probabilities(self, image: Image.Image) -> NDArray[np.float32]:
        """(C,) calibrated probabilities of one image."""
        _, probabilities = self._session.run(None, {"pixels": pixels(image, self._how)[None]})
        return np.asarray(probabilities[0], np.float32)

    def classify(self, path: Path) -> Answer:
        """The classes of an image's file.

        Raises:
            OSError: It cannot be read.
        """
        with Image.open(path) as image:
            p = self.probabilities(image)
        order = np.argsort(-p, kind="stable")
        ranked = [(self.classnames[k], float(p[k])) for k in order]
        if self.thresholds is None:
            return Answer(ranked, None)
        reached = p >= np.array(self.thresholds)
        return Answer(ranked, [one for one, k in zip(ranked, order, strict=True) if reached[k]])


def pixels(image: Image.Image, how: Mapping[str, Any]) -> NDArray[np.float32]:
    """(3, H, W) standardized pixels, by the preprocessing in the model's file.

    Raises:
        OSError: The image has gray values of more than 8 bits, or cannot be decoded.
    """
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        raise OSError("gray of more than 8 bits; convert it to 8, or use `fewshot predict`")
    if how["exif"]:
        image = ImageOps.exif_transpose(image)
    cropped = _cropped(image.convert("RGB"), how)
    mean, std = np.float32(how["mean"]), np.float32(how["std"])
    standardized = (np.asarray(cropped, np.float32) / 255 - mean) / std
    return np.ascontiguousarray(standardized.transpose(2, 0, 1), np.float32)


def _cropped(image: Image.Image, how: Mapping[str, Any]) -> Image.Image:
    """The (size, size) crop that the model takes."""
    size = int(how["size"])
    side = math.floor(size / how.get("crop_pct", 1.0))  # before the crop
    bilinear = how["interpolation"].endswith("bilinear")
    method = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    if how["resize_mode"] == "longest":
        scale = max(image.size) / size
        w, h = (round(length / scale) for length in image.size)
        canvas = Image.new("RGB", (size, size), (how["fill_color"],) * 3)
        canvas.paste(image.resize((w, h), method), ((size - w) // 2, (size - h) // 2))
        return canvas
    w = h = side
    if how["resize_mode"] == "shortest":
        image = _middle(image)
        w, h = (side * length // min(image.size) for length in image.size)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), method).crop((left, top, left + size, top + size))


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a sliver, whose ends are cut off anyway."""
    cut = max(0, max(image.size) - SLIVER * min(image.size)) // 2
    left, top = (cut, 0) if image.width > image.height else (0, cut)
    return image.crop((left, top, image.width - left, image.height - top)) if cut else image


def files(names: Sequence[str]) -> Iterator[Path]:
    """The files that are meant; of a folder the images below it, sorted."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
        else:
            yield path


def classify_files(
    folder: Path | str,
    images: Sequence[str],
    *,
    top: int = 5,
    form: str = "table",
    out: TextIO,
    say: Callable[[str], None],
) -> None:
    """Print the most probable classes of each image, or its labels where it may have several.

    Args:
        folder: That of the exported classifier.
        images: Files, or folders of them.
        top: Number of classes to print.
        form: `table` or `jsonl`.
        out: Gets one line for each image; a table also a header.
        say: Called with a sentence for each image that cannot be read.

    Raises:
        ReaderError: There is no such classifier, or nothing could be classified.
    """
    if top < 1:
        raise ReaderError(f"--top must be at least 1; got {top}")
    reader = Reader(folder)
    done = 0
    for line in lines(_answers(reader, files(images), say), top, form):
        done += 1
        print(line, file=out, flush=True)
    if not done:
        raise ReaderError("none of the images can be read; give others")


def _answers(
    reader: Reader, paths: Iterable[Path], say: Callable[[str], None]
) -> Iterator[tuple[str, Answer]]:
    """Yield the path and the answer of each image that can be read; the others are said."""
    for path in paths:
        try:
            answer = reader.classify(path)
        except Exception as error:  # decoders raise more than OSError
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            say(printable(f"cannot read {path}: {reason}"))
            continue
        yield str(path), answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `fewshot-predict`; its exit code is 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="fewshot-predict",
        description="Classify images with what `fewshot export --to onnx` wrote.",
    )
    parser.add_argument("folder", help="folder with model.onnx")
    parser.add_argument("images", nargs="+", help="images, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="number of classes to print (5)")
    parser.add_argument("--format", choices=("table", "jsonl"), default="table")
    asked = parser.parse_args(arguments)
    try:
        classify_files(
            asked.folder,
            asked.images,
            top=asked.top,
            form=asked.format,
            out=sys.stdout,
            say=lambda line: print(line, file=sys.stderr),
        )
    except ReaderError as error:
        print(printable(f"fewshot-predict: {error}"), file=sys.stderr)
        return 2
    return 0
