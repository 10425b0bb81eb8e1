"""An outcome as files: the adapter, the page, the figures, the commands, the predictions."""

import json
from collections.abc import Iterator
from pathlib import Path

from cache.atomic import replacing
from fewshot.adapters.output import lines
from fewshot.adapters.prediction import Prediction, distinct
from fewshot.automatic.commands import script
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.page.assembly import page
from fewshot.automatic.record import as_json
from fewshot.automatic.unlabeled import Unlabeled

TOP = 3  # classes told of each image without a label


def write(outcome: Outcome) -> None:
    """Every file, each whole or not at all; the page last, as it speaks of the others."""
    out = outcome.out
    for leftover in out.glob(".*.tmp"):  # of a killed run
        leftover.unlink(missing_ok=True)
    outcome.adapter.save(outcome.adapter_path)
    predictions = out / "predictions.csv"
    if outcome.unlabeled is None:
        predictions.unlink(missing_ok=True)  # of an earlier run
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
    """What is said of each image, as `fewshot predict` says it."""
    names = distinct(classnames)
    p, classes = found.probabilities.topk(min(TOP, len(names)), dim=1)
    for path, best, ids in zip(found.paths, p.tolist(), classes.tolist(), strict=True):
        yield Prediction(str(found.source.root / path), tuple(names[k] for k in ids), tuple(best))
