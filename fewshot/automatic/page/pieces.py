"""Pieces of the page: tables, photos, commands. Whatever a user wrote goes through `escape`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fewshot.automatic.page.thumbnails import Thumbnail

LONG = 40  # rows from which on a table is folded


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: What it shows.
        value: What it is sorted by; by its text without one.
        kind: The class of its style: "number", "long" or neither.
    """

    html: str
    value: float | None = None
    kind: str = ""


def text(words: str, kind: str = "") -> Cell:
    """A cell of words."""
    return Cell(escape(words), kind=kind)


def number(value: float | None, digits: int = 0) -> Cell:
    """A cell of a number; empty where there is none."""
    if value is None:
        return Cell("", kind="number")
    return Cell(f"{value:,.{digits}f}", value, "number")


def percent(share: float | None) -> Cell:
    """A cell of a share of 1, in %."""
    return number(None if share is None else 100 * share, 1)


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    marked: int | None = None,
    notes: Iterable[str] = (),
) -> str:
    """A table that can be sorted, folded where it is long.

    Args:
        title: What it shows.
        header: A name for each column.
        rows: The cells.
        marked: The row that stands out.
        notes: Sentences below it.
    """
    kinds = [cell.kind == "number" for cell in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=number" if right else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, right in zip(header, kinds, strict=True)
    )
    body = "".join(
        f"<tr{' class=marked' if i == marked else ''}>{''.join(map(_cell, row))}</tr>"
        for i, row in enumerate(rows)
    )
    name = escape(title)
    whole = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table>'
        f"<caption>{name}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"</div>{paragraphs(notes)}"
    )
    return whole if len(rows) <= LONG else folded(f"{title}, {len(rows):,} rows", whole)


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{kind}{value}>{cell.html}</td>"


def folded(summary: str, html: str) -> str:
    """Something that opens on demand, and in print."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def paragraphs(notes: Iterable[str]) -> str:
    """Sentences in small print."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def copyable(line: str, shown: str | None = None) -> str:
    """A command or path, which the script gives a button that copies it.

    Args:
        line: What is copied.
        shown: What is shown in its place.
    """
    copied = "" if shown is None else f' data-copy="{escape(line)}"'
    return f'<div class="copyable"{copied}><code>{escape(shown or line)}</code></div>'


def photo(thumbnail: Thumbnail | None, alt: str, caption: str) -> str:
    """A photo with what is to be said of it.

    Args:
        thumbnail: The photo; an empty frame without it.
        alt: What to say in its place.
        caption: HTML below it.
    """
    if thumbnail is None:
        picture = f'<div class="gone" role="img" aria-label="{escape(alt)}"></div>'
    else:
        picture = (
            f'<img src="{thumbnail.uri}" width="{thumbnail.width}" height="{thumbnail.height}" '
            f'loading="lazy" alt="{escape(alt)}">'
        )
    return f'<figure class="photo">{picture}<figcaption>{caption}</figcaption></figure>'


def photos(figures: Iterable[str]) -> str:
    """Photos side by side."""
    return f'<div class="photos">{"".join(figures)}</div>'
