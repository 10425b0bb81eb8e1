"""Files of features, as other programs leave them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from cache.store_check import verify

DIM, N_CLASSES = 8, 3
SIZES = {"train": 12, "val": 6, "test": 9}


def features(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([n, seed]).normal(size=(n, DIM)).astype(np.float32)


def labels(n: int) -> NDArray[np.int64]:
    return np.arange(n) % N_CLASSES


def npz(path: Path, **changes: Any) -> Path:
    """A file of three splits and text; a change of None leaves an array out."""
    arrays: dict[str, Any] = {"text_features": features(N_CLASSES), "classnames": ["a", "b_c", "d"]}
    for split, size in SIZES.items():
        arrays |= {f"{split}_features": features(size), f"{split}_labels": labels(size)}
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def archive(path: Path, **members: bytes | NDArray[Any]) -> Path:
    """A `.npz` of sound arrays but for the members given: arrays, or the bytes of a member."""
    arrays: dict[str, Any] = {
        "train_features": np.eye(6, 4, dtype="f4") + 1,
        "train_labels": np.arange(6) % 3,
        **members,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in arrays.items():
            content = io.BytesIO(value if isinstance(value, bytes) else b"")
            if not isinstance(value, bytes):
                np.lib.format.write_array(content, value)
            file.writestr(f"{name}.npy", content.getvalue())
    return path


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def imported(file: Path, tmp_path: Path, **options: Any) -> FeatureStore:
    path = import_file(file, "toy", "ViT-B-16,openai", tmp_path / "stores", **options)
    assert verify(path) == []
    return FeatureStore.open(path)


def refuse(file: Path, tmp_path: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        import_file(file, "toy", "m", tmp_path / "stores", **options)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "stores").rglob("*"))[1:]


def check_content(store: FeatureStore, *, rtol: float = 1e-3) -> None:
    for split, size in SIZES.items():
        raw = store.features(split, unit=False)
        np.testing.assert_allclose(raw, features(size), rtol=rtol, atol=3e-3)
        np.testing.assert_array_equal(store.labels(split), labels(size))
    np.testing.assert_allclose(store.text(), unit(features(N_CLASSES)), rtol=1e-5, atol=1e-6)


def sets_of(n: int) -> NDArray[np.bool_]:
    """(n, 3) labels: the class of `labels`, and of every other image the last one as well."""
    sets = np.eye(N_CLASSES, dtype=bool)[labels(n)]
    sets[::2, -1] = True
    return sets
