"""Where a training keeps its checkpoint, and how it says that it is finished, and with what result.

Beside `NAME.safetensors`, the checkpoint, a finished run leaves `NAME.json`: its result line, and
all that the outcome depends on. A run that is asked for again is read from there, if all of that is
still the same.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from cache.datasets.source import Source
from cache.errors import UserError
from cache.files.atomic import replacing
from cache.files.names import safe_name
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.testing import Queries
from fewshot.results.log import Result
from fewshot.run import Run


def checkpoint_path(
    out: Path,
    method: EndToEnd,
    source: Source,
    model: str,
    shots: int | str,
    seed: int,
    *more: object,
) -> Path:
    """The checkpoint of a run: a name of its own for whatever was asked for."""
    name = f"{method.name}-{source.dataset}-{shots}-{seed}"
    return named_checkpoint(out, name, asdict(method), model, shots, seed, *more)


def named_checkpoint(out: Path, name: str, *asked: object) -> Path:
    """A file in a folder of results, which is called by a name and by all that was asked for."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return out / "checkpoints" / f"{safe_name(name)}-{digest}.safetensors"


def forget(checkpoint: Path) -> None:
    """Remove a run's checkpoint, if it has one, and the note that it is finished."""
    for file in (_note(checkpoint), checkpoint):
        file.unlink(missing_ok=True)


def require_new(checkpoint: Path, *earlier: Path) -> None:
    """Raise if there is the checkpoint of an unfinished run, which this run would overwrite.

    Args:
        checkpoint: The run's.
        *earlier: Those of its earlier stages.

    Raises:
        UserError: There is one.
    """
    there = [path for path in (checkpoint, *earlier) if path.exists()]
    if there and not _note(checkpoint).exists():
        raise UserError(
            f"{there[0]} is from an earlier start of this run; continue it with --resume, or "
            "remove it to start over"
        )


def finish(checkpoint: Path, about: str, result: Result) -> None:
    """Note that the checkpoint's run is finished.

    Args:
        checkpoint: The checkpoint after the last step.
        about: All that the run's outcome depends on.
        result: What the run reached.
    """
    with replacing(_note(checkpoint)) as temporary:
        temporary.write_text(json.dumps({"about": about, "result": result.to_json()}))


def finished(checkpoint: Path | None, about: str, run: Run, queries: Queries) -> Result | None:
    """The result of the run, if it is finished and the test images are still the same.

    Args:
        checkpoint: The run's checkpoint, if it has one.
        about: All that the run's outcome depends on now.
        run: The run that is asked for.
        queries: The images that it is tested on.
    """
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        content = json.loads(_note(checkpoint).read_text())
        result = Result.from_json(content["result"])
    except (OSError, ValueError, KeyError, TypeError):  # not finished, or damaged: tested again
        return None
    same = content["about"] == about and result.run == run
    here = queries.image_digest if same else None  # None of images that are gone
    return result if same and here in (None, result.image_digest) else None


def _note(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")
