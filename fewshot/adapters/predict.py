"""Images classified by an adapter: decoded ahead by threads, in batches, in the order given."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from torch import Tensor

from cache.errors import UserError, none_can, printable
from cache.images.decoding_memory import MAX_PIXELS
from cache.progress import progress
from fewshot.adapters import output, prediction_parts
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.answers import Answers, require_asked
from fewshot.adapters.image_results import (
    Prediction,
    PredictionCounts,
    PredictionForm,
    Unreadable,
)
from fewshot.adapters.inputs import Given, Taken, decoded, every, image_files
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.adapters.predictor import Predictor

_Batch = list[tuple[str, Tensor | str]]


def predict(
    adapter: Predictor | Adapter | Path | str,
    images: Given | Iterable[Given],
    *,
    top: int = 5,
    min_confidence: float = 0.0,
    unknown: bool = False,
    coverage: float | None = None,
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> list[Prediction]:
    """The most probable classes of each image, in the order given.

    Args:
        adapter: An adapter or its file; or what `open_adapter` made of one, whose model is loaded
            already and to which `model`, `device` and `precision` say nothing.
        images: PIL images and what the command line takes: files, folders, patterns.
        top: k, the classes given for each; all where there are fewer.
        min_confidence: Below it the label is `unknown`.
        unknown: The label is `unknown`, too, where the image is like none of the classes.
        coverage: Give the set of classes that holds the true one with this probability.
        model: As in `open_adapter`.
        device: As in `open_adapter`.
        precision: As in `open_adapter`.
        batch_size: Images per forward pass.
        workers: Threads that decode.
        max_pixels: Width times height of the largest image that is decoded.

    Raises:
        UserError: Nothing matches a name, or an image cannot be read, which `stream` passes over;
            or what `open_adapter` objects to; or the adapter lacks what `unknown` or `coverage`
            needs.
    """
    asked = PredictionForm(top, min_confidence, unknown, coverage)
    files = list(every(images))
    if not isinstance(adapter, Predictor):
        adapter = open_adapter(adapter, model=model, device=device, precision=precision)
    found = stream(
        adapter, files, asked, batch_size=batch_size, workers=workers, max_pixels=max_pixels
    )
    return [_readable(one) for one in found]


def stream(
    predictor: Predictor,
    images: Iterable[Taken],
    asked: PredictionForm = PredictionForm(),  # noqa: B008, it is frozen
    *,
    batch_size: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[int], None] = lambda n: None,
) -> Generator[Prediction | Unreadable, None, None]:
    """Yield the prediction of each image, in order and as soon as its batch is done.

    No more than three batches of images are held at a time; where the method classifies all images
    jointly, the features of all are, and nothing comes before the last has been encoded.

    Args:
        predictor: What classifies.
        images: Files and PIL images; they are taken as they are needed.
        asked: The form of the predictions.
        batch_size: Images per forward pass.
        workers: Threads that decode.
        max_pixels: Width times height of the largest image that is decoded.
        advance: Called with the number of images after each forward pass.

    Raises:
        UserError: The adapter lacks what is asked for; later, the model gave no numbers.
    """
    classify = Answers(predictor, asked)
    batches = _batches(predictor, images, batch_size, workers, max_pixels, advance)
    return _stream(classify, batches, together=predictor.jointly)


def classify_images(
    adapter: Path,
    images: Iterable[str],
    asked: PredictionForm,
    *,
    out: TextIO,
    say: Callable[[str], None],
    to: Path | None = None,
    stdin: BinaryIO | None = None,
    form: str = "table",
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> PredictionCounts:
    """Classify what the user named and write what is found, line by line.

    Args:
        adapter: Its file.
        images: Files, folders and patterns.
        asked: The form of the predictions.
        out: Where predictions are written, flushed with each.
        say: Called with every image that cannot be read.
        to: A file that they are written to instead, whole or not at all; its ending is the form.
        stdin: Where the name `-` reads more names.
        form: One of `output.FORMATS`, or of `prediction_parts.FORMS` for a file.
        model: As in `open_adapter`.
        device: As in `open_adapter`.
        precision: As in `open_adapter`.
        batch_size: Images per forward pass.
        workers: Threads that decode.
        max_pixels: Width times height of the largest image that is decoded.

    Raises:
        UserError: As `predict`; but images that cannot be read are no error unless all are so.
    """
    if to is None:
        output.require_format(form)
    else:
        form = prediction_parts.require_form(to, form)
    learned = load_adapter(adapter)  # damage shows before images are looked for
    require_asked(learned, asked)
    files = image_files(images, stdin, say)
    predictor = open_adapter(learned, model=model, device=device, precision=precision)
    terminal = out.isatty()
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as bar:
        found = stream(
            predictor, files, asked, batch_size=batch_size, workers=workers,
            max_pixels=max_pixels, advance=bar.enter_context(progress("images", len(files))),
        )  # fmt: skip
        with contextlib.closing(found):
            results = counted(found, counts, say)
            if to is not None:
                prediction_parts.write_file(results, to, form)
            else:
                # Bar and lines would write over one another.
                print_lines(results, form, out, before=bar.close if terminal else None)
    if not counts["classified"]:
        raise UserError(f"{none_can(len(files), 'image')} be read; give others")
    return PredictionCounts(counts["classified"], counts["unknown"], counts["unreadable"])


def print_lines(
    results: Iterable[Prediction | Unreadable],
    form: str,
    out: TextIO,
    *,
    before: Callable[[], None] | None = None,
) -> None:
    """Write predictions line by line, each flushed; a table keeps to a terminal's width.

    Args:
        results: The predictions.
        form: One of `output.FORMATS`.
        out: Where they are written.
        before: Called before each line.
    """
    width = shutil.get_terminal_size().columns if out.isatty() else None
    for line in output.lines(results, form, width):
        if before is not None:
            before()
        out.write(output.encodable(line, out.encoding))
        out.flush()


def counted(
    found: Iterable[Prediction | Unreadable], counts: Counter[str], say: Callable[[str], None]
) -> Iterator[Prediction | Unreadable]:
    """The same, counted as `PredictionCounts` has it, and said where an image cannot be read."""
    for one in found:
        if isinstance(one, Unreadable):
            counts["unreadable"] += 1
            say(f"cannot read {printable(one.path)}: {one.reason}")
        else:
            counts["classified"] += 1
            counts["unknown"] += not one.known
        yield one


def _batches(
    predictor: Predictor,
    images: Iterable[Taken],
    batch_size: int,
    workers: int,
    max_pixels: int,
    advance: Callable[[int], None],
) -> Iterator[_Batch]:
    """The paths of images and their features (D,), or why they have none."""
    exif = bool(predictor.adapter.preprocessing.get("exif", True))
    for batch in decoded(
        images, predictor.crops, exif=exif, batch_size=batch_size, workers=workers,
        max_pixels=max_pixels,
    ):  # fmt: skip
        pixels = [x for _, x in batch if isinstance(x, Tensor)]
        features = iter(predictor.features(torch.stack(pixels)) if pixels else ())
        advance(len(batch))
        yield [(path, x if isinstance(x, str) else next(features)) for path, x in batch]


def _stream(
    classify: Answers, batches: Iterator[_Batch], *, together: bool
) -> Generator[Prediction | Unreadable, None, None]:
    """The predictions of batches, one after the other or all together."""
    if together:
        batches = iter([list(chain.from_iterable(batches))])
    for batch in batches:
        yield from classify.each(batch)


def _readable(one: Prediction | Unreadable) -> Prediction:
    if isinstance(one, Unreadable):
        raise UserError(
            f"cannot read {one.path}: {one.reason}; leave it out, or use `stream`, which passes "
            "over such images"
        )
    return one
