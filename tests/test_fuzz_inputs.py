"""Damaged tables, manifests, prompts, split files and images end in a UserError or are read.

FUZZ=2000 tries as many of each; the usual run is bounded.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.datasets.layouts import split_file
from cache.datasets.manifest import load_manifest
from cache.datasets.preflight import check
from cache.datasets.resolving import resolve_table
from cache.errors import UserError
from cache.images.decode import check_file, read_rgb
from cache.prompts import from_file

pytestmark = pytest.mark.fuzz
TRIES = int(os.environ.get("FUZZ", "15"))
TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b";", b"\t", b"\r", b"\n", b"-1",
    b"[" * 3000, b"{" * 3000, b"9" * 5000, b"1e999", b"NaN", b"null", b"true", b"[]", b"{}",
    b"../../x", b"/etc/passwd", b"\xe2\x80\xae", b"\x1b[31m", b"a" * 300, b"\\ud800", b"=1+1",
)  # fmt: skip
SMALL_SPLIT = {split: [["cat/0.png", 0, "cat"], ["dog/0.png", 1, "dog"]] for split in
               ("train", "val", "test")}  # fmt: skip


def mutated(content: bytes, seed: int) -> bytes:
    """The content with one to four random places replaced, inserted, flipped or cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(content) + 1))
        token = TOKENS[int(rng.integers(len(TOKENS)))]
        match int(rng.integers(4)):
            case 0:
                content = content[:at] + token + content[at:]
            case 1:
                content = content[:at] + token + content[at + int(rng.integers(1, 20)) :]
            case 2 if at < len(content):
                flipped = bytes([content[at] ^ (1 << int(rng.integers(8)))])
                content = content[:at] + flipped + content[at + 1 :]
            case _ if rng.random() < 0.3:
                content = content[:at]
    return content


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def reads_table(file: Path) -> None:
    check(resolve_table(file), workers=1).report()


def reads_manifest(file: Path) -> None:
    load_manifest("", file)


def reads_prompts(file: Path) -> None:
    from_file(file, ("cat", "dog"))


def reads_split_file(file: Path) -> None:
    split_file.read_split_file(file, file.parent)


CSV = b"path,label,split\ncat/0.png,cat,train\ncat/1.png,cat,test\ndog/0.png,dog,train\n"
LINES = b'{"file_name": "cat/0.png", "label": 0}\n{"file_name": "dog/0.png", "label": 1}\n'
TOML = (
    b'name = "x"\ntitle = "X"\ntemplates = ["{}."]\n[sizes]\ntrain = 3\n[layout]\nkind = "folder"\n'
)
CASES: dict[str, tuple[bytes, Callable[[Path], None]]] = {
    "x.csv": (CSV, reads_table),
    "y.csv": (CSV.replace(b",", b";").decode().encode("utf-16"), reads_table),
    "x.jsonl": (LINES, reads_table),
    "x.toml": (TOML, reads_manifest),
    "x.json": (json.dumps({"cat": ["a cat."], "dog": ["a dog."]}).encode(), reads_prompts),
    "split.json": (json.dumps(SMALL_SPLIT).encode(), reads_split_file),
}


def refusal(read: Callable[[Path], object], file: Path, kind: type[Exception]) -> str:
    """Why a file is not read; empty if it is. An error of another kind is a bug."""
    try:
        read(file)
    except kind as error:
        return str(error) or "nothing was said"
    return ""


@pytest.mark.parametrize("name", CASES)
def test_damaged_text_is_one_line_or_read(photos: Path, name: str) -> None:
    content, read = CASES[name]
    (photos / name).write_bytes(content)
    read(photos / name)
    said = []
    for seed in range(TRIES):
        (photos / name).write_bytes(mutated(content, seed))
        said.append(refusal(read, photos / name, UserError))
    assert any(said)
    assert [line for line in said if len(line.splitlines()) > 1 or len(line) > 2000] == []


@pytest.mark.parametrize("form", ["jpg", "png", "gif", "bmp", "webp", "tiff", "ppm", "avif", "jp2"])
def test_damaged_images_are_oserrors_or_rgb(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    file = tmp_path / f"a.{form}"
    Image.fromarray(pixels).save(file)
    content = file.read_bytes()
    said = []
    for seed in range(TRIES):
        file.write_bytes(mutated(content, seed))
        looks = (check_file, partial(read_rgb, exif=True))
        said += [refusal(look, file, OSError) for look in looks]
    assert any(said)
    assert "nothing was said" not in said
