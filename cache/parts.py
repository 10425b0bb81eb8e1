"""Finished pieces of one extraction, on disk until the store is assembled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor

from cache.atomic import replacing


@dataclass(frozen=True)
class Parts:
    """A directory of named pieces; each is a file of tensors and, after it, a marker.

    The marker holds the file's digest: a piece counts only with both, so a run that was killed
    between any two instructions leaves nothing that could be taken for finished.

    Attributes:
        directory: Named after everything that changes a byte of its contents.
    """

    directory: Path

    def done(self, name: str) -> bool:
        """True if the piece is there and is the one its marker was written for."""
        data, marker = self._files(name)
        try:
            return bool(json.loads(marker.read_text())["sha256"] == _sha256(data))
        except (OSError, ValueError):
            return False

    def save(self, name: str, tensors: dict[str, Tensor], note: Mapping[str, Any]) -> None:
        """Keep a piece; `note` is what else is to be remembered of it, as JSON."""
        data, marker = self._files(name)
        with replacing(data) as temporary:
            temporary.write_bytes(serialized(tensors))  # so that a full disk is an OSError
        with replacing(marker) as temporary:
            temporary.write_text(json.dumps({"sha256": _sha256(data), "note": note}))

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a finished piece."""
        return load_file(self._files(name)[0])

    def note(self, name: str) -> dict[str, Any]:
        """The note that was saved with a finished piece."""
        note: dict[str, Any] = json.loads(self._files(name)[1].read_text())["note"]
        return note

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.safetensors", self.directory / f"{name}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
