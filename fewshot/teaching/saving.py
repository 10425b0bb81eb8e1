"""The labels as a table, and the classifier as an adapter."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.files.atomic import replacing
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.teaching.taught_photos import TaughtPhotos

METHOD = "gda"  # the page's own, tuned for the file


@dataclass(frozen=True)
class Saved:
    """The files written.

    Attributes:
        table: The labels as CSV.
        adapter: The classifier; None where there are fewer than two classes with a photo.
        summary: The adapter in one line, or why there is none.
    """

    table: Path
    adapter: Path | None
    summary: str


def save(photos: TaughtPhotos, labels: Mapping[str, str], out: Path) -> Saved:
    """Write `labels.csv` and `adapter.safetensors`, each whole or not at all.

    The method is tuned by cross-validation, and fitted to all labels.

    Args:
        photos: The photos.
        labels: Path -> class.
        out: The folder to write into.

    Raises:
        UserError: Photos have changed or gone since they were encoded.
    """
    table = out / "labels.csv"
    write_labels(table, photos.source.root, labels)
    if len(set(labels.values())) < 2:
        return Saved(table, None, "no classifier yet: it needs a photo of two classes")
    adapter, _ = fit_and_save(
        photos.labeled(labels), METHOD, out / "adapter.safetensors", shots="all"
    )
    return Saved(table, out / "adapter.safetensors", adapter.summary())


def write_labels(table: Path, root: Path, labels: Mapping[str, str]) -> None:
    """Write paths, relative to the table's folder, and labels as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label"])
    for path, label in labels.items():
        place = os.path.relpath(root / path, table.parent.resolve())
        rows.writerow([place.replace(os.sep, "/"), label])
    with replacing(table) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
