"""The page's server: the page itself, the photos, and what its keys do.

Everything lies below a folder of the address that nobody else can guess, and is answered only where
the request was sent to this machine by that name: a page of another site, which may lead a name of
its own here, gets nothing.
"""

import hmac
import io
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.images.read_ahead import ERRORS, reason
from fewshot.automatic.page.learning_curve_drawing import curve_svg
from fewshot.html import render
from fewshot.serving.messages import Reply, Request, RequestError, as_json
from fewshot.teaching.judge import Judge
from fewshot.teaching.progress_so_far import MINIMUM, Progress
from fewshot.teaching.saving import Saved, save
from fewshot.teaching.session import StaleError, TeachingSession
from fewshot.teaching.views import Views

PROPOSED = 12  # photos that the page knows ahead
GUESSES = 5
NEIGHBORS = 3
WAIT = 20.0  # seconds that a question for the next judgment is held
SIDES = {"small": 320, "large": 1280}  # pixels, of a photo's longer side
QUALITY = 82


class TeachingService:
    """Answers the page's requests, of many threads at once.

    Args:
        session: The labels.
        judge: Judges them.
        out: Where the table and the adapter are written.
        port: That the server listens at.

    Attributes:
        token: The folder of the address.
        saved_at: The position of the log when the adapter was last written; -1 before.
    """

    def __init__(self, session: TeachingSession, judge: Judge, out: Path, port: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.saved_at = -1
        self._session, self._judge, self._out = session, judge, out
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._views = Views(session)
        self._gets: Mapping[str, Callable[[Request], Reply]] = {
            "": lambda request: self._page(),
            "state": lambda request: self._locked(self._state),
            "progress": self._progress,
            "view": self._view,
            "photo": self._photo,
        }
        self._posts: Mapping[str, Callable[[Request], Reply]] = {
            "label": self._label,
            "undo": self._undo,
            "try": self._try,
            "save": lambda request: as_json(self.save()),
        }

    def __call__(self, request: Request) -> Reply:
        """The answer to a request.

        Raises:
            RequestError: It is not the page's, or cannot be answered.
        """
        if request.headers.get("host") not in self._hosts:
            raise RequestError(403, "this page answers at 127.0.0.1 alone")
        _, token, *rest = request.path.split("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise RequestError(403, "this is not the address that fewshot teach printed")
        if not rest:
            return Reply(b"", status=308, headers={"Location": f"/{self.token}/"})
        known = self._gets if request.method == "GET" else self._posts
        answer = known.get("/".join(rest))
        if answer is None:
            raise RequestError(404, "nothing is here")
        return answer(request)

    def save(self) -> dict[str, Any]:
        """Write the table and the adapter; what was written, as the page shows it."""
        with self._session.lock:
            position, labels = self._session.position, self._session.labeled()
        try:
            saved: Saved = save(self._session.photos, labels, self._out)
        except UserError as error:
            raise RequestError(409, str(error)) from None
        self.saved_at = position
        adapter = None if saved.adapter is None else str(saved.adapter)
        return {"table": str(saved.table), "adapter": adapter, "summary": saved.summary}

    def _locked(self, make: Callable[[], dict[str, Any]]) -> Reply:
        with self._session.lock:
            return as_json(make())

    def _page(self) -> Reply:
        nonce = secrets.token_urlsafe(16)
        page = render(
            "teach.html",
            folder=self._session.photos.source.root.name,
            out=str(self._out),
            nonce=nonce,
            minimum=MINIMUM,
        )
        policy = (
            f"default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; "
            f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return Reply(page.encode("utf-8", "replace"), "text/html; charset=utf-8", headers=headers)

    def _state(self, first: Sequence[int] = ()) -> dict[str, Any]:
        """The state that the page draws; photos without a label among the `first` are proposed."""
        session, views = self._session, self._views
        counts = {name: len(session.rows(name)) for name in session.classes}
        first = [row for row in first if session.label_of(row) is None]
        proposed = list(dict.fromkeys([*first, *session.proposed(PROPOSED)]))
        photos = [{**views.photo(row), "guesses": views.guesses(row, GUESSES)} for row in proposed]
        return {
            "position": session.position,
            "classes": [{"name": name, "count": n} for name, n in counts.items()],
            "aside": len(session.rows("")),
            "total": len(session.photos.paths),
            "proposed": photos,
            "drawn": session.drawn_next() if session.turn_of_draw else None,
            "undo": session.can_undo,
        }

    def _progress(self, request: Request) -> Reply:
        found = self._judge.progress(_number(request, "position"), WAIT)
        return as_json({"position": -1} if found is None else _plain_progress(found))

    def _view(self, request: Request) -> Reply:
        groups = self._views.names.get(request.query.get("name", ""))
        if groups is None:
            raise RequestError(404, "there is no such view")
        return self._locked(lambda: {"position": self._session.position, "groups": groups()})

    def _photo(self, request: Request) -> Reply:
        """A photo, upright, with its longer side as the page needs it."""
        photos, row = self._session.photos, _number(request, "id")
        side = SIDES.get(request.query.get("side", ""), SIDES["small"])
        if not 0 <= row < len(photos.paths):
            raise RequestError(404, "there is no such photo")
        try:
            image = photos.source.read(photos.paths[row])
        except OSError as error:
            raise RequestError(404, f"the photo cannot be read any more: {error}") from None
        image.thumbnail((side, side))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=QUALITY)
        kept = {"Cache-Control": "private, max-age=3600"}
        return Reply(content.getvalue(), "image/jpeg", headers=kept)

    def _label(self, request: Request) -> Reply:
        asked = _object(request)
        rows, label, seen = asked.get("photos"), asked.get("label"), asked.get("seen")
        n = len(self._session.photos.paths)
        if (
            not isinstance(rows, list)
            or not all(type(row) is int and 0 <= row < n for row in rows)
            or not (label is None or isinstance(label, str))
            or type(seen) is not int
        ):
            raise RequestError(400, "expected photos, a label and the position that was seen")
        drawn = asked.get("drawn") is True
        return self._acted(
            lambda: self._session.label(list(dict.fromkeys(rows)), label, seen=seen, drawn=drawn)
        )

    def _undo(self, request: Request) -> Reply:
        seen = _object(request).get("seen")
        if type(seen) is not int:
            raise RequestError(400, "expected the position that was seen")
        return self._acted(lambda: self._session.undo(seen=seen))

    def _acted(self, act: Callable[[], list[int] | None]) -> Reply:
        """Do it, wake the judge, and answer with the state after it."""
        with self._session.lock:
            try:
                changed = act()
            except StaleError:
                raise RequestError(
                    409, "another window has changed this meanwhile; look again"
                ) from None
            except UserError as error:
                raise RequestError(400, str(error)) from None
            except OSError as error:
                raise RequestError(
                    507, f"the label could not be written ({error.strerror}); make room"
                ) from None
            self._judge.wake()
            return as_json({**self._state(changed or ()), "changed": changed or []})

    def _try(self, request: Request) -> Reply:
        """Classify a photo that was dropped on the page."""
        try:
            feature = self._session.photos.encode(request.body)
        except ERRORS as error:
            raise RequestError(422, f"this cannot be read: {reason(error)}") from None
        with self._session.lock:
            session = self._session
            found = session.classify(feature[None])
            if found is None:
                raise RequestError(409, "nothing is learned yet; label photos of two classes first")
            p, classes = found[0].sort(descending=True, stable=True)
            names = session.classes
            best = zip(classes[:GUESSES].tolist(), p[:GUESSES].tolist(), strict=True)
            near = session.nearest_labeled(feature, NEIGHBORS)
            return as_json(
                {
                    "guesses": [(names[k], value) for k, value in best],
                    "nearest": [
                        self._views.photo(row, f"similarity {cosine:.2f}") for row, cosine in near
                    ],
                }
            )


def _plain_progress(found: Progress) -> dict[str, Any]:
    """A judgment as the page needs it."""
    drawing = ""
    if found.enough and found.curve is not None and len(found.curve.points) > 1:
        drawing = str(curve_svg(found.curve, len(found.given.labels), found.zero_shot))
    low, high = found.interval
    return {
        "position": found.given.position,
        "judged": found.judged,
        "right": found.right,
        "share": found.right / found.judged if found.judged else None,
        "low": low,
        "high": high,
        "enough": found.enough,
        "zero_shot": found.zero_shot,
        "doubtful": len(found.issues),
        "drawing": drawing,
        "classes": [
            {
                "name": name,
                "judged": one.images,
                "recall": one.recall,
                "precision": one.precision,
                "f1": one.f1,
            }
            for name, one in zip(found.given.names, found.classes, strict=False)
        ],
    }


def _number(request: Request, name: str) -> int:
    try:
        return int(request.query.get(name, ""))
    except ValueError:
        raise RequestError(400, f"{name} must be a number") from None


def _object(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(request.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError(400, "expected an object in JSON")
    return found
