from pathlib import Path

import pytest

import fewshot
from cache.errors import UserError
from tests.toy_store import write_toy


def test_a_store_is_described_and_checked_by_path_or_text(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    assert fewshot.inspect(path) == fewshot.inspect(str(path))
    assert "toy" in fewshot.inspect(path)
    fewshot.verify(path)
    fewshot.verify(str(path))


def test_a_changed_byte_of_a_store_is_damage(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        fewshot.verify(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.h5"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    for look in (fewshot.inspect, fewshot.verify):
        with pytest.raises(UserError, match=name):
            look(tmp_path / name)
