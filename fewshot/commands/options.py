"""Options that several commands share, and the lists that options hold."""

from pathlib import Path
from typing import Annotated

import typer

from cache.decoding_memory import MAX_PIXELS as MAX_PIXELS
from cache.errors import UserError

DEFAULT_MODEL = "ViT-B-16/openai"

Dataset = Annotated[
    str | None,
    typer.Option(help="A name from `fewshot datasets`, a folder of images, or a CSV or JSONL."),
]
ManifestFile = Annotated[
    Path | None, typer.Option("--manifest", help="Your own manifest (TOML) instead of a name.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where datasets lie. [default: $FEWSHOT_DATA or ./data]")
]
Model = Annotated[
    str,
    typer.Option(
        envvar="FEWSHOT_MODEL",
        help="As open_clip names it: ViT-B-16/openai, hf-hub:…, local-dir:…, tiny.",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Largest image to decode, width x height in pixels."),
]
StoreRoot = Annotated[
    Path | None,
    typer.Option("--store", help="Where stores lie. [default: $FEWSHOT_STORE or ./features]"),
]


def parse_shard(shard: str | None) -> tuple[int, int] | None:
    """The part and the number of parts of I/N; None where there is none."""
    if shard is None:
        return None
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard wants I/N with 1 <= I <= N, such as 1/4; got {shard!r}")
    return int(index), int(count)


def parse_ints(option: str, text: str) -> list[int]:
    """The integers of a list such as 1,2,4."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} wants integers such as 1,2,4; got {text!r}") from None
    return list(dict.fromkeys(numbers))


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list such as a,b; None where there is no list."""
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def parse_pairs(option: str, pairs: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs of a repeatable option."""
    settings = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"{option} wants NAME=VALUE; got {pair!r}")
        settings[name] = value
    return settings
