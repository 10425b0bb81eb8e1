import os
from pathlib import Path

from PIL import Image

from cache.datasets.image_search import find_images, folders


def test_images_are_found_by_extension_in_any_case_and_at_any_depth(tmp_path: Path) -> None:
    wanted = ["B.JPG", "a.jpeg", "deep/er/c.Png", "d.webp", "e.tif", "f.jfif", "g.AVIF"]
    hidden = [".hidden.jpg", "._a.jpg", ".git/x.jpg", "__MACOSX/y.jpg", "@eaDir/B.JPG/z.jpg"]
    for path in [*wanted, *hidden, "Thumbs.db", "notes.txt", "h.heic", "i.HEIC"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = find_images(tmp_path)
    assert found.paths == tuple(sorted(wanted))
    assert found.ignored == {
        "hidden": 3,
        "of another type": 1,
        ".heic (a format that is not read; convert it to JPEG)": 2,
    }


def test_links_are_followed_and_a_circle_of_them_ends(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "real" / "a.png")
    assert find_images(tmp_path / "in").paths == ("b.png",)


def test_hidden_folders_and_files_are_no_classes(tmp_path: Path) -> None:
    for name in ("b", "a", ".c", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert folders(tmp_path) == ["a", "b"]


def test_a_file_without_extension_is_an_image_if_it_begins_as_one(tmp_path: Path) -> None:
    for name, form in (("j", "JPEG"), ("p", "PNG"), ("w", "WEBP"), ("t", "TIFF"), ("a", "AVIF")):
        Image.new("RGB", (4, 4)).save(tmp_path / name, form)
    (tmp_path / "README").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    assert found.paths == ("a", "j", "p", "t", "w")
    assert found.ignored == {"of another type": 3}


def test_what_can_be_reached_in_two_ways_is_taken_once_as_it_lies_there(tmp_path: Path) -> None:
    (tmp_path / "in" / "z" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "z" / "deep" / "1.png").touch()
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "0.png").symlink_to(tmp_path / "in" / "z" / "deep" / "1.png")
    found = find_images(tmp_path / "in")
    assert found.files == {"z/deep/1.png": str((tmp_path / "in/z/deep/1.png").resolve())}


def test_a_link_back_to_where_the_folder_lies_is_not_followed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "far").symlink_to("/")
    assert find_images(tmp_path / "cat").paths == ("1.png",)


def test_links_among_many_folders_do_not_multiply(tmp_path: Path) -> None:
    names = [f"{i:02d}" for i in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        for other in names:
            (tmp_path / name / f"to{other}").symlink_to(tmp_path / other)
    assert find_images(tmp_path).paths == tuple(f"{name}/1.png" for name in names)
