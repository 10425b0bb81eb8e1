import contextlib
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.images import decode
from cache.images.decode import check_file, opened, read_rgb

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
        check_file(tmp_path / "absent.jpg")


def test_an_image_that_breaks_off_is_told_without_decoding_the_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tiff", "a.ppm", "a.avif"):
        file = tmp_path / name
        Image.fromarray(pixels).save(file)
        check_file(file)
        content = file.read_bytes()
        for kept in (len(content) // 2, len(content) - 40):
            file.write_bytes(content[:kept])
            with pytest.raises(OSError, match=r".") as header:
                check_file(file)
            with pytest.raises(OSError, match=r".") as decoded:
                read_rgb(file, exif=False)
            assert str(header.value) == str(decoded.value)
        file.write_bytes(content)
    monkeypatch.setattr(decode, "read_rgb", None)
    for name in ("a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tiff"):
        check_file(tmp_path / name)


def test_a_jpeg_with_other_data_behind_it_is_whole_and_its_thumbnail_is_not_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "a.jpg", (300, 300))
    whole = file.read_bytes()
    thumbnail = b"\xff\xe1" + (2 + len(whole)).to_bytes(2, "big") + whole
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    file.write_bytes(with_thumbnail + b"a film" * 100)
    check_file(file)
    file.write_bytes(with_thumbnail[:-40])
    with pytest.raises(OSError, match="truncated"):
        check_file(file)


def test_no_format_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "holiday.jpg"
    file.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for look in (check_file, partial(read_rgb, exif=True)):
        with pytest.raises(OSError, match="not an image in any format that is read: JPEG, PNG"):
            look(file)
    with (
        Image.open(file) as image,
        pytest.raises(OSError, match="starts a program"),
        opened(image, exif=True),
    ):
        pass
    assert not (tmp_path / "ran").exists()


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for look in (check_file, partial(read_rgb, exif=True)):
        with pytest.raises(OSError, match="not a regular file"):
            look(tmp_path / "pipe.jpg")


def test_no_image_and_nothing_at_all_are_errors(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(OSError, match="not an image in any format"):
        check_file(tmp_path / "text.jpg")
    with pytest.raises(OSError, match="not an image in any format"):
        read_rgb(tmp_path / "text.jpg", exif=False)
    with pytest.raises(OSError, match="the file is empty"):
        check_file(tmp_path / "empty.jpg")


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


def test_an_image_over_the_maximum_is_refused_by_its_header(tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", (40, 30))
    said = "^40 x 30 = 1,200 pixels, the maximum is 1,199; .* --max-pixels$"
    for look in (check_file, partial(read_rgb, exif=True)):
        with pytest.raises(OSError, match=said):
            look(file, max_pixels=1199)
    check_file(file, max_pixels=1200)
    assert read_rgb(file, exif=False, max_pixels=1200).size == (40, 30)


def test_a_side_is_bounded_as_well_as_the_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_SIDE", 99)
    check_file(photo(tmp_path / "fair.png", (99, 1)))
    for size in ((100, 1), (1, 100)):
        with pytest.raises(OSError, match="a side may have 99 at most"):
            check_file(photo(tmp_path / "long.png", size))


def test_a_file_too_large_for_any_image_is_not_read_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.webp"
    file.write_bytes(b"RIFF\0\0\0\0WEBPVP8L")
    os.truncate(file, 2**37)  # no bytes on disk
    with pytest.raises(OSError, match="the file has 137,438,953,472 bytes"):
        check_file(file)


def test_a_tile_is_bounded_as_the_image_is(tmp_path: Path) -> None:
    file = tmp_path / "a.tiff"
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000}
    tags |= {324: 300, 325: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
    file.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(400))
    with pytest.raises(OSError, match="20,000 x 20,000"):
        check_file(file)


def test_pillows_own_limit_is_off_only_while_an_image_is_open(tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    with opened(file, exif=False) as one:
        read_rgb(file, exif=False)
        assert Image.MAX_IMAGE_PIXELS is None
        assert one.mode == "RGB"
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_image_of_the_callers_is_left_as_it_was(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6), RED)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as mine:
        with opened(mine, exif=True) as upright:
            assert upright.size == (6, 8)
        assert mine.size == (8, 6)
        assert mine.getexif()[0x0112] == 6


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
