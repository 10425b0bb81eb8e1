"""An outcome as files: the adapter, the page, the figures, the commands, the predictions."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cache.errors import UserError
from cache.files.atomic import remove_leftovers, replacing
from fewshot.adapters.image_results import Prediction, distinct
from fewshot.adapters.output import lines
from fewshot.automatic.commands import script
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.page.assembly import page
from fewshot.automatic.record import as_json
from fewshot.automatic.unlabeled import Unlabeled

TOP = 3  # classes told of each image without a label


@contextmanager
def claimed(out: Path, photos: Path) -> Iterator[None]:
    """Hold the output folder against a second run.

    Args:
        out: The folder, which need not be there yet.
        photos: The folder of the labeled photos.

    Raises:
        UserError: It cannot be written into, another run holds it, or the result for other photos
            is in it.
    """
    home = out.absolute()
    lock = FileLock(home.with_name(f".{home.name}.lock"), blocking=False)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another `fewshot auto` is writing into {out}; wait for it, or give --out another "
            "folder"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write into {out}: {error.strerror}; give --out another folder"
        ) from None
    try:
        held = _photos_of(out)
        if held is not None and held != str(photos):
            raise UserError(
                f"{out} holds the result for the photos in {held}, not in {photos}; give --out "
                "another folder, or remove that one"
            )
        yield
    finally:
        lock.release()


def _photos_of(out: Path) -> str | None:
    """Return the folder of photos that the result in a folder is of; None where it does not say."""
    try:
        found = json.loads((out / "report.json").read_bytes())["photos"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def write(outcome: Outcome) -> None:
    """Every file, each whole or not at all; the page last, as it speaks of the others."""
    out = outcome.out
    outcome.adapter.save(outcome.adapter_path)
    predictions = out / "predictions.csv"
    if outcome.unlabeled is None:
        predictions.unlink(missing_ok=True)  # of an earlier run
        remove_leftovers(predictions)
    else:
        found = _predictions(outcome.unlabeled, outcome.store.classnames)
        _write_text(predictions, "".join(lines(found, "csv")))
    _write_text(out / "commands.sh", script(outcome.commands, Path.cwd()))
    record = json.dumps(as_json(outcome), indent=1, allow_nan=False)
    _write_text(out / "report.json", f"{record}\n")
    _write_text(outcome.page_path, page(outcome))


def _write_text(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="surrogateescape")


def _predictions(found: Unlabeled, classnames: tuple[str, ...]) -> Iterator[Prediction]:
    """The prediction of each image, as `fewshot predict` makes it."""
    names = distinct(classnames)
    p, classes = found.probabilities.topk(min(TOP, len(names)), dim=1)
    for path, best, ids in zip(found.paths, p.tolist(), classes.tolist(), strict=True):
        yield Prediction(str(found.source.root / path), tuple(names[k] for k in ids), tuple(best))
