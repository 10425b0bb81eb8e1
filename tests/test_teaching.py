import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from cache.datasets.layouts.table import read_table
from cache.datasets.listing import Item
from cache.datasets.source import DEFAULT_TEMPLATES, Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import load_adapter
from fewshot.automatic.encoding import Encoding
from fewshot.serving.messages import Request, RequestError
from fewshot.serving.web_server import WebServer
from fewshot.teaching.judge import Judge
from fewshot.teaching.label_log import ASIDE, LabelLog
from fewshot.teaching.live_classifier import live_classifier
from fewshot.teaching.progress_so_far import Labels, progress_so_far
from fewshot.teaching.saving import write_labels
from fewshot.teaching.session import StaleError, TeachingSession
from fewshot.teaching.taught_photos import TaughtPhotos, folder_of_photos
from fewshot.teaching.teaching_service import TeachingService
from tests.browser import CHROMIUM, Page, browser
from tests.shrunk import shrunk

N, CLASSES, DIM = 30, 3, 8

IDENTITY = {
    "name": "colors", "arch": "colors", "tag": "", "weights": "0" * 64, "quick_gelu": False,
    "logit_scale": 50.0, "dim": DIM, "image_size": 8,
}  # fmt: skip


class Colors:
    """A model that reads no text, and of photos the corner."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)[:, :: 8 * 3]


@pytest.fixture
def photos(tmp_path: Path) -> TaughtPhotos:
    """Thirty photos, the i-th of class i modulo 3, of a model that reads no text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = tuple(f"{i:02d}.png" for i in range(N))
    for i, path in enumerate(paths):
        Image.new("RGB", (24, 16), (80 * (i % CLASSES), 100, 200)).save(folder / path)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, DIM, generator=generator)
    noise = torch.randn(N, DIM, generator=generator)
    features = normalize(centers[torch.arange(N) % CLASSES] + 0.3 * noise)
    own = shrunk(8)
    cpu = torch.device("cpu")
    encoder = Encoder(Colors(), lambda _: torch.zeros(0), own, cpu, "fp32", IDENTITY)
    source = Source(
        "toy", folder, ("x",), {"test": tuple(Item(p, 0) for p in paths)}, DEFAULT_TEMPLATES, ""
    )
    how = Encoding((encoder,), tmp_path / "features", None, False, lambda line: None)
    return TaughtPhotos(source, paths, features, how)


@pytest.fixture
def log(tmp_path: Path, photos: TaughtPhotos) -> Iterator[LabelLog]:
    with LabelLog.opened(tmp_path / "labels.jsonl", photos.source.root) as opened:
        yield opened


NAMES = ("ant", "bee", "cat")


def teach(session: TeachingSession, n: int) -> None:
    """Label the next n photos as proposed."""
    for _ in range(n):
        [row] = session.proposed(1)
        session.label([row], NAMES[row % CLASSES], seen=session.position, drawn=True)


def test_labels_are_on_the_disk_at_once_and_a_torn_last_line_is_dropped(
    tmp_path: Path, photos: TaughtPhotos
) -> None:
    path = tmp_path / "l.jsonl"
    with LabelLog.opened(path, photos.source.root) as log:
        session = TeachingSession(photos, log, ["zebra"])
        session.label([3, 4], "ant", seen=log.position)
        session.label([5], ASIDE, seen=log.position)
        killed = path.read_bytes()  # as a kill would leave it: the file is not closed
        with pytest.raises(UserError, match="another `fewshot teach`"):
            LabelLog.opened(path, photos.source.root).__enter__()
    path.write_bytes(killed + b'{"number": 4, "labels": {"00.png": "a')
    with LabelLog.opened(path, photos.source.root) as log:
        again = TeachingSession(photos, log, ["zebra"])
        assert again.labeled() == {"03.png": "ant", "04.png": "ant"}
        assert (again.classes, again.label_of(5), again.position) == (("zebra", "ant"), ASIDE, 3)
        again.label([0], "bee", seen=3)
    assert [json.loads(x).get("number") for x in path.read_text().splitlines()] == [
        None,
        1,
        2,
        3,
        4,
    ]
    with pytest.raises(UserError, match=r"has the labels of .*; give --labels another"):
        LabelLog.opened(path, tmp_path).__enter__()
    path.write_bytes(killed.replace(b'"number": 2', b'"number": 7'))
    with pytest.raises(UserError, match="line 3: expected an action in JSON"):
        LabelLog.opened(path, photos.source.root).__enter__()


def test_a_label_is_synced_to_the_disk_before_anybody_hears_of_it(
    photos: TaughtPhotos, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = TeachingSession(photos, log, ["zebra"])
    synced: list[tuple[bytes, int]] = []
    monkeypatch.setattr(
        "os.fsync", lambda handle: synced.append((log.path.read_bytes(), log.position))
    )
    session.label([3], "ant", seen=log.position)
    [(content, position)] = synced
    assert b"03.png" in content.splitlines()[-1]
    assert position == log.position - 1


def test_undo_takes_back_action_after_action(photos: TaughtPhotos, log: LabelLog) -> None:
    session = TeachingSession(photos, log)
    session.label([0, 1], "ant", seen=0)
    session.label([1], "bee", seen=1)
    assert session.undo(seen=2) == [1]
    assert session.labeled() == {"00.png": "ant", "01.png": "ant"}
    assert session.classes == ("ant",)
    assert session.undo(seen=3) == [0, 1]
    assert (session.labeled(), session.can_undo, session.undo(seen=4)) == ({}, False, [])
    replayed = TeachingSession(photos, log)
    assert (replayed.labeled(), replayed.can_undo) == ({}, False)


def test_two_windows_do_not_overwrite_each_other(photos: TaughtPhotos, log: LabelLog) -> None:
    session = TeachingSession(photos, log)
    session.label([0], "ant", seen=0)
    session.label([1], "bee", seen=0)  # another photo: no quarrel
    session.label([0], "ant", seen=0)  # the same label: nothing to do
    assert session.position == 2
    with pytest.raises(StaleError):
        session.label([0], "bee", seen=0)
    with pytest.raises(StaleError):
        session.undo(seen=1)
    assert session.labeled() == {"00.png": "ant", "01.png": "bee"}


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\u202eb"])
def test_a_name_that_cannot_be_read_is_no_class(
    photos: TaughtPhotos, log: LabelLog, name: str
) -> None:
    session = TeachingSession(photos, log)
    if name:
        with pytest.raises(UserError, match="a class's name must have 1 to 100"):
            session.label([0], name, seen=0)
    assert session.position == 0


def test_every_third_proposal_is_a_random_draw_and_only_those_are_judged(
    photos: TaughtPhotos, log: LabelLog
) -> None:
    session = TeachingSession(photos, log)
    teach(session, 18)
    given = session.labels()
    assert int(given.drawn.sum()) == 6
    found = progress_so_far(given)
    assert 3 <= found.judged <= 6
    assert found.right == found.judged  # the classes lie apart
    assert sum(one.images for one in found.classes) == found.judged
    assert {one.f1 for one in found.classes if one.images} == {1.0}
    assert found.curve is not None
    assert [point.images for point in found.curve.points] == [4.0, 9.0, 18.0]
    last = found.curve.points[-1]
    assert last.accuracy - last.spread == pytest.approx(found.interval[0])
    everyone = torch.ones(18, dtype=torch.bool)
    wrong = given.labels.clone()
    wrong[everyone & ~given.drawn] = (wrong[everyone & ~given.drawn] + 1) % CLASSES
    misled = progress_so_far(
        Labels(given.features, wrong, given.drawn, given.text, given.logit_scale)
    )
    assert sum(one.right for one in misled.classes) == misled.right < misled.judged
    assert TeachingSession(photos, log).labels().drawn.tolist() == given.drawn.tolist()


def test_a_wrong_label_is_doubted(photos: TaughtPhotos, log: LabelLog) -> None:
    session = TeachingSession(photos, log)
    for k, name in enumerate(NAMES):
        rows = range(k, 24, CLASSES)
        session.label(list(rows), name, seen=session.position)
    session.label([0], "cat", seen=session.position)
    found = progress_so_far(session.labels())
    assert [found.given.rows[one.row] for one in found.issues] == [0]


def test_a_class_without_a_photo_is_known_by_its_name_alone() -> None:
    features = normalize(torch.randn(6, DIM, generator=torch.Generator().manual_seed(1)))
    labels = torch.tensor([0, 1, 0, 1])
    text = list(normalize(torch.eye(DIM)[:3]))
    classifier = live_classifier(features[:4], labels, text, 100.0)
    assert classifier is not None
    assert int(classifier.logits(text[2][None]).argmax()) == 2
    unread = live_classifier(features[:4], labels, [None] * 3, 100.0)
    assert unread is not None
    assert torch.softmax(unread.logits(features), dim=1)[:, 2].max() == 0
    assert live_classifier(features[:2], labels[[0, 0]], [None] * 2, 100.0) is None


def test_the_table_of_labels_is_one_that_other_commands_read(tmp_path: Path) -> None:
    root = tmp_path / "my photos"
    root.mkdir()
    table = tmp_path / "runs" / "labels.csv"
    write_labels(table, root, {"a, b.jpg": 'red "panda"', "sub/c.jpg": "cat"})
    listing = read_table(table)
    assert set(listing.classnames) == {"cat", 'red "panda"'}
    items = [item for split in listing.splits.values() for item in split]
    found = {(listing.root / item.path).resolve() for item in items}
    assert found == {root / "a, b.jpg", root / "sub/c.jpg"}


def test_folders_without_photos_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder at"):
        folder_of_photos(tmp_path / "nothing", 1)
    with pytest.raises(UserError, match=r"holds no photos?; give a folder with at least 2"):
        folder_of_photos(tmp_path, 1)


def asked(service: TeachingService, place: str, body: object = None, **headers: str) -> Any:
    """The answer's JSON."""
    path, _, query = place.partition("?")
    request = Request(
        "GET" if body is None else "POST",
        path if path.startswith("/") else f"/{service.token}/{path}",
        dict(pair.split("=") for pair in query.split("&") if pair),
        {"host": "127.0.0.1:8000", **headers},
        json.dumps(body).encode(),
    )
    return json.loads(service(request).body)


def test_only_the_page_itself_is_answered(
    tmp_path: Path, photos: TaughtPhotos, log: LabelLog
) -> None:
    session = TeachingSession(photos, log)
    judge = Judge(session)
    service = TeachingService(session, judge, tmp_path / "out", 8000)
    assert asked(service, "state")["total"] == N
    for place, headers, status in (
        ("state", {"host": "evil.example:8000"}, 403),
        ("/guess/state", {}, 403),
        ("/", {}, 403),
        ("nothing", {}, 404),
        (f"photo?id={N}", {}, 404),
        ("photo?id=-1", {}, 404),
        ("photo?id=../x", {}, 400),
        ("view?name=x", {}, 404),
    ):
        with pytest.raises(RequestError) as refused:
            asked(service, place, **headers)
        assert refused.value.status == status, place
    bodies: list[object] = [
        {},
        [],
        {"photos": [N], "label": "a", "seen": 0},
        {"photos": [0], "seen": "0"},
    ]
    for body in bodies:
        with pytest.raises(RequestError) as refused:
            asked(service, "label", body)
        assert refused.value.status == 400
    found = asked(service, "label", {"photos": [0, 3], "label": " ant ", "seen": 0})
    assert found["classes"] == [{"name": "ant", "count": 2}]
    with pytest.raises(RequestError) as refused:
        asked(service, "label", {"photos": [0], "label": "bee", "seen": 0})
    assert refused.value.status == 409
    undone = asked(service, "undo", {"seen": 1})
    assert [photo["id"] for photo in undone["proposed"][:2]] == [0, 3]
    teach(session, 12)
    with judge.working():
        judged = asked(service, f"progress?position={session.position}")
    assert judged["position"] == 14
    rows = {one["name"]: one["judged"] for one in judged["classes"]}
    assert set(rows) == set(NAMES)
    assert sum(rows.values()) == judged["judged"]
    for view in ("alike", "doubtful", "duplicates", "outsiders", "labeled"):
        assert isinstance(asked(service, f"view?name={view}")["groups"], list)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser with one page."""
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


SMALL = """[...document.querySelectorAll("button, .file")]
  .map((one) => [one.textContent, one.getBoundingClientRect()])
  .filter(([, box]) => box.width && Math.min(box.width, box.height) < %d).map(([name]) => name)"""


def fits(page: Page, width: int, side: int) -> None:
    """Nothing is wider than the screen, and no button is smaller than a side."""
    assert page.look("document.documentElement.scrollWidth") <= width
    assert page.look(SMALL % side) == []
    assert page.look("document.getElementById('alert').textContent") == ""
    assert all(name for _, name in page.named("button", "image", "textbox", "dialog"))


def labeled(page: Page, n: int) -> None:
    page.wait(f"document.getElementById('count').textContent === '{n} of {N} photos labeled'")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_a_classifier_is_taught_on_the_page_from_first_name_to_file(
    tmp_path: Path, photos: TaughtPhotos, log: LabelLog, chromium: Page, width: int, phone: bool
) -> None:
    session = TeachingSession(photos, log)
    judge, page, side = Judge(session), chromium, 44 if phone else 30
    with WebServer("127.0.0.1", 0) as server:
        service = TeachingService(session, judge, tmp_path / "out", server.place[1])
        with judge.working(), server.serving(service):
            page.open(f"{server.address}/{service.token}/", width, 844, phone=phone)
            labeled(page, 0)
            fits(page, width, side)
            for n, name in enumerate(("ant", "bee")):
                page.click("#new") if phone else page.press("n")
                page.wait("document.getElementById('naming').open")
                fits(page, width, side)
                page.write(name)
                page.press("Enter")
                labeled(page, n + 1)
            page.click("#classes li:first-child button") if phone else page.press("1")
            labeled(page, 3)
            heard = [name for _, name in page.named("button")]
            assert any(name.startswith("bee, 1 photo, key 2, likely") for name in heard)
            page.click("#undo") if phone else page.press("u")
            labeled(page, 2)
            page.click("#skip") if phone else page.press("s")
            for view in ("doubtful", "duplicates", "outsiders", "labeled", "alike"):
                page.click(f"[data-view={view}]")
                page.wait(f"document.querySelector('[aria-current]').dataset.view === '{view}'")
                page.wait("document.getElementById('groups').children.length")
                fits(page, width, side)
            page.wait("document.querySelectorAll('.pick').length > 2")
            page.click(".pick")
            page.click(".pick:nth-child(2)")
            assert page.look("document.getElementById('said').textContent") == "2 photos selected"
            page.click("#new") if phone else page.press("n")
            page.write("cat")
            page.press("Enter")
            labeled(page, 4)
            page.drop(photos.source.root / "00.png", "#keys")
            page.wait("document.querySelectorAll('.near-ones img').length === 3")
            page.click("#save")
            page.wait("document.querySelector('#saved code')")
            fits(page, width, side)
            assert ("heading", "Try it") in page.named("heading")
            assert {role for role, _ in page.named("main", "navigation", "complementary")} == {
                "main", "navigation", "complementary",
            }  # fmt: skip
            assert page.look("document.getElementById('saved').textContent").startswith("gda on")
    assert page.complaints == []
    assert sorted(session.labeled().values()) == ["ant", "bee", "cat", "cat"]
    table = read_table(tmp_path / "out" / "labels.csv")
    assert table.classnames == ("ant", "bee", "cat")
    assert load_adapter(tmp_path / "out" / "adapter.safetensors").classnames == table.classnames
