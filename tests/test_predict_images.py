import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cache.errors import UserError
from cache.images.decode import NO_IMAGE, read_rgb
from cache.images.preprocessing import Preprocess
from fewshot.adapters.inputs import decoded, every, image_files

RED = (200, 10, 30)
WHOLE = Preprocess(8, (0.0,) * 3, (1.0,) * 3, "bicubic", "squash")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to name files in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_a_file_is_taken_whatever_it_is_called() -> None:
    write("a.jpg", "scan.0001", "noextension")
    named = ["scan.0001", "./a.jpg", "noextension"]
    assert image_files(named) == named


def test_the_order_is_that_of_the_names_and_one_named_twice_comes_twice() -> None:
    write("b.jpg", "a.jpg", "photos/z.png")
    named = ["b.jpg", "photos", "a.jpg", "b.jpg", "photos/z.png"]
    assert image_files(named) == ["b.jpg", "photos/z.png", "a.jpg", "b.jpg", "photos/z.png"]


def test_a_folder_stands_for_the_images_anywhere_below_it() -> None:
    write("photos/b/2.JPG", "photos/b/1.png", "photos/a.webp", "photos/x.txt", "photos/.hidden.png")
    below = ["photos/a.webp", "photos/b/1.png", "photos/b/2.JPG"]
    assert image_files(["photos"]) == below
    assert image_files(["photos/"]) == below
    assert image_files(["./photos"]) == [f"./{path}" for path in below]


def test_a_pattern_stands_for_the_files_that_match() -> None:
    write("p/2.jpg", "p/1.jpg", "p/1.png", "p/q/3.jpg", "p/q/r/4.jpg")
    assert image_files(["p/*.jpg"]) == ["p/1.jpg", "p/2.jpg"]
    assert image_files(["p/[1-2].*"]) == ["p/1.jpg", "p/1.png", "p/2.jpg"]
    everywhere = ["p/1.jpg", "p/2.jpg", "p/q/3.jpg", "p/q/r/4.jpg"]
    assert image_files(["p/**/*.jpg"]) == everywhere
    assert image_files(["./p/**/*.jpg"]) == [f"./{path}" for path in everywhere]
    assert image_files(["p/**"]) == ["p/1.jpg", "p/1.png", *everywhere[1:]]


def test_a_pattern_does_not_stand_for_folders() -> None:
    write("p/a/1.jpg", "p/2.jpg")
    assert image_files(["p/*"]) == ["p/2.jpg"]
    with pytest.raises(UserError, match=r"nothing matches '\*'"):
        image_files(["*"])


def test_a_file_with_brackets_is_itself_rather_than_a_pattern() -> None:
    write("a[1].jpg", "a1.jpg", "what?.jpg", "whats.jpg", "f[x]/b.jpg")
    assert image_files(["a[1].jpg"]) == ["a[1].jpg"]
    assert image_files(["what?.jpg"]) == ["what?.jpg"]
    assert image_files(["f[x]"]) == ["f[x]/b.jpg"]
    Path("a[1].jpg").unlink()
    assert image_files(["a[1].jpg"]) == ["a1.jpg"]


def test_names_of_any_script_are_kept() -> None:
    write("фото/äpfel 🍎.jpg", 'a, "b".jpg', "line\nbreak.jpg")
    names = ["фото/äpfel 🍎.jpg", 'a, "b".jpg', "line\nbreak.jpg"]
    assert image_files(names) == names
    assert image_files(["фото"]) == names[:1]
    assert image_files(["фото/*"]) == names[:1]


def test_a_name_that_nothing_matches_says_so_and_how_many_more() -> None:
    write("a.jpg")
    message = r"^nothing matches 'b\.jpg'; name images that there are, folders of them, or patterns"
    with pytest.raises(UserError, match=message):
        image_files(["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match=r"^nothing matches 'b\.jpg', nor 2 more of 4 names; "):
        image_files(["b.jpg", "c/*.jpg", "a.jpg", "x" * 5000])


def test_a_broken_link_matches_nothing() -> None:
    Path("a.jpg").symlink_to("gone.jpg")
    with pytest.raises(UserError, match=r"nothing matches 'a\.jpg'"):
        image_files(["a.jpg"])
    with pytest.raises(UserError, match=r"nothing matches '\*\.jpg'"):
        image_files(["*.jpg"])


def test_a_folder_without_images_says_what_it_has() -> None:
    Path("empty").mkdir()
    write("texts/a.txt", "texts/b.txt", "texts/.c.jpg")
    with pytest.raises(UserError, match=r"^no image below empty; name a folder that holds some$"):
        image_files(["empty"])
    message = r"^no image below texts; it holds other files \(1 hidden, 2 of another type\)"
    with pytest.raises(UserError, match=message):
        image_files(["texts"])


def test_no_name_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no images named"):
        image_files([])


def test_a_dash_reads_names_from_stdin_where_it_stands() -> None:
    write("a.jpg", "b c.jpg", "é.jpg", "f/1.jpg")
    lines = "b c.jpg\n\né.jpg\nf\n".encode()
    expected = ["a.jpg", "b c.jpg", "é.jpg", "f/1.jpg", "a.jpg"]
    assert image_files(["a.jpg", "-", "a.jpg"], io.BytesIO(lines)) == expected
    windows = lines.replace(b"\n", b"\r\n")
    assert image_files(["a.jpg", "-", "a.jpg"], io.BytesIO(windows)) == expected


def test_names_on_stdin_may_end_in_nul_and_then_hold_newlines() -> None:
    write("a\nb.jpg", "c\r\n.jpg")
    assert image_files(["-"], io.BytesIO(b"a\nb.jpg\0c\r\n.jpg\0")) == ["a\nb.jpg", "c\r\n.jpg"]


def test_names_on_stdin_need_not_be_utf8() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write(name)
    assert image_files(["-"], io.BytesIO(b"caf\xe9.jpg\n")) == [name]


def test_nothing_on_stdin_is_an_error_and_so_is_an_image_itself() -> None:
    with pytest.raises(UserError, match="no image was named on stdin"):
        image_files(["-"], io.BytesIO(b"\n\n"))
    Image.new("RGB", (300, 300)).save("a.png")
    with pytest.raises(UserError, match="nothing matches"):
        image_files(["-"], io.BytesIO(Path("a.png").read_bytes()))


def test_of_a_list_on_stdin_files_that_are_gone_are_kept_to_be_reported_one_by_one() -> None:
    write("a.jpg", "c.jpg")
    listed = io.BytesIO(b"a.jpg\n  \ngone.jpg\nc.jpg\n")
    assert image_files(["-"], listed) == ["a.jpg", "gone.jpg", "c.jpg"]
    with pytest.raises(UserError, match=r"nothing matches 'gone\.jpg', nor 1 more of 2 names"):
        image_files(["-"], io.BytesIO(b"gone.jpg\nlost.jpg\n"))
    with pytest.raises(UserError, match=r"nothing matches 'gone\.jpg'; name"):
        image_files(["a.jpg", "gone.jpg"])


def test_a_dash_is_a_name_like_others_where_there_is_no_stdin() -> None:
    with pytest.raises(UserError, match="nothing matches '-'"):
        image_files(["-"])
    write("-")
    assert image_files(["-"]) == ["-"]
    assert image_files(["./-"], io.BytesIO(b"no")) == ["./-"]


def test_one_image_or_many_of_any_kind_are_taken() -> None:
    write("p/1.jpg", "p/2.jpg")
    image = Image.new("RGB", (4, 4))
    assert list(every("p")) == ["p/1.jpg", "p/2.jpg"]
    assert list(every(Path("p/1.jpg"))) == ["p/1.jpg"]
    assert list(every(image)) == [image]
    assert list(every([image, Path("p"), "p/1.jpg"])) == [image, "p/1.jpg", "p/2.jpg", "p/1.jpg"]
    with pytest.raises(UserError, match=r"must be uint8 .H, W, 3.; got float64"):
        list(every([np.zeros((4, 4, 3))]))  # type: ignore[list-item]


def shades(n: int) -> list[str]:
    """n images in the order of their shade, of sizes that take unequally long to decode."""
    names = [f"{i:02d}.png" for i in range(n)]
    for i, name in enumerate(names):
        Image.new("L", (4 + 700 * (i % 3 == 0), 4), i).save(name)
    return names


def read(images: Sequence[str | Image.Image], **how: int) -> list[list[tuple[str, Tensor | str]]]:
    """The batches of `decoded`."""
    ask = {"batch_size": 4, "workers": 3} | how
    return list(decoded(images, WHOLE, exif=True, **ask))


def test_pixels_come_in_the_order_of_the_images_whatever_the_threads() -> None:
    names = shades(22)
    batches = read(names)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    rows = [row for batch in batches for row in batch]
    assert [path for path, _ in rows] == names
    for i, (_, pixels) in enumerate(rows):
        torch.testing.assert_close(pixels, torch.full((3, 8, 8), i / 255))


def test_no_more_than_three_batches_are_taken_ahead() -> None:
    taken = 0

    def images() -> Iterator[Image.Image]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield Image.new("L", (4, 4), i)

    batches = decoded(images(), WHOLE, exif=True, batch_size=4, workers=2)
    for done in range(1, 6):
        next(batches)
        assert taken == 4 * (done + 2)


def test_stopping_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    batches = decoded(shades(20), WHOLE, exif=True, batch_size=2, workers=4)
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_cannot_be_read_has_a_reason_in_its_place() -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save("a.jpg")
    Path("half.jpg").write_bytes(Path("a.jpg").read_bytes()[:1500])
    Path("text.jpg").write_text("hello")
    write("empty.jpg", "gone.jpg")
    Image.new("L", (90, 90)).save("bomb.png")
    Path("gone.jpg").unlink()
    names: list[str | Image.Image] = [
        "half.jpg", "a.jpg", "text.jpg", "empty.jpg", "gone.jpg", "bomb.png", "."
    ]  # fmt: skip
    [batch] = read(names, batch_size=9, max_pixels=8099)
    found = dict(batch)
    assert isinstance(found.pop("a.jpg"), Tensor)
    reasons = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    assert len(reasons) == 6
    assert "truncated" in reasons["half.jpg"]
    assert reasons["text.jpg"] == NO_IMAGE
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["gone.jpg"] == "no file at gone.jpg"
    assert "the maximum is 8,099" in reasons["bomb.png"]
    assert reasons["."] == "a folder, not a file"


def test_a_sliver_that_cannot_be_resized_is_unreadable_and_stops_nothing() -> None:
    longest = Preprocess(8, (0.0,) * 3, (1.0,) * 3, "bicubic", "longest")
    images = [Image.new("L", (1, 400)), Image.new("L", (4, 4))]
    [[(_, sliver), (_, square)]] = decoded(images, longest, exif=True, batch_size=2, workers=1)
    assert isinstance(sliver, str)
    assert isinstance(square, Tensor)


def pixels_of(images: Sequence[str | Image.Image], *, exif: bool = True) -> list[Tensor | str]:
    [batch] = decoded(images, WHOLE, exif=exif, batch_size=len(images), workers=2)
    return [pixels for _, pixels in batch]


def test_an_image_in_memory_gives_the_pixels_of_its_file() -> None:
    gray = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(gray).save("deep.png")
    Image.new("CMYK", (5, 4), (10, 90, 200, 40)).save("cmyk.tiff")
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, "black")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("turned.png", exif=exif)
    names = ["deep.png", "cmyk.tiff", "moving.gif", "turned.png"]
    for upright in (True, False):
        expected = [WHOLE.center(read_rgb(Path(name), exif=upright)) for name in names]
        with contextlib.ExitStack() as files:
            opened = [files.enter_context(Image.open(name)) for name in names]
            for images in (names, opened, [image.copy() for image in opened[:3]]):
                got = pixels_of(images, exif=upright)
                torch.testing.assert_close(got, expected[: len(images)], rtol=0, atol=0)
            left = [(image.mode, image.size) for image in opened]
            assert left == [("I;16", (8, 8)), ("CMYK", (5, 4)), ("P", (4, 4)), ("L", (12, 8))]


def test_an_opened_image_that_is_named_many_times_is_read_by_one_thread() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save("large.png")  # so that the threads meet while it is decoded
    [expected] = pixels_of(["large.png"])
    with Image.open("large.png") as image:
        for pixels in pixels_of([image] * 6):
            torch.testing.assert_close(pixels, expected)


def test_a_closed_or_broken_image_in_memory_is_unreadable() -> None:
    Image.new("RGB", (60, 60), RED).save("a.png")
    with Image.open("a.png") as closed:
        pass
    content = Path("a.png").read_bytes()
    broken = Image.open(io.BytesIO(content[: len(content) // 2]))
    reasons = pixels_of([closed, broken])
    assert all(isinstance(reason, str) and reason for reason in reasons)


def test_an_image_is_known_by_its_file_or_by_its_place() -> None:
    Image.new("RGB", (4, 4)).save("a.png")
    images: list[str | Image.Image] = [Image.new("RGB", (4, 4)), "a.png", Image.open("a.png")]
    images.append(Image.new("RGB", (4, 4)))
    batches = read(images, batch_size=2)
    assert [path for batch in batches for path, _ in batch] == [
        "images[0]", "a.png", "a.png", "images[3]"
    ]  # fmt: skip


def test_a_folder_tells_how_many_other_files_it_holds_and_why_they_are_left_out() -> None:
    write("new/a.jfif", "new/b.AVIF", "new/c.heic", "new/d.txt", "new/.hidden")
    said: list[str] = []
    assert image_files(["new"], say=said.append) == ["new/a.jfif", "new/b.AVIF"]
    heic = "1 .heic (a format that is not read; convert it to JPEG)"
    assert said == [f"new: files left out: {heic}, 1 hidden, 1 of another type"]
    said.clear()
    write("plain/a.png", "plain/.DS_Store")
    image_files(["plain"], say=said.append)
    assert said == []
