"""The labels of a folder of photos, as a file that only ever grows.

Its first line names the folder, every other one is an action. A line is on the disk before the
page hears of it; a kill leaves at most a part of a last line, which the next run drops.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from filelock import FileLock, Timeout

from cache.errors import UserError, excerpt

FORMAT = 1
ASIDE = ""  # the label of a photo of none of the classes


@dataclass(frozen=True)
class Action:
    """A line of the log.

    Attributes:
        number: Its place among the actions, from 1.
        labels: Path -> the class's name, `ASIDE`, or None where the label was taken back.
        classes: Names of classes that were added without a photo.
        drawn: Those of these photos that had been proposed because a random draw said so.
        undoes: The number of the action that this one takes back; 0 for none.
    """

    number: int
    labels: Mapping[str, str | None] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    undoes: int = 0


class LabelLog:
    """An open log, which no other process can open meanwhile.

    Attributes:
        path: Its file.
        actions: All of them, in order.
    """

    def __init__(self, path: Path, file: BinaryIO, actions: list[Action]) -> None:
        self.path, self.actions, self._file = path, actions, file

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, photos: Path) -> Iterator[Self]:
        """The log in a file, which is made if there is none.

        Args:
            path: The file.
            photos: The folder of the photos.

        Raises:
            UserError: Another process has it, it is of another folder, or a line is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another `fewshot teach` writes {path}; use its page, or give --labels another "
                "file"
            ) from None
        try:
            with path.open("a+b") as file:
                yield cls(path, file, _read(path, file, photos))
        finally:
            lock.release()

    @property
    def position(self) -> int:
        """The number of the last action; 0 before the first."""
        return len(self.actions)

    def append(
        self,
        labels: Mapping[str, str | None] | None = None,
        *,
        classes: Sequence[str] = (),
        drawn: Sequence[str] = (),
        undoes: int = 0,
    ) -> Action:
        """Write an action to the disk, whole or not at all; see `Action`.

        Raises:
            OSError: The disk is full, or gone.
        """
        number = self.position + 1
        action = Action(number, dict(labels or {}), tuple(classes), tuple(drawn), undoes)
        _write(self._file, {name: value for name, value in asdict(action).items() if value})
        self.actions.append(action)
        return action


def _read(path: Path, file: BinaryIO, photos: Path) -> list[Action]:
    """The actions in a file; a torn last line is cut off, and an empty file gets its first line."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    lines = whole.splitlines()
    if not lines:
        _write(file, {"format": FORMAT, "photos": str(photos)})
        return []
    head = _object(path, 1, lines[0])
    if not isinstance(head.get("format"), int) or not isinstance(head.get("photos"), str):
        raise UserError(f"{path} is no file of labels; give --labels another one")
    if head["format"] > FORMAT:
        raise UserError(
            f"{path} is of a later version of fewshot (format {head['format']}, this one reads "
            f"{FORMAT}); update fewshot, or give --labels another file"
        )
    if head["photos"] != str(photos):
        raise UserError(
            f"{path} has the labels of {head['photos']}, not of {photos}; give --labels another "
            "file"
        )
    return [_action(path, number, line) for number, line in enumerate(lines[1:], start=1)]


def _action(path: Path, number: int, line: bytes) -> Action:
    found = _object(path, number + 1, line)
    labels = found.get("labels", {})
    lists = [found.get("classes", []), found.get("drawn", [])]
    undoes = found.get("undoes", 0)
    if (
        found.get("number") != number
        or not isinstance(labels, dict)
        or not all(label is None or isinstance(label, str) for label in labels.values())
        or not all(isinstance(one, list) and all(isinstance(x, str) for x in one) for one in lists)
        or not (isinstance(undoes, int) and 0 <= undoes < number)
    ):
        raise _damaged(path, number + 1, line)
    return Action(number, labels, tuple(lists[0]), tuple(lists[1]), undoes)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(path, number, line)
    return found


def _damaged(path: Path, number: int, line: bytes) -> UserError:
    return UserError(
        f"{path}, line {number}: expected an action in JSON, got {excerpt(line)}; fix the line, or "
        "remove it and those after it"
    )


def _write(file: BinaryIO, value: Mapping[str, Any]) -> None:
    """Append a line and wait until the disk has it; what a failure has left is cut off."""
    end = file.seek(0, os.SEEK_END)
    try:
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise
