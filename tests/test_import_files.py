import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.importing.import_store import import_file
from tests.feature_files import archive

HEADER = b"\x93NUMPY\x01\x00\x46\x00"


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (
            {"train_features": HEADER + b"{'descr': '<f4', 'fortran_order': False, "
             b"'shape': (1000000000, 8), } \n"},
            "damaged at array train_features",
        ),
        (
            {"train_features": b"\x93NUMPY\x01\x00" + (3001).to_bytes(2, "little") + b"(" * 3000},
            "damaged at array train_features",
        ),
        ({"train_features": b"none"}, "damaged at array train_features"),
        ({"train_labels": np.array([0, 0, 0, 0, 0, 3 * 10**7])}, "images go up to 30,000,000; "),
        ({"train_labels": np.array([0, 0, 0, 0, 0, 2**63], np.uint64)}, "class ids below"),
        ({"classnames": np.array(3.5)}, "class names must be a list of texts"),
        ({"classnames": np.array([["a", "b", "c"]])}, "class names must be a list of texts"),
        ({"text_features": np.array([["a"] * 4] * 3)}, "must be .* and numbers"),
        ({"text_features": np.empty((3, 0))}, "must be .* and numbers"),
        ({"train_features": np.zeros((10**8, 1), "f4")}, "unpacks .* bytes to"),
    ],
)  # fmt: skip
def test_an_archive_that_says_more_than_it_holds_is_refused(
    tmp_path: Path, members: dict[str, Any], match: str
) -> None:
    path = archive(tmp_path / "x.npz", **members)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=match):
        import_file(path, "d", "tiny", tmp_path)
    if "unpacks" not in match:  # writing that one takes memory
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(("at", "value", "where"), [(8, 1, 6), (10, 97, 8)])
def test_an_encrypted_archive_or_one_of_an_unknown_kind_is_refused(
    tmp_path: Path, at: int, value: int, where: int
) -> None:
    path = archive(tmp_path / "x.npz")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + at] = value
    content[where] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged at array"):
        import_file(path, "d", "tiny", tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**9, 4),
        torch.eye(4).to_sparse(),
        torch.zeros(6, 4, dtype=torch.complex64),
        [[1, 2], [3]],
        {"nested": 1},
    ],
    ids=["one number a billion times", "sparse", "complex", "ragged", "nested"],
)
def test_a_tensor_that_is_none_of_its_own_numbers_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save({"train_features": value, "train_labels": torch.arange(6) % 3}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"should be a dense tensor|must be|holds more than tensors"
    ):
        import_file(tmp_path / "x.pt", "d", "tiny", tmp_path)


def test_a_flipped_bit_of_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    features = torch.linspace(1, 2, 24).reshape(6, 4)
    torch.save({"train_features": features, "train_labels": torch.arange(6) % 3}, path)
    content = bytearray(path.read_bytes())
    content[content.find(features.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or holds more than tensors"):
        import_file(path, "d", "tiny", tmp_path)
