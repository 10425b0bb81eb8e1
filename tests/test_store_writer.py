import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.errors import UserError
from cache.extraction.store_writer import create
from cache.store import FeatureStore
from cache.store_check import verify
from tests.toy_store import CLASSNAMES, DIM, raw_features, write_toy

PLAIN = {"dataset": {"name": "toy"}, "model": {"name": "tiny"}}


def begin(path: Path) -> Any:
    return create(path, identity=PLAIN, classnames=CLASSNAMES, versions={})


def write(
    path: Path,
    *blocks: tuple[int, NDArray[Any]],
    error: BaseException | None = None,
    text: tuple[Any, ...] = (),
    **changes: Any,
) -> None:
    """A store of one split of six images, of blocks of features (b, D) and of views (V, b, D)."""
    columns = {"labels": [0, 1, 2, 0, 1, 2], "paths": [f"{row}.jpg" for row in range(6)]}
    with begin(path) as writer:
        writer.split("train", **{**columns, "dim": DIM, **changes})
        for start, block in blocks:
            (writer.write if block.ndim == 2 else writer.write_views)("train", start, block)
        if error:
            raise error
        if text:
            writer.text("templates", *text)


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.h5", tmp_path / "pieces.h5"
    write_toy(whole)
    time.sleep(1.1)  # HDF5 would date its objects to the second
    write_toy(pieces, batch=3, backwards=True)
    assert whole.read_bytes() == pieces.read_bytes()


def test_neither_layout_nor_precision_nor_size_of_the_input_matters(tmp_path: Path) -> None:
    features = raw_features(6, DIM)
    stores = []
    for name, block in (
        ("plain", features),
        ("columns", np.asfortranarray(features)),
        ("double", features.astype(np.float64)),
        ("huge", features * np.float32(2.0**100)),
    ):
        write(tmp_path / name, (0, block))
        stores.append(FeatureStore.open(tmp_path / name))
    plain, columns, double, huge = stores
    assert columns.path.read_bytes() == plain.path.read_bytes()
    assert double.path.read_bytes() == plain.path.read_bytes()
    np.testing.assert_array_equal(huge.features("train"), plain.features("train"))
    np.testing.assert_array_equal(
        huge.split("train").norms(), plain.split("train").norms() * 2.0**100
    )


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here, there = tmp_path / "here.h5", tmp_path / "there.h5"
    write_toy(here, rows=[1, 5, 6], text={"cupl": 5})
    done = python(f"""
        from pathlib import Path
        from tests.toy_store import write_toy
        write_toy(Path({str(there)!r}), rows=[1, 5, 6], text={{"cupl": 5}}, batch=2)
    """)
    assert done.returncode == 0, done.stderr
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop")])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "toy.h5"
    write_toy(path)
    before = path.read_bytes()
    with pytest.raises(type(error), match="stop"):
        write(path, (0, raw_features(3, DIM)), error=error)
    assert [file.name for file in tmp_path.iterdir()] == ["toy.h5"]
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(type(error), match="stop"):
        write(path, (0, raw_features(3, DIM)), error=error)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_store_and_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    done = python(f"""
        import os, signal
        from pathlib import Path
        from tests.test_store_writer import DIM, begin, raw_features
        with begin(Path({str(path)!r})) as writer:
            writer.split("train", labels=[0, 1], paths=["a", "b"], dim=DIM)
            writer.write("train", 0, raw_features(1, DIM))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert done.returncode == -9, done.stderr
    with pytest.raises(UserError, match="no store at"):
        FeatureStore.open(path)
    write_toy(path)
    assert verify(path) == []


@pytest.mark.parametrize("full", ["features", "strings"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, full: str) -> None:
    path = tmp_path / "toy.h5"
    write_toy(path)
    before = path.read_bytes()
    size, dim = (4000, 512) if full == "features" else (40_000, 1)
    done = python(f"""
        import resource, sys
        from pathlib import Path
        from cache.errors import UserError
        from tests.test_store_writer import begin, raw_features
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        try:
            with begin(Path({str(path)!r})) as writer:
                paths = [f"{{row:0100}}.jpg" for row in range({size})]
                writer.split("train", labels=[0] * {size}, paths=paths, dim={dim})
                for start in range(0, {size}, 1000):
                    writer.write("train", start, raw_features(1000, {dim}))
        except UserError as error:
            sys.exit(str(error))
    """)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1_000_000
    assert done.returncode == 1
    assert done.stderr == (
        f"cannot write {path}: File too large; it is as it was before, make room and run again\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["toy.h5"]
    assert path.read_bytes() == before


def test_a_disk_that_is_full_at_the_very_end_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    done = python(f"""
        import resource, sys
        from pathlib import Path
        from cache.errors import UserError
        from tests.toy_store import write_toy
        path = Path({str(path)!r})
        write_toy(path)
        size = path.stat().st_size
        path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 8, resource.RLIM_INFINITY))
        try:
            write_toy(path)
        except UserError as error:
            sys.exit(str(error))
    """)
    assert done.stderr.startswith(f"cannot write {path}: File too large")
    assert list(tmp_path.iterdir()) == []


def test_every_declared_row_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    four, six = (0, raw_features(4, DIM)), (0, raw_features(6, DIM))
    with pytest.raises(ValueError, match="train/features: 2 of 6 rows not written"):
        write(path, four)
    with pytest.raises(ValueError, match="train/views: 6 of 6 rows not written"):
        write(path, six, n_views=2)
    for start in (3, 5, -1):
        with pytest.raises(ValueError, match="beyond the end or were written before"):
            write(path, four, (start, raw_features(2, DIM)))
    with pytest.raises(ValueError, match="needs a split"), begin(path):
        pass
    assert list(tmp_path.iterdir()) == []
    write(path, (4, raw_features(2, DIM)), four)
    assert FeatureStore.open(path).split("train").encoded.tolist() == list(range(6))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_feature_that_is_no_direction_is_refused_by_row(tmp_path: Path, value: float) -> None:
    path = tmp_path / "toy.h5"
    features, views, text = raw_features(2, DIM), raw_features(3, 2, DIM), raw_features(3, DIM)
    features[1] = views[2, 0] = text[1] = value
    with pytest.raises(UserError, match=r"train features .* 1 of 2 .* row 5 \(5.jpg\)"):
        write(path, (2, features), rows=[1, 2, 3, 5])
    with pytest.raises(UserError, match=r"train features .* 1 of 6 .* row 3 \(3.jpg\)"):
        write(path, (1, views), n_views=3, view_rows=[0, 3, 4])
    with pytest.raises(UserError, match=r"text features .* 1 of 3 are not, the first is of 'b'"):
        write(path, text=(text, [0, 1, 2], ["a", "b", "c"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": [0, 1, 3, 0, 0, 0]}, r"train: labels must be in 0..2, .* got 0..3"),
        ({"labels": [0, 1, -1, 0, 0, 0]}, "got -1..1"),
        ({"labels": [0.0] * 6}, "must be .N,. integers; got float64"),
        ({"labels": [0, 1]}, "2 labels and 6 paths"),
        ({"labels": [], "paths": []}, "train split has no images"),
        ({"paths": ["a\udcff"] * 6}, "no valid UTF-8"),
        ({"paths": ["a\0"] * 6}, "no valid UTF-8"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        write(tmp_path / "toy.h5", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "ids", "match"),
    [
        ((3, 2 * DIM), [0, 1, 2], "text features are 32 wide and train features 16"),
        ((3, DIM), [0, 1, 1], "nothing for 1 class, the first is class 2"),
        ((3, DIM), [0, 1, 3], "prompt set templates: labels must be in 0..2"),
        ((2, DIM), [0, 1, 2], "got 2, 3 and 3"),
    ],
)
def test_text_that_does_not_fit_is_refused(
    tmp_path: Path, shape: tuple[int, ...], ids: list[int], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        write(tmp_path / "toy.h5", text=(raw_features(*shape), ids, ["a", "b", "c"]))


@pytest.mark.parametrize("rows", [[2, 1], [1, 1], [6], [-1], []], ids=str)
def test_rows_that_cannot_be_looked_up_are_refused(tmp_path: Path, rows: list[int]) -> None:
    for changes in ({"rows": rows}, {"n_views": 2, "view_rows": rows}):
        with pytest.raises(ValueError, match=r"rows must ascend within 0\.\.5"):
            write(tmp_path / "toy.h5", **changes)
