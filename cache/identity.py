"""What differs between two identities, in words."""

import re
from collections.abc import Mapping
from typing import Any


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """One phrase per dotted key whose values differ, such as `precision is 'fp32', asked for ...`.

    Digests are shortened to 12 digits; a key on one side only counts as None on the other.
    """
    there, asked = _dotted(have), _dotted(want)
    return [
        f"{key} is {_short(there.get(key))}, asked for {_short(asked.get(key))}"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _dotted(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
