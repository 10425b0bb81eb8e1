import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from cache.datasets.preflight import check
from cache.datasets.source import Item, Source
from cache.store import FeatureStore
from fewshot.adapters.fitted_adapter import of_fitted
from fewshot.automatic.commands import commands
from fewshot.automatic.diagnostics import diagnose
from fewshot.automatic.judging import inputs, judge, refit, to_try
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.page.accuracy_tables import bar
from fewshot.automatic.page.answer import answer, limits
from fewshot.automatic.page.assembly import page
from fewshot.automatic.page.galleries import GROUPS, SHOWN, LabeledPhotos, near_duplicates
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.automatic.pipeline import auto
from fewshot.automatic.wording import in_100
from fewshot.html import markup
from fewshot.model_selection.calibration import Calibration
from fewshot.model_selection.near_duplicates import Conflict
from tests.auto_photos import digit, draw_digits
from tests.browser import CHROMIUM, said_by
from tests.small_stores import write_store

NASTY = "<b>'&\" co"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and whether all are closed."""

    VOID = ("meta", "link", "path", "br", "img", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def values(self, name: str, tag: str | None = None) -> list[str]:
        """Of that attribute, of those elements."""
        return [str(a[name]) for t, a in self.found if name in a and tag in (None, t)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Digits, one class of a nasty name, one of a single photo, some of everything."""
    home = tmp_path_factory.mktemp("page")
    photos = draw_digits(home / "photos", {"zero": 9, "three": 9, "five": 9, "four": 1})
    draw_digits(home / "more", {"eight": 9})
    (home / "more" / "eight").rename(photos / NASTY)
    digit("zero", 40).save(photos / "three" / f"{NASTY}.png")
    digit("five", 0).save(photos / "five" / "twin.png")
    digit("five", 1).save(photos / "three" / "twin.png")
    draw_digits(photos / "unlabeled", {"zero": 3, "two": 3}, first=50)
    (photos / "zero" / "empty.png").write_bytes(b"")
    return auto(
        photos,
        model="tiny",
        methods=["zero-shot", "nearest-mean", "gda", "ridge"],
        out=home / "out",
        store=home / "features",
    )


@pytest.fixture(scope="module")
def html(outcome: Outcome) -> str:
    return outcome.page_path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_needs_nothing_but_itself(html: str) -> None:
    elements = Elements(html)
    assert elements.open == []
    for name in ("src", "href", "action", "data", "poster", "srcset"):
        for value in elements.values(name):
            assert value.startswith(("#", "data:")), value
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|https?://", html)


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    elements = Elements(html)
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in elements.values("href", "a")} <= set(ids)
    for section in ("tried", "classes", "confusions", "suspects", "labels", "unlabeled",
                    "duplicates", "data", "commands"):  # fmt: skip
        assert section in ids


def test_names_are_text_and_never_markup(outcome: Outcome, html: str) -> None:
    assert NASTY in outcome.store.classnames
    assert NASTY not in html
    assert "&lt;b&gt;&#39;&amp;&#34; co" in html


def test_every_photo_has_words_in_its_place(html: str) -> None:
    images = [attributes for tag, attributes in Elements(html).found if tag == "img"]
    assert len(images) > 8
    for attributes in images:
        assert attributes["alt"]
        assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert {"width", "height", "loading"} <= set(attributes)


def test_its_figures_are_those_of_the_record(outcome: Outcome, html: str) -> None:
    found = json.loads((outcome.out / "report.json").read_text())
    assert f"About <strong>{in_100(found['accuracy'])}</strong> new photos right" in html
    low, high = (round(100 * share) for share in found["interval"])
    assert f"between {low} and {high} in 100" in html
    assert len(found["tried"]) == 4
    for one in found["tried"]:
        row = re.search(rf"<strong>{one['name']}</strong>.*?</tr>", html)
        assert row is not None
        assert f'data-value="{100 * one["accuracy"]!r}"' in row[0]
        assert ("★" in row[0]) == (one["name"] == found["winner"]["method"])
    for step in found["commands"]:
        assert step["line"] in unescape(html)
    assert in_100(outcome.zero_shot.accuracy if outcome.zero_shot else 0) in html


def test_suspects_are_shown_with_their_files_to_copy(outcome: Outcome, html: str) -> None:
    copied = [unescape(path) for path in Elements(html).values("data-copy")]
    shown = outcome.diagnostics.label_issues[:SHOWN]
    assert shown
    for one in shown:
        assert str(outcome.source.root / outcome.paths[one.row]) in copied
    assert (outcome.source.root / "three" / f"{NASTY}.png").is_file()
    assert "a near-duplicate has that label" in html


def test_what_limits_the_answer_is_said(html: str) -> None:
    assert "Not judged: 1 class with a single photo, or near-duplicates of one (four)" in html
    assert "much like another of the same class" in html
    assert "1 photo could not be read and took no part" in html
    assert "train/zero/empty.png" in html


def test_one_photo_of_each_class_makes_a_page_without_claims(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 1, "one": 1})
    found = auto(photos, model="tiny", out=tmp_path / "out", store=tmp_path / "features")
    html = found.page_path.read_text()
    elements = Elements(html)
    assert elements.open == []
    assert "Nobody can say yet how good it is" in html
    assert "in 100" not in html
    assert set(elements.values("id")) >= {"labels", "data", "commands"}
    assert not {"tried", "classes", "confusions"} & set(elements.values("id"))


def many_classes(root: Path, n_classes: int) -> Outcome:
    """An outcome on a store of many classes, whose photos have gone since."""
    names = [f"class {i}" for i in range(n_classes)]
    store = FeatureStore.open(write_store(root, "many-all", names=names, splits=["train"]))
    items = tuple(
        Item(path, int(label))
        for path, label in zip(store.paths("train"), store.labels("train"), strict=True)
    )
    source = Source("many-all", root, tuple(names), {"train": items}, (), "made up")
    support_of, text_for = inputs(store)
    *_, validation = judge(store, to_try(["zero-shot", "gda"], 1, 1), support_of, text_for)
    fitted = refit(store, validation, support_of, text_for)
    method = fitted.method
    steps = commands(store, method, dataset="many", adapter=Path("a.safetensors"),
                     temperature=1.0, root=None, seed=1, encoding={}, again={},
                     skip=False)  # fmt: skip
    return Outcome(
        dataset="many", out=root, source=source, report=check(source), store=store,
        validation=validation,
        adapter=of_fitted(fitted, calibration=Calibration()),
        diagnostics=diagnose(validation, method, 1.0, support_of(method), text_for(method)),
        tested=None, unlabeled=None, commands=steps, seconds={"encoding": 1.0},
    )  # fmt: skip


def test_many_classes_and_lost_photos_leave_a_page_that_can_be_used(tmp_path: Path) -> None:
    found = many_classes(tmp_path, 60)
    html = page(found)
    elements = Elements(html)
    assert elements.open == []
    left = len(found.diagnostics.label_issues) - SHOWN
    assert left > 40
    assert f"<summary>Further labels, {left} rows</summary>" in html
    outside = re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert outside.count("<tr") < 30
    assert html.count("<tr") > 60
    assert "img" not in {tag for tag, _ in elements.found}
    assert 'class="gone" role="img" aria-label=' in html
    assert len(html) < 500_000


def test_a_heap_of_near_duplicates_is_cut_short(tmp_path: Path) -> None:
    source = Source("x", tmp_path, ("a", "b"), {}, (), "")
    photos = LabeledPhotos(source, ["gone.jpg"] * 20, [0] * 20, ("a", "b"), Thumbnails())
    groups = [tuple(range(20))] * (GROUPS + 3)
    html = markup(near_duplicates(groups, [], photos))
    assert html.count("20 photos") == GROUPS
    assert "And 3 groups more" in html


@pytest.mark.parametrize(("alike", "fault"), [(2, False), (11, True)])
def test_a_model_that_takes_many_photos_for_one_is_named_as_the_fault(
    outcome: Outcome, alike: int, fault: bool
) -> None:
    groups = [Conflict(tuple(range(alike)), (0,) * (alike - 1) + (1,))]
    selection = outcome.validation.selection
    scenes = torch.arange(40)
    said = " ".join(limits(selection, scenes, [], [], groups, guessing=0.1, skipped=0))
    assert (f"{alike} photos of more than one class look nearly the same" in said) == fault


def test_the_scale_and_the_bars_place_what_they_show(outcome: Outcome) -> None:
    assert outcome.validation.selection is not None
    selection = replace(outcome.validation.selection, accuracy=0.5, interval=(0.4, 0.65))
    drawn = answer(
        selection, method="gda", summary="", guessing=0.1, tested=None, limits=[], command="",
        doubtful=0, to_label=0, more_labels="",
    )  # fmt: skip
    assert 'class="interval" style="left:40.0%;width:25.0%"' in drawn
    assert 'class="dot" style="left:50.0%"' in drawn
    assert "guessing 10<" in drawn
    assert "between 40 and 65 in 100" in drawn
    assert 'd="M40.0 6H65.0"' in bar(0.5, (0.4, 0.65))
    assert 'cx="50.0"' in bar(0.5, (0.4, 0.65))


PROBE = """
const root = document.documentElement;
say.push("wide=" + (root.scrollWidth > window.innerWidth));
document.querySelectorAll("details").forEach((part) => part.setAttribute("open", ""));
say.push("wide open=" + (root.scrollWidth > window.innerWidth));
const boxes = document.querySelectorAll(".copyable");
const buttons = document.querySelectorAll(".copyable button");
say.push("buttons=" + (boxes.length === buttons.length && boxes.length > 4));
say.push("hints=" + [...document.querySelectorAll(".scroll")]
  .every((f) => f.classList.contains("wide") === f.scrollWidth > f.clientWidth));
document.querySelector("#tried .scroll").style.width = "12rem";
window.dispatchEvent(new Event("resize"));
say.push("hint=" + getComputedStyle(document.querySelector("#tried .scroll"), "::before").content);
const label = (mark) => mark.querySelector("span").getBoundingClientRect();
const marks = [...document.querySelectorAll(".scale .mark")];
const track = document.querySelector(".track").getBoundingClientRect();
say.push("marks=" + marks.map((m) => (label(m).bottom <= track.top ? "above" : "below")).join());
say.push("labeled=" + [...buttons].every((b) => b.ariaLabel.startsWith("Copy ")));
const head = document.querySelectorAll("#tried th button")[1];
const values = () => [...document.querySelectorAll("#tried tbody tr")]
  .map((row) => Number(row.cells[1].dataset.value)).join(",");
head.click();
say.push("sorted=" + values());
const point = document.querySelector("svg.chart .point");
point.focus();
say.push("tip=" + document.querySelector("#tip").textContent);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
def test_in_a_browser_as_narrow_as_a_phone_nothing_sticks_out_or_fails(
    html: str, tmp_path: Path
) -> None:
    said = dict(line.split("=", 1) for line in said_by(html, PROBE, tmp_path))
    assert said["wide"] == said["wide open"] == "false"
    assert said["hints"] == "true"
    assert "scroll sideways" in said["hint"]
    assert said["marks"] == "below,above"
    assert said["buttons"] == said["labeled"] == "true"
    ascending = [float(value) for value in said["sorted"].split(",")]
    assert ascending == sorted(ascending)
    assert "labeled photos, measured" in said["tip"]
