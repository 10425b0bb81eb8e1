"""The one exception a user's mistake raises, and the sentence for a misspelt name."""

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 25  # names that fit an error still called one line
NEAREST = 5  # names shown of more than that


class UserError(ValueError):
    """Something the user can fix: one line saying what was expected, what came, what to do.

    The command line prints it and exits with 2; any other exception is a bug and keeps its
    traceback.
    """


def printable(text: str) -> str:
    """The text on one line: newlines, escapes and what else moves a cursor are written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return text of several lines with each of them printable."""
    return "\n".join(map(printable, text.split("\n")))


def excerpt(value: object) -> str:
    """A value as an error quotes it: its `repr`, cut to one that fits a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def count(n: int, noun: str, plural: str = "") -> str:
    """Return such as "1 photo" and "1,200 photos"."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def some(names: Sequence[str]) -> str:
    """Return such as "'a', 'b', 'c' and 4 more"."""
    more = f" and {len(names) - NEAREST:,} more" if len(names) > NEAREST else ""
    return ", ".join(map(excerpt, names[:NEAREST])) + more


def none_can(n: int, noun: str) -> str:
    """Return such as "the one photo cannot" and "none of the 5 photos can"."""
    return f"the one {noun} cannot" if n == 1 else f"none of the {count(n, noun)} can"


def unknown(kind: str, name: str, known: Iterable[str], *, see: str = "") -> UserError:
    """The error for a name that is not among `known`, with the nearest ones offered.

    All names are listed if they fit one line, else the nearest ones.

    Args:
        kind: What the name should have been, such as "dataset" or "method".
        name: What was given.
        known: Every name that would have been right.
        see: A command that lists them all.
    """
    by_case = {candidate.casefold(): candidate for candidate in sorted(known)}
    near = difflib.get_close_matches(name.casefold(), by_case, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(by_case[n]) for n in near)}? " if near else ""
    if not by_case:
        return UserError(f"unknown {kind} {name!r:.80}; there is none, so leave it out")
    names = list(by_case.values())
    more = ""
    if len(names) > SHOWN:
        nearest = difflib.get_close_matches(name.casefold(), by_case, n=NEAREST, cutoff=0.0)
        more = f" and {len(names) - NEAREST} more" + (f", listed by {see}" if see else "")
        names = [by_case[one] for one in nearest]
    return UserError(f"unknown {kind} {name!r:.80}; {hint}known: {', '.join(names)}{more}")
