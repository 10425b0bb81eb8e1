"""Label a folder of photos on a page of this machine, while a classifier learns."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from cache.errors import UserError, count
from cache.files.names import name_of
from cache.images.decoding_memory import MAX_PIXELS
from cache.location import default_root, require_outside, require_writable
from cache.models.loading import load
from fewshot.automatic.encoding import Encoding, Say
from fewshot.automatic.pipeline import MODEL
from fewshot.serving.messages import RequestError
from fewshot.serving.web_server import WebServer, until_interrupted
from fewshot.teaching.judge import Judge
from fewshot.teaching.label_log import LabelLog
from fewshot.teaching.session import TeachingSession, class_name
from fewshot.teaching.taught_photos import encoded_photos, folder_of_photos
from fewshot.teaching.teaching_service import TeachingService

HOST = "127.0.0.1"  # no other machine is let in


def teach(
    folder: Path | str,
    *,
    model: str = MODEL,
    classes: Sequence[str] = (),
    labels: Path | None = None,
    out: Path | None = None,
    store: Path | None = None,
    port: int = 0,
    show: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 1,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    rehash: bool = False,
    say: Say = lambda lines: None,
) -> None:
    """Serve the page until the process is interrupted, then save what was learned.

    Args:
        folder: The photos, in any folders below it. They are neither changed nor moved.
        model: As `encoder.load` names it.
        classes: Names of classes to begin with; others can be named on the page.
        labels: The file that keeps the labels; without it one beside the stores.
        out: The folder for labels.csv and adapter.safetensors; `runs/teach/NAME` without it.
        store: Where features are kept; `location.default_root()` without it.
        port: Of the page; 0 for any that is free.
        show: Open the page in a browser.
        device: As in `encoder.load`.
        precision: As in `encoder.load`.
        seed: Random seed for drawing photos.
        workers: Threads that decode images; one per core or so without it.
        max_pixels: Width times height of the largest image that is decoded.
        rehash: Read images again whose size and time of modification are as before.
        say: Called with progress notes, and with the address of the page.

    Raises:
        UserError: There are no photos, a file would lie among them, the port is taken, another
            process is teaching with these labels, or the model cannot be had.
    """
    folder = Path(folder)
    source = folder_of_photos(folder, max_pixels)
    name = name_of(folder)
    root = default_root() if store is None else store
    labels = root / f"{name}-labels.jsonl" if labels is None else labels
    out = Path("runs") / "teach" / name if out is None else out
    places = {"--out": out, "--store": root, "--labels": labels}
    require_outside(folder, places)
    require_writable(files={"--labels": labels}, folders={"--out": out, "--store": root})
    classes = [class_name(one) for one in classes]
    with WebServer(HOST, port) as server, LabelLog.opened(labels, source.root) as log:
        encoder = load(model, device=device, precision=precision)
        photos = encoded_photos(source, Encoding((encoder,), root, workers, rehash, say))
        session = TeachingSession(photos, log, classes, seed=seed)
        judge = Judge(session)
        service = TeachingService(session, judge, out, server.place[1])
        with judge.working(), server.serving(service):
            address = f"{server.address}/{service.token}/"
            say(
                f"{count(len(photos.paths), 'photo')}, {len(session.labeled()):,} of them labeled "
                f"in {labels}\nteach here: {address}\nCtrl-C saves the classifier and ends"
            )
            if show:
                webbrowser.open(address)
            until_interrupted()
        if session.labeled() and service.saved_at != session.position:
            say("saving")
            try:
                saved = service.save()
            except RequestError as error:
                raise UserError(f"{error}; the labels are in {labels}") from None
            say(f"{saved['table']}\n{saved['adapter'] or ''}\n{saved['summary']}")
