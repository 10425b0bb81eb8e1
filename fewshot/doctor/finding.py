"""The finding of one check."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        state: `problem`: something does not work. `warning`: something works, but less well or
            not everywhere. `ok`: all else.
        found: What there is.
        fix: What to do about it, on one line; empty where it is ok.
    """

    name: str
    state: State
    found: str
    fix: str = ""
