"""Classify images with the folder that `export --to onnx` wrote, as `fewshot-predict` does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from cache.errors import UserError


def classify_exported(
    folder: Path,
    images: Sequence[str],
    *,
    top: int,
    form: str,
    out: TextIO,
    say: Callable[[str], None],
    unused: Mapping[str, bool],
) -> None:
    """Print a line for each image, without torch.

    Args:
        folder: What was exported.
        images: Files, or folders of them.
        top: Number of classes to print.
        form: `table` or `jsonl`.
        out: Gets the lines.
        say: Called with a sentence for each image that cannot be read.
        unused: Options that need an adapter, and whether they were given.

    Raises:
        UserError: One of these was given, the reader is not installed, or what it objects to.
    """
    given = [option for option, one in unused.items() if one]
    if given:
        raise UserError(
            f"{folder} is an exported folder, and only an adapter's file takes "
            f"{' and '.join(given)}; give that, or leave {'it' if len(given) == 1 else 'them'} out"
        )
    try:
        from fewshot_predict.reader import ReaderError, classify_files
    except ModuleNotFoundError as error:
        raise UserError(
            f"exported folders are read by fewshot-predict and onnxruntime, of which {error.name} "
            "is not here; pip install ./fewshot_predict in a checkout of this program"
        ) from None
    try:
        classify_files(folder, images, top=top, form=form, out=out, say=say)
    except ReaderError as error:
        raise UserError(str(error)) from None
