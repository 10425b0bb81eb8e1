"""Reading a TOML table key by key, with an error that names file, key, expected and got."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from cache.errors import UserError, unknown


class TomlTable:
    """A TOML table of which every key is to be asked for.

    What was asked for is what is known: `refuse_unread` makes an error of any other key.

    Args:
        content: Keys and values as `tomllib` gives them.
        file: For messages.
        prefix: Dotted name of the table within the file.
    """

    def __init__(self, content: dict[str, Any], file: str, prefix: str = "") -> None:
        self.content = content
        self._file = file
        self._prefix = prefix
        self._asked: set[str] = set()

    def error(self, key: str, expected: str, got: object) -> UserError:
        """The error for a value that will not do; `got` is None where there is no value."""
        came = "nothing" if got is None else f"{got!r:.80}"
        return UserError(f"{self._file}: {self._prefix}{key:.80}: expected {expected}, got {came}")

    def refuse_unread(self) -> None:
        """Raise for the first key that nobody asked for."""
        for key in self.content:
            if key not in self._asked:
                raise unknown(f"key in {self._file}", self._prefix + key, self._known())

    def table(self, key: str, *, required: bool = False) -> "TomlTable":
        """The table under a key; an empty one where there is none."""
        value = self._get(key)
        if not isinstance(value, dict) and (required or value is not None):
            raise self.error(key, "a table", value)
        return TomlTable(value or {}, self._file, f"{self._prefix}{key}.")

    def integer(self, key: str, *, at_least: int) -> int | None:
        """The whole number under a key; None where there is none."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self.error(key, f"a whole number of at least {at_least}", value)
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """The list of whole numbers under a key, or the one; empty where there is none."""
        value = self._get(key)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise self.error(key, "whole numbers", value)
        return tuple(numbers)

    def number_or(self, word: str, key: str) -> Any:
        """The number under a key, or the word; None where there is neither."""
        value = self._get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and value != word and not number:
            raise self.error(key, f"a number, or {word}", value)
        return float(value) if number else value

    def numbers(self, key: str) -> tuple[float, ...]:
        """The list of numbers under a key; empty where there is none."""
        value = self._get(key)
        given = [] if value is None else value
        if not isinstance(given, list) or not all(type(one) in (int, float) for one in given):
            raise self.error(key, "a list of numbers", value)
        return tuple(map(float, given))

    def boolean(self, key: str) -> bool | None:
        """True or false under a key; None where there is neither."""
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def text(
        self,
        key: str,
        *,
        required: bool = False,
        pattern: str = "",
        choices: Sequence[str] = (),
    ) -> str:
        """The text under a key; empty where there is none."""
        value = self._get(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            raise self.error(key, "a text", value)
        if pattern and not re.fullmatch(pattern, value):
            raise self.error(key, f"a text like {pattern}", value)
        if choices and value not in choices and (value or required):
            raise self.error(key, f"one of {', '.join(choices)}", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of texts under a key; empty where there is none."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self.error(key, "a list of texts", value)
        return tuple(value)

    def templates(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """The list of prompt templates under a key, each with exactly one {}."""
        texts = self.texts(key)
        if required and not texts:
            raise self.error(key, "a list of templates", self.content.get(key))
        for text in texts:
            if text.count("{}") != 1 or text.count("{") + text.count("}") != 2:
                raise self.error(key, "templates with one {} for the class name", text)
        return texts

    def all_texts(self) -> dict[str, str]:
        """The whole table as text to text."""
        return {key: self.text(key, required=True) for key in self.content}

    def _get(self, key: str) -> Any:
        self._asked.add(key)
        return self.content.get(key)

    def _known(self) -> list[str]:
        return [self._prefix + key for key in self._asked]


def parse_toml(content: bytes, where: str) -> TomlTable:
    """The outermost table of a file.

    Args:
        content: The file's bytes.
        where: The file's name, for messages.

    Raises:
        UserError: They are not TOML.
    """
    try:
        return TomlTable(tomllib.loads(content.decode()), where)
    except RecursionError:
        raise UserError(f"{where}: expected flat TOML, got too deep a nesting") from None
    except ValueError as error:  # of the decoding as well
        raise UserError(f"{where} is not a valid TOML file: {error}") from error
