import pytest

from cache.images.skipped import Skipped


@pytest.mark.parametrize(
    "image",
    [
        Skipped("train", "ant/p1.png", "image file is truncated (9 bytes not processed)"),
        Skipped("val", "c: odd/p: 2.jpeg", "broken: twice"),
        Skipped("test", "no extension", "not an image in any format that Pillow knows"),
    ],
)
def test_what_a_store_lists_is_read_back(image: Skipped) -> None:
    assert Skipped.parse(str(image)) == image
    assert str(image) == f"{image.split}/{image.path}: {image.reason}"


def test_a_path_that_moves_the_cursor_is_written_out() -> None:
    assert str(Skipped("train", "a\nb.png", "why")) == r"train/a\nb.png: why"


@pytest.mark.parametrize("line", ["", "a.jpg", "train/a.jpg", "other/a.jpg: why"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="expected split/path: reason"):
        Skipped.parse(line)
