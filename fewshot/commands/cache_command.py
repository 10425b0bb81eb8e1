"""Show and bound the features that are kept for later stores: `cache`."""

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UserError, count
from fewshot.commands.options import StoreOption
from fewshot.commands.terminal import print_table, say

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def cache(
    store: StoreOption = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove features that no store uses, and those synthesized of a store that is "
            "gone.",
        ),
    ] = False,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove features until at most this is left, such as 500MB: those that no store "
            "uses first, then the oldest.",
        ),
    ] = None,
) -> None:
    """Show, prune and bound the features kept for later use.

    What is removed is encoded or synthesized again when it is needed. Stores stay as they are.
    """
    from cache.extraction import bank_upkeep
    from cache.extraction.bank import Bank
    from cache.location import bank_path, default_root
    from fewshot.synthesis.kept_files import find_kept

    size = None if max_size is None else _bytes(max_size)
    root = store or default_root()
    path = bank_path(root)
    synthesized = find_kept(root)
    if not path.exists() and not synthesized:
        raise UserError(
            f"no features are kept at {path}; extract and auto keep them, and --store names the "
            "folder of stores"
        )
    if synthesized:
        _synthesized(root, prune=prune)
    if not path.exists():
        return
    with Bank.opened(path) as bank:
        removed = bank_upkeep.prune(bank) if prune else 0
        removed += 0 if size is None else bank_upkeep.shrink(bank, size)
        kept = bank_upkeep.kept(bank)
    if prune or size is not None:
        say(f"{count(removed, 'feature')} removed")
    print_table(
        ("model", "images and views", "prompts", "MB"),
        [
            (one.model, f"{one.images:,}", f"{one.prompts:,}", f"{one.size / 1e6:,.1f}")
            for one in kept
        ],
    )
    say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB on disk")


def _synthesized(root: Path, *, prune: bool) -> None:
    """Show the synthesized features, once those of no store are removed if so asked."""
    from fewshot.synthesis.kept_files import Card, find_kept
    from fewshot.synthesis.kept_files import prune as remove

    if prune:
        say(f"{count(remove(root), 'file')} of synthesized features removed")
    print_table(
        ("dataset", "model", "generator", "shots", "seed", "features", "MB"),
        [
            (
                card.dataset, card.model, card.generator, str(card.shots), str(card.seed),
                f"{card.features:,}", f"{path.stat().st_size / 1e6:,.1f}",
            )
            for path, card in ((path, Card.of(path)) for path in find_kept(root))
        ],
    )  # fmt: skip


def _bytes(text: str) -> int:
    """The bytes of a size such as 500MB.

    Raises:
        UserError: It is none.
    """
    number, unit = text[:-2], text[-2:].lower()
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        size = -1
    if not 0 <= size < float("inf"):
        raise UserError(f"--max-size must be a size such as 500MB or 2GB; got {text!r}")
    return int(size)
