"""The content of a report: sections of tables and drawings, before any of it has a form."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cache.files.names import ascii_name
from fewshot.results.groups import Point, ScatterPoint
from fewshot.tables import Table


@dataclass(frozen=True)
class Curves:
    """Accuracy against shots: series -> its points, and levels of what uses no shots; in 0..1."""

    title: str
    series: Mapping[str, Sequence[Point]]
    levels: Mapping[str, float]


@dataclass(frozen=True)
class Scatter:
    """Single points: the series, x, y, and the name of each."""

    title: str
    x: str
    y: str
    points: Sequence[ScatterPoint]
    log: bool = False


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of the same M points, colored by class.

    Attributes:
        title: What they show.
        panels: Name -> (M, 2) coordinates.
        labels: (M,) ids of the classes shown.
        names: Of these classes.
    """

    title: str
    panels: Mapping[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    names: Sequence[str]


ReportBlock = Table | Curves | Scatter | Maps


@dataclass
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        notes: Sentences below it.
        blocks: Name -> what it shows. Names are those of files and unique within the section.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    blocks: dict[str, ReportBlock] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The title as part of a file's name."""
        return slug(self.title)


@dataclass
class Report:
    """A title, what was read, and the sections."""

    title: str
    notes: list[str]
    sections: list[Section]


MAIN = ("accuracy", "average", "published")  # the tables that matter most, by their block's name


def slug(text: str) -> str:
    """A name for files: lower-case letters, digits and hyphens, and a digest of what that loses."""
    return re.sub(r"[^a-z0-9]+", "-", ascii_name(text.lower(), "table"))
