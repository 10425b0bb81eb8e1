"""Requests, replies, and refusals as one sentence of JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A request that arrived whole.

    Attributes:
        method: `GET` or `POST`.
        path: Of its address, without the query.
        query: Name -> its last value.
        headers: Name in small letters -> value.
        body: Empty where there is none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        body: Its bytes.
        kind: Its media type.
        status: Of HTTP.
        headers: Further ones.
    """

    body: bytes
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: Of HTTP, 400 or more.
        sentence: Why, and what to do.
        headers: Further ones of the answer.
    """

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(self) -> Reply:
        """The answer that says so."""
        return as_json({"error": str(self)}, self.status, **self.headers)


Respond = Callable[[Request], Reply]


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    """Return a value as JSON, with characters of any script written out."""
    body = json.dumps(value, allow_nan=False).encode()
    return Reply(body, status=status, headers=headers)
