from markupsafe import Markup

from fewshot.html import (
    Block,
    Drawing,
    Drawings,
    Folded,
    Gallery,
    Notes,
    Paragraph,
    Part,
    Photo,
    Preformatted,
    Steps,
    Thumbnail,
    markup,
    page,
    safe,
)
from fewshot.tables import Number, Table

EVIL = "<b>'&\" \x1b[31m\u202egpj"
SHOWN = r"&lt;b&gt;&#39;&amp;&#34; \x1b[31m\u202egpj"
BLOCKS: list[Block] = [
    Notes([EVIL]),
    Paragraph(EVIL, bold=EVIL),
    Drawings([Drawing(EVIL, Markup("<svg></svg>"), [(EVIL, Markup("<i></i>"))])]),
    Gallery([Photo(None, EVIL, [EVIL], EVIL, EVIL, EVIL, EVIL)], EVIL, EVIL),
    Preformatted(EVIL),
    Steps([(EVIL, EVIL)]),
    Folded(EVIL, [Notes([EVIL])]),
    Table(EVIL, (EVIL, "n"), [(EVIL, 1)], (EVIL,)),
]


def test_text_is_escaped_and_inert_in_every_block() -> None:
    html = page(EVIL, [Part("part", EVIL, BLOCKS)], markup([Notes([EVIL])]))
    assert "<b>" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.count(SHOWN) == 2 + 2 + 1 + 1 + 2 + 3 + 8 + 1 + 2 + 2 + 5
    assert safe(EVIL) == SHOWN


def test_lines_of_preformatted_text_stay() -> None:
    assert ">a\nb</pre>" in markup([Preformatted("a\nb")])


def test_long_tables_are_folded_and_short_ones_are_not() -> None:
    rows = [("a & b", Number(1234.5))] * 41
    folded = markup([Table("T", ("name", "n"), rows)])
    assert folded.startswith("<details><summary>T, 41 rows</summary>")
    short = markup([Table("T", ("name", "n"), rows[:40], ("<i>",), marked=1)])
    assert short.startswith("<div")
    assert short.count('class="marked"') == 1
    assert '<td class="number" data-value="1234.5">1234.5</td>' in short
    assert "a &amp; b" in short
    assert "&lt;i&gt;" in short
    assert markup([Table("T", ("name",), [])]).count("<tr>") == 1


def test_cells_are_numbers_wrapped_text_or_markup() -> None:
    row = (1234, Number(1.25, 0.5), "x" * 41, Markup("<em>y</em>"), "")
    html = markup([Table("T", tuple("abcde"), [row])])
    assert '<td class="number" data-value="1234">1,234</td>' in html
    assert '<td class="number" data-value="1.25">1.2 ± 0.5</td>' in html
    assert f'<td class="long">{"x" * 41}</td><td><em>y</em></td><td></td>' in html
    assert html.count('<th scope="col" aria-sort="none" class="number">') == 2


def test_what_is_copied_may_be_more_than_what_is_shown() -> None:
    steps = markup([Steps([("Do", "a<b")])])
    assert '<div class="copyable"><code>a&lt;b</code></div>' in steps
    photo = Photo(Thumbnail("data:,", 4, 3), "a cat", ["one", "two"], path='/x/"y', name='"y')
    html = markup([Gallery([photo])])
    assert 'data-copy="/x/&#34;y"' in html
    assert "<code>&#34;y</code>" in html
    assert "one<br>two" in html
    assert '<img src="data:," width="4" height="3" loading="lazy" alt="a cat">' in html
