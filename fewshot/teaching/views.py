"""The views of the page: groups of photos, each for a question that a person answers quickly."""

from collections.abc import Callable, Mapping
from typing import Any

from cache.errors import count
from fewshot.automatic.diagnostics import repeated
from fewshot.automatic.wording import in_100
from fewshot.model_selection.near_duplicates import near_duplicates
from fewshot.teaching.label_log import ASIDE
from fewshot.teaching.session import TeachingSession

GROUP = 24  # photos in a group
GROUPS = 12
Group = dict[str, Any]


class Views:
    """Makes the groups of a session; inside its lock.

    Args:
        session: The session.
    """

    def __init__(self, session: TeachingSession) -> None:
        self._session = session
        self._twins = repeated(near_duplicates(session.photos.features))
        self.names: Mapping[str, Callable[[], list[Group]]] = {
            "alike": self._alike,
            "labeled": self._labeled,
            "doubtful": self._doubtful,
            "duplicates": self._duplicates,
            "outsiders": self._outsiders,
        }

    def photo(self, row: int, note: str = "") -> dict[str, Any]:
        """A photo as the page needs it."""
        session = self._session
        label = session.label_of(row)
        return {"id": row, "path": session.photos.paths[row], "label": label, "note": note}

    def guesses(self, row: int, n: int) -> list[tuple[str, float]]:
        """The n most probable classes of a photo, and their probabilities."""
        session = self._session
        found = session.probabilities([row])
        if found is None:
            return []
        p, classes = found[0].sort(descending=True, stable=True)
        names = session.classes
        best = zip(classes[:n].tolist(), p[:n].tolist(), strict=True)
        return [(names[k], value) for k, value in best]

    def _alike(self) -> list[Group]:
        """Photos without a label by their most probable class, the surest first."""
        session = self._session
        free = session.rows(None)
        found = session.probabilities(free)
        if found is None or not free:
            rows = session.proposed(GROUP)
            return [_group("Without a label", [self.photo(row) for row in rows], len(free))]
        best, classes = found.max(dim=1)
        groups = []
        for k, name in enumerate(session.classes):
            rows = [i for i, c in enumerate(classes.tolist()) if c == k]
            rows.sort(key=lambda i: -float(best[i]))
            photos = [self.photo(free[i], in_100(float(best[i]))) for i in rows[:GROUP]]
            if photos:
                groups.append(_group(name, photos, len(rows), label=name))
        return groups

    def _labeled(self) -> list[Group]:
        session = self._session
        groups = []
        for name in (*session.classes, ASIDE):
            rows = session.rows(name)[::-1]
            if rows:
                photos = [self.photo(row) for row in rows[: 4 * GROUP]]
                groups.append(_group(name or "Set aside: none of these", photos, len(rows)))
        return groups

    def _doubtful(self) -> list[Group]:
        """Labels that the other photos contradict, by what they say it is."""
        session, progress = self._session, self._session.progress
        if progress is None:
            return []
        names, photos = session.classes, []
        for issue in progress.issues:
            row = progress.given.rows[issue.row]
            label = session.label_of(row)
            if not label or issue.suggested >= len(names) or names[issue.suggested] == label:
                continue
            why = "a near-duplicate is" if issue.duplicate else "looks like"
            one = self.photo(row, f"labeled {label}, {why} {names[issue.suggested]}")
            photos.append(one)
        return [_group("Labels that may be wrong", photos[:GROUP], len(photos))] if photos else []

    def _duplicates(self) -> list[Group]:
        groups = []
        for rows in self._twins[:GROUPS]:
            photos = [self.photo(row) for row in rows[:GROUP]]
            groups.append(
                _group(f"{count(len(rows), 'photo')} that are nearly the same", photos, len(rows))
            )
        return groups

    def _outsiders(self) -> list[Group]:
        found = self._session.least_like(GROUP)
        photos = [self.photo(row, f"similarity {cosine:.2f}") for row, cosine in found]
        return [_group("Least like any labeled photo", photos, len(photos))] if photos else []


def _group(title: str, photos: list[dict[str, Any]], total: int, label: str = "") -> Group:
    """A group: its title, its photos, how many there are in all, and the class proposed for it."""
    return {"title": title, "photos": photos, "total": total, "label": label}
