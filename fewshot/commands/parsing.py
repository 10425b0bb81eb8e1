"""Values of options that are lists, pairs and shares, from the words that were typed."""

from typing import TYPE_CHECKING, Literal

from cache.errors import UserError

if TYPE_CHECKING:
    from fewshot.model_selection.protocols import Share

UNITS = {"k": 1_000, "m": 1_000_000}


def parse_shard(shard: str | None) -> tuple[int, int] | None:
    """The part and the number of parts of I/N; None where there is none."""
    if shard is None:
        return None
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard must be I/N with 1 <= I <= N, such as 1/4; got {shard!r}")
    return int(index), int(count)


def parse_share(text: str) -> "Share":
    """The share of a method in a blend: `auto`, or a number from 0 to 1."""
    try:
        share: Share = "auto" if text == "auto" else float(text)
    except ValueError:
        raise UserError(f"--blend takes auto, or a number from 0 to 1; got {text!r}") from None
    return share


def parse_ints(option: str, text: str) -> list[int]:
    """The integers of a list such as 1,2,4, each once."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be integers such as 1,2,4; got {text!r}") from None
    return list(dict.fromkeys(numbers))


def parse_shots(text: str) -> list[int | Literal["all"]]:
    """The numbers of a list such as 1,2,4; or all."""
    return ["all"] if text == "all" else list(parse_ints("--shots", text))


def parse_k(text: str) -> int | Literal["all"]:
    """The number of images per class; or all.

    Raises:
        UserError: It is neither.
    """
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--shots must be a whole number, 1 or more, or all; got {text!r:.60}")
    return int(text)


def parse_count(option: str, text: str) -> int:
    """A count such as 300000, 300k or 1.5M.

    Raises:
        UserError: It is none.
    """
    unit = UNITS.get(text[-1:].lower())
    try:
        number = float(text[:-1]) * unit if unit else float(text)
        if number >= 1 and number == int(number):
            return int(number)
    except (OverflowError, ValueError):
        pass
    raise UserError(f"{option} must be a count such as 300000, 300k or 1.5M; got {text!r}")


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list such as a,b; None where there is no list."""
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def parse_pairs(option: str, pairs: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs of a repeatable option, each name once."""
    settings: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"{option} must be NAME=VALUE; got {pair!r}")
        if name in settings:
            raise UserError(f"{option} {name} is given twice; give it one value")
        settings[name] = value
    return settings
