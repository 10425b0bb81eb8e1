"""JSON that others wrote, with one kind of error for all that can be wrong with it; and our own."""

import json
from typing import Any

from cache.errors import UserError


def parse_json(content: str | bytes, place: str, *, remedy: str = "") -> Any:
    """The value in a JSON text.

    Args:
        content: The text, or its bytes.
        place: The file, and perhaps the line, for messages.
        remedy: What to do about a text that is no JSON.

    Raises:
        UserError: It is not valid JSON, or nested too deep to be read.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        return json.loads(content)
    except RecursionError:
        raise UserError(f"{place}: expected flat JSON, got too deep a nesting{end}") from None
    except ValueError as error:
        raise UserError(f"{place} is not valid JSON: {error}{end}") from error


def canonical_json(value: Any) -> str:
    """JSON of which there is only one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
