import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fewshot.report.build import make
from fewshot.report.content import Maps, Report, Scatter, Section
from fewshot.report.html_page import page
from tests.browser import CHROMIUM, said_by
from tests.toy_results import result, zero_shot

NASTY = "<script>alert('x')</script> & \"co\""


def report() -> Report:
    results = [zero_shot(accuracy=0.4), zero_shot(dataset=NASTY, accuracy=0.3)]
    for method, lift in (("gda", 0.1), (NASTY, 0.2)):
        results += [
            result(dataset=dataset, method=method, shots=shots, seed=seed,
                   accuracy=0.3 + lift + 0.01 * shots * seed, fit_seconds=lift * seed)
            for dataset in ("dtd", NASTY) for shots in (1, 2, 4, 16) for seed in (1, 2, 3)
        ]  # fmt: skip
    made = make(results)
    maps = Maps(
        "t-SNE", {"before": np.eye(3, 2), "after": -np.eye(3, 2)}, np.arange(3),
        ["cat", "dog", NASTY],
    )  # fmt: skip
    cost = Scatter("cost", "s", "%", [("gda", 0.0, 50.0, "a"), (NASTY, 10.0, 60.0, "b")], log=True)
    made.sections.append(Section("Maps", ["A note: " + NASTY], {"maps": maps, "cost": cost}))
    return made


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and whether all are closed."""

    VOID = ("meta", "link", "path", "br")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return page(report())


def test_the_page_is_whole_and_needs_nothing_but_itself(html: str) -> None:
    elements = Elements()
    elements.feed(html)
    assert elements.open == []
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", html)


def test_names_are_text_and_never_markup(html: str) -> None:
    elements = Elements()
    elements.feed(html)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert "alert('x')</script>" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)" in html


def test_links_lead_to_sections_and_every_column_can_be_sorted(html: str) -> None:
    elements = Elements()
    elements.feed(html)
    ids = {a["id"] for _, a in elements.found if "id" in a}
    links = [a["href"] for tag, a in elements.found if tag == "a"]
    assert len(links) >= 4
    assert {str(link).removeprefix("#") for link in links} <= ids
    heads = [a for tag, a in elements.found if tag == "th"]
    assert heads
    assert all(a.get("aria-sort") == "none" and a.get("scope") == "col" for a in heads)


def test_points_tell_their_values_in_words(html: str) -> None:
    assert 'aria-label="gda, 2 shots: 44.0 ± 5.0 %"' in html
    assert 'aria-label="zero-shot, no shots: 40.0 %"' in html


PROBE = """
const head = document.querySelectorAll("table")[0].querySelectorAll("th button");
const column = () => [...document.querySelectorAll("table")[0].tBodies[0].rows]
  .map((row) => Number(row.cells[3].dataset.value).toFixed(1)).join(",");
head[3].click();
say.push("up=" + column(), head[3].parentElement.getAttribute("aria-sort"));
head[3].click();
say.push("down=" + column(), head[3].parentElement.getAttribute("aria-sort"));
const chart = document.querySelector("svg.chart");
const points = chart.querySelectorAll(".point");
const box = points[2].getBoundingClientRect();
const move = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
chart.dispatchEvent(new PointerEvent("pointermove", move));
say.push("hover=" + document.querySelector("#tip .here").textContent);
chart.dispatchEvent(new PointerEvent("pointerleave"));
say.push("hidden=" + document.getElementById("tip").hidden);
chart.querySelector("[tabindex='0']").focus();
const key = { key: "ArrowRight", bubbles: true };
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", key));
say.push("key=" + document.activeElement.getAttribute("aria-label"));
const legend = document.querySelector(".legend button");
legend.click();
say.push("off=" + document.querySelectorAll("figure .off").length, legend.ariaPressed);
const paper = () => getComputedStyle(document.body).backgroundColor;
const theme = document.getElementById("theme");
say.push("system=" + paper());
theme.click();
say.push("light=" + paper());
theme.click();
say.push("dark=" + paper());
say.push("wide=" + (document.documentElement.scrollWidth > window.innerWidth));
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
def test_in_a_browser_it_sorts_tells_values_changes_colors_and_complains_of_nothing(
    html: str, tmp_path: Path
) -> None:
    said = said_by(html, PROBE, tmp_path, "--blink-settings=preferredColorScheme=0")
    up, down = (line.split("=")[1].split(",") for line in said if line.startswith(("up=", "down=")))
    assert up == sorted(up, key=float)
    assert down == up[::-1]
    assert {"ascending", "descending"} <= set(said)
    assert "hover=gda, 2 shots: 44.0 ± 5.0 %" in said
    assert "hidden=true" in said
    assert "key=gda, 1 shot: 42.0 ± 2.5 %" in said
    assert "off=1" in said
    assert "system=rgb(20, 23, 28)" in said  # the browser was told to prefer dark
    assert "light=rgb(255, 255, 255)" in said
    assert "dark=rgb(20, 23, 28)" in said
    assert "wide=false" in said
