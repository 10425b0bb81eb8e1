from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Source
from cache.errors import UserError

NAMES = ["001.Ant_Lion", "bee+eater", "cat"]  # the second has no train image
LABELS = [1, 2, 3, 3, 1, 2]
FILES = [f"/BS/work/CUB/images/{NAMES[k - 1]}/{i}.jpg" for i, k in enumerate(LABELS)]


def cells(texts: list[str]) -> Any:
    return np.array([[text] for text in texts], object)


def found(root: Path, **features: Any) -> Source:
    folder = root / "birds"
    folder.mkdir(exist_ok=True)
    savemat(folder / "res101.mat", {"labels": np.array(LABELS)[:, None], **features})
    splits = {"trainval_loc": [1, 3], "test_seen_loc": [4, 5], "test_unseen_loc": [2, 6]}
    savemat(folder / "att_splits.mat", {"allclasses_names": cells(NAMES), **splits})
    file = root / "birds.toml"
    file.write_text(
        'name = "birds"\ntitle = "Birds"\ntemplates = ["a photo of a {}."]\n[layout]\n'
        'kind = "proposed-split"\ndirectory = "birds"\nimages = "photos"\n'
        "split_file = \"att_splits.mat\"\n[classnames.replace]\n'^\\d+\\.' = ''\n'\\+' = '_'\n"
    )
    return resolve(load_manifest("", file), root)


def test_images_are_found_by_the_ends_of_their_paths_and_seen_classes_come_first(
    tmp_path: Path,
) -> None:
    photo = tmp_path / "birds" / "photos" / "001.Ant_Lion" / "0.jpg"
    photo.parent.mkdir(parents=True)
    photo.touch()
    source = found(tmp_path, image_files=cells(FILES))
    assert source.classnames == ("Ant_Lion", "cat", "bee_eater")
    rows = {k: [(item.path, item.label) for item in v] for k, v in source.splits.items()}
    assert rows == {
        "train": [("001.Ant_Lion/0.jpg", 0), ("cat/2.jpg", 1)],
        "test": [
            ("cat/3.jpg", 1), ("001.Ant_Lion/4.jpg", 0), ("bee+eater/1.jpg", 2),
            ("bee+eater/5.jpg", 2),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("features", [{}, {"image_files": cells(FILES)}])
def test_without_images_the_published_features_are_offered(
    tmp_path: Path, features: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"fewshot import .*birds --dataset birds"):
        found(tmp_path, **features)
