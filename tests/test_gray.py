from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.images import gray
from cache.images.gray import to_8_bits


def scaled(*values: float, dtype: Any = np.uint16) -> list[int]:
    row: list[int] = np.asarray(to_8_bits(Image.fromarray(np.array([values], dtype))))[0].tolist()
    return row


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_brightest_pixel_tells_how_many_bits_there_are(bits: int, dtype: Any) -> None:
    white = 2**bits - 1
    assert scaled(0, white // 2 + 1, white, dtype=dtype) == [0, 128, 255]


def test_a_value_over_fewer_bits_is_scaled_by_more() -> None:
    assert scaled(0, 4095) == [0, 255]
    assert scaled(0, 4096) == [0, round(4096 / 16383 * 255)]


def test_sixteen_bits_are_rounded_and_what_lies_outside_of_them_clipped() -> None:
    assert scaled(128, 129, 65535) == [0, 1, 255]
    assert scaled(-5, 70_000, dtype=np.int32) == [0, 255]


def test_floats_up_to_one_are_scaled_and_others_stay() -> None:
    assert scaled(-1, 0, 0.5, 1, dtype=np.float32) == [0, 0, 128, 255]
    for beyond in (1.01, 300, float("nan")):
        image = Image.fromarray(np.array([[0, beyond]], np.float32))
        assert to_8_bits(image) is image


def test_blocks_make_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (23, 7), dtype=np.uint16)
    pixels[0, 0] = 65535
    monkeypatch.setattr(gray, "_BLOCK", 7 * 5)
    expected = np.rint(pixels / 257)
    np.testing.assert_array_equal(np.asarray(to_8_bits(Image.fromarray(pixels))), expected)
