from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from fewshot.results.prediction_files import (
    Predictions,
    digest_of_images,
    read_predictions,
    write_predictions,
)

LABELS = np.array([0, 2, 1, 1])
SAID = Predictions(np.array([0, 2, 1, 0]), LABELS, ("ant", "über", "sea lion"), "0123456789abcdef")


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.npz"
    write_predictions(path, SAID)
    again = read_predictions(path)
    np.testing.assert_array_equal(again.predicted, SAID.predicted)
    np.testing.assert_array_equal(again.labels, SAID.labels)
    assert again.predicted.dtype == again.labels.dtype == np.int64
    assert (again.classnames, again.images) == (SAID.classnames, SAID.images)
    assert [p.name for p in path.parent.iterdir()] == ["p.npz"]


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    path.write_text("old")
    write_predictions(path, SAID)
    assert read_predictions(path).images == SAID.images


def test_the_digest_stands_for_dataset_labels_and_rows_in_order() -> None:
    rows = np.arange(4)
    same = digest_of_images("toy", LABELS, rows)
    assert same == digest_of_images("toy", LABELS.astype(np.int32), rows.astype(np.uint8))
    assert len(same) == 16
    others = {
        digest_of_images("sun", LABELS, rows),
        digest_of_images("toy", LABELS[::-1], rows),
        digest_of_images("toy", LABELS, rows[::-1]),
        digest_of_images("toy", LABELS, rows[:3]),
    }
    assert len(others | {same}) == 5


def cut_short(path: Path) -> None:
    write_predictions(path, SAID)
    path.write_bytes(path.read_bytes()[:-60])


def garbled(path: Path) -> None:
    write_predictions(path, SAID)
    content = bytearray(path.read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, LABELS)


def other_arrays(path: Path) -> None:
    np.savez(path, train_x=LABELS)


def other_about(path: Path) -> None:
    np.savez(path, predicted=LABELS, labels=LABELS, about=np.array("[1]"))


def pickled(path: Path) -> None:
    np.savez(path, predicted=np.array([{}]), labels=LABELS, about=np.array("{}"))


@pytest.mark.parametrize(
    "spoil",
    [Path.touch, cut_short, garbled, one_array, other_arrays, other_about, pickled],
    ids=lambda spoil: spoil.__name__,
)
def test_what_holds_no_predictions_is_refused_in_a_line(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "p.npz"
    spoil(path)
    with pytest.raises(UserError, match=r"p\.npz holds no predictions"):
        read_predictions(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz: No such file .*--save-predictions"):
        read_predictions(tmp_path / "none.npz")
