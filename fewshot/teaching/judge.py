"""A thread that judges the labels after each action, while the next photo is being looked at."""

import contextlib
import threading
from collections.abc import Iterator

from fewshot.teaching.progress_so_far import Progress, progress_so_far
from fewshot.teaching.session import TeachingSession


class Judge:
    """Keeps a session's `progress` up with its log.

    Args:
        session: The session.
    """

    def __init__(self, session: TeachingSession) -> None:
        self._session = session
        self._changed = threading.Condition(session.lock)
        self._ending = False

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Judge, in a thread, until the block ends."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            thread.join()

    def wake(self) -> None:
        """Say that there is a new label."""
        with self._changed:
            self._changed.notify_all()

    def progress(self, position: int, seconds: float) -> Progress | None:
        """The progress by the labels up to a position, or a later one.

        Args:
            position: Of the log.
            seconds: How long to wait for it; then the last one there is comes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ending or self._at >= position, timeout=seconds)
            return self._session.progress

    @property
    def _at(self) -> int:
        found = self._session.progress
        return -1 if found is None else found.given.position

    def _run(self) -> None:
        session = self._session
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._at < session.position)
                if self._ending:
                    return
                given = session.labels()
            found = progress_so_far(given)
            with self._changed:
                session.progress = found
                self._changed.notify_all()
