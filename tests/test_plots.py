import math
from pathlib import Path

from PIL import Image

from fewshot.plots import accuracy_against_shots

CURVE = [(1, 0.5, math.nan), (4, 0.6, 0.02), (16, 0.7, 0.01)]


def test_the_plot_is_a_png_that_shows_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plot.png"
    accuracy_against_shots({"gda": CURVE}, {"zero-shot": 0.4}, "digits, tiny", path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 24) or []}
    assert (0x00, 0x72, 0xB2) in colours  # the curve
    assert (0xD5, 0x5E, 0x00) in colours  # the level
