"""Build HTML pages that need no other file: a frame, and sections of blocks.

The templates in `fewshot/templates` hold the markup, the style and the script. They escape all
text, and write out control characters and bidirectional marks, so that no name is taken for markup
or turns the text around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from cache.errors import printable_lines
from fewshot.tables import Table, to_the_right

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
LONG = 40  # rows, more than which fold a table; characters, more than which wrap in a cell


@dataclass(frozen=True)
class Notes:
    """Sentences in small print."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Paragraph:
    """A sentence, and a part after it in bold."""

    text: str
    bold: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        caption: Above it.
        svg: The drawing.
        legend: The name of each series and its sample; empty without a legend.
        wide: True if it takes the whole width of the page.
    """

    caption: str
    svg: Markup
    legend: Sequence[tuple[str, Markup]] = ()
    wide: bool = False


@dataclass(frozen=True)
class Drawings:
    """Figures side by side."""

    figures: Sequence[Drawing]


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image.

    Attributes:
        uri: A JPEG as a data URI.
        width: In pixels.
        height: In pixels.
    """

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Photo:
    """A photo with its caption.

    Attributes:
        thumbnail: The photo; None leaves an empty frame.
        alt: The text in its place.
        lines: The first lines of the caption.
        answer: What follows the last line, in bold.
        small: What follows in small print.
        path: A file that a button copies the path of; empty without one.
        name: What is shown of that path.
    """

    thumbnail: Thumbnail | None
    alt: str
    lines: Sequence[str]
    answer: str = ""
    small: str = ""
    path: str = ""
    name: str = ""


@dataclass(frozen=True)
class Gallery:
    """Photos side by side.

    Attributes:
        photos: In order.
        title: Their heading; empty without one.
        text: A sentence above them; empty without one.
    """

    photos: Sequence[Photo]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Preformatted:
    """Text whose lines stay as they are."""

    text: str


@dataclass(frozen=True)
class Steps:
    """Numbered sentences, each with a command to copy."""

    steps: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that open on demand, and in print."""

    summary: str
    blocks: Sequence["Block"]


Block = Notes | Paragraph | Drawings | Gallery | Preformatted | Steps | Folded | Table


@dataclass(frozen=True)
class Part:
    """A section of a page.

    Attributes:
        name: What links call it.
        title: Its heading.
        blocks: Its content.
    """

    name: str
    title: str
    blocks: Sequence[Block]


def page(title: str, parts: Sequence[Part], top: Markup) -> str:
    """Return a whole page; style, script, drawings and photos are inside it.

    Args:
        title: Its title and heading.
        parts: Its sections.
        top: What comes before them, by `markup` or `render`.
    """
    return _environment().get_template("page.html").render(title=title, parts=parts, top=top)


def markup(blocks: Sequence[Block]) -> Markup:
    """Return the blocks as they are in a section."""
    module = _environment().get_template("blocks.html").module
    return Markup(module.each(blocks))  # type: ignore[attr-defined]  # a macro of the template


def render(template: str, **values: object) -> Markup:
    """Return the markup that a template makes of the values."""
    return Markup(_environment().get_template(template).render(values))


def safe(value: str) -> Markup:
    """Return text as markup, for a text or an attribute."""
    return escape(printable_lines(value))


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_inert,
    )
    made.globals |= {"asset": _asset, "to_the_right": to_the_right, "LONG": LONG}
    made.filters["kind"] = lambda block: type(block).__name__.lower()
    return made


def _inert(value: object) -> object:
    """Return text that is not markup with its control characters written out."""
    return printable_lines(value) if type(value) is str else value


def _asset(name: str) -> Markup:
    """Return the style or the script in a file."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
