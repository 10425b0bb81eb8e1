import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cache.images.read_ahead import read_ahead


@pytest.mark.parametrize("n", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_comes_once_and_in_order(n: int, workers: int) -> None:
    batches = list(read_ahead(range(n), lambda i: torch.tensor(i), batch_size=3, workers=workers))
    assert [len(batch) for batch in batches] == [3] * (n // 3) + [n % 3] * (n % 3 > 0)
    found = [(i, int(x)) for batch in batches for i, x in batch if isinstance(x, Tensor)]
    assert found == [(i, i) for i in range(n)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("torn"), "torn"),
        (ValueError("too thin"), "too thin"),
        (MemoryError(), "MemoryError"),
        (OSError("two\nlines"), r"two\nlines"),
    ],
)
def test_an_image_that_cannot_be_read_is_a_reason(error: Exception, reason: str) -> None:
    def read(item: int) -> Tensor:
        if item == 1:
            raise error
        return torch.tensor(item)

    [batch] = read_ahead(range(3), read, batch_size=4, workers=2)
    assert [x for _, x in batch if isinstance(x, str)] == [reason]


def test_a_bug_is_no_reason() -> None:
    def read(item: int) -> Tensor:
        raise TypeError(item)

    with pytest.raises(TypeError):
        list(read_ahead([1], read, batch_size=1, workers=1))


def test_no_more_than_three_batches_are_taken_at_a_time() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    batches = read_ahead(items(), lambda i: torch.tensor(i), batch_size=2, workers=1)
    next(batches)
    assert taken == list(range(6))


def test_what_is_closed_reads_no_further() -> None:
    started, go = [], threading.Event()

    def read(item: int) -> Tensor:
        started.append(item)
        if item >= 2:
            go.wait(10)
        return torch.tensor(item)

    batches = read_ahead(range(100), read, batch_size=2, workers=1)
    next(batches)
    threading.Timer(0.1, go.set).start()
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert len(started) < 6
