"""The findings of a pre-flight check, for a terminal and for the code that encodes next."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from cache.datasets.source import Source
from cache.errors import UserError, count, printable
from cache.images.skipped import Skipped, cannot_read, listed

MISSING = "no such file"


@dataclass(frozen=True)
class Preflight:
    """The findings of `preflight.check`.

    Attributes:
        source: What was looked at.
        counts: Split -> images per class, by class id.
        problems: Whatever forbids encoding, one line each.
        notes: What to know before believing a number, one line each.
        unreadable: Images missing or damaged; they stop a run unless its user skips them.
    """

    source: Source
    counts: Mapping[str, tuple[int, ...]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[Skipped, ...]

    @property
    def missing(self) -> tuple[Skipped, ...]:
        """The unreadable images of which there is no file."""
        return tuple(image for image in self.unreadable if image.reason == MISSING)

    def report(self) -> str:
        """All of it for a terminal; the classes in full where there are at most twenty."""
        source = self.source
        n = len(source.classnames)
        if source.unlabeled:
            images = count(len(source.splits["train"]), "unlabeled image")
            first = f"{source.title}: {count(n, 'class', 'classes')}, {images} ({source.origin})"
            return "\n".join([first, *self._findings()])
        total = sum(map(len, source.splits.values()))
        size = f"{count(n, 'class', 'classes')}, {count(total, 'image')}"
        lines = [
            f"{source.title}: {size} ({source.origin})",
            "  split    images  per class min / median / max",
        ]
        for split, counts in self.counts.items():
            spread = f"{min(counts):,} / {median(counts):,g} / {max(counts):,}"
            lines.append(f"  {split:<5} {len(source.splits[split]):>9,}  {spread}")
        lines += [f"  {row}" for row in (self._header(), *self._class_rows())]
        return "\n".join([*lines, *self._findings()])

    def _findings(self) -> Iterator[str]:
        yield from (f"problem: {problem}" for problem in self.problems)
        yield from (f"note: {note}" for note in self.notes)
        if self.unreadable:
            yield from listed(self.unreadable)

    def passed(self, *, skip_unreadable: bool) -> tuple[Source, tuple[Skipped, ...]]:
        """The source as it may be encoded, and the images left out of it.

        Raises:
            UserError: There are problems, or unreadable images that are not to be skipped.
        """
        if self.problems:
            problems = "; ".join(self.problems)
            raise UserError(f"{self.source.title} cannot be encoded: {problems}")
        if self.unreadable and not skip_unreadable:
            raise cannot_read(self.unreadable)
        return self.source.without(path for _, path, _ in self.unreadable), self.unreadable

    def table(self) -> str:
        """The label-name table in full: id, images per split, name."""
        return "\n".join([self._header(), *self._rows(range(len(self.source.classnames)))])

    def _class_rows(self) -> list[str]:
        n = len(self.source.classnames)
        if n <= 20:
            return self._rows(range(n))
        first, last = self._rows(range(3)), self._rows(range(n - 2, n))
        split, counts = next(iter(self.counts.items()))
        fewest = sorted(range(n), key=counts.__getitem__)[:3]
        named = ", ".join(f"{printable(self.source.classnames[c])} {counts[c]:,}" for c in fewest)
        return [*first, "...", *last, f"fewest {split} images: {named}"]

    def _header(self) -> str:
        return f"  id  {'  '.join(f'{split:>6}' for split in self.counts)}  class"

    def _rows(self, classes: Iterable[int]) -> list[str]:
        return [
            f"{c:>4}  {'  '.join(f'{counts[c]:>6,}' for counts in self.counts.values())}  "
            f"{printable(self.source.classnames[c])}"
            for c in classes
        ]
