"""The first model of a pair, as an adapter records it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cache.pair import Pair


@dataclass(frozen=True)
class FirstModel:
    """The first model of a pair, as its adapter has it.

    Attributes:
        model: What is recorded of it, as of `Adapter.model`.
        preprocessing: From an image to its input; empty where nobody knew.
        weight: Its share of the cosine of two images, from 0 to below 1.
    """

    model: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    weight: float

    @classmethod
    def of(cls, pair: Pair) -> "FirstModel":
        """That of a pair at the weight in use."""
        first = pair.beside
        return cls(first.identity["model"], first.preprocessing, pair.share)

    def card(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)
