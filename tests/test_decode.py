import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.decode import check_header, read_rgb

RED = (200, 10, 30)


def photo(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    Image.new("RGB", size, RED).save(path)
    return path


def test_rgb_comes_back_as_it_was(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_rgb(tmp_path / "a.png", exif=False)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    gray = np.array([[0, 200, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / "a.png")
    image = read_rgb(tmp_path / "a.png", exif=False)
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 1, 1, 128, 255])
    assert image.mode == "RGB"


def test_sixteen_bit_ppm_is_scaled_too(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P5 2 1 65535\n\x80\x80\xff\xff")
    image = read_rgb(tmp_path / "a.ppm", exif=False)
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [128, 255])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    assert read_rgb(tmp_path / "a.tiff", exif=True).mode == "RGB"


def test_transparency_is_dropped_and_a_palette_with_it_does_not_warn(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(read_rgb(tmp_path / "a.png", exif=False))
    assert (pixels == RED).all()


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "a.gif", exif=False).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_followed_where_asked(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg", exif=True).size == (6, 8)
    assert read_rgb(tmp_path / "a.jpg", exif=False).size == (8, 6)


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent.jpg"):
        read_rgb(tmp_path / "absent.jpg", exif=False)
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent.jpg"):
        check_header(tmp_path / "absent.jpg")


def test_an_image_that_breaks_off_is_an_error_although_its_header_is_good(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        check_header(tmp_path / name)
        with pytest.raises(OSError, match=r"truncated|broken|Truncated"):
            read_rgb(tmp_path / name, exif=False)


def test_no_image_and_nothing_at_all_are_errors(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(OSError, match="not an image in any format"):
        check_header(tmp_path / "text.jpg")
    with pytest.raises(OSError, match="not an image in any format"):
        read_rgb(tmp_path / "text.jpg", exif=False)
    with pytest.raises(OSError, match="the file is empty"):
        check_header(tmp_path / "empty.jpg")


def test_damage_anywhere_in_a_file_is_an_oserror_or_an_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tiff", "ppm"):
        file = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels).save(file)
        content = bytearray(file.read_bytes())
        for place in rng.integers(0, len(content), 60):
            damaged = bytearray(content)
            damaged[place] ^= int(rng.integers(1, 256))
            file.write_bytes(damaged)
            with contextlib.suppress(OSError):  # anything else would be a bug
                assert read_rgb(file, exif=True).mode == "RGB"


def test_a_decompression_bomb_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "a.png", (40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # above twice that, Pillow refuses
    with pytest.raises(OSError, match="exceeds limit"):
        read_rgb(file, exif=False)
    with pytest.raises(OSError, match="exceeds limit"):
        check_header(file)


def test_a_large_photograph_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "a.png", (40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # up to twice that, Pillow warns
    assert read_rgb(file, exif=False).size == (40, 40)


def test_threads_leave_the_warning_filters_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "a.png", (400, 400))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # each reading would warn
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: read_rgb(file, exif=False), range(200)))
    assert len(images) == 200
    assert warnings.filters == before
