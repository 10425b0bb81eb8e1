"""How commands print: notes on stderr, aligned columns on stdout."""

import sys
from collections.abc import Sequence


def say(text: str) -> None:
    """Print a note to stderr, which keeps stdout for results."""
    print(text, file=sys.stderr)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a header and rows to stdout, in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
