"""How commands print: notes on stderr, results on stdout, and no name that moves the cursor."""

import sys
from collections.abc import Sequence

from cache.errors import printable_lines


def say(text: str) -> None:
    """Print a note to stderr, which keeps stdout for results."""
    print(printable_lines(text), file=sys.stderr)


def show(text: str) -> None:
    """Print a result to stdout."""
    print(printable_lines(text))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a header and rows to stdout, in columns as wide as they need."""
    from fewshot.tables import Table, text

    print(text(Table("", tuple(header), rows)))
