"""Errors of pydantic as one line: the place, what was expected there, and what was found."""

from pydantic import ValidationError

SHOWN = 60  # characters of what was found


def problem(error: ValidationError) -> str:
    """The first problem, such as `calibration.temperature: expected greater than 0, got -1.0`."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part)[:SHOWN] for part in first["loc"])
    at = f"{place}: " if place else ""
    match first["type"]:
        case "missing":
            return f"{at}expected a value, got nothing"
        case "extra_forbidden":
            return f"{at}expected nothing under this name"
        case "value_error":
            return at + first["msg"].removeprefix("Value error, ")
    expected = first["msg"].replace("Input should be ", "", 1)
    found = repr(first["input"])
    shown = found if len(found) <= SHOWN else f"{found[:SHOWN]}…"
    return f"{at}expected {expected}, got {shown}"
