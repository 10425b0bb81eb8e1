import itertools
import re
from pathlib import Path

import numpy as np
from PIL import Image

from cache.datasets.source import Source
from fewshot.automatic.page import thumbnails
from fewshot.automatic.page.assembly import more_labels
from fewshot.automatic.page.learning_curve_drawing import curve_svg
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.html import markup
from fewshot.model_selection.learning_curve import CurvePoint, Forecast, LearningCurve


def test_thumbnails_are_small_upright_and_end_when_the_page_is_full(tmp_path: Path) -> None:
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[:, :200] = (255, 0, 0)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=turned)
    source = Source("x", tmp_path, ("a",), {}, (), "", exif=True)
    made = Thumbnails(budget=1)
    small = made.of(source, "a.jpg")
    assert small is not None
    assert (small.width, small.height) == (40, thumbnails.SIDE)
    assert small.uri.startswith("data:image/jpeg;base64,")
    assert made.of(source, "a.jpg") is None
    assert Thumbnails().of(source, "gone.jpg") is None


def test_the_curve_tells_its_points_in_words_and_tells_forecasts_apart() -> None:
    points = (CurvePoint(1, 10.0, 0.5, 0.02), CurvePoint(2, 20.0, 0.6, 0.0))
    more = (Forecast(2, 0.7, (0.65, 0.8), 0.1, (0.05, 0.2)),)
    drawn = curve_svg(LearningCurve(points, more), 25, 0.4)
    assert 'aria-label="10 labeled photos, measured: 50.0 in 100 right (48.0 to 52.0)"' in drawn
    assert 'aria-label="20 labeled photos, measured: 60.0 in 100 right"' in drawn
    assert 'aria-label="50 labeled photos, expected: 70.0 in 100 right (65.0 to 80.0)"' in drawn
    assert drawn.count("class names alone") == 1
    assert drawn.count("expected c1") == 1
    heights = [float(y) for y in re.findall(r'data-y="([\d.]+)"', drawn)]
    places = [float(x) for x in re.findall(r'data-x="([\d.]+)"', drawn)]
    assert heights == sorted(heights, reverse=True)
    assert places == sorted(places)
    alone = curve_svg(LearningCurve(points[:1], ()), 10, None)
    assert "nan" not in alone.replace("dominant-baseline", "")
    assert "class names alone" not in alone


def test_labels_of_the_axis_keep_apart_and_the_first_and_last_stay() -> None:
    points = tuple(CurvePoint(2**i, 100.0 * 2**i, 0.5, 0.0) for i in range(11))
    points = (*points, CurvePoint(1100, 105_000.0, 0.6, 0.0))
    more = (Forecast(2, 0.7, (0.65, 0.8), 0.1, (0.05, 0.2)),)
    drawn = curve_svg(LearningCurve(points, more), 130_000, None)
    found = re.findall(r'<text class="tick" x="([\d.]+)" y="321" [^>]*>([\d,]+)<', drawn)
    assert [found[0][1], found[-1][1]] == ["100", "260,000"]
    assert 4 <= len(found) < 13
    edges = [(float(x), len(text) * 19 * 0.6) for x, text in found]  # the style of a phone
    for (x, width), (after, other) in itertools.pairwise(edges):
        assert after - x > (width + other) / 2


def test_a_forecast_that_says_nothing_is_not_printed() -> None:
    points = (CurvePoint(1, 10.0, 0.5, 0.02), CurvePoint(2, 20.0, 0.6, 0.0))
    absurd = (Forecast(2, 0.7, (0.1, 1.0), 0.1, (-0.6, 0.5)),)
    curve = LearningCurve(points, absurd)
    assert "expected" not in curve_svg(curve, 25, None)
    assert curve.sentence == "too uncertain to say"
    [*_, notes] = more_labels("gda", curve, curve.sentence, 25, None)
    assert "expected" not in markup([notes])
