import math
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image

from fewshot.results.plots import accuracy_against_shots, class_maps, scatter

CURVE = [(1, 0.5, math.nan), (4, 0.6, 0.02), (16, 0.7, 0.01)]
BLUE, RED, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def colors(path: Path) -> set[object]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return {c for _, c in image.convert("RGB").getcolors(1 << 24) or []}


def words(path: Path) -> str:
    return " ".join(ET.parse(path).getroot().itertext())


def test_the_plot_is_a_png_that_shows_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plot.png"
    accuracy_against_shots({"gda": CURVE}, {"zero-shot": 0.4}, "digits, tiny", path)
    assert {BLUE, RED} <= colors(path)  # the curve, and the level
    assert GREEN not in colors(path)


def test_an_svg_has_its_words_as_text_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        accuracy_against_shots({"gda": CURVE}, {"zero-shot": 0.4}, "digits, tiny", path)
    assert {"digits,", "gda", "zero-shot", "16"} <= set(words(paths[0]).split())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_places_are_named_and_zero_has_room_on_a_logarithmic_axis(tmp_path: Path) -> None:
    points = [("gda", 0.0, 60.0, "here"), ("ridge", 1000.0, 70.0, "there")]
    for suffix in (".png", ".svg"):
        scatter(points, "cost", "parameters", "accuracy", tmp_path / f"p{suffix}", log=True)
    assert {BLUE, RED} <= colors(tmp_path / "p.png")
    assert {"here", "there", "0"} <= set(words(tmp_path / "p.svg").split())


def test_maps_stand_side_by_side_with_their_classes_named(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(12, 2))
    labels = np.arange(12) % 3
    path = tmp_path / "maps.svg"
    class_maps({"before": points, "after": -points}, labels, ["cat", "dog", "owl"], "t-SNE", path)
    assert {"before", "after", "cat", "dog", "owl", "t-SNE"} <= set(words(path).split())
